// The lanes' state machine. See lane.hpp.
#include "sock/holders.hpp"
#include "sock/lane.hpp"
#include "sock/lane_sys.hpp"

#include <errno.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <new>

#include "base/alloc.hpp"
#include "base/libc.hpp"
#include "sock/proc.hpp"
#include "sock/rendezvous.hpp"
#include "sock/rows.hpp"
#include "sock/takeover.hpp"
#include "stack/helper.hpp"
#include "stack/process.hpp"
#include "tcp/tcp_sock.hpp"

namespace icepath {
namespace {

// Type-stable pool: chunks are never unmapped. Serialised by `lock`; cold path only.
constexpr uint32_t chunk = 1024, chunks = 1024;
std::atomic<lane*> pool[chunks];
std::atomic<uint32_t> lock{0};
uint32_t made = 0;
list_head free_lanes;

void take() { while (lock.exchange(1, std::memory_order_acquire)) __builtin_ia32_pause(); }
void give() { lock.store(0, std::memory_order_release); }

lane* of(tcp_sock* sk) { return static_cast<lane*>(sk->owner); }

void on_data(tcp_sock* sk) {
  lane* l = of(sk);
  if (!l) return;
  if (ICEPATH_LIKELY(l->rx == rx_lane::fast && l->phase == lane_phase::open)) {
    lane_publish(l);
    sock_wake(l->s, EPOLLIN | EPOLLRDNORM);
  } else {
    lane_note(l);
  }
}
void on_space(tcp_sock* sk) {
  lane* l = of(sk);
  if (!l) return;
  if (l->phase == lane_phase::open && l->tx == tx_lane::fast) {
    lane_publish(l);
    sock_wake(l->s, EPOLLOUT | EPOLLWRNORM);
  } else {
    lane_note(l);
  }
}
void on_state(tcp_sock* sk) { if (lane* l = of(sk)) lane_note(l); }
void on_option(tcp_sock* sk, uint8_t v) {
  lane* l = of(sk);
  if (!l) return;
  l->opt_seen |= v;
  if (v & LANE_OPT_KERNEL) l->kernel_event = true;
  lane_note(l);
}

void send_fast_header(lane* l) {
  net& n = l->st->net;
  fast_header h{fast_magic, l->s->row, l->s->k_tx.load(std::memory_order_relaxed)};
  const int one = 1, off = (l->sk->nonagle & TCP_NAGLE_OFF) != 0;
  tcp_setsockopt(n, l->sk, IPPROTO_TCP, 1 /* TCP_NODELAY */, &one, sizeof one);
  iovec v{&h, sizeof h};
  user_msg m{&v, 1, 0, sizeof h};
  if (tcp_sendmsg(n, l->sk, m, 0) != static_cast<ssize_t>(sizeof h)) { l->fatal = true; return; }
  if (!off) {  // what Nagle's algorithm holds in the kernel lane would hold up the fast stream behind it
    const int zero = 0;
    int q = 0;
    if (real::ioctl(l->fd, SIOCOUTQ, &q) == 0 && q != 0) {
      real::setsockopt(l->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      real::setsockopt(l->fd, IPPROTO_TCP, TCP_NODELAY, &zero, sizeof zero);
    }
  }
  if (!off) { const int zero = 0; tcp_setsockopt(n, l->sk, IPPROTO_TCP, 1, &zero, sizeof zero); }
  l->tx = tx_lane::fast;
  l->f_tx = 0;
}

bool kernel_lane_dead(int fd) {
  tcp_info ti{};
  socklen_t len = sizeof ti;
  return real::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &ti, &len) != 0 || ti.tcpi_state == TCP_CLOSE;
}

bool kernel_peer_closed(int fd) {
  tcp_info ti{};
  socklen_t len = sizeof ti;
  if (real::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &ti, &len) != 0) return true;
  return (tcpf(ti.tcpi_state) & (tcpf(TCP_CLOSE) | tcpf(TCP_CLOSE_WAIT) | tcpf(TCP_LAST_ACK) | tcpf(TCP_CLOSING) | tcpf(TCP_TIME_WAIT))) != 0;
}

void read_fast_header(lane* l) {
  net& n = l->st->net;
  if (l->rx_hdr_seen || tcp_inq(l->sk) < sizeof(fast_header)) return;
  fast_header h{};
  iovec v{&h, sizeof h};
  user_msg m{&v, 1, 0, sizeof h};
  const ssize_t r = tcp_recvmsg(n, l->sk, &m, sizeof h, 0);
  const uint64_t have = l->s->k_rx.load(std::memory_order_relaxed);
  if (r != static_cast<ssize_t>(sizeof h) || h.magic != fast_magic || h.n < have) {
    // Not our protocol, or a byte count that cannot be: nothing has been delivered from this lane; the connection cannot be continued safely.
    l->fatal = true;
    return;
  }
  l->rx_hdr_seen = true;
  l->peer_row = h.row;
  l->rx_n = h.n;
  l->f_rx = 0;
  l->rx_f = ~0ull;
  l->in_len = 0;
  l->rx = h.n == have ? rx_lane::fast : rx_lane::draining;
  tcp_send_ack(n, l->sk);
}

// Takes in what is on the rings until the fast stream has `want` bytes or nothing more comes.
void receive_rest(lane* l, uint64_t want) {
  for (unsigned i = 0; i < 1024 && l->f_rx + lane_unread(l) < want; ++i)
    if (!stack_receive_inside(l->st)) return;
}

}  // namespace

