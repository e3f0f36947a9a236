// While it lives, a write or a file operation of ours that fails raises nothing in the program: SIGPIPE (nobody reads stderr) and SIGXFSZ (a file would
// grow beyond RLIMIT_FSIZE) are blocked in this thread, and what `failed` says was raised is taken back. No system call but the two of the mask unless it
// comes to that: a sandbox may allow no other. Any thread, any signal handler.
#pragma once
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <ctime>

#include "base/raw_syscall.hpp"

namespace icepath {

class quiet_signals {
 public:
  quiet_signals() {
    raw_syscall(SYS_rt_sigprocmask, SIG_BLOCK, &both, &before_, sizeof both);
    if (before_ & both) raw_syscall(SYS_rt_sigpending, &pending_, sizeof pending_);   // the program's own, which stays
  }
  ~quiet_signals() {
    if (!stays_) raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before_, nullptr, sizeof before_);
  }
  quiet_signals(const quiet_signals&) = delete;

  // r: what the raw call returned. at_exit: the signals stay blocked instead of being taken back.
  void result(long r, bool at_exit = false) {
    if (r != -EPIPE && r != -EFBIG) return;
    stays_ = at_exit;
    static constexpr timespec now{0, 0};
    const uint64_t ours = both & ~pending_;
    if (!at_exit && ours) raw_syscall(SYS_rt_sigtimedwait, &ours, nullptr, &now, sizeof ours);
  }

 private:
  static constexpr uint64_t both = 1ull << (SIGPIPE - 1) | 1ull << (SIGXFSZ - 1);
  uint64_t before_ = 0, pending_ = 0;
  bool stays_ = false;
};

}  // namespace icepath
