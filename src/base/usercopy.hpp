// Copies between our memory and the application's, where a bad pointer must give EFAULT and not a crash (T05).
//
// The copy is one assembly routine without a stack frame. A SIGSEGV/SIGBUS handler recognises a fault by its instruction pointer
// lying inside that routine and moves it to the routine's exit; every other fault goes on to the program's own handler, or to the
// default action, unchanged. So a good pointer pays nothing: no record, no setjmp. Any thread, any signal handler, also the child of vfork.
// Where there is no such routine (not x86-64) the kernel does the copy: process_vm_readv on ourselves, EFAULT is its answer.
#pragma once
#include <signal.h>

#include "base/types.hpp"

namespace icepath {

// Bytes NOT copied, as in the kernel: 0 is success. A short fault may report all n although some were copied.
size_t copy_from_user(void* to, const void* from, size_t n);
size_t copy_to_user(void* to, const void* from, size_t n);

// One word, read in place; -1: it cannot be read. The instruction is named in the section icepath_ex, with where to go on after a fault (as the
// kernel's exception table does): for paths where a call is too much.
inline int64_t load_from_user(const int* from) {
#if defined(__x86_64__)
  int64_t v = -1;
  asm volatile(
      "1: movl (%[from]), %k[v]\n"
      "2:\n"
      ".pushsection icepath_ex, \"a\", @progbits\n"
      ".balign 4\n"
      ".long 1b - ., 2b - .\n"
      ".popsection"
      : [v] "+r"(v)
      : [from] "r"(from)
      : "memory");
  return v;
#else
  uint32_t v;
  return copy_from_user(&v, from, sizeof v) ? -1 : int64_t{v};
#endif
}

// Puts the handler in place; what was installed becomes the next one. Until then a bad pointer crashes as it does without us.
// `real` is libc's sigaction; nullptr: looked up behind this library.
using sigaction_fn = int (*)(int, const struct sigaction*, struct sigaction*);
result<bool> usercopy_install(sigaction_fn real = nullptr);
bool usercopy_installed();

// The program's own action for SIGSEGV or SIGBUS, which it believes to be installed: the interposed sigaction reads and writes it
// here instead of in the kernel. Safe in signal handlers. set returns false for other signals.
bool usercopy_set_next(int sig, const struct sigaction* act);
bool usercopy_get_next(int sig, struct sigaction* act);

// For a handler of one's own: true when the fault was in a user copy and the context now continues at its exit.
bool usercopy_fault(const siginfo_t* info, void* ucontext);

}  // namespace icepath
