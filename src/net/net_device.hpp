// The contract between the stack and a port (DESIGN section 2). A net_device belongs to one stack: every call
// is made under that stack's owner word, except the qdisc's run, which may be any thread that won the run bit.
//
// start_xmit(skb, txq, more): one packet with its link-layer header in place.
//   ok    the device owns skb; its destructor runs at Tx completion.
//   busy  the caller still owns skb; the queue was stopped, and wake_queue() will be called. Order is kept by requeueing.
//   drop  the device has freed skb (counted).
// `more` promises another packet at once: the doorbell may be left out (T31).
#pragma once
#include <atomic>
#include "base/types.hpp"
#include "skb/sk_buff.hpp"

namespace icepath {

struct net;
struct dql;
class qdisc;
enum class xmit : uint8_t { ok, busy, drop };

enum netdev_features : uint32_t {
  NETIF_F_SG = 1u << 0, NETIF_F_IP_CSUM = 1u << 1, NETIF_F_TSO = 1u << 2, NETIF_F_RXCSUM = 1u << 3,
  NETIF_F_HW_VLAN_TX = 1u << 4, NETIF_F_IPV6_CSUM = 1u << 5, NETIF_F_TSO6 = 1u << 6, NETIF_F_LRO_PASS = 1u << 7 /* takes whole TSO frames */
};

struct netdev_queue {            // one transmit queue as the upper half sees it
  qdisc* q = nullptr;            // nullptr: device without a queue (T22)
  std::atomic<uint32_t> state{0};  // QUEUE_STATE_*; set by the driver (ring full), by BQL, cleared by completion
  nsec trans_start = 0;          // last successful start_xmit, for the watchdog (T27); atomic_ref, relaxed
  const dql* bql = nullptr;      // the ring's byte limit, if it has one: bounds bulk dequeue (T25). Owned by the driver
};
enum : uint32_t { QUEUE_STATE_DRV_XOFF = 1, QUEUE_STATE_STACK_XOFF = 2 /* BQL */, QUEUE_STATE_FROZEN = 4 };

struct net_device {
  net* owner = nullptr;
  const char* name = "";
  uint32_t features = 0;
  uint32_t mtu = 1500;           // bytes of IP packet
  uint32_t gso_max_size = 65536, gso_max_segs = 65535;
  uint32_t gso_min_size = 0;     // a TSO packet with a smaller gso_size is cut in software
  uint8_t dev_addr[6] = {};
  bool up = false;
  uint16_t num_tx_queues = 0;    // queues in use; index = skb->queue_mapping
  netdev_queue* txq = nullptr;   // array, owned by the device
  std::atomic<uint32_t> tx_sched{0};  // some qdisc of this device has its SCHED bit set: netif_run_queues has work
  uint64_t tx_packets = 0, tx_bytes = 0, tx_dropped = 0, tx_busy = 0, rx_packets = 0, rx_bytes = 0, rx_dropped = 0;

  virtual xmit start_xmit(sk_buff* skb, uint16_t txq, bool more) = 0;
  virtual int clean_tx(int budget) = 0;                  // completions on all queues; returns packets freed
  virtual int rx_burst(sk_buff** skbs, int budget) = 0;  // caller owns what it gets; data points at the MAC header
  // Before sleeping: true when nothing is pending and the port will make its pollable fd readable on the next
  // event; false when there is work already. disarm() after waking.
  virtual bool arm() = 0;
  virtual void disarm() = 0;

 protected:
  ~net_device() = default;
};

inline bool netif_xmit_frozen_or_stopped(const netdev_queue& q) { return q.state.load(std::memory_order_acquire) != 0; }

// T22: queue choice, taps, qdisc or direct. Consumes skb in every case. 0, or a negative NET_XMIT verdict:
// -ENOBUFS (dropped by the qdisc), -ENETDOWN.
int dev_queue_xmit(net& n, sk_buff* skb);
// T24: called by wake_queue and by the poll loop: runs every qdisc of the device that has work.
void netif_run_queues(net_device& dev);
// A deferred run is waiting: do not sleep.
inline bool netif_queues_scheduled(const net_device& dev) { return dev.tx_sched.load(std::memory_order_acquire) != 0; }
// The driver or BQL freed room: clears the bit and runs the qdisc if it has work. It calls start_xmit, so a driver calls
// it as the last thing of a clean-up round. Inside start_xmit it is safe too: the run that is going on looks again.
void netif_tx_wake_queue(net_device& dev, uint16_t txq, uint32_t bit);
inline void netif_tx_stop_queue(net_device& dev, uint16_t txq, uint32_t bit) { dev.txq[txq].state.fetch_or(bit, std::memory_order_acq_rel); }

}  // namespace icepath
