// Simulation of two TCP stacks over a bad link, thousands of seeds. For every seed: each byte of both streams is compared, the connection
// must finish within bounded virtual time, and afterwards no skb and no socket may be left.
//   tcp_sim [--seeds N] [--first N]     run many;     tcp_sim --seed N [-v]     replay one
//   tcp_sim --moves ...             the same, while connections move between sockets by export and import, any number of times
#include "sim_net.hpp"
#include "tcp/repair.hpp"

namespace icepath::sim {
namespace {

uint8_t stream_byte(uint64_t seed, unsigned dir, uint64_t off) { return static_cast<uint8_t>(hash_mix(seed * 2 + dir + (off >> 3) * 77777) >> ((off & 7) * 8)); }

struct flight { nsec at; uint64_t order; unsigned to; packet p; };
struct later { bool operator()(const flight& a, const flight& b) const { return a.at != b.at ? a.at > b.at : a.order > b.order; } };

struct app {
  host* h = nullptr;
  tcp_sock* sk = nullptr;
  unsigned dir = 0;
  uint64_t to_send = 0, sent = 0, expect = 0, got = 0;
  uint32_t max_write = 0, max_read = 0;
  nsec wake = 0, pause_max = 0;
  bool more = false, shut = false, eof = false, closed = false, use_more = false;
  uint64_t leave_at = ~0ull;   // bytes read after which the application goes away without a word
  bool left = false;
  int error = 0;
  tcp_repair_state at_rest;    // --moves: where the connection is while it has no socket
  tcp_sock* frozen = nullptr;
  nsec moving_until = 0, next_move = 0;
};

tcp_ops no_ops{};

struct world {
  uint64_t seed;
  rng r;
  nsec now = 1000 * sec_ns;
  host *h[2] = {};
  app a[2];
  std::vector<flight> link;
  uint64_t order = 0;
  double loss, dup, reorder, corrupt;
  nsec delay, jitter, serial;
  nsec link_free[2] = {};
  const char* failure = nullptr;
  bool verbose = false;
  std::vector<uint8_t> buf = std::vector<uint8_t>(1 << 18);
  uint64_t events = 0;
  uint64_t retrans = 0, moved = 0;
  bool moves = false;

  explicit world(uint64_t s) : seed(s), r{s * 1000003} {}

  void send(unsigned from, packet&& p) {
    if (verbose)
      std::printf("%12.6f %u> seq %u ack %u len %u flags %02x win %u%s\n", static_cast<double>(now - 1000 * sec_ns) * 1e-9, from, uint32_t{p.th().seq}, uint32_t{p.th().ack_seq},
                  p.payload(), p.th().flags, uint32_t{p.th().window}, p.gso_size ? " gso" : "");
    if (r.chance(loss)) { if (verbose) std::printf("             lost\n"); return; }
    const unsigned copies = r.chance(dup) ? 2 : 1;
    for (unsigned i = 0; i < copies; ++i) {
      flight f;
      f.order = order++;
      link_free[from] = std::max(link_free[from], now) + serial * p.bytes.size();
      f.at = link_free[from] + delay + (jitter ? r.below(jitter) / 64 : 0);
      if (r.chance(reorder)) f.at += r.below(delay * 2 + jitter + 1000);
      else if (!jitter) f.at = std::max(f.at, now);
      f.to = 1 - from;
      f.p = p;
      if (r.chance(corrupt)) {
        f.p.bytes[r.below(f.p.bytes.size())] ^= static_cast<uint8_t>(1 + r.below(255));
        f.p.good = false;
        if (f.p.gso_size) continue;
      }
      link.push_back(std::move(f));
      std::push_heap(link.begin(), link.end(), later{});
    }
  }

  void fail(const char* what) { if (!failure) failure = what; }

