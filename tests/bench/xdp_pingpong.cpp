// The floor of the xdp port: two ports on the ends of a veth pair, no TCP above them, in two threads. Half a round trip of one small segment, both
// sides spinning or both sleeping, in generic and native mode; and segments a second one way, by the ways a segment can be handed over.
//   xdp_pingpong [rounds]     needs root; exits 77 with the reason where it cannot run
#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "base/clock.hpp"
#include "net/gso.hpp"
#include "tests/xdp/xdp_env.hpp"

namespace {
using namespace xdptest;

unsigned rounds = 100000;

void pin(unsigned cpu) {
  cpu_set_t s;
  CPU_ZERO(&s);
  CPU_SET(cpu % std::thread::hardware_concurrency(), &s);
  (void)sched_setaffinity(0, sizeof s, &s);
}

nsec cpu_time() {   // of this thread; what the kernel does for it in its softirqs included
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<nsec>(t.tv_sec) * sec_ns + static_cast<nsec>(t.tv_nsec);
}

// One packet, spinning or sleeping until it comes.
sk_buff* take(end& e, bool sleeping) {
  sk_buff* v[1];
  for (;;) {
    if (e.dev().rx_burst(v, 1)) return v[0];
    e.dev().clean_tx(64);
    if (!sleeping) continue;
    e.n.now = clock_now();
    if (!e.dev().arm()) continue;
    pollfd f{xdp_port_wake_fd(e.port), POLLIN, 0};
    (void)::poll(&f, 1, 1000);
    e.dev().disarm();
  }
}

bool join(end& a, end& b) {
  for (end* e : {&a, &b}) {
    if (!e->ok()) {
      std::printf("  %s\n", e->why);
      return false;
    }
    if (!xdp_flow_add(*e->iface, e->flow())) return false;
  }
  return true;
}

void ping_pong(const wire& w, xdp_mode mode, bool sleeping, bool busy_poll = false) {
  xdp_port_options o = end::small();
  o.busy_poll = busy_poll;
  end a(w, 0, mode, o), b(w, 1, mode, o);
  if (!join(a, b)) return;
  const unsigned warm = rounds / 10;
  std::thread echo([&] {
    pin(1);
    for (unsigned i = 0; i < rounds + warm; ++i) {
      sk_buff* s = take(b, sleeping);
      turn_around(s);
      (void)b.send(s);
    }
  });
  pin(0);
  std::vector<uint32_t> t;
  t.reserve(rounds);
  sk_buff* s = a.frame(64, 1);
  for (unsigned i = 0; i < rounds + warm; ++i) {
    const nsec t0 = clock_now();
    (void)a.send(s);
    s = take(a, sleeping);
    if (i >= warm) t.push_back(static_cast<uint32_t>(clock_now() - t0));
    turn_around(s);
  }
  echo.join();
  a.n.skbs.free(s);
  std::sort(t.begin(), t.end());
  double sum = 0;
  for (uint32_t x : t) sum += x;
  const auto us = [&t](double part) { return t[static_cast<size_t>(part * static_cast<double>(t.size() - 1))] / 2e3; };
  std::printf("  %-8s %-9s 64 B, half round trip: mean %6.2f us   p50 %6.2f   p99 %6.2f\n", mode == xdp_mode::generic ? "generic" : "native",
              sleeping ? "sleeping" : busy_poll ? "busy poll" : "spinning", sum / static_cast<double>(t.size()) / 2e3, us(0.5), us(0.99));
}

// One way: `a` sends as fast as it can, in batches of 32. pieces: fragments of one segment (0: linear); sum: computed in software.
void one_way(const wire& w, xdp_mode mode, uint32_t payload, uint32_t piece, bool sum, uint32_t fill) {
  xdp_port_options o = end::small();
  o.fill = fill;
  o.tx_sg = piece != 0;
  end a(w, 0, mode, o), b(w, 1, mode, o);
  if (!join(a, b)) return;
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> got{0};
  std::thread sink([&] {
    pin(1);
    sk_buff* v[64];
    while (!stop.load(std::memory_order_relaxed)) {
      const int k = b.dev().rx_burst(v, 64);
      for (int i = 0; i < k; ++i) b.n.skbs.free(v[i]);
      got.fetch_add(static_cast<uint64_t>(k), std::memory_order_relaxed);
    }
  });
  pin(0);
  static uint8_t bytes[4096];
  const nsec t0 = clock_now(), c0 = cpu_time();
  uint64_t sent = 0;
  while (clock_now() - t0 < sec_ns / 2) {
    for (int i = 0; i < 32; ++i, ++sent) {
      // As the segments of a TSO packet come: headers written, payload copied or referred to.
      sk_buff* s = a.frame(0, 1);
      if (!s) break;
      if (!piece) {
        std::memcpy(skb_put(s, payload), bytes, payload);
      } else {
        for (uint32_t at = 0; at < payload; at += piece) {
          const uint32_t k = std::min(piece, payload - at);
          s->frags[s->nr_frags++] = {a.n.skbs.frames.alloc() + 64, k};
          s->len += k;
          s->data_len += k;
        }
      }
      if (sum) a.finish_sum(s);
      if (!a.send(s, 0, i < 31)) a.n.skbs.free(s);
    }
    a.dev().clean_tx(64);
  }
  const double sec = static_cast<double>(clock_now() - t0) / 1e9, cpu = static_cast<double>(cpu_time() - c0);
  stop = true;
  sink.join();
  const double pps = static_cast<double>(got.load()) / sec;
  std::printf("  %-8s one way, %4u B, %-18s fill %4u: %6.0f k/s received, %6.0f k/s sent, sender's processor time %5.0f ns each\n",
              mode == xdp_mode::generic ? "generic" : "native", payload, piece ? "fragments, own sum" : sum ? "linear, own sum" : "linear, offload",
              fill, pps / 1e3, static_cast<double>(sent) / sec / 1e3, cpu / static_cast<double>(sent));
}

int run() {
  wire w;
  for (xdp_mode m : {xdp_mode::generic, xdp_mode::native}) {
    ping_pong(w, m, false);
    ping_pong(w, m, true);
    if (m == xdp_mode::native) ping_pong(w, m, false, true);
    for (uint32_t payload : {64u, 1448u})
      for (bool sum : {false, true}) one_way(w, m, payload, 0, sum, 512);
    one_way(w, m, 1448, 1448, true, 512);
    one_way(w, m, 64, 0, false, 128);
    one_way(w, m, 64, 0, false, 2048);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) rounds = static_cast<unsigned>(std::strtoul(argv[1], nullptr, 10));
  if (rounds < 10) return std::fprintf(stderr, "xdp_pingpong: rounds: a number of at least 10\n"), 2;
  if (const std::string why = can_run(); !why.empty()) {
    std::printf("skipped: %s\n", why.c_str());
    return 77;
  }
  return run_and_clean_up(run);
}
