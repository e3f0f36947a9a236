// The life and the settings of a socket: socket, listen, accept, accept4, connect, shutdown, getsockopt, setsockopt.
//
// The kernel does each call first, on the real socket behind the fd, and its answer stands (ports, backlog, errno, LSM); the socket layer is
// told afterwards. bind, getsockname and getpeername need no wrapper: the kernel socket has the right answer at every moment of
// its life, on the fast lane too. Any thread; nothing is held across a blocking call.
#include "base/usercopy.hpp"
#include "export.hpp"

using namespace icepath;

namespace {

// connect() to AF_UNSPEC takes a connection apart: the kernel must own it then.
bool dissolves(const sockaddr* a, socklen_t n) {
  sa_family_t family;
  return n >= sizeof family && copy_from_user(&family, a, sizeof family) == 0 && family == AF_UNSPEC;
}

}  // namespace

ICEPATH_EXPORT int socket(int domain, int type, int protocol) noexcept {
  const int fd = next::socket(domain, type, protocol);
  if (fd < 0 || (domain != AF_INET && domain != AF_INET6) || !active() || icepath_in_vfork) return fd;
  const kept_errno e;
  sock_on_socket(fd, domain, type, protocol);
  e.restore();
  return fd;
}

ICEPATH_EXPORT int listen(int fd, int backlog) noexcept {
  auto* const s = ours(fd);
  const int r = next::listen(fd, backlog);
  if (!s || r < 0) return r;
  const kept_errno e;
  sock_on_listen(s);
  e.restore();
  return r;
}

ICEPATH_EXPORT int accept4(int fd, sockaddr* addr, socklen_t* len, int flags) {
  auto* const s = ours(fd);
  const int r = next::accept4(fd, addr, len, flags);
  if (r < 0 || (!s && (!active() || icepath_in_vfork))) return r;
  const kept_errno e;
  if (s) sock_on_accept(s, r, flags);
  else sock_on_accept_unseen(r);
  e.restore();
  return r;
}

ICEPATH_EXPORT int accept(int fd, sockaddr* addr, socklen_t* len) {
  auto* const s = ours(fd);
  const int r = next::accept(fd, addr, len);
  if (r < 0 || (!s && (!active() || icepath_in_vfork))) return r;
  const kept_errno e;
  if (s) sock_on_accept(s, r, 0);
  else sock_on_accept_unseen(r);
  e.restore();
  return r;
}

ICEPATH_EXPORT int connect(int fd, const sockaddr* addr, socklen_t len) {
  auto* const s = ours(fd);
  if (!s) return next::connect(fd, addr, len);
  const kept_errno e;
  if (s->state == sock_state::connected && dissolves(addr, len)) {
    const int d = sock_demote(s, "dissolved");
    if (d < 0) return e.finish_int(d);
  }
  const int r = next::connect(fd, addr, len);
  const int err = r < 0 ? errno : 0;
  sock_on_connect(s, fd, err);
  return r < 0 ? e.finish_int(-err) : e.finish_int(r);
}
ICEPATH_EXPORT int __connect(int, const sockaddr*, socklen_t) ICEPATH_ALIAS(connect);

ICEPATH_EXPORT int shutdown(int fd, int how) noexcept {
  auto* const s = ours(fd);
  if (!s) return next::shutdown(fd, how);
  const kept_errno e;
  return e.finish_int(sock_shutdown(s, fd, how));
}

ICEPATH_EXPORT int getsockopt(int fd, int level, int name, void* val, socklen_t* len) noexcept {
  auto* const s = ours(fd);
  if (!s) return next::getsockopt(fd, level, name, val, len);
  const kept_errno e;
  return e.finish_int(sock_getsockopt(s, fd, level, name, val, len));
}

ICEPATH_EXPORT int setsockopt(int fd, int level, int name, const void* val, socklen_t len) noexcept {
  auto* const s = ours(fd);
  if (!s) return next::setsockopt(fd, level, name, val, len);
  const kept_errno e;
  return e.finish_int(sock_setsockopt(s, fd, level, name, val, len));
}
