// The local port end to end: two stacks, or one, exchanging frames through start_xmit, doorbell, device model and rx_burst.
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "fake_region.hpp"

using namespace ringtest;

namespace {
struct LocalPort : testing::Test {
  region ra, rb;
  std::unique_ptr<host> a, b;
  uint16_t q = 0;
  uint8_t mac[6];
  void SetUp() override {
    fake_init();
    fake_open(ra, 1, 8192);
    fake_open(rb, 2, 8192);
    a = std::make_unique<host>(ra, 0);
    b = std::make_unique<host>(rb, 3);
  }
  void TearDown() override {
    for (auto* h : {a.get(), b.get()}) {
      if (h) h->dev().clean_tx(1000);
    }
    if (a) for (int i = 0; i < 2; ++i) { sk_buff* v[64]; const int k = a->dev().rx_burst(v, 64); for (int j = 0; j < k; ++j) a->n.skbs.free(v[j]); }
    if (a && b) {
      local_port_detach(a->port, b->id());
      local_port_detach(b->port, a->id());
      sk_buff* v[64];
      for (int i = 0; i < 40; ++i)
        for (auto* h : {a.get(), b.get()}) {
          const int k = h->dev().rx_burst(v, 64);
          for (int j = 0; j < k; ++j) h->n.skbs.free(v[j]);
        }
      EXPECT_EQ(a->n.skbs.allocated(), 0u);
      EXPECT_EQ(b->n.skbs.allocated(), 0u);
      EXPECT_EQ(a->held(), 0u);
      EXPECT_EQ(b->held(), 0u);
      EXPECT_EQ(local_port_peers(a->port), 0u);
    }
    a.reset();
    b.reset();
    EXPECT_EQ(rings_out, 0);
    fake_close(ra);
    fake_close(rb);
  }
};
}  // namespace

TEST_F(LocalPort, frame_crosses) {
  ASSERT_TRUE(join(*a, *b, &q, mac));
  EXPECT_EQ(0, memcmp(mac, local_port_mac(b->port), 6));
  for (uint32_t i = 0; i < 2000; ++i) {
    ASSERT_EQ(a->dev().start_xmit(a->frame(mac, 64, i), q, false), xmit::ok);
    sk_buff* v[4];
    ASSERT_EQ(b->dev().rx_burst(v, 4), 1);
    EXPECT_TRUE(check_frame(v[0], 64, i));
    b->n.skbs.free(v[0]);
    EXPECT_EQ(a->dev().clean_tx(64), 1);
  }
  EXPECT_EQ(a->n.skbs.allocated(), 0u);
  EXPECT_EQ(a->dev().tx_packets, 2000u);
}

TEST_F(LocalPort, both_directions_become_ready_together) {
  ASSERT_TRUE(join(*a, *b, &q, mac));
  uint16_t q2;
  uint8_t m2[6];
  EXPECT_EQ(local_port_attach(b->port, a->id(), &q2, m2), attach::ready);  // a answered b's claim when it saw its own was ready
  EXPECT_EQ(0, memcmp(m2, local_port_mac(a->port), 6));
}

TEST_F(LocalPort, self_queue_needs_nobody_else) {
  ASSERT_EQ(local_port_attach(a->port, a->id(), &q, mac), attach::ready);
  ASSERT_EQ(a->dev().start_xmit(a->frame(mac, 3000, 9), q, false), xmit::ok);
  sk_buff* v[4];
  ASSERT_EQ(a->dev().rx_burst(v, 4), 1);
  EXPECT_TRUE(check_frame(v[0], 3000, 9));
  a->n.skbs.free(v[0]);
  EXPECT_EQ(a->dev().clean_tx(64), 1);
  local_port_detach(a->port, a->id());
}

TEST_F(LocalPort, paused_queue_loses_nothing_under_random_schedules) {
  ASSERT_TRUE(join(*a, *b, &q, mac));
  std::mt19937 rng(7);
  uint32_t sent = 0, got = 0;
  const auto size = [](uint32_t i) { return 46 + (i * 2654435761u) % 8800; };
  const uint32_t total = 20000;
  while (got < total) {
    switch (rng() % 4) {
      case 0:
      case 1:
        for (unsigned k = rng() % 60; k-- && sent < total && !a->dev().txq[q].state.load();) {
          sk_buff* s = a->frame(mac, size(sent), sent);
          ASSERT_TRUE(s);
          const xmit r = a->dev().start_xmit(s, q, rng() % 2);
          if (r == xmit::busy) {
            a->n.skbs.free(s);
            break;
          }
          ASSERT_EQ(r, xmit::ok);
          ++sent;
        }
        break;
      case 2: {
        sk_buff* v[64];
        const int n = b->dev().rx_burst(v, static_cast<int>(rng() % 64));
        for (int k = 0; k < n; ++k, ++got) {
          ASSERT_TRUE(check_frame(v[k], size(got), got)) << got;
          b->n.skbs.free(v[k]);
        }
        break;
      }
      case 3:
        a->dev().clean_tx(64);
        if (sent == total || rng() % 8 == 0) {  // something that rings
          sk_buff* s = sent < total && !a->dev().txq[q].state.load() ? a->frame(mac, size(sent), sent) : nullptr;
          if (s && a->dev().start_xmit(s, q, false) == xmit::ok) ++sent;
          else if (s) a->n.skbs.free(s);
          else if (sent == total && got < total && !a->dev().txq[q].state.load()) {
            const uint8_t nobody[6] = {2, 9, 9, 9, 9, 9};
            sk_buff* t = a->frame(nobody, 60, 0);   // filtered by the switch, but a doorbell
            if (a->dev().start_xmit(t, q, false) == xmit::busy) a->n.skbs.free(t);
          }
        }
        break;
    }
  }
  EXPECT_EQ(a->dev().tx_dropped, 0u);
  EXPECT_GT(a->stats.RingPaused.load(), 0u);
}
