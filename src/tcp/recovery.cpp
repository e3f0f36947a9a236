// Loss recovery: NewReno (RFC 6582), SACK-based (RFC 6675), proportional rate reduction (RFC 6937), undo by timestamps and DSACK
// (RFC 3522, RFC 3708), limited transmit (RFC 3042, by what packets_in_flight means), lost retransmissions by send time (RFC 8985 6.2).
// Owner: the stack. Always: left_out <= packets_out; ca_state Open has no lost and no retransmitted segments outstanding.
#include "tcp/tcp_internal.hpp"

namespace icepath {

void tcp_set_ca_state(tcp_sock* sk, uint8_t s) {
  if (sk->ca_ops->set_state) sk->ca_ops->set_state(sk, s);
  sk->ca_state = s;
}

void tcp_mark_skb_lost(tcp_sock* sk, sk_buff* skb) {
  uint8_t& sacked = skb->cb.sacked;
  if (sacked & TCPCB_SACKED_ACKED) return;
  const uint32_t pcount = tcp_skb_pcount(skb);
  if (!sk->retransmit_skb_hint || before(skb->cb.seq, sk->retransmit_skb_hint->cb.seq)) sk->retransmit_skb_hint = skb;
  if (sacked & TCPCB_LOST) {
    if (sacked & TCPCB_SACKED_RETRANS) {   // and the retransmission too
      sacked &= static_cast<uint8_t>(~TCPCB_SACKED_RETRANS);
      sk->retrans_out -= pcount;
      sk->lost += pcount;
    }
  } else {
    sacked |= TCPCB_LOST;
    sk->lost_out += pcount;
    sk->lost += pcount;
    if (sacked & TCPCB_SACKED_RETRANS) {
      sacked &= static_cast<uint8_t>(~TCPCB_SACKED_RETRANS);
      sk->retrans_out -= pcount;
    }
  }
}

void tcp_check_sack_reordering(tcp_sock* sk, uint32_t low_seq) {
  const uint32_t fack = sk->highest_sack ? sk->highest_sack->cb.seq : sk->snd_una;
  if (!before(low_seq, fack)) return;
  const uint32_t metric = fack - low_seq, mss = sk->mss_cache;
  if (metric > sk->reordering * mss) {
    const uint32_t r = (metric + mss - 1) / mss;
    sk->reordering = static_cast<uint16_t>(r < sk->params.max_reordering ? r : sk->params.max_reordering);
  }
  ++sk->reord_seen;
}

// ---- duplicate ACKs without SACK

static void tcp_limit_reno_sacked(tcp_sock* sk) {
  uint32_t holes = sk->lost_out > 1 ? sk->lost_out : 1;
  if (holes > sk->packets_out) holes = sk->packets_out;
  if (sk->sacked_out + holes > sk->packets_out) sk->sacked_out = sk->packets_out - holes;
}
static void tcp_add_reno_sack(tcp_sock* sk, uint32_t dup) {
  if (!dup) return;
  const uint32_t prior = sk->sacked_out;
  sk->sacked_out += dup;
  tcp_limit_reno_sacked(sk);
  if (sk->sacked_out > prior) sk->delivered += sk->sacked_out - prior;
}

// ---- undo

static bool tcp_packet_delayed(const tcp_sock* sk) {   // Eifel: the ACK echoes a time before the retransmission
  if (!sk->retrans_stamp || !sk->tstamp_ok || !sk->saw_tstamp || !sk->rcv_tsecr) return false;
  const uint32_t stamp = static_cast<uint32_t>(sk->retrans_stamp / msec_ns) + sk->tsoffset;
  return before(sk->rcv_tsecr, stamp);
}
static bool tcp_may_undo(const tcp_sock* sk) { return sk->undo_marker && (!sk->undo_retrans || tcp_packet_delayed(sk)); }

static void tcp_undo_cwnd_reduction(tcp_sock* sk, bool unmark_loss) {
  if (unmark_loss) {
    for (sk_buff* s = sk->tcp_rtx_queue.first; s; s = s->next) s->cb.sacked &= static_cast<uint8_t>(~TCPCB_LOST);
    sk->lost_out = 0;
    sk->retransmit_skb_hint = nullptr;
  }
  if (sk->prior_ssthresh) {
    const uint32_t w = sk->ca_ops->undo_cwnd(sk);
    sk->snd_cwnd = w > sk->snd_cwnd ? w : sk->snd_cwnd;
    if (sk->prior_ssthresh > sk->snd_ssthresh) sk->snd_ssthresh = sk->prior_ssthresh;
  }
  sk->snd_cwnd_stamp = tcp_now(sk);
  sk->undo_marker = 0;
}

static bool tcp_any_retrans_done(const tcp_sock* sk) {
  if (sk->retrans_out) return true;
  const sk_buff* h = sk->tcp_rtx_queue.first;
  return h && (h->cb.sacked & TCPCB_EVER_RETRANS);
}

static bool tcp_is_non_sack_preventing_reopen(tcp_sock* sk) {
  if (sk->snd_una == sk->high_seq && !sk->sack_ok) {   // RFC 6582 3.2: wait for one more, dupACKs of the old window may come
    if (!tcp_any_retrans_done(sk)) sk->retrans_stamp = 0;
    return true;
  }
  return false;
}

static bool tcp_try_undo_recovery(tcp_sock* sk) {
  if (tcp_may_undo(sk)) tcp_undo_cwnd_reduction(sk, false);
  if (tcp_is_non_sack_preventing_reopen(sk)) return true;
  tcp_set_ca_state(sk, TCP_CA_Open);
  return false;
}

static bool tcp_try_undo_dsack(tcp_sock* sk) {
  if (sk->undo_marker && !sk->undo_retrans) {
    tcp_undo_cwnd_reduction(sk, false);
    return true;
  }
  return false;
}

bool tcp_try_undo_loss(tcp_sock* sk, bool frto_undo) {
  if (!frto_undo && !tcp_may_undo(sk)) return false;
  tcp_undo_cwnd_reduction(sk, true);
  tcp_stat(sk, &mib::TcpExtTCPSpuriousRTOs);
  sk->retransmits = 0;
  if (tcp_is_non_sack_preventing_reopen(sk)) return true;
  if (frto_undo || sk->sack_ok) tcp_set_ca_state(sk, TCP_CA_Open);
  return true;
}

static void tcp_init_undo(tcp_sock* sk) {
  sk->undo_marker = sk->snd_una;
  sk->undo_retrans = sk->retrans_out ? static_cast<int32_t>(sk->retrans_out) : -1;
}

static uint32_t tcp_current_ssthresh(const tcp_sock* sk) {
  if (sk->ca_state == TCP_CA_CWR || sk->ca_state == TCP_CA_Recovery) return sk->snd_ssthresh;
  const uint32_t w = (sk->snd_cwnd >> 1) + (sk->snd_cwnd >> 2);
  return sk->snd_ssthresh > w ? sk->snd_ssthresh : w;
}

// ---- window reduction

static void tcp_init_cwnd_reduction(tcp_sock* sk) {
  sk->high_seq = sk->snd_nxt;
  sk->tlp_high_seq = 0;
  sk->snd_cwnd_cnt = 0;
  sk->prior_cwnd = sk->snd_cwnd;
  sk->prr_delivered = sk->prr_out = 0;
  sk->snd_ssthresh = sk->ca_ops->ssthresh(sk);
}

static void tcp_cwnd_reduction(tcp_sock* sk, uint32_t newly, bool advanced) {
  if (!newly || !sk->prior_cwnd) return;
  const int64_t in_flight = tcp_packets_in_flight(sk), delta = int64_t{sk->snd_ssthresh} - in_flight;
  int64_t sndcnt;
  sk->prr_delivered += newly;
  if (delta < 0) {
    sndcnt = static_cast<int64_t>((uint64_t{sk->snd_ssthresh} * sk->prr_delivered + sk->prior_cwnd - 1) / sk->prior_cwnd) - sk->prr_out;
  } else {
    sndcnt = int64_t{sk->prr_delivered} - sk->prr_out;
    if (sndcnt < newly) sndcnt = newly;
    if (advanced) ++sndcnt;
    if (sndcnt > delta) sndcnt = delta;
  }
  const int64_t least = sk->prr_out ? 0 : 1;   // the first fast retransmit always goes
  if (sndcnt < least) sndcnt = least;
  sk->snd_cwnd = static_cast<uint32_t>(in_flight + sndcnt);
}

static void tcp_end_cwnd_reduction(tcp_sock* sk) {
  if (sk->snd_ssthresh < tcp_infinite_ssthresh && (sk->ca_state == TCP_CA_CWR || sk->undo_marker)) {
    sk->snd_cwnd = sk->snd_ssthresh;
    sk->snd_cwnd_stamp = tcp_now(sk);
  }
}

void tcp_enter_cwr(tcp_sock* sk) {
  sk->prior_ssthresh = 0;
  if (sk->ca_state < TCP_CA_CWR) {
    sk->undo_marker = 0;
    tcp_init_cwnd_reduction(sk);
    tcp_set_ca_state(sk, TCP_CA_CWR);
  }
}

void tcp_try_keep_open(tcp_sock* sk) {
  const uint8_t s = tcp_left_out(sk) || tcp_any_retrans_done(sk) ? TCP_CA_Disorder : TCP_CA_Open;
  if (sk->ca_state != s) {
    tcp_set_ca_state(sk, s);
    sk->high_seq = sk->snd_nxt;
  }
}

static void tcp_try_to_open(tcp_sock* sk) {
  if (!tcp_any_retrans_done(sk)) sk->retrans_stamp = 0;
  if (sk->ca_state != TCP_CA_CWR) tcp_try_keep_open(sk);
}

// RFC 6298 (5.4)-(5.7), RFC 5681 3.1 (equation 4), RFC 2018 section 8 (after an RTO, SACK information may be stale: reneging).
void tcp_enter_loss(tcp_sock* sk) {
  const bool new_recovery = sk->ca_state < TCP_CA_Recovery;
  sk_buff* head = sk->tcp_rtx_queue.first;
  const bool reneg = head && (head->cb.sacked & TCPCB_SACKED_ACKED);
  if (reneg || !sk->sack_ok) sk->sacked_out = 0;
  if (reneg) {
    sk->highest_sack = nullptr;
    for (tcp_sack_seq& b : sk->recv_sack_cache) b = {};
  }
  for (sk_buff* s = head; s; s = s->next) {
    if (reneg) s->cb.sacked &= static_cast<uint8_t>(~TCPCB_SACKED_ACKED);
    tcp_mark_skb_lost(sk, s);
  }
  sk->retransmit_skb_hint = nullptr;
  if (sk->ca_state <= TCP_CA_Disorder || !after(sk->high_seq, sk->snd_una) || (sk->ca_state == TCP_CA_Loss && !sk->retransmits)) {
    sk->prior_ssthresh = tcp_current_ssthresh(sk);
    sk->prior_cwnd = sk->snd_cwnd;
    sk->snd_ssthresh = sk->ca_ops->ssthresh(sk);
    tcp_init_undo(sk);
  }
  if (sk->ca_state <= TCP_CA_Disorder && sk->sacked_out >= sk->reordering && sk->reordering > sk->params.reordering) sk->reordering = sk->params.reordering;
  (void)new_recovery;
  sk->snd_cwnd = tcp_packets_in_flight(sk) + 1;
  sk->snd_cwnd_cnt = 0;
  sk->snd_cwnd_stamp = tcp_now(sk);
  tcp_set_ca_state(sk, TCP_CA_Loss);
  sk->high_seq = sk->snd_nxt;
}

static void tcp_enter_recovery(tcp_sock* sk) {
  tcp_stat(sk, sk->sack_ok ? &mib::TcpExtTCPSackRecovery : &mib::TcpExtTCPRenoRecovery);
  sk->prior_ssthresh = 0;
  tcp_init_undo(sk);
  if (sk->ca_state != TCP_CA_CWR) {
    sk->prior_ssthresh = tcp_current_ssthresh(sk);
    tcp_init_cwnd_reduction(sk);
  }
  tcp_set_ca_state(sk, TCP_CA_Recovery);
}

// RFC 6675 IsLost(): DupThresh segments above it were SACKed. A retransmission is lost when something sent clearly later was delivered.
static void tcp_update_scoreboard(net& n, tcp_sock* sk, bool fast_rexmit) {
  sk_buff* head = sk->tcp_rtx_queue.first;
  if (!head) return;
  if (!sk->sack_ok) {
    if (head->cb.sacked & TCPCB_LOST) return;
    if (tcp_skb_pcount(head) > 1 && !tcp_fragment(n, sk, sk->tcp_rtx_queue, head, tcp_skb_mss(head), tcp_skb_mss(head))) return;
    tcp_mark_skb_lost(sk, head);
    tcp_limit_reno_sacked(sk);
    return;
  }
  const int64_t upto = int64_t{sk->sacked_out} - sk->reordering;
  const nsec reo = nsec{sk->srtt_us >> 3} * usec_ns / 4;
  int64_t seen = 0;
  for (sk_buff* s = head; s; s = s->next) {
    if (s->cb.sacked & TCPCB_SACKED_ACKED) {
      seen += tcp_skb_pcount(s);
      if (s == sk->highest_sack) break;
      continue;
    }
    if (s->cb.sacked & TCPCB_SACKED_RETRANS) {
      if (s->tstamp + reo < sk->rack_mstamp) tcp_mark_skb_lost(sk, s);
    } else if (seen <= upto && !(s->cb.sacked & TCPCB_LOST)) {
      tcp_mark_skb_lost(sk, s);
    }
  }
  if (fast_rexmit && !sk->lost_out && !(head->cb.sacked & TCPCB_SACKED_ACKED)) tcp_mark_skb_lost(sk, head);
}

static bool tcp_time_to_recover(const tcp_sock* sk) { return sk->lost_out || (sk->sacked_out && sk->sacked_out >= sk->reordering); }
static bool tcp_force_fast_retransmit(const tcp_sock* sk) {
  return sk->highest_sack && sk->highest_sack->cb.seq - sk->snd_una > sk->reordering * uint32_t{sk->mss_cache};
}

// Dispatch of a dubious ACK, and of every ACK outside Open. rexmit: lost segments may now be sent again.
void tcp_fastretrans_alert(net& n, tcp_sock* sk, uint32_t prior_snd_una, uint32_t dup, uint32_t& flag, int& rexmit, uint32_t) {
  (void)prior_snd_una;
  const bool advanced = flag & FLAG_SND_UNA_ADVANCED;
  bool do_lost = dup || ((flag & FLAG_DATA_SACKED) && tcp_force_fast_retransmit(sk)), fast = false;
  if (!sk->packets_out && sk->sacked_out) sk->sacked_out = 0;
  if (sk->tcp_rtx_queue.first && (sk->tcp_rtx_queue.first->cb.sacked & TCPCB_SACKED_ACKED) && sk->snd_una == sk->tcp_rtx_queue.first->cb.seq) {
    // RFC 2018 section 8: the head is SACKed but not acknowledged: reneging. Give the receiver a little time.
    nsec d = nsec{sk->srtt_us >> 4} * usec_ns;
    if (d < 10 * msec_ns) d = 10 * msec_ns;
    tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, d);
    flag &= ~FLAG_SET_XMIT_TIMER;
    return;
  }
  if (sk->ca_state == TCP_CA_Open) {
    sk->retrans_stamp = 0;
  } else if (!before(sk->snd_una, sk->high_seq)) {
    if (sk->ca_state == TCP_CA_CWR) {
      if (sk->snd_una != sk->high_seq) {
        tcp_end_cwnd_reduction(sk);
        tcp_set_ca_state(sk, TCP_CA_Open);
      }
    } else if (sk->ca_state == TCP_CA_Recovery) {
      if (!sk->sack_ok) sk->sacked_out = 0;
      if (tcp_try_undo_recovery(sk)) return;
      tcp_end_cwnd_reduction(sk);
    }
  }
  if (sk->ca_state == TCP_CA_Recovery) {
    if (!advanced) {
      if (!sk->sack_ok) tcp_add_reno_sack(sk, dup);
    } else {
      // A partial ACK that answers an original: the "lost" segments were only late.
      if (sk->undo_marker && tcp_packet_delayed(sk) && !sk->retrans_out) {
        tcp_undo_cwnd_reduction(sk, true);
        tcp_try_keep_open(sk);
        return;
      }
      do_lost = !sk->sack_ok || tcp_force_fast_retransmit(sk) || do_lost;
    }
    if (tcp_try_undo_dsack(sk)) {
      tcp_try_to_open(sk);
      return;
    }
    do_lost = do_lost || (flag & FLAG_FORWARD_PROGRESS);
  } else if (sk->ca_state == TCP_CA_Loss) {
    const bool recovered = !before(sk->snd_una, sk->high_seq);
    if (advanced && tcp_try_undo_loss(sk, false)) return;
    if (recovered) {
      tcp_try_undo_recovery(sk);
      return;
    }
    if (!sk->sack_ok) {
      if (after(sk->snd_nxt, sk->high_seq) && dup) tcp_add_reno_sack(sk, dup);
      else if (advanced) sk->sacked_out = 0;
    } else if (flag & FLAG_FORWARD_PROGRESS) {
      tcp_update_scoreboard(n, sk, false);
    }
    rexmit = 1;
    return;
  } else {
    if (!sk->sack_ok) {
      if (advanced) sk->sacked_out = 0;
      tcp_add_reno_sack(sk, dup);
    }
    if (sk->ca_state <= TCP_CA_Disorder) tcp_try_undo_dsack(sk);
    if (!tcp_time_to_recover(sk)) {
      tcp_try_to_open(sk);
      return;
    }
    tcp_enter_recovery(sk);
    fast = do_lost = true;
  }
  if (do_lost) tcp_update_scoreboard(n, sk, fast);
  rexmit = 1;
}

