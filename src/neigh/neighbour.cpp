// The neighbour table of one stack and the way out through a neighbour (T21). Owner: the stack, all under its owner word, except
// neigh_hh_update, which a control-plane thread may call while it holds a reference that the owner took for it.
//
// Always holds: hh.hh_len != 0 exactly while the link-layer address may be used (reachable, stale, permanent); packets are in
// arp_queue only while the state is incomplete, and never more than arp_queue_max; a neighbour without references is gone.
// Failure: a neighbour that cannot be resolved refuses with EHOSTUNREACH at once, and asks again after a pause.
#include "neigh/neighbour.hpp"

#include <new>

#include "net/dev.hpp"

namespace icepath {

int (*neigh_solicit)(net& n, neighbour* nb) = nullptr;
void (*neigh_error_report)(net& n, neighbour* nb, sk_buff* skb) = nullptr;

namespace {

constexpr unsigned hash_slots = 256, arp_queue_max = 64, neigh_max = 4096;
constexpr nsec failed_retry = sec_ns;   // as the kernel's retrans_time: no storm of questions for a dead host

bool usable(nud s) { return s == nud::reachable || s == nud::stale || s == nud::permanent; }

}  // namespace

struct neigh_table {
  list_head slot[hash_slots];
  unsigned entries = 0;
};

namespace {

list_head& slot_of(neigh_table& t, const net_device* dev, const inet_addr& key) {
  uint64_t w[2];
  std::memcpy(w, key.b, 16);
  return t.slot[hash_mix(hash_mix(w[0] ^ reinterpret_cast<uintptr_t>(dev)) ^ w[1]) % hash_slots];
}
neighbour* entry(list_node* l) { return list_entry<neighbour, &neighbour::node>(l); }

// Writer of the seqlock. One writer at a time: the odd number is taken by CAS, so that owner and control plane may meet.
// Readers: hh_copy. Each word is stored with release: a reader that sees a new word sees the odd number too, and retries.
void hh_write(hh_cache& hh, const uint64_t (&w)[2], uint16_t len) {
  uint32_t s = hh.seq.load(std::memory_order_relaxed);
  do s &= ~1u;
  while (!hh.seq.compare_exchange_weak(s, s + 1, std::memory_order_acq_rel));
  hh_word* d = reinterpret_cast<hh_word*>(hh.hh_data);
  __atomic_store_n(d, w[0], __ATOMIC_RELEASE);
  __atomic_store_n(d + 1, w[1], __ATOMIC_RELEASE);
  __atomic_store_n(&hh.hh_len, len, __ATOMIC_RELEASE);
  hh.seq.store(s + 2, std::memory_order_release);
}

void hh_fill(neighbour& nb, const uint8_t mac[6]) {
  // An IPv4 packet; the ethertype is in the cache because this table serves IPv4 (an IPv6 next hop included).
  uint8_t b[16] = {};
  std::memcpy(b + 2, mac, 6);
  std::memcpy(b + 8, nb.dev->dev_addr, 6);
  b[14] = 0x08, b[15] = 0x00;
  uint64_t w[2];
  std::memcpy(w, b, 16);
  hh_write(nb.hh, w, 14);
}

void hh_clear(neighbour& nb) {
  const uint64_t zero[2] = {};
  hh_write(nb.hh, zero, 0);
}

void fail(net& n, neighbour* nb, sk_buff* skb) {
  if (neigh_error_report) neigh_error_report(n, nb, skb);
  dev_count(n, &mib::IpOutDiscards);
  n.skbs.free(skb);
}

int xmit_ready(net& n, neighbour* nb, sk_buff* skb) {
  skb->dev = nb->dev;
  skb->queue_mapping = nb->txq;
  skb_reset_mac(skb);
  return dev_queue_xmit(n, skb);
}

// No usable header yet: ask, and let the packet wait. The oldest gives way when too many wait.
int resolve(net& n, neighbour* nb, sk_buff* skb) {
  if (nb->nud_state == nud::failed && n.now - nb->used < failed_retry) {
    fail(n, nb, skb);
    return -EHOSTUNREACH;
  }
  if (nb->nud_state != nud::incomplete) {
    nb->nud_state = nud::incomplete;
    nb->used = n.now;
    if (!neigh_solicit || neigh_solicit(n, nb) != 0) {
      nb->nud_state = nud::failed;
      fail(n, nb, skb);
      return -EHOSTUNREACH;
    }
    if (usable(nb->nud_state)) return neigh_output(n, nb, skb);  // answered at once
    if (nb->nud_state == nud::failed) return fail(n, nb, skb), -EHOSTUNREACH;
  }
  if (nb->arp_queue.qlen >= arp_queue_max) {
    dev_count(n, &mib::IpOutDiscards);
    n.skbs.free(nb->arp_queue.pop_front());
  }
  nb->arp_queue.push_back(skb);
  return 0;
}

}  // namespace

neigh_table* neigh_table_create() { return new (std::nothrow) neigh_table; }

void neigh_table_destroy(net& n) {
  if (!n.neigh) return;
  for (auto& s : n.neigh->slot)
    while (!s.empty()) {
      neighbour* nb = entry(s.next);
      nb->node.unlink();
      nb->arp_queue.purge(n.skbs);
      delete nb;
    }
  delete n.neigh;
  n.neigh = nullptr;
}

neighbour* neigh_lookup(net& n, net_device* dev, const inet_addr& key) {
  list_head& s = slot_of(*n.neigh, dev, key);
  for (list_node* l = s.next; l != &s; l = l->next)
    if (neighbour* nb = entry(l); nb->dev == dev && nb->primary_key == key) {
      ++nb->refcnt;
      return nb;
    }
  return nullptr;
}

neighbour* neigh_create(net& n, net_device* dev, const inet_addr& key) {
  if (neighbour* nb = neigh_lookup(n, dev, key)) return nb;
  if (n.neigh->entries >= neigh_max) return nullptr;
  auto* nb = new (std::nothrow) neighbour;
  if (!nb) return nullptr;
  nb->primary_key = key;
  nb->dev = dev;
  nb->nud_state = nud::none;
  nb->refcnt = 1;
  nb->used = n.now;
  slot_of(*n.neigh, dev, key).push_front(nb->node);
  ++n.neigh->entries;
  return nb;
}

void neigh_hh_update(neighbour* nb, const uint8_t mac[6]) { hh_fill(*nb, mac); }

void neigh_update(net& n, neighbour* nb, nud state, const uint8_t mac[6]) {
  ++nb->refcnt;  // what we send or fail below may drop the last other reference
  nb->nud_state = state;
  if (usable(state)) {
    if (mac) std::memcpy(nb->ha, mac, 6);
    hh_fill(*nb, nb->ha);
    nb->used = n.now;
    while (!nb->arp_queue.empty() && usable(nb->nud_state)) neigh_output(n, nb, nb->arp_queue.pop_front());
  } else {
    hh_clear(*nb);
    if (state == nud::failed) nb->used = n.now;
    if (state != nud::incomplete) {
      sk_buff_head waiting = nb->arp_queue;
      nb->arp_queue = sk_buff_head{};
      while (sk_buff* skb = waiting.pop_front()) fail(n, nb, skb);
    }
  }
  neigh_release(n, nb);
}

void neigh_release(net& n, neighbour* nb) {
  if (!nb || --nb->refcnt) return;
  nb->node.unlink();
  --n.neigh->entries;
  nb->arp_queue.purge(n.skbs);
  delete nb;
}

int neigh_output(net& n, neighbour* nb, sk_buff* skb) {
  // 16 bytes are written: two of padding before the header.
  if (ICEPATH_UNLIKELY(skb->headroom() < 16)) {
    dev_count(n, &mib::IpOutDiscards);
    n.skbs.free(skb);
    return -ENOBUFS;
  }
  if (ICEPATH_UNLIKELY(!hh_copy(nb->hh, skb->data - 16))) return resolve(n, nb, skb);
  skb_push(skb, 14);
  return xmit_ready(n, nb, skb);
}

}  // namespace icepath
