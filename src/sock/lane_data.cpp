// Bytes over the lanes: send, receive and readiness of a promoted socket. Under the owner word of lane::st; never blocks. See lane.hpp.
#include <errno.h>
#include <limits.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include <cstdlib>

#include "base/libc.hpp"
#include "sock/lane.hpp"
#include "sock/lane_sys.hpp"
#include "sock/rows.hpp"
#include "sock/takeover.hpp"
#include "tcp/tcp_sock.hpp"

namespace icepath {
namespace {

// The part of m that is left, as an iovec array for the kernel, at most `max` bytes.
struct kernel_view {
  iovec v[IOV_MAX];
  msghdr h{};
  kernel_view(const user_msg& m, size_t max) {
    size_t n = 0, off = m.iov_off;
    for (size_t i = 0; i < m.iovcnt && n < IOV_MAX && max; ++i, off = 0) {
      const size_t len = m.iov[i].iov_len - off;
      if (len == 0) continue;
      v[n].iov_base = static_cast<char*>(m.iov[i].iov_base) + off;
      v[n].iov_len = len < max ? len : max;
      max -= v[n].iov_len;
      ++n;
    }
    h.msg_iov = v;
    h.msg_iovlen = n;
  }
};

void advance(user_msg& m, size_t n) {
  m.count -= n;
  while (n) {
    const size_t here = m.iov[0].iov_len - m.iov_off;
    if (n < here) { m.iov_off += n; return; }
    n -= here;
    ++m.iov;
    --m.iovcnt;
    m.iov_off = 0;
  }
}

bool skip_surplus(lane* l) {
  while (l->k_skip) {
    char scratch[4096];
    const size_t want = l->k_skip < sizeof scratch ? l->k_skip : sizeof scratch;
    const ssize_t r = lane_sys::recv(l->fd, scratch, want, MSG_DONTWAIT);
    if (r <= 0) {
      if (r < 0 && (errno == EAGAIN || errno == EINTR)) return false;
      l->k_skip = 0;  // the connection ended: the kernel tells the caller
      return true;
    }
    l->k_skip -= static_cast<size_t>(r);
    l->s->k_rx.fetch_add(static_cast<uint64_t>(r), std::memory_order_relaxed);
  }
  return true;
}

// SO_RCVLOWAT counts what is unread in both lanes. Where the kernel lane is the one that is asked whether enough is there, it gets the rest to wait
// for; where it brings only a header, it must tell of that.
void set_kernel_lowat(lane* l) {
  const uint32_t want = l->s->rcvlowat;
  if (ICEPATH_LIKELY(want <= 1 && l->k_lowat == 0)) return;
  uint32_t v = want;
  if (l->rx != rx_lane::kernel) {
    const uint64_t have = lane_unread(l);
    v = (l->rx == rx_lane::fast && l->rx_f == ~0ull) || have >= want ? 1 : want - static_cast<uint32_t>(have);
  }
  if (v == (l->k_lowat ? l->k_lowat : want)) return;
  const int i = static_cast<int>(v);
  if (real::setsockopt(l->fd, SOL_SOCKET, SO_RCVLOWAT, &i, sizeof i) == 0) l->k_lowat = v == want ? 0 : v;
}

// MSG_PEEK goes on in the next lane when this one's part is seen whole. Bytes, 0 when there are none.
size_t peek_kernel(lane* l, user_msg* m, size_t max, int flags) {
  if (!skip_surplus(l) || lane_at_mark(l)) return 0;
  ssize_t r;
  if (m) {
    kernel_view k(*m, max);
    r = lane_sys::recvmsg(l->fd, &k.h, (flags & ~MSG_WAITALL) | MSG_DONTWAIT);
  } else {
    r = lane_sys::recv(l->fd, nullptr, max, (flags & ~MSG_WAITALL) | MSG_DONTWAIT);
  }
  if (r < 0 && errno != EAGAIN && errno != EINTR && errno != EFAULT && !l->pending_err) l->pending_err = errno;   // it is told only once
  return r > 0 ? static_cast<size_t>(r) : 0;
}

// After SHUT_RD what had come is read, what comes later is taken off the ring and forgotten.
void drop_unwanted(lane* l) {
  if (l->rx != rx_lane::fast || l->f_rx != l->rd_end || !l->sk) return;
  const uint64_t left = l->rx_f - l->f_rx;
  const ssize_t r = left ? tcp_recvmsg(l->st->net, l->sk, nullptr, left, MSG_TRUNC) : 0;
  if (r > 0) { l->f_rx += static_cast<size_t>(r); l->rd_end = l->f_rx; }
}

// Receive direction: move to the next lane when this one has given what it had to give.
void settle(lane* l) {
  const rx_lane was = l->rx;
  if (l->rx == rx_lane::draining && l->s->k_rx.load(std::memory_order_relaxed) == l->rx_n) {
    l->rx = rx_lane::fast;
    l->kernel_event = true;  // a header may be waiting already; the edge has gone by
  }
  if (l->rx == rx_lane::fast && l->kernel_event && l->rx_f == ~0ull) lane_kernel_input(l);
  if (ICEPATH_UNLIKELY(l->rd_shut)) drop_unwanted(l);
  if (l->rx == rx_lane::fast && l->rx_f == l->f_rx) {
    l->rx = rx_lane::kernel;
    skip_surplus(l);
    set_kernel_lowat(l);
    if (l->rd_shut) real::shutdown(l->fd, SHUT_RD);
  }
  if (l->rx != was) lane_note(l);  // whoever settles publishes
}

}  // namespace

uint64_t lane_unread(const lane* l) {
  if (!l->sk) return 0;
  const uint64_t q = tcp_inq(l->sk);
  return l->rx_hdr_seen ? q : 0;
}

bool lane_at_mark(const lane* l) {
  int at = 0;
  return l->rx != rx_lane::fast && real::ioctl(l->fd, SIOCATMARK, &at) == 0 && at;
}

size_t lane_outq(const lane* l) { return l->sk ? tcp_outq(l->sk) : 0; }

ssize_t lane_send(lane* l, user_msg& m, int flags) {
  socket* s = l->s;
  if (ICEPATH_UNLIKELY(l->wire)) return takeover_send(l, m, flags);
  if (ICEPATH_UNLIKELY(l->fin_wanted)) return -EPIPE;
  if (ICEPATH_UNLIKELY(l->held != lane_held::none || l->tail)) {   // our bytes wait (handback.cpp)
    if (l->held != lane_held::writing && l->held != lane_held::none) return -EAGAIN;
    if (!lane_flush_tail(l)) return -EAGAIN;
  }
  if (ICEPATH_UNLIKELY(flags & MSG_OOB)) {  // not among the bytes that the fast header counts
    if (l->phase == lane_phase::opening || (l->tx == tx_lane::fast && !lane_tx_to_kernel(l))) return -EAGAIN;
  }
  // The send buffer was full when the fast connection opened: it stays full until there is room by the kernel's rule.
  if (ICEPATH_UNLIKELY(l->tx_late) && (!s->tx_blocked.load(std::memory_order_relaxed) || lane_sys::look(l->fd, POLLOUT))) lane_start_tx(l);
  if (ICEPATH_LIKELY(l->tx == tx_lane::fast)) {
    const ssize_t r = tcp_sendmsg(l->st->net, l->sk, m, flags & (MSG_MORE | MSG_EOR));
    if (ICEPATH_LIKELY(r > 0)) {
      l->f_tx += static_cast<size_t>(r);
      row_sent(s, l->f_tx);
      return r;
    }
    if (r == 0 || r == -EAGAIN || r == -EFAULT || r == -ENOBUFS || r == -ENOMEM) return r;
    // The fast connection is gone: what that means is for the state machine; afterwards the kernel lane answers.
    lane_advance(l);
    if (!l->s || l->tx == tx_lane::fast) return r;
  }
  if (l->pending_err) {  // whoever asks first gets it
    const int e = l->pending_err;
    l->pending_err = 0;
    return -e;
  }
  if (l->out_len && !lane_tx_to_kernel(l)) return -EAGAIN;
  kernel_view k(m, m.count);
  const ssize_t r = lane_sys::sendmsg(l->fd, &k.h, (flags & ~MSG_WAITALL) | MSG_DONTWAIT);
  if (r < 0) {
    if (errno == ECONNRESET) l->reset_told = true;
    return errno == EPIPE ? -EPIPE_RAISED : -errno;
  }
  s->k_tx.fetch_add(static_cast<uint64_t>(r), std::memory_order_relaxed);
  advance(m, static_cast<size_t>(r));
  return r;
}

ssize_t lane_recv(lane* l, user_msg* m, size_t max, int flags) {
  socket* s = l->s;
  if (ICEPATH_UNLIKELY(l->wire)) return takeover_recv(l, m, max, flags);
  if (ICEPATH_UNLIKELY(l->back != lane_back::none)) return -EAGAIN;   // what there is belongs to the kernel lane soon
  for (;;) {
    settle(l);
    if (ICEPATH_LIKELY(l->rx == rx_lane::fast)) {
      const uint64_t end = l->rx_f < l->rd_end ? l->rx_f : l->rd_end, left = end - l->f_rx;  // ~0 - f_rx when unknown
      if (ICEPATH_UNLIKELY(left == 0)) return 0;  // SHUT_RD
      const ssize_t r = tcp_recvmsg(l->st->net, l->sk, m, max < left ? max : left, flags & (MSG_PEEK | MSG_TRUNC));
      if (ICEPATH_LIKELY(r > 0)) {
        if (!(flags & MSG_PEEK)) l->f_rx += static_cast<size_t>(r);
        else if (static_cast<uint64_t>(r) == left && left < max) return r + static_cast<ssize_t>(peek_kernel(l, m, max - left, flags));
        return r;
      }
      if (r == -EFAULT) return r;
      if (r == -EAGAIN) {
        if (!l->kernel_event || l->rx_f != ~0ull) return l->rd_shut ? 0 : -EAGAIN;  // with rx_f known the rest is still on the ring
        continue;
      }
      // End or reset of the fast connection: the kernel lane knows what it means.
      l->kernel_event = true;
      lane_kernel_input(l);
      if (l->rx_f == l->f_rx) continue;
      if (l->rx_f == ~0ull) return -EAGAIN;
      l->pending_err = l->pending_err ? l->pending_err : ECONNRESET;
      l->rx_f = l->f_rx;
      continue;
    }
    if (ICEPATH_UNLIKELY(l->pending_err && l->rx == rx_lane::kernel)) {
      const int e = l->pending_err;
      l->pending_err = 0;
      return -e;
    }
    size_t limit = max;
    if (ICEPATH_UNLIKELY(l->rd_shut) && s->k_rx.load(std::memory_order_relaxed) >= l->k_rd_end && !(l->rx == rx_lane::kernel && l->rx_hdr_seen)) {
      // SHUT_RD: what came before is read, what comes now is forgotten.
      const uint64_t left = l->rx == rx_lane::draining ? l->rx_n - s->k_rx.load(std::memory_order_relaxed) : max;
      const ssize_t r = left ? lane_sys::recv(l->fd, nullptr, left, MSG_TRUNC | MSG_DONTWAIT) : 0;
      if (r > 0) s->k_rx.fetch_add(static_cast<uint64_t>(r), std::memory_order_relaxed);
      if (r > 0 && l->rx == rx_lane::draining) continue;
      return 0;
    }
    if (l->rx == rx_lane::draining) {
      const uint64_t left = l->rx_n - s->k_rx.load(std::memory_order_relaxed);
      if (left < limit) limit = left;
    } else if (!skip_surplus(l)) {
      return -EAGAIN;
    }
    ssize_t r;
    if (m) {
      kernel_view k(*m, limit);
      r = lane_sys::recvmsg(l->fd, &k.h, (flags & ~MSG_WAITALL) | MSG_DONTWAIT);
    } else {
      r = lane_sys::recv(l->fd, nullptr, limit, (flags & ~MSG_WAITALL) | MSG_DONTWAIT);
    }
    if (ICEPATH_UNLIKELY(r < 0 && l->tx == tx_lane::fast) && errno != EAGAIN && errno != EINTR && errno != EFAULT) {
      // The kernel lane is over, and has said so only once: nobody reads the fast lane either.
      const int e = errno;
      l->peer_gone = true;
      lane_peer_closed(l, false);
      return -e;
    }
    if (r < 0) return l->rd_shut && errno == EAGAIN ? 0 : -errno;
    if (!(flags & MSG_PEEK)) {
      s->k_rx.fetch_add(static_cast<uint64_t>(r), std::memory_order_relaxed);
      if (l->rx == rx_lane::draining) settle(l);
    }
    if (m && !(flags & MSG_TRUNC)) advance(*m, static_cast<size_t>(r));
    if ((flags & MSG_PEEK) && r > 0 && static_cast<size_t>(r) < max && l->rx == rx_lane::draining && static_cast<size_t>(r) == limit && lane_unread(l)) {
      const uint64_t rest = max - limit, left = l->rx_f - l->f_rx;
      const ssize_t more = tcp_recvmsg(l->st->net, l->sk, m, rest < left ? rest : left, flags & (MSG_PEEK | MSG_TRUNC));
      if (more > 0) r += more;
    }
    return r;
  }
}

namespace {
// Readiness as sock_poll tells it.
void publish(socket* s, uint32_t ready, uint32_t kernel) {
  const uint64_t old = s->rd_state.load(std::memory_order_relaxed), now = uint64_t{kernel} << 32 | ready;
  if (old == now) return;
  s->rd_state.store(now, std::memory_order_seq_cst);  // partner: sock_poll after epoll's `queued` exchange
  if (ICEPATH_UNLIKELY(old >> 32 != kernel)) epoll_sync(s);
}
}  // namespace

void lane_publish(lane* l) {
  socket* s = l->s;
  if (ICEPATH_UNLIKELY(l->wire)) {
    uint32_t ready;
    takeover_readiness(l, &ready);
    publish(s, ready, 0);
    return;
  }
  // Never say readable because the lane is about to change: whoever reads would find nothing.
  if (ICEPATH_UNLIKELY(l->rx == rx_lane::fast && l->back == lane_back::none && (l->rx_f == l->f_rx || l->kernel_event))) settle(l);
  uint32_t ready = 0, kernel = 0;
  set_kernel_lowat(l);
  if (l->tx == tx_lane::kernel && l->held == lane_held::none && !l->tail) kernel |= EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND;
  if (l->rx != rx_lane::fast && l->back == lane_back::none) kernel |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP | EPOLLPRI | EPOLLHUP | EPOLLERR | EPOLLRDBAND;
  if (l->sk) {
    const uint32_t p = tcp_poll(l->sk);
    if (l->tx == tx_lane::fast && l->held == lane_held::none) {
      ready |= p & (EPOLLOUT | EPOLLWRNORM);
      if (!(p & EPOLLOUT)) l->sk->sock_nospace = true;  // as the kernel's poll does: write_space is owed
    }
    if (l->rx == rx_lane::fast && l->back == lane_back::none) {
      const uint64_t have = lane_unread(l);
      if (have >= s->rcvlowat) ready |= EPOLLIN | EPOLLRDNORM;
      if (l->rx_f != ~0ull) {  // what comes after the rest of the fast stream is in the kernel lane already
        kernel |= EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI;
        if (have < s->rcvlowat && l->f_rx + have == l->rx_f) kernel |= EPOLLIN | EPOLLRDNORM | EPOLLRDBAND;
      }
      if (l->peer_gone) ready |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP | EPOLLHUP | (l->pending_err ? EPOLLERR : 0u);
    }
  }
  if (l->tx == tx_lane::kernel && l->rx != rx_lane::fast) kernel = ~0u;
  if (ICEPATH_UNLIKELY(l->rd_shut)) {
    ready |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
    kernel &= ~uint32_t{EPOLLIN | EPOLLRDNORM | EPOLLRDHUP};
  }
  if (l->pending_err) {  // told to us instead of the program; the rest the kernel still knows
    ready |= EPOLLERR;
    kernel &= ~uint32_t{EPOLLERR};
  }
  publish(s, ready, kernel);
}

void lane_settle(lane* l) { settle(l); }

}  // namespace icepath
