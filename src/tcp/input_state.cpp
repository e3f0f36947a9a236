// Segments of connections that are not established: opening and closing (RFC 9293 3.10.7.2-4, figures 6-14). Owner: the stack.
// Every function here consumes skb (data at the TCP header), except tcp_rcv_syn_recv_open.
#include "ip/ip.hpp"
#include "tcp/tcp_internal.hpp"

namespace icepath {

void tcp_mss_from_syn(tcp_sock* sk, const tcp_options_received& o) {
  uint16_t m = o.mss_clamp ? o.mss_clamp : 536;   // RFC 9293 3.7.1: the default
  if (m < tcp_min_snd_mss - 40) m = tcp_min_snd_mss - 40;
  if (sk->user_mss && sk->user_mss < m) m = sk->user_mss;
  sk->mss_clamp = m;
}

static void tcp_initialize_rcv_mss(tcp_sock* sk) {
  uint32_t hint = sk->advmss < sk->mss_cache ? sk->advmss : sk->mss_cache;
  if (hint > sk->rcv_wnd / 2) hint = sk->rcv_wnd / 2;
  if (hint > 536) hint = 536;
  if (hint < tcp_min_mss) hint = tcp_min_mss;
  sk->ack.rcv_mss = static_cast<uint16_t>(hint);
}

// Both ends agreed: what options the connection has.
static void tcp_settle_options(tcp_sock* sk, const tcp_options_received& o) {
  sk->tstamp_ok = o.saw_tstamp && sk->params.timestamps;
  sk->sack_ok = o.sack_ok && sk->params.sack;
  sk->wscale_ok = o.wscale_ok && sk->params.window_scaling;
  if (sk->wscale_ok) {
    sk->snd_wscale = o.snd_wscale;
  } else {
    sk->snd_wscale = sk->rcv_wscale = 0;
    if (sk->window_clamp > tcp_max_window) sk->window_clamp = tcp_max_window;
    if (sk->rcv_ssthresh > tcp_max_window) sk->rcv_ssthresh = tcp_max_window;
  }
  sk->saw_tstamp = sk->tstamp_ok && o.saw_tstamp;
  sk->tcp_header_len = sizeof(tcp_hdr);
  if (sk->tstamp_ok) {
    sk->rcv_tsval = o.rcv_tsval;
    sk->rcv_tsecr = o.rcv_tsecr;
    sk->ts_recent = o.rcv_tsval;
    sk->ts_recent_stamp = tcp_now(sk);
    sk->tcp_header_len += 12;
  }
  tcp_mss_from_syn(sk, o);
  if (o.lane) tcp_take_lane_option(sk, o.lane);
}

void tcp_init_transfer(net& n, tcp_sock* sk) {
  if (sk->dst) tcp_sync_mss(sk, sk->dst->mtu);
  tcp_initialize_rcv_mss(sk);
  tcp_init_cwnd(sk);
  sk->lsndtime = 0;
  sk->high_seq = sk->snd_una;
  sk->rcv_tstamp = sk->ack.lrcvtime = n.now;
  sk->rcvq_space.space = sk->rcv_wnd < 10u * sk->advmss ? sk->rcv_wnd : 10u * sk->advmss;
  sk->rcvq_space.time = n.now;
  sk->rcvq_space.seq = sk->copied_seq;
  tcp_sndbuf_expand(sk);
  tcp_chrono_set(sk, 0);
}

static void tcp_established_now(net& n, tcp_sock* sk) {
  tcp_set_state(sk, TCP_ESTABLISHED);
  tcp_init_transfer(n, sk);
  if (sk->snd_wscale == 0 || !(sk->snd_wnd & ((1u << sk->snd_wscale) - 1))) tcp_fast_path_on(sk);
  if (sk->keepopen) tcp_reset_keepalive_timer(sk, tcp_keepalive_time(sk));
}

// The application closed or shut down while the handshake was going on: the FIN it is owed goes now.
static void tcp_deferred_shutdown(net& n, tcp_sock* sk) {
  if (!(sk->sk_shutdown & SEND_SHUTDOWN) || sk->state != TCP_ESTABLISHED) return;
  tcp_set_state(sk, TCP_FIN_WAIT1);
  tcp_send_fin(n, sk);
}

void tcp_finish_connect(net& n, tcp_sock* sk) {
  tcp_established_now(n, sk);
  tcp_state_change(sk);
  if (sk->ops && sk->ops->write_space && !sk->sock_nospace) sk->ops->write_space(sk);
  sk->sock_nospace = false;
}

// A SYN without ACK that opens the connection on this side: a passive open, or a simultaneous one. The SYN-ACK follows.
static void take_syn(tcp_sock* sk, const sk_buff* skb, const tcp_hdr* th, const tcp_options_received& o) {
  tcp_settle_options(sk, o);
  sk->rcv_nxt = skb->cb.seq + 1;
  sk->copied_seq = sk->rcv_nxt;
  sk->rcv_wup = sk->rcv_nxt;
  sk->snd_wnd = th->window;   // never scaled on a SYN (RFC 7323 2.2)
  sk->snd_wl1 = skb->cb.seq;
  sk->max_window = sk->snd_wnd;
}

void tcp_rcv_syn_recv_open(net& n, tcp_sock* sk, const sk_buff* skb, const tcp_hdr* th, const tcp_options_received& o) {
  sk->passive = true;
  if (!tcp_route(n, sk)) return;
  const uint32_t pmtu = sk->dst->mtu;
  sk->advmss = static_cast<uint16_t>(pmtu > 40 + tcp_min_mss ? (pmtu - 40 > 65495 ? 65495 : pmtu - 40) : tcp_min_mss);
  if (sk->user_mss && sk->user_mss < sk->advmss) sk->advmss = sk->user_mss;
  sk->tsoffset = tcp_secure_ts_off(n, sk->tuple);
  sk->write_seq = tcp_secure_seq(n, sk->tuple);
  sk->snd_una = sk->snd_nxt = sk->pushed_seq = sk->snd_sml = sk->snd_up = sk->write_seq;
  sk->rcv_nxt = skb->cb.seq + 1;
  tcp_select_initial_window(sk);
  take_syn(sk, skb, th, o);
  tcp_sync_mss(sk, pmtu);
  sk->rto = sk->params.rto_init;
  tcp_set_state(sk, TCP_SYN_RECV);
  tcp_send_syn(n, sk, TCPHDR_SYN | TCPHDR_ACK);
}

static void rcv_expect(net& n, tcp_sock* sk, sk_buff* skb, tcp_hdr* th) {
  if (th->flags & TCPHDR_RST) {
  } else if (th->flags & TCPHDR_ACK) {
    tcp_send_reset(n, sk->tuple, th, skb->len - th->doff(), sk->dst);
  } else if (th->flags & TCPHDR_SYN) {
    tcp_options_received o;
    tcp_parse_options(th, o);
    tcp_rcv_syn_recv_open(n, sk, skb, th, o);
    net_stat(n, &mib::TcpPassiveOpens);
  }
  n.skbs.free(skb);
}

void tcp_rcv_synsent(net& n, tcp_sock* sk, sk_buff* skb, tcp_hdr* th) {
  tcp_options_received o;
  tcp_parse_options(th, o);
  const uint32_t seg_len = skb->len - th->doff();
  if (th->flags & TCPHDR_ACK) {
    const uint32_t ack = skb->cb.ack_seq;
    bool bad = !after(ack, sk->snd_una) || after(ack, sk->snd_nxt);
    if (o.saw_tstamp && o.rcv_tsecr && sk->params.timestamps) {   // RFC 7323 section 3.2: an echo of something we said
      const uint32_t first = static_cast<uint32_t>(sk->retrans_stamp / msec_ns) + sk->tsoffset;
      if (!between(o.rcv_tsecr, first, tcp_ts_now(sk))) bad = true;
    }
    if (bad) {
      tcp_send_reset(n, sk->tuple, th, seg_len, sk->dst);
      return n.skbs.free(skb);
    }
    if (th->flags & TCPHDR_RST) {
      tcp_reset(n, sk);
      return n.skbs.free(skb);
    }
    if (!(th->flags & TCPHDR_SYN)) return n.skbs.free(skb);
    tcp_settle_options(sk, o);
    sk->snd_wl1 = skb->cb.seq;
    sk->rcv_nxt = skb->cb.seq + 1;
    sk->rcv_wup = sk->rcv_nxt;
    sk->copied_seq = sk->rcv_nxt;
    sk->snd_wnd = sk->max_window = th->window;
    tcp_ack(n, sk, skb, th, nullptr, FLAG_SLOWPATH);
    sk->snd_wnd = sk->max_window = th->window;
    if (sk->dst) tcp_sync_mss(sk, sk->dst->mtu);
    tcp_finish_connect(n, sk);
    tcp_send_ack(n, sk);
    tcp_deferred_shutdown(n, sk);
    return n.skbs.free(skb);
  }
  if (th->flags & TCPHDR_RST) return n.skbs.free(skb);
  if (th->flags & TCPHDR_SYN) {   // simultaneous open (RFC 9293 3.5, figure 8)
    take_syn(sk, skb, th, o);
    if (sk->dst) tcp_sync_mss(sk, sk->dst->mtu);
    tcp_set_state(sk, TCP_SYN_RECV);
    if (sk_buff* head = sk->tcp_rtx_queue.first) {
      head->cb.tcp_flags |= TCPHDR_ACK;
      if (!skb_still_in_host_queue(head)) tcp_transmit_skb(n, sk, head, true);
    }
  }
  n.skbs.free(skb);
}

void tcp_reset(net& n, tcp_sock* sk) {
  int err = ECONNRESET;
  switch (sk->state) {
    case TCP_SYN_SENT: err = ECONNREFUSED; break;
    case TCP_CLOSE_WAIT: err = EPIPE; break;
    case TCP_CLOSE: return;
    default: break;
  }
  if (tcp_in_state(sk, tcpf(TCP_ESTABLISHED) | tcpf(TCP_CLOSE_WAIT))) net_stat(n, &mib::TcpEstabResets);
  tcp_done_err(n, sk, err);
}

// The peer's FIN came in order.
void tcp_fin(net& n, tcp_sock* sk) {
  sk->ack.pending |= ACK_SCHED;
  sk->sk_shutdown |= RCV_SHUTDOWN;
  sk->out_of_order_queue.purge(n.skbs);
  sk->num_sacks = 0;
  sk->rmem_alloc = 0;
  for (const sk_buff* s = sk->sk_receive_queue.first; s; s = s->next) sk->rmem_alloc += s->truesize;
  switch (sk->state) {
    case TCP_SYN_RECV:
    case TCP_ESTABLISHED:
      tcp_set_state(sk, TCP_CLOSE_WAIT);
      sk->ack.pingpong = 3;   // our FIN will probably carry the ACK
      break;
    case TCP_FIN_WAIT1:   // simultaneous close
      tcp_send_ack(n, sk);
      tcp_set_state(sk, TCP_CLOSING);
      break;
    case TCP_FIN_WAIT2:
      tcp_send_ack(n, sk);
      tcp_time_wait(n, sk);
      return;
    default: break;
  }
  tcp_state_change(sk);
}

// ACK of our SYN-ACK.
static bool syn_recv_established(net& n, tcp_sock* sk, const sk_buff* skb, const tcp_hdr* th) {
  sk->copied_seq = sk->rcv_nxt;
  sk->snd_wnd = uint32_t{th->window} << sk->snd_wscale;
  sk->snd_wl1 = skb->cb.seq;
  if (sk->snd_wnd > sk->max_window) sk->max_window = sk->snd_wnd;
  tcp_established_now(n, sk);
  if (sk->listener) return tcp_child_established(n, sk);
  tcp_state_change(sk);
  if (sk->ops && sk->ops->write_space) sk->ops->write_space(sk);
  sk->sock_nospace = false;
  return true;
}

void tcp_rcv_state_process(net& n, tcp_sock* sk, sk_buff* skb, tcp_hdr* th) {
  if (sk->state == TCP_SYN_SENT) return tcp_rcv_synsent(n, sk, skb, th);
  if (sk->state == TCP_LISTEN) return rcv_expect(n, sk, skb, th);
  if (sk->state == TCP_CLOSE) return n.skbs.free(skb);
  const uint32_t hdr = th->doff(), seg_len = skb->len - hdr;
  tcp_options_received o;
  tcp_fast_parse_options(sk, th, o);
  if (sk->state == TCP_SYN_RECV) {
    if ((th->flags & (TCPHDR_SYN | TCPHDR_ACK | TCPHDR_RST)) == TCPHDR_SYN && skb->cb.seq + 1 == sk->rcv_nxt) {
      // The peer did not hear our SYN-ACK.
      if (sk->tcp_rtx_queue.first && !tcp_oow_rate_limited(n, &sk->last_oow_ack_time)) tcp_retransmit_skb(n, sk, sk->tcp_rtx_queue.first, 1);
      return n.skbs.free(skb);
    }
    if (sk->listener && (th->flags & TCPHDR_ACK) && sk->listener->accept_qlen > sk->listener->backlog) {
      net_stat(n, &mib::TcpExtListenOverflows);   // the peer will send again, and so shall we
      return n.skbs.free(skb);
    }
  }
  if (!tcp_validate_incoming(n, sk, skb, th, false) || !(th->flags & TCPHDR_ACK)) return n.skbs.free(skb);
  const int acked = tcp_ack(n, sk, skb, th, &o, FLAG_SLOWPATH | FLAG_UPDATE_TS_RECENT);
  if (sk->state == TCP_SYN_RECV) {
    const sk_buff* head = sk->tcp_rtx_queue.first;
    if (acked <= 0 || (head && (head->cb.tcp_flags & TCPHDR_SYN))) {
      tcp_send_reset(n, sk->tuple, th, seg_len, sk->dst);   // RFC 9293 3.10.7.4, fifth: not an ACK of our SYN
      return n.skbs.free(skb);
    }
    if (!syn_recv_established(n, sk, skb, th)) return n.skbs.free(skb);
    tcp_deferred_shutdown(n, sk);
  } else if (acked < 0) {
    return n.skbs.free(skb);
  }
  const bool all_acked = sk->snd_una == sk->write_seq;
  if (sk->state == TCP_FIN_WAIT1 && all_acked && !sk->fin_owed) {
    tcp_set_state(sk, TCP_FIN_WAIT2);
    sk->sk_shutdown |= SEND_SHUTDOWN;
    if (!sk->dead) {
      tcp_state_change(sk);
    } else {
      if (sk->linger2 == ~nsec{0}) {
        tcp_done(n, sk);
        return n.skbs.free(skb);
      }
      if (seg_len && after(skb->cb.seq + seg_len, sk->rcv_nxt)) {   // RFC 2525 2.17: data for nobody
        net_stat(n, &mib::TcpExtTCPAbortOnData);
        tcp_send_active_reset(n, sk);
        tcp_done(n, sk);
        return n.skbs.free(skb);
      }
      tcp_reset_keepalive_timer(sk, tcp_fin_time(sk));
    }
  } else if (sk->state == TCP_CLOSING && all_acked) {
    tcp_time_wait(n, sk);
    return n.skbs.free(skb);
  } else if (sk->state == TCP_LAST_ACK && all_acked) {
    tcp_done(n, sk);
    return n.skbs.free(skb);
  }
  if (tcp_in_state(sk, tcpf(TCP_ESTABLISHED) | tcpf(TCP_FIN_WAIT1) | tcpf(TCP_FIN_WAIT2))) {
    if (sk->dead && !sk->listener && seg_len && after(skb->cb.seq + seg_len, sk->rcv_nxt) && sk->state != TCP_ESTABLISHED) {
      net_stat(n, &mib::TcpExtTCPAbortOnData);
      tcp_send_active_reset(n, sk);
      tcp_done(n, sk);
      return n.skbs.free(skb);
    }
    tcp_urg(n, sk, skb, th);
    skb_pull(skb, hdr);
    if (th->flags & TCPHDR_SYN) {   // the SYN of a simultaneous open was counted already
      ++skb->cb.seq;
      skb->cb.tcp_flags &= static_cast<uint8_t>(~TCPHDR_SYN);
    }
    tcp_data_queue(n, sk, skb);
  } else {   // CLOSE-WAIT, CLOSING, LAST-ACK: nothing can follow a FIN; a repeated one is acknowledged
    if (seg_len || (th->flags & TCPHDR_FIN)) sk->ack.pending |= ACK_SCHED | ACK_NOW;
    n.skbs.free(skb);
  }
  if (sk->freed || sk->state == TCP_CLOSE) return;
  tcp_data_snd_check(n, sk);
  tcp_ack_snd_check(n, sk);
}

}  // namespace icepath
