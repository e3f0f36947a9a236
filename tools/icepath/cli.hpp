// The `icepath` command: what its parts share. Single-threaded; every subcommand returns the process's exit status.
// It reads other processes' regions, so each value from there is checked before it is used or printed.
#pragma once
#include <sys/types.h>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>
#include "net/mib.hpp"
#include "skb/region.hpp"

namespace icepath::cli {

enum exit_status { exit_ok = 0, exit_failed = 1, exit_usage = 2, exit_not_executable = 126, exit_not_found = 127 };

struct run_options {
  bool require = false, stats = false;
  std::string ports, promote;
  std::vector<std::string> command;
};
int run(const run_options& o);                       // returns only when the program could not be started
int ss(bool json);
int stat(bool json);
int control(control_cmd cmd, pid_t pid);
struct doctor_options { std::string ifname, peer; };
int doctor(const doctor_options& o);

// One accelerated process, its header's words copied and checked.
struct process {
  region_peer peer;                                  // mapped while the callback runs
  pid_t pid = 0;
  uint64_t start_ns = 0;
  std::string comm, exe, ports;
};
// Calls `fn` for every live process of this user in this network namespace, in slot order. `fn` returns false to stop.
void for_each_process(bool read_only, const std::function<bool(const process&)>& fn);

// Puts a command into the process's mailbox and waits for the answer.
enum class answer { given, none, busy, gone };
struct ask_result { answer what; int32_t status; uint32_t count; };
ask_result ask(const process& p, control_cmd cmd, uint64_t timeout_ns);

// A consistent copy of a row. `seq` is not copied.
struct row {
  uint8_t state, path, tx_lane, rx_lane, ca;
  uint16_t family, sport, dport, stack_no;
  int32_t fd;
  inet_addr saddr, daddr;
  std::string reason;
  uint32_t rcvq, sndq, retrans, srtt_us, rttvar_us, cwnd, ssthresh, mss;
  uint64_t tx_bytes, rx_bytes, fast_tx_bytes, fast_rx_bytes;
};
std::vector<row> read_rows(const process& p);

std::string printable(const char* s, size_t max);    // up to the first NUL; anything but printable ASCII becomes '?'
std::string address(uint16_t family, const inet_addr& a);
const char* state_name(uint8_t tcp_state);
void complain(const char* fmt, ...) __attribute__((format(printf, 1, 2)));   // "icepath: ..." on stderr

}  // namespace icepath::cli
