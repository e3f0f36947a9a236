// `icepath off PID` and `icepath on PID`: a command in the process's control mailbox (src/skb/region.hpp). We claim the mailbox by
// CAS on its lock, write the command, raise `req`, and wake the helper thread through the FIFO p<slot>.ctl; the answer is there when
// `done` has caught up. A mailbox left locked by a dead icepath is taken over. Everything is bounded by one deadline of two seconds.
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

constexpr nsec answer_timeout = 2 * sec_ns;
nsec now() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<nsec>(ts.tv_sec) * sec_ns + static_cast<nsec>(ts.tv_nsec);
}
void pause_briefly() {
  const timespec ms{0, 1000000};
  nanosleep(&ms, nullptr);
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

int ask(const process& p, control_cmd cmd) {
  control_mailbox& m = reinterpret_cast<region_header*>(p.peer.base)->control;
  const nsec deadline = now() + answer_timeout;
  if (!claim(m, deadline)) {
    complain("process %d: another icepath command is under way", p.pid);
    return exit_failed;
  }
  m.cmd = static_cast<uint32_t>(cmd);
  m.arg = 0;
  const uint32_t ticket = m.req.load(std::memory_order_relaxed) + 1;
  m.req.store(ticket, std::memory_order_release);      // pairs with the helper's acquire load: cmd is there when req is
  wake_helper(p.peer.slot);
  bool answered = false;
  while (!(answered = m.done.load(std::memory_order_acquire) == ticket) && now() < deadline) pause_briefly();
  const int32_t status = m.status;
  const uint32_t count = m.count;
  m.lock.store(0, std::memory_order_release);
  if (!answered) {
    complain("process %d did not answer within %u s", p.pid, static_cast<unsigned>(answer_timeout / sec_ns));
    return exit_failed;
  }
  if (status != 0) {
    complain("process %d: %s", p.pid, strerror(status < 0 ? -status : status));
    return exit_failed;
  }
  printf("%d %s: %u socket%s moved\n", p.pid, p.comm.c_str(), count, count == 1 ? "" : "s");
  return exit_ok;
}

}  // namespace

int control(control_cmd cmd, pid_t pid) {
  int status = -1;
  for_each_process(true, [&](const process& p) {
    if (p.pid != pid) return true;
    auto writable = region_open_peer(p.peer.slot, p.peer.hdr()->cookie, false);   // only the process asked for is mapped writable
    if (!writable) return false;
    process w = p;
    w.peer = *writable;
    status = ask(w, cmd);
    region_close_peer(w.peer);
    return false;
  });
  if (status >= 0) return status;
  complain("no accelerated process %d of this user in this network namespace", pid);
  return exit_failed;
}

}  // namespace icepath::cli