void tcp_cong_control(tcp_sock* sk, uint32_t ack, uint32_t acked_sacked, uint32_t flag) {
  if (sk->ca_state == TCP_CA_CWR || sk->ca_state == TCP_CA_Recovery) {
    tcp_cwnd_reduction(sk, acked_sacked, flag & FLAG_SND_UNA_ADVANCED);
  } else if (flag & (sk->reordering > sk->params.reordering ? FLAG_FORWARD_PROGRESS : FLAG_DATA_ACKED)) {
    sk->ca_ops->cong_avoid(sk, ack, acked_sacked);
    sk->snd_cwnd_stamp = tcp_now(sk);
  }
}

// RFC 8985 7.4: did the loss probe repair a loss?
void tcp_process_tlp_ack(tcp_sock* sk, uint32_t ack, uint32_t flag) {
  if (before(ack, sk->tlp_high_seq)) return;
  if (!sk->tlp_retrans) {
    sk->tlp_high_seq = 0;
  } else if (flag & FLAG_DSACKING_ACK) {
    sk->tlp_high_seq = 0;   // both copies arrived: no loss
  } else if (after(ack, sk->tlp_high_seq)) {
    tcp_init_cwnd_reduction(sk);
    tcp_set_ca_state(sk, TCP_CA_CWR);
    tcp_end_cwnd_reduction(sk);
    tcp_try_keep_open(sk);
  } else if (!(flag & (FLAG_SND_UNA_ADVANCED | FLAG_NOT_DUP | FLAG_DATA_SACKED))) {
    sk->tlp_high_seq = 0;
  }
}

}  // namespace icepath
