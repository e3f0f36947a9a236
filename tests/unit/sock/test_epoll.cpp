// Epoll over mixed sets: the rules of epoll(7), whichever side answers.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#include <chrono>
#include <set>
#include <thread>
#include <vector>
#include "base/clock.hpp"
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
static int wait(epoll_fd& ep, std::vector<epoll_event>& ev, int max, nsec t = 0) {
  ev.assign(static_cast<size_t>(max), epoll_event{});
  const int n = mux_epoll_wait(ep.fd, ev.data(), max, t, nullptr);
  ev.resize(n > 0 ? static_cast<size_t>(n) : 0);
  return n;
}
using events = std::vector<epoll_event>;

TEST(epoll, level_reports_while_ready) {
  epoll_fd ep; sock a; events ev;
  a.promote();
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 7));
  EXPECT_EQ(0, wait(ep, ev, 4));
  a.ready(EPOLLIN);
  for (int i = 0; i < 3; ++i) { ASSERT_EQ(1, wait(ep, ev, 4)); EXPECT_EQ(7u, ev[0].data.u64); EXPECT_EQ(EPOLLIN, int(ev[0].events)); }
  a.ready(0);
  EXPECT_EQ(0, wait(ep, ev, 4));
}
TEST(epoll, edge_reports_once_per_wake) {
  epoll_fd ep; sock a; events ev;
  a.promote();
  a.ready(EPOLLIN);
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN | EPOLLET, 7));
  EXPECT_EQ(1, wait(ep, ev, 4));                       // the edge given on add
  EXPECT_EQ(0, wait(ep, ev, 4));
  a.ready(EPOLLIN | EPOLLOUT);
  EXPECT_EQ(1, wait(ep, ev, 4));
  EXPECT_EQ(EPOLLIN, int(ev[0].events));
  ASSERT_EQ(0, ep.mod(a.fd, EPOLLIN | EPOLLOUT | EPOLLET, 8));
  ASSERT_EQ(1, wait(ep, ev, 4));
  EXPECT_EQ(EPOLLIN | EPOLLOUT, int(ev[0].events));
  EXPECT_EQ(8u, ev[0].data.u64);
  EXPECT_EQ(0, wait(ep, ev, 4));
}
TEST(epoll, oneshot_is_disabled_until_mod) {
  for (const bool fast : {true, false}) {
    epoll_fd ep; sock a; events ev;
    if (fast) a.promote();
    ASSERT_EQ(0, ep.add(a.fd, EPOLLIN | EPOLLONESHOT, 1));
    const auto data = [&] { if (fast) a.ready(EPOLLIN); else EXPECT_EQ(1, ::write(a.peer, "x", 1)); };
    data();
    ASSERT_EQ(1, wait(ep, ev, 4));
    EXPECT_EQ(1u, ev[0].data.u64);
    data();
    EXPECT_EQ(0, wait(ep, ev, 4));
    if (fast) a.ready(EPOLLIN | EPOLLHUP);
    EXPECT_EQ(0, wait(ep, ev, 4));                     // not even HUP
    ASSERT_EQ(0, ep.mod(a.fd, EPOLLIN | EPOLLONESHOT, 2));
    ASSERT_EQ(1, wait(ep, ev, 4));
    EXPECT_EQ(2u, ev[0].data.u64);
    EXPECT_EQ(0, wait(ep, ev, 4));
  }
}
TEST(epoll, oneshot_fired_by_kernel_stays_quiet_on_the_fast_side) {
  epoll_fd ep; sock a; events ev;
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN | EPOLLONESHOT, 1));
  ASSERT_EQ(1, ::write(a.peer, "x", 1));
  ASSERT_EQ(1, wait(ep, ev, 4));
  a.promote();
  a.ready(EPOLLIN);
  EXPECT_EQ(0, wait(ep, ev, 4));
  ASSERT_EQ(0, ep.mod(a.fd, EPOLLIN | EPOLLONESHOT, 2));
  EXPECT_EQ(1, wait(ep, ev, 4));
}
TEST(epoll, err_and_hup_are_always_reported) {
  epoll_fd ep; sock a; events ev;
  a.promote();
  ASSERT_EQ(0, ep.add(a.fd, 0, 1));
  a.ready(EPOLLIN | EPOLLERR | EPOLLHUP);
  ASSERT_EQ(1, wait(ep, ev, 4));
  EXPECT_EQ(EPOLLERR | EPOLLHUP, int(ev[0].events));
}
TEST(epoll, bookkeeping_answers_like_the_kernel) {
  for (const bool fast : {false, true}) {
    epoll_fd ep; sock a;
    if (fast) a.promote();
    EXPECT_EQ(-ENOENT, ep.mod(a.fd, EPOLLIN, 1));
    EXPECT_EQ(-ENOENT, ep.del(a.fd));
    EXPECT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
    EXPECT_EQ(-EEXIST, ep.add(a.fd, EPOLLIN, 1));
    EXPECT_EQ(0, ep.del(a.fd));
    EXPECT_EQ(-ENOENT, ep.del(a.fd));
    EXPECT_EQ(0, ep.add(a.fd, EPOLLIN | EPOLLEXCLUSIVE, 1));
    EXPECT_EQ(-EINVAL, ep.mod(a.fd, EPOLLIN, 1));
    EXPECT_EQ(0, ep.del(a.fd));
    EXPECT_EQ(-EINVAL, ep.add(a.fd, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 1));
    EXPECT_EQ(-EINVAL, ep.ctl(77, a.fd, EPOLLIN, 1));
    EXPECT_EQ(-EBADF, ep.add(3999, EPOLLIN, 1));
    epoll_event ev[1];
    EXPECT_EQ(-EINVAL, mux_epoll_wait(ep.fd, ev, 0, 0, nullptr));
    EXPECT_EQ(-EINVAL, mux_epoll_wait(ep.fd, ev, -1, 0, nullptr));
  }
}
TEST(epoll, lane_change_moves_the_registration) {
  epoll_fd ep; sock a; events ev;
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN | EPOLLOUT, 5));
  ASSERT_EQ(1, wait(ep, ev, 4));
  EXPECT_EQ(EPOLLOUT, int(ev[0].events));
  a.promote();
  ASSERT_EQ(1, ::write(a.peer, "x", 1));               // kernel readiness no longer counts
  EXPECT_EQ(0, wait(ep, ev, 4));
  EXPECT_EQ(0, ep.mod(a.fd, EPOLLIN, 6));              // while it is not in the kernel set
  a.ready(EPOLLOUT);
  EXPECT_EQ(0, wait(ep, ev, 4));
  a.demote();
  ASSERT_EQ(1, wait(ep, ev, 4));
  EXPECT_EQ(EPOLLIN, int(ev[0].events));
  EXPECT_EQ(6u, ev[0].data.u64);
  EXPECT_EQ(0, ep.del(a.fd));
  EXPECT_EQ(0, wait(ep, ev, 4));
}
TEST(epoll, bits_answered_by_both_sides_come_as_one_event) {
  epoll_fd ep; sock a; events ev;
  a.promote(EPOLLIN | EPOLLRDNORM | EPOLLRDHUP | EPOLLHUP | EPOLLERR);
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN | EPOLLOUT, 9));
  ASSERT_EQ(1, ::write(a.peer, "x", 1));
  a.ready(EPOLLOUT);
  ASSERT_EQ(1, wait(ep, ev, 4));
  EXPECT_EQ(EPOLLIN | EPOLLOUT, int(ev[0].events));
  EXPECT_EQ(9u, ev[0].data.u64);
  char c;
  ASSERT_EQ(1, ::read(a.fd, &c, 1));
  ASSERT_EQ(1, wait(ep, ev, 4));
  EXPECT_EQ(EPOLLOUT, int(ev[0].events));              // the kernel's own EPOLLOUT was not asked
}
TEST(epoll, mixed_with_kernel_descriptors) {
  epoll_fd ep; sock a; pipe_pair p; events ev;
  a.promote();
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  ASSERT_EQ(0, ep.add(p.r, EPOLLIN, 2));
  EXPECT_EQ(0, wait(ep, ev, 4));
  p.put();
  ASSERT_EQ(1, wait(ep, ev, 4));
  EXPECT_EQ(2u, ev[0].data.u64);
  a.ready(EPOLLIN);
  ASSERT_EQ(2, wait(ep, ev, 4));
  EXPECT_NE(ev[0].data.u64, ev[1].data.u64);
}
TEST(epoll, fast_flood_does_not_starve_the_kernel_nor_the_reverse) {
  for (const int max : {1, 2, 8}) {
    epoll_fd ep; pipe_pair p; events ev;
    std::vector<sock> a(8);
    for (size_t i = 0; i < a.size(); ++i) { a[i].promote(); ASSERT_EQ(0, ep.add(a[i].fd, EPOLLIN, i)); a[i].ready(EPOLLIN); }
    ASSERT_EQ(0, ep.add(p.r, EPOLLIN, 100));
    p.put();
    std::vector<int> seen(101);
    for (int i = 0; i < 200; ++i) { ASSERT_GT(wait(ep, ev, max), 0); for (auto& e : ev) ++seen[e.data.u64]; }
    EXPECT_GE(seen[100], 10) << max;
    for (size_t i = 0; i < a.size(); ++i) EXPECT_GE(seen[i], 10) << max;
  }
}
TEST(epoll, late_kernel_event_is_seen_within_16_calls_of_a_fast_flood) {
  epoll_fd ep; sock a; pipe_pair p; events ev;
  a.promote();
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  ASSERT_EQ(0, ep.add(p.r, EPOLLIN, 2));
  a.ready(EPOLLIN);
  for (int i = 0; i < 40; ++i) wait(ep, ev, 4);
  p.put();
  int calls = 0;
  for (bool seen = false; !seen; ++calls) { wait(ep, ev, 4); for (auto& e : ev) seen |= e.data.u64 == 2; ASSERT_LT(calls, 17); }
}
TEST(epoll, maxevents_leaves_the_rest_in_turn) {
  epoll_fd ep; events ev;
  std::vector<sock> a(10);
  for (size_t i = 0; i < a.size(); ++i) { a[i].promote(); ASSERT_EQ(0, ep.add(a[i].fd, EPOLLIN, i)); a[i].ready(EPOLLIN); }
  std::multiset<uint64_t> seen;
  for (int i = 0; i < 10; ++i) { ASSERT_EQ(3, wait(ep, ev, 3)); for (auto& e : ev) seen.insert(e.data.u64); }
  for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(3u, seen.count(i));
  ASSERT_EQ(10, wait(ep, ev, 64));
}
TEST(epoll, one_socket_in_two_sets) {
  epoll_fd x, y; sock a; events ev;
  a.promote();
  ASSERT_EQ(0, x.add(a.fd, EPOLLIN, 1));
  ASSERT_EQ(0, y.add(a.fd, EPOLLIN | EPOLLOUT, 2));
  a.ready(EPOLLIN | EPOLLOUT);
  ASSERT_EQ(1, wait(x, ev, 4));
  EXPECT_EQ(EPOLLIN, int(ev[0].events));
  ASSERT_EQ(1, wait(y, ev, 4));
  EXPECT_EQ(EPOLLIN | EPOLLOUT, int(ev[0].events));
  x.close();
  a.ready(EPOLLIN);
  EXPECT_EQ(1, wait(y, ev, 4));
  a.demote();
  EXPECT_EQ(1, wait(y, ev, 4));
}
TEST(epoll, close_with_a_dup_keeps_the_registration) {
  for (const bool fast : {true, false}) {
    epoll_fd ep; sock a; events ev;
    if (fast) a.promote();
    ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 4));
    const int d = dup_fd(a.fd);
    close_fd(a.fd);
    if (fast) a.ready(EPOLLIN); else ASSERT_EQ(1, ::write(a.peer, "x", 1));
    ASSERT_EQ(1, wait(ep, ev, 4)) << fast;
    EXPECT_EQ(4u, ev[0].data.u64);
    if (fast) {
      ASSERT_EQ(1, ::write(a.peer, "x", 1));
      a.demote();
      ASSERT_EQ(1, wait(ep, ev, 4));
      EXPECT_EQ(4u, ev[0].data.u64);
    }
    close_fd(d);
    EXPECT_EQ(0, wait(ep, ev, 4));
    EXPECT_TRUE(a.s->items.empty());
    EXPECT_TRUE(a.s->waiters.empty());
  }
}
TEST(epoll, two_numbers_of_one_file_are_two_registrations) {
  epoll_fd ep; sock a; events ev;
  a.promote();
  const int d = dup_fd(a.fd);
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  ASSERT_EQ(0, ep.add(d, EPOLLIN, 2));
  a.ready(EPOLLIN);
  ASSERT_EQ(2, wait(ep, ev, 4));
  EXPECT_EQ(0, ep.del(d));
  ASSERT_EQ(1, wait(ep, ev, 4));
  EXPECT_EQ(1u, ev[0].data.u64);
  close_fd(d);
  EXPECT_EQ(1, wait(ep, ev, 4));
}
TEST(epoll, dup_of_the_set_is_the_same_set) {
  epoll_fd ep; sock a; events ev;
  a.promote();
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  a.ready(EPOLLIN);
  const int d = dup_fd(ep.fd);
  epoll_event e[2];
  EXPECT_EQ(1, mux_epoll_wait(d, e, 2, 0, nullptr));
  ep.close();
  EXPECT_EQ(1, mux_epoll_wait(d, e, 2, 0, nullptr));
  a.ready(0);
  ASSERT_EQ(1, ::write(a.peer, "x", 1));
  a.demote();                                          // the kernel set is found under the number that is left
  EXPECT_EQ(1, mux_epoll_wait(d, e, 2, 0, nullptr));
  close_fd(d);
  EXPECT_TRUE(a.s->items.empty());
}
TEST(epoll, closed_descriptor_disappears) {
  epoll_fd ep; events ev;
  {
    sock a;
    a.promote();
    ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
    a.ready(EPOLLIN);
  }
  EXPECT_EQ(0, wait(ep, ev, 4));
  sock b;                                              // same number, not registered
  EXPECT_EQ(-ENOENT, ep.del(b.fd));
}
TEST(epoll, timeout_is_kept) {
  epoll_fd ep; sock a; events ev;
  a.promote();
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  const nsec t0 = clock_now();
  EXPECT_EQ(0, wait(ep, ev, 4, 20 * msec_ns));
  const nsec took = clock_now() - t0;
  EXPECT_GE(took, 20 * msec_ns);
  EXPECT_LT(took, 500 * msec_ns);
}
TEST(epoll, wakes_from_sleep_for_either_side) {
  epoll_fd ep; sock a; pipe_pair p; events ev;
  a.promote();
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  ASSERT_EQ(0, ep.add(p.r, EPOLLIN, 2));
  for (int i = 0; i < 20; ++i) {
    std::thread t([&] { std::this_thread::sleep_for(std::chrono::milliseconds(2)); if (i & 1) a.ready(EPOLLIN); else p.put(); });
    ASSERT_EQ(1, wait(ep, ev, 4, 5 * sec_ns));
    EXPECT_EQ(i & 1 ? 1u : 2u, ev[0].data.u64);
    t.join();
    if (i & 1) a.ready(0); else p.take();
  }
}
TEST(epoll, what_the_port_delivers_is_found_by_the_first_call) {
  static sock* target;
  epoll_fd ep; sock a; events ev;
  a.promote(0, 1);
  target = &a;
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  on_stack_poll = [](unsigned no) { if (no == 1) target->ready(EPOLLIN); };
  EXPECT_EQ(1, wait(ep, ev, 4, 0));
  on_stack_poll = nullptr;
}
TEST(epoll, plain_set_is_one_system_call) {
  epoll_fd ep; sock a; pipe_pair p; events ev;
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  ASSERT_EQ(0, ep.add(p.r, EPOLLIN, 2));
  p.put();
  const unsigned w = kernel_waits, q = kernel_polls, s = stack_polls;
  EXPECT_EQ(1, wait(ep, ev, 4, forever));
  EXPECT_EQ(w + 1, kernel_waits);
  EXPECT_EQ(q, kernel_polls);
  EXPECT_EQ(s, stack_polls);
}
TEST(epoll, fast_set_without_kernel_members_makes_no_system_call) {
  epoll_fd ep; sock a; events ev;
  a.promote();
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  a.ready(EPOLLIN);
  const unsigned w = kernel_waits, q = kernel_polls, c = kernel_ctls;
  for (int i = 0; i < 100; ++i) EXPECT_EQ(1, wait(ep, ev, 4));
  for (int i = 0; i < 10; ++i) EXPECT_EQ(0, ep.mod(a.fd, EPOLLIN | (i & 1 ? EPOLLOUT : 0u), 1));
  EXPECT_EQ(w, kernel_waits);
  EXPECT_EQ(q, kernel_polls);
  EXPECT_EQ(c, kernel_ctls);
}
TEST(epoll, promotion_reaches_threads_in_a_plain_wait) {
  epoll_fd ep; sock a;
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  std::atomic<int> got{0};
  std::vector<std::thread> t;
  for (int i = 0; i < 3; ++i) t.emplace_back([&] { epoll_event e[4]; got += mux_epoll_wait(ep.fd, e, 4, 5 * sec_ns, nullptr); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  a.promote();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const nsec t0 = clock_now();
  a.ready(EPOLLIN);
  for (auto& x : t) x.join();
  EXPECT_EQ(3, got);
  EXPECT_LT(clock_now() - t0, 2 * sec_ns);
}
TEST(epoll, signal_interrupts_and_mask_applies_in_the_sleep) {
  epoll_fd ep; sock a;
  a.promote();
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  struct sigaction sa{}, old{};
  sa.sa_handler = [](int) {};
  sigaction(SIGUSR1, &sa, &old);
  sigset_t block, none;
  sigemptyset(&block); sigaddset(&block, SIGUSR1);
  sigemptyset(&none);
  pthread_sigmask(SIG_BLOCK, &block, nullptr);
  raise(SIGUSR1);
  epoll_event e[2];
  EXPECT_EQ(0, mux_epoll_wait(ep.fd, e, 2, 5 * msec_ns, nullptr));
  EXPECT_EQ(-EINTR, mux_epoll_wait(ep.fd, e, 2, 5 * sec_ns, &none));
  EXPECT_EQ(0, mux_epoll_wait(ep.fd, e, 2, 5 * msec_ns, &none));
  pthread_sigmask(SIG_UNBLOCK, &block, nullptr);
  sigaction(SIGUSR1, &old, nullptr);
}
TEST(epoll, del_and_mod_while_another_thread_waits) {
  epoll_fd ep; sock a, b;
  a.promote(); b.promote();
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  ASSERT_EQ(0, ep.add(b.fd, EPOLLIN, 2));
  std::atomic<uint64_t> got{0};
  std::thread t([&] { epoll_event e[4]; if (mux_epoll_wait(ep.fd, e, 4, 5 * sec_ns, nullptr) == 1) got = e[0].data.u64; });
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(0, ep.del(a.fd));
  a.ready(EPOLLIN);
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(0u, got);
  b.ready(EPOLLOUT);                                   // not asked
  EXPECT_EQ(0, ep.mod(b.fd, EPOLLIN | EPOLLOUT, 3));   // ready at once
  t.join();
  EXPECT_EQ(3u, got);
}
TEST(epoll, every_edge_reaches_one_of_many_threads) {
  epoll_fd ep;
  std::vector<sock> a(16);
  for (size_t i = 0; i < a.size(); ++i) { a[i].promote(); ASSERT_EQ(0, ep.add(a[i].fd, EPOLLIN | EPOLLONESHOT, i)); }
  constexpr int rounds = 2000;
  std::atomic<int> got{0};
  std::atomic<bool> stop{false};
  std::atomic<int> handled[16] = {};
  std::vector<std::thread> t;
  for (int k = 0; k < 4; ++k)
    t.emplace_back([&] {
      epoll_event e[3];
      while (!stop) {
        const int n = mux_epoll_wait(ep.fd, e, 3, 200 * msec_ns, nullptr);
        for (int i = 0; i < n; ++i) { a[e[i].data.u64].s->rd_state.store(0); ++got; ++handled[e[i].data.u64]; }
      }
    });
  int sent = 0;
  for (int r = 0; r < rounds; ++r) {
    const size_t i = static_cast<size_t>(r) % a.size();
    const nsec end = clock_now() + 5 * sec_ns;
    while (handled[i] < r / 16) { ASSERT_LT(clock_now(), end) << "lost wake-up"; std::this_thread::yield(); }
    if (r >= 16) { ASSERT_EQ(0, ep.mod(a[i].fd, EPOLLIN | EPOLLONESHOT, i)); }
    a[i].ready(EPOLLIN);
    ++sent;
  }
  const nsec end = clock_now() + 5 * sec_ns;
  while (got < sent && clock_now() < end) std::this_thread::yield();
  stop = true;
  for (auto& x : t) x.join();
  EXPECT_EQ(sent, got);
}
TEST(epoll, close_in_a_signal_handler) {
  static std::atomic<int> victim{-1};
  epoll_fd ep;
  struct sigaction sa{}, old{};
  sa.sa_handler = [](int) { const int fd = victim.exchange(-1); if (fd >= 0) close_fd(fd); };
  sigaction(SIGUSR2, &sa, &old);
  const pthread_t self = pthread_self();
  std::atomic<bool> stop{false};
  std::thread t([&] {
    while (!stop) {
      if (victim >= 0) pthread_kill(self, SIGUSR2);
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  });
  for (int r = 0; r < 1000; ++r) {
    sock a, b;
    a.promote(); b.promote();
    ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
    ASSERT_EQ(0, ep.add(b.fd, EPOLLIN, 2));
    victim = a.fd;
    epoll_event e[4];
    while (victim >= 0) {
      a.s->rd_state.store(EPOLLIN); b.s->rd_state.store(EPOLLIN);
      mux_epoll_wait(ep.fd, e, 4, 0, nullptr);
      ASSERT_EQ(0, ep.mod(b.fd, EPOLLIN, 2));
    }
    EXPECT_TRUE(a.s->items.empty());
    close_fd(b.fd);
    EXPECT_EQ(0, mux_epoll_wait(ep.fd, e, 4, 0, nullptr));
  }
  stop = true;
  t.join();
  sigaction(SIGUSR2, &old, nullptr);
}
TEST(epoll, nested_set_is_readable_for_fast_events) {
  epoll_fd in, out; sock a; events ev;
  a.promote();
  ASSERT_EQ(0, in.add(a.fd, EPOLLIN, 1));
  ASSERT_EQ(0, out.add(in.fd, EPOLLIN, 50));
  EXPECT_EQ(0, wait(out, ev, 4));
  a.ready(EPOLLIN);
  ASSERT_EQ(1, wait(out, ev, 4));
  EXPECT_EQ(50u, ev[0].data.u64);
  ASSERT_EQ(1, wait(in, ev, 4));
  a.ready(0);
  EXPECT_EQ(0, wait(out, ev, 4));
  std::thread t([&] { std::this_thread::sleep_for(std::chrono::milliseconds(5)); a.ready(EPOLLIN); });
  EXPECT_EQ(1, wait(out, ev, 4, 5 * sec_ns));
  t.join();
  a.demote();
  ASSERT_EQ(1, ::write(a.peer, "x", 1));
  ASSERT_EQ(1, wait(out, ev, 4));                      // by the kernel now
  EXPECT_EQ(50u, ev[0].data.u64);
  in.close();
  EXPECT_EQ(0, wait(out, ev, 4));
}
TEST(epoll, too_many_watchers_send_the_sockets_back) {
  epoll_fd in; sock a; const char* why = nullptr;
  a.promote();
  ASSERT_EQ(0, in.add(a.fd, EPOLLIN, 1));
  EXPECT_TRUE(epoll_item_allows_promotion(a.s, &why));
  std::vector<epoll_fd> outs(12);
  for (auto& o : outs) ASSERT_EQ(0, o.add(in.fd, EPOLLIN, 1));
  EXPECT_FALSE(epoll_item_allows_promotion(a.s, &why));
  EXPECT_NE(nullptr, why);
  EXPECT_EQ(nullptr, a.s->st);
  ASSERT_EQ(1, ::write(a.peer, "x", 1));
  events ev;
  for (auto& o : outs) EXPECT_EQ(1, wait(o, ev, 4));
}
TEST(epoll, set_that_is_not_ours_forbids_promotion) {
  sock a;
  const int raw = ::epoll_create1(0);
  epoll_event ev{};
  ev.events = EPOLLIN;
  EXPECT_TRUE(epoll_item_allows_promotion(a.s));
  ASSERT_EQ(0, mux_epoll_ctl(raw, EPOLL_CTL_ADD, a.fd, &ev));
  EXPECT_FALSE(epoll_item_allows_promotion(a.s));
  ::close(raw);
}
TEST(epoll, kernel_readiness_without_system_calls_while_spinning) {
  epoll_fd ep; sock a; pipe_pair p; events ev;
  a.promote();
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  ASSERT_EQ(0, ep.add(p.r, EPOLLIN, 2));
  spin = 3 * msec_ns;
  for (int i = 0; i < 4; ++i) wait(ep, ev, 4, msec_ns);   // the ring is made when asking in vain goes on
  const unsigned w = kernel_waits;
  wait(ep, ev, 4, 2 * msec_ns);
  const unsigned spent = kernel_waits - w;
  std::thread t([&] { std::this_thread::sleep_for(std::chrono::milliseconds(2)); p.put(); });
  spin = 200 * msec_ns;
  const unsigned s = sleeps;
  ASSERT_EQ(1, wait(ep, ev, 4, sec_ns));
  EXPECT_EQ(s, sleeps);                                // seen while spinning
  EXPECT_EQ(2u, ev[0].data.u64);
  t.join();
  ASSERT_EQ(1, wait(ep, ev, 4));                       // level: still there
  p.take();
  EXPECT_EQ(0, wait(ep, ev, 4));
  p.put();
  EXPECT_EQ(1, wait(ep, ev, 4, sec_ns));
  spin = 20 * usec_ns;
  if (spent > 4) GTEST_SKIP() << "io_uring is not permitted here: " << spent << " calls";
}
TEST(epoll, fork_child_drops_what_is_the_parents) {
  epoll_fd ep; sock a; pipe_pair p; events ev;
  a.promote();
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN, 1));
  ASSERT_EQ(0, ep.add(p.r, EPOLLIN, 2));
  spin = 3 * msec_ns;
  for (int i = 0; i < 4; ++i) wait(ep, ev, 4, msec_ns);
  spin = 20 * usec_ns;
  mux_fork_prepare();
  const pid_t pid = fork();
  if (pid == 0) {
    mux_fork_child();
    a.ready(EPOLLIN);
    p.put();
    const int n = wait(ep, ev, 4);
    _exit(n == 2 ? 0 : 1);
  }
  mux_fork_parent();
  int st = -1;
  waitpid(pid, &st, 0);
  EXPECT_EQ(0, st);
  ASSERT_EQ(1, wait(ep, ev, 4));
  EXPECT_EQ(2u, ev[0].data.u64);
}
