// The signal gate: while it is closed in a thread, the program's signal handlers do not run in that thread; they run when it opens.
// It is what blocking all signals would be, for the price of a thread-local increment. A section that holds an owner word or another lock of the library
// closes it, so a handler that calls send, write or close never meets a stack its own thread is inside of (T10).
//
// How: the handlers the kernel knows are trampolines (preload/call_signal.cpp). One that finds the gate closed keeps the signal with its
// siginfo and returns; the opening sends it to this thread again (rt_tgsigqueueinfo), so the handler gets its mask and context from the kernel as usual.
// Standard signals coalesce while pending, as in the kernel. Handlers the trampoline does not stand before (set before the library was
// active, or by a raw system call) run at once: sections must stay correct, if not pleasant, then (stack_enter returns false).
#pragma once
#include <signal.h>
#include <atomic>
#include <cstdint>

namespace icepath {

struct sig_gate_state {
  uint32_t closed = 0;      // depth
  uint32_t pending = 0;     // kept signals
};
extern constinit thread_local sig_gate_state sig_gate __attribute__((tls_model("initial-exec")));

bool sig_gate_keep(int sig, const siginfo_t* info);   // from a trampoline: true: kept, do not call the handler
void sig_gate_flush();

inline void sig_gate_close() {
  ++sig_gate.closed;
  std::atomic_signal_fence(std::memory_order_seq_cst);
}
inline void sig_gate_open() {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  const uint32_t left = --sig_gate.closed;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  if (__builtin_expect(left == 0 && sig_gate.pending != 0, 0)) sig_gate_flush();
}

struct closed_gate {
  closed_gate() { sig_gate_close(); }
  ~closed_gate() { sig_gate_open(); }
  closed_gate(const closed_gate&) = delete;
};

}  // namespace icepath
