// `icepath ss`: one row for each socket of every accelerated process of this user.
#include <cstdio>
#include <nlohmann/json.hpp>
#include "cli.hpp"

namespace icepath::cli {
namespace {

const char* lane_name(uint8_t l) { return l == 0 ? "kernel" : l == 1 ? "draining" : "fast"; }
std::string endpoint(const row& r, bool local) {
  const std::string a = address(r.family, local ? r.saddr : r.daddr);
  const unsigned port = local ? r.sport : r.dport;
  const std::string p = port ? std::to_string(port) : "*";
  return a.find(':') == std::string::npos ? a + ":" + p : "[" + a + "]:" + p;
}
std::string rtt(uint32_t us) {
  char b[32];
  snprintf(b, sizeof b, us ? "%.3f" : "-", us / 1000.0);
  return b;
}

}  // namespace

int ss(bool json) {
  auto out = nlohmann::json::array();
  if (!json)
    printf("%7s %-15s %-10s %-23s %-23s %-6s %8s %8s %7s %8s %6s  %s\n", "PID", "COMM", "STATE", "LOCAL", "PEER", "PATH", "RECV-Q",
           "SEND-Q", "RETRANS", "RTT(ms)", "CWND", "REASON");
  for_each_process(true, [&](const process& p) {
    // Queues, RTT and the like are brought up to date on request only. A stopped process does not answer: its rows are as old as that.
    const bool fresh = ask(p, control_cmd::refresh, 300 * msec_ns).what == answer::given;
    for (const row& r : read_rows(p)) {
      const char* path = r.path == 1 ? "fast" : "kernel";
      if (!json) {
        printf("%7d %-15s %-10s %-23s %-23s %-6s %8u %8u %7u %8s %6u  %s\n", p.pid, p.comm.c_str(), state_name(r.state),
               endpoint(r, true).c_str(), endpoint(r, false).c_str(), path, r.rcvq, r.sndq, r.retrans, rtt(r.srtt_us).c_str(), r.cwnd,
               r.reason.c_str());
        continue;
      }
      out.push_back({{"pid", p.pid},
                     {"comm", p.comm},
                     {"fd", r.fd},
                     {"fresh", fresh},
                     {"state", state_name(r.state)},
                     {"local", endpoint(r, true)},
                     {"peer", endpoint(r, false)},
                     {"path", path},
                     {"reason", r.reason},
                     {"recv_q", r.rcvq},
                     {"send_q", r.sndq},
                     {"retransmits", r.retrans},
                     {"rtt_us", r.srtt_us},
                     {"rttvar_us", r.rttvar_us},
                     {"cwnd", r.cwnd},
                     {"ssthresh", r.ssthresh},
                     {"mss", r.mss},
                     {"congestion", r.ca == 1 ? "cubic" : "reno"},
                     {"tx_lane", lane_name(r.tx_lane ? 2 : 0)},
                     {"rx_lane", lane_name(r.rx_lane)},
                     {"stack", r.stack_no},
                     {"tx_bytes", r.tx_bytes},
                     {"rx_bytes", r.rx_bytes},
                     {"fast_tx_bytes", r.fast_tx_bytes},
                     {"fast_rx_bytes", r.fast_rx_bytes}});
    }
    return true;
  });
  if (json) puts(out.dump(2).c_str());
  return exit_ok;
}

}  // namespace icepath::cli
