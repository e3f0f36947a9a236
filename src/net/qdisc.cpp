// pfifo_fast without a lock: see qdisc.hpp for the states and what always holds.
#include "net/qdisc.hpp"

#include <sys/mman.h>

#include <climits>
#include <new>

#include "net/bql.hpp"
#include "net/dev.hpp"
#include "net/gso.hpp"

namespace icepath {

// ---- the run bit

// Wins the right to run, or leaves MISSED behind for the holder. The second look after setting MISSED closes the window in which
// the holder has already looked at MISSED and is on its way out.
bool qdisc::run_begin() {
  if (!(state_.fetch_or(QDISC_STATE_RUNNING, std::memory_order_acq_rel) & QDISC_STATE_RUNNING)) return true;
  const uint32_t old = state_.fetch_or(QDISC_STATE_MISSED, std::memory_order_acq_rel);
  if (old & QDISC_STATE_RUNNING) return false;  // the holder sees MISSED when it releases
  return !(state_.fetch_or(QDISC_STATE_RUNNING, std::memory_order_acq_rel) & QDISC_STATE_RUNNING);
}

// The bit is set and ours: subtracting it is one exchange-and-add, where clearing it and reading the rest would be a loop.
bool qdisc::release() { return state_.fetch_sub(QDISC_STATE_RUNNING, std::memory_order_acq_rel) & QDISC_STATE_MISSED; }

void qdisc::schedule() {
  if (!(state_.fetch_or(QDISC_STATE_SCHED, std::memory_order_acq_rel) & QDISC_STATE_SCHED))
    dev_.tx_sched.store(1, std::memory_order_release);  // partner: netif_run_queues
}

// Gives the run bit back. Somebody who missed the run is served at once, a few times; then, and when the budget is spent or
// the device was busy without stopping the queue, the rest is scheduled.
void qdisc::run_end(net& n, verdict v) {
  for (int again = 0;; ++again) {
    if (ICEPATH_LIKELY(!release())) return;
    dev_count(n, &mib::QdiscMissed);
    if (v == verdict::quota || again == 2) return schedule();
    if (state_.fetch_or(QDISC_STATE_RUNNING, std::memory_order_acq_rel) & QDISC_STATE_RUNNING) return;  // the new holder sees MISSED
    v = run_held(n);
  }
}

// The transmit queue is stopped: no use in running again until it is woken. Clears MISSED, then looks again. The partner is
// netif_tx_wake_queue, which clears the stop bit and then sets MISSED, since we hold RUNNING: either before our clearing, which then
// reads from it (both are read-modify-writes of state_) and so the load below sees the stop bit clear; or after, and MISSED stays.
void qdisc::maybe_clear_missed() {
  state_.fetch_and(~QDISC_STATE_MISSED, std::memory_order_acq_rel);
  state_.fetch_or(netif_xmit_frozen_or_stopped(txq()) ? QDISC_STATE_DRAINING : QDISC_STATE_MISSED, std::memory_order_acq_rel);
}

// ---- the bands

bool qdisc::enqueue(sk_buff* skb) {
  switch (prio2band[skb->priority & 15]) {
    case 0: return band0_.push(skb);
    case 1: return band1_.push(skb);
    default: return band2_.push(skb);
  }
}

sk_buff* qdisc::pop() {
  sk_buff* skb = nullptr;
  if (band0_.pop(skb) || band1_.pop(skb) || band2_.pop(skb)) return skb;
  return nullptr;
}

// Holder of the run bit. When all bands are empty, MISSED and DRAINING are cleared and the bands are looked at once more: whoever
// enqueued before the clearing is found here, whoever enqueues after it sets MISSED again.
sk_buff* qdisc::dequeue() {
  if (sk_buff* skb = pop()) return skb;
  if (!(state_.load(std::memory_order_relaxed) & QDISC_STATE_NON_EMPTY)) return nullptr;
  state_.fetch_and(~QDISC_STATE_NON_EMPTY, std::memory_order_acq_rel);
  return pop();
}

// ---- sending (all under the run bit)

// The next packets for the driver: the requeue slot first (T25), else as much from the bands as the byte limit and the
// budget allow. False: nothing, or the queue is stopped.
bool qdisc::dequeue_bulk(sk_buff_head& list, int quota, bool& validate) {
  if (netif_xmit_frozen_or_stopped(txq())) {
    maybe_clear_missed();
    return false;
  }
  if (!gso_skb_.empty()) {
    list = gso_skb_;
    gso_skb_ = sk_buff_head{};
    validate = false;  // it was, before it was requeued
    return true;
  }
  sk_buff* skb = dequeue();
  if (!skb) return false;
  validate = true;
  list.push_back(skb);
  const dql* bql = txq().bql;
  int64_t room = bql ? int64_t{dql_avail(*bql)} - skb->len : INT_MAX;
  int more = bql ? quota - 1 : (quota < qdisc_bulk_max ? quota : qdisc_bulk_max) - 1;
  while (room > 0 && more-- > 0 && (skb = dequeue())) {
    room -= skb->len;
    list.push_back(skb);
  }
  return true;
}

void qdisc::requeue(net& n, sk_buff_head& list) {
  dev_count(n, &mib::QdiscRequeue, list.qlen);
  while (sk_buff* skb = list.pop_front()) gso_skb_.push_back(skb);
  state_.fetch_or(QDISC_STATE_MISSED, std::memory_order_acq_rel);  // we are not empty: no bypass past these
}

// T26, sch_direct_xmit. False: not all was taken; the rest is in the requeue slot, in order.
bool qdisc::direct_xmit(net& n, sk_buff_head& list, bool validate) {
  if (validate) {
    sk_buff_head ready;
    while (sk_buff* skb = list.pop_front()) {
      if (ICEPATH_LIKELY(!skb_needs_validate(dev_, skb))) ready.push_back(skb);
      else validate_xmit_skb(n, dev_, skb, ready);
    }
    list = ready;
  }
  if (list.empty()) return true;
  if (!netif_xmit_frozen_or_stopped(txq()) && dev_hard_start_xmit(n, dev_, list, txq_)) return true;
  requeue(n, list);
  return false;
}

qdisc::verdict qdisc::run_held(net& n) {
  int quota = dev_tx_weight;
  for (;;) {
    sk_buff_head list;
    bool validate = true;
    if (!dequeue_bulk(list, quota, validate)) return verdict::empty;
    quota -= static_cast<int>(list.qlen);
    if (!direct_xmit(n, list, validate)) return verdict::stopped;
    if (quota <= 0) {
      state_.fetch_or(QDISC_STATE_MISSED, std::memory_order_acq_rel);  // the rest is owed
      return verdict::quota;
    }
  }
}

void qdisc::run(net& n) {
  if (run_begin()) run_end(n, run_held(n));
}

// T23. The bypass: nothing waits, nothing is owed and nobody runs, all in one compare-and-swap; so the packet goes to the
// driver without touching a band, and cannot overtake any.
int qdisc::xmit_skb(net& n, sk_buff* skb) {
  uint32_t idle = 0;
  if (ICEPATH_LIKELY((flags & TCQ_F_CAN_BYPASS) &&
                     state_.compare_exchange_strong(idle, QDISC_STATE_RUNNING, std::memory_order_acq_rel, std::memory_order_relaxed))) {
    verdict v = verdict::empty;
    if (ICEPATH_LIKELY(!skb_needs_validate(dev_, skb) && !netif_xmit_frozen_or_stopped(txq()))) {
      if (ICEPATH_UNLIKELY(xmit_one(n, dev_, skb, txq_, false) == xmit::busy)) {
        sk_buff_head list;
        list.push_back(skb);
        requeue(n, list);
        v = verdict::stopped;
      }
    } else {
      sk_buff_head list;
      list.push_back(skb);
      if (!direct_xmit(n, list, true)) v = verdict::stopped;
    }
    dev_count(n, &mib::QdiscBypass);
    run_end(n, v);  // who came meanwhile left MISSED
    return 0;
  }
  const bool queued = enqueue(skb);
  dev_count(n, queued ? &mib::QdiscEnqueue : &mib::QdiscDrop);
  run(n);  // after the enqueue: then either we run, or the holder of the run bit sees our MISSED and finds the packet
  if (queued) return 0;
  n.skbs.free(skb);
  return -ENOBUFS;
}

// ---- life

void qdisc::reset(net& n) {
  gso_skb_.purge(n.skbs);
  while (sk_buff* skb = pop()) n.skbs.free(skb);
  state_.store(0, std::memory_order_release);
}

qdisc* qdisc_create(net_device& dev, uint16_t txq) {
  void* p = ::mmap(nullptr, sizeof(qdisc), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? nullptr : new (p) qdisc(dev, txq);
}

void qdisc_destroy(net& n, qdisc* q) {
  if (!q) return;
  q->reset(n);
  q->~qdisc();
  ::munmap(q, sizeof(qdisc));
}

bool dev_attach_qdisc(net_device& dev, uint16_t txq) {
  netdev_queue& t = dev.txq[txq];
  if (!t.q) t.q = qdisc_create(dev, txq);
  return t.q != nullptr;
}

void dev_detach_qdisc(net& n, net_device& dev, uint16_t txq) {
  qdisc* q = dev.txq[txq].q;
  dev.txq[txq].q = nullptr;
  qdisc_destroy(n, q);
}

}  // namespace icepath
