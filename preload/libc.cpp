// The real:: functions that the library below us uses, by way of next:: (next.hpp).
#include "base/libc.hpp"
#include "next.hpp"

namespace icepath::real {

int close(int fd) { return next::close(fd); }
ssize_t sendmsg(int fd, const msghdr* m, int flags) { return next::sendmsg(fd, m, flags); }
ssize_t recvmsg(int fd, msghdr* m, int flags) { return next::recvmsg(fd, m, flags); }
ssize_t send(int fd, const void* p, size_t n, int flags) { return next::send(fd, p, n, flags); }
ssize_t sendto(int fd, const void* p, size_t n, int flags, const sockaddr* to, socklen_t tolen) {
  return next::sendto(fd, p, n, flags, to, tolen);
}
ssize_t recvfrom(int fd, void* p, size_t n, int flags, sockaddr* from, socklen_t* fromlen) {
  return next::recvfrom(fd, p, n, flags, from, fromlen);
}
ssize_t read(int fd, void* p, size_t n) { return next::read(fd, p, n); }
ssize_t readv(int fd, const iovec* iov, int n) { return next::readv(fd, iov, n); }
ssize_t write(int fd, const void* p, size_t n) { return next::write(fd, p, n); }
ssize_t writev(int fd, const iovec* iov, int n) { return next::writev(fd, iov, n); }
int poll(pollfd* f, nfds_t n, int timeout_ms) { return next::poll(f, n, timeout_ms); }
int ppoll(pollfd* f, nfds_t n, const timespec* ts, const sigset_t* mask) { return next::ppoll(f, n, ts, mask); }
int epoll_create1(int flags) { return next::epoll_create1(flags); }
int epoll_ctl(int ep, int op, int fd, epoll_event* ev) { return next::epoll_ctl(ep, op, fd, ev); }
int epoll_wait(int ep, epoll_event* ev, int max, int timeout) { return next::epoll_wait(ep, ev, max, timeout); }
int epoll_pwait2(int ep, epoll_event* ev, int max, const timespec* ts, const sigset_t* mask) {
  return next::epoll_pwait2(ep, ev, max, ts, mask);
}
int pselect(int n, fd_set* r, fd_set* w, fd_set* e, const timespec* ts, const sigset_t* mask) {
  return next::pselect(n, r, w, e, ts, mask);
}
int fcntl(int fd, int cmd, long arg) { return next::fcntl(fd, cmd, arg); }
int ioctl(int fd, unsigned long req, void* arg) { return next::ioctl(fd, req, arg); }
int shutdown(int fd, int how) { return next::shutdown(fd, how); }
int setsockopt(int fd, int level, int name, const void* v, socklen_t l) { return next::setsockopt(fd, level, name, v, l); }
int getsockopt(int fd, int level, int name, void* v, socklen_t* l) { return next::getsockopt(fd, level, name, v, l); }

}  // namespace icepath::real
