// Multiplexing: epoll, poll and select over sets in which some descriptors are on the fast lane and the others are the kernel's.
// preload/call_mux calls the mux_* functions; socket.hpp has the hooks by which the socket layer tells of changes.
//
// What always holds
// - Every event bit of a descriptor is answered by one side only: sock_poll(s).kernel_bits by the kernel, the rest by us.
// - An epoll set is a real kernel set. In it stand the descriptors that are not ours, as the application gave them, and ours only for the
//   bits the kernel answers. A set in which nothing is on the fast lane is the kernel's alone: one system call, no bookkeeping.
// - No wait entry, waiter slot or item lives in memory that can go away: all come from type-stable pools, so a thread that is cancelled
//   in its sleep leaves garbage behind, never a dangling pointer.
//
// What is asked of the socket layer
// - sock_poll takes no lock and no owner word (it is called under an epoll set's lock; epoll_sync, which takes that lock, may be called
//   under an owner word).
// - epoll_sync(s) is called without s->wait_lock, after every change of a lane and of s->st.
// - epoll_on_close(fd, f) is called before the kernel's close of fd, with the fd table slot already taken or not.
#pragma once
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include "base/types.hpp"

namespace icepath {

struct socket;

// timeout: relative, 0 looks and returns, ~0 waits for ever. mask: as in ppoll, may be null. Return value of the call, or -errno.
int mux_poll(pollfd* fds, nfds_t n, nsec timeout, const sigset_t* mask);
int mux_select(int n, fd_set* r, fd_set* w, fd_set* e, nsec timeout, const sigset_t* mask);
int mux_epoll_ctl(int ep, int op, int fd, epoll_event* ev);
int mux_epoll_wait(int ep, epoll_event* ev, int max, nsec timeout, const sigset_t* mask);

// May s go to the fast lane as far as its epoll sets are concerned? When not, *reason says why.
bool epoll_item_allows_promotion(socket* s, const char** reason = nullptr);

// Before exec, or before an epoll descriptor is given to another process: the kernel set gets the application's own data back.
void epoll_export(int epfd);
// The same for every set, when the library steps aside: from now on the program's calls reach the kernel sets unseen.
void mux_step_aside();

// fork, called by sock_fork_*: no set is in the middle of a change while the process is copied; the child drops rings and sleepers.
void mux_fork_prepare();
void mux_fork_parent();
void mux_fork_child();

}  // namespace icepath
