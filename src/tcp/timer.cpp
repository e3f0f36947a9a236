// Timers of a connection. The only file that arms any; the rest of TCP reports events. Owner: the stack.
// Deadlines are lazy: they live in the socket, and the wheel is touched only when a deadline moves nearer than what is armed there.
// A wheel timer that fires early finds the later deadline and arms itself again; one whose deadline is 0 does nothing.
#include "tcp/tcp_internal.hpp"

namespace icepath {

namespace {

template <tcp_timer tcp_sock::*M>
tcp_sock* timer_owner(timer* t) {
  alignas(tcp_sock) static char probe[sizeof(tcp_sock)];
  tcp_sock* const s = reinterpret_cast<tcp_sock*>(probe);
  const std::ptrdiff_t off = reinterpret_cast<char*>(&(s->*M).t) - reinterpret_cast<char*>(s);
  return reinterpret_cast<tcp_sock*>(reinterpret_cast<char*>(t) - off);
}

void set_deadline(tcp_sock* sk, tcp_timer& tt, nsec deadline) {
  tt.deadline = deadline ? deadline : 1;
  if (ICEPATH_UNLIKELY(!tt.t.armed() || tt.t.expires > tt.deadline)) sk->nt->timers.arm(tt.t, tt.deadline);
}

// True when the deadline has really come; it is taken.
bool timer_due(tcp_sock* sk, tcp_timer& tt) {
  if (!tt.deadline) return false;
  if (tt.deadline > sk->nt->now) {
    sk->nt->timers.arm(tt.t, tt.deadline);
    return false;
  }
  tt.deadline = 0;
  return true;
}

bool alive(const tcp_sock* sk) { return !sk->freed && sk->state != TCP_CLOSE && sk->state != TCP_LISTEN; }

// RFC 1122 4.2.3.5 R2, as time: the user's timeout, or what `boundary` doublings of the RTO add up to.
bool retransmits_timed_out(const tcp_sock* sk, unsigned boundary) {
  if (!sk->retransmits) return false;
  const nsec start = sk->rto_stamp;
  nsec timeout = nsec{sk->user_timeout_ms} * msec_ns;
  if (!timeout) {
    const nsec base = tcp_in_state(sk, tcpf(TCP_SYN_SENT) | tcpf(TCP_SYN_RECV)) ? sk->params.rto_init : sk->params.rto_min;
    for (unsigned i = 0; i <= boundary; ++i) {
      const nsec step = i < 40 ? base << i : sk->params.rto_max;
      timeout += step < sk->params.rto_max ? step : sk->params.rto_max;
    }
  }
  return sk->nt->now >= start + timeout;
}

// True: the connection was given up.
bool write_timeout(net& n, tcp_sock* sk) {
  unsigned until;
  bool expired;
  if (tcp_in_state(sk, tcpf(TCP_SYN_SENT) | tcpf(TCP_SYN_RECV))) {
    until = sk->syn_retries ? sk->syn_retries : sk->state == TCP_SYN_SENT ? sk->params.syn_retries : sk->params.synack_retries;
    expired = sk->retransmits >= until;
    if (sk->user_timeout_ms && sk->retransmits) expired = expired || retransmits_timed_out(sk, until);
  } else {
    until = sk->dead ? sk->params.orphan_retries : sk->params.retries2;
    expired = retransmits_timed_out(sk, until);
  }
  if (expired) tcp_write_err(n, sk);
  return expired;
}

void retransmit_timer_fn(net& n, tcp_sock* sk) {
  if (!sk->packets_out) return;
  sk_buff* head = sk->tcp_rtx_queue.first;
  if (!head) return;
  sk->tlp_high_seq = 0;
  if (!sk->snd_wnd && !tcp_in_state(sk, tcpf(TCP_SYN_SENT) | tcpf(TCP_SYN_RECV)) && !sk->dead) {
    // The peer closed its window over data in flight (RFC 9293 3.8.6): keep asking as long as it answers.
    if (n.now - sk->rcv_tstamp > sk->params.rto_max) {
      tcp_write_err(n, sk);
      return;
    }
    tcp_enter_loss(sk);
    tcp_retransmit_skb(n, sk, sk->tcp_rtx_queue.first, 1);
  } else {
    net_stat(n, &mib::TcpExtTCPTimeouts);
    if (write_timeout(n, sk)) return;
    if (sk->retransmits == 0) {   // the clock of R2 begins with the segment that got no answer, and anew after every progress
      ++sk->total_rto;
      sk->rto_stamp = head->tstamp;
    }
    tcp_enter_loss(sk);
    if (sk->retransmits < 255) ++sk->retransmits;
    if (tcp_retransmit_skb(n, sk, sk->tcp_rtx_queue.first, 1) < 0) {
      // Local trouble (no memory, still in the ring): no backoff, soon again.
      const nsec soon = tcp_resource_probe < sk->rto ? tcp_resource_probe : sk->rto;
      tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, soon);
      return;
    }
  }
  if (sk->state == TCP_SYN_SENT && sk->retransmits <= sk->params.syn_linear_timeouts) {
    tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, sk->rto);
    return;
  }
  if (sk->backoff < 30) ++sk->backoff;
  sk->rto = sk->rto << 1 < sk->params.rto_max ? sk->rto << 1 : sk->params.rto_max;   // RFC 6298 (5.5)
  tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, sk->rto);
}

