// Promotion: when, with whom, and the way onto the ring. See lane.hpp. promote_step runs in the thread that makes the data call; the rest under
// the owner word of the lane's stack. Whatever goes wrong before a fast header is written leaves the connection in the kernel, untouched.
#include <errno.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>

#include "base/alloc.hpp"
#include "base/clock.hpp"
#include "base/config.hpp"
#include "base/no_cancel.hpp"
#include "ip/ip.hpp"
#include "base/libc.hpp"
#include "neigh/neighbour.hpp"
#include "sock/holders.hpp"
#include "sock/lane.hpp"
#include "sock/lane_sys.hpp"
#include "sock/mux.hpp"
#include "sock/pool.hpp"
#include "sock/proc.hpp"
#include "sock/rendezvous.hpp"
#include "sock/rows.hpp"
#include "sock/takeover.hpp"
#include "stack/helper.hpp"
#include "stack/wire_port.hpp"
#include "stack/process.hpp"
#include "tcp/tcp_sock.hpp"

namespace icepath {
namespace {

constexpr uint32_t lazy_ops = 12;             // data calls before a connection is worth it: short ones never pay
constexpr uint64_t lazy_bytes = 48 * 1024;
constexpr nsec open_timeout = 200 * msec_ns, attach_timeout = 500 * msec_ns, first_pause = 20 * msec_ns;
constexpr uint8_t max_doublings = 8;
constexpr unsigned map_size = 4096;

// Published lanes of this process by tuple, so that a SYN finds its connection. Guarded by map_lock (taken inside an owner word).
list_head* map = nullptr;
std::atomic<uint32_t> map_lock{0};
struct map_guard {
  map_guard() { while (map_lock.exchange(1, std::memory_order_acquire)) __builtin_ia32_pause(); }
  ~map_guard() { map_lock.store(0, std::memory_order_release); }
};

void refuse(socket* s, const char* why) {
  s->reason = why;
  s->never.store(true, std::memory_order_relaxed);
}

bool int_option(int fd, int level, int name, int* v) {
  socklen_t len = sizeof *v;
  *v = 0;
  return real::getsockopt(fd, level, name, v, &len) == 0;
}

// What the fast lane cannot honour yet keeps a connection in the kernel, with that reason.
const char* unsupported_option(int fd) {
  static constexpr struct { int level, name; const char* why; } list[] = {
      {SOL_SOCKET, 60 /* SO_ZEROCOPY */, "SO_ZEROCOPY"},    {SOL_SOCKET, SO_MARK, "SO_MARK"},
      {SOL_SOCKET, SO_TIMESTAMP, "SO_TIMESTAMP"},           {SOL_SOCKET, SO_TIMESTAMPNS, "SO_TIMESTAMPNS"},
      {SOL_SOCKET, SO_TIMESTAMPING, "SO_TIMESTAMPING"},     {IPPROTO_TCP, TCP_REPAIR, "TCP_REPAIR"},
  };
  for (const auto& o : list) {
    int v;
    if (int_option(fd, o.level, o.name, &v) && v != 0) return o.why;
  }
  char ulp[16] = {};
  socklen_t len = sizeof ulp;
  if (real::getsockopt(fd, IPPROTO_TCP, TCP_ULP, ulp, &len) == 0 && len > 0 && ulp[0]) return "TCP_ULP";
  char name[16] = {};
  len = sizeof name;
  if (real::getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &len) == 0 && len > 0 && name[0]) return "SO_BINDTODEVICE";
  return nullptr;
}

// Corked bytes in the kernel lane would have to be let go for the switch: it waits until the program lets them go.
bool held_by_cork(int fd) {
  int cork = 0, unsent = 0;
  return int_option(fd, IPPROTO_TCP, TCP_CORK, &cork) && cork && real::ioctl(fd, SIOCOUTQNSD, &unsent) == 0 && unsent > 0;
}

void mirror_options(lane* l) {
  net& n = l->st->net;
  for (const int name : {TCP_NODELAY, TCP_CORK}) {
    int v;
    if (int_option(l->fd, IPPROTO_TCP, name, &v)) tcp_setsockopt(n, l->sk, IPPROTO_TCP, name, &v, sizeof v);
  }
  if (l->s->buf_locked & 1) {
    int v;
    if (int_option(l->fd, SOL_SOCKET, SO_RCVBUF, &v)) { v /= 2; tcp_setsockopt(n, l->sk, SOL_SOCKET, SO_RCVBUF, &v, sizeof v); }
  }
  if (l->s->buf_locked & 2) {
    int v;
    if (int_option(l->fd, SOL_SOCKET, SO_SNDBUF, &v)) { v /= 2; tcp_setsockopt(n, l->sk, SOL_SOCKET, SO_SNDBUF, &v, sizeof v); }
  }
}

void open_timer(timer* t, nsec) {
  lane* l = lane_of_timer(t);
  if (l->phase != lane_phase::opening) return;
  // A peer that has our SYN-ACK may have sent data already: TCP itself says when this has come to nothing.
  // An end that is open has completed our handshake at once; one that gave up has withdrawn, and has no route by which to refuse our SYN-ACK.
  stack_id peer;
  if (lane_may_give_up(l) || !rendezvous_find(l->t, &peer)) lane_open_failed(l, "handshake timed out", true);
  else l->st->net.timers.arm(l->tm, l->st->net.now + open_timeout);
}

// A socket on the ring towards the peer's stack, with everything but the SYN.
tcp_sock* make_sock(lane* l, uint16_t txq, const uint8_t mac[6]) {
  net& n = l->st->net;
  const inet_addr gw = link_local_of(mac);
  neighbour* nb = neigh_lookup(n, n.dev, gw);
  if (!nb) nb = neigh_create(n, n.dev, gw);
  if (!nb) return nullptr;
  nb->txq = txq;
  if (nb->nud_state != nud::permanent) neigh_update(n, nb, nud::permanent, mac);
  dst_entry* d = ip_route_via(n, n.dev, nb, n.dev->mtu);
  neigh_release(n, nb);
  if (!d) return nullptr;
  tcp_sock* sk = tcp_sk_alloc(n, &lane_tcp_ops, l);
  if (!sk) { dst_release(n, d); return nullptr; }
  tcp_set_dst(n, sk, d);
  // The ring neither loses nor reorders and pushes back when it is full: start wide open, never give up on a slow reader.
  sk->params.init_cwnd = 1024;
  sk->params.rto_init = 2 * msec_ns;
  sk->params.timewait_len = 0;
  sk->params.retries2 = 255;
  sk->params.early_retrans = false;      // a peer that lost the processor is no loss
  sk->params.syn_retries = 100;
  sk->params.syn_linear_timeouts = 100;  // the other end is in a kernel call at this moment: soon again, for open_timeout
  sk->params.synack_retries = 255;  // the peer may be open already: its answer or its end comes, be it by the kernel lane
  sk->params.rcvbuf = 2u << 20;
  sk->params.sndbuf = 1u << 20;
  return sk;
}

void begin_opening(lane* l, tcp_sock* sk) {
  l->sk = sk;
  l->phase = lane_phase::opening;
  l->since = l->st->net.now;
  mirror_options(l);
  l->tm.fn = open_timer;
  l->st->net.timers.arm(l->tm, l->st->net.now + open_timeout);
  lane_publish(l);
}

// Attached, and it is ours to open.
void try_open(lane* l) {
  net& n = l->st->net;
  uint16_t txq;
  uint8_t mac[6];
  switch (stack_attach_peer(l->st, l->peer, &txq, mac)) {
    case stack_attach::pending:
      if (n.now - l->since > attach_timeout) lane_open_failed(l, "peer does not answer", true);
      return;
    case stack_attach::failed: lane_open_failed(l, "no ring to the peer", true); return;
    case stack_attach::ready: break;
  }
  if (held_by_cork(l->fd) || !lane_commit(l)) { l->s->reason = "busy in a kernel call"; return; }
  tcp_sock* sk = make_sock(l, txq, mac);
  if (!sk) { lane_open_failed(l, "out of memory"); return; }
  begin_opening(l, sk);
  if (tcp_connect(n, sk, l->t) != 0) lane_open_failed(l, "cannot open on the ring");
}

// Eligible and worth it: publish, and see whether the other end has.
void publish(socket* s, int fd) {
  const no_cancel whole;
  if (!process_start()) { refuse(s, process_why()); return; }   // a fork child's first
  if (s->state != sock_state::connected) return;
  const char* why = nullptr;
  if (!epoll_item_allows_promotion(s, &why)) { s->reason = why ? why : "epoll set"; s->ops.store(0, std::memory_order_relaxed); return; }
  if ((why = unsupported_option(fd))) { refuse(s, why); return; }
  sockaddr_storage a{};
  four_tuple t{};
  socklen_t len = sizeof a;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&a), &len) != 0 || !sock_address(a, &t.saddr, &t.sport)) { refuse(s, "not TCP/IP"); return; }
  len = sizeof a;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&a), &len) != 0 || !sock_address(a, &t.daddr, &t.dport)) { refuse(s, "not connected"); return; }
  if (!t.saddr.is_v4() || !t.daddr.is_v4()) { refuse(s, "IPv6"); return; }
  if (t == t.reversed()) { refuse(s, "connected to itself"); return; }
  if (wire_configured()) {
    bool again = false;
    why = takeover(s, fd, t, &again);
    if (!why) return;
    if (why != wire_local_reason || !config_get().port_local) {
      s->reason = why;
      if (why == wire_opening_reason) s->retry_at = clock_now() + first_pause;
      else if (again) s->retry_at = clock_now() + (first_pause << (s->tries < max_doublings ? s->tries++ : max_doublings));
      else s->never.store(true, std::memory_order_relaxed);
      return;
    }
  }
  tcp_info ti{};
  len = sizeof ti;
  if (real::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &ti, &len) != 0 || ti.tcpi_state != TCP_ESTABLISHED) { s->reason = "not established"; return; }
  if (!rendezvous_start() || !helper_start()) { refuse(s, "cannot set up the fast path"); return; }
  if (promotion_off()) { s->reason = off_reason; return; }  // once more, now that the helper answers: see control_mailbox
  stack* st = stack_of_thread();
  if (!st) { refuse(s, "no stack left"); return; }
  lane* l = lane_alloc(s, st, fd);
  if (!l) { refuse(s, "out of memory"); return; }
  if (!stack_enter(st)) { lane_free(l); return; }
  st->lane_work_fn = lane_run_work;
  l->t = t;
  stack_tick(st);
  l->since = st->net.now;
  {
    map_guard g;
    if (!map) {
      auto* m = static_cast<list_head*>(mem_alloc(map_size * sizeof(list_head)));
      if (m) {
        for (unsigned i = 0; i < map_size; ++i) new (&m[i]) list_head;
        map = m;
        st->net.tcp->unmatched_syn = promote_syn;
      }
    }
    if (map) map[hash_of(t) % map_size].push_back(l->member);
  }
  st->net.tcp->unmatched_syn = promote_syn;
  s->st = st;
  s->ln = l;
  if (st->sockets.fetch_add(1, std::memory_order_relaxed) == 0) helper_unpark();  // this thread may stop attending
  l->phase = lane_phase::published;
  s->reason = "waiting for the other end";
  l->token = rendezvous_publish(t, stack_self(st));
  if (l->token == 0) {
    lane_open_failed(l, "rendezvous full");
  } else if (rendezvous_find(t, &l->peer)) {
    l->phase = lane_phase::attaching;
    try_open(l);
  }
  stack_leave(st);
  epoll_sync(s);
}

}  // namespace

