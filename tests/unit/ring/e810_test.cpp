// The software E810: every malformed descriptor is an event and never a crash; offloads for receivers that lack them; nonsense from the peer.
#include <vector>

#include "ring_fixture.hpp"

using namespace ringtest;

namespace {

struct e810 : RingPair {
  void SetUp() override {
    RingPair::SetUp();
    connect();
  }
  uint64_t buf() { return region_frames_off; }
  // Writes raw descriptors at the head of the ring and rings.
  void feed(const std::vector<ice_tx_desc>& d) {
    uint32_t i = t->ring.next_to_use;
    for (const auto& x : d) {
      t->ring.desc[i] = x;
      i = (i + 1) & (ice_tx_count - 1);
    }
    t->ring.next_to_use = i;
    e810_device_run(*t);
  }
  ice_tx_desc data(uint32_t cmd, uint32_t len = 64, uint32_t off = 0, uint32_t tag = 0) { return {buf(), build_ctob(cmd, off, len, tag)}; }
  ice_tx_desc ctx(uint32_t cmd, uint32_t tso_len, uint32_t mss) {
    return {0, TXD_QW1_DTYPE.put(ICE_TX_DESC_DTYPE_CTX) | TXD_CTX_QW1_CMD.put(cmd) | TXD_CTX_QW1_TSO_LEN.put(tso_len) | TXD_CTX_QW1_MSS.put(mss)};
  }
  void expect(mdd want) {
    EXPECT_EQ(t->mdd_reason.load(), want);
    EXPECT_EQ(t->stat_mdd, 1u);
    EXPECT_EQ(t->head, 0u);
    sk_buff* v[1];
    EXPECT_EQ(b->dev().rx_burst(v, 1), 0);
    // The queue stands still until it is reset; then it works again.
    a->dev().start_xmit(a->frame(mac, 60, 1), q, false);
    EXPECT_EQ(b->dev().rx_burst(v, 1), 0);
    a->dev().clean_tx(64);
    EXPECT_FALSE(t->mdd_seen());
    EXPECT_EQ(a->stats.RingMddEvents.load(), 1u);
    ASSERT_EQ(a->dev().start_xmit(a->frame(mac, 60, 2), q, false), xmit::ok);
    ASSERT_EQ(b->dev().rx_burst(v, 1), 1);
    EXPECT_TRUE(check_frame(v[0], 60, 2));
    free_rx(v[0]);
  }
};
constexpr uint32_t last = ICE_TX_DESC_CMD_EOP | ICE_TX_DESC_CMD_RS;
constexpr uint32_t tcp4 = ICE_TX_DESC_CMD_IIPT_IPV4_CSUM | ICE_TX_DESC_CMD_L4T_EOFT_TCP;
constexpr uint32_t off4 = 7 | 5 << 7 | 5 << 14;
}  // namespace

