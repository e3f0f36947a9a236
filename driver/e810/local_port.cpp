// The local port as a net_device: data path, sleeping, creation. Runs under the owner word of its stack; start_xmit may run in
// another thread that won the qdisc's run bit. Peers come and go in attach.cpp; the device behind the doorbell is device.cpp.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstdio>
#include <new>

#include "base/fd.hpp"
#include "base/raw_syscall.hpp"
#include "driver/e810/port.hpp"

namespace icepath {

void (*local_port_queue_init)(net&, net_device&, uint16_t) = nullptr;
void (*local_port_queue_fini)(net&, net_device&, uint16_t) = nullptr;

namespace {

int open_fifo(const region& r, uint32_t slot, uint16_t stack_no, bool create) {
  char name[48];
  std::snprintf(name, sizeof name, "p%u.%u.wake", slot, stack_no);
  if (create) {
    (void)raw_syscall(SYS_unlinkat, r.dir_fd, name, 0);
    const long e = raw_syscall(SYS_mknodat, r.dir_fd, name, S_IFIFO | 0600, 0);
    if (e < 0) return static_cast<int>(e);
  }
  // Read and write on both ends: no end-of-file for the reader, no SIGPIPE for the writer.
  const long fd = raw_syscall(SYS_openat, r.dir_fd, name, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW, 0);
  if (fd < 0) return static_cast<int>(fd);
  struct stat st;
  if (::fstat(static_cast<int>(fd), &st) != 0 || !S_ISFIFO(st.st_mode)) {
    (void)raw_syscall(SYS_close, fd);
    return -EINVAL;
  }
  return fd_move_high(static_cast<int>(fd));
}

}  // namespace

int e810_open_peer_fifo(const region& own, uint32_t slot, uint16_t stack_no) { return open_fifo(own, slot, stack_no, false); }

void* e810_map_private(size_t bytes) {
  const long m = raw_syscall(SYS_mmap, nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return m < 0 && m > -4096 ? nullptr : reinterpret_cast<void*>(m);
}
void e810_unmap_private(void* m, size_t bytes) { (void)raw_syscall(SYS_munmap, m, bytes); }

// --- transmit -------------------------------------------------------------------------------------------------------

static void drop_to_clean(local_port& p, sk_buff* skb, uint16_t q) {
  // No ring any more. Only the owner may free, and only the owner makes queues go, so it is the owner who finds none.
  (void)q;
  ++p.tx_dropped;
  p.owner->skbs.free(skb);
}

xmit local_port::start_xmit(sk_buff* skb, uint16_t txq_no, bool more) {
  e810_txq* const q = ICEPATH_LIKELY(txq_no < e810_max_peers) ? tx[txq_no].load(std::memory_order_acquire) : nullptr;
  if (ICEPATH_UNLIKELY(!q)) {
    drop_to_clean(*this, skb, txq_no);
    return xmit::drop;
  }
  const uint64_t bit = uint64_t{1} << txq_no;
  if (ICEPATH_UNLIKELY(!e810_try_run(*q))) {
    // The owner restarts or resets this queue at this moment. Stop, look once more; clean_tx wakes a stopped queue that has room.
    netif_tx_stop_queue(*this, txq_no, QUEUE_STATE_DRV_XOFF);
    tx_work.fetch_or(bit, std::memory_order_seq_cst);
    if (!e810_try_run(*q)) {
      std::atomic_ref<uint64_t>(tx_busy).fetch_add(1, std::memory_order_relaxed);
      return xmit::busy;
    }
    queues[txq_no].state.fetch_and(~QUEUE_STATE_DRV_XOFF, std::memory_order_acq_rel);
  }
  const xmit r = ice_start_xmit(q->ring, skb, more);
  e810_end_run(*q);
  if (ICEPATH_UNLIKELY(!(tx_work.load(std::memory_order_relaxed) & bit))) tx_work.fetch_or(bit, std::memory_order_seq_cst);
  return r;
}

void local_port::fold(unsigned qn) {
  e810_txq& q = *tx_all[qn];
  if (!owner->stats) return;
  mib& s = *owner->stats;
  const struct { std::atomic<uint64_t>& to; uint64_t& from; } rows[8] = {
      {s.RingTxDesc, q.ring.stat_desc}, {s.RingDoorbells, q.ring.stat_doorbells}, {s.RingBusy, q.ring.stat_busy}, {s.RingTxLinearize, q.ring.stat_linearize},
      {s.RingBqlStops, q.ring.stat_bql_stops}, {s.RingMddEvents, q.stat_mdd}, {s.RingPaused, q.stat_paused}, {s.RingWakes, q.stat_wakes}};
  for (unsigned k = 0; k < 8; ++k) {
    const uint64_t v = std::atomic_ref<uint64_t>(rows[k].from).load(std::memory_order_relaxed);
    if (v != folded[qn][k]) mib_add(rows[k].to, v - folded[qn][k]);
    folded[qn][k] = v;
  }
}

int local_port::clean_tx(int budget) {
  uint64_t work = tx_work.load(std::memory_order_acquire);
  int n = 0;
  while (work && n < budget) {
    const unsigned i = static_cast<unsigned>(__builtin_ctzll(work));
    const uint64_t bit = uint64_t{1} << i;
    work &= work - 1;
    e810_txq* const q = tx_all[i];
    if (!q) {
      tx_work.fetch_and(~bit, std::memory_order_relaxed);
      continue;
    }
    if (ICEPATH_UNLIKELY(e810_can_resume(*q)) && e810_try_run(*q)) {
      e810_device_run(*q);
      e810_end_run(*q);
    }
    const uint32_t ntc = q->ring.next_to_clean.load(std::memory_order_relaxed);
    if (!q->ring.tx_buf[ntc].next_to_watch.load(std::memory_order_relaxed) && !queues[i].state.load(std::memory_order_relaxed) &&
        !q->ring.to_free.load(std::memory_order_relaxed) && !q->mdd_seen() && !q->peer_bad_seen()) {
      if (nr_tx > e810_poll_all) {  // idle: no longer looked at. Clear, then look: start_xmit sets the bit after the packet
        tx_work.fetch_and(~bit, std::memory_order_seq_cst);
        full_fence();
        if (q->ring.tx_buf[ntc].next_to_watch.load(std::memory_order_relaxed) || q->ring.to_free.load(std::memory_order_relaxed))
          tx_work.fetch_or(bit, std::memory_order_seq_cst);
      }
      continue;
    }
    n += ice_clean_tx_irq(q->ring, owner->skbs, owner->now, budget - n);
    if (ICEPATH_UNLIKELY(q->mdd_seen()) && e810_try_run(*q)) {  // the driver's answer to the event: the queue starts anew
      e810_txq_reset(*q);
      e810_end_run(*q);
      netif_tx_wake_queue(*this, static_cast<uint16_t>(i), QUEUE_STATE_DRV_XOFF | QUEUE_STATE_STACK_XOFF);
    }
    fold(i);
    if (ICEPATH_UNLIKELY(q->peer_bad_seen())) e810_peer_bad(*this, q->peer);
  }
  return n;
}

// --- receive --------------------------------------------------------------------------------------------------------

void local_port::refill(unsigned slot) {
  e810_rxq& q = *rx[slot];
  const uint64_t bit = uint64_t{1} << slot;
  const bool moved = ice_alloc_rx_bufs(q.ring, owner->skbs.frames);
  if (ICEPATH_UNLIKELY(ice_rx_unused(q.ring) >= ice_rx_batch)) {
    if (!(rx_starving & bit) && owner->stats) mib_add(owner->stats->RingRxNoBuf);
    rx_starving |= bit;  // tried again at every poll
  } else {
    rx_starving &= ~bit;
  }
  if (!moved) return;
  full_fence();  // partner: the device's after tx_paused
  if (ICEPATH_UNLIKELY(q.slot->tx_paused.load(std::memory_order_relaxed)) && q.peer >= 0) {
    q.slot->tx_paused.store(0, std::memory_order_relaxed);
    local_peer& peer = peers[q.peer];
    if (peer.fn) (void)e810_wake(*peer.fn, peer.wake_fd);
  }
}

int local_port::poll_ring(unsigned slot, sk_buff** skbs, int budget) {
  e810_rxq& q = *rx[slot];
  if (ICEPATH_UNLIKELY(q.bad)) {
    if (q.closing) e810_rx_free(*this, slot);
    return 0;
  }
  const int n = ice_clean_rx_irq(q.ring, owner->skbs, owner->now, skbs, budget);
  if (ICEPATH_UNLIKELY(n < 0)) {
    q.bad = true;
    e810_peer_bad(*this, q.peer);
    return 0;
  }
  if (n > 0 && owner->stats) mib_add(owner->stats->RingRxDesc, static_cast<uint64_t>(n));
  if (ice_rx_unused(q.ring) >= ice_rx_batch && !q.closing) refill(slot);
  if (ICEPATH_UNLIKELY(q.closing) && n < budget && !ice_rx_pending(q.ring)) e810_rx_free(*this, slot);
  else if (n == budget) rx_pending |= uint64_t{1} << slot;
  return n;
}

int local_port::rx_burst(sk_buff** skbs, int budget) {
  if (ICEPATH_UNLIKELY(fn->attention.load(std::memory_order_relaxed) != attention_seen)) e810_process_attention(*this);
  int n = 0;
  if (ICEPATH_LIKELY(nr_rx <= e810_poll_all)) {
    if (nr_rx > 1 && ++rx_turn >= nr_rx) rx_turn = 0;
    for (unsigned k = 0, todo = nr_rx; k < todo && n < budget && nr_rx; ++k) n += poll_ring(rx_list[(rx_turn + k) % nr_rx], skbs + n, budget - n);
    return n;
  }
  uint64_t look = rx_pending | rx_starving;
  // Exchange, then look at the rings; partner: the device's fence between DD and its test of the bit.
  if (fn->active.load(std::memory_order_relaxed)) look |= fn->active.exchange(0, std::memory_order_seq_cst);
  if (!look) return 0;
  rx_pending = 0;
  rx_turn = (rx_turn + 1) & 63;
  look = std::rotr(look, static_cast<int>(rx_turn));
  while (look) {
    const unsigned slot = (static_cast<unsigned>(__builtin_ctzll(look)) + rx_turn) & 63;
    look &= look - 1;
    if (!rx[slot]) continue;
    if (n == budget) {
      rx_pending |= uint64_t{1} << slot;
      continue;
    }
    n += poll_ring(slot, skbs + n, budget - n);
  }
  return n;
}

// --- sleeping -------------------------------------------------------------------------------------------------------

bool local_port::pending() const {
  if (fn->attention.load(std::memory_order_acquire) != attention_seen) return true;
  for (unsigned k = 0; k < nr_rx; ++k)
    if (const e810_rxq& q = *rx[rx_list[k]]; q.closing || (!q.bad && ice_rx_pending(q.ring))) return true;
  for (uint64_t w = tx_work.load(std::memory_order_relaxed); w; w &= w - 1) {
    const e810_txq* q = tx_all[__builtin_ctzll(w)];
    if (!q) continue;
    if (e810_can_resume(*q) || q->mdd_seen()) return true;
    const uint32_t watch = q->ring.tx_buf[q->ring.next_to_clean.load(std::memory_order_relaxed)].next_to_watch.load(std::memory_order_acquire);
    if (watch && TXD_QW1_DTYPE.get(std::atomic_ref<uint64_t>(q->ring.desc[watch - 1].cmd_type_offset_bsz).load(std::memory_order_acquire)) ==
                     ICE_TX_DESC_DTYPE_DESC_DONE)
      return true;
  }
  return false;
}

bool local_port::arm() {
  for (uint64_t s = rx_starving; s; s &= s - 1)
    if (const unsigned i = static_cast<unsigned>(__builtin_ctzll(s)); rx[i]) refill(i);
  if (++arm_seq == 0) ++arm_seq;
  fn->armed.store(arm_seq, std::memory_order_seq_cst);
  full_fence();  // partner: e810_device_run, refill, e810_ring_attention: they publish, fence, then read armed
  if (!pending()) return true;
  fn->armed.store(0, std::memory_order_relaxed);
  return false;
}

void local_port::disarm() { fn->armed.store(0, std::memory_order_relaxed); }

// --- creation -------------------------------------------------------------------------------------------------------

result<local_port*> local_port_create(region& own, net& n, uint16_t stack_no) {
  using res = result<local_port*>;
  if (stack_no >= max_stacks) return res::error(EINVAL);
  void* mem = e810_map_private(sizeof(local_port));
  if (!mem) return res::error(ENOMEM);
  auto* p = new (mem) local_port;
  p->own = &own;
  p->owner = &n;
  p->stack_no = stack_no;
  p->fifo = open_fifo(own, own.slot, stack_no, true);
  if (p->fifo < 0) {
    const int e = -p->fifo;
    e810_unmap_private(mem, sizeof(local_port));
    return res::error(e);
  }
  p->name = "local";
  p->features = NETIF_F_SG | NETIF_F_IP_CSUM | NETIF_F_IPV6_CSUM | NETIF_F_TSO | NETIF_F_TSO6 | NETIF_F_RXCSUM | NETIF_F_LRO_PASS | NETIF_F_HW_VLAN_TX;
  p->mtu = 9000;
  p->gso_max_size = 65536;
  p->gso_min_size = ICE_TXD_CTX_MIN_MSS;
  p->txq = p->queues;
  e810_mac(own.slot, stack_no, own.cookie, p->dev_addr);
  p->fn = reinterpret_cast<e810_function*>(own.function(stack_no));
  p->fn->armed.store(0, std::memory_order_relaxed);
  p->fn->active.store(0, std::memory_order_relaxed);
  p->fn->version = e810_version;
  p->attention_seen = p->fn->attention.load(std::memory_order_relaxed) - 1;  // look at the slots once
  p->fn->magic.store(e810_magic, std::memory_order_release);                 // partner: attach by a peer
  p->up = true;
  return p;
}

net_device* local_port_dev(local_port* p) { return p; }
int local_port_wake_fd(local_port* p) { return p->fifo; }
bool local_port_has_attention(const local_port* p) { return p->fn->attention.load(std::memory_order_relaxed) != p->attention_seen; }
const uint8_t* local_port_mac(const local_port* p) { return p->dev_addr; }

bool local_port_drain_wake(local_port* p) {
  char b[64];
  bool some = false;
  for (;;) {
    const long n = raw_syscall(SYS_read, p->fifo, b, sizeof b);
    some |= n > 0;
    if (n != static_cast<long>(sizeof b)) return some;
  }
}

bool local_port_armed(const local_port* p) { return p->fn->armed.load(std::memory_order_seq_cst) != 0; }

void local_port_wake_self(local_port* p) {
  const char one = 1;
  (void)raw_syscall(SYS_write, p->fifo, &one, 1);
}

}  // namespace icepath
