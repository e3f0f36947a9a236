// See takeover.hpp.
#include "sock/takeover.hpp"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "base/clock.hpp"
#include "base/config.hpp"
#include "base/libc.hpp"
#include "base/log.hpp"
#include "base/no_cancel.hpp"
#include "base/raw_syscall.hpp"
#include "ip/ip.hpp"
#include "sock/foreign.hpp"
#include "sock/kernel_repair.hpp"
#include "sock/lane_sys.hpp"
#include "sock/mux.hpp"
#include "sock/pool.hpp"
#include "sock/rows.hpp"
#include "stack/helper.hpp"
#include "stack/process.hpp"
#include "stack/wire_port.hpp"
#include "tcp/repair.hpp"
#include "tcp/tcp_sock.hpp"

namespace icepath {
namespace {

constexpr nsec rest_limit = 5 * sec_ns, landing = 2 * msec_ns;
std::atomic<uint32_t> live{0};       // connections that are ours now
// Copying more keeps the connection standing still for long, and a reader so far behind gains nothing by a faster way to it.
constexpr size_t most_unread = 8u << 20;
// Between two homes. The wire port has one stack, whose owner word guards this; its buffers are used again and again.
tcp_repair_state moving;

// A transfer of large pieces. Where the kernel is faster with those, they stay with it, and go back to it.
constexpr uint64_t bulk_per_call = 8192;
constexpr uint32_t bulk_window = 64;       // calls
constexpr const char* bulk_reason = "bulk: the kernel is faster on this interface";

// After each data call on the fast path.
void count_call(lane* l) {
  if (ICEPATH_LIKELY(++l->calls < bulk_window) || !l->bulk_stays) return;
  const uint64_t bytes = l->f_tx + l->f_rx;
  if (bytes - l->counted >= bulk_per_call * l->calls) {
    l->bulk = true;
    lane_note(l);      // not in the middle of the program's call
  }
  l->counted = bytes;
  l->calls = 0;
}

// The same question in the kernel, before it is taken over.
bool bulk_so_far(socket* s) {
  const uint64_t bytes = s->k_tx.load(std::memory_order_relaxed) + s->k_rx.load(std::memory_order_relaxed) + s->past_fast_tx + s->past_fast_rx;
  const uint32_t calls = s->ops.load(std::memory_order_relaxed);
  const bool bulk = bytes - s->bulk_mark >= bulk_per_call * (calls ? calls : 1);
  s->bulk_mark = bytes;
  s->ops.store(0, std::memory_order_relaxed);
  return bulk;
}

void drain(stack* st) {
  for (unsigned i = 0; i < 256 && stack_receive_inside(st); ++i) {}
}

// What is in flight is acknowledged, as a rule, in less time than the kernel needs to notice that it was not: after a give-back it has no measured
// round trip and waits a second for a lost segment. So nothing new is sent, and the answers are waited for, but not for long.
void land(lane* l) {
  stack* st = l->st;
  socket* s = l->s;
  tcp_sock* sk = l->sk;
  if (!sk->packets_out || (sk->state != TCP_ESTABLISHED && sk->state != TCP_CLOSE_WAIT)) return;
  sk_buff_head unsent = sk->sk_write_queue;
  sk->sk_write_queue = {};
  const nsec until = clock_now() + landing;
  bool here = true;
  while (here && sk->packets_out && st->net.now < until) {
    stack_tick(st);
    stack_receive_inside(st);
    here = l->s == s && s->ln == l && l->sk == sk && sk->state != TCP_CLOSE;
  }
  if (here) sk->sk_write_queue = unsent;
  else unsent.purge(st->net.skbs);
}

// The lane ends; the connection, if there is one, is the kernel's. Outside calls meet a plain socket from here on.
void end(lane* l, bool again) {
  socket* s = l->s;
  stack* st = l->st;
  if (l->sk) {
    l->sk->owner = nullptr;
    tcp_sk_free(st->net, l->sk);
    l->sk = nullptr;
  }
  st->sockets.fetch_sub(1, std::memory_order_relaxed);
  s->ops.store(0, std::memory_order_relaxed);
  if (again) s->retry_at = clock_now() + 20 * msec_ns;
  s->never.store(!again, std::memory_order_relaxed);
  live.fetch_sub(1, std::memory_order_relaxed);
  row_demoted(s);
  s->past_fast_tx += l->f_tx;
  s->past_fast_rx += l->f_rx;
  if (l->pending_err) s->pending_err = l->pending_err;
  // In this order: who finds no lane may promote the connection again, and set `fast`.
  s->fast.store(false, std::memory_order_release);
  __atomic_store_n(&s->ln, nullptr, __ATOMIC_RELEASE);
  lane_free(l);
  epoll_sync(s);
  sock_wake(s, wake_changed);
}

// Bytes of the stream have no home any more: the connection must not go on without them. An RST, so that neither end takes it for whole.
void abort_in_kernel(int fd) {
  const int off = -1;   // TCP_REPAIR_OFF_NO_WP
  real::setsockopt(fd, IPPROTO_TCP, 19 /* TCP_REPAIR */, &off, sizeof off);
  sockaddr none{};
  none.sa_family = AF_UNSPEC;
  raw_syscall(SYS_connect, fd, &none, sizeof none);
}

// A route to the next hop by its link-layer address.
dst_entry* route_to(stack* st, const wire_route& r) {
  net& n = st->net;
  neighbour* nb = neigh_lookup(n, r.dev, r.next_hop);
  if (!nb) nb = neigh_create(n, r.dev, r.next_hop);
  if (!nb) return nullptr;
  if (nb->nud_state != nud::permanent || std::memcmp(nb->ha, r.mac, 6) != 0) neigh_update(n, nb, nud::permanent, r.mac);
  dst_entry* d = ip_route_via(n, r.dev, nb, r.mtu);
  neigh_release(n, nb);
  return d;
}

const char* reason_of(const repair_result& r, bool* again) {
  *again = r.err == -EBUSY;
  switch (-r.err) {
    case EPERM: return "CAP_NET_ADMIN is missing";
    case EBUSY: return "busy in the kernel";
    case ENOTCONN: return "not established";
    case EOPNOTSUPP: return "TCP_ULP or microsecond timestamps";
    default: return "the kernel does not part with it";
  }
}

// Inside. The socket is `fast` already, nobody else is in a call on it.
const char* move_in(lane* l, const wire_route& r, bool* again) {
  net& n = l->st->net;
  dst_entry* d = route_to(l->st, r);
  if (!d) return "out of memory";
  tcp_sock* sk = tcp_sk_alloc(n, &lane_tcp_ops, l);
  if (!sk) { dst_release(n, d); return "out of memory"; }
  tcp_set_dst(n, sk, d);
  const auto undo = [&](const char* why) {
    sk->owner = nullptr;
    tcp_sk_free(n, sk);
    return why;
  };
  repair_result k = kernel_repair_prepare(l->fd, moving);
  if (!k.ok()) return undo(reason_of(k, again));
  // What the tcp_sock announces to the kernel is what the connection has; a short answer here is the kernel's word about a rule of somebody else.
  if (const int e = wire_flow_add(l->t); e < 0) {
    *again = e != -EAFNOSUPPORT;
    return undo(e == -EEXIST ? "the flow is steered elsewhere" : "no room for the flow");
  }
  (void)kernel_settle();   // what passed before the rule was there reaches the kernel's socket, and not its filter
  k = kernel_take_over(l->fd, moving);
  if (!k.moved) {
    wire_flow_del(l->t);
    return undo(reason_of(k, again));
  }
  const int e = k.ok() ? tcp_import(n, sk, moving) : k.err;
  if (e == 0) {
    l->sk = sk;
    l->reuse_addr = moving.reuseaddr;
    return nullptr;
  }
  repair_result b = kernel_give_back(l->fd, moving);
  wire_flow_del(l->t);
  if (b.ok()) b = kernel_give_back_finish(l->fd, moving);
  if (!b.ok()) {   // neither home would have it: say so, and end it as a lost connection ends
    log_error("a connection could not be taken over (%s), nor given back (%s: %s): it ends", k.step, b.step, strerrordesc_np(-b.err));
    abort_in_kernel(l->fd);
    l->s->pending_err = ECONNRESET;
  }
  return undo("the stack does not take it");
}

}  // namespace

const char* takeover(socket* s, int fd, const four_tuple& t, bool* again) {
  const no_cancel whole;
  wire_route r;
  if (const char* why = wire_find(t, fd, &r, again)) return why;
  *again = true;
  const bool bulk_stays = r.bulk_stays && !config_get().bulk_fast;
  if (bulk_stays && bulk_so_far(s)) return bulk_reason;
  int unread = 0;
  if (real::ioctl(fd, FIONREAD, &unread) == 0 && static_cast<size_t>(unread) > most_unread) {
    s->tries = 0;   // soon again
    return "much unread data";
  }
  if (!helper_start()) return "no helper thread";
  stack* st = r.st;
  lane* l = lane_alloc(s, st, fd);
  if (!l) return "out of memory";
  if (!stack_enter(st)) { lane_free(l); return "busy"; }
  st->net.tcp->foreign = foreign_segment;
  drain(st);
  st->lane_work_fn = lane_run_work;
  stack_tick(st);
  l->t = t;
  l->wire = true;
  l->bulk_stays = bulk_stays;
  s->st = st;
  s->ln = l;
  const char* why = "busy in a kernel call";
  const bool committed = lane_commit(l);
  if (committed) why = move_in(l, r, again);
  if (why) {
    s->fast.store(false, std::memory_order_release);
    __atomic_store_n(&s->ln, nullptr, __ATOMIC_RELEASE);
    lane_free(l);
    stack_leave(st);
    if (committed) sock_wake(s, wake_changed);
    return why;
  }
  if (st->sockets.fetch_add(1, std::memory_order_relaxed) == 0) helper_unpark();
  l->phase = lane_phase::open;
  l->tx = tx_lane::fast;
  l->rx = rx_lane::fast;
  l->rx_hdr_seen = true;
  s->reason = "promoted";
  s->tries = 0;
  mib_add(st->net.stats->SockPromoted);
  row_promoted(s);
  if (live.fetch_add(1, std::memory_order_relaxed) == 0) helper_wire_due(clock_now() + sec_ns);
  lane_publish(l);
  sock_wake(s, wake_changed);
  stack_leave(st);
  epoll_sync(s);
  return nullptr;
}

bool give_back(lane* l, const char* why, bool later) {
  socket* s = l->s;
  net& n = l->st->net;
  const no_cancel whole;
  s->reason = why;
  l->want_kernel = !later;
  drain(l->st);
  if (!l->s || s->ln != l) return true;
  land(l);
  if (!l->s || s->ln != l) return true;
  stack_tick(l->st);
  if (l->sk->state == TCP_CLOSE) {   // reset, or timed out: there is nothing left to give. The kernel's socket ends as quietly
    if (l->sk->err) l->pending_err = l->sk->err;
    sockaddr none{};
    none.sa_family = AF_UNSPEC;
    raw_syscall(SYS_connect, l->fd, &none, sizeof none);
    wire_flow_del(l->t);
    end(l, false);
    return true;
  }
  if (tcp_export(n, l->sk, moving) != 0) return false;
  moving.reuseaddr = l->reuse_addr;
  repair_result k = kernel_give_back(l->fd, moving);
  if (!k.ok()) {
    log_warn("fd %d cannot be given back (%s: %s): it stays on the fast path", l->fd, k.step, strerrordesc_np(-k.err));
    if (tcp_thaw(n, l->sk) != 0) log_error("fd %d: neither the kernel nor the fast path has it", l->fd);
    return false;
  }
  mib_add(n.stats->SockDemoted);
  wire_flow_del(l->t);
  k = kernel_give_back_finish(l->fd, moving);
  // What waits in our ring, and what was on its way there, is the kernel's: before the peer misses it.
  foreign_begin();
  drain(l->st);
  (void)kernel_settle();
  drain(l->st);
  foreign_end();
  // What the kernel's send buffer would not hold. Its peer reads or it does not; a connection that lost its tail must not look whole.
  const nsec until = clock_now() + rest_limit;
  size_t off = moving.sndq.len - (k.left < moving.sndq.len ? k.left : moving.sndq.len);
  while (k.ok() && off < moving.sndq.len && clock_now() < until) {
    const ssize_t w = lane_sys::send(l->fd, moving.sndq.data + off, moving.sndq.len - off, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (w > 0) { off += static_cast<size_t>(w); continue; }
    if (errno != EAGAIN && errno != EINTR) break;
    pollfd p{l->fd, POLLOUT, 0};
    raw_syscall(SYS_poll, &p, 1, 10);
  }
  if (!k.ok() || off < moving.sndq.len) {
    log_error("fd %d: %zu bytes could not be given to the kernel (%s): the connection ends", l->fd, moving.sndq.len - off, k.step);
    abort_in_kernel(l->fd);
    l->pending_err = ECONNRESET;
  }
  end(l, later);
  return true;
}

bool takeover_close(lane* l) {
  if (give_back(l, "closed")) return true;
  // The kernel cannot finish it: TCP here does, as long as the process lives. Closing the parked socket is silent.
  tcp_sock* sk = l->sk;
  sk->owner = nullptr;
  l->sk = nullptr;
  tcp_close(l->st->net, sk);
  end(l, false);
  return true;
}

ssize_t takeover_send(lane* l, user_msg& m, int flags) {
  if (ICEPATH_UNLIKELY(l->pending_err)) {
    const int e = l->pending_err;
    l->pending_err = 0;
    return -e;
  }
  const ssize_t r = tcp_sendmsg(l->st->net, l->sk, m, flags & (MSG_MORE | MSG_EOR));
  if (ICEPATH_LIKELY(r > 0)) {
    l->f_tx += static_cast<size_t>(r);
    row_sent(l->s, l->f_tx);
    count_call(l);
  }
  return r;
}

ssize_t takeover_recv(lane* l, user_msg* m, size_t max, int flags) {
  if (ICEPATH_UNLIKELY(l->pending_err)) {
    const int e = l->pending_err;
    l->pending_err = 0;
    return -e;
  }
  const ssize_t r = tcp_recvmsg(l->st->net, l->sk, m, max, flags & (MSG_PEEK | MSG_TRUNC));
  if (r > 0 && !(flags & MSG_PEEK)) {
    l->f_rx += static_cast<size_t>(r);
    count_call(l);
  }
  return r;
}

bool takeover_leave_bulk(lane* l) {
  if (!l->bulk) return false;
  l->bulk = false;
  return give_back(l, bulk_reason, true);
}

void takeover_readiness(lane* l, uint32_t* ready) {
  uint32_t p = tcp_poll(l->sk);
  if (!(p & EPOLLOUT)) l->sk->sock_nospace = true;   // as the kernel's poll does: write_space is owed
  if ((p & EPOLLIN) && !(p & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) && tcp_inq(l->sk) < l->s->rcvlowat) p &= ~uint32_t{EPOLLIN | EPOLLRDNORM};
  if (l->pending_err) p |= EPOLLERR;
  *ready = p;
}

namespace {

// One look at every connection. Which are asked about everything (0.15 ms each): all, when routes or rules have changed, else the first, for what
// tells nobody of its changes (the process's cgroup); when that one has to go, all. The others: is the next hop where it was, does the peer answer.
struct reviewing { bool all, first_done = false, left = false; };

// What wire_find has to be asked about, or nullptr. Inside.
const char* unwell(const lane* l) {
  // Two timeouts in a row: a smaller path MTU, a dead gateway, a filter on the way. The kernel is told of such things by ICMP, we are not.
  if (l->sk->backoff >= 2) return "no answer: the kernel tries";
  return nullptr;
}
bool moved(const lane* l) {
  uint8_t mac[6];
  const neighbour* nb = l->sk->dst ? l->sk->dst->neigh : nullptr;
  return !nb || !wire_neigh(nb->primary_key, mac) || std::memcmp(nb->ha, mac, 6) != 0;
}

void review_one(socket* s, void* ctx) {
  auto& v = *static_cast<reviewing*>(ctx);
  stack* st = s->st;
  lane* l = s->ln;
  if (!st || !l || !s->fast.load() || !stack_enter(st)) return;
  const auto ours = [&] { return s->ln == l && l->s == s && l->st == st && l->wire && l->sk; };
  if (!ours()) { stack_leave(st); return; }
  const four_tuple t = l->t;
  const int fd = l->fd;
  stack_tick(st);
  if (const char* why = unwell(l)) {
    give_back(l, why, true);
    stack_leave(st);
    return;
  }
  const bool ask = v.all || !v.first_done || moved(l);
  stack_leave(st);
  if (!ask) return;
  v.first_done = true;
  wire_route r;
  bool again;
  const char* why = wire_find(t, fd, &r, &again);
  if (!stack_enter(st)) return;
  if (ours() && l->t == t) {
    stack_tick(st);
    if (why) {
      v.left = true;
      give_back(l, why, true);
    } else if (dst_entry* d = route_to(st, r)) {
      tcp_set_dst(st->net, l->sk, d);   // by another next hop, perhaps
    }
  }
  stack_leave(st);
}

}  // namespace

nsec takeover_look(nsec now) {
  nsec next = ~nsec{0};
  const wire_changes c = wire_step(now, &next);
  if (live.load(std::memory_order_relaxed) == 0) return ~nsec{0};
  reviewing v{c.routes || c.policy};
  sockets_for_each(review_one, &v);
  if (!v.all && v.left) {
    v = {true};
    sockets_for_each(review_one, &v);
  }
  return live.load(std::memory_order_relaxed) ? next : ~nsec{0};
}

void takeover_forget() {
  wire_forget();
  live.store(0);
}

}  // namespace icepath
