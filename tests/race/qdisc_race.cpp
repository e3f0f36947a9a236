// The qdisc with many producers against a device that is busy, stops and is woken at random (T23, T24, T26). Built with
// ThreadSanitizer: the device's own state is plain memory that only the run bit protects. Checked: no packet is lost or sent twice, none is
// stranded (nothing scheduled and nothing stopped means everything sent), no reordering within one producer and band.
//
// usage: qdisc_race [seconds per round]
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "net/qdisc.hpp"

using namespace icepath;

namespace {

constexpr unsigned producers = 4, prios[3] = {6, 0, 2};   // bands 0, 1, 2
constexpr uint32_t nr_frames = 2048;

thread_local struct net* my_net;
uint64_t rnd(uint64_t& s) { return hash_mix(s += 0x9e3779b97f4a7c15ull); }

[[noreturn]] void fail(const char* what, uint64_t a, uint64_t b) {
  std::fprintf(stderr, "qdisc_race: %s (%llu, %llu)\n", what, static_cast<unsigned long long>(a), static_cast<unsigned long long>(b));
  std::_Exit(1);
}

struct mode { unsigned busy_in, stop_in; bool silent_busy; const char* name; };   // one in so many; 0: never

struct racing_device : net_device {
  netdev_queue q0;
  mode m{};
  uint64_t seed = 1, sent = 0;                // plain: under the run bit
  uint64_t last[producers][3] = {};
  bool inside = false;
  std::atomic<uint64_t> done{0};

  xmit start_xmit(sk_buff* skb, uint16_t txq, bool) override {
    if (inside) fail("two threads in start_xmit", 0, 0);
    inside = true;
    xmit v = xmit::ok;
    if (m.busy_in && rnd(seed) % m.busy_in == 0) {
      if (!m.silent_busy) netif_tx_stop_queue(*this, txq, QUEUE_STATE_DRV_XOFF);
      v = xmit::busy;
    } else {
      const uint32_t p = skb->mark;
      uint64_t& l = last[p][prio2band[skb->priority & 15]];
      if (skb->tstamp <= l) fail("reordered or sent twice", skb->tstamp, l);
      l = skb->tstamp;
      ++sent;
      my_net->skbs.free(skb);
      done.store(sent, std::memory_order_release);
      if (m.stop_in && rnd(seed) % m.stop_in == 0) netif_tx_stop_queue(*this, txq, QUEUE_STATE_DRV_XOFF);
    }
    inside = false;
    return v;
  }
  int clean_tx(int) override { return 0; }
  int rx_burst(sk_buff**, int) override { return 0; }
  bool arm() override { return true; }
  void disarm() override {}
};

struct stack_memory { struct net net; mib stats; };

void round(frame_pool& frames, const mode& m, double seconds, unsigned seed) {
  racing_device dev;
  stack_memory own, prod[producers];
  own.net.skbs.init(&frames);
  own.net.stats = &own.stats;
  dev.owner = &own.net;
  dev.features = ~0u;
  dev.up = true;
  dev.num_tx_queues = 1;
  dev.txq = &dev.q0;
  dev.m = m;
  dev.seed = seed;
  if (!dev_attach_qdisc(dev, 0)) fail("no memory", 0, 0);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> accepted{0};
  std::atomic<unsigned> running{producers};
  std::vector<std::thread> t;
  for (unsigned p = 0; p < producers; ++p)
    t.emplace_back([&, p] {
      struct net& n = prod[p].net;
      my_net = &n;
      n.skbs.init(&frames);
      n.stats = &prod[p].stats;
      uint64_t s = seed * 31 + p, seq[3] = {}, ok = 0;
      while (!stop.load(std::memory_order_relaxed)) {
        sk_buff* skb = n.skbs.alloc_empty();
        if (!skb) continue;
        const unsigned b = rnd(s) % 3;
        skb->dev = &dev;
        skb->mark = p;
        skb->priority = static_cast<uint8_t>(prios[b]);
        skb->tstamp = ++seq[b];
        if (dev_queue_xmit(n, skb) == 0) ++ok;
        if (rnd(s) % 64 == 0) std::this_thread::yield();
      }
      accepted.fetch_add(ok);
      n.skbs.destroy();
      running.fetch_sub(1, std::memory_order_release);
    });
  // The owner: its poll loop runs what is scheduled and wakes what is stopped, as a completion would.
  my_net = &own.net;
  uint64_t s = seed;
  const auto poll = [&] {
    netif_run_queues(dev);
    if (netif_xmit_frozen_or_stopped(dev.q0) && rnd(s) % 4 == 0) netif_tx_wake_queue(dev, 0, QUEUE_STATE_DRV_XOFF);
  };
  const auto t0 = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - t0 < std::chrono::duration<double>(seconds)) poll();
  stop.store(true, std::memory_order_relaxed);
  while (running.load(std::memory_order_acquire)) poll();
  for (auto& x : t) x.join();
  while (netif_queues_scheduled(dev) || netif_xmit_frozen_or_stopped(dev.q0)) poll();
  const uint64_t acc = accepted.load(), done = dev.done.load(std::memory_order_acquire);
  if (done != acc) fail("stranded or lost", done, acc);
  if (dev.q0.q->state() != 0) fail("state left", dev.q0.q->state(), 0);
  int64_t leak = own.net.skbs.allocated();
  for (auto& p : prod) leak += p.net.skbs.allocated();
  if (leak) fail("leaked skbs", static_cast<uint64_t>(leak), 0);
  uint64_t bypass = own.stats.QdiscBypass, queued = 0, missed = own.stats.QdiscMissed;
  for (auto& p : prod) bypass += p.stats.QdiscBypass, queued += p.stats.QdiscEnqueue, missed += p.stats.QdiscMissed;
  std::printf("%-28s sent %9llu bypass %9llu enqueued %9llu missed %8llu\n", m.name, static_cast<unsigned long long>(done),
              static_cast<unsigned long long>(bypass), static_cast<unsigned long long>(queued), static_cast<unsigned long long>(missed));
  dev_detach_qdisc(own.net, dev, 0);
  own.net.skbs.destroy();
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 1.0;
  auto* mem = static_cast<uint8_t*>(std::aligned_alloc(frame_size, size_t{nr_frames} * frame_size));
  frame_pool frames;
  if (!frames.init(mem, nr_frames, [](void*, uint32_t, uint32_t n) { return n; }, nullptr).ok()) fail("no memory", 0, 0);
  const mode modes[] = {
      {0, 0, false, "always ready"},
      {7, 0, false, "busy and stopped"},
      {7, 0, true, "busy without stopping"},
      {0, 3, false, "stops after every few"},
      {5, 5, false, "busy and stops"},
  };
  unsigned seed = 1;
  for (const mode& m : modes) round(frames, m, seconds, seed++);
  frames.destroy();
  std::free(mem);
  return 0;
}
