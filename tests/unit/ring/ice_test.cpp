// The driver's rules, by the descriptors it writes (TXPATH T28-T33). The device is held off where the descriptors are looked at.
#include "ring_fixture.hpp"

using namespace ringtest;

namespace {
int bells;
struct ice : RingPair {
  void SetUp() override {
    RingPair::SetUp();
    connect();
    bells = 0;
  }
  void hold() { ring().doorbell = [](ice_tx_ring*) { ++bells; }; }
  void go() { ring().doorbell = e810_doorbell; e810_device_run(*t); }
  uint32_t cmd(uint32_t i) { return TXD_QW1_CMD.get(desc(i).cmd_type_offset_bsz); }
  uint32_t size(uint32_t i) { return TXD_QW1_TX_BUF_SZ.get(desc(i).cmd_type_offset_bsz); }
};
}  // namespace

TEST_F(ice, T28_pads_to_17_bytes) {
  hold();
  sk_buff* s = a->n.skbs.alloc();
  std::memset(skb_put(s, 14), 0xff, 14);
  std::memset(s->tail(), 0xee, 8);
  ASSERT_EQ(a->dev().start_xmit(s, q, false), xmit::ok);
  EXPECT_EQ(size(0), 17u);
  EXPECT_EQ(s->data[14] | s->data[15] | s->data[16], 0);
  go();
}

TEST_F(ice, T28_pads_a_fragment_inside_its_frame_only) {
  hold();
  sk_buff* s = a->n.skbs.alloc();
  skb_put(s, 14);
  uint8_t* f = a->n.skbs.frames.alloc();
  s->frags[s->nr_frags++] = {f + frame_size - 1, 1};
  s->len += 1;
  s->data_len += 1;
  EXPECT_EQ(a->dev().start_xmit(s, q, false), xmit::drop);
  EXPECT_EQ(a->dev().clean_tx(8), 0);
  EXPECT_EQ(a->dev().tx_dropped, 1u);
}

TEST_F(ice, T29_context_descriptor_stands_before_data) {
  hold();
  ASSERT_EQ(a->dev().start_xmit(tcp(30000, 1448), q, false), xmit::ok);
  const uint64_t c = desc(0).cmd_type_offset_bsz;
  EXPECT_EQ(TXD_QW1_DTYPE.get(c), ICE_TX_DESC_DTYPE_CTX);
  EXPECT_EQ(TXD_CTX_QW1_CMD.get(c), ICE_TX_CTX_DESC_TSO);
  EXPECT_EQ(TXD_CTX_QW1_MSS.get(c), 1448u);
  EXPECT_EQ(TXD_CTX_QW1_TSO_LEN.get(c), 30000u);
  EXPECT_EQ(c & TXD_CTX_QW1_RSVD, 0u);
  EXPECT_EQ(TXD_QW1_DTYPE.get(desc(1).cmd_type_offset_bsz), ICE_TX_DESC_DTYPE_DATA);
  EXPECT_EQ(cmd(1), ICE_TX_DESC_CMD_IIPT_IPV4_CSUM | ICE_TX_DESC_CMD_L4T_EOFT_TCP);
  EXPECT_EQ(ring().next_to_use, 1u + 1 + 8);
  go();
  sk_buff* v[2];
  ASSERT_EQ(b->dev().rx_burst(v, 2), 1);
  free_rx(v[0]);
}

TEST_F(ice, T29_checksum_offsets_in_words_and_dwords) {
  hold();
  ASSERT_EQ(a->dev().start_xmit(tcp(10), q, false), xmit::ok);
  const uint32_t off = TXD_QW1_OFFSET.get(desc(0).cmd_type_offset_bsz);
  EXPECT_EQ(TXD_OFFSET_MACLEN.get(off), 7u);
  EXPECT_EQ(TXD_OFFSET_IPLEN.get(off), 5u);
  EXPECT_EQ(TXD_OFFSET_L4_LEN.get(off), 8u);
  EXPECT_EQ(cmd(0), ICE_TX_DESC_CMD_IIPT_IPV4 | ICE_TX_DESC_CMD_L4T_EOFT_TCP);
  go();
}

TEST_F(ice, T29_vlan_tag_in_the_descriptor_and_back) {
  for (uint16_t tci : {uint16_t{0x6123}, uint16_t{0}}) {
    sk_buff* s = a->frame(mac, 60, 1);
    s->vlan_present = 1;
    s->vlan_tci = tci;
    ASSERT_EQ(a->dev().start_xmit(s, q, false), xmit::ok);
    sk_buff* v[1];
    ASSERT_EQ(b->dev().rx_burst(v, 1), 1);
    EXPECT_TRUE(v[0]->vlan_present);
    EXPECT_EQ(v[0]->vlan_tci, tci);
    free_rx(v[0]);
  }
}

