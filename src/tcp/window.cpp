// The receive window: what is offered, how it grows with the reader (DRS), when a change is told to the peer, and the
// delayed-ACK bookkeeping that goes with it (RFC 1122 4.2.3.2-3, RFC 7323, RFC 9293 3.8.6). Owner: the stack.
// Always: the right edge of the offered window never moves left (RFC 9293 3.8.6: no shrinking).
#include "tcp/tcp_internal.hpp"

namespace icepath {

bool tcp_in_quickack_mode(const tcp_sock* sk) { return sk->ack.quick && sk->ack.pingpong < 3; }

void tcp_enter_quickack_mode(tcp_sock* sk, unsigned max) {
  unsigned q = tcp_receive_window(sk) / (2u * sk->ack.rcv_mss);
  if (q < 2) q = 2;
  if (q > max) q = max;
  if (q > sk->ack.quick) sk->ack.quick = static_cast<uint8_t>(q);
  sk->ack.pingpong = 0;
  sk->ack.ato = tcp_ato_min;
}

void tcp_select_initial_window(tcp_sock* sk) {
  uint32_t clamp = sk->user_window_clamp ? sk->user_window_clamp : 65535u << tcp_max_wscale;
  uint32_t space = tcp_full_space(sk);
  if (space > clamp) space = clamp;
  if (sk->params.window_scaling) {
    uint32_t max = sk->rcvbuf_locked ? sk->rcvbuf : sk->params.rcvbuf_max;
    if (max < space) max = space;
    if (max > clamp) max = clamp;
    sk->rcv_wscale = 0;
    while (max > 65535 && sk->rcv_wscale < tcp_max_wscale) {
      max >>= 1;
      ++sk->rcv_wscale;
    }
  } else {
    sk->rcv_wscale = 0;
    if (clamp > 65535) clamp = 65535;
    if (space > clamp) space = clamp;
  }
  if (space > sk->advmss) space = space / sk->advmss * sk->advmss;
  sk->rcv_wnd = space;
  sk->window_clamp = clamp < (65535u << sk->rcv_wscale) ? clamp : 65535u << sk->rcv_wscale;
  sk->rcv_ssthresh = sk->rcv_wnd;
  sk->rcv_wup = sk->rcv_nxt;
}

// RFC 1122 4.2.3.3: silly window avoidance at the receiver.
static bool memory_pressure(const tcp_sock* sk) { return sk->nt && sk->nt->skbs.frames.pool() && sk->nt->skbs.frames.pool()->pressure(); }

uint32_t tcp_select_window_raw(tcp_sock* sk) {
  uint32_t mss = sk->ack.rcv_mss, free_space = tcp_space(sk), full = tcp_full_space(sk);
  if (full > sk->window_clamp) full = sk->window_clamp;
  if (mss > full) {
    mss = full;
    if (!mss) return 0;
  }
  if (free_space < (full >> 1)) {
    sk->ack.quick = 0;
    if (memory_pressure(sk)) {
      const uint32_t four = 4u * sk->advmss;
      if (sk->rcv_ssthresh > four) sk->rcv_ssthresh = four;
    }
    free_space = free_space >> sk->rcv_wscale << sk->rcv_wscale;
    if (free_space < (full >> 4) || free_space < mss) return 0;
  }
  if (free_space > sk->rcv_ssthresh) free_space = sk->rcv_ssthresh;
  if (sk->rcv_wscale) {
    const uint32_t unit = 1u << sk->rcv_wscale;
    return (free_space + unit - 1) & ~(unit - 1);
  }
  uint32_t w = sk->rcv_wnd;
  if (w <= free_space - (mss < free_space ? mss : free_space) || w > free_space) w = free_space / mss * mss;
  else if (mss == full && free_space > w + (full >> 1)) w = free_space;
  return w;
}

uint32_t tcp_select_window(tcp_sock* sk) {
  const uint32_t cur = tcp_receive_window(sk);
  uint32_t w = tcp_select_window_raw(sk);
  if (w < cur) {   // never shrink what was offered
    const uint32_t unit = 1u << sk->rcv_wscale;
    w = (cur + unit - 1) & ~(unit - 1);
  }
  const uint32_t max = 65535u << sk->rcv_wscale;
  if (w > max) w = max;
  sk->rcv_wnd = w;
  sk->rcv_wup = sk->rcv_nxt;
  w >>= sk->rcv_wscale;
  if (w == 0) sk->pred_flags = 0;
  return w;
}

// rcv_ssthresh follows what the sender really fills, so that small segments do not inflate memory.
void tcp_grow_window(tcp_sock* sk, const sk_buff* skb) {
  const uint32_t limit = sk->window_clamp < tcp_space(sk) ? sk->window_clamp : tcp_space(sk);
  if (sk->rcv_ssthresh >= limit || skb->len < 128 || memory_pressure(sk)) return;
  const uint32_t room = limit - sk->rcv_ssthresh;
  uint32_t incr = tcp_win_from_space(sk, skb->truesize) <= skb->len ? 2u * sk->advmss : 2u * sk->ack.rcv_mss;
  if (incr < 2 * skb->len) incr = 2 * skb->len;
  sk->rcv_ssthresh += incr < room ? incr : room;
  sk->ack.quick |= 1;
}

// More arrived than the buffer was meant for: grow it when allowed, else close the window.
void tcp_clamp_window(tcp_sock* sk) {
  sk->ack.quick = 0;
  if (!sk->rcvbuf_locked && sk->rcvbuf < sk->params.rcvbuf_max && !memory_pressure(sk)) {
    const uint32_t want = sk->rmem_alloc < sk->params.rcvbuf_max ? sk->rmem_alloc : sk->params.rcvbuf_max;
    if (want > sk->rcvbuf) sk->rcvbuf = want;
  }
  if (sk->rmem_alloc > sk->rcvbuf) {
    const uint32_t two = 2u * sk->advmss;
    sk->rcv_ssthresh = sk->window_clamp < two ? sk->window_clamp : two;
  }
}

void tcp_measure_rcv_mss(tcp_sock* sk, const sk_buff* skb) {
  const uint32_t last = sk->ack.last_seg_size;
  sk->ack.last_seg_size = 0;
  const uint32_t len = skb->gso_size ? skb->gso_size : skb->len;
  if (len >= sk->ack.rcv_mss) {
    if (len != sk->ack.rcv_mss || skb->gso_size) {   // memory per byte of payload, as it really is
      uint64_t r = (uint64_t{skb->len} << 8) / skb->truesize;
      if (r < 102) r = 102;   // small segments are merged, so it never is worse than this
      if (r > 230) r = 230;
      sk->scaling_ratio = static_cast<uint16_t>(r);
    }
    sk->ack.rcv_mss = static_cast<uint16_t>(len < sk->advmss ? len : sk->advmss);
    if (skb->cb.tcp_flags & TCPHDR_PSH) sk->ack.pending |= skb->gso_size ? 0 : ACK_PUSHED;
    return;
  }
  if (len >= 536 || (len >= 128 && !(skb->cb.tcp_flags & TCPHDR_PSH))) {
    sk->ack.last_seg_size = static_cast<uint16_t>(len);
    if (len == last) {
      sk->ack.rcv_mss = static_cast<uint16_t>(len);
      return;
    }
  }
  if (sk->ack.pending & ACK_PUSHED) sk->ack.pending |= ACK_PUSHED2;
  sk->ack.pending |= ACK_PUSHED;
}

static void rcv_rtt_update(tcp_sock* sk, uint32_t sample, bool win_dep) {
  uint32_t r = sk->rcv_rtt_est.rtt_us, m = sample ? sample : 1;
  if (r) {
    if (!win_dep) {
      m -= r >> 3;
      r += m;
    } else {
      m <<= 3;
      if (m < r) r = m;
    }
  } else {
    r = m << 3;
  }
  sk->rcv_rtt_est.rtt_us = r;
}

void tcp_rcv_rtt_measure(tcp_sock* sk) {
  const nsec now = tcp_now(sk);
  if (sk->rcv_rtt_est.time) {
    if (before(sk->rcv_nxt, sk->rcv_rtt_est.seq)) return;
    rcv_rtt_update(sk, static_cast<uint32_t>((now - sk->rcv_rtt_est.time) / usec_ns), true);
  }
  sk->rcv_rtt_est.seq = sk->rcv_nxt + sk->rcv_wnd;
  sk->rcv_rtt_est.time = now;
}

void tcp_rcv_rtt_measure_ts(tcp_sock* sk, const sk_buff* skb) {
  if (sk->rcv_tsecr == sk->rcv_rtt_last_tsecr) return;
  sk->rcv_rtt_last_tsecr = sk->rcv_tsecr;
  if (skb->cb.end_seq - skb->cb.seq < sk->ack.rcv_mss) return;
  const uint32_t ms = tcp_ts_now(sk) - sk->rcv_tsecr;
  if (ms < 0x7fffffff / 1000) rcv_rtt_update(sk, ms ? ms * 1000 : 1000, false);
}

// Dynamic right-sizing: the buffer holds twice of what the application read in the last round trip.
void tcp_rcv_space_adjust(net& n, tcp_sock* sk) {
  if (!sk->rcvq_space.time) return;
  if (n.now - sk->rcvq_space.time < nsec{sk->rcv_rtt_est.rtt_us >> 3} * usec_ns || !sk->rcv_rtt_est.rtt_us) return;
  const uint32_t copied = sk->copied_seq - sk->rcvq_space.seq;
  if (copied > sk->rcvq_space.space) {
    if (sk->params.moderate_rcvbuf && !sk->rcvbuf_locked && !memory_pressure(sk)) {
      uint64_t rcvwin = (uint64_t{copied} << 1) + 16u * sk->advmss;
      uint64_t grow = rcvwin * (copied - sk->rcvq_space.space) / (sk->rcvq_space.space ? sk->rcvq_space.space : 1);
      rcvwin += grow << 1;
      if (rcvwin > sk->window_clamp) rcvwin = sk->window_clamp;
      uint32_t buf = tcp_space_from_win(sk, static_cast<uint32_t>(rcvwin));
      if (buf > sk->params.rcvbuf_max) buf = sk->params.rcvbuf_max;
      if (buf > sk->rcvbuf) sk->rcvbuf = buf;
    }
    sk->rcvq_space.space = copied;
  }
  sk->rcvq_space.seq = sk->copied_seq;
  sk->rcvq_space.time = n.now;
}

// The reader took bytes: is an ACK or a window update worth a segment now?
void tcp_cleanup_rbuf(net& n, tcp_sock* sk, int copied) {
  bool now = false;
  if (sk->ack.pending & ACK_SCHED) {
    if (sk->rcv_nxt - sk->rcv_wup > sk->ack.rcv_mss ||
        (copied > 0 && ((sk->ack.pending & ACK_PUSHED2) || ((sk->ack.pending & ACK_PUSHED) && sk->ack.pingpong < 3)) &&
         sk->sk_receive_queue.empty()))
      now = true;
  }
  if (copied > 0 && !now && !(sk->sk_shutdown & RCV_SHUTDOWN)) {
    const uint32_t cur = tcp_receive_window(sk);
    if (2 * cur <= sk->window_clamp) {
      const uint32_t next = tcp_select_window_raw(sk);
      if (next && next >= 2 * cur) now = true;
    }
  }
  if (now) tcp_send_ack(n, sk);
}

}  // namespace icepath
