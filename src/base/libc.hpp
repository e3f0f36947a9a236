// libc's own functions behind the symbols we interpose: real::send is what send would be without icepath. Declared here for the layers that deal with
// the kernel, defined by preload/libc.cpp (in a layer's unit tests, by a fake). Resolved by dlsym(RTLD_NEXT) on first use, each by itself; usable before our
// constructor has run and from any thread. For the functions that are plain system calls a raw system call serves when dlsym cannot (early start-up).
// Cancellation points of libc stay cancellation points.
#pragma once
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <csignal>
#include <ctime>

namespace icepath::real {

// Every entry is a callable with the libc signature.
int close(int fd);
ssize_t sendmsg(int fd, const msghdr* m, int flags);
ssize_t recvmsg(int fd, msghdr* m, int flags);
ssize_t send(int fd, const void* p, size_t n, int flags);
ssize_t sendto(int fd, const void* p, size_t n, int flags, const sockaddr* to, socklen_t tolen);
ssize_t recvfrom(int fd, void* p, size_t n, int flags, sockaddr* from, socklen_t* fromlen);
ssize_t read(int fd, void* p, size_t n);
ssize_t readv(int fd, const iovec* iov, int n);
ssize_t write(int fd, const void* p, size_t n);
ssize_t writev(int fd, const iovec* iov, int n);
int poll(pollfd* f, nfds_t n, int timeout_ms);
int ppoll(pollfd* f, nfds_t n, const timespec* ts, const sigset_t* mask);
int epoll_create1(int flags);
int epoll_ctl(int ep, int op, int fd, epoll_event* ev);
int epoll_wait(int ep, epoll_event* ev, int max, int timeout);
int epoll_pwait2(int ep, epoll_event* ev, int max, const timespec* ts, const sigset_t* mask);
int pselect(int n, fd_set* r, fd_set* w, fd_set* e, const timespec* ts, const sigset_t* mask);
int fcntl(int fd, int cmd, long arg);
int ioctl(int fd, unsigned long req, void* arg);
int shutdown(int fd, int how);
int setsockopt(int fd, int level, int name, const void* v, socklen_t l);
int getsockopt(int fd, int level, int name, void* v, socklen_t* l);

}  // namespace icepath::real
