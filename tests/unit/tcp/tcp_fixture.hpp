// One TCP stack under test, an explicit clock, and the peer played by the test: what is sent is kept as packets, what the peer says is
// made by hand. Sequence numbers in the tests are relative to the initial ones.
#pragma once
#include <gtest/gtest.h>
#include <linux/tcp.h>
#include <string>

#include "../../sim/sim_net.hpp"

namespace icepath {

using sim::packet;

struct tcp_fixture {
  static constexpr uint32_t irs = 5000;
  nsec start = 1000 * sec_ns;
  sim::host h;
  struct net& n;
  std::vector<packet> tx;
  tcp_sock* sk = nullptr;
  four_tuple t = sim::tuple_ab();
  uint32_t iss = 0;
  uint32_t peer_tsval = 100;
  bool ts = false, corrupt_next = false;

  struct events { int data = 0, space = 0, state = 0, lane = 0; };
  static events& ev() { static events e; return e; }
  static const tcp_ops* ops() {
    static const tcp_ops o = {[](tcp_sock*) { ++ev().data; }, [](tcp_sock*) { ++ev().space; }, [](tcp_sock*) { ++ev().state; },
                              [](tcp_sock*, uint8_t) { ++ev().lane; }};
    return &o;
  }

  explicit tcp_fixture(uint32_t mtu = 1500, uint32_t features = NETIF_F_SG | NETIF_F_IP_CSUM | NETIF_F_TSO) : h(1, start, mtu, features), n(h.n) {
    ev() = {};
    h.dev.pass_whole = true;
    h.dev.out = [this](packet&& p) { tx.push_back(std::move(p)); };
  }
  ~tcp_fixture() {
    if (sk && !sk->freed) tcp_sk_free(n, sk);
    h.dev.hold = false;
    h.dev.clean_tx(0);
  }

  tcp_sock* make() {
    sk = tcp_sk_alloc(n, ops(), nullptr);
    sk->params.timestamps = ts;
    tcp_set_dst(n, sk, h.route());
    return sk;
  }
  void advance(nsec d) {   // timers fire on the way, each at its time
    const nsec end = n.now + d;
    for (;;) {
      const nsec e = n.timers.next_expiry();
      if (e > end) break;
      n.now = std::max(n.now + 1, e);
      n.timers.run(n.now);
    }
    n.now = end;
    n.timers.run(n.now);
  }
  void segment(uint32_t seq, uint32_t ack, uint8_t flags, const std::string& data = "", uint16_t win = 60000, std::string opts = "", uint16_t urg = 0) {
    if (ts && !(flags & TCPHDR_SYN) && opts.empty()) opts = timestamp(peer_tsval, 0);
    packet p;
    p.bytes.resize(54 + opts.size() + data.size());
    uint8_t* b = p.bytes.data();
    std::memcpy(b, h.dev.dev_addr, 6);
    b[12] = 8;
    b[14] = 0x45;
    b[22] = 64;
    b[23] = 6;
    const be32 s{__builtin_bswap32(0x0a000002)}, d{__builtin_bswap32(0x0a000001)};
    std::memcpy(b + 26, &s, 4);
    std::memcpy(b + 30, &d, 4);
    tcp_hdr& th = p.th();
    th.source.set(t.dport);
    th.dest.set(t.sport);
    th.seq.set(irs + seq);
    th.ack_seq.set(flags & TCPHDR_ACK ? iss + ack : 0);
    th.doff_res = static_cast<uint8_t>((20 + opts.size()) << 2);
    th.flags = flags;
    th.window.set(win);
    th.urg_ptr.set(urg);
    std::memcpy(b + 54, opts.data(), opts.size());
    std::memcpy(b + 54 + opts.size(), data.data(), data.size());
    sim::device::finish(p);
    if (corrupt_next) p.bytes.back() ^= 1;
    corrupt_next = false;
    h.receive(p);
  }
  static std::string be(uint32_t v) { return {static_cast<char>(v >> 24), static_cast<char>(v >> 16), static_cast<char>(v >> 8), static_cast<char>(v)}; }
  static std::string timestamp(uint32_t val, uint32_t ecr) { return std::string("\x01\x01\x08\x0a", 4) + be(val) + be(ecr); }
  std::string sack(uint32_t a, uint32_t b) const { return std::string("\x01\x01\x05\x0a", 4) + be(iss + a) + be(iss + b); }
  std::string syn_opts() const {
    std::string o("\x02\x04\x05\xb4\x01\x01\x04\x02\x01\x03\x03\x00", 12);   // MSS 1460, SACK permitted, window scale 0
    if (ts) o += timestamp(peer_tsval, 0);
    return o;
  }
  // Active open up to ESTABLISHED. Afterwards relative numbers: ours begin at 1, the peer's at 1. tx is empty.
  void establish(uint16_t win = 60000) {
    make();
    ASSERT_EQ(tcp_connect(n, sk, t), 0);
    ASSERT_EQ(tx.size(), 1u);
    iss = tx[0].th().seq;
    n.now += 10 * msec_ns;
    std::string o = syn_opts();
    if (ts) o = o.substr(0, o.size() - 4) + be(static_cast<uint32_t>(n.now / msec_ns) + sk->tsoffset - 5);
    segment(0, 1, TCPHDR_SYN | TCPHDR_ACK, "", win, o);
    ASSERT_EQ(sk->state, TCP_ESTABLISHED);
    tx.clear();
  }
  ssize_t send(const std::string& s, int flags = 0) {
    iovec v{const_cast<char*>(s.data()), s.size()};
    user_msg m{&v, 1, 0, s.size()};
    return tcp_sendmsg(n, sk, m, flags);
  }
  std::string recv(size_t max = 65536, int flags = 0, ssize_t* rc = nullptr) {
    std::string b(max, '\0');
    iovec v{b.data(), max};
    user_msg m{&v, 1, 0, max};
    const ssize_t k = tcp_recvmsg(n, sk, &m, max, flags);
    if (rc) *rc = k;
    b.resize(k > 0 ? static_cast<size_t>(k) : 0);
    return b;
  }
  uint32_t seq(size_t i) const { return tx.at(i).th().seq - iss; }
  uint32_t ack(size_t i) const { return tx.at(i).th().ack_seq - irs; }
  uint8_t flags(size_t i) const { return tx.at(i).th().flags; }
  uint64_t count(std::atomic<uint64_t> mib::*c) const { return (h.stats.*c).load(); }
};

}  // namespace icepath
