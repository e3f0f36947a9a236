// A socket layer, stacks and a wait_until just big enough to stand under the multiplexing code. One process, any threads.
#pragma once
#include <sys/epoll.h>
#include <atomic>
#include "sock/mux.hpp"
#include "sock/socket.hpp"
#include "sock/wait.hpp"
#include "stack/stack.hpp"

namespace fake {

using namespace icepath;

struct sock {                     // a TCP socket whose kernel lane is one end of a socketpair
  sock();
  ~sock();
  icepath::socket* s;
  int fd, peer;
  void promote(uint32_t kernel_bits = 0, unsigned stack_no = 0);   // onto the fast lane
  void demote();                                                   // all bits back to the kernel
  void ready(uint32_t bits);                                       // the fast side's answer; wakes when something was added
};
struct epoll_fd {
  explicit epoll_fd(bool close_it = true);
  ~epoll_fd();
  int fd;
  bool open;
  int add(int what, uint32_t events, uint64_t data) { return ctl(EPOLL_CTL_ADD, what, events, data); }
  int mod(int what, uint32_t events, uint64_t data) { return ctl(EPOLL_CTL_MOD, what, events, data); }
  int del(int what) { return mux_epoll_ctl(fd, EPOLL_CTL_DEL, what, nullptr); }
  int ctl(int op, int what, uint32_t events, uint64_t data);
  void close();
};
int close_fd(int fd);             // as sock_close
int dup_fd(int fd);               // as dup and sock_on_dup

extern std::atomic<unsigned> sleeps, stack_polls, demotions, kernel_waits, kernel_polls, kernel_ctls;
extern std::atomic<nsec> spin;    // how long wait_until spins
extern void (*on_stack_poll)(unsigned no);   // what the port delivers

}  // namespace fake
