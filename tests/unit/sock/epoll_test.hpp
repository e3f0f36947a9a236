// What the epoll tests share: a kernel descriptor beside the sockets, and a look at a set.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <vector>
#include "fake_sock.hpp"

using namespace fake;
constexpr nsec forever = ~nsec{0};

struct pipe_pair {
  int r, w;
  pipe_pair() { int p[2]; EXPECT_EQ(0, ::pipe2(p, O_NONBLOCK)); r = p[0]; w = p[1]; }
  ~pipe_pair() { ::close(r); ::close(w); }
  void put() { EXPECT_EQ(1, ::write(w, "x", 1)); }
  void take() { char c; EXPECT_EQ(1, ::read(r, &c, 1)); }
};
inline int wait(epoll_fd& ep, std::vector<epoll_event>& ev, int max, nsec t = 0) {
  ev.assign(static_cast<size_t>(max), epoll_event{});
  const int n = mux_epoll_wait(ep.fd, ev.data(), max, t, nullptr);
  ev.resize(n > 0 ? static_cast<size_t>(n) : 0);
  return n;
}
using events = std::vector<epoll_event>;