TEST_F(e810, mdd_unknown_descriptor_type) { feed({{buf(), build_ctob(last, 0, 64, 0) | 5}}); expect(mdd::bad_dtype); }
TEST_F(e810, mdd_done_descriptor_again) { feed({{buf(), build_ctob(last, 0, 64, 0) | 15}}); expect(mdd::bad_dtype); }
TEST_F(e810, mdd_reserved_command_bits) { feed({data(last | ICE_TX_DESC_CMD_RSVD)}); expect(mdd::reserved_bits); }
TEST_F(e810, mdd_dummy) { feed({data(last | ICE_TX_DESC_CMD_DUMMY)}); expect(mdd::reserved_bits); }
TEST_F(e810, mdd_tag_without_its_command) { feed({data(last, 64, 0, 77)}); expect(mdd::reserved_bits); }
TEST_F(e810, mdd_reserved_context_bits) { feed({{0, ctx(1, 64, 64).cmd_type_offset_bsz | 1ull << 20}, data(last)}); expect(mdd::reserved_bits); }
TEST_F(e810, mdd_context_with_tunneling) { feed({{1, ctx(1, 64, 64).cmd_type_offset_bsz}, data(last)}); expect(mdd::reserved_bits); }
TEST_F(e810, mdd_context_switch_override) { feed({ctx(ICE_TX_CTX_DESC_SWTCH_UPLINK, 0, 0), data(last)}); expect(mdd::reserved_bits); }
TEST_F(e810, mdd_context_without_data) { feed({ctx(1, 1000, 500)}); expect(mdd::ctx_without_data); }
TEST_F(e810, mdd_two_contexts) { feed({ctx(1, 1000, 500), ctx(1, 1000, 500), data(last)}); expect(mdd::ctx_without_data); }
TEST_F(e810, mdd_context_after_data) { feed({data(0), ctx(1, 1000, 500), data(last)}); expect(mdd::ctx_without_data); }
TEST_F(e810, mdd_zero_length) { feed({data(last, 0)}); expect(mdd::zero_length); }
TEST_F(e810, mdd_address_below_the_frames) { feed({{buf() - 1, build_ctob(last, 0, 64, 0)}}); expect(mdd::address); }
TEST_F(e810, mdd_address_beyond_the_region) { feed({{ra.bytes - 63, build_ctob(last, 0, 64, 0)}}); expect(mdd::address); }
TEST_F(e810, mdd_address_wraps) { feed({{~uint64_t{0} - 10, build_ctob(last, 0, 64, 0)}}); expect(mdd::address); }
TEST_F(e810, mdd_too_many_buffers) { feed({data(0), data(0), data(0), data(0), data(0), data(0), data(0), data(0), data(last)}); expect(mdd::too_many_bufs); }
TEST_F(e810, mdd_too_short) { feed({data(last, 16)}); expect(mdd::too_short); }
TEST_F(e810, mdd_too_long) { feed({data(last, 9729)}); expect(mdd::too_long); }
TEST_F(e810, mdd_no_end_of_packet) { feed({data(0), data(0)}); expect(mdd::no_eop); }
TEST_F(e810, mdd_report_status_inside_a_packet) { feed({data(ICE_TX_DESC_CMD_RS), data(last)}); expect(mdd::rs_without_eop); }
TEST_F(e810, mdd_commands_differ) { feed({data(0), data(last | ICE_TX_DESC_CMD_IIPT_IPV4)}); expect(mdd::cmd_mismatch); }
TEST_F(e810, mdd_offsets_differ) { feed({data(tcp4, 64, off4), data(last | tcp4, 64, off4 + 1)}); expect(mdd::cmd_mismatch); }
TEST_F(e810, mdd_L4_without_L3) { feed({data(last | ICE_TX_DESC_CMD_L4T_EOFT_TCP, 64, off4)}); expect(mdd::header_offsets); }
TEST_F(e810, mdd_short_IP_header) { feed({data(last | tcp4, 64, 7 | 4 << 7 | 5 << 14)}); expect(mdd::header_offsets); }
TEST_F(e810, mdd_short_TCP_header) { feed({data(last | tcp4, 64, 7 | 5 << 7 | 4 << 14)}); expect(mdd::header_offsets); }
TEST_F(e810, mdd_headers_longer_than_the_frame) { feed({data(last | tcp4, 50, off4)}); expect(mdd::header_offsets); }
TEST_F(e810, mdd_SCTP_sum) { feed({data(last | ICE_TX_DESC_CMD_IIPT_IPV4 | ICE_TX_DESC_CMD_L4T_EOFT_SCTP, 64, off4)}); expect(mdd::header_offsets); }
TEST_F(e810, mdd_MSS_below_64) { feed({ctx(1, 946, 63), data(last | tcp4, 1000, off4)}); expect(mdd::tso_mss); }
TEST_F(e810, mdd_MSS_zero) { feed({ctx(1, 946, 0), data(last | tcp4, 1000, off4)}); expect(mdd::tso_mss); }
TEST_F(e810, mdd_MSS_above_9668) { feed({ctx(1, 946, 9669), data(last | tcp4, 1000, off4)}); expect(mdd::tso_mss); }
TEST_F(e810, mdd_TSO_length_wrong) { feed({ctx(1, 945, 500), data(last | tcp4, 1000, off4)}); expect(mdd::tso_len); }
TEST_F(e810, mdd_TSO_without_payload) { feed({ctx(1, 0, 500), data(last | tcp4, 54, off4)}); expect(mdd::tso_len); }
TEST_F(e810, mdd_TSO_of_UDP) {
  feed({ctx(1, 958, 500), data(last | ICE_TX_DESC_CMD_IIPT_IPV4_CSUM | ICE_TX_DESC_CMD_L4T_EOFT_UDP, 1000, 7 | 5 << 7 | 2 << 14)});
  expect(mdd::tso_needs_l4);
}
TEST_F(e810, mdd_TSO_without_L4) { feed({ctx(1, 946, 500), data(last, 1000)}); expect(mdd::tso_needs_l4); }
TEST_F(e810, mdd_TSO_IPv4_without_header_sum) {
  feed({ctx(1, 946, 500), data(last | ICE_TX_DESC_CMD_IIPT_IPV4 | ICE_TX_DESC_CMD_L4T_EOFT_TCP, 1000, off4)});
  expect(mdd::tso_needs_l4);
}
TEST_F(e810, mdd_TSO_header_over_more_than_3_buffers) {
  feed({ctx(1, 1010, 500), data(tcp4, 16, off4), data(tcp4, 16, off4), data(tcp4, 16, off4), data(tcp4, 16, off4), data(last | tcp4, 1000, off4)});
  expect(mdd::tso_header);
}
TEST_F(e810, mdd_TSO_header_above_512) {
  feed({ctx(1, 9000 - 126 - 480 - 20, 500), data(last | tcp4, 9000, 63 | 120 << 7 | 5 << 14)});
  EXPECT_NE(t->mdd_reason.load(), mdd::none);
}
TEST_F(e810, mdd_TSO_above_64KiB) {
  std::vector<ice_tx_desc> d{ctx(1, 5 * 16000 - 54, 9000)};
  for (int i = 0; i < 5; ++i) d.push_back(data(tcp4 | (i == 4 ? last : 0), 16000, off4));
  feed(d);
  expect(mdd::too_long);
}
TEST_F(e810, mdd_TSO_segment_of_more_than_8_buffers) {
  std::vector<ice_tx_desc> d{ctx(1, 12 * 100, 1200), data(tcp4, 54, off4)};
  for (int i = 0; i < 12; ++i) d.push_back(data(tcp4 | (i == 11 ? last : 0), 100, off4));
  feed(d);
  expect(mdd::too_many_bufs);
}
TEST_F(e810, random_descriptors_never_crash) {
  uint64_t x = 88172645463325252ull;
  const auto rnd = [&] { x ^= x << 13; x ^= x >> 7; x ^= x << 17; return x; };
  sk_buff* v[64];
  for (int i = 0; i < 200000; ++i) {
    std::vector<ice_tx_desc> d;
    const int n = 1 + static_cast<int>(rnd() % 4);
    for (int k = 0; k < n; ++k) {
      ice_tx_desc y{rnd() % 2 ? buf() + rnd() % 100000 : rnd(), rnd()};
      if (rnd() % 4) y.cmd_type_offset_bsz &= ~uint64_t{0xffff};
      if (rnd() % 2) y.cmd_type_offset_bsz |= (k == n - 1 ? last : 0) << 4;
      if (rnd() % 8 == 0) y = ctx(1, static_cast<uint32_t>(rnd() % 2000), static_cast<uint32_t>(rnd() % 2000));
      d.push_back(y);
    }
    feed(d);
    for (int k = b->dev().rx_burst(v, 64); k > 0;) free_rx(v[--k]);
    if (t->mdd_seen() || t->ring.next_to_use > 400) e810_txq_reset(*t);
    else if (t->head != t->ring.next_to_use) e810_txq_reset(*t);
  }
  EXPECT_GT(t->stat_mdd, 1000u);
}

