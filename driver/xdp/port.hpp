// Inside of driver/xdp only: the port and one queue of it.
//
// Who runs what. rx_burst, clean_tx, arm, create, destroy: the stack's owner. start_xmit: whoever holds the run bit of that transmit queue, one at a
// time. So `done` and everything of rx and fill belong to the owner, `sent` and the tx ring to the runner:
//   sent      runner: entry and descriptors first, then release.    owner: acquire, then the entries below it
//   done      owner: frees the packet first, then release.          runner: acquire, then uses the entry again
//   stop      runner: sets DRV_XOFF, fence, looks at done again.    owner: done, fence, looks at the state, wakes
// Every descriptor has an entry, the last of a packet holds the skb. The kernel completes by address, nearly always in order; one that
// comes early is marked, and its packet goes when all before it have.
#pragma once
#include "base/clock.hpp"
#include "net/net.hpp"
#include "xdp/xdp_port.hpp"

namespace icepath {

constexpr unsigned xdp_max_chain = max_skb_frags + 1;   // descriptors of one packet, both ways: the kernel's limit as well
constexpr uint32_t xdp_wake_threshold = 2 * xdp_max_chain;
constexpr uint32_t xdp_linear_mtu = 3600;               // fits in one frame behind any headroom
constexpr unsigned xdp_port_max_queues = 16;

struct xdp_tx_entry {
  uint64_t addr;
  sk_buff* skb;                      // on the last of the packet
  bool finished;
};

struct xdp_queue {
  xsk x;
  uint64_t* posted = nullptr;        // bit for each frame of the UMEM: in the fill ring, or the driver's
  uint32_t nr_posted = 0;
  bool starving = false;             // the fill ring wants frames and there were none
  alignas(64) std::atomic<uint32_t> sent{0};
  uint32_t done_seen = 0;            // the runner's last look at done
  uint64_t stat_desc = 0, stat_kicks = 0, stat_busy = 0;   // runner's, atomic_ref relaxed
  alignas(64) std::atomic<uint32_t> done{0};
  nsec progress = 0;                 // when something was completed, or there was nothing to complete
  uint64_t folded[3] = {};
  xdp_tx_entry* entry = nullptr;     // ring_size of them
};

struct xdp_port final : net_device {
  region* own = nullptr;
  xdp_iface* iface = nullptr;
  uint16_t stack_no = 0;
  unsigned nr = 0;                   // queues
  unsigned rx_turn = 0;
  uint32_t fill_want = 0;
  bool tx_csum = false, tx_sg = false, partial_csum = false;
  int epoll = -1;                    // of all sockets, when there are several
  xdp_queue queue[xdp_port_max_queues];
  netdev_queue queues[xdp_port_max_queues];

  xmit start_xmit(sk_buff* skb, uint16_t txq, bool more) override;
  int clean_tx(int budget) override;
  int rx_burst(sk_buff** skbs, int budget) override;
  bool arm() override;
  void disarm() override {}

  void refill(xdp_queue& q);
};

int xdp_clean_rx(xdp_port& p, unsigned queue, sk_buff** skbs, int budget);     // xdp_rx.cpp
inline bool xdp_rx_pending(const xdp_queue& q) { return q.x.rx.load_producer() != q.x.rx.cons; }

inline bool xdp_test_posted(const xdp_queue& q, uint32_t frame) { return q.posted[frame / 64] >> (frame & 63) & 1; }
inline void xdp_set_posted(xdp_queue& q, uint32_t frame) { q.posted[frame / 64] |= uint64_t{1} << (frame & 63), ++q.nr_posted; }
inline void xdp_clear_posted(xdp_queue& q, uint32_t frame) { q.posted[frame / 64] &= ~(uint64_t{1} << (frame & 63)), --q.nr_posted; }

}  // namespace icepath