  void check_sock(const tcp_sock* sk) {   // the counters are what the queues say
    uint32_t pk = 0, sa = 0, lo = 0, re = 0;
    size_t wm = 0, rm = 0;
    uint32_t seq = sk->snd_una;
    for (const sk_buff* s = sk->tcp_rtx_queue.first; s; s = s->next) {
      const uint32_t c = tcp_skb_pcount(s);
      pk += c;
      if (s->cb.sacked & TCPCB_SACKED_ACKED) sa += c;
      if (s->cb.sacked & TCPCB_LOST) lo += c;
      if (s->cb.sacked & TCPCB_SACKED_RETRANS) re += c;
      if (s != sk->tcp_rtx_queue.first && s->cb.seq != seq) fail("hole in the retransmit queue");
      seq = s->cb.end_seq;
      wm += s->truesize;
    }
    for (const sk_buff* s = sk->sk_write_queue.first; s; s = s->next) {
      if (s->cb.seq != seq && seq != sk->snd_una) fail("hole in the write queue");
      seq = s->cb.end_seq;
      wm += s->truesize;
    }
    for (const sk_buff* s = sk->sk_receive_queue.first; s; s = s->next) rm += s->truesize;
    for (const sk_buff* s = sk->out_of_order_queue.first; s; s = s->next) rm += s->truesize;
    if (pk != sk->packets_out) fail("packets_out");
    if (sk->sack_ok && sa != sk->sacked_out) fail("sacked_out");
    if (lo != sk->lost_out) fail("lost_out");
    if (re != sk->retrans_out) fail("retrans_out");
    if (wm != sk->wmem_queued) fail("wmem_queued");
    if (rm != sk->rmem_alloc) fail("rmem_alloc");
    if (sk->sack_ok && sk->sacked_out + sk->lost_out > sk->packets_out) fail("left_out");
    if (after(sk->snd_nxt, sk->write_seq) || after(sk->snd_una, sk->snd_nxt)) fail("sequence order");
  }

  // One step of an application: write some, read some, close when it is done.
  void run_app(app& p) {
    if (p.closed || !p.sk) return;
    net& n = p.h->n;
    if (!p.error && !p.shut && p.sent < p.to_send && now >= p.wake) {
      for (unsigned i = 0; i < 4 && p.sent < p.to_send; ++i) {
        const uint64_t k = std::min<uint64_t>(1 + r.below(p.max_write), p.to_send - p.sent);
        for (uint64_t j = 0; j < k; ++j) buf[j] = stream_byte(seed, p.dir, p.sent + j);
        iovec v[2] = {{buf.data(), k / 2}, {buf.data() + k / 2, k - k / 2}};
        user_msg m{v, 2, 0, k};
        const ssize_t got = tcp_sendmsg(n, p.sk, m, p.use_more && r.chance(0.3) && p.sent + k < p.to_send ? MSG_MORE : 0);
        if (got > 0) p.sent += static_cast<uint64_t>(got);
        else if (got != -EAGAIN) { p.error = static_cast<int>(-got); break; }
        if (got < static_cast<ssize_t>(k)) break;
      }
      p.wake = now + r.below(p.pause_max);
    }
    if (!p.error && !p.shut && p.sent == p.to_send) {
      if (p.use_more) { int zero = 0; tcp_setsockopt(n, p.sk, 6, 3, &zero, 4); }
      tcp_shutdown_write(n, p.sk);
      p.shut = true;
    }
    p.more = !p.eof;
    for (unsigned i = 0; i < 8 && !p.eof; ++i) {
      iovec v{buf.data(), 1 + r.below(p.max_read)};
      user_msg m{&v, 1, 0, v.iov_len};
      const ssize_t k = tcp_recvmsg(n, p.sk, &m, v.iov_len, 0);
      if (k == -EAGAIN) { p.more = false; break; }
      if (k < 0) { p.error = static_cast<int>(-k); break; }
      if (k == 0) { p.eof = true; p.more = false; break; }
      for (ssize_t j = 0; j < k; ++j)
        if (buf[static_cast<size_t>(j)] != stream_byte(seed, 1 - p.dir, p.got + static_cast<uint64_t>(j))) { fail("wrong byte"); return; }
      p.got += static_cast<uint64_t>(k);
    }
    if (!p.error && p.got >= p.leave_at && p.sk->state != TCP_LISTEN) {
      p.left = p.closed = true;
      if (p.leave_at & 1) tcp_abort(n, p.sk), tcp_sk_free(n, p.sk);
      else tcp_close(n, p.sk);
      return;
    }
    if (p.error) {
      tcp_close(n, p.sk);
      p.closed = true;
    } else if (p.eof && p.shut) {
      tcp_close(n, p.sk);
      p.closed = true;
    }
  }