TEST_F(e810, a_frame_for_another_address_is_nobodys) {
  const uint8_t other[6] = {2, 0x1c, 9, 9, 9, 9}, all[6] = {255, 255, 255, 255, 255, 255};
  ASSERT_EQ(a->dev().start_xmit(a->frame(other, 60, 1), q, false), xmit::ok);
  sk_buff* v[1];
  EXPECT_EQ(b->dev().rx_burst(v, 1), 0);
  EXPECT_EQ(t->stat_filtered, 1u);
  EXPECT_EQ(a->dev().clean_tx(8), 1);
  ASSERT_EQ(a->dev().start_xmit(a->frame(all, 60, 1), q, false), xmit::ok);
  ASSERT_EQ(b->dev().rx_burst(v, 1), 1);
  free_rx(v[0]);
}

// --- the peer writes nonsense ---------------------------------------------------------------------------------------

TEST_F(e810, posted_address_outside_the_peers_frames_detaches) {
  for (int i = 0; i < 255; ++i) t->rx[i].qw[0] = 4096;
  t->rx_known = t->rx_next;  // nothing learnt yet
  a->dev().start_xmit(a->frame(mac, 60, 1), q, false);
  EXPECT_TRUE(t->peer_bad_seen());
  a->dev().clean_tx(64);
  EXPECT_EQ(a->stats.RingMddEvents.load(), 1u);
  EXPECT_EQ(static_cast<local_port&>(a->dev()).tx_all[q], nullptr);
}
TEST_F(e810, tail_out_of_range_detaches) {
  t->slot->tail = 100000;
  t->rx_known = t->rx_next;
  a->dev().start_xmit(a->frame(mac, 60, 1), q, false);
  EXPECT_TRUE(t->peer_bad_seen());
  a->dev().clean_tx(64);
}
TEST_F(e810, impossible_write_back_detaches_the_sender) {
  for (uint64_t len : {uint64_t{0}, uint64_t{5}, uint64_t{5000}}) {
    std::atomic_ref<uint64_t>(t->rx[0].qw[0]).store(RXD_QW0_PKT_LEN.put(len));
    std::atomic_ref<uint64_t>(t->rx[0].qw[1]).store(ICE_RX_FLEX_DESC_STATUS0_DD | ICE_RX_FLEX_DESC_STATUS0_EOF);
    sk_buff* v[1];
    EXPECT_EQ(b->dev().rx_burst(v, 1), 0);
    EXPECT_EQ(b->stats.RingMddEvents.load(), 1u);
    break;
  }
}
TEST_F(e810, endless_chain_detaches_the_sender) {
  for (int i = 254; i >= 0; --i) {
    t->rx[i].qw[0] = RXD_QW0_PKT_LEN.put(100);
    t->rx[i].qw[1] = ICE_RX_FLEX_DESC_STATUS0_DD;
  }
  sk_buff* v[1];
  EXPECT_EQ(b->dev().rx_burst(v, 1), 0);
  EXPECT_EQ(b->stats.RingMddEvents.load(), 1u);
}

