// Transmit completion (T32): packets whose EOP descriptor the device has marked done go back to their owners. Run under the stack's owner
// word, beside start_xmit (ring.hpp). Runs whenever packets are outstanding, not only when the ring fills: the last packet of a burst is freed as
// soon as any other, or BQL and TSQ would wait for it for ever.
#include "driver/ice/ring.hpp"

namespace icepath {

namespace {
constexpr uint32_t mask = ice_tx_count - 1;

int free_dropped(ice_tx_ring& r, skb_pool& pool) {
  if (ICEPATH_LIKELY(!r.to_free.load(std::memory_order_relaxed))) return 0;
  sk_buff* s = r.to_free.exchange(nullptr, std::memory_order_acquire);  // partner: ice_drop
  int n = 0;
  while (s) {
    sk_buff* next = s->next;
    s->next = s->prev = nullptr;
    pool.free(s);
    ++r.dev->tx_dropped;
    ++n;
    s = next;
  }
  return n;
}

}  // namespace

void ice_tx_ring_init(ice_tx_ring& r) {
  std::memset(static_cast<void*>(r.desc), 0, sizeof(ice_tx_desc) * ice_tx_count);
  r.next_to_use = 0;
  r.published.store(0, std::memory_order_relaxed);
  r.next_to_clean.store(0, std::memory_order_relaxed);
  for (ice_tx_buf& b : r.tx_buf) {
    b.skb = nullptr;
    b.next_to_watch.store(0, std::memory_order_relaxed);
  }
  dql_reset(r.dql);
}

int ice_clean_tx_irq(ice_tx_ring& r, skb_pool& pool, nsec now, int budget) {
  (void)free_dropped(r, pool);
  uint32_t i = r.next_to_clean.load(std::memory_order_relaxed), bytes = 0, packets = 0;
  int n = 0;
  while (n < budget) {
    ice_tx_buf& b = r.tx_buf[i];
    const uint32_t watch = b.next_to_watch.load(std::memory_order_acquire);  // partner: ice_tx_map
    if (!watch) break;
    const uint32_t eop = watch - 1;
    // Acquire, partner: the device's write-back: it has finished with the buffers.
    if (TXD_QW1_DTYPE.get(std::atomic_ref<uint64_t>(r.desc[eop].cmd_type_offset_bsz).load(std::memory_order_acquire)) !=
        ICE_TX_DESC_DTYPE_DESC_DONE)
      break;
    sk_buff* skb = b.skb;
    bytes += b.bytecount;
    packets += b.gso_segs;
    b.skb = nullptr;
    b.next_to_watch.store(0, std::memory_order_relaxed);
    i = (eop + 1) & mask;
    pool.free(skb);
    ++n;
  }
  if (n) {
    r.next_to_clean.store(i, std::memory_order_release);  // partner: ice_desc_unused
    r.dev->tx_packets += packets;
    r.dev->tx_bytes += bytes;
    dql_completed(r.dql, bytes, now);
  }
  // The queue may have been stopped because of what we just freed. The fence only when something was freed: otherwise the bit
  // was there before, or start_xmit sees the room we made.
  if (n) full_fence();  // partner: the stop-then-look-again of start_xmit
  const uint32_t st = r.dev->txq[r.q_index].state.load(std::memory_order_relaxed);
  if (ICEPATH_UNLIKELY(st & QUEUE_STATE_STACK_XOFF) && dql_avail(r.dql) >= 0) netif_tx_wake_queue(*r.dev, r.q_index, QUEUE_STATE_STACK_XOFF);
  if (ICEPATH_UNLIKELY(st & QUEUE_STATE_DRV_XOFF) && ice_tx_unused_by_cleaner(r) >= ice_tx_wake_threshold)
    netif_tx_wake_queue(*r.dev, r.q_index, QUEUE_STATE_DRV_XOFF);
  return n;
}

void ice_clean_tx_ring(ice_tx_ring& r, skb_pool& pool) {
  (void)free_dropped(r, pool);
  for (ice_tx_buf& b : r.tx_buf) {
    if (b.skb) {
      pool.free(b.skb);
      ++r.dev->tx_dropped;
    }
    b.skb = nullptr;
  }
  ice_tx_ring_init(r);
}

}  // namespace icepath
