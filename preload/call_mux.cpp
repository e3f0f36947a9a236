// Waiting for several descriptors: poll, ppoll, select, pselect, epoll. A set without one of ours goes to libc after a scan
// of its numbers; a set with one of ours goes to the socket layer, which waits for kernel and fast descriptors together (src/sock/mux.hpp).
//
// The sets are the program's memory: they are scanned through small copies, so that a bad address gives the kernel's EFAULT. Timeouts
// become nanoseconds (~0: none); select gives the rest back, as Linux does.
#include <algorithm>
#include <climits>
#include "base/clock.hpp"
#include "base/usercopy.hpp"
#include "export.hpp"
#include "sock/mux.hpp"

using namespace icepath;

namespace {

constexpr nsec forever = ~nsec{0};

bool any_ours(pollfd* fds, nfds_t n) {     // not const: libc declares the array as written only, and the compiler believes it
  if (!active()) return false;
  constexpr nfds_t step = 32;
  pollfd part[step];
  for (nfds_t i = 0; i < n; i += step) {
    const nfds_t k = std::min(step, n - i);
    if (copy_from_user(part, fds + i, k * sizeof(pollfd))) return false;     // the kernel reports it
    for (nfds_t j = 0; j < k; ++j)
      if (ICEPATH_UNLIKELY(fd_lookup(part[j].fd) != nullptr)) return true;
  }
  return false;
}

bool any_ours(int n, const fd_set* set) {
  if (!set) return false;
  constexpr int bits = 64, step = 16;
  uint64_t part[step];
  const int words = (n + bits - 1) / bits;
  const uint64_t* const from = reinterpret_cast<const uint64_t*>(set);
  for (int i = 0; i < words; i += step) {
    const int k = std::min(step, words - i);
    if (copy_from_user(part, from + i, k * sizeof(uint64_t))) return false;
    for (int j = 0; j < k; ++j)
      for (uint64_t w = part[j]; w; w &= w - 1) {
        const int fd = (i + j) * bits + __builtin_ctzll(w);
        if (fd < n && ICEPATH_UNLIKELY(fd_lookup(fd) != nullptr)) return true;
      }
  }
  return false;
}

bool any_ours(int n, const fd_set* r, const fd_set* w, const fd_set* e) {
  if (!active() || n <= 0 || n > fdtable_size) return false;
  return any_ours(n, r) || any_ours(n, w) || any_ours(n, e);
}

constexpr nsec from_ms(int ms) { return ms < 0 ? forever : ms * msec_ns; }

// 0, or -EFAULT or -EINVAL. A null pointer is no limit.
int from_timespec(const timespec* ts, nsec* out) {
  *out = forever;
  if (!ts) return 0;
  timespec t;
  if (copy_from_user(&t, ts, sizeof t)) return -EFAULT;
  if (t.tv_sec < 0 || static_cast<unsigned long>(t.tv_nsec) >= sec_ns) return -EINVAL;
  constexpr time_t longest = LONG_MAX / static_cast<long>(sec_ns) - 1;
  if (t.tv_sec < longest) *out = t.tv_sec * sec_ns + t.tv_nsec;
  return 0;
}

int ppoll_ours(pollfd* fds, nfds_t n, const timespec* ts, const sigset_t* mask) {
  const kept_errno e;
  nsec timeout;
  const int err = from_timespec(ts, &timeout);
  return e.finish_int(err < 0 ? err : mux_poll(fds, n, timeout, mask));
}

int epoll_wait_ours(int ep, epoll_event* ev, int max, nsec timeout, const sigset_t* mask) {
  const kept_errno e;
  return e.finish_int(mux_epoll_wait(ep, ev, max, timeout, mask));
}

inline bool our_epoll(int ep) {
  file* const f = fd_lookup(ep);
  return ICEPATH_UNLIKELY(f != nullptr) && f->kind == file_kind::epoll;
}

int created(int ep) {
  if (ep < 0 || !active() || icepath_in_vfork) return ep;
  const kept_errno e;
  epoll_on_create(ep);
  e.restore();
  return ep;
}

}  // namespace

[[gnu::noinline]] static int poll_several(pollfd* fds, nfds_t n, int timeout) {
  if (!any_ours(fds, n)) return next::poll(fds, n, timeout);
  const kept_errno e;
  return e.finish_int(mux_poll(fds, n, from_ms(timeout), nullptr));
}
ICEPATH_EXPORT int poll(pollfd* fds, nfds_t n, int timeout) {
  // One descriptor that is not ours: nothing but a look at its number. What cannot be read is the kernel's to report.
  if (ICEPATH_LIKELY(n == 1) && ICEPATH_LIKELY(!fd_lookup(static_cast<int>(load_from_user(&fds->fd))))) return next::poll(fds, n, timeout);
  return poll_several(fds, n, timeout);
}
ICEPATH_EXPORT int __poll(pollfd*, nfds_t, int) ICEPATH_ALIAS(poll);

