// Shared by the host programs: connected loopback sockets, and the fake socket layer's counters.
#pragma once
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cstdlib>
#include <cstring>

enum counter { sends, recvs, demotes, execs, fork_children, muxes, closes, dups, replaces, accepts };

inline int counter_fd() {
  static const int fd = socket(AF_INET, SOCK_STREAM, 0);
  return fd;
}
inline int count(counter c) { return ioctl(counter_fd(), 0xfa4e00ul + c); }
inline bool fast_lane() { const char* l = getenv("FAKE_LANE"); return l && !strcmp(l, "fast"); }

struct pair_of_sockets {
  int a, b, listener;
  pair_of_sockets() {
    sockaddr_in sin{};
    sin.sin_family = AF_INET;
    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t n = sizeof sin;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(0, bind(listener, reinterpret_cast<sockaddr*>(&sin), n));
    EXPECT_EQ(0, listen(listener, 8));
    getsockname(listener, reinterpret_cast<sockaddr*>(&sin), &n);
    a = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    errno = 77;
    EXPECT_EQ(0, connect(a, reinterpret_cast<sockaddr*>(&sin), n));
    EXPECT_EQ(77, errno) << "connect changed errno on success";
    b = accept(listener, nullptr, nullptr);
    EXPECT_GE(b, 0);
  }
  ~pair_of_sockets() { close(a); close(b); close(listener); }
};