  // The connection leaves its socket, is nowhere for a while (its segments wait), and goes on in another socket, or, when the
  // other side could not take it, in the old one. Sometimes with only what a kernel can tell.
  void move(app& p) {
    net& n = p.h->n;
    if (p.frozen) {
      if (now < p.moving_until) return;
      const bool back = r.chance(0.1);
      tcp_sock* sk = p.frozen;
      if (back) {
        if (tcp_thaw(n, sk)) fail("thaw");
      } else {
        if (r.chance(0.5)) p.at_rest.ts_recent_valid = false, p.at_rest.snd_cwnd = 10, p.at_rest.snd_ssthresh = ~0u;
        sk = tcp_sk_alloc(n, &no_ops, nullptr);
        sk->params = p.frozen->params;
        sk->lane_opt_tx = p.frozen->lane_opt_tx;
        tcp_set_dst(n, sk, p.h->route());
        if (tcp_import(n, sk, p.at_rest)) fail("import");
        tcp_sk_free(n, p.frozen);
      }
      p.sk = sk;
      p.frozen = nullptr;
      p.next_move = now + r.below(60 * msec_ns);
      ++moved;
    } else if (p.sk && !p.closed && now >= p.next_move) {
      p.next_move = now + r.below(60 * msec_ns);
      if (!tcp_export_ready(p.sk) && r.chance(0.7)) return;
      if (tcp_export(n, p.sk, p.at_rest)) return;
      if (tcp_repair_check(p.at_rest)) fail("export of a state that cannot be");
      p.frozen = p.sk;
      p.sk = nullptr;
      p.moving_until = now + (r.chance(0.5) ? 0 : r.below(3 * msec_ns));
      if (p.moving_until == now) move(p);
    }
  }