void probe_timer_fn(net& n, tcp_sock* sk) {
  if (sk->packets_out || !tcp_send_head(sk)) {
    sk->probes_out = 0;
    sk->probes_tstamp = 0;
    return;
  }
  // RFC 1122 4.2.2.17: a zero window may stay for ever, as long as the peer answers; TCP_USER_TIMEOUT and orphans have limits.
  if (!sk->probes_tstamp) sk->probes_tstamp = n.now;
  else if (sk->user_timeout_ms && n.now - sk->probes_tstamp >= nsec{sk->user_timeout_ms} * msec_ns) return tcp_write_err(n, sk);
  const unsigned max = sk->dead ? sk->params.orphan_retries : sk->params.retries2;
  if (sk->probes_out >= max) return tcp_write_err(n, sk);
  tcp_send_probe0(n, sk);
}

void write_timer(timer* t, nsec) {
  tcp_sock* sk = timer_owner<&tcp_sock::retransmit_timer>(t);
  if (!timer_due(sk, sk->retransmit_timer) || !alive(sk)) return;
  net& n = *sk->nt;
  const uint8_t what = sk->icsk_pending;
  sk->icsk_pending = ICSK_TIME_NONE;
  if (what == ICSK_TIME_LOSS_PROBE) tcp_send_loss_probe(n, sk);
  else if (what == ICSK_TIME_RETRANS) retransmit_timer_fn(n, sk);
  else if (what == ICSK_TIME_PROBE0) probe_timer_fn(n, sk);
}

void delack_timer_fn(timer* t, nsec) {
  tcp_sock* sk = timer_owner<&tcp_sock::delack_timer>(t);
  if (!timer_due(sk, sk->delack_timer) || !alive(sk)) return;
  net& n = *sk->nt;
  sk->ack.pending &= static_cast<uint8_t>(~ACK_TIMER);
  if (!(sk->ack.pending & ACK_SCHED)) return;
  if (sk->ack.pingpong < 3) {   // the peer waits for our ACK: inflate ato
    sk->ack.ato = sk->ack.ato << 1 < sk->rto ? sk->ack.ato << 1 : sk->rto;
  } else {                      // the expected answer did not come: leave interactive mode
    sk->ack.pingpong = 0;
    sk->ack.ato = tcp_ato_min;
  }
  tcp_send_ack(n, sk);
  net_stat(n, &mib::TcpExtDelayedACKs);
}

// Keepalive, FIN-WAIT-2 of orphans, and the last word of a socket nobody owns.
void keepalive_timer_fn(timer* t, nsec) {
  tcp_sock* sk = timer_owner<&tcp_sock::keep_timer>(t);
  if (!timer_due(sk, sk->keep_timer) || !alive(sk)) return;
  net& n = *sk->nt;
  if (sk->fin_owed) {
    sk->fin_owed = false;
    tcp_send_fin(n, sk);
    if (sk->fin_owed) return;
  }
  if (sk->state == TCP_FIN_WAIT2 && sk->dead) return tcp_done(n, sk);   // RFC 1122 4.2.2.20 (h): the peer never closed
  if (!sk->keepopen || tcp_in_state(sk, tcpf(TCP_SYN_SENT) | tcpf(TCP_SYN_RECV))) return;
  nsec elapsed = tcp_keepalive_time(sk);
  if (!sk->packets_out && sk->sk_write_queue.empty()) {
    const nsec last = sk->rcv_tstamp > sk->ack.lrcvtime ? sk->rcv_tstamp : sk->ack.lrcvtime;
    elapsed = n.now - last;
    if (elapsed >= tcp_keepalive_time(sk)) {
      const nsec ut = nsec{sk->user_timeout_ms} * msec_ns;
      if ((ut && elapsed >= ut && sk->probes_out > 0) || (!ut && sk->probes_out >= tcp_keepalive_probes(sk))) {
        tcp_send_active_reset(n, sk);
        tcp_write_err(n, sk);
        return;
      }
      if (tcp_write_wakeup(n, sk) <= 0) {
        ++sk->probes_out;
        net_stat(n, &mib::TcpExtTCPKeepAlive);
        elapsed = tcp_keepalive_intvl(sk);
      } else {
        elapsed = tcp_resource_probe;
      }
    } else {
      elapsed = tcp_keepalive_time(sk) - elapsed;
    }
  }
  tcp_reset_keepalive_timer(sk, elapsed);
}

