// Two joined stacks with the device in reach, for the ring and device tests.
#pragma once
#include <gtest/gtest.h>

#include <memory>

#include "fake_region.hpp"

namespace ringtest {

struct RingPair : testing::Test {
  region ra, rb;
  std::unique_ptr<host> a, b;
  uint16_t q = 0;
  uint8_t mac[6];
  e810_txq* t = nullptr;
  uint32_t rx_features = NETIF_F_RXCSUM | NETIF_F_LRO_PASS;

  void SetUp() override {
    fake_init();
    fake_open(ra, 1, 16384);
    fake_open(rb, 2, 16384);
    a = std::make_unique<host>(ra, 0);
    b = std::make_unique<host>(rb, 0);
  }
  void connect() {
    b->dev().features = (b->dev().features & ~(NETIF_F_RXCSUM | NETIF_F_LRO_PASS)) | rx_features;
    ASSERT_TRUE(join(*a, *b, &q, mac));
    t = static_cast<local_port&>(a->dev()).tx_all[q];
  }
  void TearDown() override {
    sk_buff* v[64];
    for (auto* h : {a.get(), b.get()})
      for (auto* g : {a.get(), b.get()})
        if (local_port_peers(h->port)) local_port_detach(h->port, g->id());
    for (int i = 0; i < 40; ++i)
      for (auto* h : {a.get(), b.get()})
        for (int k = h->dev().rx_burst(v, 64); k > 0;) h->n.skbs.free(v[--k]);
    EXPECT_EQ(local_port_peers(a->port), 0u);
    EXPECT_EQ(local_port_peers(b->port), 0u);
    EXPECT_EQ(a->n.skbs.allocated(), 0u);
    EXPECT_EQ(b->n.skbs.allocated(), 0u);
    EXPECT_EQ(a->held(), 0u);
    EXPECT_EQ(b->held(), 0u);
    a.reset();
    b.reset();
    EXPECT_EQ(rings_out, 0);
    fake_close(ra);
    fake_close(rb);
  }
  ice_tx_ring& ring() { return t->ring; }
  const ice_tx_desc& desc(uint32_t i) { return t->ring.desc[i & (ice_tx_count - 1)]; }
  // An IPv4 TCP frame with `payload` bytes (7 * i) in fragments of at most `piece`; checksum field as the stack leaves it for offload.
  sk_buff* tcp(uint32_t payload, uint16_t gso = 0, uint32_t piece = frame_size) {
    sk_buff* s = a->n.skbs.alloc();
    uint8_t* p = skb_put(s, 14 + 20 + 32);
    std::memset(p, 0, 66);
    std::memcpy(p, mac, 6);
    std::memcpy(p + 6, a->dev().dev_addr, 6);
    p[12] = 8;
    uint8_t* ip = p + 14;
    ip[0] = 0x45;
    const uint32_t tot = 52 + payload;
    ip[2] = static_cast<uint8_t>(tot >> 8);
    ip[3] = static_cast<uint8_t>(tot);
    ip[5] = 9;
    ip[8] = 64;
    ip[9] = 6;
    ip[12] = 127, ip[15] = 1, ip[16] = 127, ip[19] = 2;
    uint8_t* th = ip + 20;
    th[0] = 1, th[2] = 2;
    th[7] = 5;                // seq 5
    th[12] = 8 << 4;
    th[13] = 0x18 | 0x01;     // ACK PSH FIN
    uint32_t sum = 0x7f00 + 1 + 0x7f00 + 2 + 6 + 32 + payload;
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    th[16] = static_cast<uint8_t>(sum >> 8);
    th[17] = static_cast<uint8_t>(sum);
    skb_reset_mac(s);
    s->network_header = static_cast<uint16_t>(s->mac_header + 14);
    s->transport_header = s->csum_start = static_cast<uint16_t>(s->mac_header + 34);
    s->csum_offset = 16;
    s->ip_summed = ip_sum::partial;
    s->gso_size = gso;
    for (uint32_t at = 0; at < payload; at += piece) {
      const uint32_t k = payload - at < piece ? payload - at : piece;
      uint8_t* f = a->n.skbs.frames.alloc();
      for (uint32_t i = 0; i < k; ++i) f[i] = static_cast<uint8_t>((at + i) * 7);
      s->frags[s->nr_frags++] = {f, k};
      s->len += k;
      s->data_len += k;
    }
    return s;
  }
  void free_rx(sk_buff* s) { b->n.skbs.free(s); }
};

}  // namespace ringtest
