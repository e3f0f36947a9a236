// Reading and writing: read, readv, recv, recvfrom, recvmsg, recvmmsg, write, writev, send, sendto, sendmsg, sendmmsg, the fortified forms,
// and the vector calls whose offset may be -1 (preadv2, pwritev2). With a real offset those fail with ESPIPE on any socket, as pread and
// pwrite do: the kernel says so itself. tee, vmsplice and copy_file_range refuse sockets, so they have no wrapper either.
// sendfile, splice and the asynchronous calls are in call_file.cpp.
//
// Every call becomes one sock_msg (T03). SIGPIPE is raised here when the fast lane reported EPIPE; the kernel has already raised it when
// the kernel lane did (EPIPE_RAISED).
#include <pthread.h>
#include <algorithm>
#include "base/clock.hpp"
#include "base/usercopy.hpp"
#include "import.hpp"
#include "rights.hpp"

using namespace icepath;

ssize_t kept_errno::finish_send(ssize_t r, int flags) const {
  if (ICEPATH_UNLIKELY(r == -EPIPE_RAISED)) return finish(-EPIPE);
  if (ICEPATH_UNLIKELY(r == -EPIPE) && !(flags & MSG_NOSIGNAL)) pthread_kill(pthread_self(), SIGPIPE);
  return finish(r);
}

namespace {

using icepath::socket;

ssize_t recv_one(socket* s, int fd, void* p, size_t n, int flags, sockaddr* name, socklen_t* namelen, bool file_call = false) {
  const kept_errno e;
  const iovec v{p, std::min(n, max_rw_count)};
  sock_msg m{&v, 1, flags, nullptr, nullptr, 0, name, namelen, file_call};
  return e.finish(sock_recvmsg(s, fd, m));
}

ssize_t send_one(socket* s, int fd, const void* p, size_t n, int flags, const sockaddr* name, socklen_t namelen, bool file_call = false) {
  const kept_errno e;
  const iovec v{const_cast<void*>(p), std::min(n, max_rw_count)};
  sock_msg m{&v, 1, flags, nullptr, name, namelen, nullptr, nullptr, file_call};
  return e.finish_send(sock_sendmsg(s, fd, m), flags);
}

ssize_t recv_vector(socket* s, int fd, const iovec* iov, size_t n, int flags) {
  const kept_errno e;
  ICEPATH_IOV_ROOM(v, n);
  size_t total;
  const int err = import_iov(v, iov, n, &total);
  if (err < 0) return e.finish(err);
  if (total == 0) return 0;                       // readv of nothing does not wait, unlike recv
  sock_msg m{v, n, flags, nullptr, nullptr, 0, nullptr, nullptr, flags == 0};
  return e.finish(sock_recvmsg(s, fd, m));
}

ssize_t send_vector(socket* s, int fd, const iovec* iov, size_t n, int flags) {
  const kept_errno e;
  ICEPATH_IOV_ROOM(v, n);
  size_t total;
  const int err = import_iov(v, iov, n, &total);
  if (err < 0) return e.finish(err);
  sock_msg m{v, n, flags, nullptr, nullptr, 0, nullptr, nullptr, flags == 0};
  return e.finish_send(sock_sendmsg(s, fd, m), flags);
}

// One message with a header. The header is ours during the call; what the kernel would write into the program's is written back.
ssize_t recv_header(socket* s, int fd, msghdr* user, int flags) {
  msghdr h;
  if (copy_from_user(&h, user, sizeof h)) return -EFAULT;
  if (h.msg_iovlen > IOV_MAX) return -EMSGSIZE;
  ICEPATH_IOV_ROOM(v, h.msg_iovlen);
  size_t total;
  const int err = import_iov(v, h.msg_iov, h.msg_iovlen, &total);
  if (err < 0) return err;
  h.msg_iov = v;
  sock_msg m{v, h.msg_iovlen, flags, &h, nullptr, 0, nullptr, nullptr};
  const ssize_t r = sock_recvmsg(s, fd, m);
  if (r < 0) return r;
  if (copy_to_user(&user->msg_namelen, &h.msg_namelen, sizeof h.msg_namelen) ||
      copy_to_user(&user->msg_controllen, &h.msg_controllen, sizeof h.msg_controllen) ||
      copy_to_user(&user->msg_flags, &h.msg_flags, sizeof h.msg_flags))
    return -EFAULT;
  return r;
}

ssize_t send_header(socket* s, int fd, const msghdr* user, int flags, size_t* wanted) {
  msghdr h;
  if (copy_from_user(&h, user, sizeof h)) return -EFAULT;
  if (h.msg_iovlen > IOV_MAX) return -EMSGSIZE;
  ICEPATH_IOV_ROOM(v, h.msg_iovlen);
  const int err = import_iov(v, h.msg_iov, h.msg_iovlen, wanted);
  if (err < 0) return err;
  h.msg_iov = v;
  sock_msg m{v, h.msg_iovlen, flags, &h, nullptr, 0, nullptr, nullptr};
  return sock_sendmsg(s, fd, m);
}

}  // namespace

