// Two threads, two stacks, one ring each way: frames arrive whole and in order, no wake-up is lost when either side sleeps at random moments, no
// frame is lost when either side pauses. Built with ThreadSanitizer, and plain.
#include <poll.h>

#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "tests/unit/ring/fake_region.hpp"

using namespace ringtest;

namespace {
#define CHECK(x) do { if (!(x)) { std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x); std::abort(); } } while (0)

uint32_t size_of(uint32_t i) { return 46 + (i * 2654435761u >> 7) % (i % 5 ? 200 : 8000); }

void run(host& me, uint16_t q, const uint8_t* mac, uint32_t total, unsigned seed, std::atomic<int>& done, uint64_t& sleeps) {
  std::mt19937 rng(seed);
  uint32_t sent = 0, got = 0;
  bool told = false;
  sk_buff* held = nullptr;
  while (done.load() < 2) {
    bool did = false;
    for (unsigned k = rng() % 24; k-- && sent < total && !me.dev().txq[q].state.load();) {
      sk_buff* s = held ? held : me.frame(mac, size_of(sent), sent);
      held = nullptr;
      if (!s) break;
      const xmit r = me.dev().start_xmit(s, q, false);
      if (r == xmit::busy) {
        held = s;
        break;
      }
      CHECK(r == xmit::ok);
      ++sent;
      did = true;
    }
    sk_buff* v[32];
    const int n = rng() % 4 ? me.dev().rx_burst(v, 32) : 0;
    for (int k = 0; k < n; ++k, ++got) {
      CHECK(check_frame(v[k], size_of(got), got));
      me.n.skbs.free(v[k]);
      did = true;
    }
    if (me.dev().clean_tx(64)) did = true;
    if (!told && got == total && sent == total) {
      told = true;
      done.fetch_add(1);
    }
    if (!did && !told && rng() % 2) {
      if (sent < total && !me.dev().txq[q].state.load()) continue;
      if (me.dev().arm()) {
        pollfd p{local_port_wake_fd(me.port), POLLIN, 0};
        ++sleeps;
        const int r = poll(&p, 1, 20000);
        me.dev().disarm();
        local_port_drain_wake(me.port);
        CHECK(r == 1);  // 20 s without a wake-up: it was lost
      }
    }
  }
  CHECK(me.dev().tx_dropped == 0);
}
}  // namespace

int main(int argc, char** argv) {
  const uint32_t total = argc > 1 ? static_cast<uint32_t>(atoi(argv[1])) : 30000;
  fake_init();
  region ra, rb;
  fake_open(ra, 1, 4096);
  fake_open(rb, 2, 4096);
  for (unsigned round = 0; round < 2; ++round) {
    host a(ra, 0), b(rb, 0);
    uint16_t qa, qb;
    uint8_t ma[6], mb[6];
    CHECK(join(a, b, &qa, mb));
    CHECK(join(b, a, &qb, ma));
    std::atomic<int> done{0};
    uint64_t sa = 0, sb = 0;
    std::thread t([&] { run(b, qb, ma, total, round * 2 + 1, done, sb); });
    run(a, qa, mb, total, round * 2 + 2, done, sa);
    t.join();
    std::printf("round %u: %u frames each way, slept %llu and %llu times, paused %llu and %llu times\n", round, total, static_cast<unsigned long long>(sa),
                static_cast<unsigned long long>(sb), static_cast<unsigned long long>(a.stats.RingPaused), static_cast<unsigned long long>(b.stats.RingPaused));
    a.dev().clean_tx(1000);
    b.dev().clean_tx(1000);
    local_port_detach(a.port, b.id());
    local_port_detach(b.port, a.id());
    sk_buff* v[8];
    for (int i = 0; i < 20; ++i)
      for (host* h : {&a, &b})
        for (int k = h->dev().rx_burst(v, 8); k > 0;) h->n.skbs.free(v[--k]);
    CHECK(a.n.skbs.allocated() == 0 && b.n.skbs.allocated() == 0);
    CHECK(a.held() == 0 && b.held() == 0);
  }
  return 0;
}
