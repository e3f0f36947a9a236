// The device model: see device.hpp. Order of one frame: bytes and descriptors of the frame, then the status of its first Rx descriptor
// (release: the receiver sees all or nothing), then DD in the sender's EOP descriptor (release: the buffers are the driver's again); after the
// last frame of a doorbell a full fence, then the receiver's active and armed words.
#include "driver/e810/device.hpp"

#include "base/raw_syscall.hpp"

namespace icepath {

namespace {

constexpr uint32_t tx_mask = ice_tx_count - 1, rx_mask = ice_rx_count - 1;

void prefetch_write(const void* p) {
#if defined(__x86_64__)
  __asm__ __volatile__("prefetchw %0" ::"m"(*static_cast<const char*>(p)));
#else
  __builtin_prefetch(p, 1);
#endif
}

// Learns the addresses of newly posted buffers, each read once and checked. Whole batches at a time: the descriptors' lines come over from the
// other core together.
bool rx_learn(e810_txq& q, uint32_t need) {
  const uint32_t tail = q.slot->tail.load(std::memory_order_acquire);  // partner: ice_alloc_rx_bufs
  if (tail >= ice_rx_count || ((tail - q.rx_next) & rx_mask) < ((q.rx_known - q.rx_next) & rx_mask)) {
    q.peer_bad.store(true, std::memory_order_relaxed);
    return false;
  }
  while (q.rx_known != tail) {
    const uint64_t a = std::atomic_ref<uint64_t>(q.rx[q.rx_known].qw[0]).load(std::memory_order_relaxed);
    if (a < q.peer_lo || a >= q.peer_hi || (a & (ice_rx_buf_len - 1)) || q.peer_hi - a < ice_rx_buf_len) {
      q.peer_bad.store(true, std::memory_order_relaxed);
      return false;
    }
    q.rx_addr[q.rx_known] = a;
    q.rx_known = (q.rx_known + 1) & rx_mask;
  }
  return ((q.rx_known - q.rx_next) & rx_mask) >= need;
}

bool rx_ready(e810_txq& q, uint32_t need) {
  return ICEPATH_LIKELY(((q.rx_known - q.rx_next) & rx_mask) >= need) || rx_learn(q, need);
}

void write_back(ice_32b_rx_flex_desc& d, uint32_t len, const e810_rx_meta& m, uint32_t status) {
  d.qw[0] = RXD_QW0_RXDID.put(m.rxdid) | RXD_QW0_PKT_LEN.put(len);
  d.qw[2] = 0;
  d.qw[3] = 0;
  std::atomic_ref<uint64_t>(d.qw[1]).store(RXD_QW1_STATUS.put(status) | RXD_QW1_L2TAG1.put(m.l2tag1) | RXD_QW1_META0.put(m.mss) | RXD_QW1_META1.put(m.segs),
                                           std::memory_order_release);  // partner: ice_clean_rx_irq
}

// false: the queue cannot go on now (paused, stopped by an event, or the peer is bad).
bool one_packet(e810_txq& q, uint32_t tail) {
  e810_packet p;
  const mdd bad = e810_parse(q, q.head, tail, p);
  if (ICEPATH_UNLIKELY(bad != mdd::none)) {
    q.mdd_reason.store(bad, std::memory_order_relaxed);
    ++q.stat_mdd;
    return false;
  }
  // The switch: to the peer's address or a group, else nobody's.
  uint8_t dst[6];
  if (ICEPATH_LIKELY(p.buf[0].len >= 6)) std::memcpy(dst, p.buf[0].addr, 6);
  else for (uint32_t k = 0, b = 0, o = 0; k < 6; ++k) {
    while (o == p.buf[b].len) ++b, o = 0;
    dst[k] = p.buf[b].addr[o++];
  }
  if (ICEPATH_UNLIKELY(!(dst[0] & 1) && std::memcmp(dst, q.peer_mac, 6))) {
    ++q.stat_filtered;
  } else {
    const bool wants_sum = p.cmd & ICE_TX_DESC_CMD_L4T;
    if (ICEPATH_UNLIKELY((wants_sum && !(q.rx_features & NETIF_F_RXCSUM)) || (p.mss && !(q.rx_features & NETIF_F_LRO_PASS)))) {
      const segment_result s = e810_segment(q, p);
      if (s == segment_result::bad_headers) {
        q.mdd_reason.store(mdd::bad_headers, std::memory_order_relaxed);
        ++q.stat_mdd;
        return false;
      }
      if (s == segment_result::more_buffers) return false;
    } else {
      e810_rx_meta m{};
      m.status = (wants_sum ? ICE_RX_FLEX_DESC_STATUS0_L3L4P : 0u) | (p.tag ? ICE_RX_FLEX_DESC_STATUS0_L2TAG1P : 0u);
      m.l2tag1 = p.l2tag1;
      m.rxdid = p.mss ? ICE_RXDID_LRO_PASS : ICE_RXDID_FLEX_NIC;
      if (p.mss) {
        m.mss = p.mss;
        m.segs = (p.total - p.hdr_len() + p.mss - 1) / p.mss;
      }
      if (!e810_rx_put(q, p.buf, p.nbuf, p.total, m)) return false;
    }
  }
  q.seg_done = 0;
  if (p.rs)
    std::atomic_ref<uint64_t>(q.ring.desc[p.eop].cmd_type_offset_bsz)
        .store(TXD_QW1_DTYPE.put(ICE_TX_DESC_DTYPE_DESC_DONE), std::memory_order_release);  // partner: ice_clean_tx_irq
  q.head = (q.head + p.ndesc) & tx_mask;
  return true;
}

}  // namespace

bool e810_wake(e810_function& fn, int fifo_fd) {
  uint32_t v = fn.armed.load(std::memory_order_seq_cst);
  if (ICEPATH_LIKELY(!v)) return false;
  // The raw call: libc's is interposed in the programs this runs in. EAGAIN: the FIFO is full, so its reader will wake anyhow. We
  // hold the FIFO open for reading too, so a dead reader cannot cost us a SIGPIPE.
  const char one = 1;
  (void)raw_syscall(SYS_write, fifo_fd, &one, 1);
  fn.armed.compare_exchange_strong(v, 0, std::memory_order_seq_cst);
  return true;
}

bool e810_rx_put(e810_txq& q, const e810_buf* piece, uint32_t pieces, uint32_t total, const e810_rx_meta& m) {
  const uint32_t need = (total + ice_rx_buf_len - 1) / ice_rx_buf_len;
  if (ICEPATH_UNLIKELY(!rx_ready(q, need))) return false;
  const uint32_t first = q.rx_next;
  uint32_t i = first, room = ice_rx_buf_len;
  uint8_t* to = q.peer_base + q.rx_addr[i];
  for (uint32_t k = 0; k < pieces; ++k) {
    const uint8_t* from = piece[k].addr;
    for (uint32_t left = piece[k].len; left;) {
      if (!room) {
        i = (i + 1) & rx_mask;
        to = q.peer_base + q.rx_addr[i];
        room = ice_rx_buf_len;
      }
      const uint32_t n = left < room ? left : room;
      std::memcpy(to, from, n);
      to += n;
      from += n;
      left -= n;
      room -= n;
    }
  }
  for (uint32_t k = need; k-- > 0;) {
    const uint32_t len = k == need - 1 ? total - k * ice_rx_buf_len : ice_rx_buf_len;
    const uint32_t st = m.status | ICE_RX_FLEX_DESC_STATUS0_DD | (k == need - 1 ? ICE_RX_FLEX_DESC_STATUS0_EOF : 0u);
    write_back(q.rx[(first + k) & rx_mask], len, m, st);
  }
  q.rx_next = (first + need) & rx_mask;
  if (q.rx_next != q.rx_known) {  // the next frame's lines, while the caller does something else
    prefetch_write(&q.rx[q.rx_next]);
    const uint8_t* next = q.peer_base + q.rx_addr[q.rx_next];
    prefetch_write(next);
    prefetch_write(next + 64);
  }
  return true;
}

void e810_device_run(e810_txq& q) {
  const uint32_t tail = q.ring.next_to_use;
  if (ICEPATH_UNLIKELY(q.mdd_seen() || q.peer_bad_seen())) return;
  if (ICEPATH_UNLIKELY(q.slot->word.load(std::memory_order_acquire) != q.word_ready)) return;  // revoked: the port closes the queue
  const uint32_t rx_before = q.rx_next;
  for (;;) {
    while (q.head != tail && one_packet(q, tail)) {
    }
    if (ICEPATH_LIKELY(q.head == tail) || q.mdd_seen() || q.peer_bad_seen()) {
      q.paused.store(0, std::memory_order_relaxed);
      break;
    }
    // Not enough buffers. Say so, then look once more: the receiver publishes tail, then looks at tx_paused.
    if (!q.paused.load(std::memory_order_relaxed)) ++q.stat_paused;
    q.paused.store(1, std::memory_order_relaxed);
    q.slot->tx_paused.store(1, std::memory_order_relaxed);
    full_fence();  // partner: the receiver's after refilling
    if (q.slot->tail.load(std::memory_order_acquire) == q.rx_known) break;
  }
  if (q.rx_next == rx_before) return;
  full_fence();  // partner: arm(), and the receiver's exchange of `active`
  const uint64_t bit = uint64_t{1} << q.slot_no;
  if (ICEPATH_UNLIKELY(!(q.peer_fn->active.load(std::memory_order_relaxed) & bit))) q.peer_fn->active.fetch_or(bit, std::memory_order_seq_cst);
  if (ICEPATH_UNLIKELY(e810_wake(*q.peer_fn, q.wake_fd))) ++q.stat_wakes;
}

void e810_doorbell(ice_tx_ring* r) { e810_device_run(*reinterpret_cast<e810_txq*>(r)); }

bool e810_can_resume(const e810_txq& q) {
  return q.paused.load(std::memory_order_relaxed) && q.slot->tail.load(std::memory_order_acquire) != q.rx_known;
}

void e810_txq_reset(e810_txq& q) {
  ice_clean_tx_ring(q.ring, q.ring.dev->owner->skbs);
  q.head = 0;
  q.seg_done = 0;
  q.paused.store(0, std::memory_order_relaxed);
  q.mdd_reason.store(mdd::none, std::memory_order_relaxed);
}

}  // namespace icepath
