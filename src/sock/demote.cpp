// Leaving the fast lane (DESIGN section 8): demotion, close, exit. Under the owner word of lane::st unless said. See lane.hpp.
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/uio.h>

#include "base/alloc.hpp"
#include "base/clock.hpp"
#include "base/libc.hpp"
#include "sock/lane.hpp"
#include "sock/lane_sys.hpp"
#include "sock/pool.hpp"
#include "sock/rendezvous.hpp"
#include "sock/rows.hpp"
#include "sock/takeover.hpp"
#include "stack/helper.hpp"
#include "stack/process.hpp"
#include "tcp/tcp_sock.hpp"

namespace icepath {
namespace {

constexpr nsec closing_look = 20 * msec_ns;

void closing_timer(timer* t, nsec) { lane_note(lane_of_timer(t)); }

// The fast connection is over: back to plain kernel calls.
void drop_fast(lane* l) {
  if (l->sk) {
    l->sk->owner = nullptr;
    tcp_sk_free(l->st->net, l->sk);
    l->sk = nullptr;
  }
  if (l->watched) helper_unwatch(l->fd);
  l->watched = false;
  l->phase = lane_phase::idle;
  l->rx_hdr_seen = false;
}

}  // namespace

// A peer that has not met our fast header reads the kernel lane without limit and would take a kernel header for data.
bool lane_header_acked(const lane* l) { return l->sk && tcp_outq(l->sk) <= l->f_tx; }

uint32_t lane_header_flags(const lane* l) {
  return l->we_closed ? header_closed | (static_cast<uint32_t>(l->f_rx + lane_unread(l)) & ~header_closed) : 0;
}

// As the kernel: what is written to an end that has closed is answered with RST, by the kernel lane, so it goes there from now on; without a header,
// nobody would read that. Bytes that were under way when it closed have earned their RST already.
void lane_peer_closed(lane* l, bool lost) {
  if (l->peer_closed) return;
  l->peer_closed = true;
  if (l->tx != tx_lane::fast) return;
  l->tx = tx_lane::kernel;
  l->held = lane_held::none;
  l->tx_wanted = false;
  if (lost) lane_sys::send(l->fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
  lane_note(l);
}

// The kernel header is written. The peer's helper thread will see it; a word on the ring makes that at once.
void lane_tell_kernel(lane* l) {
  if (!l->sk || l->peer_gone || l->phase != lane_phase::open || (tcpf(l->sk->state) & (tcpf(TCP_ESTABLISHED) | tcpf(TCP_CLOSE_WAIT))) == 0) return;
  l->sk->lane_opt_tx |= LANE_OPT_KERNEL;
  tcp_send_ack(l->st->net, l->sk);
}

bool lane_tx_to_kernel(lane* l) {
  lane_start_tx(l);   // the peer waits for one header before the other
  if (l->out_len == 0) {
    if (l->tx != tx_lane::fast) { l->tx_wanted = false; return true; }
    if (!l->peer_gone && l->sk && l->sk->state != TCP_CLOSE && !lane_header_acked(l)) {
      l->tx_wanted = true;
      lane_note(l);
      return false;
    }
    l->tx_wanted = false;
    const kernel_header h{kernel_magic, lane_header_flags(l), l->f_tx};
    std::memcpy(l->out, &h, sizeof h);
    l->out_len = sizeof h;
    l->out_off = 0;
    l->tx = tx_lane::kernel;
    mib_add(l->st->net.stats->SockDemoted);
    lane_note(l);
  }
  while (l->out_off < l->out_len) {
    const ssize_t r = lane_sys::send(l->fd, l->out + l->out_off, l->out_len - l->out_off, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (r < 0) {
      if (errno == EAGAIN || errno == EINTR) return false;
      if (errno != EPIPE && !l->pending_err) l->pending_err = errno;  // the kernel lane is dead, and has said why only to us
      break;
    }
    l->out_off = static_cast<uint8_t>(l->out_off + r);
  }
  l->out_len = 0;
  lane_tell_kernel(l);
  return true;
}

void lane_demote(lane* l, const char* why) {
  if (l->wire) { give_back(l, why); return; }
  l->s->reason = why;
  l->want_kernel = true;
  if (lane_may_give_up(l)) {
    lane_open_failed(l, why);
    return;
  }
  if (l->phase != lane_phase::open) return;
  lane_tx_to_kernel(l);
  if (l->sk && !(l->rx == rx_lane::kernel && l->rx_hdr_seen)) {
    l->sk->lane_opt_tx |= LANE_OPT_DEMOTE;
    tcp_send_ack(l->st->net, l->sk);
  }
  lane_note(l);
}

// T08, RFS: a connection belongs on the stack of the thread that uses it. When one other thread has made all of the last `rfs_calls` calls, the
// connection goes back to the kernel and is promoted again, by that thread, on its own stack. Threads that share a connection leave it where it is.
void lane_steer(lane* l) {
  if (l->wire) return;   // its packets come to one stack
  constexpr uint32_t rfs_calls = 512;
  const uint32_t me = stack_thread_id();
  if (l->rfs_thread != me) {
    l->rfs_thread = me;
    l->rfs_hits = 0;
  }
  if (++l->rfs_hits < rfs_calls || l->phase != lane_phase::open || l->want_kernel || l->tx != tx_lane::fast || l->rx != rx_lane::fast) return;
  l->rfs_hits = 0;
  lane_demote(l, "moving to the thread that uses it");
  l->want_kernel = false;
}

void lane_finish_if_done(lane* l) {
  if (!l->sk) return;
  if (l->phase == lane_phase::closing && l->tx == tx_lane::fast && l->held == lane_held::none && !l->s->shared.load(std::memory_order_relaxed)) {
    if (l->peer_gone || l->sk->state == TCP_CLOSE || tcp_outq(l->sk) == 0) lane_tx_to_kernel(l);
    else l->sk->sock_nospace = true;   // write_space brings us back
  }
  const bool tx_done = l->tx == tx_lane::kernel && !l->tx_late && l->out_len == 0 && !lane_moving(l) && (l->moved || l->peer_gone || l->peer_closed || tcp_outq(l->sk) == 0 || l->sk->state == TCP_CLOSE);
  if (l->phase == lane_phase::closing) {
    // A connection that a fork child may hold goes home in both directions.
    const bool rx_home = l->peer_gone || (l->rx_hdr_seen && l->rx == rx_lane::kernel && l->f_rx == l->rx_f && !l->k_skip);
    if (!tx_done || (l->s->shared.load(std::memory_order_relaxed) && !rx_home)) { l->st->net.timers.arm(l->tm, l->st->net.now + closing_look); return; }
    socket* s = l->s;
    stack* st = l->st;
    const int fd = l->fd;
    drop_fast(l);
    if (s->shared.load(std::memory_order_relaxed)) sock_give_prefix(s);
    lane_sys::close(fd);
    process_fd_del_internal(fd);
    st->sockets.fetch_sub(1, std::memory_order_relaxed);
    s->ln = nullptr;
    lane_free(l);
    socket_release(s);
    return;
  }
  if (l->phase != lane_phase::open || !tx_done || !l->rx_hdr_seen || l->rx != rx_lane::kernel || l->f_rx != l->rx_f || l->k_skip) return;
  if (!l->peer_gone) tcp_send_ack(l->st->net, l->sk);
  if (l->pending_err) { l->s->pending_err = l->pending_err; }
  const bool again = !l->want_kernel && !l->peer_gone;
  drop_fast(l);
  rendezvous_withdraw(l->token);
  l->token = 0;
  l->tx = tx_lane::kernel;
  l->rx = rx_lane::kernel;
  l->st->sockets.fetch_sub(1, std::memory_order_relaxed);
  socket* s = l->s;
  if (l->peer_gone) s->reason = "peer gone";
  else if (again) s->reason = "demoted by the peer";
  s->ops.store(0, std::memory_order_relaxed);
  s->never.store(!again, std::memory_order_relaxed);
  row_demoted(s);
  s->past_fast_tx += l->f_tx;
  s->past_fast_rx += l->f_rx;
  // In this order: who finds no lane may publish the connection again, and set `fast`.
  s->fast.store(false, std::memory_order_release);
  __atomic_store_n(&s->ln, nullptr, __ATOMIC_RELEASE);
  lane_free(l);
  epoll_sync(s);
  sock_wake(s, wake_changed);
}

bool lane_close(lane* l, bool last_chance) {
  if (l->wire) return takeover_close(l);
  net& n = l->st->net;
  rendezvous_withdraw(l->token);
  l->token = 0;
  bool finished = true;
  if (l->sk && l->rx_hdr_seen) {   // a header, or bytes that came twice: unread, they would make the kernel's close a reset
    if (l->rx == rx_lane::fast) {
      l->kernel_event = true;
      lane_kernel_input(l);
    }
    lane_settle(l);
  }
  const bool shared = l->s->shared.load(std::memory_order_relaxed);
  const bool live = l->sk && !l->peer_gone && (l->phase == lane_phase::open || l->phase == lane_phase::closing);
  if (live && !shared) {
    l->we_closed = true;
    l->sk->lane_opt_tx |= LANE_OPT_CLOSED;
  }
  if (!last_chance && shared && l->sk && !lane_may_give_up(l) && l->phase != lane_phase::closing && !l->peer_gone) {
    finished = false;            // a fork child may go on with it: home it goes, in both directions
  } else if (!last_chance && l->sk && lane_moving(l)) {
    finished = false;
  } else if (l->sk && l->phase == lane_phase::open && !shared && lane_unread(l) && l->rx == rx_lane::fast) {
    // The kernel resets a connection that is closed with unread data (RFC 2525 section 2.17); our unread data is here.
    const linger lg{1, 0};
    real::setsockopt(l->fd, SOL_SOCKET, SO_LINGER, &lg, sizeof lg);
    l->tx = tx_lane::kernel;
    lane_tell_kernel(l);
  } else if (live) {
    if (!last_chance) lane_start_tx(l);
    // What is not acknowledged goes by the kernel: the receiver drops what it has twice. Much of it only when there is no other way.
    if (l->tx == tx_lane::fast && (last_chance || lane_outq(l) <= lane_move_most)) lane_move(l);
    for (bool flushed = lane_flush_tail(l); last_chance && !flushed; flushed = lane_flush_tail(l)) {
      pollfd p{l->fd, POLLOUT, 0};
      raw_syscall(SYS_poll, &p, 1, 1000);
    }
    finished = l->tx == tx_lane::kernel && !l->tail && l->out_len == 0 && (l->moved || l->peer_closed || lane_outq(l) == 0);
    lane_tell_kernel(l);   // also that we have closed: a kernel header of earlier did not say so
  }
  if (!finished && !last_chance) {
    const int d = real::fcntl(l->fd, F_DUPFD_CLOEXEC, 3);
    if (d >= 0) {
      const int hi = process_move_high(d);
      process_fd_add_internal(hi);
      if (l->watched) helper_unwatch(l->fd);
      l->watched = false;
      l->fd = hi;
      if (shared) {
        if (l->phase == lane_phase::open) lane_handback(l, "closed by the parent");
        else l->hand_back = true;
      }
      if (l->phase == lane_phase::open) l->phase = lane_phase::closing;
      else l->closing = true;
      if (l->phase == lane_phase::closing) {
        l->tm.fn = closing_timer;
        n.timers.arm(l->tm, n.now + msec_ns);
      }
      lane_note(l);
      return false;
    }
  }
  drop_fast(l);
  l->st->sockets.fetch_sub(1, std::memory_order_relaxed);
  lane_free(l);
  return true;
}

// shutdown(SHUT_WR). True: the caller shuts the kernel lane now. False: that is done when our bytes are in it.
bool lane_shut_write(lane* l) {
  if (l->phase == lane_phase::open) {
    if (lane_outq(l) <= lane_move_most) lane_move(l);
    if (lane_flush_tail(l) && l->tx == tx_lane::kernel && l->out_len == 0 && l->held == lane_held::none) return true;
  } else if (!l->sk) {
    return true;
  }
  l->fin_wanted = true;
  lane_note(l);
  return false;
}

// At exit: orphans that still had something to deliver hand it to the kernel now.
void lanes_exit(stack* st, bool go_on) {
  struct local {
    static void end(lane* l) { if (l->phase == lane_phase::closing) lane_close(l, true); }
    static void end_and_close(lane* l) {
      if (l->phase != lane_phase::closing) return;
      socket* const s = l->s;
      const int fd = l->fd;
      lane_close(l, true);
      lane_sys::close(fd);
      process_fd_del_internal(fd);
      s->ln = nullptr;
      socket_release(s);
    }
  };
  if (!stack_enter(st)) return;
  stack_tick(st);
  lanes_for_each(st, go_on ? local::end_and_close : local::end);
  stack_leave(st);
}

}  // namespace icepath
