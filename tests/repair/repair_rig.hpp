// One connection between A and the kernel peer in B, whose end in A is either the kernel's socket or a tcp_sock on a stack over a packet socket.
// Everything runs in one thread: step() gives each party a turn. Both streams are known bytes and are compared as they come.
#pragma once
#include "../sim/sim_net.hpp"
#include "base/clock.hpp"
#include "netns.hpp"
#include "sock/kernel_repair.hpp"
#include "tcp/repair.hpp"

namespace icepath::ktest {

inline int failures = 0;
inline bool check(bool ok, const char* what) {
  if (!ok) ++failures, std::printf("  failed: %s (errno %s)\n", what, std::strerror(errno));
  return ok;
}
inline uint8_t stream_byte(unsigned dir, uint64_t off) { return static_cast<uint8_t>(hash_mix(dir + 1 + (off >> 3) * 77777) >> ((off & 7) * 8)); }

struct rig {
  world& w;
  sim::host h;
  tcp_ops ops{};
  int fd = -1, peer = -1;
  tcp_sock* sk = nullptr;
  four_tuple t{};
  tcp_repair_state state;
  uint64_t sent = 0, got = 0, target = 0, peer_sent = 0, peer_got = 0, peer_target = 0;
  bool flood = false, eof = false, peer_end = false;
  std::vector<nsec> barriers, takes, gives;
  std::vector<uint8_t> buf = std::vector<uint8_t>(1 << 17);

  explicit rig(world& w_) : w(w_), h(1, clock_now(), 1500, NETIF_F_SG) {
    h.dev.out = [this](sim::packet&& p) { (void)!::send(w.pkt, p.bytes.data(), p.bytes.size(), MSG_DONTWAIT); };
  }
  ~rig() {
    figure("take-over, barrier", barriers);
    figure("take-over, the rest", takes);
    figure("give-back", gives);
    if (sk) tcp_sk_free(h.n, sk);
    if (fd >= 0) ::close(fd);
    if (peer >= 0) ::close(peer);
    state.release();
  }

