// Neighbours: who is behind a next hop on a link (T20, T21). Key: the next hop's address (IPv4 mapped, or IPv6: an IPv4 route may
// go by an IPv6 gateway). On the `local` port a peer stack is the gateway fe80::<EUI-64 of its MAC>, permanent.
// The ready link-layer header (hh_cache) is written under a seqlock and copied out in one aligned 16-byte piece.
// Owner: the stack; a control-plane thread may update `hh` (hence the seqlock).
#pragma once
#include "base/list.hpp"
#include "net/net.hpp"

namespace icepath {

enum class nud : uint8_t { none, incomplete, reachable, stale, failed, permanent };

struct alignas(16) hh_cache {
  std::atomic<uint32_t> seq{0};    // odd: being written
  uint16_t hh_len = 0;             // 14; 0: not usable yet
  alignas(16) uint8_t hh_data[16] = {};   // 2 bytes of padding, then dst, src, ethertype: IP header stays 4-byte aligned
};

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
void neigh_release(net& n, neighbour* nb);
int neigh_output(net& n, neighbour* nb, sk_buff* skb);                       // consumes skb; 0 or -errno
extern int (*neigh_solicit)(net& n, neighbour* nb);                          // ask the kernel to resolve; set by the control plane, null: fail

}  // namespace icepath
