// A peer process killed at any instant: the survivor gets all its memory back and its other queues do not stall. Real regions, real processes.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>

#include "base/clock.hpp"
#include "driver/e810/port.hpp"

using namespace icepath;

namespace {

struct side {
  region r;
  net n;
  mib stats;
  local_port* port = nullptr;
  bool open() {
    if (!region_create(r).ok()) return false;
    n.skbs.init(&r.frames);
    n.stats = &stats;
    n.now = 1;
    auto p = local_port_create(r, n, 0);
    if (!p.ok()) return false;
    port = *p;
    n.dev = local_port_dev(port);
    return true;
  }
  net_device& dev() { return *n.dev; }
  peer_stack id() const { return {r.slot, 0, r.cookie}; }
  uint32_t held() {
    n.skbs.frames.drain();
    return r.frames.in_use();
  }
  bool send(uint16_t q, const uint8_t mac[6], uint32_t bytes) {
    if (dev().txq[q].state.load()) return false;
    sk_buff* s = n.skbs.alloc();
    if (!s) return false;
    std::memset(skb_put(s, 60), 0x5a, 60);
    std::memcpy(s->data, mac, 6);
    for (uint32_t at = 60; at < bytes; at += frame_size) {
      uint8_t* f = n.skbs.frames.alloc();
      if (!f) break;
      const uint32_t k = bytes - at < frame_size ? bytes - at : static_cast<uint32_t>(frame_size);
      std::memset(f, 0x5a, k);
      s->frags[s->nr_frags++] = {f, k};
      s->len += k;
      s->data_len += k;
    }
    if (dev().start_xmit(s, q, false) != xmit::busy) return true;
    n.skbs.free(s);
    return false;
  }
  int receive(bool check) {
    sk_buff* v[32];
    const int k = dev().rx_burst(v, 32);
    for (int i = 0; i < k; ++i) {
      if (check) {
        uint8_t b[9000];
        EXPECT_LE(v[i]->len, sizeof b);
        skb_copy_bits(v[i], 0, b, v[i]->len);
        for (uint32_t o = 6; o < v[i]->len; ++o)
          if (b[o] != 0x5a) { ADD_FAILURE() << "torn frame"; break; }
      }
      n.skbs.free(v[i]);
    }
    dev().clean_tx(64);
    return k;
  }
};

[[noreturn]] void child(const peer_stack& parent, int out) {
  side s;
  if (!s.open()) _exit(1);
  const peer_stack me = s.id();
  if (write(out, &me, sizeof me) != sizeof me) _exit(2);
  std::mt19937 rng(static_cast<unsigned>(getpid()));
  uint16_t q = 0;
  uint8_t mac[6];
  for (;;) {
    if (local_port_attach(s.port, parent, &q, mac) == attach::ready) {
      for (unsigned k = rng() % 20; k--;) s.send(q, mac, 60 + rng() % 8900);
      if (rng() % 50 == 0) local_port_detach(s.port, parent);
    }
    if (rng() % 3) s.receive(false);
  }
}

}  // namespace

TEST(local_port_kill, survivor_gets_everything_back_and_others_go_on) {
  char dir[] = "/tmp/icepath-kill-XXXXXX";
  ASSERT_TRUE(mkdtemp(dir));
  setenv("ICEPATH_RUNTIME_DIR", dir, 1);
  side a;
  ASSERT_TRUE(a.open());
  uint16_t self_q;
  uint8_t self_mac[6];
  ASSERT_EQ(local_port_attach(a.port, a.id(), &self_q, self_mac), attach::ready);
  while (a.receive(true)) {
  }
  const uint32_t baseline = a.held();
  std::mt19937 rng(5);
  uint64_t frames = 0, ready = 0;
  for (int i = 0; i < 60; ++i) {
    int fd[2];
    ASSERT_EQ(pipe(fd), 0);
    const pid_t pid = fork();
    if (pid == 0) child(a.id(), fd[1]);
    close(fd[1]);
    peer_stack c{};
    ASSERT_EQ(read(fd[0], &c, sizeof c), static_cast<ssize_t>(sizeof c));
    close(fd[0]);
    const nsec until = clock_now() + rng() % 8000000;
    uint16_t q = 0;
    uint8_t mac[6];
    while (clock_now() < until) {
      if (local_port_attach(a.port, c, &q, mac) == attach::ready) {
        ++ready;
        for (unsigned k = rng() % 20; k--;) a.send(q, mac, 60 + rng() % 8900);
      }
      frames += static_cast<uint64_t>(a.receive(true));
    }
    kill(pid, SIGKILL);
    // The own queue works between the death and its discovery.
    ASSERT_TRUE(a.send(self_q, self_mac, 500));
    ASSERT_EQ(waitpid(pid, nullptr, 0), pid);
    int got = 0;
    for (int k = 0; k < 50; ++k) got += a.receive(true);
    EXPECT_GE(got, 1);
    local_port_detach(a.port, c);
    for (int k = 0; k < 20; ++k) a.receive(true);
    EXPECT_EQ(local_port_peers(a.port), 1u) << i;
    EXPECT_EQ(a.n.skbs.allocated(), 0u) << i;
    const uint32_t held = a.held();   // the own queue posts in batches of 16
    EXPECT_TRUE(held <= baseline && held + ice_rx_batch > baseline) << i << ": " << held;
  }
  EXPECT_GT(frames, 100u);
  EXPECT_GT(ready, 10u);
  EXPECT_EQ(a.stats.RingMddEvents.load(), 0u);
  local_port_detach(a.port, a.id());
  for (int k = 0; k < 5; ++k) a.receive(true);
  EXPECT_EQ(a.held(), 0u);
  local_port_destroy(a.port);
  region_destroy(a.r);
}
