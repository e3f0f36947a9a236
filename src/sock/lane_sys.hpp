// The kernel lane's system calls as they are made inside an owner word: not cancellation points. libc's recv, send and close are, and
// a thread that is cancelled in one would leave the stack owned for ever. errno is set as libc does.
#pragma once
#include <poll.h>
#include <sys/socket.h>
#include <cerrno>
#include "base/raw_syscall.hpp"

namespace icepath::lane_sys {

inline ssize_t with_errno(long r) {
  if (r >= 0) return r;
  errno = static_cast<int>(-r);
  return -1;
}
inline ssize_t send(int fd, const void* p, size_t n, int flags) { return with_errno(raw_syscall(SYS_sendto, fd, p, n, flags, nullptr, 0)); }
inline ssize_t recv(int fd, void* p, size_t n, int flags) { return with_errno(raw_syscall(SYS_recvfrom, fd, p, n, flags, nullptr, nullptr)); }
inline ssize_t sendmsg(int fd, const msghdr* m, int flags) { return with_errno(raw_syscall(SYS_sendmsg, fd, m, flags)); }
inline ssize_t recvmsg(int fd, msghdr* m, int flags) { return with_errno(raw_syscall(SYS_recvmsg, fd, m, flags)); }
// What fd is now, of `events` and the bits that are always told; 0: none of them.
inline short look(int fd, short events) {
  pollfd p{fd, events, 0};
  return raw_syscall(SYS_poll, &p, 1, 0) > 0 ? p.revents : short{0};
}
inline int close(int fd) { return static_cast<int>(with_errno(raw_syscall(SYS_close, fd))); }

}  // namespace icepath::lane_sys