TEST_F(ice, T29_linearizes_past_8_buffers) {
  sk_buff* s = tcp(1700, 0, 100);  // 17 fragments
  EXPECT_TRUE(ice_chk_linearize(s, ice_xmit_desc_count(s)));
  ASSERT_EQ(a->dev().start_xmit(s, q, false), xmit::ok);
  EXPECT_EQ(ring().stat_linearize, 1u);
  EXPECT_EQ(ring().next_to_use, 2u);
  sk_buff* v[1];
  ASSERT_EQ(b->dev().rx_burst(v, 1), 1);
  uint8_t d[1700];
  skb_copy_bits(v[0], 66, d, 1700);
  for (uint32_t i = 0; i < 1700; ++i) ASSERT_EQ(d[i], static_cast<uint8_t>(i * 7));
  free_rx(v[0]);
}

TEST_F(ice, T29_linearizes_a_TSO_window_of_more_than_8_buffers) {
  sk_buff* s = tcp(1700, 1448, 100);
  EXPECT_TRUE(ice_chk_linearize(s, ice_xmit_desc_count(s)));
  ASSERT_EQ(a->dev().start_xmit(s, q, false), xmit::ok);
  EXPECT_FALSE(t->mdd_seen());
  s = tcp(65000, 8948);
  EXPECT_FALSE(ice_chk_linearize(s, ice_xmit_desc_count(s)));
  ASSERT_EQ(a->dev().start_xmit(s, q, false), xmit::ok);
  EXPECT_FALSE(t->mdd_seen());
  sk_buff* v[2];
  ASSERT_EQ(b->dev().rx_burst(v, 2), 2);
  EXPECT_EQ(v[1]->gso_size, 8948);
  EXPECT_EQ(v[1]->gso_segs, 8);
  free_rx(v[0]);
  free_rx(v[1]);
}

TEST_F(ice, T29_busy_with_4_plus_1_gap_and_nothing_changed) {
  hold();
  ring().dql.min_limit = ring().dql.max_limit;
  dql_reset(ring().dql);
  uint32_t n = 0;
  sk_buff* s;
  for (;; ++n) {
    s = a->frame(mac, 60, n);
    a->dev().txq[q].state = 0;
    if (a->dev().start_xmit(s, q, true) == xmit::busy) break;
  }
  EXPECT_EQ(n, ice_tx_count - 1 - 5u);  // one slot always empty; a frame needs 1 + 4 + 1
  EXPECT_EQ(ring().next_to_use, n);
  EXPECT_EQ(a->dev().txq[q].state & QUEUE_STATE_DRV_XOFF, QUEUE_STATE_DRV_XOFF);
  EXPECT_EQ(s->next, nullptr);
  a->n.skbs.free(s);
  go();
  sk_buff* v[64];
  uint32_t got = 0;
  for (int i = 0; i < 30; ++i) {
    for (int k = b->dev().rx_burst(v, 64); k > 0; ++got) free_rx(v[--k]);
    a->dev().clean_tx(1000);
  }
  EXPECT_EQ(got, n);
  EXPECT_EQ(a->dev().txq[q].state.load(), 0u);  // woken when there was room
}

TEST_F(ice, T30_splits_at_16KiB_minus_1_in_aligned_pieces) {
  hold();
  region& r = ra;
  sk_buff* s = tcp(0, 8948);
  uint8_t* wide = r.base + region_frames_off + 100 * frame_size + 100;  // not a real fragment: only its descriptors are looked at
  s->frags[0] = {wide, 40000};
  s->nr_frags = 1;
  s->len += 40000;
  s->data_len = 40000;
  EXPECT_EQ(ice_xmit_desc_count(s), 1u + 4);
  ASSERT_EQ(a->dev().start_xmit(s, q, false), xmit::ok);
  EXPECT_EQ(size(2), 12 * 1024 + 4096 - 100u);
  EXPECT_EQ(size(3), 12 * 1024u);
  EXPECT_EQ((desc(3).buf_addr & 4095), 0u);
  EXPECT_EQ(size(2) + size(3) + size(4), 40000u);
  s->nr_frags = 0;
  s->data_len = 0;
  s->len = 66;
}

TEST_F(ice, T30_EOP_and_RS_on_the_last_descriptor_only) {
  hold();
  ASSERT_EQ(a->dev().start_xmit(tcp(9000), q, false), xmit::ok);
  ASSERT_EQ(ring().next_to_use, 4u);
  for (uint32_t i = 0; i < 3; ++i) EXPECT_EQ(cmd(i) & 3, 0u);
  EXPECT_EQ(cmd(3) & 3, ICE_TX_DESC_CMD_EOP | ICE_TX_DESC_CMD_RS);
  EXPECT_EQ(ring().tx_buf[0].next_to_watch.load(), 4u);
  go();
}

