// The last steps before the driver (T22, T27), shared by the qdisc and by devices without a queue: one packet, a list of packets,
// taps, the watchdog; and the table of packet types for the way back (T33).
// Runs in the thread that holds the run bit of the queue (or the owner word, without a queue).
#pragma once
#include "net/net.hpp"
#include "net/probes.hpp"

namespace icepath {

// Sees every frame that is given to a driver (out) or received (in), headers in place; must not change or keep it.
using packet_tap_fn = void (*)(net& n, net_device& dev, const sk_buff* skb, bool out);
extern std::atomic<packet_tap_fn> packet_tap;   // null: no tap. Set at any time by any thread (release; acquire here)

// Counter of this stack, if it has counters.
inline void dev_count(net& n, std::atomic<uint64_t> mib::*c, uint64_t v = 1) {
  if (ICEPATH_LIKELY(n.stats != nullptr)) mib_add(n.stats->*c, v);
}

// One packet to the driver. ok, drop: consumed. busy: the caller still owns it.
inline xmit xmit_one(net& n, net_device& dev, sk_buff* skb, uint16_t txq, bool more) {
  if (const packet_tap_fn tap = packet_tap.load(std::memory_order_acquire); ICEPATH_UNLIKELY(tap != nullptr)) tap(n, dev, skb, true);
  probe_net_dev_start_xmit(dev, skb, txq);
  [[maybe_unused]] const uint32_t len = skb->len;
  skb->xmit_more = more;
  const xmit rc = dev.start_xmit(skb, txq, more);
  probe_net_dev_xmit(dev, skb, len, rc);
  if (ICEPATH_LIKELY(rc != xmit::busy)) std::atomic_ref<nsec>(dev.txq[txq].trans_start).store(n.now, std::memory_order_relaxed);
  return rc;
}

// Sends the list in order with `more` on all but the last. Returns when it is empty (true), or when the driver was busy or
// stopped the queue before the end (false): what was not sent is still in the list, in order, and the caller's.
bool dev_hard_start_xmit(net& n, net_device& dev, sk_buff_head& list, uint16_t txq);

// T27: transmit queues that the driver has kept stopped for longer than `timeout` with no packet sent. tx_timeout (may be
// null) is called for each. Returns how many. The owner calls it from time to time.
unsigned dev_watchdog(net& n, net_device& dev, nsec timeout, void (*tx_timeout)(net& n, net_device& dev, uint16_t txq));

// Who takes received frames of an ethertype (host order): one handler each, data at the network header, consumes skb.
// ip registers itself here, so that net need not know it. Any thread, idempotent. False: the table is full.
using packet_type_fn = void (*)(net& n, sk_buff* skb);
bool dev_add_pack(uint16_t ethertype, packet_type_fn fn);

}  // namespace icepath
