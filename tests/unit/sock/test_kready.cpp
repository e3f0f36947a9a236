// The rings behind epoll sets: which are used again, and that none keeps a request of a set that is closed.
#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <unistd.h>
#include <fstream>
#include <string>
#include <thread>
#include "fake_sock.hpp"
#include "sock/epoll.hpp"

namespace icepath {
namespace {

// Requests that wait in a ring, by the kernel's word; -1: it does not say.
int requests(int ring_fd) {
  std::ifstream in("/proc/self/fdinfo/" + std::to_string(ring_fd));
  int n = -1;
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("PollList:", 0) == 0) n = 0;
    else if (n >= 0 && line.find("op=") != std::string::npos && line[0] == ' ') ++n;
    else if (n >= 0) break;
  }
  return n;
}

struct kready_test : testing::Test {
  int ep = epoll_create1(EPOLL_CLOEXEC), p[2] = {-1, -1};
  kready a, b;
  void SetUp() override {
    ASSERT_EQ(0, pipe(p));
    epoll_event e{EPOLLIN, {}};
    ASSERT_EQ(0, epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &e));
    if (!kready_open(a, ep, &mux_self)) GTEST_SKIP() << "io_uring is not permitted here";
    if (requests(fd()) < 0) GTEST_SKIP() << "this kernel does not list the requests of a ring";
  }
  void TearDown() override {
    if (a.owner) kready_close(a);
    if (b.owner) kready_close(b);
    for (int fd : {ep, p[0], p[1]}) close(fd);
  }
  int fd() const { return a.r->ring.ring_fd; }
  void raise_and_ack(kready& k) {
    EXPECT_FALSE(kready_raised(k));
    char c = 'x';
    ASSERT_EQ(1, write(p[1], &c, 1));
    EXPECT_TRUE(kready_raised(k));
    kready_ack(k, ep);
    EXPECT_FALSE(kready_raised(k));
    ASSERT_EQ(1, read(p[0], &c, 1));
  }
};

TEST_F(kready_test, its_thread_closes_and_uses_the_ring_again_without_the_old_request) {
  const int first = fd();
  raise_and_ack(a);
  kready_close(a);
  ASSERT_EQ(0, requests(first));
  ASSERT_EQ(1, write(p[1], "x", 1));
  ASSERT_TRUE(kready_open(b, ep, &mux_self));
  EXPECT_EQ(first, b.r->ring.ring_fd);
  EXPECT_TRUE(kready_raised(b));
  kready_ack(b, ep);
  char c;
  ASSERT_EQ(1, read(p[0], &c, 1));
  raise_and_ack(b);
  EXPECT_EQ(1, requests(first));
}

TEST_F(kready_test, another_thread_closes_and_the_owner_ends_the_request_later) {
  const int first = fd();
  std::thread([&] { kready_close(a); }).join();
  EXPECT_EQ(1, requests(first));
  ASSERT_TRUE(kready_open(b, ep, &mux_self));
  EXPECT_EQ(first, b.r->ring.ring_fd);
  EXPECT_EQ(1, requests(first));
  raise_and_ack(b);
}

TEST_F(kready_test, an_ack_on_another_ring_ends_what_was_left) {
  ASSERT_TRUE(kready_open(b, ep, &mux_self));
  const int first = fd();
  ASSERT_NE(first, b.r->ring.ring_fd);
  std::thread([&] { kready_close(a); }).join();
  EXPECT_EQ(1, requests(first));
  kready_ack(b, ep);
  EXPECT_EQ(0, requests(first));
  raise_and_ack(b);
}

TEST_F(kready_test, a_ring_whose_thread_has_ended_is_closed_when_the_next_one_opens) {
  int theirs = -1;
  std::thread([&] {
    kready k;
    if (!kready_open(k, ep, &mux_self)) return;
    theirs = k.r->ring.ring_fd;
    kready_close(k);
  }).join();
  ASSERT_NE(-1, theirs);
  EXPECT_NE(theirs, fd());
  ASSERT_NE(-1, fcntl(theirs, F_GETFD));
  // The thread is gone for the kernel a little after join.
  for (int i = 0; i < 1000 && fcntl(theirs, F_GETFD) >= 0; ++i) {
    kready k;
    ASSERT_TRUE(kready_open(k, ep, &mux_self));
    kready_close(k);
    usleep(1000);
  }
  EXPECT_EQ(-1, fcntl(theirs, F_GETFD));
}

}  // namespace
}  // namespace icepath