  static void figure(const char* what, std::vector<nsec>& v) {
    std::sort(v.begin(), v.end());
    if (!v.empty())
      std::printf("  %-20s median %7.0f us, max %7.0f us (%zu)\n", what, static_cast<double>(v[v.size() / 2]) * 1e-3,
                  static_cast<double>(v.back()) * 1e-3, v.size());
  }
  int opt(int level, int name) {
    int v = -1;
    socklen_t len = sizeof v;
    ::getsockopt(fd, level, name, &v, &len);
    return v;
  }
  sockaddr_in local() {
    sockaddr_in a{};
    socklen_t len = sizeof a;
    ::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &len);
    return a;
  }
  int kernel_state() {
    uint8_t b[256] = {};
    socklen_t len = sizeof b;
    ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, b, &len);
    return b[0];
  }

  void open(bool accepted) {
    w.enter(accepted ? w.ns_a : w.ns_b);
    const int l = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(accepted ? 0x0a000001 : 0x0a000002);
    socklen_t len = sizeof a;
    if (::bind(l, reinterpret_cast<sockaddr*>(&a), sizeof a) || ::listen(l, 5)) die("listen");
    ::getsockname(l, reinterpret_cast<sockaddr*>(&a), &len);
    w.enter(accepted ? w.ns_b : w.ns_a);
    const int c = ::socket(AF_INET, SOCK_STREAM, 0);
    if (::connect(c, reinterpret_cast<sockaddr*>(&a), sizeof a)) die("connect");
    w.enter(w.ns_a);
    const int s = ::accept(l, nullptr, nullptr);
    ::close(l);
    fd = accepted ? s : c;
    peer = accepted ? c : s;
    ::fcntl(fd, F_SETFL, O_NONBLOCK);
    ::fcntl(peer, F_SETFL, O_NONBLOCK);
    check(kernel_repair_prepare(fd, state).ok(), "prepare");
    t = state.tuple;
  }
  void close() {
    drain();
    check(!sk, "closed in the kernel");
    ::shutdown(fd, SHUT_WR);
    ::shutdown(peer, SHUT_WR);
    run(20 * msec_ns, true);
    ::close(fd);
    ::close(peer);
    fd = peer = -1;
  }

  // ---- the parties
  void look(unsigned dir, uint64_t& at, ssize_t k) {
    for (ssize_t i = 0; i < k; ++i)
      if (buf[static_cast<size_t>(i)] != stream_byte(dir, at + static_cast<uint64_t>(i))) {
        check(false, dir ? "a wrong byte from the peer" : "a wrong byte at the peer");
        std::printf("  at %llu\n", static_cast<unsigned long long>(at + static_cast<uint64_t>(i)));
        std::exit(1);
      }
    at += static_cast<uint64_t>(k);
  }
  size_t fill(unsigned dir, uint64_t at, uint64_t want) {
    const size_t k = static_cast<size_t>(std::min<uint64_t>(want, 65536));
    for (size_t i = 0; i < k; ++i) buf[i] = stream_byte(dir, at + i);
    return k;
  }
  void our_send() {
    while (flood || sent < target) {
      const size_t k = fill(0, sent, flood ? 32768 : target - sent);
      ssize_t r;
      if (sk) {
        iovec v{buf.data(), k};
        user_msg m{&v, 1, 0, k};
        r = tcp_sendmsg(h.n, sk, m, 0);
        if (r < 0 && r != -EAGAIN) check(false, "send on the tcp_sock"), target = sent;
      } else {
        r = ::send(fd, buf.data(), k, MSG_NOSIGNAL);
        if (r < 0 && errno != EAGAIN) check(false, "send on the kernel socket"), target = sent;
      }
      if (r <= 0) return;
      sent += static_cast<uint64_t>(r);
      if (flood) return;
    }
  }
  void our_recv() {
    for (int i = 0; i < 8; ++i) {
      ssize_t r;
      if (sk) {
        iovec v{buf.data(), buf.size()};
        user_msg m{&v, 1, 0, v.iov_len};
        r = tcp_recvmsg(h.n, sk, &m, v.iov_len, 0);
        if (r < 0 && r != -EAGAIN) check(false, "receive on the tcp_sock");
      } else {
        r = ::recv(fd, buf.data(), buf.size(), 0);
        if (r < 0 && errno != EAGAIN) check(false, "receive on the kernel socket");
      }
      if (r == 0) eof = true;
      if (r <= 0) return;
      look(1, got, r);
    }
  }
  void peer_io(bool reads) {
    while (flood || peer_sent < peer_target) {
      const size_t k = fill(1, peer_sent, flood ? 32768 : peer_target - peer_sent);
      const ssize_t r = ::send(peer, buf.data(), k, MSG_NOSIGNAL);
      if (r < 0 && errno != EAGAIN) check(false, "the peer's send"), peer_target = peer_sent;
      if (r <= 0) break;
      peer_sent += static_cast<uint64_t>(r);
      if (flood) break;
    }
    for (int i = 0; reads && i < 8; ++i) {
      const ssize_t r = ::recv(peer, buf.data(), buf.size(), 0);
      if (r < 0 && errno != EAGAIN) check(false, "the peer's receive");
      if (r == 0) peer_end = true;
      if (r <= 0) break;
      look(0, peer_got, r);
    }
  }
  // The next frame of our flow on the wire, or false.
  bool frame(sim::packet& p) {
    for (;;) {
      p.bytes.resize(2048);
      const ssize_t k = ::recv(w.pkt, p.bytes.data(), p.bytes.size(), MSG_DONTWAIT);
      if (k <= 0) return false;
      if (k < 54 || p.bytes[23] != 6) continue;
      p.bytes.resize(14u + (p.bytes[16] << 8 | p.bytes[17]));
      if (p.th().dest == t.sport && p.th().source == t.dport) return true;
    }
  }
  void stack_step() {
    h.n.now = clock_now();
    sim::packet p;
    for (int i = 0; i < 256 && frame(p); ++i)
      if (sk) h.receive(p);
    h.n.timers.run(h.n.now);
    tcp_tsq_run(h.n);
  }
  void step(bool reads, bool we_read = true) {
    stack_step();
    our_send();
    if (we_read) our_recv();
    peer_io(reads);
  }
  void run(nsec time, bool reads) {
    for (const nsec end = clock_now() + time; clock_now() < end;) step(reads);
  }
  void run_peer_only(nsec time) {
    for (const nsec end = clock_now() + time; clock_now() < end;) step(true, false);
  }
  void drain() {
    const nsec end = clock_now() + 30 * sec_ns;
    target = std::max(target, sent);
    peer_target = std::max(peer_target, peer_sent);
    while ((peer_got < target || got < peer_target) && clock_now() < end && failures < 5) step(true);
    if (!check(peer_got == target && got == peer_target, "every byte arrives"))
      std::printf("  sent %ju of %ju, at the peer %ju; the peer's %ju of %ju, here %ju; here %s\n", uintmax_t{sent}, uintmax_t{target},
                  uintmax_t{peer_got}, uintmax_t{peer_sent}, uintmax_t{peer_target}, uintmax_t{got}, sk ? "tcp_sock" : "kernel");
  }
  void exchange(unsigned a, unsigned b) { our_write(a), peer_write(b), drain(); }
  void our_write(uint64_t n) { target = std::max(target, sent) + n, our_send(); }
  void peer_write(uint64_t n) { peer_target = std::max(peer_target, peer_sent) + n, peer_io(false); }
  void wait_unread(int n) {
    int have = 0;
    for (const nsec end = clock_now() + 5 * sec_ns; have < n && clock_now() < end;) ::ioctl(fd, FIONREAD, &have), peer_io(false);
    check(have >= n, "unread data");
  }
  bool at_eof() { return our_recv(), eof; }
  bool peer_eof() {
    for (const nsec end = clock_now() + 5 * sec_ns; !peer_end && clock_now() < end;) step(true);
    return peer_end;
  }

  // ---- the moves
  void take_only() {
    if (!check(kernel_repair_prepare(fd, state).ok(), "prepare")) std::exit(1);
    sim::packet p;
    while (frame(p)) {}
    w.hold(t.sport, t.dport);
    const nsec a = clock_now();
    const repair_result r = kernel_take_over(fd, state);
    takes.push_back(clock_now() - a - r.barrier);
    barriers.push_back(r.barrier);
    if (!check(r.ok() && r.moved, "take over")) std::printf("  %s: %s\n", r.step, std::strerror(-r.err)), std::exit(1);
  }
  void take() {
    take_only();
    h.n.now = clock_now();
    sk = tcp_sk_alloc(h.n, &ops, nullptr);
    tcp_set_dst(h.n, sk, h.route());
    if (const int err = tcp_import(h.n, sk, state); !check(err == 0, "import")) std::printf("  %s\n", std::strerror(-err)), std::exit(1);
  }
  void give() {
    stack_step();
    h.n.now = clock_now();
    const int err = tcp_export(h.n, sk, state);
    if (!check(err == 0, "export")) std::printf("  %s state %u\n", std::strerror(-err), sk->state), std::exit(1);
    tcp_sk_free(h.n, sk);
    sk = nullptr;
    give_only();
  }
  void give_only() {
    nsec a = clock_now();
    repair_result r = kernel_give_back(fd, state);
    gives.push_back(clock_now() - a);
    if (!check(r.ok(), "give back")) std::printf("  %s: %s\n", r.step, std::strerror(-r.err)), std::exit(1);
    w.unhold(t.sport, t.dport);
    sim::packet p;
    while (frame(p)) (void)!::write(w.tun, p.bytes.data() + 14, p.bytes.size() - 14);   // held meanwhile
    a = clock_now();
    r = kernel_give_back_finish(fd, state);
    gives.back() += clock_now() - a;
    if (!check(r.ok(), "give back, last step")) std::printf("  %s: %s\n", r.step, std::strerror(-r.err));
    sent -= r.left;
    target = std::max(target, sent + r.left);
  }
};

}  // namespace icepath::ktest
