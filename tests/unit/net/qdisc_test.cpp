// Rules of the queueing discipline and of dev_queue_xmit (T22-T27, T31).
#include <gtest/gtest.h>

#include "net/bql.hpp"
#include "net/dev.hpp"
#include "tests/unit/net/fake_device.hpp"

using namespace icepath;

namespace {

struct qdisc_test : ::testing::Test {
  fake_stack st;
  fake_device dev{st.net};
  int send(const std::string& b, uint8_t prio = 0, uint16_t q = 0) {
    sk_buff* s = st.packet(b);
    s->dev = &dev;
    s->priority = prio;
    s->queue_mapping = q;
    return dev_queue_xmit(st.net, s);
  }
  std::string order() const {
    std::string o;
    for (auto& p : dev.sent) o += p.bytes;
    return o;
  }
  void TearDown() override { dev.clean_tx(1 << 30); }
};

TEST_F(qdisc_test, T22_down_is_ENETDOWN_and_frees) {
  dev.up = false;
  EXPECT_EQ(send("a"), -ENETDOWN);
  EXPECT_EQ(dev.started, 0);
  EXPECT_EQ(st.net.skbs.allocated(), 0);
}
TEST_F(qdisc_test, T22_queue_mapping_chooses_the_queue) {
  fake_device d2(st.net, 4);
  for (uint16_t q : {3, 1, 9}) {
    sk_buff* s = st.packet("x");
    s->dev = &d2;
    s->queue_mapping = q;
    EXPECT_EQ(dev_queue_xmit(st.net, s), 0);
  }
  ASSERT_EQ(d2.sent.size(), 3u);
  EXPECT_EQ(d2.sent[0].txq, 3);
  EXPECT_EQ(d2.sent[1].txq, 1);
  EXPECT_EQ(d2.sent[2].txq, 0);  // a queue that does not exist
}
TEST_F(qdisc_test, T22_device_without_queue_bounds_recursion) {
  fake_device d2(st.net, 1, false);
  int depth = 0, deepest = 0, refused = 0;
  d2.verdict = [&](sk_buff*) {
    deepest = std::max(deepest, ++depth);
    sk_buff* s = st.packet("inner");
    s->dev = &d2;
    refused += dev_queue_xmit(st.net, s) == -ENETDOWN;
    --depth;
    return xmit::ok;
  };
  sk_buff* s = st.packet("outer");
  s->dev = &d2;
  EXPECT_EQ(dev_queue_xmit(st.net, s), 0);
  EXPECT_EQ(deepest, 8);
  EXPECT_EQ(refused, 1);
}
TEST_F(qdisc_test, T22_device_without_queue_drops_when_busy) {
  fake_device d2(st.net, 1, false);
  d2.verdict = [](sk_buff*) { return xmit::busy; };
  sk_buff* s = st.packet("x");
  s->dev = &d2;
  EXPECT_EQ(dev_queue_xmit(st.net, s), -ENETDOWN);
  EXPECT_EQ(d2.tx_dropped, 1u);
  EXPECT_EQ(st.net.skbs.allocated(), 0);
}
TEST_F(qdisc_test, T23_bypass_when_empty) {
  EXPECT_EQ(send("a"), 0);
  EXPECT_EQ(order(), "a");
  EXPECT_EQ(st.get(st.stats.QdiscBypass), 1u);
  EXPECT_EQ(st.get(st.stats.QdiscEnqueue), 0u);
  EXPECT_EQ(dev.queues[0].q->state(), 0u);
}
TEST_F(qdisc_test, T23_no_bypass_past_waiting_packets) {
  dev.queues[0].state = QUEUE_STATE_DRV_XOFF;
  send("a");
  send("b");
  dev.queues[0].state = 0;
  EXPECT_EQ(send("c"), 0);  // the queue is free again, but a and b go first
  EXPECT_EQ(order(), "abc");
}
TEST_F(qdisc_test, T23_full_band_is_ENOBUFS_and_drops_that_packet_only) {
  dev.queues[0].state = QUEUE_STATE_DRV_XOFF;
  unsigned ok = 0;
  while (send("a") == 0) ASSERT_LT(++ok, 5000u);
  EXPECT_GE(ok, pfifo_fast_len);
  EXPECT_EQ(send("a"), -ENOBUFS);
  EXPECT_EQ(st.get(st.stats.QdiscDrop), 2u);
  EXPECT_EQ(send("z", 6), 0);  // another band has room
  netif_tx_wake_queue(dev, 0, QUEUE_STATE_DRV_XOFF);
  while (netif_queues_scheduled(dev)) netif_run_queues(dev);
  EXPECT_EQ(dev.sent.size(), ok + 1);
  EXPECT_EQ(dev.sent[1].bytes, "z");
}
TEST_F(qdisc_test, T23_sending_from_the_driver_is_queued_not_recursive) {
  bool once = true;
  int inside = 0;
  dev.verdict = [&](sk_buff*) {
    EXPECT_EQ(++inside, 1);
    if (once) once = false, send("b");
    --inside;
    return xmit::ok;
  };
  EXPECT_EQ(send("a"), 0);
  EXPECT_EQ(order(), "ab");
  EXPECT_EQ(dev.queues[0].q->state(), 0u);
}
TEST_F(qdisc_test, T24_budget_of_64_then_rest_is_scheduled) {
  dev.queues[0].state = QUEUE_STATE_DRV_XOFF;
  for (int i = 0; i < 200; ++i) send("a");
  EXPECT_FALSE(netif_queues_scheduled(dev));  // stopped: the wake will run it
  netif_tx_wake_queue(dev, 0, QUEUE_STATE_DRV_XOFF);
  EXPECT_EQ(dev.sent.size(), 64u);
  EXPECT_TRUE(netif_queues_scheduled(dev));
  for (int i = 0; i < 10 && netif_queues_scheduled(dev); ++i) netif_run_queues(dev);
  EXPECT_EQ(dev.sent.size(), 200u);
  EXPECT_EQ(dev.queues[0].q->state(), 0u);
}
TEST_F(qdisc_test, T25_bands_by_priority) {
  dev.queues[0].state = QUEUE_STATE_DRV_XOFF;
  send("1");                       // goes to the requeue slot: it was on its way already
  send("2", 2), send("b", 0), send("3", 1), send("a", 6), send("c", 0), send("A", 7);
  netif_tx_wake_queue(dev, 0, QUEUE_STATE_DRV_XOFF);
  EXPECT_EQ(order(), "1aAbc23");
}
TEST_F(qdisc_test, T25_requeue_slot_goes_first) {
  int n = 0;
  dev.verdict = [&](sk_buff*) { return ++n <= 3 ? xmit::busy : xmit::ok; };
  send("a");
  send("b");
  send("x", 6);
  while (netif_queues_scheduled(dev)) netif_run_queues(dev);
  EXPECT_EQ(order().substr(0, 1), "a");
  EXPECT_EQ(dev.sent.size(), 3u);
}
TEST_F(qdisc_test, T25_bulk_stops_at_the_byte_limit) {
  dql limit;
  limit.min_limit = 250;
  dql_reset(limit);
  dev.queues[0].bql = &limit;
  dev.queues[0].state = QUEUE_STATE_DRV_XOFF;
  for (int i = 0; i < 6; ++i) send(std::string(100, 'a'));
  dev.verdict = [&](sk_buff* s) { dql_queued(limit, s->len); if (dql_avail(limit) < 0) netif_tx_stop_queue(dev, 0, QUEUE_STATE_STACK_XOFF); return xmit::ok; };
  netif_tx_wake_queue(dev, 0, QUEUE_STATE_DRV_XOFF);
  ASSERT_EQ(dev.sent.size(), 3u);   // 300 bytes: the piece that goes over the limit is sent, the next is not
  EXPECT_FALSE(dev.sent[2].more);
  EXPECT_EQ(dev.queues[0].q->requeued(), 0u);   // nothing was taken out of the bands in vain
}
TEST_F(qdisc_test, T26_stopped_queue_is_respected) {
  dev.queues[0].state = QUEUE_STATE_FROZEN;
  EXPECT_EQ(send("a"), 0);
  EXPECT_EQ(dev.started, 0);
  netif_run_queues(dev);
  EXPECT_EQ(dev.started, 0);
  netif_tx_wake_queue(dev, 0, QUEUE_STATE_FROZEN);
  EXPECT_EQ(order(), "a");
}
TEST_F(qdisc_test, T26_wake_of_one_reason_leaves_the_other) {
  dev.queues[0].state = QUEUE_STATE_DRV_XOFF | QUEUE_STATE_STACK_XOFF;
  send("a");
  netif_tx_wake_queue(dev, 0, QUEUE_STATE_DRV_XOFF);
  EXPECT_EQ(dev.started, 0);
  netif_tx_wake_queue(dev, 0, QUEUE_STATE_STACK_XOFF);
  EXPECT_EQ(order(), "a");
}
TEST_F(qdisc_test, T26_busy_keeps_order) {
  dev.room = 2;
  for (char c = 'a'; c <= 'j'; ++c) send(std::string(1, c));
  for (int i = 0; i < 20; ++i) dev.clean_tx(1), netif_run_queues(dev);
  EXPECT_EQ(order(), "abcdefghij");
  EXPECT_GT(st.get(st.stats.QdiscRequeue), 0u);
}
TEST_F(qdisc_test, T26_busy_without_stop_is_scheduled_not_spun) {
  dev.verdict = [](sk_buff*) { return xmit::busy; };
  send("a");
  EXPECT_LE(dev.started, 4);
  EXPECT_TRUE(netif_queues_scheduled(dev));
  dev.verdict = nullptr;
  netif_run_queues(dev);
  EXPECT_EQ(order(), "a");
}
TEST_F(qdisc_test, T27_list_with_more) {
  dev.queues[0].state = QUEUE_STATE_DRV_XOFF;
  for (int i = 0; i < 5; ++i) send("a");
  netif_tx_wake_queue(dev, 0, QUEUE_STATE_DRV_XOFF);
  ASSERT_EQ(dev.sent.size(), 5u);
  EXPECT_TRUE(dev.sent[1].more);
  EXPECT_TRUE(dev.sent[2].more);
  EXPECT_TRUE(dev.sent[3].more);
  EXPECT_FALSE(dev.sent[4].more);
}
TEST_F(qdisc_test, T27_drop_is_not_resent) {
  dev.verdict = [](sk_buff*) { return xmit::drop; };
  EXPECT_EQ(send("a"), 0);
  EXPECT_EQ(dev.started, 1);
  EXPECT_EQ(st.net.skbs.allocated(), 0);
}

std::string tapped;
TEST_F(qdisc_test, T27_tap_sees_what_is_sent) {
  tapped.clear();
  packet_tap = [](net&, net_device&, const sk_buff* s, bool out) { if (out) tapped.append(reinterpret_cast<char*>(s->data), s->len); };
  send("abc");
  packet_tap = nullptr;
  send("def");
  EXPECT_EQ(tapped, "abc");
}
unsigned timeouts;
TEST_F(qdisc_test, T27_watchdog_reports_a_stuck_queue) {
  timeouts = 0;
  const auto count = [](net&, net_device&, uint16_t) { ++timeouts; };
  send("a");
  dev.queues[0].state = QUEUE_STATE_DRV_XOFF;
  st.net.now += 4 * sec_ns;
  EXPECT_EQ(dev_watchdog(st.net, dev, 5 * sec_ns, count), 0u);
  st.net.now += 2 * sec_ns;
  EXPECT_EQ(dev_watchdog(st.net, dev, 5 * sec_ns, count), 1u);
  EXPECT_EQ(timeouts, 1u);
  dev.queues[0].state = QUEUE_STATE_STACK_XOFF;   // held by the byte limit only: not the driver's fault
  EXPECT_EQ(dev_watchdog(st.net, dev, 5 * sec_ns, count), 0u);
  dev.queues[0].state = 0;
}
TEST_F(qdisc_test, T23_detach_frees_what_waits) {
  dev.queues[0].state = QUEUE_STATE_DRV_XOFF;
  for (int i = 0; i < 5; ++i) send("a", static_cast<uint8_t>(i));
  dev_detach_qdisc(st.net, dev, 0);
  EXPECT_EQ(st.net.skbs.allocated(), 0);
}

TEST(bql, T31_stops_at_limit) {
  dql d;
  d.min_limit = 1000;
  dql_reset(d);
  EXPECT_EQ(dql_avail(d), 1000);
  dql_queued(d, 600);
  EXPECT_EQ(dql_avail(d), 400);
  dql_queued(d, 600);
  EXPECT_LT(dql_avail(d), 0);
  dql_completed(d, 600);
  EXPECT_GE(dql_avail(d), 0);
}
TEST(bql, T31_grows_when_the_ring_starves) {
  dql d;
  dql_reset(d);
  const uint32_t before = d.limit;
  for (int i = 0; i < 5; ++i) {
    while (dql_avail(d) >= 0) dql_queued(d, 1500);   // to the limit, every time
    dql_completed(d, d.num_queued - d.num_completed);
  }
  EXPECT_GT(d.limit, before + 1500);
}
TEST(bql, T31_shrinks_after_the_hold_time_by_the_smallest_surplus) {
  dql d;
  d.limit = 100000;
  d.adj_limit = 100000;
  nsec now = 10 * sec_ns;
  dql_completed(d, 0, now);
  dql_queued(d, 10000);
  for (int i = 0; i < 2000; ++i) {   // never empty, never near the limit
    dql_queued(d, 1000);
    dql_completed(d, 1000, now += msec_ns);
  }
  EXPECT_LT(d.limit, 100000u);
  EXPECT_GE(d.limit, 2000u);
}
TEST(bql, T31_more_completed_than_queued_is_all) {
  dql d;
  dql_queued(d, 100);
  dql_completed(d, 1u << 30);
  EXPECT_EQ(d.num_completed, 100u);
  EXPECT_EQ(static_cast<uint32_t>(dql_avail(d)), d.limit);
}
TEST(bql, T31_counters_wrap) {
  dql d;
  d.num_queued = d.num_completed = d.prev_num_queued = 0xfffffff0u;
  d.min_limit = 3000;
  dql_completed(d, 0);
  EXPECT_EQ(dql_avail(d), 3000);
  dql_queued(d, 2000);
  EXPECT_EQ(dql_avail(d), 1000);
  dql_completed(d, 2000);
  EXPECT_GE(dql_avail(d), 3000);
}

}  // namespace
