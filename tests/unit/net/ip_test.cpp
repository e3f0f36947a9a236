// Rules of IPv4 output, routes and neighbours (T17-T21) and of IPv4 input (T33).
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "ip/ip.hpp"
#include "net/dev.hpp"
#include "tests/unit/net/packets.hpp"

using namespace icepath;

namespace {

const inet_addr us = inet_addr::v4(0x0a000001), them = inet_addr::v4(0x0a000002);
const uint8_t their_mac[6] = {2, 0, 0, 0, 0, 0x22};
int solicited;
int reported;

struct ip_test : ::testing::Test {
  fake_stack st;
  fake_device dev{st.net, 3};
  net& n = st.net;
  inet_addr gateway{{0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0x22}};   // IPv4 by an IPv6 gateway (T20)
  neighbour* nb = neigh_create(n, &dev, gateway);
  dst_entry* d = ip_route_via(n, &dev, nb, 0);
  ip_params p{us, them, 0x10, 64, 6, true};

  void SetUp() override {
    solicited = reported = 0;
    neigh_solicit = nullptr;
    neigh_error_report = nullptr;
    ip_fib_lookup = nullptr;
  }
  void TearDown() override {
    neigh_solicit = nullptr;
    neigh_error_report = nullptr;
    ip_fib_lookup = nullptr;
    dev.clean_tx(1 << 30);
    if (d) dst_release(n, d);
    neigh_release(n, nb);
    dev.clean_tx(1 << 30);
    EXPECT_EQ(n.skbs.allocated(), 0);
    EXPECT_EQ(neigh_lookup(n, &dev, gateway), nullptr) << "a reference leaked";
  }
  sk_buff* segment(size_t payload = 10) {
    sk_buff* s = st.packet(tcp(1, 16, bytes(payload)));
    s->transport_header = s->mac_header;
    s->ip_summed = ip_sum::partial;
    s->csum_start = s->transport_header;
    s->csum_offset = 16;
    return s;
  }
  int send(size_t payload = 10) { return ip_queue_xmit(n, d, p, segment(payload)); }
  void up() { neigh_update(n, nb, nud::permanent, their_mac); }
};

TEST_F(ip_test, T17_header) {
  up();
  nb->txq = 2;
  n.ip_id = 0x1233;
  EXPECT_EQ(send(), 0);
  EXPECT_EQ(send(), 0);
  ASSERT_EQ(dev.sent.size(), 2u);
  const std::string& b = dev.sent[0].bytes;
  EXPECT_EQ(b.substr(0, 14), std::string("\x02\0\0\0\0\x22\x02\0\0\0\0\x01\x08\x00", 14));
  const std::string ip = b.substr(14);
  EXPECT_EQ(at8(ip, 0), 0x45u);
  EXPECT_EQ(at8(ip, 1), 0x10u);
  EXPECT_EQ(at16(ip, 2), ip.size());
  EXPECT_EQ(at16(ip, 4), 0x1233u);
  EXPECT_EQ(at16(dev.sent[1].bytes, 14 + 4), 0x1234u);
  EXPECT_EQ(at16(ip, 6), 0x4000u);
  EXPECT_EQ(at8(ip, 8), 64u);
  EXPECT_EQ(at8(ip, 9), 6u);
  EXPECT_EQ(ref_sum(ip.substr(0, 20)), 0xffffu);
  EXPECT_EQ(at32(ip, 12), 0x0a000001u);
  EXPECT_EQ(at32(ip, 16), 0x0a000002u);
  EXPECT_EQ(at16(ip, 20 + 16), ref_sum(ip.substr(12, 8) + b32(6) + b32(42)));   // pseudo-header sum for the device
  EXPECT_EQ(dev.sent[0].txq, 2);
  EXPECT_EQ(dev.sent[0].priority, 6);   // TOS low delay: TC_PRIO_INTERACTIVE
}
TEST_F(ip_test, T17_id_leaves_room_for_every_segment) {
  up();
  n.ip_id = 100;
  sk_buff* s = segment(3000);
  s->gso_size = 1000;
  s->gso_segs = 3;
  EXPECT_EQ(ip_queue_xmit(n, d, p, s), 0);
  EXPECT_EQ(n.ip_id, 103);
}
TEST_F(ip_test, T17_no_route_is_EHOSTUNREACH_and_counted) {
  EXPECT_EQ(ip_queue_xmit(n, nullptr, p, segment()), -EHOSTUNREACH);
  EXPECT_EQ(st.get(st.stats.IpOutNoRoutes), 1u);
}
ip_test* self;
bool fib(net&, const inet_addr& daddr, const inet_addr&, fib_result& out) {
  if (!(daddr == them)) return false;
  ++self->nb->refcnt;
  out = {&self->dev, self->nb, 1400};
  return true;
}
TEST_F(ip_test, T17_route_is_valid_until_the_generation_changes) {
  up();
  self = this;
  ip_fib_lookup = fib;
  dst_entry* r = ip_route_output(n, them, us);
  ASSERT_NE(r, nullptr);
  EXPECT_EQ(r->mtu, 1400u);
  EXPECT_TRUE(dst_valid(r));
  ++ip_route_generation;
  EXPECT_FALSE(dst_valid(r));
  EXPECT_TRUE(dst_valid(d));             // made by ip_route_via: not the table's
  EXPECT_EQ(ip_queue_xmit(n, r, p, segment()), 0);   // looked up again
  ip_fib_lookup = nullptr;
  EXPECT_EQ(ip_queue_xmit(n, r, p, segment()), -EHOSTUNREACH);
  EXPECT_EQ(ip_route_output(n, us, us), nullptr);
  dst_release(n, r);
}
TEST_F(ip_test, T18_down_device_is_ENETDOWN) {
  up();
  dev.up = false;
  EXPECT_EQ(send(), -ENETDOWN);
}
TEST_F(ip_test, T19_mtu) {
  up();
  EXPECT_EQ(send(1500 - 20 - 32), 0);
  EXPECT_EQ(send(1500 - 20 - 32 + 1), -EMSGSIZE);
  EXPECT_EQ(st.get(st.stats.IpOutFragFails), 1u);
}
TEST_F(ip_test, T19_mtu_counts_for_each_segment_of_gso) {
  up();
  for (unsigned mss : {1448u, 1449u}) {
    sk_buff* s = segment(3000);
    s->gso_size = static_cast<uint16_t>(mss);
    s->gso_segs = 3;
    EXPECT_EQ(ip_queue_xmit(n, d, p, s), mss == 1448 ? 0 : -EMSGSIZE);
  }
}
TEST_F(ip_test, T20_no_headroom_is_ENOBUFS) {
  up();
  sk_buff* s = segment();
  s->data = s->head + 30;
  EXPECT_EQ(ip_queue_xmit(n, d, p, s), -ENOBUFS);
}
TEST_F(ip_test, T21_unresolved_waits_and_is_sent_in_order) {
  neigh_solicit = [](net&, neighbour*) { ++solicited; return 0; };
  n.ip_id = 1;
  for (int i = 0; i < 3; ++i) EXPECT_EQ(send(), 0);
  EXPECT_EQ(dev.started, 0);
  EXPECT_EQ(solicited, 1);
  neigh_update(n, nb, nud::reachable, their_mac);
  ASSERT_EQ(dev.sent.size(), 3u);
  for (unsigned i = 0; i < 3; ++i) EXPECT_EQ(at16(dev.sent[i].bytes, 14 + 4), i + 1);
}
TEST_F(ip_test, T21_waiting_is_bounded_the_oldest_gives_way) {
  neigh_solicit = [](net&, neighbour*) { return 0; };
  n.ip_id = 0;
  for (int i = 0; i < 100; ++i) EXPECT_EQ(send(), 0);
  EXPECT_EQ(nb->arp_queue.qlen, 64u);
  neigh_update(n, nb, nud::reachable, their_mac);
  ASSERT_EQ(dev.sent.size(), 64u);
  EXPECT_EQ(at16(dev.sent[0].bytes, 14 + 4), 36u);
}
TEST_F(ip_test, T21_failure_is_EHOSTUNREACH_and_asked_again_later) {
  neigh_solicit = [](net&, neighbour*) { ++solicited; return 0; };
  neigh_error_report = [](net&, neighbour*, sk_buff*) { ++reported; };
  EXPECT_EQ(send(), 0);
  EXPECT_EQ(send(), 0);
  neigh_update(n, nb, nud::failed, nullptr);
  EXPECT_EQ(reported, 2);
  EXPECT_EQ(send(), -EHOSTUNREACH);
  EXPECT_EQ(solicited, 1);
  n.now += 2 * sec_ns;
  EXPECT_EQ(send(), 0);
  EXPECT_EQ(solicited, 2);
}
TEST_F(ip_test, T21_nobody_to_ask_fails_at_once) {
  EXPECT_EQ(send(), -EHOSTUNREACH);
  EXPECT_EQ(nb->nud_state, nud::failed);
}
TEST_F(ip_test, T21_answer_inside_the_question) {
  neigh_solicit = [](net& n, neighbour* b) { neigh_update(n, b, nud::reachable, their_mac); return 0; };
  EXPECT_EQ(send(), 0);
  EXPECT_EQ(dev.sent.size(), 1u);
}
TEST_F(ip_test, T21_address_lost_is_not_used) {
  up();
  neigh_update(n, nb, nud::failed, nullptr);
  EXPECT_EQ(send(), -EHOSTUNREACH);
  EXPECT_EQ(dev.started, 0);
}
TEST_F(ip_test, T21_table_finds_by_device_and_key) {
  fake_device other(n);
  EXPECT_EQ(neigh_create(n, &dev, gateway), nb);
  EXPECT_EQ(neigh_lookup(n, &other, gateway), nullptr);
  EXPECT_EQ(nb->refcnt, 3u);
  neigh_release(n, nb);
}
TEST_F(ip_test, T21_header_cache_is_never_torn) {
  std::atomic<bool> stop{false};
  const uint8_t a[6] = {2, 1, 1, 1, 1, 1}, b[6] = {4, 9, 9, 9, 9, 9};
  neigh_hh_update(nb, a);
  std::thread writer([&] { for (int i = 0; !stop; ++i) neigh_hh_update(nb, i & 1 ? a : b); });
  for (int i = 0; i < 200000; ++i) {
    uint8_t got[16];
    ASSERT_TRUE(hh_copy(nb->hh, got));
    ASSERT_TRUE(!std::memcmp(got + 2, a, 6) || !std::memcmp(got + 2, b, 6));
  }
  stop = true;
  writer.join();
}

// ---- input

std::string delivered;
uint32_t net_off;
struct ip_rcv_test : ::testing::Test {
  fake_stack st;
  fake_device dev{st.net};
  void SetUp() override {
    inet_add_protocol(6, [](net& n, sk_buff* s) {
      delivered.assign(s->len, '\0');
      skb_copy_bits(s, 0, delivered.data(), s->len);
      net_off = static_cast<uint32_t>(s->data - s->network());
      n.skbs.free(s);
    });
  }
  void TearDown() override { EXPECT_EQ(st.net.skbs.allocated(), 0); }
  std::string rx(const std::string& ip) {
    delivered = "-";
    sk_buff* s = st.packet(eth(0x0800) + ip);
    s->dev = &dev;
    netif_receive_skb(st.net, s);
    return delivered;
  }
  uint64_t in(std::atomic<uint64_t> mib::*c) { return st.get(st.stats.*c); }
};

TEST_F(ip_rcv_test, T33_good_packet_is_delivered) {
  EXPECT_EQ(rx(ipv4({}, "segment")), "segment");
  EXPECT_EQ(net_off, 20u);
  EXPECT_EQ(in(&mib::IpInReceives), 1u);
  EXPECT_EQ(in(&mib::IpInDelivers), 1u);
}
TEST_F(ip_rcv_test, T33_link_padding_is_trimmed) { EXPECT_EQ(rx(ipv4({}, "segment") + std::string(20, 'P')), "segment"); }
TEST_F(ip_rcv_test, T33_options) {
  EXPECT_EQ(rx(ipv4({.options = std::string("\x01\x01\x01\x00", 4)}, "x")), "x");
  EXPECT_EQ(net_off, 24u);
  EXPECT_EQ(rx(ipv4({.options = std::string("\x83\x07\x04\x01\x02\x03\x04\x00", 8)}, "x")), "-");   // loose source route
  EXPECT_EQ(rx(ipv4({.options = std::string("\x44\x09\x00\x00", 4)}, "x")), "-");                   // longer than the header
  EXPECT_EQ(rx(ipv4({.options = std::string("\x44\x01\x00\x00", 4)}, "x")), "-");                   // no length at all
  EXPECT_EQ(in(&mib::IpInHdrErrors), 3u);
}
TEST_F(ip_rcv_test, T33_bad_headers_are_counted_by_reason) {
  EXPECT_EQ(rx(ipv4({.bad_sum = true}, "x")), "-");
  EXPECT_EQ(in(&mib::IpInCsumErrors), 1u);
  EXPECT_EQ(rx(ipv4({.ver = 6}, "x")), "-");
  EXPECT_EQ(rx(ipv4({.tot_len = 19}, "x")), "-");
  std::string short_ihl = ipv4({}, "x");
  short_ihl[0] = 0x44;
  EXPECT_EQ(rx(short_ihl), "-");
  EXPECT_EQ(in(&mib::IpInHdrErrors), 4u);
  EXPECT_EQ(rx(ipv4({.tot_len = 22}, "x")), "-");                   // longer than the frame
  EXPECT_EQ(rx(ipv4({}, "").substr(0, 19)), "-");
  EXPECT_EQ(rx(""), "-");
  std::string long_ihl = ipv4({}, "");
  long_ihl[0] = 0x4f;                                               // header longer than the frame
  EXPECT_EQ(rx(long_ihl), "-");
  EXPECT_EQ(in(&mib::IpInTruncatedPkts), 4u);
  EXPECT_EQ(in(&mib::IpInDelivers), 0u);
}
TEST_F(ip_rcv_test, T33_addresses_that_cannot_be) {
  for (uint32_t s : {0xe0000001u, 0xffffffffu, 0u, 0xf0000001u}) EXPECT_EQ(rx(ipv4({.saddr = s}, "x")), "-");
  for (uint32_t t : {0xe0000001u, 0xffffffffu, 0u}) EXPECT_EQ(rx(ipv4({.daddr = t}, "x")), "-");
  EXPECT_EQ(in(&mib::IpInAddrErrors), 7u);
  EXPECT_EQ(rx(ipv4({.saddr = 0x7f000001, .daddr = 0x7f000001}, "x")), "x");   // the local port carries loopback connections
}
TEST_F(ip_rcv_test, T33_fragments_are_dropped_with_a_reason) {
  EXPECT_EQ(rx(ipv4({.frag = 0x2000}, "x")), "-");
  EXPECT_EQ(rx(ipv4({.frag = 0x0007}, "x")), "-");
  EXPECT_EQ(in(&mib::IpReasmFails), 2u);
}
TEST_F(ip_rcv_test, T33_protocol_nobody_takes) {
  EXPECT_EQ(rx(ipv4({.proto = 99}, "x")), "-");
  EXPECT_EQ(in(&mib::IpInUnknownProtos), 1u);
}
TEST_F(ip_rcv_test, T33_header_in_fragments) {
  const std::string ip = ipv4({.options = std::string("\x01\x01\x01\x00", 4)}, "spread");
  delivered = "-";
  sk_buff* s = st.packet(eth(0x0800) + ip.substr(0, 3));
  s->dev = &dev;
  for (size_t off = 3; off < ip.size(); off += 7) {
    const size_t k = std::min<size_t>(7, ip.size() - off);
    uint8_t* f = st.net.skbs.frames.alloc();
    std::memcpy(f, ip.data() + off, k);
    s->frags[s->nr_frags++] = {f, static_cast<uint32_t>(k)};
    s->len += static_cast<uint32_t>(k);
    s->data_len += static_cast<uint32_t>(k);
  }
  netif_receive_skb(st.net, s);
  EXPECT_EQ(delivered, "spread");
}
TEST_F(ip_rcv_test, T33_any_bytes_are_survived) {
  uint64_t seed = 7;
  for (int i = 0; i < 20000; ++i) {
    std::string b = ipv4({}, bytes(seed % 60));
    const unsigned flips = seed % 4 + 1;
    for (unsigned k = 0; k < flips; ++k) {
      seed = hash_mix(seed + k);
      b[seed % b.size()] = static_cast<char>(seed >> 32);
    }
    seed = hash_mix(seed + 99);
    b.resize(b.size() - (seed % 3 ? 0 : (seed >> 8) % b.size()));
    rx(b);
  }
  EXPECT_EQ(in(&mib::IpInReceives), 20000u);
}

}  // namespace
