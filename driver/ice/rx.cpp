// Receive side of the ice driver (T33): posts frames, turns written-back descriptors into skbs. Run under the stack's owner word. Everything in
// a descriptor was written by another process: a length or a chain that cannot be is answered with -1, and the caller gives the ring up.
#include "driver/ice/ring.hpp"

namespace icepath {

namespace {
constexpr uint32_t mask = ice_rx_count - 1;
uint64_t load_qw1(const ice_rx_ring& r, uint32_t i) {
  return std::atomic_ref<uint64_t>(r.desc[i].qw[1]).load(std::memory_order_acquire);  // partner: the device's write-back
}
}  // namespace

bool ice_alloc_rx_bufs(ice_rx_ring& r, frame_cache& frames) {
  uint32_t n = ice_rx_unused(r), i = r.next_to_use;
  const uint32_t start = i;
  for (; n; --n) {
    uint8_t* f = frames.alloc();
    if (ICEPATH_UNLIKELY(!f)) {
      ++r.stat_nobuf;
      break;
    }
    r.rx_buf[i] = f;
    ice_32b_rx_flex_desc& d = r.desc[i];
    d.read.pkt_addr = static_cast<uint64_t>(f - r.dma_base);
    std::atomic_ref<uint64_t>(d.qw[1]).store(0, std::memory_order_relaxed);  // hdr_addr: clears DD
    i = (i + 1) & mask;
  }
  if (i == start) return false;
  r.next_to_use = i;
  r.tail->store(i, std::memory_order_release);  // partner: the device reads tail with acquire, then the descriptors
  return true;
}

int ice_clean_rx_irq(ice_rx_ring& r, skb_pool& pool, nsec now, sk_buff** skbs, int budget) {
  int got = 0;
  while (got < budget) {
    uint32_t i = r.next_to_clean;
    if (i == r.next_to_use) break;
    uint64_t q1 = load_qw1(r, i);
    if (!(q1 & ICE_RX_FLEX_DESC_STATUS0_DD)) break;
    __builtin_prefetch(r.rx_buf[i]);
    __builtin_prefetch(r.rx_buf[i] + 64);
    const uint64_t q0 = r.desc[i].qw[0];
    sk_buff* skb = pool.alloc_empty();
    if (ICEPATH_UNLIKELY(!skb)) break;
    // The first descriptor is published last, so the rest of its frame is there. Look before anything is taken.
    uint32_t chain = 1, total = RXD_QW0_PKT_LEN.get(q0);
    bool sane = total >= 14 && total <= ice_rx_buf_len;
    uint32_t lens[ice_max_rx_chain] = {total};
    for (uint64_t q = q1; sane && !(q & ICE_RX_FLEX_DESC_STATUS0_EOF); ++chain) {
      const uint32_t k = (i + chain) & mask;
      if (chain == ice_max_rx_chain || k == r.next_to_use) {
        sane = false;
        break;
      }
      q = load_qw1(r, k);
      const uint32_t len = RXD_QW0_PKT_LEN.get(r.desc[k].qw[0]);
      if (!(q & ICE_RX_FLEX_DESC_STATUS0_DD) || len == 0 || len > ice_rx_buf_len) sane = false;
      lens[chain] = len;
      total += len;
    }
    if (ICEPATH_UNLIKELY(!sane)) {
      pool.free(skb);
      return got ? got : -1;
    }
    skb->head = skb->data = r.rx_buf[i];
    skb->len = total;
    skb->data_len = total - lens[0];
    for (uint32_t k = 1; k < chain; ++k) skb->frags[k - 1] = {r.rx_buf[(i + k) & mask], lens[k]};
    skb->nr_frags = static_cast<uint16_t>(chain - 1);
    skb->truesize += chain * frame_size;
    skb->dev = r.dev;
    skb->queue_mapping = r.q_index;
    skb->tstamp = now;
    skb_reset_mac(skb);
    const uint32_t st = RXD_QW1_STATUS.get(q1);
    if ((st & (ICE_RX_FLEX_DESC_STATUS0_L3L4P | ICE_RX_FLEX_DESC_STATUS0_XSUM_IPE | ICE_RX_FLEX_DESC_STATUS0_XSUM_L4E)) ==
        ICE_RX_FLEX_DESC_STATUS0_L3L4P)
      skb->ip_summed = ip_sum::unnecessary;
    if (st & ICE_RX_FLEX_DESC_STATUS0_L2TAG1P) {
      skb->vlan_present = 1;
      skb->vlan_tci = static_cast<uint16_t>(RXD_QW1_L2TAG1.get(q1));
    }
    if (RXD_QW0_RXDID.get(q0) == ICE_RXDID_LRO_PASS) {
      const uint32_t mss = RXD_QW1_META0.get(q1), segs = RXD_QW1_META1.get(q1);
      if (mss && segs && uint64_t{segs - 1} * mss < total) {  // what the peer says must be possible
        skb->gso_size = static_cast<uint16_t>(mss);
        skb->gso_segs = static_cast<uint16_t>(segs);
      }
    }
    for (uint32_t k = 0; k < chain; ++k) r.rx_buf[(i + k) & mask] = nullptr;
    r.next_to_clean = (i + chain) & mask;
    r.stat_desc += chain;
    ++r.dev->rx_packets;
    r.dev->rx_bytes += total;
    skbs[got++] = skb;
  }
  return got;
}

void ice_clean_rx_ring(ice_rx_ring& r, frame_cache& frames) {
  for (uint8_t*& b : r.rx_buf) {
    if (b) frames.put(b);
    b = nullptr;
  }
  r.next_to_use = r.next_to_clean = 0;
}

}  // namespace icepath
