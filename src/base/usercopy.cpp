// See usercopy.hpp. The two tables below are written by sigaction calls and read by the handler on any thread.
#include "base/usercopy.hpp"

#include <dlfcn.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>

#include "base/raw_syscall.hpp"

#if defined(__x86_64__)

// size_t icepath_usercopy(void* to [rdi], const void* from [rsi], size_t n [rdx]): bytes left in rax.
// r9 keeps n, so that a fault anywhere answers "nothing copied"; in the string move rcx is the exact rest.
// No stack is used and nothing but the exit returns, so setting rax and rip is the whole recovery.
asm(R"(
  .pushsection .text.icepath_usercopy, "ax", @progbits
  .p2align 5
  .globl icepath_usercopy
  .hidden icepath_usercopy
  .type icepath_usercopy, @function
icepath_usercopy:
  .cfi_startproc
  endbr64
  movq %rdx, %r9
  cmpq $16, %rdx
  jb 3f
  cmpq $32, %rdx
  ja 1f
  movups (%rsi), %xmm0
  movups -16(%rsi,%rdx), %xmm1
  movups %xmm0, (%rdi)
  movups %xmm1, -16(%rdi,%rdx)
  xorl %eax, %eax
  ret
1:                                  # more than 32: the last 32 bytes first into registers, then whole blocks
  cmpq $1024, %rdx
  ja 2f
  movups -32(%rsi,%rdx), %xmm2
  movups -16(%rsi,%rdx), %xmm3
  leaq -32(%rdi,%rdx), %r8
11:
  movups (%rsi), %xmm0
  movups 16(%rsi), %xmm1
  movups %xmm0, (%rdi)
  movups %xmm1, 16(%rdi)
  addq $32, %rsi
  addq $32, %rdi
  cmpq %r8, %rdi
  jb 11b
  movups %xmm2, (%r8)
  movups %xmm3, 16(%r8)
  xorl %eax, %eax
  ret
2:
  movq %rdx, %rcx
  .globl icepath_usercopy_rep
  .hidden icepath_usercopy_rep
icepath_usercopy_rep:
  rep movsb
  xorl %eax, %eax
  ret
3:
  cmpq $8, %rdx
  jb 4f
  movq (%rsi), %rax
  movq -8(%rsi,%rdx), %rcx
  movq %rax, (%rdi)
  movq %rcx, -8(%rdi,%rdx)
  xorl %eax, %eax
  ret
4:
  cmpq $4, %rdx
  jb 5f
  movl (%rsi), %eax
  movl -4(%rsi,%rdx), %ecx
  movl %eax, (%rdi)
  movl %ecx, -4(%rdi,%rdx)
  xorl %eax, %eax
  ret
5:
  testq %rdx, %rdx
  jz 6f
  movzbl (%rsi), %eax
  cmpq $1, %rdx
  je 51f
  movzwl -2(%rsi,%rdx), %ecx
  movw %cx, -2(%rdi,%rdx)
51:
  movb %al, (%rdi)
6:
  xorl %eax, %eax
  .globl icepath_usercopy_exit
  .hidden icepath_usercopy_exit
icepath_usercopy_exit:
  ret
  .cfi_endproc
  .size icepath_usercopy, . - icepath_usercopy
  .popsection
)");

extern "C" {
size_t icepath_usercopy(void* to, const void* from, size_t n);
extern const char icepath_usercopy_rep[], icepath_usercopy_exit[];
// Pairs of distances from where they stand: the instruction that may fault, and where to go on. Made by load_from_user.
extern const int32_t __start_icepath_ex[] __attribute__((weak, visibility("hidden")));
extern const int32_t __stop_icepath_ex[] __attribute__((weak, visibility("hidden")));
}

