// `icepath off PID`, `icepath on PID`, and the refresh that `ss` asks for before it reads rows: a command in the process's control mailbox (src/skb/region.hpp). We claim the mailbox by
// CAS on its lock, write the command, raise `req`, and wake the helper thread through the FIFO p<slot>.ctl; the answer is there when
// `done` has caught up. A process without a helper thread has nothing on the fast path: the mailbox's `off` word is all there is to say. A mailbox left locked by a dead icepath is taken over. Everything is bounded by one deadline.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include "cli.hpp"

namespace icepath::cli {
namespace {

nsec now() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<nsec>(ts.tv_sec) * sec_ns + static_cast<nsec>(ts.tv_nsec);
}
void pause_briefly() {
  const timespec t{0, 200000};
  nanosleep(&t, nullptr);
}

bool claim(control_mailbox& m, nsec deadline) {
  const uint32_t me = static_cast<uint32_t>(getpid());
  for (;;) {
    uint32_t holder = 0;
    if (m.lock.compare_exchange_strong(holder, me, std::memory_order_acquire)) return true;   // pairs with the release below
    if (kill(static_cast<pid_t>(holder), 0) != 0 && errno == ESRCH && m.lock.compare_exchange_strong(holder, me, std::memory_order_acquire))
      return true;
    if (now() >= deadline) return false;
    pause_briefly();
  }
}

void wake_helper(uint32_t slot) {
  const std::string path = std::string(runtime_dir_path()) + "/p" + std::to_string(slot) + ".ctl";
  const int fd = open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return;                      // no reader: the deadline below says so
  const ssize_t ignored = write(fd, "", 1);   // a full FIFO wakes just as well
  static_cast<void>(ignored);
  close(fd);
}

}  // namespace

ask_result ask(const process& p, control_cmd cmd, uint64_t timeout_ns) {
  const auto writable = region_open_peer(p.peer.slot, p.peer.hdr()->cookie, false);   // mapped writable for this long only
  if (!writable) return {answer::gone, 0, 0};
  region_peer peer = *writable;
  control_mailbox& m = reinterpret_cast<region_header*>(peer.base)->control;
  const nsec deadline = now() + timeout_ns;
  ask_result r{answer::busy, 0, 0};
  if (claim(m, deadline)) {
    // Partner of both: publish in src/sock/promote.cpp.
    if (cmd == control_cmd::off || cmd == control_cmd::on) m.off.store(cmd == control_cmd::off, std::memory_order_seq_cst);
    if (!m.attended.load(std::memory_order_seq_cst)) {
      m.lock.store(0, std::memory_order_release);
      region_close_peer(peer);
      return {answer::given, 0, 0};
    }
    m.cmd = static_cast<uint32_t>(cmd);
    m.arg = 0;
    const uint32_t ticket = m.req.load(std::memory_order_relaxed) + 1;
    m.req.store(ticket, std::memory_order_release);      // pairs with the helper's acquire load: cmd is there when req is
    wake_helper(peer.slot);
    bool answered;
    while (!(answered = m.done.load(std::memory_order_acquire) == ticket) && now() < deadline) pause_briefly();
    r = {answered ? answer::given : answer::none, m.status, m.count};
    m.lock.store(0, std::memory_order_release);
  }
  region_close_peer(peer);
  return r;
}

int control(control_cmd cmd, pid_t pid) {
  bool found = false;
  int status = exit_failed;
  for_each_process(true, [&](const process& p) {
    if (p.pid != pid) return true;
    const ask_result r = ask(p, cmd, 2 * sec_ns);
    found = r.what != answer::gone;
    if (r.what == answer::busy) complain("process %d: another icepath command is under way", pid);
    if (r.what == answer::none) complain("process %d did not answer within 2 s", pid);
    if (r.what != answer::given) return false;
    if (r.status != 0) {
      complain("process %d: %s", pid, strerror(r.status < 0 ? -r.status : r.status));
    } else {
      printf("%d %s: %u socket%s moved\n", pid, p.comm.c_str(), r.count, r.count == 1 ? "" : "s");
      status = exit_ok;
    }
    return false;
  });
  if (!found) complain("no accelerated process %d of this user in this network namespace", pid);
  return status;
}

}  // namespace icepath::cli
