// Descriptors as such: close, closefrom, close_range, dup, dup2, dup3, fcntl, ioctl, and stdio on a socket (fdopen, dprintf), which libc carries
// out with system calls that no symbol shows.
//
// What always holds: a slot of the fd table never outlives the descriptor it stands for, as far as the program goes through libc; the
// library's own descriptors survive a program that closes everything. In a vfork child the numbers belong to another process while the
// table is still the parent's: the kernel is called and the table left alone.
#include <dirent.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>
#include <algorithm>
#include <cstdarg>
#include "base/raw_syscall.hpp"
#include "export.hpp"
#include "sock/init.hpp"

using namespace icepath;

// Also a connection that is still the kernel's: it must not be promoted behind the back of what follows.
int icepath::demote_for(int fd, const char* reason) {
  auto* const s = ours(fd);
  if (!s || s->state == sock_state::listening) return 0;
  const kept_errno e;
  const int r = sock_demote(s, reason);
  e.restore();
  return r;
}

// A connection may need a moment to come back; the caller has no way to say EAGAIN to the program.
void icepath::unwatch(int fd, const char* reason) {
  if (!ours(fd) || icepath_in_vfork) return;
  const kept_errno e;
  for (int tries = 0; tries < 5 && demote_for(fd, reason) == -EAGAIN; ++tries) {}
  sock_before_replace(fd);
  e.restore();
}

namespace {

using icepath::socket;

bool internal(int fd) { return active() && !icepath_in_vfork && sock_fd_is_internal(fd); }
bool watched(int fd) { return fd_lookup(fd) != nullptr && !icepath_in_vfork; }

// Calls fn for every open descriptor in [first, last], in ascending order. fn may close them.
template <class F>
void for_each_open(unsigned first, unsigned last, F fn) {
  const long dir = raw_syscall(SYS_openat, AT_FDCWD, "/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0) {                                       // no /proc: every number that may be open
    rlimit rl{};
    getrlimit(RLIMIT_NOFILE, &rl);
    last = std::min({last, fdtable_limit - 1, static_cast<unsigned>(std::min<rlim_t>(rl.rlim_cur, 1u << 30))});
    for (unsigned fd = first; fd <= last && fd >= first; ++fd) fn(static_cast<int>(fd));
    return;
  }
  alignas(8) char room[2048];
  for (long n; (n = raw_syscall(SYS_getdents64, dir, room, sizeof room)) > 0;) {
    for (long at = 0; at < n;) {
      const dirent64* const d = reinterpret_cast<const dirent64*>(room + at);
      at += d->d_reclen;
      unsigned fd = 0;
      const char* p = d->d_name;
      if (*p < '0' || *p > '9') continue;
      for (; *p; ++p) fd = fd * 10 + (*p - '0');
      if (fd >= first && fd <= last && fd != static_cast<unsigned>(dir)) fn(static_cast<int>(fd));
    }
  }
  next::close(static_cast<int>(dir));
}

// close_range without our own descriptors: in pieces around them. The others leave the table first.
int close_all(unsigned first, unsigned last, int flags) {
  unsigned from = first;
  int r = 0;
  for_each_open(first, last, [&](int fd) {
    if (fd_lookup(fd)) sock_before_replace(fd);
    if (!sock_fd_is_internal(fd)) return;
    if (static_cast<unsigned>(fd) > from) r = next::close_range(from, fd - 1, flags);
    from = fd + 1;
  });
  if (r == 0 && from <= last && from >= first) r = next::close_range(from, last, flags);
  return r;
}

// newfd is about to be replaced by oldfd: 0, or the error with which dup2 must fail before anything has happened.
int make_room(int oldfd, int newfd) {
  if (!watched(newfd) && !internal(newfd)) return 0;
  if (next::fcntl(oldfd, F_GETFD, 0) < 0) return -EBADF;
  if (!fd_lookup(newfd)) return -EBUSY;               // ours; dup2(2) knows this error: the number is about to be used
  sock_before_replace(newfd);
  return 0;
}

// A vfork child that gives a connection a new number means it for the program it will execute.
void before_dup(int fd) {
  if (ICEPATH_UNLIKELY(icepath_in_vfork)) demote_for(fd, "vfork child");
}
void after_dup(int oldfd, int newfd) {
  if (newfd >= 0 && watched(oldfd)) sock_on_dup(oldfd, newfd);
}

}  // namespace

ICEPATH_EXPORT int close(int fd) {
  file* const f = fd_lookup(fd);
  if (ICEPATH_LIKELY(!f)) {
    if (ICEPATH_UNLIKELY(internal(fd))) { errno = EBADF; return -1; }
    return next::close(fd);
  }
  if (ICEPATH_UNLIKELY(icepath_in_vfork)) return next::close(fd);
  const kept_errno e;
  return e.finish_int(sock_close(fd));
}
ICEPATH_EXPORT int __close(int) ICEPATH_ALIAS(close);