  bool run() {
    const uint32_t mtus[] = {576, 1500, 1500, 9000};
    const uint32_t mtu = mtus[r.below(4)];
    const uint32_t feats[] = {NETIF_F_SG, NETIF_F_SG | NETIF_F_IP_CSUM, NETIF_F_SG | NETIF_F_IP_CSUM | NETIF_F_TSO};
    const bool clean = r.chance(0.15);
    const double bad = r.chance(0.3) ? 0.15 : 0.03;
    loss = clean || r.chance(0.2) ? 0 : static_cast<double>(r.below(1000)) * 1e-3 * bad;
    dup = clean || r.chance(0.5) ? 0 : static_cast<double>(r.below(1000)) * 1e-3 * 0.05;
    reorder = clean || r.chance(0.4) ? 0 : static_cast<double>(r.below(1000)) * 1e-3 * 0.2;
    corrupt = clean || r.chance(0.5) ? 0 : static_cast<double>(r.below(1000)) * 1e-3 * 0.02;
    delay = r.chance(0.3) ? 500 + r.below(2000) : r.below(40 * msec_ns);
    jitter = r.chance(0.5) ? 0 : r.below(delay + 1);
    serial = r.chance(0.5) ? 0 : r.below(80);
    const unsigned mode = static_cast<unsigned>(r.below(4));   // expect, simultaneous, listen, expect
    tcp_sock* listener = nullptr;
    for (unsigned i = 0; i < 2; ++i) {
      h[i] = new host(static_cast<uint8_t>(i + 1), now, mtu, feats[r.below(3)]);
      h[i]->dev.pass_whole = r.chance(0.3);
      h[i]->dev.out = [this, i](packet&& p) { send(i, std::move(p)); };
      app& p = a[i];
      p.h = h[i];
      p.dir = i;
      p.to_send = r.chance(0.2) ? 0 : r.chance(0.02) ? r.below(1500000) : r.below(60000);
      p.max_write = static_cast<uint32_t>(1 + r.below(r.chance(0.3) ? 200 : 40000));
      p.max_read = static_cast<uint32_t>(1 + r.below(r.chance(0.2) ? 300 : 60000));
      if (p.to_send > 100000) p.max_write += 5000, p.max_read += 5000;
      p.pause_max = r.chance(0.4) ? 1 + r.below(30 * msec_ns) : 1;
      p.use_more = r.chance(0.2);
      if (!moves && r.chance(0.05)) p.leave_at = r.below(30000);
    }
    const four_tuple t = tuple_ab();
    for (unsigned i = 0; i < 2; ++i) {
      net& n = h[i]->n;
      tcp_sock* sk = tcp_sk_alloc(n, &no_ops, nullptr);
      sk->params.timestamps = r.chance(0.7);
      sk->params.sack = r.chance(0.8);
      sk->params.window_scaling = r.chance(0.8);
      if (r.chance(0.2)) sk->params.rcvbuf = 2304 + static_cast<uint32_t>(r.below(20000)), sk->params.rcvbuf_max = sk->params.rcvbuf * 2;
      if (r.chance(0.1)) sk->params.init_cwnd = 1024;
      if (r.chance(0.3)) tcp_ca_assign(sk, &tcp_reno);
      if (r.chance(0.4)) sk->nonagle = TCP_NAGLE_OFF;
      if (r.chance(0.1)) sk->lane_opt_tx = 7;
      if (r.chance(0.2)) { int v = static_cast<int>(1000 + r.below(60000)); tcp_setsockopt(n, sk, SOL_SOCKET, SO_SNDBUF, &v, 4); }
      tcp_set_dst(n, sk, h[i]->route());
      int err;
      if (i == 1 && mode == 2) {
        err = tcp_listen(n, sk, t.daddr, t.dport, 5);
        listener = sk;
      } else {
        a[i].sk = sk;
        if (i == 0 || mode == 1) err = 0;   // connected below, when both ends are ready
        else err = tcp_expect(n, sk, t.reversed());
      }
      if (err) fail("open");
    }
    if (tcp_connect(h[0]->n, a[0].sk, t)) fail("connect");
    if (mode == 1 && tcp_connect(h[1]->n, a[1].sk, t.reversed())) fail("connect");

    const nsec limit = now + 4000 * sec_ns;
    while (!failure) {
      ++events;
      for (app& p : a) {
        if (moves) move(p);
        const bool was = p.closed;
        run_app(p);
        if (!was && p.closed) retrans += p.h->stats.TcpRetransSegs.load();
        if (!p.closed && p.sk) check_sock(p.sk);
        if (moves && !a[0].closed && !a[1].closed && p.h->stats.TcpOutRsts.load()) fail("RST");   // later ones answer strays of a closed connection
      }
      if (failure) break;
      const bool done = a[0].closed && a[1].closed && link.empty();
      nsec next = ~nsec{0};
      if (!link.empty()) next = link.front().at;
      for (unsigned i = 0; i < 2; ++i) {
        if (a[i].frozen) next = std::min(next, a[i].moving_until);
        else if (moves && a[i].sk && !a[i].closed && a[i].more) next = std::min(next, std::max(a[i].next_move, now + 1));
        const nsec e = h[i]->n.timers.next_expiry();
        if (e < next) next = e;
        if (!a[i].closed && a[i].sk && a[i].more) next = std::min(next, now + 10 * usec_ns);
        if (!a[i].closed && a[i].sk && a[i].sent < a[i].to_send && a[i].wake > now && a[i].wake < next) next = a[i].wake;
      }
      if (next == ~nsec{0}) {
        // An orphan that gave up after its retries (RFC 1122 4.2.3.5) leaves a peer without keepalive waiting: right, not stuck.
        if (done || a[0].left || a[1].left || (loss > 0.05 && h[0]->stats.TcpExtTCPAbortOnTimeout + h[1]->stats.TcpExtTCPAbortOnTimeout > 0)) {
          for (app& p : a)
            if (!p.closed && p.sk) p.error = ETIMEDOUT, tcp_sk_free(p.h->n, p.sk), p.closed = true;
          break;
        }
        fail("stuck: nothing will ever happen");
        break;
      }
      if (next <= now) next = now + 1;
      now = next;
      if (now > limit) { fail("stuck: out of virtual time"); break; }
      h[0]->n.now = h[1]->n.now = now;
      while (!link.empty() && link.front().at <= now) {
        std::pop_heap(link.begin(), link.end(), later{});
        flight f = std::move(link.back());
        link.pop_back();
        if (a[f.to].frozen) {   // held, in order
          f.at = std::max(a[f.to].moving_until, now + 1);
          link.push_back(std::move(f));
          std::push_heap(link.begin(), link.end(), later{});
          continue;
        }
        h[f.to]->receive(f.p);
      }
      for (host* x : h) x->n.timers.run(now);
      if (listener && !a[1].sk) {
        a[1].sk = tcp_accept(h[1]->n, listener);
        if (a[1].sk) tcp_close(h[1]->n, listener), listener = nullptr;
      }
    }
    for (app& p : a) {
      if (failure) break;
      // With a timeout-free link every byte must be there; an abort by timeout is only excused on a very bad one.
      const app& q = a[1 - p.dir];
      if (a[0].left || a[1].left) break;
      if (p.error && loss < 0.05) { fail("error on a usable link"); break; }
      if (!p.error && !q.error && (p.got != q.to_send || !p.eof)) fail("bytes missing");
    }
    if (failure && verbose) std::printf("at %.6f loss %.3f timeouts %llu %llu\n", static_cast<double>(now - 1000 * sec_ns) * 1e-9, loss, (unsigned long long)h[0]->stats.TcpExtTCPAbortOnTimeout.load(), (unsigned long long)h[1]->stats.TcpExtTCPAbortOnTimeout.load());
    if (failure && verbose)
      for (const app& p : a)
        if (p.sk)
          std::printf("app %u: state %u closed %d sent %llu of %llu got %llu err %d | una %u nxt %u write %u snd_wnd %u cwnd %u packets %u sacked %u lost %u retrans %u ca %u pending %u deadline %llu"
                      " | rcv_nxt %u copied %u rcv_wnd %u ssthresh %u rcvbuf %u rmem %u ratio %u clamp %u mss %u rcv_mss %u rcvq %u ofo %u sndbuf %u wmem %u wq %u\n",
                      p.dir, p.sk->state, p.closed, (unsigned long long)p.sent, (unsigned long long)p.to_send, (unsigned long long)p.got, p.error, p.sk->snd_una, p.sk->snd_nxt, p.sk->write_seq, p.sk->snd_wnd,
                      p.sk->snd_cwnd, p.sk->packets_out, p.sk->sacked_out, p.sk->lost_out, p.sk->retrans_out, p.sk->ca_state, p.sk->icsk_pending, (unsigned long long)p.sk->retransmit_timer.deadline,
                      p.sk->rcv_nxt, p.sk->copied_seq, p.sk->rcv_wnd, p.sk->rcv_ssthresh, p.sk->rcvbuf, p.sk->rmem_alloc, p.sk->scaling_ratio, p.sk->window_clamp, p.sk->mss_cache, p.sk->ack.rcv_mss,
                      p.sk->sk_receive_queue.qlen, p.sk->out_of_order_queue.qlen, p.sk->sndbuf, p.sk->wmem_queued, p.sk->sk_write_queue.qlen);
    if (listener) tcp_sk_free(h[1]->n, listener);
    if (!failure)
      for (host* x : h) {
        if (x->n.tcp->nfree != x->n.tcp->ninit) fail("socket leaked");
        if (x->n.tcp->tw_count) fail("TIME-WAIT leaked");
        if (x->n.skbs.allocated() != 0) fail("skb leaked");
      }
    for (app& p : a) p.at_rest.release();
    for (host* x : h) delete x;
    if (!failure && frames().in_use() > 4096) fail("frames leaked");
    return failure == nullptr;
  }
};

}  // namespace
}  // namespace icepath::sim

