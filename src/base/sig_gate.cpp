// See sig_gate.hpp. All state is the thread's own; a handler of the same thread is the only concurrency.
#include "base/sig_gate.hpp"

#include <unistd.h>

#include "base/raw_syscall.hpp"

namespace icepath {

constinit thread_local sig_gate_state sig_gate __attribute__((tls_model("initial-exec")));

namespace {
constexpr uint32_t room = 24;
struct kept { int sig; siginfo_t info; };
thread_local kept store[room] __attribute__((tls_model("initial-exec")));
}  // namespace

bool sig_gate_keep(int sig, const siginfo_t* info) {
  if (sig_gate.closed == 0) return false;
  if (sig < SIGRTMIN)
    for (uint32_t i = 0; i < sig_gate.pending; ++i)
      if (store[i].sig == sig) return true;      // pending already
  if (sig_gate.pending == room) return false;    // better now than never
  store[sig_gate.pending] = {sig, *info};
  ++sig_gate.pending;
  return true;
}

void sig_gate_flush() {
  // Each entry is taken off before it is sent: its handler may close and open the gate again.
  while (sig_gate.pending) {
    const kept k = store[sig_gate.pending - 1];
    --sig_gate.pending;
    siginfo_t info = k.info;
    const long pid = raw_syscall(SYS_getpid), tid = raw_syscall(SYS_gettid);
    if (raw_syscall(SYS_rt_tgsigqueueinfo, pid, tid, k.sig, &info) < 0) raw_syscall(SYS_tgkill, pid, tid, k.sig);
  }
}

}  // namespace icepath