void timewait_timer_fn(timer* t, nsec) {
  alignas(tcp_timewait_sock) static char probe[sizeof(tcp_timewait_sock)];
  tcp_timewait_sock* const s = reinterpret_cast<tcp_timewait_sock*>(probe);
  const std::ptrdiff_t off = reinterpret_cast<char*>(&s->tm) - reinterpret_cast<char*>(s);
  tcp_timewait_sock* tw = reinterpret_cast<tcp_timewait_sock*>(reinterpret_cast<char*>(t) - off);
  tcp_tw_free(*tw->nt, tw);
}

void tsq_timer_fn(timer* t, nsec) {
  tcp_table* tab = reinterpret_cast<tcp_table*>(reinterpret_cast<char*>(t) - offsetof(tcp_table, tsq_timer));
  tcp_tsq_run(*tab->n);
}

}  // namespace

void tcp_init_xmit_timers(tcp_sock* sk) {
  sk->retransmit_timer.t.fn = write_timer;
  sk->delack_timer.t.fn = delack_timer_fn;
  sk->keep_timer.t.fn = keepalive_timer_fn;
}

void tcp_clear_xmit_timers(tcp_sock* sk) {
  sk->icsk_pending = ICSK_TIME_NONE;
  sk->ack.pending = 0;
  for (tcp_timer* t : {&sk->retransmit_timer, &sk->delack_timer, &sk->keep_timer}) {
    t->deadline = 0;
    sk->nt->timers.cancel(t->t);
  }
}

void tcp_reset_xmit_timer(tcp_sock* sk, uint8_t what, nsec when) {
  if (when > sk->params.rto_max) when = sk->params.rto_max;
  sk->icsk_pending = what;
  set_deadline(sk, sk->retransmit_timer, sk->nt->now + when);
}

void tcp_clear_retrans_timer(tcp_sock* sk) {
  sk->icsk_pending = ICSK_TIME_NONE;
  sk->retransmit_timer.deadline = 0;
}

void tcp_set_delack_timer(tcp_sock* sk, nsec deadline) {
  sk->ack.pending |= ACK_TIMER;
  set_deadline(sk, sk->delack_timer, deadline);
}

void tcp_clear_delack_timer(tcp_sock* sk) { sk->delack_timer.deadline = 0; }

void tcp_reset_keepalive_timer(tcp_sock* sk, nsec after) { set_deadline(sk, sk->keep_timer, sk->nt->now + after); }

void tcp_set_keepalive(tcp_sock* sk, bool on) {
  const bool was = sk->keepopen;
  sk->keepopen = on;
  if (tcp_in_state(sk, tcpf(TCP_CLOSE) | tcpf(TCP_LISTEN))) return;
  if (on && !was) tcp_reset_keepalive_timer(sk, tcp_keepalive_time(sk));
  else if (!on && !sk->dead) sk->keep_timer.deadline = 0;
}

void tcp_start_timewait_timer(net& n, tcp_timewait_sock* tw) {
  tw->tm.fn = timewait_timer_fn;
  n.timers.arm(tw->tm, n.now + tw->tw_len);
}

nsec tcp_probe0_when(const tcp_sock* sk) {
  const nsec base = sk->rto > sk->params.rto_min ? sk->rto : sk->params.rto_min;
  const nsec when = sk->backoff < 20 ? base << sk->backoff : sk->params.rto_max;
  return when < sk->params.rto_max ? when : sk->params.rto_max;
}

// T14: something waits and nothing is in flight whose ACK would move it.
void tcp_check_probe_timer(tcp_sock* sk) {
  if (!sk->packets_out && !sk->icsk_pending) {
    const nsec base = sk->rto > sk->params.rto_min ? sk->rto : sk->params.rto_min;
    tcp_reset_xmit_timer(sk, ICSK_TIME_PROBE0, base);
  }
}

void tcp_arm_tsq(net& n) {
  timer& t = n.tcp->tsq_timer;
  t.fn = tsq_timer_fn;
  if (!t.armed()) n.timers.arm(t, n.now + msec_ns);
}

}  // namespace icepath
