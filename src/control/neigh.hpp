// Neighbours of the mirror, and what is asked of the kernel about them (DESIGN section 10: icepath runs no ARP of its own on a shared interface).
//
// control_neigh reads the tables: any thread, no locks, no system calls. The others are system calls on a descriptor of control_neigh_fds, for slow
// paths:
// control_resolve  starts resolution without a packet of our own (RTM_NEWNEIGH, NUD_NONE, NTF_USE: the kernel sends its ARP or ND request). It also
//                  moves a STALE entry to DELAY, as a packet would: to be called, at most once a second, while a flow sends by it. CAP_NET_ADMIN.
// control_confirm  tells the kernel that the peer answers (TCP made progress): a UDP sendto of nothing with MSG_CONFIRM | MSG_PROBE, which routes and
//                  confirms and sends no packet. No capability. The state changes at the kernel's next look: DELAY to REACHABLE without a probe.
#pragma once
#include "control/tables.hpp"

namespace icepath {

enum class neigh_verdict : uint8_t { usable, stale, incomplete, failed, none, unknown };   // stale: usable, and control_resolve is due
struct neigh_answer {
  neigh_verdict verdict;
  uint8_t mac[6];               // usable and stale
  uint32_t generation;          // of the neighbour table
};

neigh_answer control_neigh(const control_tables& t, uint32_t ifindex, const inet_addr& next_hop);

struct neigh_fds { int rt = -1, udp4 = -1, udp6 = -1; };
int control_neigh_open(neigh_fds& f);                                                   // 0 or -errno
void control_neigh_close(neigh_fds& f);
int control_resolve(neigh_fds& f, uint32_t ifindex, const inet_addr& next_hop);         // 0 or -errno
int control_confirm(neigh_fds& f, const inet_addr& saddr, const inet_addr& daddr, uint32_t ifindex);   // by the flow's destination; 0 or -errno

}  // namespace icepath
