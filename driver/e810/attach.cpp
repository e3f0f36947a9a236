// How peers come and go (local_port.hpp, function.hpp). Runs under the owner word of the stack, never on the data path.
//
// A wants to send to B: A claims a slot in B's function (one CAS) and rings B's attention. B, at its next poll, puts a ring with posted frames
// behind the slot, marks it ready, rings A, and claims a slot in A's function for its own direction. A, at its next poll or attach call, sees ready.
// Going: the claimant marks the slot closing, B reads what is still in the ring and frees it. B alone wants to stop: it marks the slot
// revoked and keeps the ring until A answers with closing, because A's device may be writing a frame at this moment. A dead A answers
// nothing; whoever knows that it is dead (its region's lock is free) frees at once.
#include <cstdio>
#include <new>

#include "base/raw_syscall.hpp"
#include "driver/e810/port.hpp"

namespace icepath {

int e810_open_peer_fifo(const region& own, uint32_t slot, uint16_t stack_no);

namespace {

bool is_own_process(const local_port& p, const peer_stack& id) { return id.process_slot == p.own->slot && id.process_cookie == p.own->cookie; }
bool is_self(const local_port& p, const peer_stack& id) { return is_own_process(p, id) && id.stack_no == p.stack_no; }
uint64_t own_word(const local_port& p, slot_state s) { return slot_word::make(s, p.own->slot, p.stack_no, p.own->cookie); }

int find_peer(const local_port& p, const peer_stack& id) {
  for (unsigned i = 0; i < e810_max_peers; ++i) {
    const local_peer& q = p.peers[i];
    if (q.used && q.id.process_slot == id.process_slot && q.id.stack_no == id.stack_no && q.id.process_cookie == id.process_cookie)
      return static_cast<int>(i);
  }
  return -1;
}

// The peer's process, mapped; cookie_low: only the bits a slot word holds. -1: nobody there.
int map_process(local_port& p, uint32_t slot, uint64_t cookie, bool cookie_low) {
  int free = -1;
  for (unsigned i = 0; i < e810_max_peers; ++i) {
    const local_map& m = p.maps[i];
    if (!m.refs) {
      if (free < 0) free = static_cast<int>(i);
    } else if (m.rp.slot == slot && (cookie_low ? (m.rp.cookie & slot_word::cookie_mask) == cookie : m.rp.cookie == cookie)) {
      return static_cast<int>(i);
    }
  }
  if (free < 0) return -1;
  auto r = region_open_peer(slot, cookie_low ? 0 : cookie, false);
  if (!r.ok()) return -1;
  region_peer rp = *r;
  if (rp.bytes < region_frames_off || (cookie_low && (rp.cookie & slot_word::cookie_mask) != cookie)) {
    region_close_peer(rp);
    return -1;
  }
  p.maps[free].rp = rp;
  return free;
}

// Record of a peer, made when there is none. -1: nobody there, or no room.
int get_peer(local_port& p, uint32_t process, uint16_t stack, uint64_t cookie, bool cookie_low) {
  if (process >= max_processes || stack >= max_stacks) return -1;
  const bool own = process == p.own->slot && cookie == (cookie_low ? p.own->cookie & slot_word::cookie_mask : p.own->cookie);
  int map = -1;
  uint64_t full = p.own->cookie;
  if (!own) {
    map = map_process(p, process, cookie, cookie_low);
    if (map < 0) return -1;
    full = p.maps[map].rp.cookie;
  }
  const auto unmap = [&] {
    if (map >= 0 && !p.maps[map].refs) region_close_peer(p.maps[map].rp);
    return -1;
  };
  const peer_stack id{process, stack, full};
  if (const int i = find_peer(p, id); i >= 0) return i;
  int i = 0;
  while (i < static_cast<int>(e810_max_peers) && p.peers[i].used) ++i;
  if (i == static_cast<int>(e810_max_peers)) return unmap();
  const int fd = e810_open_peer_fifo(*p.own, process, stack);
  if (fd < 0) return unmap();
  uint8_t* base = own ? p.own->base : p.maps[map].rp.base;
  local_peer& q = p.peers[i];
  q = {};
  q.used = true;
  q.id = id;
  q.map = map;
  q.wake_fd = fd;
  q.fn = reinterpret_cast<e810_function*>(base + region_functions_off + uint64_t{stack} * region_function_stride);
  if (map >= 0) ++p.maps[map].refs;
  return i;
}

void put_peer(local_port& p, int i) {
  local_peer& q = p.peers[i];
  if (!q.used || q.tx >= 0 || q.rx >= 0) return;
  (void)raw_syscall(SYS_close, q.wake_fd);
  if (q.map >= 0 && --p.maps[q.map].refs == 0) region_close_peer(p.maps[q.map].rp);
  q = {};
}

void tx_free_memory(local_port& p, e810_txq* q) {
  if (q->ring.desc) p.own->free_ring(reinterpret_cast<uint8_t*>(q->ring.desc), e810_tx_ring_bytes);
  if (q->bounce) e810_unmap_private(q->bounce, e810_bounce_bytes);
  e810_unmap_private(q, sizeof(e810_txq));
}

// Claims a slot in the peer's function for our sending direction.
bool tx_claim(local_port& p, int pi) {
  local_peer& peer = p.peers[pi];
  if (peer.fn->magic.load(std::memory_order_acquire) != e810_magic) return false;
  unsigned t = 0;
  while (t < e810_max_peers && p.tx_all[t]) ++t;
  if (t == e810_max_peers) return false;
  void* mem = e810_map_private(sizeof(e810_txq));
  uint8_t* ring = p.own->alloc_ring(e810_tx_ring_bytes);
  if (!mem || !ring) {
    if (mem) e810_unmap_private(mem, sizeof(e810_txq));
    if (ring) p.own->free_ring(ring, e810_tx_ring_bytes);
    return false;
  }
  auto* q = new (mem) e810_txq;
  q->ring.desc = reinterpret_cast<ice_tx_desc*>(ring);
  q->ring.dma_base = p.own->base;
  q->ring.dma_lo = region_frames_off;
  q->ring.dma_hi = p.own->bytes;
  q->ring.dev = &p;
  q->ring.q_index = static_cast<uint16_t>(t);
  q->ring.doorbell = e810_doorbell;
  q->ring.dql.min_limit = 2 * 65536;   // the device completes inline: only a paused peer lets bytes pile up
  ice_tx_ring_init(q->ring);
  q->peer = pi;
  q->peer_fn = peer.fn;
  q->wake_fd = peer.wake_fd;
  q->peer_base = peer.map < 0 ? p.own->base : p.maps[peer.map].rp.base;
  q->peer_lo = region_frames_off;
  q->peer_hi = peer.map < 0 ? p.own->bytes : p.maps[peer.map].rp.bytes;
  e810_mac(peer.id.process_slot, peer.id.stack_no, peer.id.process_cookie, q->peer_mac);
  for (unsigned s = 0; s < e810_max_peers; ++s) {
    uint64_t none = 0;
    if (peer.fn->slots[s].word.load(std::memory_order_relaxed)) continue;
    if (!peer.fn->slots[s].word.compare_exchange_strong(none, own_word(p, slot_state::claimed), std::memory_order_acq_rel)) continue;
    q->slot = &peer.fn->slots[s];
    q->slot_no = s;
    q->word_ready = own_word(p, slot_state::ready);
    p.tx_all[t] = q;
    ++p.nr_tx;
    std::memset(p.folded[t], 0, sizeof p.folded[t]);
    peer.tx = static_cast<int>(t);
    peer.tx_ready = false;
    e810_ring_attention(peer);
    return true;
  }
  tx_free_memory(p, q);
  peer.fn->check_peers.store(1, std::memory_order_relaxed);  // all taken: perhaps by the dead
  e810_ring_attention(peer);
  return false;
}

// The claimed slot became ready: check what the peer wrote and use it. false: nonsense.
bool tx_ready(local_port& p, int pi) {
  local_peer& peer = p.peers[pi];
  e810_txq* q = p.tx_all[peer.tx];
  const uint64_t off = q->slot->rx_desc_off.load(std::memory_order_relaxed);
  const bool sane = q->slot->rx_count.load(std::memory_order_relaxed) == ice_rx_count && off >= region_rings_off && !(off & 63) &&
                    off <= region_frames_off && region_frames_off - off >= e810_rx_ring_bytes;
  if (!sane) return false;
  q->rx = reinterpret_cast<ice_32b_rx_flex_desc*>(q->peer_base + off);
  q->rx_features = q->slot->rx_features.load(std::memory_order_relaxed);
  if ((q->rx_features & (NETIF_F_RXCSUM | NETIF_F_LRO_PASS)) != (NETIF_F_RXCSUM | NETIF_F_LRO_PASS)) {
    q->bounce = static_cast<uint8_t*>(e810_map_private(e810_bounce_bytes));
    if (!q->bounce) return false;
  }
  const auto t = static_cast<uint16_t>(peer.tx);
  p.queues[t].state.store(0, std::memory_order_relaxed);
  if (p.num_tx_queues <= t) p.num_tx_queues = static_cast<uint16_t>(t + 1);
  peer.tx_ready = true;
  p.tx[t].store(q, std::memory_order_release);  // partner: start_xmit
  if (local_port_queue_init) local_port_queue_init(*p.owner, p, t);
  return true;
}

// Our sending direction goes: what is outstanding is freed, the peer is told.
void tx_close(local_port& p, int pi) {
  local_peer& peer = p.peers[pi];
  if (peer.tx < 0) return;
  const auto t = static_cast<uint16_t>(peer.tx);
  e810_txq* q = p.tx_all[t];
  if (peer.tx_ready && local_port_queue_fini) local_port_queue_fini(*p.owner, p, t);
  p.tx[t].store(nullptr, std::memory_order_seq_cst);
  while (!e810_try_run(*q)) {  // a start_xmit that began before: it ends by itself, and waits for nobody
  }
  e810_txq_reset(*q);
  p.fold(t);
  uint64_t w = q->slot->word.load(std::memory_order_acquire);
  while (slot_word::with(w, slot_state::ready) == q->word_ready && slot_word::state(w) != slot_state::closing &&
         !q->slot->word.compare_exchange_weak(w, slot_word::with(w, slot_state::closing), std::memory_order_acq_rel)) {
  }
  p.tx_all[t] = nullptr;
  --p.nr_tx;
  p.tx_work.fetch_and(~(uint64_t{1} << t), std::memory_order_relaxed);
  p.queues[t].state.store(0, std::memory_order_relaxed);
  peer.tx = -1;
  peer.tx_ready = false;
  tx_free_memory(p, q);
  e810_ring_attention(peer);
}

// A peer claimed slot s of ours: put a receive queue behind it. false: refused.
bool rx_accept(local_port& p, unsigned s, uint64_t w) {
  const int pi = get_peer(p, slot_word::process(w), slot_word::stack(w), slot_word::cookie(w), true);
  if (pi < 0) return false;
  local_peer& peer = p.peers[pi];
  if (peer.rx >= 0) {  // one queue per pair of stacks; a new claim may come while the old ring still drains: it waits
    const slot_state old = slot_word::state(p.rx[peer.rx]->slot->word.load(std::memory_order_relaxed));
    return p.rx[peer.rx]->closing || old == slot_state::closing || old == slot_state::revoked;
  }
  void* mem = e810_map_private(sizeof(e810_rxq));
  uint8_t* ring = p.own->alloc_ring(e810_rx_ring_bytes);
  if (!mem || !ring) {
    if (mem) e810_unmap_private(mem, sizeof(e810_rxq));
    if (ring) p.own->free_ring(ring, e810_rx_ring_bytes);
    put_peer(p, pi);
    return false;
  }
  auto* q = new (mem) e810_rxq;
  e810_slot& slot = p.fn->slots[s];
  q->slot = &slot;
  q->word = slot_word::with(w, slot_state::ready);
  q->peer = pi;
  q->ring.desc = reinterpret_cast<ice_32b_rx_flex_desc*>(ring);
  q->ring.tail = &slot.tail;
  q->ring.dma_base = p.own->base;
  q->ring.dev = &p;
  q->ring.q_index = static_cast<uint16_t>(s);
  slot.tail.store(0, std::memory_order_relaxed);
  slot.tx_paused.store(0, std::memory_order_relaxed);
  slot.rx_desc_off.store(static_cast<uint64_t>(ring - p.own->base), std::memory_order_relaxed);
  slot.rx_count.store(ice_rx_count, std::memory_order_relaxed);
  slot.rx_features.store(p.features & (NETIF_F_RXCSUM | NETIF_F_LRO_PASS), std::memory_order_relaxed);
  p.rx[s] = q;
  peer.rx = static_cast<int>(s);
  p.rx_list[p.nr_rx++] = static_cast<uint8_t>(s);
  p.rx_pending |= uint64_t{1} << s;
  p.refill(s);
  // Release, partner: tx_ready. A claimant that gave up meanwhile has made it closing; the next look at the slots finds that.
  (void)slot.word.compare_exchange_strong(w, q->word, std::memory_order_acq_rel);
  e810_ring_attention(peer);
  if (peer.tx < 0 && !is_self(p, peer.id)) (void)tx_claim(p, pi);   // the other direction at once
  return true;
}

}  // namespace

void e810_mac(uint32_t process, uint16_t stack, uint64_t cookie, uint8_t mac[6]) {
  mac[0] = 0x02;
  mac[1] = 0x1c;
  mac[2] = static_cast<uint8_t>(process >> 8);
  mac[3] = static_cast<uint8_t>(process);
  mac[4] = static_cast<uint8_t>(stack);
  mac[5] = static_cast<uint8_t>(hash_mix(cookie));
}

void e810_ring_attention(local_peer& peer) {
  peer.fn->attention.fetch_add(1, std::memory_order_seq_cst);
  full_fence();  // partner: arm()
  (void)e810_wake(*peer.fn, peer.wake_fd);
}

void e810_rx_free(local_port& p, unsigned s) {
  e810_rxq* q = p.rx[s];
  ice_clean_rx_ring(q->ring, p.owner->skbs.frames);
  p.own->free_ring(reinterpret_cast<uint8_t*>(q->ring.desc), e810_rx_ring_bytes);
  for (unsigned k = 0; k < p.nr_rx; ++k)
    if (p.rx_list[k] == s) {
      p.rx_list[k] = p.rx_list[--p.nr_rx];
      break;
    }
  p.rx[s] = nullptr;
  p.rx_pending &= ~(uint64_t{1} << s);
  p.rx_starving &= ~(uint64_t{1} << s);
  p.fn->slots[s].word.store(0, std::memory_order_release);
  --p.attention_seen;  // a claim of the same peer may be waiting: look again
  const int pi = q->peer;
  e810_unmap_private(q, sizeof(e810_rxq));
  if (pi >= 0) {
    p.peers[pi].rx = -1;
    put_peer(p, pi);
  }
}

static void rx_revoke(local_port& p, int pi, bool dead) {
  local_peer& peer = p.peers[pi];
  if (peer.rx < 0) return;
  const auto s = static_cast<unsigned>(peer.rx);
  e810_rxq* q = p.rx[s];
  uint64_t w = q->word;
  if (dead) {
    e810_rx_free(p, s);
  } else if (p.fn->slots[s].word.compare_exchange_strong(w, slot_word::with(w, slot_state::revoked), std::memory_order_acq_rel)) {
    e810_ring_attention(peer);
  }
}

void e810_peer_bad(local_port& p, int pi) {
  if (pi < 0 || !p.peers[pi].used) return;
  if (p.owner->stats) mib_add(p.owner->stats->RingMddEvents);
  tx_close(p, pi);
  rx_revoke(p, pi, false);
  put_peer(p, pi);
}

void e810_process_attention(local_port& p) {
  p.attention_seen = p.fn->attention.load(std::memory_order_acquire);
  const bool check = p.fn->check_peers.exchange(0, std::memory_order_relaxed);
  for (int pass = 0; pass < 2; ++pass) {  // first those that go, then those that come
    for (unsigned s = 0; s < e810_max_peers; ++s) {
      std::atomic<uint64_t>& word = p.fn->slots[s].word;
      const uint64_t w = word.load(std::memory_order_acquire);
      e810_rxq* const q = p.rx[s];
      if (!w && !q) continue;
      const slot_state st = slot_word::state(w);
      if (pass == 0) {
        if (q && check && !is_own_process(p, p.peers[q->peer].id) && !region_alive(p.peers[q->peer].id.process_slot, p.peers[q->peer].id.process_cookie)) {
          const int pi = q->peer;
          tx_close(p, pi);
          e810_rx_free(p, s);
        } else if (q && (st == slot_state::closing || slot_word::with(w, slot_state::ready) != q->word)) {
          if (st != slot_state::closing && p.owner->stats) mib_add(p.owner->stats->RingMddEvents);  // a word nobody may write
          q->closing = true;
          p.rx_pending |= uint64_t{1} << s;
        } else if (!q && st != slot_state::claimed) {
          word.store(0, std::memory_order_release);  // left by a peer that gave up before we answered, or by an earlier port
        }
      } else if (!q && st == slot_state::claimed && !rx_accept(p, s, w)) {
        uint64_t expect = w;
        (void)word.compare_exchange_strong(expect, 0, std::memory_order_acq_rel);
        if (const int pi = find_peer(p, {slot_word::process(w), slot_word::stack(w), slot_word::cookie(w)}); pi >= 0) e810_ring_attention(p.peers[pi]);
      }
    }
  }
  for (int i = 0; i < static_cast<int>(e810_max_peers); ++i) {
    local_peer& peer = p.peers[i];
    if (!peer.used || peer.tx < 0) continue;
    e810_txq* q = p.tx_all[peer.tx];
    const uint64_t w = q->slot->word.load(std::memory_order_acquire);
    if (!peer.tx_ready) {
      if (w == q->word_ready) {
        if (!tx_ready(p, i)) e810_peer_bad(p, i);
      } else if (w != slot_word::with(q->word_ready, slot_state::claimed)) {
        tx_close(p, i);  // refused
        put_peer(p, i);
      }
    } else if (w != q->word_ready) {
      tx_close(p, i);    // revoked
      put_peer(p, i);
    }
  }
}

attach local_port_attach(local_port* p, const peer_stack& id, uint16_t* txq, uint8_t mac[6]) {
  const int pi = get_peer(*p, id.process_slot, id.stack_no, id.process_cookie, false);
  if (pi < 0) return attach::failed;
  local_peer& peer = p->peers[pi];
  if (peer.tx < 0 && !tx_claim(*p, pi)) {
    put_peer(*p, pi);
    return attach::failed;
  }
  if (!peer.tx_ready && local_port_has_attention(p)) e810_process_attention(*p);   // our own slot, or an answer
  if (!peer.used || peer.tx < 0) return attach::failed;
  if (!peer.tx_ready) return attach::pending;
  *txq = static_cast<uint16_t>(peer.tx);
  std::memcpy(mac, p->tx_all[peer.tx]->peer_mac, 6);
  return attach::ready;
}

void local_port_detach(local_port* p, const peer_stack& id) {
  const int pi = find_peer(*p, id);
  if (pi < 0) return;
  const bool own = is_own_process(*p, id), dead = is_self(*p, id) || (!own && !region_alive(id.process_slot, id.process_cookie));
  tx_close(*p, pi);
  rx_revoke(*p, pi, dead);
  if (p->peers[pi].used) put_peer(*p, pi);
}

unsigned local_port_peers(const local_port* p) {
  unsigned n = 0;
  for (const local_peer& q : p->peers) n += q.used;
  return n;
}

const region_peer* local_port_peer_region(const local_port* p, const peer_stack& peer) {
  for (const local_peer& q : p->peers)
    if (q.used && q.map >= 0 && q.id.process_slot == peer.process_slot && q.id.process_cookie == peer.process_cookie) return &p->maps[q.map].rp;
  return nullptr;
}

void local_port_destroy(local_port* p) {
  p->up = false;
  p->fn->magic.store(0, std::memory_order_release);
  for (int i = 0; i < static_cast<int>(e810_max_peers); ++i)
    if (p->peers[i].used) local_port_detach(p, p->peers[i].id);
  // Living peers may be writing a frame; they answer at their next poll. A ring whose peer does not is left to the region's end: its
  // frames must not be used for anything else while somebody may write into them.
  for (int tries = 0; p->nr_rx && tries < 200; ++tries) {
    e810_process_attention(*p);
    for (unsigned k = p->nr_rx; k-- > 0;)
      if (p->rx[p->rx_list[k]]->closing) e810_rx_free(*p, p->rx_list[k]);
    if (!p->nr_rx) break;
    struct { long s, ns; } t{0, 50'000};
    (void)raw_syscall(SYS_nanosleep, &t, nullptr);
  }
  for (int i = 0; i < static_cast<int>(e810_max_peers); ++i) {
    local_peer& peer = p->peers[i];
    if (!peer.used) continue;
    tx_close(*p, i);   // claims made while we waited
    peer.rx = -1;
    put_peer(*p, i);
  }
  (void)raw_syscall(SYS_close, p->fifo);
  char name[48];
  std::snprintf(name, sizeof name, "p%u.%u.wake", p->own->slot, p->stack_no);
  (void)raw_syscall(SYS_unlinkat, p->own->dir_fd, name, 0);
  e810_unmap_private(p, sizeof(local_port));
}

}  // namespace icepath
