// syscall(): runtimes (Node, Rust, Java) reach the kernel by number. The numbers of the calls we wrap go to the wrappers, which pass
// on what is not ours; all others go straight through with six arguments. Differences between a system call and libc's function of
// that name (time limits written back, the size that follows a signal mask) are handled here.
//
// clone and vfork by number return into this frame in parent and child; only those without CLONE_VM can be followed.
#include <fcntl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <unistd.h>
#include <cstdarg>
#include "base/clock.hpp"
#include "base/usercopy.hpp"
#include "export.hpp"

using namespace icepath;

namespace {

template <class T>
T* ptr(long v) { return reinterpret_cast<T*>(v); }

// What is left of a limit of which the system call tells the rest.
class time_left {
 public:
  explicit time_left(timespec* ts) : ts_(ts && copy_from_user(&given_, ts, sizeof given_) == 0 ? ts : nullptr) {
    if (ts_) start_ = clock_now();
  }
  void write(int result) const {
    if (!ts_) return;
    const kept_errno e;
    const nsec used = clock_now() - start_, limit = given_.tv_sec * sec_ns + given_.tv_nsec;
    const nsec left = result == 0 || used > limit ? 0 : limit - used;
    const timespec t{static_cast<time_t>(left / sec_ns), static_cast<long>(left % sec_ns)};
    (void)copy_to_user(ts_, &t, sizeof t);
    e.restore();
  }

 private:
  timespec* ts_;
  timespec given_{};
  nsec start_ = 0;
};

long do_ppoll(long a, long b, long c, long d) {
  const time_left left(ptr<timespec>(c));
  const int r = ppoll(ptr<pollfd>(a), b, ptr<timespec>(c), ptr<sigset_t>(d));
  left.write(r);
  return r;
}

long do_pselect(long a, long b, long c, long d, long e, long f) {
  const sigset_t* mask = nullptr;
  struct { const sigset_t* set; size_t size; } m;
  if (f && copy_from_user(&m, ptr<void>(f), sizeof m) == 0) mask = m.set;
  const time_left left(ptr<timespec>(e));
  const int r = pselect(static_cast<int>(a), ptr<fd_set>(b), ptr<fd_set>(c), ptr<fd_set>(d), ptr<timespec>(e), mask);
  left.write(r);
  return r;
}

long do_fork(long nr, long a, long b, long c, long d, long e) {
  sock_fork_prepare();
  const long r = next::syscall(nr, a, b, c, d, e, 0);
  const kept_errno k;
  if (r == 0) sock_fork_child();
  else sock_fork_parent();
  k.restore();
  return r;
}

// Is any descriptor that this call names ours? Sets are looked through by the wrappers themselves.
bool concerns_us(long nr, long a, long b, long c) {
  if (!active()) return false;
  switch (nr) {
    case SYS_socket: return a == AF_INET || a == AF_INET6;
#ifdef SYS_epoll_create
    case SYS_epoll_create:
#endif
#ifdef SYS_poll
    case SYS_poll:
#endif
#ifdef SYS_select
    case SYS_select:
#endif
#ifdef SYS_fork
    case SYS_fork:
#endif
    case SYS_epoll_create1: case SYS_ppoll: case SYS_pselect6: case SYS_close: case SYS_close_range: case SYS_dup3: case SYS_clone:
    case SYS_execve: case SYS_execveat: case SYS_exit_group: case SYS_sendmsg: case SYS_sendmmsg: return true;
#ifdef SYS_dup2
    case SYS_dup2: return true;
#endif
    // Strict mode with flags or an argument, and a filter that is not there, are questions; the answer is an error.
    case SYS_seccomp: return (a == SECCOMP_SET_MODE_STRICT && !b && !c) || (a == SECCOMP_SET_MODE_FILTER && c);
    case SYS_prctl: return a == PR_SET_SECCOMP && (b != SECCOMP_MODE_FILTER || c);
    case SYS_sendfile: return fd_lookup(static_cast<int>(a)) || fd_lookup(static_cast<int>(b));
    case SYS_splice: return fd_lookup(static_cast<int>(a)) || fd_lookup(static_cast<int>(c));
    default: return fd_lookup(static_cast<int>(a)) != nullptr;
  }
}

}  // namespace

