// Epoll over mixed sets: the rules of epoll(7), whichever side answers. Waiting, threads and processes: test_epoll_wait.cpp.
#include <sys/socket.h>
#include <set>
#include <utility>
#include "base/clock.hpp"
#include "epoll_test.hpp"

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
TEST(epoll, edge_whose_data_was_read_reports_what_else_is_ready) {
  epoll_fd ep; sock a; events ev;
  a.promote(EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND);     // as after shutdown(SHUT_WR): our direction is the kernel's again
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN | EPOLLOUT | EPOLLET, 7));
  ASSERT_EQ(1, wait(ep, ev, 4));
  EXPECT_EQ(EPOLLOUT, int(ev[0].events));
  EXPECT_EQ(0, wait(ep, ev, 4));
  a.ready(EPOLLIN);
  a.ready(0);
  ASSERT_EQ(1, wait(ep, ev, 4));
  EXPECT_EQ(EPOLLOUT, int(ev[0].events));
  EXPECT_EQ(0, wait(ep, ev, 4));
}
TEST(epoll, edge_of_both_sides_is_one_report_with_room_for_one) {
  epoll_fd ep; sock a; events ev;
  a.promote(EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND);
  a.ready(EPOLLIN);
  ASSERT_EQ(0, ep.add(a.fd, EPOLLIN | EPOLLOUT | EPOLLET, 7));
  ASSERT_EQ(1, wait(ep, ev, 1));
  EXPECT_EQ(EPOLLIN | EPOLLOUT, int(ev[0].events));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(0, wait(ep, ev, 1)) << i;
}
TEST(epoll, room_that_merging_frees_is_used) {
  epoll_fd ep; sock s[3]; events ev;
  for (int i = 0; i < 3; ++i) {
    s[i].promote(EPOLLIN | EPOLLRDNORM);
    ASSERT_EQ(0, ep.add(s[i].fd, EPOLLIN | EPOLLOUT, i));
    ASSERT_EQ(1, ::write(s[i].peer, "x", 1));
  }
  for (int i = 0; i < 2; ++i) s[i].ready(EPOLLOUT);
  for (int round = 0; round < 3; ++round) {
    ASSERT_EQ(3, wait(ep, ev, 4));                     // the fast side has two places, the kernel the other two: the first two again
    for (int i = 0; i < 3; ++i) EXPECT_EQ(ev[i].data.u64 == 2 ? EPOLLIN : EPOLLIN | EPOLLOUT, int(ev[i].events)) << i;
  }
}
TEST(epoll, bytes_of_the_kernel_lane_behind_unread_fast_ones_are_an_edge) {
  for (const uint32_t also : {0u, uint32_t{EPOLLOUT}}) {
    epoll_fd ep; sock a; events ev;
    const uint32_t known = EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI | (also ? EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND : 0u);
    a.promote();
    ASSERT_EQ(0, ep.add(a.fd, EPOLLIN | EPOLLET | also, 7));
    a.ready(EPOLLIN);
    ASSERT_EQ(1, wait(ep, ev, 4));
    a.promote(known);                                  // the end of the fast bytes is known
    a.ready(EPOLLIN);
    while (wait(ep, ev, 4) == 1) {}
    ASSERT_EQ(1, ::write(a.peer, "x", 1));
    ASSERT_EQ(1, wait(ep, ev, 4)) << also;
    EXPECT_EQ(EPOLLIN | also, ev[0].events);
    EXPECT_EQ(7u, ev[0].data.u64);
    EXPECT_EQ(0, wait(ep, ev, 4)) << also;
    a.ready(0);                                        // the fast bytes are read, and the kernel has the rest
    a.demote();
    EXPECT_EQ(0, wait(ep, ev, 4)) << "told twice";
    ASSERT_EQ(1, ::write(a.peer, "y", 1));
    ASSERT_EQ(1, wait(ep, ev, 4));
    EXPECT_EQ(7u, ev[0].data.u64);
    EXPECT_EQ(0, wait(ep, ev, 4));
  }
}
TEST(epoll, lane_change_after_the_end_is_no_edge) {
  for (const bool known : {true, false}) {             // the end is told by EPOLLRDHUP, or EPOLLIN has to stand for it
    epoll_fd ep; sock a; events ev;
    const uint32_t end = known ? EPOLLIN | EPOLLRDHUP : EPOLLIN;
    a.promote(EPOLLIN | EPOLLRDNORM | EPOLLRDHUP | EPOLLHUP | EPOLLERR);
    a.ready(EPOLLOUT);
    ASSERT_EQ(0, ep.add(a.fd, end | EPOLLOUT | EPOLLET, 7));
    ASSERT_EQ(1, wait(ep, ev, 4));
    ASSERT_EQ(0, ::shutdown(a.peer, SHUT_WR));
    ASSERT_EQ(1, wait(ep, ev, 4));
    EXPECT_EQ(end | EPOLLOUT, ev[0].events);
    a.demote();
    EXPECT_EQ(0, wait(ep, ev, 4)) << known;
    ::close(std::exchange(a.peer, -1));
    ASSERT_EQ(1, wait(ep, ev, 4)) << known;            // what happens then is
    EXPECT_TRUE(ev[0].events & EPOLLHUP);
    EXPECT_EQ(0, wait(ep, ev, 4));
  }
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