namespace icepath {

size_t copy_from_user(void* to, const void* from, size_t n) { return icepath_usercopy(to, from, n); }
size_t copy_to_user(void* to, const void* from, size_t n) { return icepath_usercopy(to, from, n); }

bool usercopy_fault(const siginfo_t* info, void* ucontext) {
  if (info->si_code <= 0) return false;  // sent by somebody, not raised by an instruction
  auto* uc = static_cast<ucontext_t*>(ucontext);
  greg_t* r = uc->uc_mcontext.gregs;
  const auto ip = static_cast<uintptr_t>(r[REG_RIP]);
  const auto exit = reinterpret_cast<uintptr_t>(icepath_usercopy_exit);
  for (const int32_t* e = __start_icepath_ex; e < __stop_icepath_ex; e += 2) {
    if (reinterpret_cast<uintptr_t>(e) + static_cast<uintptr_t>(intptr_t{e[0]}) != ip) continue;
    r[REG_RIP] = static_cast<greg_t>(reinterpret_cast<uintptr_t>(e + 1) + static_cast<uintptr_t>(intptr_t{e[1]}));
    return true;
  }
  if (ip < reinterpret_cast<uintptr_t>(&icepath_usercopy) || ip >= exit) return false;
  r[REG_RAX] = ip == reinterpret_cast<uintptr_t>(icepath_usercopy_rep) ? r[REG_RCX] : r[REG_R9];
  r[REG_RIP] = static_cast<greg_t>(exit);
  return true;
}

#else

namespace icepath {

static size_t kernel_copy(void* to, const void* from, size_t n, bool read) {
  iovec mine{read ? to : const_cast<void*>(from), n}, user{read ? const_cast<void*>(from) : to, n};
  if (n == 0) return 0;
  const long r = raw_syscall(read ? SYS_process_vm_readv : SYS_process_vm_writev, raw_syscall(SYS_getpid), &mine, 1, &user, 1, 0);
  return r < 0 ? n : n - static_cast<size_t>(r);
}
size_t copy_from_user(void* to, const void* from, size_t n) { return kernel_copy(to, from, n, true); }
size_t copy_to_user(void* to, const void* from, size_t n) { return kernel_copy(to, from, n, false); }
bool usercopy_fault(const siginfo_t*, void*) { return false; }

#endif

namespace {

// Eight versions in turn, so that a handler that reads one while others are written still reads a whole one.
struct next_action {
  struct sigaction version[8] = {};
  std::atomic<unsigned> writes{0};
  std::atomic<const struct sigaction*> now{nullptr};  // release by set, acquire by readers; nullptr: default action
  void set(const struct sigaction& a) {
    struct sigaction& v = version[writes.fetch_add(1, std::memory_order_relaxed) % 8];
    v = a;
    now.store(&v, std::memory_order_release);
  }
};
next_action nexts[2];  // SIGSEGV, SIGBUS
std::atomic<sigaction_fn> real_sigaction{nullptr};
std::atomic<bool> installed{false};

bool is_ours(int sig) { return sig == SIGSEGV || sig == SIGBUS; }
next_action& next_of(int sig) { return nexts[sig == SIGBUS]; }

void thread_mask(const sigset_t* set, int how, sigset_t* old) { (void)raw_syscall(SYS_rt_sigprocmask, how, set, old, size_t{8}); }

// The default action: with it in place the instruction runs again and the process dies where and as it would have without us.
// A signal that was sent does not come back by itself: send it again, it is delivered when we return.
void die(int sig, const siginfo_t* info) {
  struct sigaction dfl = {};
  dfl.sa_handler = SIG_DFL;
  if (sigaction_fn f = real_sigaction.load(std::memory_order_acquire)) f(sig, &dfl, nullptr);
  if (info->si_code <= 0) (void)raw_syscall(SYS_tgkill, raw_syscall(SYS_getpid), raw_syscall(SYS_gettid), sig);
}

void handler(int sig, siginfo_t* info, void* uc) {
  if (usercopy_fault(info, uc)) return;
  next_action& n = next_of(sig);
  const struct sigaction* p = n.now.load(std::memory_order_acquire);
  if (!p) return die(sig, info);
  const struct sigaction a = *p;
  if (!(a.sa_flags & SA_SIGINFO)) {
    if (a.sa_handler == SIG_DFL || (a.sa_handler == SIG_IGN && info->si_code > 0)) return die(sig, info);
    if (a.sa_handler == SIG_IGN) return;
  }
  if (a.sa_flags & static_cast<int>(SA_RESETHAND)) {
    struct sigaction dfl = {};
    dfl.sa_handler = SIG_DFL;
    n.set(dfl);
  }
  // The kernel blocked this signal for us; the program's action may ask for more, or for less (SA_NODEFER).
  sigset_t before, one;
  thread_mask(&a.sa_mask, SIG_BLOCK, &before);
  if (a.sa_flags & SA_NODEFER) {
    sigemptyset(&one);
    sigaddset(&one, sig);
    thread_mask(&one, SIG_UNBLOCK, nullptr);
  }
  if (a.sa_flags & SA_SIGINFO) a.sa_sigaction(sig, info, uc);
  else a.sa_handler(sig);
  thread_mask(&before, SIG_SETMASK, nullptr);
}

}  // namespace

result<bool> usercopy_install(sigaction_fn real) {
  if (installed.load(std::memory_order_acquire)) return true;
  if (!real) real = reinterpret_cast<sigaction_fn>(::dlsym(RTLD_NEXT, "sigaction"));
  if (!real) return result<bool>::error(ENOSYS);
  real_sigaction.store(real, std::memory_order_release);
  for (int sig : {SIGSEGV, SIGBUS}) {
    struct sigaction old = {}, ours = {};
    if (real(sig, nullptr, &old)) return result<bool>::error(errno);
    if ((old.sa_flags & SA_SIGINFO) && old.sa_sigaction == handler) continue;
    next_of(sig).set(old);
    ours.sa_sigaction = handler;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&ours.sa_mask);
    if (real(sig, &ours, nullptr)) return result<bool>::error(errno);
  }
  installed.store(true, std::memory_order_release);
  return true;
}

bool usercopy_installed() { return installed.load(std::memory_order_acquire); }

bool usercopy_set_next(int sig, const struct sigaction* act) {
  if (!is_ours(sig)) return false;
  next_of(sig).set(*act);
  return true;
}

bool usercopy_get_next(int sig, struct sigaction* act) {
  if (!is_ours(sig)) return false;
  const struct sigaction* p = next_of(sig).now.load(std::memory_order_acquire);
  if (p) {
    *act = *p;
  } else {
    *act = {};
    act->sa_handler = SIG_DFL;
  }
  return true;
}

}  // namespace icepath
