// One poll or select call over a mixed set. Private to poll.cpp and select.cpp.
//
// `fds` is the call's own array: for each descriptor what the kernel is asked (fd -1: nothing), and room for the wake fds behind it.
// `fast` names the entries that the socket layer must be asked about. Memory: the caller's stack for small sets, a mapping for large ones.
#pragma once
#include <poll.h>
#include <signal.h>
#include <atomic>
#include "sock/socket.hpp"
#include "sock/wait.hpp"

namespace icepath {

struct epoll;

struct poll_entry {                     // type-stable: a thread that is cancelled in its sleep leaves it in the socket's list
  std::atomic<uint32_t> pool_next{0};
  uint32_t pool_index = 0;
  wait_entry we;
  std::atomic<waiter*> w{nullptr};
};

struct poll_fast {
  socket* s;                            // or
  epoll* ep;
  unsigned at;                          // in fds
  short events;                         // asked by the application
  short ready;                          // the fast side's answer
  poll_entry* entry;
  int slot;
};

constexpr unsigned poll_max_wake = 80, poll_small = 64;

struct poll_set {
  pollfd* fds;                          // n + poll_max_wake places
  unsigned n;
  poll_fast* fast;
  unsigned nfast;
  const sigset_t* mask;
  uint64_t planned = 0;
  bool kernel_done = false;             // fds[].revents are this moment's
  bool stale = false, short_sleep = false;
  int err = 0;
};

// Is f something whose readiness the kernel alone does not know?
bool poll_concerns(file* f);
// Waits until something is ready, and then leaves fds[i].revents complete. Number of ready descriptors, or -errno.
int poll_set_wait(poll_set& p, nsec timeout);

// Memory for a call: n entries of fds and nfast of fast.
struct poll_memory {
  pollfd* fds = nullptr;
  poll_fast* fast = nullptr;
  size_t mapped = 0;
  bool get(size_t n, size_t nfast);
  void put();
};

}  // namespace icepath
