// The process's port to the outside (ICEPATH_PORTS=xdp:IFNAME): the interface it shares with the kernel, the one stack whose device it is, and the
// mirror of the kernel's tables that says what may go there (DESIGN sections 2, 8 to 10). Asked for by the first connection that could use it and
// opened by the helper thread, whose stack has the port; what cannot be opened is said once on stderr, and the connections stay with the kernel.
//
// Who: wire_find any thread, not inside a stack (it takes a lock and makes system calls). wire_step: the helper thread, and wire_find before it
// answers, so that it never answers by an old table; both hold the lock.
#pragma once
#include "base/types.hpp"

namespace icepath {

struct stack;
struct net_device;

struct wire_route {
  stack* st;               // the port's: the connection will live there
  net_device* dev;
  inet_addr next_hop;
  uint8_t mac[6];          // of the next hop
  uint32_t ifindex, mtu;
  bool bulk_stays;         // the kernel passes 64 KiB at once there, the port a packet at a time: large transfers are faster in the kernel
};

bool wire_configured();
// Where packets of t (ours first) would go. nullptr: *r is filled. Else why they stay with the kernel, a static string, and *again: another moment may do;
// `local_reason` when the peer is on this host. fd: the connection's socket, whose mark, device and namespace are asked.
extern const char* const wire_local_reason;
extern const char* const wire_opening_reason;   // *again: soon
const char* wire_find(const four_tuple& t, int fd, wire_route* r, bool* again);
// Steering: packets of t come to the port from here on, or no more. 0 or -errno.
int wire_flow_add(const four_tuple& t);
int wire_flow_del(const four_tuple& t);

// The link-layer address of a next hop, as the kernel has it now. False: it has none that works. No system calls.
bool wire_neigh(const inet_addr& next_hop, uint8_t mac[6]);

struct wire_changes { bool routes, policy, neighs; };
int wire_control_fd();                       // readable: wire_step. -1: no port
wire_changes wire_step(nsec now, nsec* next);   // opens the port if that was asked for; what changed since the last one; *next: come again then though nothing comes
void wire_forget();                          // in a fork child: the port is the parent's

}  // namespace icepath
