/* What the BPF program and user space agree on: names, keys and values of the maps. Plain C, for both compilers; no kernel headers.
 *
 * A packet of an accelerated flow goes this way:
 *   icepath_flows4[{saddr, daddr, sport, dport}] -> {slot, generation}; missing: the kernel's
 *   icepath_slots[slot] == generation; else the flow belongs to somebody who is gone: the kernel's
 *   icepath_xsks[slot * queues + Rx queue of this packet] -> the socket; empty: the kernel's
 * A slot is one owner (a process). It has one socket for each receive queue it serves, because the kernel gives a packet only to a socket bound to
 * the queue that the packet came in on; what comes in on a queue that the slot does not serve passes to the kernel. Empty again when a socket
 * is closed, by whatever. The generation guards a slot's next owner from flows that the last one left.
 * IPv6 will be a second flow map with a longer key and the same value.
 */
#pragma once

#define XDP_NAME_PROG "icepath_xdp"
#define XDP_NAME_FLOWS4 "icepath_flows4"
#define XDP_NAME_SLOTS "icepath_slots"
#define XDP_NAME_XSKS "icepath_xsks"
#define XDP_NAME_COUNTS "icepath_counts"

#define XDP_MAX_SLOTS 256
#define XDP_MAX_QUEUES 64
#define XDP_MAX_FLOWS 262144

struct xdp_flow4 {            /* as the received packet has it: saddr, sport are the peer's. Network byte order */
  unsigned int saddr, daddr;
  unsigned short sport, dport;
};
struct xdp_flow_to {
  unsigned int slot, generation;   /* generation 0: nobody */
};

struct xdp_counts {           /* one for each CPU */
  unsigned long long redirected;   /* given to a socket (its ring may still have been full: the socket's own statistics) */
  unsigned long long no_flow;      /* TCP over IPv4, not one of ours */
  unsigned long long no_socket;    /* ours, but the slot has no socket for this queue */
  unsigned long long stale;        /* ours, of an earlier owner of the slot */
  unsigned long long other;        /* not TCP over IPv4, a fragment, or too short */
};
