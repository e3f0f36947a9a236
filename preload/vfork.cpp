// vfork returns twice into the same frame, so it cannot be wrapped in C++: between the child's return and its exec the caller goes on
// using the stack, return address included. As in libc, the return address waits in a register (rdi survives the system call), so
// both returns find it whatever the child has written.
//
// Before the call icepath_before_vfork (call_proc.cpp) demotes what the new program could inherit. The child then runs in the parent's memory with the
// parent's thread-local storage: it sets icepath_in_vfork, and the parent clears it when it goes on; the kernel keeps the
// parent's thread still in between, and no other thread sees the flag. posix_spawn, system and popen do the like inside libc, where
// the child makes its system calls directly and never comes by our symbols.
#include <cerrno>
#include <unistd.h>
#include "export.hpp"

namespace icepath {
constinit thread_local int icepath_in_vfork = 0;
}

#if defined(__x86_64__)

extern "C" [[gnu::visibility("hidden"), gnu::used]] int icepath_vfork_failed(int err) {
  errno = err;
  return -1;
}

asm(R"(
  .text
  .globl vfork
  .globl __vfork
  .type vfork, @function
  .type __vfork, @function
  .p2align 4
vfork:
__vfork:
  .cfi_startproc
  subq $8, %rsp
  .cfi_adjust_cfa_offset 8
  call icepath_before_vfork
  addq $8, %rsp
  .cfi_adjust_cfa_offset -8
  popq %rdi
  .cfi_adjust_cfa_offset -8
  .cfi_register %rip, %rdi
  movl $58, %eax
  syscall
  pushq %rdi
  .cfi_adjust_cfa_offset 8
  .cfi_rel_offset %rip, 0
  cmpq $-4095, %rax
  jae 2f
  movq icepath_in_vfork@gottpoff(%rip), %rcx
  testq %rax, %rax
  jz 1f
  movl $0, %fs:(%rcx)
  ret
1:
  movl $1, %fs:(%rcx)
  ret
2:
  negl %eax
  movl %eax, %edi
  jmp icepath_vfork_failed
  .cfi_endproc
  .size vfork, . - vfork
  .size __vfork, . - __vfork
)");

#else

// POSIX lets vfork be fork.
ICEPATH_EXPORT pid_t vfork() noexcept { return fork(); }
ICEPATH_EXPORT pid_t __vfork() noexcept ICEPATH_ALIAS(vfork);

#endif