// ---- receiving

ICEPATH_EXPORT ssize_t read(int fd, void* p, size_t n) {
  auto* const s = ours(fd);
  if (ICEPATH_LIKELY(!s) || n == 0) return next::read(fd, p, n);    // reading nothing does not wait, unlike recv
  return recv_one(s, fd, p, n, 0, nullptr, nullptr, true);
}
ICEPATH_EXPORT ssize_t __read(int, void*, size_t) ICEPATH_ALIAS(read);

ICEPATH_EXPORT ssize_t __read_chk(int fd, void* p, size_t n, size_t room) {
  if (n > room || !ours(fd)) return next::__read_chk(fd, p, n, room);
  return read(fd, p, n);
}

ICEPATH_EXPORT ssize_t readv(int fd, const iovec* iov, int n) {
  auto* const s = ours(fd);
  if (ICEPATH_LIKELY(!s) || n <= 0 || n > IOV_MAX) return next::readv(fd, iov, n);
  return recv_vector(s, fd, iov, n, 0);
}

ICEPATH_EXPORT ssize_t preadv2(int fd, const iovec* iov, int n, off_t at, int flags) {
  auto* const s = ours(fd);
  if (ICEPATH_LIKELY(!s) || at != -1 || n <= 0 || n > IOV_MAX || (flags & ~RWF_NOWAIT)) return next::preadv2(fd, iov, n, at, flags);
  return recv_vector(s, fd, iov, n, flags & RWF_NOWAIT ? MSG_DONTWAIT : 0);
}
ICEPATH_EXPORT ssize_t preadv64v2(int, const iovec*, int, off64_t, int) ICEPATH_ALIAS(preadv2);

ICEPATH_EXPORT ssize_t recv(int fd, void* p, size_t n, int flags) {
  auto* const s = ours(fd);
  if (ICEPATH_LIKELY(!s)) return next::recv(fd, p, n, flags);
  return recv_one(s, fd, p, n, flags, nullptr, nullptr);
}

ICEPATH_EXPORT ssize_t __recv_chk(int fd, void* p, size_t n, size_t room, int flags) {
  if (n > room || !ours(fd)) return next::__recv_chk(fd, p, n, room, flags);
  return recv(fd, p, n, flags);
}

ICEPATH_EXPORT ssize_t recvfrom(int fd, void* p, size_t n, int flags, sockaddr* from, socklen_t* fromlen) {
  auto* const s = ours(fd);
  if (ICEPATH_LIKELY(!s)) return next::recvfrom(fd, p, n, flags, from, fromlen);
  return recv_one(s, fd, p, n, flags, from, fromlen);
}

ICEPATH_EXPORT ssize_t __recvfrom_chk(int fd, void* p, size_t n, size_t room, int flags, sockaddr* from, socklen_t* fromlen) {
  if (n > room || !ours(fd)) return next::__recvfrom_chk(fd, p, n, room, flags, from, fromlen);
  return recvfrom(fd, p, n, flags, from, fromlen);
}

ICEPATH_EXPORT ssize_t recvmsg(int fd, msghdr* m, int flags) {
  auto* const s = ours(fd);
  if (ICEPATH_LIKELY(!s)) {
    const ssize_t r = next::recvmsg(fd, m, flags);
    if (r < 0 || ICEPATH_LIKELY(!has_control(m))) return r;
    const kept_errno e;
    rights_arrived(m, flags);
    return e.finish(r);
  }
  const kept_errno e;
  return e.finish(recv_header(s, fd, m, flags));
}

// The time limit is looked at after each message, and an error after the first message is not reported, both as recvmmsg(2) says.
ICEPATH_EXPORT int recvmmsg(int fd, mmsghdr* v, unsigned n, int flags, timespec* timeout) {
  auto* const s = ours(fd);
  if (ICEPATH_LIKELY(!s)) {
    const int r = next::recvmmsg(fd, v, n, flags, timeout);
    const kept_errno e;
    for (int i = 0; i < r && active(); ++i)
      if (has_control(&v[i].msg_hdr)) rights_arrived(&v[i].msg_hdr, flags);
    e.restore();
    return r;
  }
  const kept_errno e;
  timespec limit{};
  nsec end = ~nsec{0};
  if (timeout) {
    if (copy_from_user(&limit, timeout, sizeof limit)) return e.finish_int(-EFAULT);
    if (limit.tv_sec < 0 || static_cast<unsigned long>(limit.tv_nsec) >= sec_ns) return e.finish_int(-EINVAL);
    end = clock_now() + limit.tv_sec * sec_ns + limit.tv_nsec;
  }
  n = std::min(n, static_cast<unsigned>(IOV_MAX));
  unsigned done = 0;
  ssize_t r = 0;
  while (done < n) {
    r = recv_header(s, fd, &v[done].msg_hdr, flags & ~MSG_WAITFORONE);
    if (r < 0) break;
    const unsigned len = static_cast<unsigned>(r);
    if (copy_to_user(&v[done].msg_len, &len, sizeof len)) { r = -EFAULT; break; }
    ++done;
    if (flags & MSG_WAITFORONE) flags |= MSG_DONTWAIT;
    if (timeout && clock_now() >= end) break;
    if (r == 0) break;                             // end of stream: the next message would be the same
  }
  if (timeout) {
    const nsec now = clock_now(), left = now < end ? end - now : 0;
    const timespec t{static_cast<time_t>(left / sec_ns), static_cast<long>(left % sec_ns)};
    if (copy_to_user(timeout, &t, sizeof t)) return e.finish_int(-EFAULT);
  }
  return done ? e.finish_int(done) : e.finish_int(r);
}

