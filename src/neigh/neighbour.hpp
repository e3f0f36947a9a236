// Neighbours: who is behind a next hop on a link (T20, T21). Key: the next hop's address (IPv4 mapped, or IPv6: an IPv4 route may
// go by an IPv6 gateway). On the `local` port a peer stack is the gateway fe80::<EUI-64 of its MAC>, permanent.
// Packets wait in arp_queue (bounded, the oldest gives way) while a neighbour is incomplete. A neighbour lives as long as it has references.
// The ready link-layer header (hh_cache) is written under a seqlock and copied out in one aligned 16-byte piece.
// Owner: the stack; a control-plane thread may update `hh` (hence the seqlock).
#pragma once
#include <atomic>
#include "base/list.hpp"
#include "net/net.hpp"

namespace icepath {

enum class nud : uint8_t { none, incomplete, reachable, stale, failed, permanent };

struct alignas(16) hh_cache {
  std::atomic<uint32_t> seq{0};    // odd: being written
  uint16_t hh_len = 0;             // 14; 0: not usable yet
  alignas(16) uint8_t hh_data[16] = {};   // 2 bytes of padding, then dst, src, ethertype: IP header stays 4-byte aligned
};

// Reader of the seqlock: 16 bytes to `to` (any alignment). False: no usable header (to may be written). Any thread.
using hh_word [[gnu::may_alias]] = uint64_t;
inline bool hh_copy(const hh_cache& hh, uint8_t* to) {
  for (;;) {
    const uint32_t s = hh.seq.load(std::memory_order_acquire);   // partner: the release store that ends a write
    const auto* d = reinterpret_cast<const hh_word*>(hh.hh_data);
    const uint64_t w[2] = {__atomic_load_n(d, __ATOMIC_ACQUIRE), __atomic_load_n(d + 1, __ATOMIC_ACQUIRE)};   // partner: release stores
    const uint16_t len = __atomic_load_n(&hh.hh_len, __ATOMIC_ACQUIRE);
    if (ICEPATH_UNLIKELY((s & 1) || hh.seq.load(std::memory_order_relaxed) != s)) continue;
    std::memcpy(to, w, 16);
    return len != 0;
  }
}

struct neighbour {
  list_node node;
  inet_addr primary_key;
  net_device* dev = nullptr;
  nud nud_state = nud::none;
  uint16_t txq = 0;                // queue that leads there (skb->queue_mapping)
  uint8_t ha[6] = {};
  uint32_t refcnt = 0;
  sk_buff_head arp_queue;          // waiting while incomplete; bounded
  nsec used = 0;
  hh_cache hh;
};

neigh_table* neigh_table_create();
void neigh_table_destroy(net& n);
neighbour* neigh_lookup(net& n, net_device* dev, const inet_addr& key);      // +1 reference, nullptr
neighbour* neigh_create(net& n, net_device* dev, const inet_addr& key);      // +1 reference; state none; nullptr: no memory
void neigh_update(net& n, neighbour* nb, nud state, const uint8_t mac[6]);   // valid states flush arp_queue, failed drops it (EHOSTUNREACH)
void neigh_hh_update(neighbour* nb, const uint8_t mac[6]);                   // new address for the header only; any thread with a reference
void neigh_release(net& n, neighbour* nb);
int neigh_output(net& n, neighbour* nb, sk_buff* skb);                       // consumes skb; 0 or -errno
extern int (*neigh_solicit)(net& n, neighbour* nb);                          // ask the kernel to resolve; set by the control plane, null: fail
// A packet is about to be freed because its neighbour failed: tells its socket (soft error EHOSTUNREACH). Null: nobody is told.
extern void (*neigh_error_report)(net& n, neighbour* nb, sk_buff* skb);

}  // namespace icepath