const tcp_ops lane_tcp_ops = {on_data, on_space, on_state, on_option};

lane* lane_alloc(socket* s, stack* st, int fd) {
  take();
  if (free_lanes.empty() && made < chunk * chunks) {   // one at a time: a page that is not needed is not touched
    lane* a = pool[made / chunk].load(std::memory_order_relaxed);
    if (!a) {
      void* m = ::mmap(nullptr, chunk * sizeof(lane), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (m != MAP_FAILED) pool[made / chunk].store(a = static_cast<lane*>(m), std::memory_order_release);
    }
    if (a) {
      auto* fresh = new (&a[made % chunk]) lane;
      fresh->no = made++;
      free_lanes.push_back(fresh->member);
    }
  }
  lane* l = nullptr;
  if (!free_lanes.empty()) {
    l = list_entry<lane, &lane::member>(free_lanes.next);
    l->member.unlink();
  }
  give();
  if (!l) return nullptr;
  const uint32_t gen = l->gen + 1, no = l->no;
  l->~lane();
  new (l) lane;
  l->gen = gen;
  l->no = no;
  l->s = s;
  l->st = st;
  l->fd = fd;
  return l;
}

void lane_free(lane* l) {
  l->work.unlink();
  lane_unmap(l);
  l->st->net.timers.cancel(l->tm);
  mem_free(l->spool);
  mem_free(l->tail);
  l->spool = l->tail = nullptr;
  ++l->gen;
  l->s = nullptr;
  take();
  free_lanes.push_front(l->member);
  give();
}

void lanes_for_each(stack* st, void (*fn)(lane*)) {
  for (uint32_t c = 0; c * chunk < made; ++c) {
    lane* a = pool[c].load(std::memory_order_acquire);
    for (uint32_t i = 0; a && i < chunk; ++i)
      if (a[i].s && a[i].st == st) fn(&a[i]);
  }
}

lane* lane_by_key(uint64_t key) {
  const uint32_t no = static_cast<uint32_t>(key);
  if (no >= chunk * chunks) return nullptr;
  lane* a = pool[no / chunk].load(std::memory_order_acquire);
  return a ? &a[no % chunk] : nullptr;
}

void lanes_forget() {
  for (uint32_t c = 0; c * chunk < made; ++c) pool[c].store(nullptr, std::memory_order_relaxed);   // the parent's; what they point to is not ours to end
  made = 0;
  new (&free_lanes) list_head;
  lock.store(0, std::memory_order_relaxed);
}

void lane_rebase(lane* l, int fd) {
  if (l->watched) helper_unwatch(l->fd);
  l->fd = fd;
  if (l->watched) l->watched = helper_watch(fd, lane_key(l));
}

bool lane_commit(lane* l) {
  socket* s = l->s;
  if (promotion_paused() || sandboxed() || !holders_alone(s)) return false;
  s->fast.store(true, std::memory_order_seq_cst);  // partner: the counters a plain call raises before it looks at `fast`
  if (s->rx_calls.load(std::memory_order_seq_cst) == 0 && s->tx_calls.load(std::memory_order_seq_cst) == 0) return true;
  s->fast.store(false, std::memory_order_seq_cst);
  s->soft_block.store(true, std::memory_order_relaxed);  // the next blocking call waits where promotion can interrupt it
  return false;
}

void lane_start_tx(lane* l) {
  if (!l->tx_late) return;
  l->tx_late = false;
  send_fast_header(l);
}

void lane_note(lane* l) {
  if (!l->work.linked()) l->st->lane_work.push_back(l->work);
}

void lane_run_work(stack* st) {
  for (unsigned guard = 0; !st->lane_work.empty() && guard < 4096; ++guard) {
    lane* l = list_entry<lane, &lane::work>(st->lane_work.next);
    l->work.unlink();
    lane_advance(l);
  }
}

void lane_advance(lane* l) {
  socket* s = l->s;
  if (!s) return;
  if (ICEPATH_UNLIKELY(l->bulk) && takeover_leave_bulk(l)) return;
  const tx_lane tx0 = l->tx;
  const rx_lane rx0 = l->rx;
  const lane_phase phase0 = l->phase;
  const uint64_t rd0 = s->rd_state.load(std::memory_order_relaxed);
  if (l->sk && !l->wire) {
    const uint8_t st = l->sk->state;
    if (l->phase == lane_phase::opening) {
      if (st == TCP_CLOSE) {
        lane_open_failed(l, l->sk->err ? "peer refused" : "handshake failed", true);
        return;
      }
      if (st == TCP_ESTABLISHED || st == TCP_CLOSE_WAIT) {
        l->phase = lane_phase::open;
        l->st->net.timers.cancel(l->tm);
        rendezvous_withdraw(l->token);  // the next promotion must not find this one
        l->token = 0;
        s->tries = 0;
        if (!l->want_kernel) s->reason = "promoted";
        mib_add(l->st->net.stats->SockPromoted);
        row_promoted(s);
        l->watched = !l->closing && helper_watch(l->fd, lane_key(l));
        if (const int pid = stack_peer_pid(l->st, l->peer)) helper_watch_peer(l->peer.process_slot, l->peer.process_cookie, pid);
        l->tx_late = true;
        if (!s->tx_blocked.load(std::memory_order_relaxed) || lane_sys::look(l->fd, POLLOUT)) lane_start_tx(l);
        if (l->closing) l->phase = lane_phase::closing;
      }
    }
    if (l->phase == lane_phase::open || l->phase == lane_phase::closing) {
      if (ICEPATH_UNLIKELY(l->tx_late) && (l->opt_seen || l->want_kernel || l->phase == lane_phase::closing || lane_moving(l))) lane_start_tx(l);
      if (!l->fatal) read_fast_header(l);
      if (ICEPATH_UNLIKELY((l->opt_seen | l->sk->lane_opt_rx) || l->hand_back || lane_moving(l))) {
        lane_handback_step(l);
        if ((l->opt_seen & LANE_OPT_CLOSED) && !l->peer_closed) {
          // Not before the kernel lane says how the stream to us ends: the program learns both at once.
          if (l->rx == rx_lane::fast && l->rx_f == ~0ull) lane_kernel_input(l);
          if (l->rx != rx_lane::fast || l->rx_f != ~0ull) lane_peer_closed(l, l->f_tx != 0 && lane_outq(l) != 0);
        }
        if ((l->opt_seen & LANE_OPT_DEMOTE) && l->tx == tx_lane::fast && l->held == lane_held::none) lane_tx_to_kernel(l);
      } else if (l->want_kernel && l->tx == tx_lane::fast && l->phase == lane_phase::open) {
        lane_demote(l, s->reason);   // asked for while it was opening
      }
      if (ICEPATH_UNLIKELY(l->tx == tx_lane::fast && (l->rx == rx_lane::kernel || l->rx_f != ~0ull)) && l->rx_hdr_seen && kernel_lane_dead(l->fd)) {
        l->tx = tx_lane::kernel;  // reset under a direction that was still fast: the kernel has the error
        l->peer_gone = true;
      }
      if (l->fatal || st == TCP_CLOSE) {
        if (l->held != lane_held::writing) l->held = lane_held::none;
        l->tx_wanted = false;
        // Reset on the ring. Normal when the peer finished after its kernel header; then that header is already in our kernel lane.
        l->kernel_event = true;
        lane_kernel_input(l);
        if (!l->s) return;
        if (l->tx == tx_lane::fast && !l->peer_gone) {
          // The peer has closed: its kernel end says so too (it closes that before it lets go of its stack), and answers what we write.
          // Otherwise our fast bytes may not have arrived, and going on could lose some: end the connection.
          l->tx = tx_lane::kernel;
          if (l->fatal || !kernel_peer_closed(l->fd)) {
            l->peer_gone = true;
            l->pending_err = ECONNRESET;
            real::shutdown(l->fd, SHUT_RDWR);
          } else if (l->f_tx != 0 && l->sk->write_seq != l->sk->snd_una && !kernel_lane_dead(l->fd)) {
            lane_sys::send(l->fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);  // sent to a closed end: the kernel's answers with RST
          }
          if (l->rx_f == ~0ull) l->rx_f = l->f_rx + lane_unread(l);
        }
      }
    }
    if (l->out_len) lane_tx_to_kernel(l);
    lane_finish_if_done(l);
    if (!l->s) return;
  }
  lane_settle(l);
  if (!l->s) return;
  lane_publish(l);
  // Only news: an edge-triggered watcher is told once.
  const uint64_t rd1 = s->rd_state.load(std::memory_order_relaxed);
  uint32_t news = static_cast<uint32_t>(rd1 & ~rd0);
  if (l->tx != tx0) news &= ~uint32_t{EPOLLOUT | EPOLLWRNORM};   // the kernel lane was as ready
  if (l->tx != tx0 || l->rx != rx0 || l->phase != phase0) sock_wake(s, news | wake_changed);
  else if (news) sock_wake(s, news);
  if (ICEPATH_UNLIKELY(l->rx == rx_lane::draining)) {
    const uint64_t behind = lane_unread(l);
    if (behind > l->behind) epoll_edge(s);
    l->behind = behind;
  }
}

// Nothing is lost by that when it left in order, or when its kernel lane has ended: what it sent then is in our kernel lane behind a header, or before the
// end, some of it perhaps not yet here. Whether there is a header is known when the bytes before it are read.
void lane_peer_died(lane* l) {
  if (l->phase != lane_phase::open && l->phase != lane_phase::closing) return;
  l->peer_died = true;
  if (l->rx == rx_lane::fast) {
    l->kernel_event = true;
    lane_kernel_input(l);
  }
  lane_advance(l);
}

void lane_kernel_input(lane* l) {
  if (l->rx != rx_lane::fast || !l->sk || l->back == lane_back::returned) return;
  if (l->rx_f != ~0ull) {
    // The end of the fast stream is known. The rest is on the ring, or it will be; unless the peer died before it could send it.
    if (l->f_rx + lane_unread(l) < l->rx_f && !region_alive(l->peer.process_slot, l->peer.process_cookie)) {
      receive_rest(l, l->rx_f);
      if (l->f_rx + lane_unread(l) < l->rx_f) {
        l->rx_f = l->f_rx + lane_unread(l);
        l->peer_gone = true;
        l->pending_err = ECONNRESET;
        mib_add(l->st->net.stats->SockLaneDead);
      }
    }
    return;
  }
  l->kernel_event = false;
  const ssize_t r = lane_sys::recv(l->fd, l->in + l->in_len, sizeof(l->in) - l->in_len, MSG_DONTWAIT);
  const int err = r < 0 ? errno : 0;
  uint64_t have = l->f_rx + lane_unread(l);
  if (r > 0) {
    l->in_len = static_cast<uint8_t>(l->in_len + r);
    if (l->in_len < sizeof(kernel_header)) return;
    kernel_header h;
    std::memcpy(&h, l->in, sizeof h);
    if (h.magic == kernel_magic) {
      if (h.f < have) {
        l->k_skip = have - h.f;
        l->rx_f = have;
      } else {
        l->rx_f = h.f;
      }
      if (h.flags & header_closed) lane_peer_closed(l, ((static_cast<uint32_t>(l->f_tx) ^ h.flags) & ~header_closed) != 0);
      return;
    }
    l->pending_err = EPROTO;
    l->rx_f = have;
    l->peer_gone = true;
    real::shutdown(l->fd, SHUT_RDWR);
  } else if (r == 0 || (err != EAGAIN && err != EINTR)) {
    // The peer ended without a header: it died, or its kernel lane was reset. What it had put on the ring still counts.
    uint64_t sent = ~0ull;
    const bool known = row_peer_sent(l, &sent);
    receive_rest(l, sent);
    have = l->f_rx + lane_unread(l);
    l->rx_f = have;
    l->peer_gone = true;
    const bool all = r == 0 && known && sent == have;
    l->pending_err = all || (r == 0 && l->reset_told) ? 0 : (err ? err : ECONNRESET);
    mib_add(l->st->net.stats->SockLaneDead);
  } else if (l->peer_died && err == EAGAIN) {
    // Its process ended without a header, and the kernel lane is open: a fork child has it. What the dead one had taken and not read is lost, so
    // the stream must not go on: it ends for both.
    receive_rest(l, ~0ull);
    l->rx_f = l->f_rx + lane_unread(l);
    l->peer_gone = true;
    l->pending_err = ECONNRESET;
    real::shutdown(l->fd, SHUT_RDWR);
    mib_add(l->st->net.stats->SockLaneDead);
  } else {
    return;
  }
  if (l->peer_gone && l->tx == tx_lane::fast) {
    l->tx = tx_lane::kernel;  // the kernel lane answers EPIPE, ECONNRESET as it should
    l->out_len = 0;
  }
}

}  // namespace icepath
