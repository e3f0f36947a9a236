// dev_queue_xmit and what is below it (T22, T27), waking and running of queues (T24), taps and watchdog. Runs under the owner
// word of the sending stack; the parts below the qdisc in whoever holds its run bit.
#include "net/dev.hpp"

#include "net/gso.hpp"
#include "net/qdisc.hpp"

namespace icepath {

std::atomic<packet_tap_fn> packet_tap{nullptr};

namespace {

constexpr unsigned xmit_recursion_limit = 8;
thread_local unsigned xmit_recursion __attribute__((tls_model("initial-exec"))) = 0;

// A device without a queue (loopback-like, tunnels): straight to the driver. It may send in turn through another device, or through
// itself if somebody built a loop: the depth is bounded. It has nowhere to keep a packet, so busy drops.
int xmit_noqueue(net& n, net_device& dev, sk_buff* skb, uint16_t txq) {
  if (xmit_recursion >= xmit_recursion_limit || netif_xmit_frozen_or_stopped(dev.txq[txq])) {
    ++dev.tx_dropped;
    n.skbs.free(skb);
    return -ENETDOWN;
  }
  sk_buff_head list;
  if (skb_needs_validate(dev, skb)) validate_xmit_skb(n, dev, skb, list);
  else list.push_back(skb);
  if (list.empty()) return 0;  // dropped and counted there
  ++xmit_recursion;
  const bool sent = dev_hard_start_xmit(n, dev, list, txq);
  --xmit_recursion;
  if (ICEPATH_LIKELY(sent)) return 0;
  dev.tx_dropped += list.qlen;
  list.purge(n.skbs);
  return -ENETDOWN;
}

}  // namespace

int dev_queue_xmit(net& n, sk_buff* skb) {
  net_device& dev = *skb->dev;
  uint16_t txq = skb->queue_mapping;
  if (ICEPATH_UNLIKELY(!dev.up || dev.num_tx_queues == 0)) {
    dev_count(n, &mib::IpOutDiscards);
    n.skbs.free(skb);
    return -ENETDOWN;
  }
  if (ICEPATH_UNLIKELY(txq >= dev.num_tx_queues)) skb->queue_mapping = txq = 0;
  probe_net_dev_queue(dev, skb);
  skb->next = skb->prev = nullptr;
  qdisc* q = dev.txq[txq].q;
  if (ICEPATH_LIKELY(q != nullptr)) return q->xmit_skb(n, skb);
  return xmit_noqueue(n, dev, skb, txq);
}

bool dev_hard_start_xmit(net& n, net_device& dev, sk_buff_head& list, uint16_t txq) {
  while (sk_buff* skb = list.pop_front()) {
    if (ICEPATH_UNLIKELY(xmit_one(n, dev, skb, txq, !list.empty()) == xmit::busy)) {
      list.push_front(skb);
      return false;
    }
    if (!list.empty() && netif_xmit_frozen_or_stopped(dev.txq[txq])) return false;
  }
  return true;
}

// Each qdisc that was scheduled gets one run; one that is scheduled again meanwhile waits for the next call, so that a device
// that stays busy cannot hold the caller.
void netif_run_queues(net_device& dev) {
  if (ICEPATH_LIKELY(dev.tx_sched.load(std::memory_order_relaxed) == 0)) return;
  dev.tx_sched.exchange(0, std::memory_order_acq_rel);  // partner: qdisc::schedule sets its bit before this word
  for (uint16_t i = 0; i < dev.num_tx_queues; ++i)
    if (qdisc* q = dev.txq[i].q; q && (q->state() & QDISC_STATE_SCHED) && q->take_sched()) q->run(*dev.owner);
}

void netif_tx_wake_queue(net_device& dev, uint16_t txq, uint32_t bit) {
  netdev_queue& t = dev.txq[txq];
  const uint32_t old = t.state.fetch_and(~bit, std::memory_order_acq_rel);
  // Whatever the qdisc's state says: a run that is just giving up on the stopped queue must find our MISSED
  // (qdisc::maybe_clear_missed).
  if ((old & bit) && !(old & ~bit) && t.q && dev.owner) t.q->run(*dev.owner);
}

unsigned dev_watchdog(net& n, net_device& dev, nsec timeout, void (*tx_timeout)(net& n, net_device& dev, uint16_t txq)) {
  unsigned stuck = 0;
  for (uint16_t i = 0; dev.up && i < dev.num_tx_queues; ++i) {
    netdev_queue& t = dev.txq[i];
    if (!(t.state.load(std::memory_order_acquire) & QUEUE_STATE_DRV_XOFF)) continue;
    if (n.now - std::atomic_ref<nsec>(t.trans_start).load(std::memory_order_relaxed) <= timeout) continue;
    ++stuck;
    if (tx_timeout) tx_timeout(n, dev, i);
  }
  return stuck;
}

}  // namespace icepath
