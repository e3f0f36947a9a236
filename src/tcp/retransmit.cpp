// Segments that are not new data: retransmissions, loss probes, ACKs, window probes, SYN, FIN and RST. Owner: the stack.
// Always: an skb whose clone is still below us (qdisc, ring) is never sent again; the caller re-arms its timer.
#include "ip/ip.hpp"
#include "tcp/tcp_internal.hpp"

namespace icepath {

bool skb_still_in_host_queue(const sk_buff* skb) { return skb_fclone_busy(skb); }

sk_buff* tcp_stream_alloc_skb(net& n, tcp_sock* sk) {
  sk_buff* skb = n.skbs.alloc();
  if (ICEPATH_UNLIKELY(!skb)) return nullptr;
  skb->cb.seq = skb->cb.end_seq = sk->write_seq;
  skb->cb.tcp_flags = TCPHDR_ACK;
  return skb;
}

// Takes a freshly filled skb into the write queue and charges it.
void tcp_queue_skb(tcp_sock* sk, sk_buff* skb) {
  sk->write_seq = skb->cb.end_seq;
  sk->sk_write_queue.push_back(skb);
  sk->wmem_queued += skb->truesize;
}

void tcp_free_tx_skb(net& n, tcp_sock* sk, sk_buff* skb) {
  sk->wmem_queued -= skb->truesize < sk->wmem_queued ? skb->truesize : sk->wmem_queued;
  n.skbs.free(skb);
}

static bool tcp_trim_head(net& n, tcp_sock* sk, sk_buff* skb, uint32_t len) {
  const uint32_t old = skb->truesize;
  if (!skb_pull_any(n.skbs, skb, len)) return false;
  sk->wmem_queued += skb->truesize - old;
  skb->cb.seq += len;
  return true;
}

static int do_retransmit_skb(net& n, tcp_sock* sk, sk_buff* skb, uint32_t segs) {
  if (skb_still_in_host_queue(skb)) return -EBUSY;
  if (before(skb->cb.seq, sk->snd_una)) {
    if (skb->cb.tcp_flags & TCPHDR_SYN) {   // the SYN was acknowledged with part of what follows
      skb->cb.tcp_flags &= static_cast<uint8_t>(~TCPHDR_SYN);
      ++skb->cb.seq;
    }
    const uint32_t cut = sk->snd_una - skb->cb.seq;
    if (cut && (cut > skb->len || !tcp_trim_head(n, sk, skb, cut))) return -ENOMEM;
  }
  const uint32_t mss = tcp_current_mss(sk);
  uint32_t avail = tcp_wnd_end(sk) - skb->cb.seq;
  if (!before(skb->cb.seq, tcp_wnd_end(sk)) && !(skb->cb.tcp_flags & TCPHDR_SYN)) {
    if (skb->cb.seq != sk->snd_una) return -EAGAIN;   // the peer shrank its window: only the head probes it
    avail = mss;
  }
  uint32_t len = mss * segs;
  if (len > avail && !(skb->cb.tcp_flags & TCPHDR_SYN)) {
    len = avail / mss * mss;
    if (!len) len = avail;
  }
  if (skb->len > len) {
    if (!tcp_fragment(n, sk, sk->tcp_rtx_queue, skb, len, mss)) return -ENOMEM;
  } else if (skb->cb.tcp_gso_size != mss || tcp_skb_pcount(skb) == 0) {
    const int old = static_cast<int>(tcp_skb_pcount(skb));
    tcp_set_skb_tso_segs(skb, mss);
    const int diff = old - static_cast<int>(tcp_skb_pcount(skb));
    if (diff) tcp_adjust_pcount(sk, skb, diff);
  }
  segs = tcp_skb_pcount(skb);
  net_stat(n, &mib::TcpRetransSegs, segs);
  sk->total_retrans += segs;
  sk->bytes_retrans += skb->len;
  const int err = tcp_transmit_skb(n, sk, skb, true);
  skb->cb.sacked |= TCPCB_EVER_RETRANS;
  return err;
}

int tcp_retransmit_skb(net& n, tcp_sock* sk, sk_buff* skb, uint32_t segs) {
  const int err = do_retransmit_skb(n, sk, skb, segs);
  if (err == 0) {
    if (!(skb->cb.sacked & TCPCB_SACKED_RETRANS)) sk->retrans_out += tcp_skb_pcount(skb);
    skb->cb.sacked |= TCPCB_SACKED_RETRANS;
    if (!sk->retrans_stamp) sk->retrans_stamp = n.now;
  }
  if (sk->undo_retrans < 0) sk->undo_retrans = 0;
  sk->undo_retrans += static_cast<int32_t>(tcp_skb_pcount(skb));
  return err;
}

// RFC 6675 NextSeg(), rule 1: what is marked lost and not sent again since, as far as cwnd allows.
void tcp_xmit_retransmit_queue(net& n, tcp_sock* sk) {
  if (!sk->packets_out) return;
  bool rearm = false;
  sk_buff* next = nullptr;
  for (sk_buff* skb = sk->retransmit_skb_hint ? sk->retransmit_skb_hint : sk->tcp_rtx_queue.first; skb; skb = next) {
    sk->retransmit_skb_hint = skb;
    const int32_t segs = static_cast<int32_t>(sk->snd_cwnd) - static_cast<int32_t>(tcp_packets_in_flight(sk));
    if (segs <= 0 || sk->retrans_out >= sk->lost_out) break;
    next = skb->next;
    if (!(skb->cb.sacked & TCPCB_LOST) || (skb->cb.sacked & (TCPCB_SACKED_ACKED | TCPCB_SACKED_RETRANS))) continue;
    if (tcp_retransmit_skb(n, sk, skb, static_cast<uint32_t>(segs))) break;
    next = skb->next;   // it may have been cut
    net_stat(n, sk->ca_state != TCP_CA_Loss ? &mib::TcpExtTCPFastRetrans : &mib::TcpExtTCPSlowStartRetrans);
    if (sk->ca_state == TCP_CA_CWR || sk->ca_state == TCP_CA_Recovery) sk->prr_out += tcp_skb_pcount(skb);
    if (skb == sk->tcp_rtx_queue.first) rearm = true;
  }
  if (rearm) tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, sk->rto);
}