// ---- sending

ICEPATH_EXPORT ssize_t write(int fd, const void* p, size_t n) {
  auto* const s = ours(fd);
  if (ICEPATH_LIKELY(!s)) return next::write(fd, p, n);
  return send_one(s, fd, p, n, 0, nullptr, 0, true);
}
ICEPATH_EXPORT ssize_t __write(int, const void*, size_t) ICEPATH_ALIAS(write);

ICEPATH_EXPORT ssize_t writev(int fd, const iovec* iov, int n) {
  auto* const s = ours(fd);
  if (ICEPATH_LIKELY(!s) || n <= 0 || n > IOV_MAX) return next::writev(fd, iov, n);
  return send_vector(s, fd, iov, n, 0);
}

ICEPATH_EXPORT ssize_t pwritev2(int fd, const iovec* iov, int n, off_t at, int flags) {
  auto* const s = ours(fd);
  if (ICEPATH_LIKELY(!s) || at != -1 || n <= 0 || n > IOV_MAX || (flags & ~RWF_NOWAIT)) return next::pwritev2(fd, iov, n, at, flags);
  return send_vector(s, fd, iov, n, flags & RWF_NOWAIT ? MSG_DONTWAIT : 0);
}
ICEPATH_EXPORT ssize_t pwritev64v2(int, const iovec*, int, off64_t, int) ICEPATH_ALIAS(pwritev2);

ICEPATH_EXPORT ssize_t send(int fd, const void* p, size_t n, int flags) {
  auto* const s = ours(fd);
  if (ICEPATH_LIKELY(!s)) return next::send(fd, p, n, flags);
  return send_one(s, fd, p, n, flags, nullptr, 0);
}
ICEPATH_EXPORT ssize_t __send(int, const void*, size_t, int) ICEPATH_ALIAS(send);

ICEPATH_EXPORT ssize_t sendto(int fd, const void* p, size_t n, int flags, const sockaddr* to, socklen_t tolen) {
  auto* const s = ours(fd);
  if (ICEPATH_LIKELY(!s)) return next::sendto(fd, p, n, flags, to, tolen);
  return send_one(s, fd, p, n, flags, to, tolen);
}

ICEPATH_EXPORT ssize_t sendmsg(int fd, const msghdr* m, int flags) {
  auto* const s = ours(fd);
  if (ICEPATH_LIKELY(!s)) {
    if (ICEPATH_LIKELY(!has_control(m))) return next::sendmsg(fd, m, flags);
    rights_leave(m);
    const ssize_t r = next::sendmsg(fd, m, flags);
    if (r >= 0) return r;
    const kept_errno e;
    rights_stayed(m);
    return e.finish(-errno);
  }
  const kept_errno e;
  size_t wanted;
  return e.finish_send(send_header(s, fd, m, flags, &wanted), flags);
}

ICEPATH_EXPORT int sendmmsg(int fd, mmsghdr* v, unsigned n, int flags) {
  auto* const s = ours(fd);
  n = std::min(n, static_cast<unsigned>(IOV_MAX));
  if (ICEPATH_LIKELY(!s)) {
    for (unsigned i = 0; i < n && active(); ++i)
      if (has_control(&v[i].msg_hdr)) rights_leave(&v[i].msg_hdr);
    const int r = next::sendmmsg(fd, v, n, flags);
    const kept_errno e;
    for (unsigned i = r < 0 ? 0 : static_cast<unsigned>(r); i < n && active(); ++i)
      if (has_control(&v[i].msg_hdr)) rights_stayed(&v[i].msg_hdr);
    e.restore();
    return r;
  }
  const kept_errno e;
  unsigned done = 0;
  ssize_t r = 0;
  while (done < n) {
    size_t wanted = 0;
    r = send_header(s, fd, &v[done].msg_hdr, flags, &wanted);
    if (r < 0) break;
    const unsigned len = static_cast<unsigned>(r);
    if (copy_to_user(&v[done].msg_len, &len, sizeof len)) { r = -EFAULT; break; }
    ++done;
    if (len < wanted) break;
  }
  if (r == -EPIPE || r == -EPIPE_RAISED) {         // the signal comes even when earlier messages went through
    const ssize_t f = e.finish_send(r, flags);
    if (!done) return static_cast<int>(f);
  }
  return done ? e.finish_int(done) : e.finish_int(r);
}
