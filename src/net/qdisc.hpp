// The queueing discipline of one transmit queue: pfifo_fast, lock-free (T23-T26).
//
// Where threads meet when there are more threads than transmit queues, hence no lock: any number of threads enqueue at
// any time; one at a time runs the queue, the one that won the RUNNING bit. Owner: the device (dev_attach_qdisc).
//
// Who may run together:
//                    enqueue   run    wake   create/destroy
//   enqueue            yes     yes    yes         no
//   run                yes   RUNNING  yes         no
//   wake               yes     yes    yes         no
// Owned by the holder of RUNNING: gso_skb_ and the device's start_xmit for this queue. The bands are Boost.Lockfree queues (bounded, MPMC,
// FIFO for each producer).
//
// `state`, one atomic word, so that all changes have one order; every change is an acq_rel read-modify-write and is the partner of
// every other:
//   RUNNING   somebody runs the queue
//   MISSED    somebody wanted to run it and could not, or a run ended with packets left: whoever clears RUNNING and sees
//             MISSED runs again or schedules
//   DRAINING  packets are left and the transmit queue is stopped: the wake runs it
//   SCHED     a run is owed by netif_run_queues (the owner's poll loop)
// Always holds: a packet in the qdisc while nobody runs it implies MISSED and SCHED, or DRAINING and a stopped transmit queue, or its
// enqueuer is about to try the run. So nothing is stranded; and a queue without MISSED and DRAINING has nothing that a bypass
// could overtake.
#pragma once
#include <boost/lockfree/queue.hpp>

#include "net/net.hpp"

namespace icepath {

enum : uint32_t { QDISC_STATE_RUNNING = 1, QDISC_STATE_MISSED = 2, QDISC_STATE_DRAINING = 4, QDISC_STATE_SCHED = 8 };
constexpr uint32_t QDISC_STATE_NON_EMPTY = QDISC_STATE_MISSED | QDISC_STATE_DRAINING;
enum : uint32_t { TCQ_F_CAN_BYPASS = 4, TCQ_F_NOLOCK = 0x100 };

constexpr unsigned pfifo_fast_bands = 3;
constexpr unsigned pfifo_fast_len = 1024, pfifo_fast_len_other = 128;   // band 1 (best effort), bands 0 and 2
constexpr int dev_tx_weight = 64;                                        // packets in one run
constexpr int qdisc_bulk_max = 16;                                       // packets in one bulk on a ring without BQL

// TC_PRIO_* (skb->priority) to band: interactive and control in 0, best effort in 1, filler and bulk in 2.
constexpr uint8_t prio2band[16] = {1, 2, 2, 2, 1, 2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};

class qdisc {
 public:
  qdisc(net_device& dev, uint16_t txq) : dev_(dev), txq_(txq) {}
  qdisc(const qdisc&) = delete;

  // T23, the whole of __dev_xmit_skb. Consumes skb. 0 or -ENOBUFS.
  int xmit_skb(net& n, sk_buff* skb);
  // T24: runs the queue if the run bit can be had; else leaves MISSED for the one who has it. n: the running thread's.
  void run(net& n);
  // Frees everything (nobody else uses the queue).
  void reset(net& n);

  uint32_t state() const { return state_.load(std::memory_order_acquire); }
  bool take_sched() { return state_.fetch_and(~QDISC_STATE_SCHED, std::memory_order_acq_rel) & QDISC_STATE_SCHED; }
  uint32_t requeued() const { return gso_skb_.qlen; }   // for tests; nobody runs the queue
  uint32_t flags = TCQ_F_CAN_BYPASS | TCQ_F_NOLOCK;

 private:
  enum class verdict : uint8_t { empty, stopped, quota };   // why a run ended
  bool run_begin();
  void run_end(net& n, verdict v);
  bool release();                             // true: MISSED was set
  verdict run_held(net& n);
  bool enqueue(sk_buff* skb);
  sk_buff* pop();
  sk_buff* dequeue();
  bool dequeue_bulk(sk_buff_head& list, int quota, bool& validate);
  bool direct_xmit(net& n, sk_buff_head& list, bool validate);
  void requeue(net& n, sk_buff_head& list);
  void maybe_clear_missed();
  void schedule();
  netdev_queue& txq() const { return dev_.txq[txq_]; }

  alignas(64) std::atomic<uint32_t> state_{0};
  net_device& dev_;
  const uint16_t txq_;
  sk_buff_head gso_skb_;                      // the requeue slot: goes before everything in the bands
  template <size_t N>
  using band = boost::lockfree::queue<sk_buff*, boost::lockfree::capacity<N>>;
  alignas(64) band<pfifo_fast_len_other> band0_;
  alignas(64) band<pfifo_fast_len> band1_;
  alignas(64) band<pfifo_fast_len_other> band2_;
};

qdisc* qdisc_create(net_device& dev, uint16_t txq);   // nullptr: no memory
void qdisc_destroy(net& n, qdisc* q);                 // frees what is queued
// Gives transmit queue txq its qdisc; keeps one that is there. False: no memory. Not while somebody sends on that queue.
bool dev_attach_qdisc(net_device& dev, uint16_t txq);
void dev_detach_qdisc(net& n, net_device& dev, uint16_t txq);

}  // namespace icepath