// Tail loss probe (RFC 8985 section 7). true: the probe timer is armed instead of the RTO.
bool tcp_schedule_loss_probe(net& n, tcp_sock* sk) {
  if (!sk->params.early_retrans || !sk->packets_out || !sk->sack_ok || !sk->srtt_us) return false;
  if (sk->ca_state != TCP_CA_Open && sk->ca_state != TCP_CA_CWR) return false;
  nsec timeout = nsec{sk->srtt_us >> 2} * usec_ns;   // 2 * SRTT
  timeout += sk->packets_out == 1 ? sk->params.rto_min : 2 * msec_ns;
  if (sk->icsk_pending == ICSK_TIME_RETRANS && sk->retransmit_timer.deadline && n.now + timeout > sk->retransmit_timer.deadline) return false;
  if (timeout >= sk->rto) return false;
  tcp_reset_xmit_timer(sk, ICSK_TIME_LOSS_PROBE, timeout);
  return true;
}

void tcp_send_loss_probe(net& n, tcp_sock* sk) {
  const uint32_t mss = tcp_current_mss(sk);
  if (!sk->tlp_high_seq && sk->packets_out) {
    sk_buff* skb = tcp_send_head(sk);
    bool sent = false;
    if (skb && !after(skb->len > mss ? skb->cb.seq + mss : skb->cb.end_seq, tcp_wnd_end(sk))) {
      const uint32_t before_out = sk->packets_out;
      tcp_write_xmit(n, sk, mss, TCP_NAGLE_OFF, 2);
      sent = sk->packets_out > before_out;
      sk->tlp_retrans = false;
    }
    if (!sent && (skb = sk->tcp_rtx_queue.last) != nullptr && !skb_still_in_host_queue(skb)) {
      const uint32_t pcount = tcp_skb_pcount(skb);
      bool ok = true;
      if (pcount > 1 && skb->len > (pcount - 1) * mss) {
        ok = tcp_fragment(n, sk, sk->tcp_rtx_queue, skb, (pcount - 1) * mss, mss);
        if (ok) skb = skb->next;
      }
      if (ok && tcp_skb_pcount(skb)) sent = do_retransmit_skb(n, sk, skb, 1) == 0;
      sk->tlp_retrans = sent;
    }
    if (sent) {
      sk->tlp_high_seq = sk->snd_nxt;
      net_stat(n, &mib::TcpExtTCPLossProbes);
    }
  }
  tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, sk->rto);
}

