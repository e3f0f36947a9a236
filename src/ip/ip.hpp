// IPv4 output and input (T17-T20, T33). Under the owner word of the stack.
#pragma once
#include <atomic>
#include <cstring>
#include "neigh/neighbour.hpp"
#include "net/net.hpp"

namespace icepath {

// A route as a socket caches it (T17): valid while obsolete_gen equals the table's generation.
struct dst_entry {
  net_device* dev = nullptr;
  neighbour* neigh = nullptr;      // next hop, referenced
  uint32_t mtu = 0;
  uint32_t gen = 0;
  uint32_t refcnt = 0;
  bool pinned = false;             // made by ip_route_via: the table's changes do not concern it
};
// A route by an explicit next hop, as promotion makes it for the `local` port. +1 reference; nullptr: no memory.
dst_entry* ip_route_via(net& n, net_device* dev, neighbour* nb, uint32_t mtu);
// The way back to who sent skb, without a table: to its link-layer address on the device it came by. +1 reference; nullptr: a stranger.
dst_entry* ip_route_back(net& n, const sk_buff* skb);
// fe80::<EUI-64> (RFC 4291 appendix A): the next hop's name on a port that has no addresses of its own.
inline inet_addr link_local_of(const uint8_t mac[6]) {
  inet_addr a{};
  const uint8_t eui[16] = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, static_cast<uint8_t>(mac[0] ^ 2), mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]};
  std::memcpy(a.b, eui, 16);
  return a;
}
// Lookup by address, for ports with a control plane. +1 reference; nullptr: no route (EHOSTUNREACH).
dst_entry* ip_route_output(net& n, const inet_addr& daddr, const inet_addr& saddr);
void dst_release(net& n, dst_entry* d);
extern std::atomic<uint32_t> ip_route_generation;   // raised by the control plane, any thread (release)
inline bool dst_valid(const dst_entry* d) {         // false: look it up again
  return d->pinned || d->gen == ip_route_generation.load(std::memory_order_acquire);
}
// Who knows the routes (set by the control plane; null: no route anywhere). On success fills dev, a next hop with one reference
// taken for the caller, and mtu (0: the device's).
struct fib_result { net_device* dev; neighbour* neigh; uint32_t mtu; };
extern bool (*ip_fib_lookup)(net& n, const inet_addr& daddr, const inet_addr& saddr, fib_result& out);

constexpr uint8_t rt_tos2priority(uint8_t tos) {    // RFC 1349 TOS bits to TC_PRIO_*, as the kernel maps them
  constexpr uint8_t map[16] = {0, 1, 0, 0, 2, 2, 2, 2, 6, 6, 6, 6, 4, 4, 4, 4};
  return map[(tos >> 1) & 15];
}

struct ip_params { inet_addr saddr, daddr; uint8_t tos, ttl, protocol; bool df; };
// T17-T20: skb->data at the transport header, transport_header set. ip_sum::partial: csum_start and csum_offset set; the pseudo-header's sum (over
// the whole length) is put into the checksum field here, the rest is the device's or validate's.
// d null or no longer valid: looked up for this packet (the caller should renew its own). Consumes skb.
// 0, or -EHOSTUNREACH, -ENOBUFS (local congestion), -ENETDOWN, -EMSGSIZE.
int ip_queue_xmit(net& n, dst_entry* d, const ip_params& p, sk_buff* skb);
void ip_rcv(net& n, sk_buff* skb);     // data at the IP header; consumes skb
// Who takes packets of an IP protocol: skb->data at the transport header, network_header and transport_header valid, trimmed to the IP
// length, consumes skb. So ip need not know TCP. Any thread, idempotent; handler null takes it back.
void inet_add_protocol(uint8_t proto, void (*handler)(net& n, sk_buff* skb));

}  // namespace icepath