void promote_step(socket* s, int fd) {
  if (s->ln) { promote_poll(s); return; }
  if (s->state != sock_state::connected) return;
  const config& c = config_get();
  if (promotion_off()) { s->reason = off_reason; return; }
  if (c.promote == promote_rule::never) { refuse(s, "promotion is off"); return; }
  const uint32_t n = s->ops.load(std::memory_order_relaxed) + 1;
  s->ops.store(n, std::memory_order_relaxed);
  if (c.promote == promote_rule::lazy && n < lazy_ops &&
      s->k_tx.load(std::memory_order_relaxed) + s->k_rx.load(std::memory_order_relaxed) < lazy_bytes)
    return;
  if (s->retry_at && clock_now() < s->retry_at) return;
  // One of several threads: two would each make a lane, on their own stacks.
  if (s->publishing.exchange(true, std::memory_order_acquire)) return;
  if (!s->ln && !s->never.load(std::memory_order_relaxed) && holders_alone(s)) publish(s, fd);
  s->publishing.store(false, std::memory_order_release);
}

bool promote_poll(socket* s) {
  stack* st = s->st;
  if (!st || !stack_try_enter(st)) return s->fast.load(std::memory_order_acquire);
  stack_poll_inside(st);
  lane* l = s->ln;
  if (l && l->s == s && l->st == st && l->phase == lane_phase::attaching) try_open(l);
  stack_leave(st);
  return s->fast.load(std::memory_order_acquire);
}