ICEPATH_EXPORT int __poll_chk(pollfd* fds, nfds_t n, int timeout, size_t room) {
  if (room / sizeof(pollfd) < n || !any_ours(fds, n)) return next::__poll_chk(fds, n, timeout, room);
  return poll(fds, n, timeout);
}

ICEPATH_EXPORT int ppoll(pollfd* fds, nfds_t n, const timespec* ts, const sigset_t* mask) {
  if (ICEPATH_LIKELY(!any_ours(fds, n))) return next::ppoll(fds, n, ts, mask);
  return ppoll_ours(fds, n, ts, mask);
}

ICEPATH_EXPORT int __ppoll_chk(pollfd* fds, nfds_t n, const timespec* ts, const sigset_t* mask, size_t room) {
  if (room / sizeof(pollfd) < n || !any_ours(fds, n)) return next::__ppoll_chk(fds, n, ts, mask, room);
  return ppoll_ours(fds, n, ts, mask);
}

ICEPATH_EXPORT int select(int n, fd_set* r, fd_set* w, fd_set* ex, timeval* tv) {
  if (ICEPATH_LIKELY(!any_ours(n, r, w, ex))) return next::select(n, r, w, ex, tv);
  const kept_errno e;
  nsec timeout = forever, start = 0;
  if (tv) {
    timeval t;
    if (copy_from_user(&t, tv, sizeof t)) return e.finish_int(-EFAULT);
    if (t.tv_sec < 0 || t.tv_usec < 0) return e.finish_int(-EINVAL);
    const timespec ts{t.tv_sec + t.tv_usec / 1000000, t.tv_usec % 1000000 * 1000};
    from_timespec(&ts, &timeout);
    start = clock_now();
  }
  const int result = mux_select(n, r, w, ex, timeout, nullptr);
  if (tv && timeout != forever) {
    const nsec used = clock_now() - start, left = result == 0 || used > timeout ? 0 : timeout - used;
    const timeval t{static_cast<time_t>(left / sec_ns), static_cast<suseconds_t>(left % sec_ns / 1000)};
    (void)copy_to_user(tv, &t, sizeof t);             // the kernel does not report it either
  }
  return e.finish_int(result);
}
ICEPATH_EXPORT int __select(int, fd_set*, fd_set*, fd_set*, timeval*) ICEPATH_ALIAS(select);

ICEPATH_EXPORT int pselect(int n, fd_set* r, fd_set* w, fd_set* ex, const timespec* ts, const sigset_t* mask) {
  if (ICEPATH_LIKELY(!any_ours(n, r, w, ex))) return next::pselect(n, r, w, ex, ts, mask);
  const kept_errno e;
  nsec timeout;
  const int err = from_timespec(ts, &timeout);
  return e.finish_int(err < 0 ? err : mux_select(n, r, w, ex, timeout, mask));
}

ICEPATH_EXPORT int epoll_create(int size) noexcept { return created(next::epoll_create(size)); }
ICEPATH_EXPORT int epoll_create1(int flags) noexcept { return created(next::epoll_create1(flags)); }

ICEPATH_EXPORT int epoll_ctl(int ep, int op, int fd, epoll_event* ev) noexcept {
  if (!our_epoll(ep)) return next::epoll_ctl(ep, op, fd, ev);
  const kept_errno e;
  return e.finish_int(mux_epoll_ctl(ep, op, fd, ev));
}

ICEPATH_EXPORT int epoll_wait(int ep, epoll_event* ev, int max, int timeout) {
  if (!our_epoll(ep)) return next::epoll_wait(ep, ev, max, timeout);
  return epoll_wait_ours(ep, ev, max, from_ms(timeout), nullptr);
}

ICEPATH_EXPORT int epoll_pwait(int ep, epoll_event* ev, int max, int timeout, const sigset_t* mask) {
  if (!our_epoll(ep)) return next::epoll_pwait(ep, ev, max, timeout, mask);
  return epoll_wait_ours(ep, ev, max, from_ms(timeout), mask);
}

ICEPATH_EXPORT int epoll_pwait2(int ep, epoll_event* ev, int max, const timespec* ts, const sigset_t* mask) {
  if (!our_epoll(ep)) return next::epoll_pwait2(ep, ev, max, ts, mask);
  nsec timeout;
  const kept_errno e;
  const int err = from_timespec(ts, &timeout);
  return err < 0 ? e.finish_int(err) : epoll_wait_ours(ep, ev, max, timeout, mask);
}
