// Software segmentation and checksum for devices that lack them (T26), and the Ethernet step of the way back (T33).
#include <gtest/gtest.h>

#include "net/dev.hpp"
#include "net/gso.hpp"
#include "tests/unit/net/packets.hpp"

using namespace icepath;

namespace {

constexpr unsigned FIN = 1, PSH = 8, ACK = 16, CWR = 0x80;

struct gso_test : ::testing::Test {
  fake_stack st;
  fake_device dev{st.net};

  int send(sk_buff* s, uint16_t mss) {
    s->gso_size = mss;
    s->gso_segs = static_cast<uint16_t>(mss ? (s->len + mss - 1) / mss : 0);
    return dev_queue_xmit(st.net, s);
  }
  sk_buff* v4(const std::string& payload, size_t linear, size_t piece, unsigned flags = ACK) {
    return tcp_frame(st, dev, eth(0x0800) + ipv4({.id = 0xffff}, tcp(0xfffffff0u, flags, "")), payload, linear, piece, 20);
  }
  void TearDown() override {
    dev.clean_tx(1 << 30);
    EXPECT_EQ(st.net.skbs.allocated(), 0);
    st.net.skbs.frames.drain();
    EXPECT_EQ(st.mem.frames.in_use(), 0u) << "frames leaked";
  }
  void expect_segments(const std::string& payload, unsigned mss, unsigned flags, bool v6 = false) {
    const unsigned ipl = v6 ? 40 : 20, hdr = 14 + ipl + 32;
    std::string got;
    ASSERT_EQ(dev.sent.size(), (payload.size() + mss - 1) / mss);
    for (size_t i = 0; i < dev.sent.size(); ++i) {
      const std::string& b = dev.sent[i].bytes;
      const std::string ip = b.substr(14);
      const bool first = i == 0, last = i + 1 == dev.sent.size();
      ASSERT_GT(b.size(), hdr);
      ASSERT_LE(b.size(), hdr + mss);
      EXPECT_EQ(dev.sent[i].gso_size, 0);
      EXPECT_EQ(at32(ip, ipl + 4), 0xfffffff0u + static_cast<uint32_t>(i * mss));   // wraps
      EXPECT_EQ(at8(ip, ipl + 13), flags & ~(last ? 0 : FIN | PSH) & ~(first ? 0 : CWR));
      if (v6) {
        EXPECT_EQ(at16(ip, 4), ip.size() - 40);
      } else {
        EXPECT_EQ(at16(ip, 2), ip.size());
        EXPECT_EQ(at16(ip, 4), (0xffff + i) & 0xffff);
        EXPECT_EQ(ref_sum(ip.substr(0, 20)), 0xffffu);
      }
      if (dev.sent[i].summed == ip_sum::partial) {   // the field holds the pseudo-header's sum
        const std::string pseudo = (v6 ? ip.substr(8, 32) : ip.substr(12, 8)) + b32(6) + b32(static_cast<uint32_t>(ip.size() - ipl));
        EXPECT_EQ(at16(ip, ipl + 16), ref_sum(pseudo));
      } else {
        EXPECT_TRUE(tcp_sum_ok(ip));
      }
      got += b.substr(hdr);
    }
    EXPECT_EQ(got, payload);
  }
};

TEST_F(gso_test, T26_device_with_offload_gets_it_whole) {
  send(v4(bytes(5000), 500, 1500), 1448);
  ASSERT_EQ(dev.sent.size(), 1u);
  EXPECT_EQ(dev.sent[0].gso_size, 1448);
  EXPECT_EQ(dev.sent[0].nr_frags, 3);
}
TEST_F(gso_test, T26_segments_share_fragments_with_sg) {
  dev.features = NETIF_F_SG | NETIF_F_IP_CSUM;
  const std::string p = bytes(20001);
  send(v4(p, 333, 2100, FIN | PSH | ACK | CWR), 1448);
  expect_segments(p, 1448, FIN | PSH | ACK | CWR);
  EXPECT_GT(dev.sent[1].nr_frags, 0);
  EXPECT_EQ(dev.sent[0].summed, ip_sum::partial);
}
TEST_F(gso_test, T26_segments_copy_without_sg_and_are_summed_without_csum) {
  dev.features = 0;
  const std::string p = bytes(9999);
  send(v4(p, 0, 1001), 1448);   // odd pieces: sums over odd boundaries
  expect_segments(p, 1448, ACK);
  for (auto& s : dev.sent) EXPECT_EQ(s.nr_frags, 0);
}
TEST_F(gso_test, T26_sums_over_shared_odd_fragments) {
  dev.features = NETIF_F_SG;
  const std::string p = bytes(7777);
  send(v4(p, 101, 777), 1333);
  expect_segments(p, 1333, ACK);
  for (auto& s : dev.sent) EXPECT_EQ(s.summed, ip_sum::none);
}
TEST_F(gso_test, T26_ipv6) {
  dev.features = NETIF_F_SG;
  const std::string p = bytes(5000);
  send(tcp_frame(st, dev, eth(0x86dd) + ipv6(tcp(0xfffffff0u, ACK | PSH, "")), p, 10, 999, 40), 1428);
  expect_segments(p, 1428, ACK | PSH, true);
}
TEST_F(gso_test, T26_payload_of_one_segment) {
  dev.features = NETIF_F_SG;
  const std::string p = bytes(100);
  send(v4(p, 100, 100), 1448);
  expect_segments(p, 1448, ACK);
}
TEST_F(gso_test, T26_larger_than_the_device_takes) {
  dev.gso_max_size = 4000;
  const std::string p = bytes(6000);
  send(v4(p, 0, 2000), 1448);
  expect_segments(p, 1448, ACK);
}
TEST_F(gso_test, T26_checksum_of_one_packet) {
  dev.features = NETIF_F_SG;
  send(v4(bytes(301), 100, 67), 0);
  ASSERT_EQ(dev.sent.size(), 1u);
  EXPECT_TRUE(tcp_sum_ok(dev.sent[0].bytes.substr(14)));
}
TEST_F(gso_test, T26_linearize) {
  dev.features = NETIF_F_IP_CSUM;
  const std::string p = bytes(1400);
  send(v4(p, 100, 333), 0);
  ASSERT_EQ(dev.sent.size(), 1u);
  EXPECT_EQ(dev.sent[0].nr_frags, 0);
  EXPECT_EQ(dev.sent[0].bytes.substr(66), p);
}
TEST_F(gso_test, T26_what_cannot_be_linear_is_dropped_and_counted) {
  dev.features = NETIF_F_IP_CSUM;
  EXPECT_EQ(send(v4(bytes(8000), 0, 2000), 0), 0);
  EXPECT_EQ(dev.started, 0);
  EXPECT_EQ(dev.tx_dropped, 1u);
}
int destroyed;
TEST_F(gso_test, T26_charge_moves_to_the_last_segment) {
  dev.features = NETIF_F_SG;
  destroyed = 0;
  sk_buff* s = v4(bytes(4000), 0, 1000);
  s->destructor = [](sk_buff* d) { ++destroyed; EXPECT_EQ(d->truesize, 12345u); };
  s->truesize = 12345;
  send(s, 1448);
  ASSERT_EQ(dev.sent.size(), 3u);
  dev.clean_tx(2);
  EXPECT_EQ(destroyed, 0);
  dev.clean_tx(1);
  EXPECT_EQ(destroyed, 1);
}
TEST_F(gso_test, T26_busy_in_the_middle_of_segments_keeps_order) {
  dev.features = NETIF_F_SG;
  dev.room = 2;
  const std::string p = bytes(10000);
  send(v4(p, 0, 1000), 1448);
  for (int i = 0; i < 20; ++i) dev.clean_tx(1);
  expect_segments(p, 1448, ACK);
}
TEST_F(gso_test, T26_no_memory_drops_whole) {
  dev.features = NETIF_F_SG;
  std::vector<uint8_t*> held;
  sk_buff* s = v4(bytes(4000), 0, 1000);
  while (uint8_t* f = st.net.skbs.frames.alloc()) held.push_back(f);
  EXPECT_EQ(send(s, 1448), 0);
  EXPECT_EQ(dev.started, 0);
  EXPECT_EQ(dev.tx_dropped, 1u);
  for (uint8_t* f : held) st.net.skbs.frames.put(f);
}
TEST_F(gso_test, T26_nonsense_headers_are_dropped) {
  dev.features = 0;
  sk_buff* s = v4(bytes(100), 100, 1);
  s->transport()[12] = static_cast<uint8_t>(15 << 4);
  s->len = 14 + 20 + 32;   // data offset past the end
  EXPECT_EQ(send(s, 10), 0);
  EXPECT_EQ(dev.started, 0);
}
TEST_F(gso_test, T26_vlan_tag_in_software) {
  dev.features = NETIF_F_SG | NETIF_F_IP_CSUM;
  sk_buff* s = v4(bytes(10), 10, 1);
  s->vlan_present = 1;
  s->vlan_tci = 0x2064;
  send(s, 0);
  ASSERT_EQ(dev.sent.size(), 1u);
  EXPECT_EQ(dev.sent[0].bytes.substr(0, 18), eth(0x8100) + b16(0x2064) + b16(0x0800));
}

std::string taken;
TEST(input, T33_ethernet_type_and_address) {
  fake_stack st;
  fake_device dev(st.net);
  static struct net* n;
  n = &st.net;
  ASSERT_TRUE(dev_add_pack(0x88b5, [](net&, sk_buff* s) { taken.assign(reinterpret_cast<char*>(s->data), s->len); n->skbs.free(s); }));
  const auto receive = [&](const std::string& f) {
    taken = "-";
    sk_buff* s = st.packet(f);
    s->dev = &dev;
    netif_receive_skb(st.net, s);
    return taken;
  };
  EXPECT_EQ(receive(eth(0x88b5) + "hello"), "hello");
  EXPECT_EQ(dev.rx_dropped, 0u);
  EXPECT_EQ(receive(eth(0x88b6) + "hello"), "-");                     // nobody takes this type
  EXPECT_EQ(receive("\x03" + eth(0x88b5).substr(1) + "hello"), "-");  // not to us
  EXPECT_EQ(receive(eth(0x88b5).substr(0, 13)), "-");                 // shorter than a header
  EXPECT_EQ(dev.rx_dropped, 3u);
  EXPECT_EQ(st.net.skbs.allocated(), 0);
}

}  // namespace
