// struct net: everything the protocol code of one stack needs, and nothing else: packet memory, timers, the device,
// connection table, neighbours, counters, and the time. One per stack (per thread); used only under the stack's
// owner word. The simulation makes two or more of them in one thread.
#pragma once
#include "base/timer.hpp"
#include "base/types.hpp"
#include "net/mib.hpp"
#include "net/net_device.hpp"
#include "skb/sk_buff.hpp"

namespace icepath {

struct tcp_table;
struct neigh_table;

struct net {
  nsec now = 0;               // set by the caller before every entry; protocol code never reads a clock
  skb_pool skbs;
  timer_wheel timers;
  net_device* dev = nullptr;  // the `local` port; it is there from the beginning
  net_device* wire = nullptr; // a port to the outside (xdp, dpdk), or null
  tcp_table* tcp = nullptr;
  neigh_table* neigh = nullptr;
  mib* stats = nullptr;       // counters, in shared memory so that `icepath stat` reads them
  uint64_t secret[2] = {};    // SipHash key of this stack: ISN (RFC 6528), timestamps offset
  uint16_t ip_id = 0;
  void* stack = nullptr;      // the owner, for upcalls of the socket layer
};

void netif_receive_skb(net& n, sk_buff* skb);  // T33: consumes skb (data at MAC header): eth -> ip_rcv -> tcp_v4_rcv

}  // namespace icepath