static sk_buff* control_skb(net& n, uint32_t seq, uint8_t flags) {
  sk_buff* skb = n.skbs.alloc();
  if (!skb) return nullptr;
  skb->cb.seq = seq;
  skb->cb.end_seq = seq;
  skb->cb.tcp_flags = flags;
  skb->cb.tcp_gso_segs = 1;
  return skb;
}

// RFC 9293: an acceptable sequence number for a segment without data, also when the window shrank.
static uint32_t tcp_acceptable_seq(const tcp_sock* sk) {
  if (!before(tcp_wnd_end(sk), sk->snd_nxt) || (sk->wscale_ok && sk->snd_nxt - tcp_wnd_end(sk) < (1u << sk->rcv_wscale))) return sk->snd_nxt;
  return tcp_wnd_end(sk);
}

void tcp_send_ack(net& n, tcp_sock* sk) {
  if (sk->state == TCP_CLOSE || sk->state == TCP_LISTEN || sk->state == TCP_SYN_SENT) return;
  sk_buff* skb = control_skb(n, tcp_acceptable_seq(sk), TCPHDR_ACK);
  if (ICEPATH_UNLIKELY(!skb)) {   // no memory: try again from the delayed-ACK timer
    sk->ack.pending |= ACK_SCHED;
    tcp_set_delack_timer(sk, n.now + sk->params.delack_max);
    return;
  }
  tcp_transmit_skb(n, sk, skb, false);
}

// RFC 1122 4.2.3.2. ato adapts to the peer's pace; the deadline only ever moves nearer while an ACK is owed.
void tcp_send_delayed_ack(net& n, tcp_sock* sk) {
  nsec ato = sk->ack.ato;
  if (ato > sk->params.delack_min) {
    nsec max = sk->params.delack_max;
    if (sk->srtt_us) {
      const nsec rtt = nsec{sk->srtt_us >> 3} * usec_ns > sk->params.delack_min ? nsec{sk->srtt_us >> 3} * usec_ns : sk->params.delack_min;
      if (rtt < max) max = rtt;
    }
    if (ato > max) ato = max;
  }
  nsec when = n.now + ato;
  if ((sk->ack.pending & ACK_TIMER) && sk->delack_timer.deadline && sk->delack_timer.deadline < when) when = sk->delack_timer.deadline;
  sk->ack.pending |= ACK_SCHED | ACK_TIMER;
  tcp_set_delack_timer(sk, when);
}

// A probe below the window (urgent 0) or at the urgent edge: the answer tells the peer's window.
static int tcp_xmit_probe_skb(net& n, tcp_sock* sk, bool urgent) {
  sk_buff* skb = control_skb(n, sk->snd_una - (urgent ? 0 : 1), TCPHDR_ACK);
  if (!skb) return -ENOBUFS;
  return tcp_transmit_skb(n, sk, skb, false);
}