// --- offloads for receivers that lack them --------------------------------------------------------------------------

namespace {
uint32_t ones(const uint8_t* p, uint32_t n, uint32_t s) {
  for (uint32_t i = 0; i < n; ++i) s += i & 1 ? p[i] : p[i] << 8;
  while (s >> 16) s = (s & 0xffff) + (s >> 16);
  return s;
}
bool sums_right(const std::string& f) {
  const auto* ip = reinterpret_cast<const uint8_t*>(f.data()) + 14;
  const uint32_t tot = ip[2] << 8 | ip[3];
  if (tot + 14 != f.size()) return false;
  uint32_t s = ones(ip + 12, 8, 6 + tot - 20);
  return ones(ip + 20, tot - 20, s) == 0xffff;
}
struct e810_plain : RingPair {
  void SetUp() override {
    RingPair::SetUp();
    rx_features = 0;
    connect();
  }
};
}  // namespace

TEST_F(e810_plain, inserts_the_checksum) {
  for (uint32_t n : {0u, 1u, 777u, 8000u}) {
    ASSERT_EQ(a->dev().start_xmit(tcp(n), q, false), xmit::ok);
    sk_buff* v[1];
    ASSERT_EQ(b->dev().rx_burst(v, 1), 1);
    std::string f(v[0]->len, 0);
    skb_copy_bits(v[0], 0, f.data(), v[0]->len);
    EXPECT_TRUE(sums_right(f)) << n;
    free_rx(v[0]);
  }
}

TEST_F(e810_plain, segments_TSO_and_resumes_after_a_pause) {
  const uint32_t payload = 60001, mss = 100;  // 601 segments: more than the receiver ever has buffers
  ASSERT_EQ(a->dev().start_xmit(tcp(payload, mss), q, false), xmit::ok);
  EXPECT_TRUE(t->paused.load());
  uint32_t at = 0, segs = 0;
  sk_buff* v[64];
  for (int i = 0; i < 100 && at < payload; ++i) {
    const int n = b->dev().rx_burst(v, 64);
    for (int k = 0; k < n; ++k, ++segs) {
      std::string f(v[k]->len, 0);
      skb_copy_bits(v[k], 0, f.data(), v[k]->len);
      ASSERT_TRUE(sums_right(f));
      const auto* th = reinterpret_cast<const uint8_t*>(f.data()) + 34;
      EXPECT_EQ(th[4] << 24 | th[5] << 16 | th[6] << 8 | th[7], static_cast<int>(5 + at));
      const uint32_t n1 = static_cast<uint32_t>(f.size()) - 66;
      for (uint32_t o = 0; o < n1; ++o) ASSERT_EQ(static_cast<uint8_t>(f[66 + o]), static_cast<uint8_t>((at + o) * 7));
      at += n1;
      EXPECT_EQ(th[13], at == payload ? 0x19 : 0x10);  // PSH and FIN on the last only
      EXPECT_EQ(v[k]->gso_size, 0);
      free_rx(v[k]);
    }
    a->dev().clean_tx(64);
  }
  EXPECT_EQ(at, payload);
  EXPECT_EQ(segs, 601u);
  EXPECT_EQ(a->n.skbs.allocated(), 0u);
}