TEST_F(ice, T30_mapping_error_leaves_the_ring_as_it_was) {
  uint8_t outside[64] = {};
  sk_buff* s = tcp(9000, 1448);
  uint8_t* real = s->frags[1].addr;
  s->frags[1].addr = outside;
  EXPECT_EQ(a->dev().start_xmit(s, q, false), xmit::drop);
  EXPECT_EQ(ring().next_to_use, 0u);
  EXPECT_EQ(ring().tx_buf[0].next_to_watch.load(), 0u);
  for (uint32_t i = 0; i < 6; ++i) EXPECT_EQ(desc(i).cmd_type_offset_bsz | desc(i).buf_addr, 0u);
  s->frags[1].addr = real;
  ASSERT_EQ(a->dev().start_xmit(a->frame(mac, 60, 3), q, false), xmit::ok);
  sk_buff* v[1];
  ASSERT_EQ(b->dev().rx_burst(v, 1), 1);
  EXPECT_TRUE(check_frame(v[0], 60, 3));
  free_rx(v[0]);
}

TEST_F(ice, T31_doorbell_only_when_no_more_follows_or_the_queue_stopped) {
  hold();
  for (int i = 0; i < 5; ++i) ASSERT_EQ(a->dev().start_xmit(a->frame(mac, 60, 0), q, true), xmit::ok);
  EXPECT_EQ(bells, 0);
  ASSERT_EQ(a->dev().start_xmit(a->frame(mac, 60, 0), q, false), xmit::ok);
  EXPECT_EQ(bells, 1);
  ring().dql.min_limit = 1000;
  dql_reset(ring().dql);
  ASSERT_EQ(a->dev().start_xmit(a->frame(mac, 1200, 0), q, true), xmit::ok);  // over the limit: rings although more follows
  EXPECT_EQ(bells, 2);
  EXPECT_EQ(a->dev().txq[q].state.load(), QUEUE_STATE_STACK_XOFF);
  go();
  a->dev().clean_tx(64);
  EXPECT_EQ(a->dev().txq[q].state.load(), 0u);
}

TEST_F(ice, T32_frees_only_what_the_device_has_done) {
  hold();
  int freed = 0;
  static int* counter;
  counter = &freed;
  for (int i = 0; i < 3; ++i) {
    sk_buff* s = a->frame(mac, 60, 0);
    s->destructor = [](sk_buff*) { ++*counter; };
    ASSERT_EQ(a->dev().start_xmit(s, q, false), xmit::ok);
  }
  EXPECT_EQ(a->dev().clean_tx(64), 0);
  EXPECT_EQ(freed, 0);
  go();
  EXPECT_EQ(a->dev().clean_tx(1), 1);
  EXPECT_EQ(freed, 1);
  EXPECT_EQ(a->dev().clean_tx(64), 2);
  EXPECT_EQ(freed, 3);
  EXPECT_EQ(dql_avail(ring().dql), static_cast<int>(ring().dql.limit));  // BQL was told
}

TEST_F(ice, T33_checksum_state_reaches_the_receiver) {
  ASSERT_EQ(a->dev().start_xmit(tcp(100), q, false), xmit::ok);
  ASSERT_EQ(a->dev().start_xmit(a->frame(mac, 60, 0), q, false), xmit::ok);
  sk_buff* v[2];
  b->n.now = 4711;
  ASSERT_EQ(b->dev().rx_burst(v, 2), 2);
  EXPECT_EQ(v[0]->ip_summed, ip_sum::unnecessary);
  EXPECT_EQ(v[1]->ip_summed, ip_sum::none);
  EXPECT_EQ(v[0]->tstamp, 4711u);
  EXPECT_EQ(v[0]->dev, &b->dev());
  EXPECT_EQ(v[0]->mac(), v[0]->data);
  free_rx(v[0]);
  free_rx(v[1]);
}

TEST_F(ice, T33_a_chain_without_its_first_DD_is_invisible) {
  ASSERT_EQ(a->dev().start_xmit(tcp(9000), q, false), xmit::ok);
  auto& first = t->rx[0].qw[1];
  const uint64_t st = first;
  first = 0;  // as if the writer had been killed just before
  sk_buff* v[1];
  EXPECT_EQ(b->dev().rx_burst(v, 1), 0);
  first = st;
  ASSERT_EQ(b->dev().rx_burst(v, 1), 1);
  EXPECT_EQ(v[0]->len, 9066u);
  free_rx(v[0]);
}