int main(int argc, char** argv) {
  using namespace icepath::sim;
  uint64_t first = 1, seeds = 3000;
  bool verbose = false, moves = false;
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    if (a == "-v") verbose = true;
    else if (a == "--moves") moves = true;
    else if (i + 1 < argc && a == "--seed") first = std::strtoull(argv[++i], nullptr, 0), seeds = 1;
    else if (i + 1 < argc && a == "--seeds") seeds = std::strtoull(argv[++i], nullptr, 0);
    else if (i + 1 < argc && a == "--first") first = std::strtoull(argv[++i], nullptr, 0);
  }
  uint64_t failed = 0, bytes = 0, retrans = 0, moved = 0;
  for (uint64_t s = first; s < first + seeds; ++s) {
    world w(s);
    w.verbose = verbose;
    w.moves = moves;
    if (!w.run()) {
      std::printf("seed %llu: %s   (replay: tcp_sim --seed %llu -v)\n", static_cast<unsigned long long>(s), w.failure, static_cast<unsigned long long>(s));
      std::fflush(stdout);
      if (++failed >= 20) break;
    }
    bytes += w.a[0].got + w.a[1].got;
    retrans += w.retrans;
    moved += w.moved;
  }
  if (moves) std::printf("%llu moves\n", static_cast<unsigned long long>(moved));
  std::printf("%llu seeds, %llu failed, %llu bytes compared, %llu segments retransmitted\n", static_cast<unsigned long long>(seeds), static_cast<unsigned long long>(failed),
              static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(retrans));
  return failed ? 1 : 0;
}
