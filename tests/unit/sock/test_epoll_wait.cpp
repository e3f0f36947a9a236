// Epoll over mixed sets: waiting, who is woken, threads, signal handlers, nested sets, fork.
#include <signal.h>
#include <sys/wait.h>
#include <chrono>
#include <set>
#include <thread>
#include "base/clock.hpp"
#include "epoll_test.hpp"

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
