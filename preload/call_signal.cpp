// sigaction and its ancestors. Two reasons to stand in front of the program's handlers:
//  - SIGSEGV and SIGBUS: the library's handler stays first, so that a bad pointer in a data call is EFAULT (base/usercopy.hpp), and the
//    program's action is kept as the one behind it.
//  - all others: a wait that spins in user space must end with EINTR when a handler has run, as one in the kernel does (sock/wait.hpp). The kernel gets a
//    trampoline that counts and calls the program's handler.
// What the program asks about its action is what it has set. Async-signal-safe, as sigaction is: a record is written before the pointer to it
// is published; records of one signal rotate, so one that is being read is not rewritten until seven changes later.
#include <signal.h>
#include "base/sig_gate.hpp"
#include "base/usercopy.hpp"
#include "export.hpp"
#include "sock/wait.hpp"

using namespace icepath;

namespace {

struct record { struct sigaction act; };
constexpr unsigned rotation = 8;
record records[NSIG][rotation];
std::atomic<uint32_t> turn[NSIG];
std::atomic<const record*> current[NSIG];   // release; acquire in the trampoline and in queries

inline bool fault_signal(int sig) { return (sig == SIGSEGV || sig == SIGBUS) && usercopy_installed() && !icepath_in_vfork; }
inline bool real_handler(const struct sigaction& a) { return a.sa_handler != SIG_DFL && a.sa_handler != SIG_IGN && a.sa_handler != SIG_ERR; }

void trampoline(int sig, siginfo_t* info, void* ctx) {
  const record* const r = current[sig].load(std::memory_order_acquire);
  if (!r || sig_gate_keep(sig, info)) return;
  signals_seen = signals_seen + 1;
  if (!(r->act.sa_flags & SA_RESTART)) signals_breaking = signals_breaking + 1;
  if (r->act.sa_flags & SA_SIGINFO) r->act.sa_sigaction(sig, info, ctx);
  else r->act.sa_handler(sig);
}

bool is_trampoline(const struct sigaction& a) { return (a.sa_flags & SA_SIGINFO) && a.sa_sigaction == trampoline; }

// What the program set, where the kernel tells of our trampoline.
void uncover(int sig, struct sigaction* old) {
  if (!is_trampoline(*old)) return;
  const record* const r = current[sig].load(std::memory_order_acquire);
  if (!r) return;
  const bool info = r->act.sa_flags & SA_SIGINFO;
  old->sa_flags = info ? old->sa_flags : old->sa_flags & ~SA_SIGINFO;
  if (info) old->sa_sigaction = r->act.sa_sigaction;
  else old->sa_handler = r->act.sa_handler;
}

int change_fault(int sig, const struct sigaction* act, struct sigaction* old) {
  struct sigaction a;
  if (act) a = *act;                              // act and old may be the same object
  if (old) usercopy_get_next(sig, old);
  if (act) usercopy_set_next(sig, &a);
  return 0;
}

int change(int sig, const struct sigaction* act, struct sigaction* old) {
  if (ICEPATH_UNLIKELY(sig <= 0 || sig >= NSIG || !active() || icepath_in_vfork)) return next::sigaction(sig, act, old);
  if (fault_signal(sig)) return change_fault(sig, act, old);
  struct sigaction before;
  int r;
  const record* const was = current[sig].load(std::memory_order_acquire);
  if (act && real_handler(*act) && !is_trampoline(*act)) {
    record& slot = records[sig][turn[sig].fetch_add(1, std::memory_order_relaxed) % rotation];
    slot.act = *act;
    struct sigaction ours = *act;
    ours.sa_sigaction = trampoline;
    ours.sa_flags |= SA_SIGINFO;
    r = next::sigaction(sig, nullptr, &before);
    if (r == 0) {
      if (old) uncover(sig, &before);
      current[sig].store(&slot, std::memory_order_release);  // before the kernel may call the trampoline for it
      r = next::sigaction(sig, &ours, nullptr);
      if (r != 0) current[sig].store(was, std::memory_order_release);
    }
  } else {
    r = next::sigaction(sig, act, &before);
    if (r == 0) uncover(sig, &before);
  }
  if (r == 0 && old) *old = before;
  return r;
}

sighandler_t change_handler(int sig, sighandler_t handler, int flags, bool masks_itself) {
  if (handler == SIG_ERR) { errno = EINVAL; return SIG_ERR; }
  struct sigaction a{}, old{};
  a.sa_handler = handler;
  a.sa_flags = flags;
  sigemptyset(&a.sa_mask);
  if (masks_itself) sigaddset(&a.sa_mask, sig);
  return change(sig, &a, &old) == 0 ? old.sa_handler : SIG_ERR;
}

inline bool plain(int sig) { return sig <= 0 || sig >= NSIG || !active() || icepath_in_vfork; }

}  // namespace

ICEPATH_EXPORT int sigaction(int sig, const struct sigaction* act, struct sigaction* old) noexcept { return change(sig, act, old); }
ICEPATH_EXPORT int __sigaction(int, const struct sigaction*, struct sigaction*) noexcept ICEPATH_ALIAS(sigaction);

ICEPATH_EXPORT sighandler_t signal(int sig, sighandler_t handler) noexcept {
  if (plain(sig)) return next::signal(sig, handler);
  return change_handler(sig, handler, SA_RESTART, true);
}
ICEPATH_EXPORT sighandler_t bsd_signal(int, sighandler_t) noexcept ICEPATH_ALIAS(signal);
ICEPATH_EXPORT sighandler_t ssignal(int, sighandler_t) noexcept ICEPATH_ALIAS(signal);

ICEPATH_EXPORT sighandler_t sysv_signal(int sig, sighandler_t handler) noexcept {
  if (plain(sig)) return next::sysv_signal(sig, handler);
  return change_handler(sig, handler, static_cast<int>(SA_RESETHAND | SA_NODEFER), false);
}
ICEPATH_EXPORT sighandler_t __sysv_signal(int, sighandler_t) noexcept ICEPATH_ALIAS(sysv_signal);

ICEPATH_EXPORT sighandler_t sigset(int sig, sighandler_t handler) noexcept {
  if (plain(sig) || handler == SIG_HOLD) return next::sigset(sig, handler);
  const sighandler_t old = change_handler(sig, handler, 0, false);
  if (old == SIG_ERR) return old;
  sigset_t set, before;
  sigemptyset(&set);
  sigaddset(&set, sig);
  sigprocmask(SIG_UNBLOCK, &set, &before);
  return sigismember(&before, sig) ? SIG_HOLD : old;
}
