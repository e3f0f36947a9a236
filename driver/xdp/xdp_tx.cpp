// Transmit side of the xdp port: descriptors, the wakeup, completions. start_xmit runs in whoever holds the queue's run bit, clean_tx in the stack's
// owner; port.hpp has the table. A packet that the kernel would refuse (longer than the MTU, too many pieces) is consumed as if it
// had been sent, and freed by the owner: only the owner's pool may free.
#include "net/probes.hpp"
#include "xdp/port.hpp"

namespace icepath {
namespace {

void bump(uint64_t& c, uint64_t v = 1) {
  std::atomic_ref<uint64_t> r(c);
  r.store(r.load(std::memory_order_relaxed) + v, std::memory_order_relaxed);
}
void full_fence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

uint32_t room(xdp_queue& q, uint32_t sent, uint32_t need) {
  const uint32_t size = q.x.tx.size;
  if (ICEPATH_UNLIKELY(size - (sent - q.done_seen) < need)) q.done_seen = q.done.load(std::memory_order_acquire);   // partner: clean_tx
  return size - (sent - q.done_seen);
}

void kick(xdp_queue& q) {
  if (!q.x.tx.need_wakeup()) return;
  bump(q.stat_kicks);
  (void)xsk_kick_tx(q.x);   // what is left in the ring goes with the next one, or with clean_tx
}

bool acceptable(const xdp_port& p, const xdp_queue& q, const sk_buff* s, unsigned pieces) {
  if (s->len > p.mtu + 14 || s->len < 14 || s->gso_size || pieces > (p.tx_sg ? xdp_max_chain : 1)) return false;
  const frame_pool& f = *q.x.umem->pool;
  const auto inside = [&](const uint8_t* a) { return f.contains(a) && f.index(a) < q.x.umem->nr_frames; };
  if (s->headlen() == 0 || !inside(s->data) || s->headroom() < q.x.umem->tx_metadata_len) return false;
  for (unsigned i = 0; i < s->nr_frags; ++i)
    if (!inside(s->frags[i].addr)) return false;
  return true;
}

// The request for a checksum, in the headroom in front of the packet: the skb that may write headers may write there too.
bool put_metadata(const xdp_port& p, sk_buff* s) {
  if (s->ip_summed != ip_sum::partial) return false;
  if (!p.tx_csum) return false;
  xsk_tx_metadata m{};
  m.flags = XSK_TXMD_CHECKSUM;
  m.csum_start = static_cast<uint16_t>(s->csum_start - s->headroom());
  m.csum_offset = s->csum_offset;
  std::memcpy(s->data - sizeof m, &m, sizeof m);
  return true;
}

}  // namespace

xmit xdp_port::start_xmit(sk_buff* skb, uint16_t txq_no, bool more) {
  xdp_queue& q = queue[txq_no < nr ? txq_no : 0];
  const unsigned pieces = 1 + skb->nr_frags;
  const uint32_t at = q.sent.load(std::memory_order_relaxed);
  if (ICEPATH_UNLIKELY(room(q, at, pieces) < pieces)) {
    kick(q);   // earlier ones were promised a successor
    netif_tx_stop_queue(*this, txq_no, QUEUE_STATE_DRV_XOFF);
    full_fence();   // partner: clean_tx, between done and its look at the state
    if (room(q, at, pieces) < pieces) {
      bump(q.stat_busy);
      std::atomic_ref<uint64_t>(tx_busy).fetch_add(1, std::memory_order_relaxed);
      return xmit::busy;
    }
    txq[txq_no].state.fetch_and(~QUEUE_STATE_DRV_XOFF, std::memory_order_acq_rel);
  }
  if (ICEPATH_UNLIKELY(!acceptable(*this, q, skb, pieces))) {
    q.entry[at & q.x.tx.mask] = {~uint64_t{0}, skb, true};
    q.sent.store(at + 1, std::memory_order_release);
    if (!more) kick(q);
    return xmit::ok;
  }
  xsk_ring& r = q.x.tx;
  const uint8_t* const base = q.x.umem->base;
  const bool meta = put_metadata(*this, skb);
  for (unsigned k = 0; k < pieces; ++k) {
    xdp_desc& d = r.pkt(r.prod + k);
    d.addr = static_cast<uint64_t>((k ? skb->frags[k - 1].addr : skb->data) - base);
    d.len = k ? skb->frags[k - 1].len : skb->headlen();
    d.options = (k + 1 < pieces ? XSK_DESC_CONTD : 0) | (k == 0 && meta ? XSK_DESC_TX_METADATA : 0);
    q.entry[(at + k) & r.mask] = {d.addr, k + 1 < pieces ? nullptr : skb, false};
  }
  r.prod += pieces;
  q.sent.store(at + pieces, std::memory_order_release);   // partner: clean_tx
  r.store_producer(r.prod);
  bump(q.stat_desc, pieces);
  if (!more || room(q, at + pieces, xdp_max_chain) < xdp_max_chain) kick(q);
  return xmit::ok;
}

// Marks what the completion ring names, then frees from the oldest on as far as everything is finished.
static int clean_queue(xdp_port& p, unsigned no, int budget) {
  xdp_queue& q = p.queue[no];
  xsk_ring& c = q.x.comp;
  uint32_t done = q.done.load(std::memory_order_relaxed);
  const uint32_t sent = q.sent.load(std::memory_order_acquire);   // partner: start_xmit
  const uint32_t mask = q.x.tx.mask;
  uint32_t next = done;   // where the next completion is expected
  const uint32_t prod = c.load_producer();
  if (prod != c.cons) {
    for (; c.cons != prod; ++c.cons) {
      const uint64_t addr = c.addr(c.cons);
      while (next != sent && q.entry[next & mask].finished) ++next;
      uint32_t i = next;
      while (i != sent && (q.entry[i & mask].finished || q.entry[i & mask].addr != addr)) ++i;
      if (i != sent) q.entry[i & mask].finished = true;
    }
    c.store_consumer(c.cons);
  }
  int n = 0;
  const uint32_t start = done;
  while (done != sent && n < budget) {
    uint32_t end = done;   // of this packet
    while (end != sent && q.entry[end & mask].finished && !q.entry[end & mask].skb) ++end;
    if (end == sent || !q.entry[end & mask].finished) break;
    const xdp_tx_entry e = q.entry[end & mask];
    if (ICEPATH_LIKELY(e.addr != ~uint64_t{0})) {
      ++p.tx_packets;
      p.tx_bytes += e.skb->len;
    } else {
      ++p.tx_dropped;
    }
    p.owner->skbs.free(e.skb);
    done = end + 1;
    ++n;
  }
  if (done != start) q.done.store(done, std::memory_order_release);   // partner: room
  if (n || done == sent) q.progress = p.owner->now;
  // What the kernel did not take at once (its limits, a full device) is still in the ring.
  const xsk_ring& t = q.x.tx;
  if (ICEPATH_UNLIKELY(done != sent) && t.need_wakeup() && t.load_consumer() != t.load_producer()) (void)xsk_kick_tx(q.x);
  if (ICEPATH_UNLIKELY(p.queues[no].state.load(std::memory_order_relaxed) & QUEUE_STATE_DRV_XOFF)) {
    full_fence();   // partner: start_xmit
    if (t.size - (q.sent.load(std::memory_order_relaxed) - done) >= xdp_wake_threshold)
      netif_tx_wake_queue(p, static_cast<uint16_t>(no), QUEUE_STATE_DRV_XOFF);
  }
  return n;
}

static void fold(xdp_port& p, xdp_queue& q) {
  if (!p.owner->stats) return;
  mib& s = *p.owner->stats;
  const struct { std::atomic<uint64_t>& to; uint64_t& from; } rows[] = {
      {s.RingTxDesc, q.stat_desc}, {s.RingDoorbells, q.stat_kicks}, {s.RingBusy, q.stat_busy}};
  for (unsigned k = 0; k < 3; ++k) {
    const uint64_t v = std::atomic_ref<uint64_t>(rows[k].from).load(std::memory_order_relaxed);
    if (v != q.folded[k]) mib_add(rows[k].to, v - q.folded[k]);
    q.folded[k] = v;
  }
}

int xdp_port::clean_tx(int budget) {
  int n = 0;
  for (unsigned i = 0; i < nr && n < budget; ++i) {
    xdp_queue& q = queue[i];
    if (ICEPATH_LIKELY(q.done.load(std::memory_order_relaxed) == q.sent.load(std::memory_order_relaxed))) continue;
    const int k = clean_queue(*this, i, budget - n);
    if (k) fold(*this, q);
    n += k;
  }
  return n;
}

}  // namespace icepath