void tcp_send_window_probe(net& n, tcp_sock* sk) {
  if (sk->state == TCP_ESTABLISHED) tcp_xmit_probe_skb(n, sk, false);
}

int tcp_write_wakeup(net& n, tcp_sock* sk) {
  if (sk->state == TCP_CLOSE) return -1;
  sk_buff* skb = tcp_send_head(sk);
  if (skb && before(skb->cb.seq, tcp_wnd_end(sk))) {
    uint32_t mss = tcp_current_mss(sk);
    const uint32_t seg = tcp_wnd_end(sk) - skb->cb.seq;
    if (before(sk->pushed_seq, skb->cb.end_seq)) sk->pushed_seq = skb->cb.end_seq;
    if (seg < skb->cb.end_seq - skb->cb.seq || skb->len > mss) {
      const uint32_t cut = seg < mss ? seg : mss;
      if (skb->len > cut && !tcp_fragment(n, sk, sk->sk_write_queue, skb, cut, mss)) return -1;
    }
    tcp_set_skb_tso_segs(skb, mss);
    skb->cb.tcp_flags |= TCPHDR_PSH;
    const int err = tcp_transmit_skb(n, sk, skb, true);
    if (!err) {
      const uint32_t prior = sk->packets_out;
      sk->snd_nxt = skb->cb.end_seq;
      sk->sk_write_queue.unlink(skb);
      sk->tcp_rtx_queue.push_back(skb);
      sk->packets_out += tcp_skb_pcount(skb);
      if (!prior) tcp_rearm_rto(sk);
    }
    return err;
  }
  if (between(sk->snd_up, sk->snd_una + 1, sk->snd_una + 0xffff) && sk->urg_mode) tcp_xmit_probe_skb(n, sk, true);
  return tcp_xmit_probe_skb(n, sk, false);
}

// RFC 9293 3.8.6.1.
void tcp_send_probe0(net& n, tcp_sock* sk) {
  const int err = tcp_write_wakeup(n, sk);
  if (sk->packets_out || !tcp_send_head(sk)) {   // the window opened, or nothing waits any more
    sk->probes_out = 0;
    sk->backoff = 0;
    sk->probes_tstamp = 0;
    return;
  }
  ++sk->probes_out;
  net_stat(n, &mib::TcpExtTCPWinProbe);
  nsec timeout;
  if (err <= 0 && err != -ENOBUFS) {
    if (sk->backoff < 15) ++sk->backoff;
    timeout = tcp_probe0_when(sk);
  } else {
    timeout = tcp_resource_probe;
  }
  tcp_reset_xmit_timer(sk, ICSK_TIME_PROBE0, timeout);
}

// SYN, or SYN-ACK: occupies one sequence number and lives in the retransmit queue like data.
int tcp_send_syn(net& n, tcp_sock* sk, uint8_t flags) {
  sk_buff* skb = control_skb(n, sk->write_seq, flags);
  if (!skb) return -ENOBUFS;
  skb->cb.end_seq = skb->cb.seq + 1;
  skb->cb.tcp_gso_size = sk->mss_cache;
  sk->write_seq = skb->cb.end_seq;
  sk->snd_nxt = sk->write_seq;
  sk->pushed_seq = sk->write_seq;
  sk->tcp_rtx_queue.push_back(skb);
  sk->wmem_queued += skb->truesize;
  sk->packets_out += 1;
  sk->retrans_stamp = n.now;
  tcp_transmit_skb(n, sk, skb, true);   // a failure is repaired by the timer
  tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, sk->rto);
  return 0;
}

