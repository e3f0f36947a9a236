// IPv4 output and input (T17-T20, T33). Under the owner word of the stack.
#pragma once
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
};
// A route by an explicit next hop, as promotion makes it for the `local` port. +1 reference; nullptr: no memory.
dst_entry* ip_route_via(net& n, net_device* dev, neighbour* nb, uint32_t mtu);
// Lookup by address, for ports with a control plane. +1 reference; nullptr: no route (EHOSTUNREACH).
dst_entry* ip_route_output(net& n, const inet_addr& daddr, const inet_addr& saddr);
void dst_release(net& n, dst_entry* d);
extern uint32_t ip_route_generation;   // raised by the control plane

struct ip_params { inet_addr saddr, daddr; uint8_t tos, ttl, protocol; bool df; };
// T17-T20: skb->data at the transport header, transport_header set, ip_sum::partial with pseudo-header sum left to the device or done by validate.
// Consumes skb. 0, or -EHOSTUNREACH, -ENOBUFS (local congestion), -ENETDOWN, -EMSGSIZE.
int ip_queue_xmit(net& n, dst_entry* d, const ip_params& p, sk_buff* skb);
void ip_rcv(net& n, sk_buff* skb);     // data at the IP header; consumes skb

}  // namespace icepath
