// poll and select over mixed sets.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>
#include <chrono>
#include <thread>
#include <vector>
#include "base/clock.hpp"
#include "fake_sock.hpp"

using namespace fake;
constexpr nsec forever = ~nsec{0};

TEST(poll, both_sides_are_reported_completely) {
  sock a, b; int p[2];
  ASSERT_EQ(0, ::pipe(p));
  a.promote();
  b.promote(EPOLLIN | EPOLLRDNORM | EPOLLERR | EPOLLHUP);
  pollfd f[5] = {{a.fd, POLLIN, 0}, {p[0], POLLIN, 0}, {b.fd, POLLIN | POLLOUT, 0}, {-5, POLLIN, 9}, {3999, POLLIN, 0}};
  EXPECT_EQ(1, mux_poll(f, 5, 0, nullptr));
  EXPECT_EQ(POLLNVAL, f[4].revents);
  EXPECT_EQ(0, f[3].revents);
  EXPECT_EQ(0, mux_poll(f, 4, 0, nullptr));
  a.ready(EPOLLIN);
  b.ready(EPOLLOUT);
  ASSERT_EQ(1, ::write(p[1], "x", 1));
  ASSERT_EQ(1, ::write(b.peer, "x", 1));
  EXPECT_EQ(3, mux_poll(f, 4, forever, nullptr));
  EXPECT_EQ(POLLIN, f[0].revents);
  EXPECT_EQ(POLLIN, f[1].revents);
  EXPECT_EQ(POLLIN | POLLOUT, f[2].revents);
  EXPECT_EQ(a.fd, f[0].fd);
  ::close(p[0]); ::close(p[1]);
}
TEST(poll, only_fast_descriptors_make_no_system_call) {
  sock a;
  a.promote();
  a.ready(EPOLLIN);
  pollfd f{a.fd, POLLIN, 0};
  const unsigned q = kernel_polls;
  for (int i = 0; i < 10; ++i) EXPECT_EQ(1, mux_poll(&f, 1, forever, nullptr));
  EXPECT_EQ(q, kernel_polls);
}
TEST(poll, err_and_hup_unasked) {
  sock a;
  a.promote();
  a.ready(EPOLLHUP | EPOLLIN);
  pollfd f{a.fd, 0, 0};
  EXPECT_EQ(1, mux_poll(&f, 1, 0, nullptr));
  EXPECT_EQ(POLLHUP, f.revents);
}
TEST(poll, wakes_for_either_side_and_for_a_lane_change) {
  for (int side = 0; side < 4; ++side) {
    sock a, k;
    if (side != 3) a.promote();
    std::thread t([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(3));
      if (side == 0) a.ready(EPOLLIN);
      if (side == 1) { EXPECT_EQ(1, ::write(k.peer, "x", 1)); }
      if (side == 2) { EXPECT_EQ(1, ::write(a.peer, "x", 1)); a.demote(); }
      if (side == 3) { a.promote(); a.ready(EPOLLIN); }
    });
    pollfd f[2] = {{a.fd, POLLIN, 0}, {k.fd, POLLIN, 0}};
    EXPECT_EQ(1, mux_poll(f, 2, 5 * sec_ns, nullptr)) << side;
    EXPECT_EQ(POLLIN, f[side == 1].revents);
    t.join();
    EXPECT_TRUE(a.s->waiters.empty());
  }
}
TEST(poll, timeout_and_signals) {
  sock a;
  a.promote();
  pollfd f{a.fd, POLLIN, 0};
  const nsec t0 = clock_now();
  EXPECT_EQ(0, mux_poll(&f, 1, 10 * msec_ns, nullptr));
  EXPECT_GE(clock_now() - t0, 10 * msec_ns);
  struct sigaction sa{}, old{};
  sa.sa_handler = [](int) {};
  sigaction(SIGUSR1, &sa, &old);
  sigset_t block, none;
  sigemptyset(&block); sigaddset(&block, SIGUSR1); sigemptyset(&none);
  pthread_sigmask(SIG_BLOCK, &block, nullptr);
  raise(SIGUSR1);
  EXPECT_EQ(0, mux_poll(&f, 1, msec_ns, nullptr));
  EXPECT_EQ(-EINTR, mux_poll(&f, 1, 0, &none));        // as the kernel: pending, admitted, nothing found
  raise(SIGUSR1);
  EXPECT_EQ(-EINTR, mux_poll(&f, 1, 5 * sec_ns, &none));
  raise(SIGUSR1);
  a.ready(EPOLLIN);
  EXPECT_EQ(1, mux_poll(&f, 1, 5 * sec_ns, &none));    // events come first
  pthread_sigmask(SIG_UNBLOCK, &block, nullptr);
  sigaction(SIGUSR1, &old, nullptr);
}
TEST(poll, large_set) {
  std::vector<sock> a(150);
  std::vector<pollfd> f;
  for (size_t i = 0; i < a.size(); ++i) { if (i % 2) a[i].promote(); f.push_back({a[i].fd, POLLIN, 0}); }
  EXPECT_EQ(0, mux_poll(f.data(), f.size(), 0, nullptr));
  a[149].ready(EPOLLIN);
  ASSERT_EQ(1, ::write(a[148].peer, "x", 1));
  EXPECT_EQ(2, mux_poll(f.data(), f.size(), forever, nullptr));
  EXPECT_EQ(POLLIN, f[149].revents);
  EXPECT_EQ(POLLIN, f[148].revents);
}
TEST(poll, epoll_set_of_ours) {
  epoll_fd ep; sock a;
  a.promote();
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  pollfd f{ep.fd, POLLIN, 0};
  EXPECT_EQ(0, mux_poll(&f, 1, msec_ns, nullptr));
  std::thread t([&] { std::this_thread::sleep_for(std::chrono::milliseconds(3)); a.ready(EPOLLIN); });
  EXPECT_EQ(1, mux_poll(&f, 1, 5 * sec_ns, nullptr));
  EXPECT_EQ(POLLIN, f.revents);
  t.join();
  epoll_event e;
  EXPECT_EQ(1, mux_epoll_wait(ep.fd, &e, 1, 0, nullptr));   // looking did not take it
}

