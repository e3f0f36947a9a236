// What a frame costs on the local port: one thread for CPU cost, two threads for latency and throughput. Prints a table; no part of the
// timed tests. Arguments: rounds (default 200000).
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

#include "tests/unit/ring/fake_region.hpp"

using namespace ringtest;

namespace {
double now_ns() { return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
void pin(int cpu) {
  cpu_set_t s;
  CPU_ZERO(&s);
  CPU_SET(cpu, &s);
  pthread_setaffinity_np(pthread_self(), sizeof s, &s);
}
sk_buff* small(host& h, const uint8_t mac[6]) {
  sk_buff* s = h.n.skbs.alloc();
  uint8_t* p = skb_put(s, 64);
  std::memcpy(p, mac, 6);
  std::memcpy(p + 6, h.dev().dev_addr, 6);
  return s;
}
// A TSO frame of `len` payload bytes over fragments that were just written, as tcp_sendmsg leaves them.
sk_buff* big(host& h, const uint8_t mac[6], uint32_t len) {
  sk_buff* s = h.n.skbs.alloc();
  if (!s) return nullptr;
  uint8_t* p = skb_put(s, 66);
  std::memset(p, 0, 66);
  std::memcpy(p, mac, 6);
  std::memcpy(p + 6, h.dev().dev_addr, 6);
  p[12] = 8;
  p[14] = 0x45;
  p[14 + 20 + 12] = 8 << 4;
  skb_reset_mac(s);
  s->network_header = static_cast<uint16_t>(s->mac_header + 14);
  s->transport_header = s->csum_start = static_cast<uint16_t>(s->mac_header + 34);
  s->csum_offset = 16;
  s->ip_summed = ip_sum::partial;
  s->gso_size = 8948;
  for (uint32_t at = 0; at < len; at += frame_size) {
    uint8_t* f = h.n.skbs.frames.alloc();
    if (!f) { h.n.skbs.free(s); return nullptr; }
    const uint32_t k = std::min<uint32_t>(frame_size, len - at);
    s->frags[s->nr_frags++] = {f, k};
    s->len += k;
    s->data_len += k;
  }
  return s;
}
}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 200000;
  fake_init();
  region ra, rb;
  fake_open(ra, 1, 16384);
  fake_open(rb, 2, 16384);
  {
    host a(ra, 0), b(rb, 0);
    uint16_t qa, qb;
    uint8_t ma[6], mb[6];
    if (!join(a, b, &qa, mb) || !join(b, a, &qb, ma)) return 1;
    pin(0);
    double tx = 0, rx = 0, cl = 0;
    sk_buff* v[64];
    for (int i = 0; i < rounds; i += 32) {
      sk_buff* f[32];
      for (auto& s : f) s = small(a, mb);
      const double t0 = now_ns();
      for (auto& s : f) a.dev().start_xmit(s, qa, false);
      const double t1 = now_ns();
      int n = 0;
      while (n < 32) n += b.dev().rx_burst(v + n, 32 - n);
      const double t2 = now_ns();
      a.dev().clean_tx(64);
      const double t3 = now_ns();
      for (int k = 0; k < n; ++k) b.n.skbs.free(v[k]);
      tx += t1 - t0;
      rx += t2 - t1;
      cl += t3 - t2;
    }
    printf("%-58s %9.1f ns\n", "64 B, one thread: start_xmit + doorbell + device", tx / rounds);
    printf("%-58s %9.1f ns\n", "64 B, one thread: rx_burst", rx / rounds);
    printf("%-58s %9.1f ns\n", "64 B, one thread: clean_tx", cl / rounds);
    for (uint32_t len : {4096u, 16384u, 65024u}) {
      double t = 0;
      const int n = rounds / 20;
      for (int i = 0; i < n; ++i) {
        sk_buff* s = big(a, mb, len);
        const double t0 = now_ns();
        if (a.dev().start_xmit(s, qa, false) != xmit::ok) return 2;
        t += now_ns() - t0;
        if (b.dev().rx_burst(v, 64) != 1) return 3;
        b.n.skbs.free(v[0]);
        a.dev().clean_tx(64);
      }
      printf("TSO %5u B, one thread: start_xmit                          %9.1f ns  %6.2f GB/s\n", len, t / n, len * double(n) / t);
    }
  }
  for (int mode = 0; mode < 2; ++mode) {
    host a(ra, 0), b(rb, 0);
    uint16_t qa, qb;
    uint8_t ma[6], mb[6];
    if (!join(a, b, &qa, mb) || !join(b, a, &qb, ma)) return 1;
    std::atomic<bool> stop{false};
    std::thread peer([&] {
      pin(1);
      sk_buff* v[64];
      volatile uint64_t sink = 0;
      while (!stop.load(std::memory_order_relaxed)) {
        const int n = b.dev().rx_burst(v, 64);
        for (int k = 0; k < n; ++k) {
          if (mode == 0) b.dev().start_xmit(small(b, ma), qb, false);
          else for (unsigned f = 0; f < v[k]->nr_frags; ++f) for (uint32_t o = 0; o < v[k]->frags[f].len; o += 64) sink = sink + v[k]->frags[f].addr[o];
          b.n.skbs.free(v[k]);
        }
        b.dev().clean_tx(64);
      }
    });
    sk_buff* v[64];
    if (mode == 0) {
      std::vector<double> lat;
      double xm = 0;
      for (int i = 0; i < rounds; ++i) {
        const double t0 = now_ns();
        a.dev().start_xmit(small(a, mb), qa, false);
        const double t1 = now_ns();
        while (!a.dev().rx_burst(v, 1)) {
        }
        lat.push_back(now_ns() - t0);
        xm += t1 - t0;
        a.n.skbs.free(v[0]);
        a.dev().clean_tx(64);
      }
      std::sort(lat.begin(), lat.end());
      printf("%-58s %9.1f ns  (p99 %.0f)\n", "64 B ping-pong, two threads: half round trip, median", lat[lat.size() / 2] / 2, lat[lat.size() * 99 / 100] / 2);
      printf("%-58s %9.1f ns\n", "64 B ping-pong: skb alloc + start_xmit", xm / rounds);
    } else {
      const uint32_t len = 65024;
      const int n = rounds / 10;
      double spent = 0;
      const double t0 = now_ns();
      for (int i = 0; i < n;) {
        const double x0 = now_ns();
        if (!a.dev().txq[qa].state.load()) {
          sk_buff* s = big(a, mb, len);
          if (s && a.dev().start_xmit(s, qa, false) == xmit::ok) ++i;
          else if (s) a.n.skbs.free(s);
        }
        spent += now_ns() - x0;
        a.dev().clean_tx(64);
      }
      const double t = now_ns() - t0;
      printf("TSO %5u B, two threads, receiver touches every line          %9.1f ns  %6.2f GB/s (in start_xmit %.0f%%, paused %llu)\n", len, t / n, len * double(n) / t,
             100 * spent / t, static_cast<unsigned long long>(a.stats.RingPaused.load()));
    }
    stop = true;
    peer.join();
    for (auto* h : {&a, &b}) {
      for (int k; (k = h->dev().rx_burst(v, 64)) > 0;) while (k) h->n.skbs.free(v[--k]);
      h->dev().clean_tx(1000);
    }
  }
  return 0;
}