ICEPATH_EXPORT long syscall(long nr, ...) noexcept {
  va_list ap;
  va_start(ap, nr);
  const long a = va_arg(ap, long), b = va_arg(ap, long), c = va_arg(ap, long);
  const long d = va_arg(ap, long), e = va_arg(ap, long), f = va_arg(ap, long);
  va_end(ap);
  const int fd = static_cast<int>(a);
  if (ICEPATH_LIKELY(!concerns_us(nr, a, b, c))) return next::syscall(nr, a, b, c, d, e, f);
  if (nr == SYS_seccomp || nr == SYS_prctl) {
    before_sandbox();
    return next::syscall(nr, a, b, c, d, e, f);
  }
  switch (nr) {
    case SYS_socket: return ::socket(fd, static_cast<int>(b), static_cast<int>(c));
    case SYS_listen: return listen(fd, static_cast<int>(b));
#ifdef SYS_accept
    case SYS_accept: return accept(fd, ptr<sockaddr>(b), ptr<socklen_t>(c));
#endif
    case SYS_accept4: return accept4(fd, ptr<sockaddr>(b), ptr<socklen_t>(c), static_cast<int>(d));
    case SYS_connect: return connect(fd, ptr<sockaddr>(b), static_cast<socklen_t>(c));
    case SYS_shutdown: return shutdown(fd, static_cast<int>(b));
    case SYS_getsockopt: return getsockopt(fd, static_cast<int>(b), static_cast<int>(c), ptr<void>(d), ptr<socklen_t>(e));
    case SYS_setsockopt: return setsockopt(fd, static_cast<int>(b), static_cast<int>(c), ptr<void>(d), static_cast<socklen_t>(e));

    case SYS_read: return read(fd, ptr<void>(b), c);
    case SYS_readv: return readv(fd, ptr<iovec>(b), static_cast<int>(c));
    case SYS_write: return write(fd, ptr<void>(b), c);
    case SYS_writev: return writev(fd, ptr<iovec>(b), static_cast<int>(c));
    case SYS_preadv2: return preadv2(fd, ptr<iovec>(b), static_cast<int>(c), d, static_cast<int>(f));    // e: the offset's upper half
    case SYS_pwritev2: return pwritev2(fd, ptr<iovec>(b), static_cast<int>(c), d, static_cast<int>(f));
    case SYS_sendto: return sendto(fd, ptr<void>(b), c, static_cast<int>(d), ptr<sockaddr>(e), static_cast<socklen_t>(f));
    case SYS_sendmsg: return sendmsg(fd, ptr<msghdr>(b), static_cast<int>(c));
    case SYS_sendmmsg: return sendmmsg(fd, ptr<mmsghdr>(b), static_cast<unsigned>(c), static_cast<int>(d));
    case SYS_recvfrom: return recvfrom(fd, ptr<void>(b), c, static_cast<int>(d), ptr<sockaddr>(e), ptr<socklen_t>(f));
    case SYS_recvmsg: return recvmsg(fd, ptr<msghdr>(b), static_cast<int>(c));
    case SYS_recvmmsg: return recvmmsg(fd, ptr<mmsghdr>(b), static_cast<unsigned>(c), static_cast<int>(d), ptr<timespec>(e));
    case SYS_sendfile: return sendfile(fd, static_cast<int>(b), ptr<off_t>(c), d);
    case SYS_splice: return splice(fd, ptr<off64_t>(b), static_cast<int>(c), ptr<off64_t>(d), e, static_cast<unsigned>(f));

#ifdef SYS_poll
    case SYS_poll: return poll(ptr<pollfd>(a), b, static_cast<int>(c));
#endif
#ifdef SYS_select
    case SYS_select: return select(fd, ptr<fd_set>(b), ptr<fd_set>(c), ptr<fd_set>(d), ptr<timeval>(e));
#endif
    case SYS_ppoll: return do_ppoll(a, b, c, d);
    case SYS_pselect6: return do_pselect(a, b, c, d, e, f);
#ifdef SYS_epoll_create
    case SYS_epoll_create: return epoll_create(fd);
#endif
    case SYS_epoll_create1: return epoll_create1(fd);
    case SYS_epoll_ctl: return epoll_ctl(fd, static_cast<int>(b), static_cast<int>(c), ptr<epoll_event>(d));
#ifdef SYS_epoll_wait
    case SYS_epoll_wait: return epoll_wait(fd, ptr<epoll_event>(b), static_cast<int>(c), static_cast<int>(d));
#endif
    case SYS_epoll_pwait: return epoll_pwait(fd, ptr<epoll_event>(b), static_cast<int>(c), static_cast<int>(d), ptr<sigset_t>(e));
    case SYS_epoll_pwait2: return epoll_pwait2(fd, ptr<epoll_event>(b), static_cast<int>(c), ptr<timespec>(d), ptr<sigset_t>(e));

    case SYS_close: return close(fd);
    case SYS_close_range: return close_range(static_cast<unsigned>(a), static_cast<unsigned>(b), static_cast<int>(c));
    case SYS_dup: return dup(fd);
#ifdef SYS_dup2
    case SYS_dup2: return dup2(fd, static_cast<int>(b));
#endif
    case SYS_dup3:
      if (a == b) break;
      return dup3(fd, static_cast<int>(b), static_cast<int>(c));
    case SYS_fcntl: return fcntl(fd, static_cast<int>(b), c);
    case SYS_ioctl: return ioctl(fd, static_cast<unsigned long>(b), ptr<void>(c));

#ifdef SYS_fork
    case SYS_fork: return do_fork(nr, a, b, c, d, e);
#endif
    case SYS_clone:
      if ((a & CLONE_VM) || b) break;
      return do_fork(nr, a, b, c, d, e);
    case SYS_execve: return execve(ptr<char>(a), ptr<char*>(b), ptr<char*>(c));
    case SYS_execveat: return execveat(fd, ptr<char>(b), ptr<char*>(c), ptr<char*>(d), static_cast<int>(e));
    case SYS_exit_group: _exit(fd);
  }
  return next::syscall(nr, a, b, c, d, e, f);
}