void lane_open_failed(lane* l, const char* why, bool again) {
  socket* s = l->s;
  if (l->want_kernel) why = s->reason;
  if (l->want_kernel || l->fin_wanted) again = false;
  stack* st = l->st;
  mib_add(st->net.stats->SockPromoteFailed);
  rendezvous_withdraw(l->token);
  if (l->sk) {
    l->sk->owner = nullptr;
    tcp_sk_free(st->net, l->sk);
    l->sk = nullptr;
  }
  if (l->fin_wanted) real::shutdown(l->fd, SHUT_WR);
  const int orphan = l->closing ? l->fd : -1;
  s->reason = why;
  if (again) s->retry_at = clock_now() + (first_pause << (s->tries < max_doublings ? s->tries++ : max_doublings));
  else s->never.store(true, std::memory_order_relaxed);
  st->sockets.fetch_sub(1, std::memory_order_relaxed);
  // In this order: who finds no lane may publish the connection again, and set `fast`.
  s->fast.store(false, std::memory_order_release);
  __atomic_store_n(&s->ln, nullptr, __ATOMIC_RELEASE);
  lane_unmap(l);
  lane_free(l);
  if (orphan >= 0) {   // the program has closed it meanwhile
    lane_sys::close(orphan);
    process_fd_del_internal(orphan);
    socket_release(s);
    return;
  }
  epoll_sync(s);
  sock_wake(s, wake_changed);
}