// FIN rides on the last unsent segment when there is one.
void tcp_send_fin(net& n, tcp_sock* sk) {
  sk_buff* tail = sk->sk_write_queue.last;
  if (tail) {
    tail->cb.tcp_flags |= TCPHDR_FIN;
    ++tail->cb.end_seq;
    ++sk->write_seq;
  } else {
    sk_buff* skb = tcp_stream_alloc_skb(n, sk);
    if (!skb) {
      sk->fin_owed = true;
      tcp_reset_keepalive_timer(sk, tcp_resource_probe);
      return;
    }
    skb->cb.tcp_flags = TCPHDR_ACK | TCPHDR_FIN;
    ++skb->cb.end_seq;
    tcp_queue_skb(sk, skb);
  }
  tcp_push_pending(n, sk, tcp_current_mss(sk), TCP_NAGLE_OFF);
}

void tcp_send_active_reset(net& n, tcp_sock* sk) {
  sk_buff* skb = control_skb(n, tcp_acceptable_seq(sk), TCPHDR_ACK | TCPHDR_RST);
  net_stat(n, &mib::TcpOutRsts);
  if (skb) tcp_transmit_skb(n, sk, skb, false);
}

// A segment that belongs to no socket of ours, or that a socket refuses (RFC 9293 3.5.2). t: our end first.
static void send_bare(net& n, const four_tuple& t, dst_entry* dst, uint32_t seq, uint32_t ack, uint8_t flags, uint16_t win, const uint8_t* opt, unsigned optlen) {
  dst_entry* own = nullptr;
  if (!dst) dst = own = ip_route_output(n, t.daddr, t.saddr);
  if (!dst) return;
  sk_buff* skb = n.skbs.alloc();
  if (skb) {
    tcp_hdr* th = reinterpret_cast<tcp_hdr*>(skb_put(skb, sizeof(tcp_hdr) + optlen));
    skb_reset_transport(skb);
    th->source.set(t.sport);
    th->dest.set(t.dport);
    th->seq.set(seq);
    th->ack_seq.set(ack);
    th->doff_res = static_cast<uint8_t>((sizeof(tcp_hdr) + optlen) << 2);
    th->flags = flags;
    th->window.set(win);
    th->urg_ptr.set(0);
    std::memcpy(th + 1, opt, optlen);
    tcp_fill_checksum(skb, t);
    skb->ip_summed = ip_sum::none;
    net_stat(n, &mib::TcpOutSegs);
    const ip_params p{t.saddr, t.daddr, 0, tcp_default_ttl(), 6, true};
    ip_queue_xmit(n, dst, p, skb);
  }
  if (own) dst_release(n, own);
}

void tcp_send_reset(net& n, const four_tuple& t, const tcp_hdr* th, uint32_t seg_len, dst_entry* dst) {
  if (th->flags & TCPHDR_RST) return;
  net_stat(n, &mib::TcpOutRsts);
  const uint8_t none = 0;
  if (th->flags & TCPHDR_ACK) return send_bare(n, t, dst, th->ack_seq, 0, TCPHDR_RST, 0, &none, 0);
  const uint32_t ack = th->seq + seg_len + ((th->flags & TCPHDR_SYN) ? 1 : 0) + ((th->flags & TCPHDR_FIN) ? 1 : 0);
  send_bare(n, t, dst, 0, ack, TCPHDR_RST | TCPHDR_ACK, 0, &none, 0);
}

void tcp_send_tw_ack(net& n, tcp_timewait_sock* tw) {
  uint8_t opt[12];
  unsigned len = 0;
  if (tw->tw_tstamp_ok) {
    const be32 w[3] = {{__builtin_bswap32(0x0101080a)},
                       {__builtin_bswap32(static_cast<uint32_t>(n.now / msec_ns) + tw->tw_ts_offset)},
                       {__builtin_bswap32(tw->tw_ts_recent)}};
    std::memcpy(opt, w, 12);
    len = 12;
  }
  send_bare(n, tw->tuple, tw->dst, tw->tw_snd_nxt, tw->tw_rcv_nxt, TCPHDR_ACK, static_cast<uint16_t>(tw->tw_rcv_wnd), opt, len);
}

}  // namespace icepath