TEST(select, mixed_sets) {
  sock a, b; int p[2];
  ASSERT_EQ(0, ::pipe(p));
  a.promote(); b.promote();
  const int n = std::max({a.fd, b.fd, p[0], p[1]}) + 1;
  fd_set r, w;
  const auto sets = [&] { FD_ZERO(&r); FD_ZERO(&w); FD_SET(a.fd, &r); FD_SET(p[0], &r); FD_SET(b.fd, &w); FD_SET(b.fd, &r); };
  sets();
  EXPECT_EQ(0, mux_select(n, &r, &w, nullptr, msec_ns, nullptr));
  EXPECT_FALSE(FD_ISSET(a.fd, &r) || FD_ISSET(p[0], &r) || FD_ISSET(b.fd, &w));
  sets();
  a.ready(EPOLLIN);
  b.ready(EPOLLOUT | EPOLLIN);
  EXPECT_EQ(3, mux_select(n, &r, &w, nullptr, forever, nullptr));
  EXPECT_TRUE(FD_ISSET(a.fd, &r) && FD_ISSET(b.fd, &w) && FD_ISSET(b.fd, &r));
  EXPECT_FALSE(FD_ISSET(p[0], &r));
  sets();
  ASSERT_EQ(1, ::write(p[1], "x", 1));
  EXPECT_EQ(4, mux_select(n, &r, &w, nullptr, forever, nullptr));
  ::close(p[0]); ::close(p[1]);
  sets();
  EXPECT_EQ(-EBADF, mux_select(n, &r, &w, nullptr, forever, nullptr));
}
TEST(select, hangup_does_not_wake_a_writer_only) {
  sock a;
  a.promote();
  a.ready(EPOLLHUP);
  fd_set w;
  FD_ZERO(&w);
  FD_SET(a.fd, &w);
  EXPECT_EQ(0, mux_select(a.fd + 1, nullptr, &w, nullptr, 5 * msec_ns, nullptr));
  FD_ZERO(&w);
  FD_SET(a.fd, &w);
  EXPECT_EQ(1, mux_select(a.fd + 1, &w, nullptr, nullptr, 5 * msec_ns, nullptr));
}
TEST(select, n_beyond_the_kernels_table_does_not_touch_what_is_behind_the_set) {
  sock a;
  a.promote();
  a.ready(EPOLLIN);
  struct { fd_set r; unsigned char behind[8192]; } m;
  FD_ZERO(&m.r);
  FD_SET(a.fd, &m.r);
  for (auto& b : m.behind) b = 0xff;
  EXPECT_EQ(1, mux_select(65536, &m.r, nullptr, nullptr, 0, nullptr) > 0);
  EXPECT_EQ(0xff, m.behind[4096]);
}
TEST(select, descriptors_beyond_FD_SETSIZE) {
  rlimit l{};
  getrlimit(RLIMIT_NOFILE, &l);
  if (l.rlim_cur < 3000) GTEST_SKIP() << "needs 3000 descriptors: " << l.rlim_cur;
  sock a;
  const int high = ::fcntl(a.fd, F_DUPFD, 2000);
  ASSERT_GE(high, 2000);
  fdtable[high].store(a.s);
  a.s->nr_fds.fetch_add(1);
  a.promote();
  a.ready(EPOLLIN);
  std::vector<uint64_t> set(4096 / 64);
  set[static_cast<size_t>(high) / 64] = uint64_t{1} << high % 64;
  EXPECT_EQ(1, mux_select(high + 1, reinterpret_cast<fd_set*>(set.data()), nullptr, nullptr, 0, nullptr));
  EXPECT_EQ(uint64_t{1} << high % 64, set[static_cast<size_t>(high) / 64]);
  close_fd(high);
}