void lane_unpublish(socket* s, const char* why) {
  stack* st = s->st;
  if (!st || s->fast.load(std::memory_order_acquire) || !stack_enter(st)) return;
  lane* l = s->ln;
  if (l && l->s == s && l->st == st && (l->phase == lane_phase::published || l->phase == lane_phase::attaching)) lane_open_failed(l, why);
  stack_leave(st);
}

void lane_unmap(lane* l) {
  map_guard g;
  l->member.unlink();
}

void promote_forget() {
  map = nullptr;
  map_lock.store(0);
}

tcp_sock* promote_syn(net& n, const four_tuple& t) {
  auto* st = static_cast<stack*>(n.stack);
  lane* l = nullptr;
  {
    map_guard g;
    if (!map) return nullptr;
    list_head& h = map[hash_of(t) % map_size];
    for (list_node* p = h.next; p != &h; p = p->next) {
      lane* c = list_entry<lane, &lane::member>(p);
      if (c->t == t && c->st == st) { l = c; break; }
    }
  }
  if (!l || (l->phase != lane_phase::published && l->phase != lane_phase::attaching)) return nullptr;
  stack_id peer;
  if (!rendezvous_find(t, &peer)) return nullptr;  // whoever sends this has not published it
  l->peer = peer;
  uint16_t txq;
  uint8_t mac[6];
  if (stack_attach_peer(st, peer, &txq, mac) != stack_attach::ready) return nullptr;  // the SYN is sent again
  if (held_by_cork(l->fd) || !lane_commit(l)) return nullptr;
  tcp_sock* sk = make_sock(l, txq, mac);
  if (!sk) { lane_open_failed(l, "out of memory"); return nullptr; }
  begin_opening(l, sk);
  if (tcp_expect(n, sk, t) != 0) { lane_open_failed(l, "cannot open on the ring"); return nullptr; }
  epoll_sync(l->s);
  return sk;
}

}  // namespace icepath
