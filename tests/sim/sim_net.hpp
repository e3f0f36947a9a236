// Two stacks in one thread, in virtual time: a `struct net` each with a device on an imagined link. The link carries frames as bytes,
// may lose, repeat, delay and corrupt them by a seeded generator, and may cut TSO frames or pass them whole.
#pragma once
#include <sys/mman.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <vector>

#include "ip/ip.hpp"
#include "neigh/neighbour.hpp"
#include "net/net.hpp"
#include "skb/csum.hpp"
#include "tcp/tcp_internal.hpp"

namespace icepath::sim {

struct rng {
  uint64_t s;
  uint64_t next() { s += 0x9e3779b97f4a7c15ull; return hash_mix(s); }
  uint64_t below(uint64_t n) { return n ? next() % n : 0; }
  bool chance(double p) { return static_cast<double>(next() >> 11) * 0x1p-53 < p; }
};

inline frame_pool& frames() {
  static frame_pool* p = [] {
    constexpr uint32_t nr = 1u << 17;
    void* m = ::mmap(nullptr, size_t{nr} << frame_shift, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    auto* fp = new frame_pool;
    if (m == MAP_FAILED || !fp->init(static_cast<uint8_t*>(m), nr, [](void*, uint32_t, uint32_t n) { return n; }, nullptr).ok()) std::abort();
    return fp;
  }();
  return *p;
}

struct packet {
  std::vector<uint8_t> bytes;
  uint16_t gso_size = 0, gso_segs = 0;
  bool good = false;            // the device vouches for the checksum
  tcp_hdr& th() { return *reinterpret_cast<tcp_hdr*>(bytes.data() + 34); }
  const tcp_hdr& th() const { return *reinterpret_cast<const tcp_hdr*>(bytes.data() + 34); }
  uint32_t payload() const { return static_cast<uint32_t>(bytes.size() - 34 - th().doff()); }
};

struct device : net_device {
  netdev_queue queue;
  std::function<void(packet&&)> out;
  bool pass_whole = false;      // give TSO frames to the peer uncut
  bool hold = false;            // keep transmitted skbs (a ring without completions)
  std::vector<sk_buff*> ring;

  xmit start_xmit(sk_buff* skb, uint16_t, bool) override {
    packet p;
    p.bytes.resize(skb->len);
    skb_copy_bits(skb, 0, p.bytes.data(), skb->len);
    p.gso_size = skb->gso_size;
    p.gso_segs = skb->gso_segs;
    const bool partial = skb->ip_summed == ip_sum::partial;
    ++tx_packets;
    if (hold) ring.push_back(skb);
    else owner->skbs.free(skb);
    if (p.gso_size && !pass_whole) {
      cut(p);
    } else {
      if (partial && !p.gso_size) finish(p);
      p.good = p.gso_size != 0;
      out(std::move(p));
    }
    return xmit::ok;
  }
  int clean_tx(int) override {
    const int n = static_cast<int>(ring.size());
    std::vector<sk_buff*> r;
    r.swap(ring);
    for (sk_buff* s : r) owner->skbs.free(s);
    return n;
  }
  int rx_burst(sk_buff**, int) override { return 0; }
  bool arm() override { return true; }
  void disarm() override {}

  static void finish(packet& p) {
    be32 s, d;
    std::memcpy(&s, &p.bytes[26], 4);
    std::memcpy(&d, &p.bytes[30], 4);
    const auto len = static_cast<uint32_t>(p.bytes.size() - 34);
    p.th().check.raw = 0;
    p.th().check.raw = csum_fold(csum_partial(&p.bytes[34], len, csum_pseudo_v4(s, d, 6, len)));
    p.bytes[16] = static_cast<uint8_t>((len + 20) >> 8);
    p.bytes[17] = static_cast<uint8_t>(len + 20);
    p.bytes[24] = p.bytes[25] = 0;
    const uint16_t c = csum_fold(csum_partial(&p.bytes[14], 20));
    std::memcpy(&p.bytes[24], &c, 2);
  }
  void cut(const packet& p) {
    const uint32_t hdr = 34 + p.th().doff(), total = p.payload(), seq = p.th().seq;
    for (uint32_t off = 0; off < total; off += p.gso_size) {
      const uint32_t n = std::min<uint32_t>(p.gso_size, total - off);
      packet q;
      q.bytes.assign(p.bytes.begin(), p.bytes.begin() + hdr);
      q.bytes.insert(q.bytes.end(), p.bytes.begin() + hdr + off, p.bytes.begin() + hdr + off + n);
      q.th().seq.set(seq + off);
      if (off + n < total) q.th().flags &= static_cast<uint8_t>(~(TCPHDR_FIN | TCPHDR_PSH));
      finish(q);
      out(std::move(q));
    }
  }
};

struct host {
  struct net n;
  device dev;
  mib stats;
  neighbour* peer = nullptr;

  host(uint8_t id, nsec now, uint32_t mtu, uint32_t features, uint32_t socks = 64) {
    n.now = now;
    n.timers.~timer_wheel();
    new (&n.timers) timer_wheel(now);
    n.skbs.init(&frames());
    n.dev = &dev;
    n.stats = &stats;
    n.secret[0] = 0x1234567 + id;
    n.secret[1] = 0x9876543;
    n.tcp = tcp_table_create(socks);
    n.tcp->n = &n;
    n.neigh = neigh_table_create();
    dev.owner = &n;
    dev.features = features;
    dev.mtu = mtu;
    dev.up = true;
    dev.num_tx_queues = 1;
    dev.txq = &dev.queue;
    dev.dev_addr[0] = 2;
    dev.dev_addr[5] = id;
    const uint8_t mac[6] = {2, 0, 0, 0, 0, static_cast<uint8_t>(3 - id)};
    peer = neigh_create(n, &dev, inet_addr::v4(0x0a000000u + 3 - id));
    neigh_update(n, peer, nud::permanent, mac);
  }
  ~host() {
    tcp_table_destroy(n);
    dev.clean_tx(0);
    neigh_release(n, peer);
    neigh_table_destroy(n);
    n.skbs.destroy();
  }
  dst_entry* route() { return ip_route_via(n, &dev, peer, dev.mtu); }

  void receive(const packet& p) {
    const uint32_t room = frame_size - skb_headroom - 512;
    sk_buff* skb = n.skbs.alloc();
    if (!skb) return;
    const auto len = static_cast<uint32_t>(p.bytes.size());
    uint32_t k = std::min(len, room);
    std::memcpy(skb_put(skb, k), p.bytes.data(), k);
    for (uint32_t off = k; off < len; off += k) {
      k = std::min<uint32_t>(len - off, frame_size);
      uint8_t* f = n.skbs.frames.alloc();
      if (!f || skb->nr_frags == max_skb_frags) std::abort();
      std::memcpy(f, p.bytes.data() + off, k);
      skb->frags[skb->nr_frags++] = {f, k};
      skb->len += k;
      skb->data_len += k;
      skb->truesize += skb_truesize_frame;
    }
    skb->dev = &dev;
    skb->gso_size = p.gso_size;
    skb->gso_segs = p.gso_segs;
    skb->ip_summed = p.good ? ip_sum::unnecessary : ip_sum::none;
    netif_receive_skb(n, skb);
  }
};

inline four_tuple tuple_ab(uint16_t sport = 1000, uint16_t dport = 2000) { return {inet_addr::v4(0x0a000001), inet_addr::v4(0x0a000002), sport, dport}; }

}  // namespace icepath::sim
