// Transmit side of the ice driver: T28-T31. Run by whoever holds the queue's run word; see ring.hpp for who may run beside it. A
// failure leaves the ring as it was; the skb of a failure goes to `to_free`, because only the stack's owner may free.
#include "driver/ice/ring.hpp"

namespace icepath {

namespace {

void ice_drop(ice_tx_ring& r, sk_buff* skb) {
  sk_buff* head = r.to_free.load(std::memory_order_relaxed);
  do skb->next = head;
  while (!r.to_free.compare_exchange_weak(head, skb, std::memory_order_release, std::memory_order_relaxed));  // partner: clean_tx
}

// 64 bits of a shared descriptor at once: the device must not see half of one.
void store_qw1(uint64_t& qw, uint64_t v) { std::atomic_ref<uint64_t>(qw).store(v, std::memory_order_relaxed); }

// Ring-space check (T29). Stop first, then look again: the cleaner looks at the stop bit after it has moved next_to_clean.
bool ice_maybe_stop_tx(ice_tx_ring& r, uint32_t size) {
  if (ICEPATH_LIKELY(ice_desc_unused(r) >= size)) return false;
  netif_tx_stop_queue(*r.dev, r.q_index, QUEUE_STATE_DRV_XOFF);
  full_fence();  // partner: full_fence in ice_clean_tx_irq
  if (ice_desc_unused(r) < size) return true;
  r.dev->txq[r.q_index].state.fetch_and(~QUEUE_STATE_DRV_XOFF, std::memory_order_acq_rel);
  return false;
}

// T28: the device refuses frames below 17 bytes.
bool ice_put_padto(sk_buff* skb) {
  const uint32_t pad = ICE_MIN_TX_LEN - skb->len;
  if (skb->data_len) {  // a short frame in pieces: append to the last one, which lies in one frame
    skb_frag& f = skb->frags[skb->nr_frags - 1];
    if ((reinterpret_cast<uintptr_t>(f.addr) & (frame_size - 1)) + f.len + pad > frame_size) return false;
    std::memset(f.addr + f.len, 0, pad);
    f.len += pad;
    skb->len += pad;
    skb->data_len += pad;
    return true;
  }
  if (skb->tailroom() < pad) return false;
  std::memset(skb->tail(), 0, pad);
  skb->len += pad;
  return true;
}

// T30. One descriptor per buffer. false: an address is not ours; nothing was published.
bool ice_tx_map(ice_tx_ring& r, sk_buff* skb, uint32_t first_idx, uint32_t i, const ice_tx_offload_params& off) {
  constexpr uint32_t mask = ice_tx_count - 1;
  const uint32_t td_cmd = off.td_cmd | (off.td_l2tag1 ? ICE_TX_DESC_CMD_IL2TAG1 : 0u), start = i;
  uint32_t last = i;
  unsigned f = 0;
  const uint8_t* addr = skb->data;
  uint32_t size = skb->headlen();
  for (;;) {
    if (size) {
      const uint64_t dma = static_cast<uint64_t>(addr - r.dma_base);
      if (ICEPATH_UNLIKELY(dma < r.dma_lo || dma > r.dma_hi || size > r.dma_hi - dma)) {
        for (uint32_t k = start; k != i; k = (k + 1) & mask) r.desc[k] = {};
        return false;
      }
      uint64_t a = dma;
      while (ICEPATH_UNLIKELY(size > ICE_MAX_DATA_PER_TXD)) {  // split where the next piece starts aligned
        const uint32_t n = ICE_MAX_DATA_PER_TXD_ALIGNED + static_cast<uint32_t>(-a & (4096 - 1) & (ICE_MAX_DATA_PER_TXD - ICE_MAX_DATA_PER_TXD_ALIGNED));
        r.desc[i].buf_addr = a;
        store_qw1(r.desc[i].cmd_type_offset_bsz, build_ctob(td_cmd, off.td_offset, n, off.td_l2tag1));
        i = (i + 1) & mask;
        a += n;
        size -= n;
      }
      r.desc[i].buf_addr = a;
      store_qw1(r.desc[i].cmd_type_offset_bsz, build_ctob(td_cmd, off.td_offset, size, off.td_l2tag1));
      last = i;
      i = (i + 1) & mask;
    }
    if (f == skb->nr_frags) break;
    addr = skb->frags[f].addr;
    size = skb->frags[f].len;
    ++f;
  }
  store_qw1(r.desc[last].cmd_type_offset_bsz, r.desc[last].cmd_type_offset_bsz | TXD_QW1_CMD.put(ICE_TX_DESC_CMD_EOP | ICE_TX_DESC_CMD_RS));
  r.stat_desc += ((i - first_idx) & mask);

  ice_tx_buf& first = r.tx_buf[first_idx];
  first.skb = skb;
  // Release: descriptors and tx_buf before the word that lets clean_tx look at them.
  first.next_to_watch.store(last + 1, std::memory_order_release);
  r.next_to_use = i;
  r.published.store(i, std::memory_order_relaxed);
  return true;
}

// T29.
xmit ice_xmit_frame_ring(ice_tx_ring& r, sk_buff* skb, bool more) {
  uint32_t count = ice_xmit_desc_count(skb);
  if (ICEPATH_UNLIKELY(ice_chk_linearize(skb, count))) {
    if (!ice_linearize(*r.dev->owner->skbs.frames.pool(), skb)) {
      ice_drop(r, skb);
      return xmit::drop;
    }
    ++r.stat_linearize;
    count = ice_xmit_desc_count(skb);
    if (ice_chk_linearize(skb, count)) {
      ice_drop(r, skb);
      return xmit::drop;
    }
  }
  // One for the context descriptor, four to keep tail away from head by a cache line.
  if (ICEPATH_UNLIKELY(ice_maybe_stop_tx(r, count + 4 + 1))) {
    ++r.stat_busy;
    return xmit::busy;
  }
  ice_tx_offload_params off;
  if (ICEPATH_UNLIKELY(!ice_tx_offload(skb, off))) {
    ice_drop(r, skb);
    return xmit::drop;
  }
  const uint32_t first_idx = r.next_to_use;
  uint32_t i = first_idx;
  ice_tx_buf& first = r.tx_buf[first_idx];
  first.gso_segs = off.gso_segs;
  first.bytecount = skb->len + (off.gso_segs - 1) * off.header_len;
  const uint32_t bytes = first.bytecount;
  if (off.cd_qw1_cmd) {  // the context descriptor stands before the data it applies to
    auto* cd = reinterpret_cast<ice_tx_ctx_desc*>(&r.desc[i]);
    cd->tunneling_params = 0;
    cd->l2tag2 = static_cast<uint16_t>(off.cd_l2tag2);
    cd->rsvd = 0;
    store_qw1(cd->type_cmd_tso_mss, TXD_QW1_DTYPE.put(ICE_TX_DESC_DTYPE_CTX) | TXD_CTX_QW1_CMD.put(off.cd_qw1_cmd) |
                                        TXD_CTX_QW1_TSO_LEN.put(off.cd_tso_len) | TXD_CTX_QW1_MSS.put(off.cd_mss));
    i = (i + 1) & (ice_tx_count - 1);
  }
  if (ICEPATH_UNLIKELY(!ice_tx_map(r, skb, first_idx, i, off))) {
    if (off.cd_qw1_cmd) r.desc[first_idx] = {};
    ice_drop(r, skb);
    return xmit::drop;
  }
  const bool full = ice_maybe_stop_tx(r, ice_desc_needed);
  // T31. The skb may be gone once clean_tx runs; only `bytes` is used from here.
  dql_queued(r.dql, bytes);
  bool limited = false;
  if (ICEPATH_UNLIKELY(dql_avail(r.dql) < 0)) {
    netif_tx_stop_queue(*r.dev, r.q_index, QUEUE_STATE_STACK_XOFF);
    full_fence();  // partner: full_fence in ice_clean_tx_irq
    limited = dql_avail(r.dql) < 0;
    if (limited) ++r.stat_bql_stops;
    else r.dev->txq[r.q_index].state.fetch_and(~QUEUE_STATE_STACK_XOFF, std::memory_order_acq_rel);
  }
  if (!more || full || limited) {
    ++r.stat_doorbells;
    r.doorbell(&r);
  }
  return xmit::ok;
}

}  // namespace

// Descriptors a buffer of `size` needs: pieces of 12 KiB, the last one up to 16 KiB - 1.
static uint32_t ice_txd_use_count(uint32_t size) {
  if (ICEPATH_LIKELY(size <= ICE_MAX_DATA_PER_TXD)) return size ? 1 : 0;
  return size / ICE_MAX_DATA_PER_TXD_ALIGNED + 1;
}

uint32_t ice_xmit_desc_count(const sk_buff* skb) {
  uint32_t n = ice_txd_use_count(skb->headlen());
  for (unsigned f = 0; f < skb->nr_frags; ++f) n += ice_txd_use_count(skb->frags[f].len);
  return n;
}

bool ice_chk_linearize(const sk_buff* skb, uint32_t count) {
  if (ICEPATH_LIKELY(count <= ICE_MAX_BUF_TXD)) return false;
  if (!skb->is_gso()) return true;
  // Every segment the device will cut consists of the header's buffer and pieces of the payload's buffers. Any 6 whole
  // buffers in a row that hold at least one MSS mean that a segment touches at most 8: 6, one begun before them, and the header.
  if (skb->nr_frags < ICE_MAX_BUF_TXD - 1) return false;
  for (unsigned f = 0; f + ICE_MAX_BUF_TXD - 2 <= skb->nr_frags; ++f) {
    uint32_t sum = 0;
    for (unsigned k = 0; k < ICE_MAX_BUF_TXD - 2; ++k) sum += skb->frags[f + k].len;
    if (sum < skb->gso_size && f + ICE_MAX_BUF_TXD - 2 < skb->nr_frags) return true;
  }
  return false;
}

// Runs without the frame cache (which is the owner's): straight from and to the pool. The linear part stays where it is.
bool ice_linearize(frame_pool& pool, sk_buff* skb) {
  if (!skb->nr_frags) return false;
  const uint32_t need = (skb->data_len + frame_size - 1) >> frame_shift;
  uint32_t idx[max_skb_frags];
  uint32_t got = 0;
  while (got < need) {
    const uint32_t n = pool.take(idx + got, need - got);
    if (!n) {
      pool.give(idx, got);
      return false;
    }
    got += n;
  }
  uint32_t filled = 0;
  for (unsigned f = 0; f < skb->nr_frags; ++f) {
    const uint8_t* from = skb->frags[f].addr;
    for (uint32_t left = skb->frags[f].len; left;) {
      const uint32_t in = filled & (frame_size - 1);
      const uint32_t n = left < frame_size - in ? left : static_cast<uint32_t>(frame_size - in);
      std::memcpy(pool.addr(idx[filled >> frame_shift]) + in, from, n);
      filled += n;
      from += n;
      left -= n;
    }
  }
  for (unsigned f = 0; f < skb->nr_frags; ++f) {
    const uint32_t old = pool.index(skb->frags[f].addr);
    if (pool.ref(old).fetch_sub(1, std::memory_order_acq_rel) == 1) pool.give(&old, 1);
  }
  for (uint32_t k = 0; k < need; ++k) {
    pool.ref(idx[k]).store(1, std::memory_order_relaxed);
    const uint32_t left = skb->data_len - (k << frame_shift);
    skb->frags[k] = {pool.addr(idx[k]), left < frame_size ? left : static_cast<uint32_t>(frame_size)};
  }
  skb->nr_frags = static_cast<uint16_t>(need);
  return true;
}

xmit ice_start_xmit(ice_tx_ring& r, sk_buff* skb, bool more) {
  if (ICEPATH_UNLIKELY(skb->len < ICE_MIN_TX_LEN) && !ice_put_padto(skb)) {
    ice_drop(r, skb);
    return xmit::drop;
  }
  return ice_xmit_frame_ring(r, skb, more);
}

}  // namespace icepath
