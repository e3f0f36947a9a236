// The kernel's routing decision from the mirror (tables.hpp), as `ip route get` would give it. Any thread, no locks, no system calls.
//
// ok       where a packet goes: interface, next hop, MTU, source.
// error    the kernel refuses too, with this errno: unreachable EHOSTUNREACH, prohibit EACCES, blackhole EINVAL, no route ENETUNREACH.
// unknown  the kernel's business, with the reason:
//   - any rule but the plain ones to local, main and default; a table that is not known or changes all the time;
//   - the route found is multipath, a nexthop object, has an encapsulation, or is of a type other than those named (nat, multicast, throw);
//   - several routes among which the kernel chooses by the state of neighbours: equal prefix and metric, or IPv6 by a next hop not known to work;
//   - local and main give different answers by longest prefix over both together and by one after the other: which of them the kernel does depends on
//     whether there ever was a rule of one's own;
//   - IPv6 source-prefix routes (subtrees); multicast, broadcast and link-local destinations.
// The MTU is the route's or link's; a path MTU that the kernel learnt for the destination is in no dump and not announced (control_pmtu asks for it).
#pragma once
#include "control/tables.hpp"

namespace icepath {

struct route_query {
  inet_addr saddr, daddr;       // saddr all zero: not bound yet
  uint32_t mark, oif;           // oif 0: any (SO_BINDTODEVICE otherwise)
  uint8_t tos;
};
enum class route_verdict : uint8_t { ok, error, unknown };
struct route_answer {
  route_verdict verdict;
  bool local, has_gw;           // local: to this host itself
  int err;                      // verdict error
  const char* reason;           // verdict unknown
  uint32_t ifindex, mtu;
  inet_addr next_hop;           // the gateway, or daddr on link
  inet_addr src;                // the source the kernel would choose; saddr if that was given
  uint32_t table;
};

// The kernel's path MTU to the peer: an unsent UDP socket's, a few system calls, no capability. -errno. To be asked when a flow begins, and when
// segments of full size are lost: the port leaves ICMP to the kernel, which learns from it.
int control_pmtu(const inet_addr& saddr, const inet_addr& daddr, uint32_t oif);
route_answer control_route(const control_tables& t, const route_query& q);

}  // namespace icepath