ICEPATH_EXPORT int close_range(unsigned first, unsigned last, int flags) noexcept {
  constexpr unsigned marks_only = 1u << 2;             // CLOSE_RANGE_CLOEXEC
  if (!active() || icepath_in_vfork || (flags & marks_only) || first > last) return next::close_range(first, last, flags);
  const kept_errno e;
  const int r = close_all(first, last, flags);
  if (r == 0) e.restore();
  return r;
}

ICEPATH_EXPORT void closefrom(int first) noexcept {
  const kept_errno e;
  close_range(first < 0 ? 0 : first, ~0u, 0);
  e.restore();
}

ICEPATH_EXPORT int dup(int fd) noexcept {
  if (ICEPATH_LIKELY(!fd_lookup(fd))) return next::dup(fd);
  const kept_errno e;
  before_dup(fd);
  const int r = next::dup(fd);
  if (r < 0) return r;
  after_dup(fd, r);
  return e.finish_int(r);
}

ICEPATH_EXPORT int dup2(int oldfd, int newfd) noexcept {
  if (oldfd == newfd) return next::dup2(oldfd, newfd);
  const kept_errno e;
  before_dup(oldfd);
  const int err = make_room(oldfd, newfd);
  if (err < 0) return e.finish_int(err);
  const int r = next::dup2(oldfd, newfd);
  if (r < 0) return r;
  after_dup(oldfd, r);
  return e.finish_int(r);
}
ICEPATH_EXPORT int __dup2(int, int) noexcept ICEPATH_ALIAS(dup2);

ICEPATH_EXPORT int dup3(int oldfd, int newfd, int flags) noexcept {
  if (oldfd == newfd || (flags & ~O_CLOEXEC)) return next::dup3(oldfd, newfd, flags);
  const kept_errno e;
  before_dup(oldfd);
  const int err = make_room(oldfd, newfd);
  if (err < 0) return e.finish_int(err);
  const int r = next::dup3(oldfd, newfd, flags);
  if (r < 0) return r;
  after_dup(oldfd, r);
  return e.finish_int(r);
}

ICEPATH_EXPORT int fcntl(int fd, int cmd, ...) {
  va_list ap;
  va_start(ap, cmd);
  const long arg = va_arg(ap, long);
  va_end(ap);
  if (ICEPATH_LIKELY(!fd_lookup(fd))) return next::fcntl(fd, cmd, arg);
  const kept_errno e;
  if (cmd == F_DUPFD || cmd == F_DUPFD_CLOEXEC) before_dup(fd);
  if (cmd == F_SETFL && (arg & O_ASYNC)) demote_for(fd, "O_ASYNC");   // SIGIO is the kernel's to send
  const int r = next::fcntl(fd, cmd, arg);
  if (r < 0) return r;
  if (cmd == F_DUPFD || cmd == F_DUPFD_CLOEXEC) after_dup(fd, r);
  else if (auto* const s = ours(fd); s && cmd == F_SETFL) sock_on_setfl(s, static_cast<int>(arg));
  return e.finish_int(r);
}
ICEPATH_EXPORT int fcntl64(int, int, ...) ICEPATH_ALIAS(fcntl);
ICEPATH_EXPORT int __fcntl(int, int, ...) ICEPATH_ALIAS(fcntl);

ICEPATH_EXPORT int ioctl(int fd, unsigned long req, ...) noexcept {
  va_list ap;
  va_start(ap, req);
  void* const arg = va_arg(ap, void*);
  va_end(ap);
  auto* const s = ours(fd);
  if (ICEPATH_LIKELY(!s)) return next::ioctl(fd, req, arg);
  const kept_errno e;
  return e.finish_int(sock_ioctl(s, fd, req, arg));
}

ICEPATH_EXPORT FILE* fdopen(int fd, const char* mode) noexcept {
  unwatch(fd, "stdio");
  return next::fdopen(fd, mode);
}
ICEPATH_EXPORT FILE* _IO_fdopen(int fd, const char* mode) noexcept { return fdopen(fd, mode); }

ICEPATH_EXPORT int vdprintf(int fd, const char* format, va_list ap) {
  demote_for(fd, "stdio");
  return next::vdprintf(fd, format, ap);
}

ICEPATH_EXPORT int dprintf(int fd, const char* format, ...) {
  va_list ap;
  va_start(ap, format);
  const int r = vdprintf(fd, format, ap);
  va_end(ap);
  return r;
}

ICEPATH_EXPORT int __vdprintf_chk(int fd, int flag, const char* format, va_list ap) {
  demote_for(fd, "stdio");
  return next::__vdprintf_chk(fd, flag, format, ap);
}

ICEPATH_EXPORT int __dprintf_chk(int fd, int flag, const char* format, ...) {
  va_list ap;
  va_start(ap, format);
  const int r = __vdprintf_chk(fd, flag, format, ap);
  va_end(ap);
  return r;
}
