// sigaction and its ancestors, for SIGSEGV and SIGBUS only: the library's handler stays in front, so that a bad pointer in a data call is
// EFAULT (base/usercopy.hpp), and the program's action is kept as the one behind it. What the program asks about its action is
// what it has set. All other signals go straight to libc. Safe in signal handlers, as sigaction is.
#include <signal.h>
#include "base/usercopy.hpp"
#include "export.hpp"

using namespace icepath;

namespace {

inline bool kept_in_front(int sig) { return (sig == SIGSEGV || sig == SIGBUS) && usercopy_installed() && !icepath_in_vfork; }

int change(int sig, const struct sigaction* act, struct sigaction* old) {
  struct sigaction a;
  if (act) a = *act;                              // act and old may be the same object
  if (old) usercopy_get_next(sig, old);
  if (act) usercopy_set_next(sig, &a);
  return 0;
}

sighandler_t change_handler(int sig, sighandler_t handler, int flags, bool masks_itself) {
  if (handler == SIG_ERR) { errno = EINVAL; return SIG_ERR; }
  struct sigaction a{}, old{};
  a.sa_handler = handler;
  a.sa_flags = flags;
  sigemptyset(&a.sa_mask);
  if (masks_itself) sigaddset(&a.sa_mask, sig);
  change(sig, &a, &old);
  return old.sa_handler;
}

}  // namespace

ICEPATH_EXPORT int sigaction(int sig, const struct sigaction* act, struct sigaction* old) noexcept {
  if (ICEPATH_LIKELY(!kept_in_front(sig))) return next::sigaction(sig, act, old);
  return change(sig, act, old);
}
ICEPATH_EXPORT int __sigaction(int, const struct sigaction*, struct sigaction*) noexcept ICEPATH_ALIAS(sigaction);

ICEPATH_EXPORT sighandler_t signal(int sig, sighandler_t handler) noexcept {
  if (ICEPATH_LIKELY(!kept_in_front(sig))) return next::signal(sig, handler);
  return change_handler(sig, handler, SA_RESTART, true);
}
ICEPATH_EXPORT sighandler_t bsd_signal(int, sighandler_t) noexcept ICEPATH_ALIAS(signal);
ICEPATH_EXPORT sighandler_t ssignal(int, sighandler_t) noexcept ICEPATH_ALIAS(signal);

ICEPATH_EXPORT sighandler_t sysv_signal(int sig, sighandler_t handler) noexcept {
  if (ICEPATH_LIKELY(!kept_in_front(sig))) return next::sysv_signal(sig, handler);
  return change_handler(sig, handler, static_cast<int>(SA_RESETHAND | SA_NODEFER), false);
}
ICEPATH_EXPORT sighandler_t __sysv_signal(int, sighandler_t) noexcept ICEPATH_ALIAS(sysv_signal);

ICEPATH_EXPORT sighandler_t sigset(int sig, sighandler_t handler) noexcept {
  if (ICEPATH_LIKELY(!kept_in_front(sig)) || handler == SIG_HOLD) return next::sigset(sig, handler);
  const sighandler_t old = change_handler(sig, handler, 0, false);
  if (old == SIG_ERR) return old;
  sigset_t set, before;
  sigemptyset(&set);
  sigaddset(&set, sig);
  sigprocmask(SIG_UNBLOCK, &set, &before);
  return sigismember(&before, sig) ? SIG_HOLD : old;
}
