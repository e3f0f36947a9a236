// The xdp port of one stack (DESIGN section 2): a net_device on an interface that the kernel goes on using. What start-up and socket code sees of
// it; everything else goes through net_device.
//
// The port has one AF_XDP socket for each receive queue it serves, and a transmit queue for each. Packets of a flow in the interface's flow map
// (xdp_flow_add) come to the socket of the queue they arrive in, all others stay the kernel's. Nothing is sent but what the stack sends.
//
// Sleeping: the sockets are the pollable things. arm() only looks whether something is there; the kernel makes the fd readable when a packet
// comes, armed or not, and it stays readable until the ring is empty: no wake is lost, and there is nothing to drain.
//
// Sending: no TSO (AF_XDP has none: net/gso.cpp cuts). A packet is one linear frame where the MTU allows it: the kernel takes 0.6 us more for one of
// two descriptors than the copy of a segment costs. Larger MTUs use scatter/gather. Checksums go by Tx metadata in copy mode where the kernel has
// it (6.8), else net/gso.cpp computes them. Metadata and scatter/gather exclude each other: with metadata the kernel refuses fragments at
// the start of a frame. The UMEM is the process's, so its first port decides; a later one with a larger MTU sends packets of one frame.
#pragma once
#include "net/net.hpp"
#include "skb/region.hpp"
#include "xdp/iface.hpp"
#include "xdp/xsk.hpp"

namespace icepath {

struct xdp_port;

struct xdp_port_options {
  uint32_t nr_queues = ~0u;          // receive queues at most; those that no other port of this process has
  uint32_t ring_size = 2048;
  uint32_t fill = 512;               // frames that wait for packets, for each queue; at most ring_size
  uint32_t frames = 16384;           // UMEM of the process, for its first port
  xsk_copy copy = xsk_copy::automatic;   // generic mode: always copies
  bool tx_csum = true;               // checksums by Tx metadata where there are any
  bool tx_sg = false;                // scatter/gather although the MTU does not need it
  bool busy_poll = false;
};

// `net` is the stack's, `iface` outlives the port. The queues of the device have no qdisc yet (dev_attach_qdisc). EBUSY: every queue has a socket.
result<xdp_port*> xdp_port_create(region& own, net& n, uint16_t stack_no, xdp_iface& iface, const xdp_port_options& o, char* why, size_t why_size);
// Under the owner word, no flow leads here any more, qdiscs detached. All frames return to the pool (zero-copy: those the driver holds do not).
void xdp_port_destroy(xdp_port* p);
void xdp_port_forget(xdp_port* p);                // in a child of fork
net_device* xdp_port_dev(xdp_port* p);
int xdp_port_wake_fd(const xdp_port* p);          // readable while packets wait
int xdp_port_fds(const xdp_port* p, int* to, int room);   // the sockets, and what they are waited for by; how many
xdp_iface& xdp_port_iface(xdp_port* p);
xsk_statistics xdp_port_statistics(const xdp_port* p);
bool xdp_port_zero_copy(const xdp_port* p);

}  // namespace icepath
