// A net_device for tests that keeps what it is given, says busy or drop on demand and hands frames to the receive side. One thread,
// or several when each test looks at it only after they have ended. fake_stack: packet memory, counters and such a device.
#pragma once
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "net/net_device.hpp"
#include "net/net.hpp"
#include "net/qdisc.hpp"
#include "neigh/neighbour.hpp"

namespace icepath {

struct fake_device : net_device {
  static constexpr unsigned max_queues = 4;
  netdev_queue queues[max_queues];
  struct sent_packet { std::string bytes; uint16_t txq; bool more; uint8_t priority; ip_sum summed; uint16_t gso_size; uint16_t nr_frags; };
  std::vector<sent_packet> sent;
  std::vector<sk_buff*> ring;            // packets "in the ring": freed by clean_tx
  std::function<xmit(sk_buff*)> verdict; // default: ok
  unsigned room = ~0u;                   // packets the ring takes before it stops the queue
  std::vector<sk_buff*> rx;
  int started = 0;

  explicit fake_device(net& n, uint16_t nq = 1, bool with_qdisc = true) {
    owner = &n;
    name = "fake0";
    features = NETIF_F_SG | NETIF_F_IP_CSUM | NETIF_F_IPV6_CSUM | NETIF_F_TSO | NETIF_F_TSO6 | NETIF_F_HW_VLAN_TX;
    up = true;
    num_tx_queues = nq;
    txq = queues;
    const uint8_t mac[6] = {2, 0, 0, 0, 0, 1};
    std::memcpy(dev_addr, mac, 6);
    for (uint16_t i = 0; with_qdisc && i < nq; ++i)
      if (!dev_attach_qdisc(*this, i)) std::abort();
  }
  ~fake_device() {
    for (uint16_t i = 0; i < num_tx_queues; ++i)
      if (txq[i].q) dev_detach_qdisc(*owner, *this, i);
    clean_tx(1 << 30);
    for (sk_buff* s : rx) owner->skbs.free(s);
  }

  xmit start_xmit(sk_buff* skb, uint16_t q, bool more) override {
    ++started;
    const xmit v = verdict ? verdict(skb) : xmit::ok;
    if (v == xmit::busy) return v;
    if (v == xmit::drop) {
      ++tx_dropped;
      owner->skbs.free(skb);
      return v;
    }
    if (ring.size() >= room) {
      netif_tx_stop_queue(*this, q, QUEUE_STATE_DRV_XOFF);
      return xmit::busy;
    }
    std::string b(skb->len, '\0');
    skb_copy_bits(skb, 0, b.data(), skb->len);
    sent.push_back({std::move(b), q, more, skb->priority, skb->ip_summed, skb->gso_size, skb->nr_frags});
    ring.push_back(skb);
    if (ring.size() >= room) netif_tx_stop_queue(*this, q, QUEUE_STATE_DRV_XOFF);
    return xmit::ok;
  }
  int clean_tx(int budget) override {
    int n = 0;
    while (!ring.empty() && n < budget) {
      sk_buff* s = ring.front();
      ring.erase(ring.begin());
      owner->skbs.free(s);
      ++n;
    }
    for (uint16_t i = 0; n && i < num_tx_queues; ++i) netif_tx_wake_queue(*this, i, QUEUE_STATE_DRV_XOFF);
    return n;
  }
  int rx_burst(sk_buff** skbs, int budget) override {
    int n = 0;
    for (; n < budget && !rx.empty(); ++n) skbs[n] = rx.front(), rx.erase(rx.begin());
    return n;
  }
  bool arm() override { return rx.empty(); }
  void disarm() override {}
};

struct fake_memory {
  static constexpr uint32_t nr_frames = 4096;
  uint8_t* mem = static_cast<uint8_t*>(std::aligned_alloc(frame_size, size_t{nr_frames} * frame_size));
  frame_pool frames;
  fake_memory() {
    const auto grow = [](void*, uint32_t, uint32_t n) { return n; };
    if (!frames.init(mem, nr_frames, grow, nullptr).ok()) std::abort();
  }
  ~fake_memory() {
    frames.destroy();
    std::free(mem);
  }
};

struct fake_stack {
  fake_memory mem;
  mib stats;
  struct net net;
  fake_stack() {
    net.skbs.init(&mem.frames);
    net.stats = &stats;
    net.neigh = neigh_table_create();
    net.now = sec_ns;
  }
  ~fake_stack() {
    if (net.neigh) neigh_table_destroy(net);
    net.skbs.destroy();
  }
  // A frame with the given bytes; the MAC header begins at data.
  sk_buff* packet(const std::string& bytes) {
    sk_buff* s = net.skbs.alloc();
    std::memcpy(skb_put(s, static_cast<uint32_t>(bytes.size())), bytes.data(), bytes.size());
    skb_reset_mac(s);
    return s;
  }
  static uint64_t get(const std::atomic<uint64_t>& c) { return c.load(std::memory_order_relaxed); }
};

}  // namespace icepath
