// What an ACK does: frees what it covers, measures the round trip, moves the window, and tells the congestion control
// (RFC 9293 3.10.7.4, RFC 5961 section 5, RFC 6298, RFC 7323). Owner: the stack.
// Always: after tcp_ack, no skb of the retransmit queue ends at or before snd_una.
#include "tcp/tcp_internal.hpp"

namespace icepath {

// RFC 6298 section 2, with alpha 1/8 and beta 1/4. srtt_us is scaled by 8 and rttvar_us by 4.
void tcp_rtt_estimator(tcp_sock* sk, int64_t mrtt_us) {
  const uint32_t r = mrtt_us < 1 ? 1 : static_cast<uint32_t>(mrtt_us);
  if (sk->srtt_us == 0) {          // (2.2): SRTT <- R, RTTVAR <- R/2
    sk->srtt_us = r << 3;
    sk->rttvar_us = r << 1;
  } else {                         // (2.3)
    const int64_t delta = static_cast<int64_t>(r) - (sk->srtt_us >> 3);
    const int64_t mag = delta < 0 ? -delta : delta;
    sk->rttvar_us = static_cast<uint32_t>(static_cast<int64_t>(sk->rttvar_us) + mag - (sk->rttvar_us >> 2));
    sk->srtt_us = static_cast<uint32_t>(static_cast<int64_t>(sk->srtt_us) + delta);
  }
  if (sk->srtt_us == 0) sk->srtt_us = 1;
  sk->mdev_us = sk->rttvar_us;
  if (r < sk->rtt_min_us || tcp_now(sk) - sk->rtt_min_stamp > 300 * sec_ns) {
    sk->rtt_min_us = r;
    sk->rtt_min_stamp = tcp_now(sk);
  }
}

// (2.3) RTO <- SRTT + max(G, K*RTTVAR), the floor being on the variance term so that the RTO always exceeds the RTT by rto_min.
void tcp_set_rto(tcp_sock* sk) {
  const nsec var = nsec{sk->rttvar_us} * usec_ns;
  sk->rto = nsec{sk->srtt_us >> 3} * usec_ns + (var > sk->params.rto_min ? var : sk->params.rto_min);
  if (sk->rto > sk->params.rto_max) sk->rto = sk->params.rto_max;
}

// RFC 6298 (5.2), (5.3).
void tcp_rearm_rto(tcp_sock* sk) {
  if (!sk->packets_out) return tcp_clear_retrans_timer(sk);
  tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, sk->rto);
}

// RFC 7323 4.3 (3): only a segment that reaches back to the last ACK we sent updates TS.Recent.
void tcp_replace_ts_recent(tcp_sock* sk, uint32_t seq) {
  if (!sk->saw_tstamp || after(seq, sk->rcv_wup)) return;
  if (static_cast<int32_t>(sk->rcv_tsval - sk->ts_recent) >= 0 || tcp_now(sk) - sk->ts_recent_stamp > tcp_paws_24days) {
    sk->ts_recent = sk->rcv_tsval;
    sk->ts_recent_stamp = tcp_now(sk);
  }
}

void tcp_sndbuf_expand(tcp_sock* sk) {
  if (sk->sndbuf_locked) return;
  const uint64_t per_mss = uint64_t{sk->mss_cache > sk->mss_clamp ? sk->mss_cache : sk->mss_clamp} + 512 + 256;
  uint32_t segs = sk->snd_cwnd;
  if (segs < sk->params.init_cwnd) segs = sk->params.init_cwnd;
  if (segs < sk->reordering + 1u) segs = sk->reordering + 1u;
  uint64_t mem = 2 * segs * per_mss;
  if (mem > sk->params.sndbuf_max) mem = sk->params.sndbuf_max;
  if (mem > sk->sndbuf) sk->sndbuf = static_cast<uint32_t>(mem);
}

// T11n: writers that ran out of space hear of it once there is enough again.
void tcp_check_space(tcp_sock* sk) {
  if (ICEPATH_LIKELY(!sk->sock_nospace)) return;
  if (!sk->sndbuf_locked && sk->packets_out < sk->snd_cwnd) tcp_sndbuf_expand(sk);
  if (!sk_stream_is_writeable(sk)) return;
  sk->sock_nospace = false;
  if (sk->chrono_type == 3) tcp_chrono_set(sk, sk->packets_out ? 1 : 0);
  if (sk->ops && sk->ops->write_space) sk->ops->write_space(sk);
}

void tcp_unlink_rtx(net& n, tcp_sock* sk, sk_buff* skb) {
  if (sk->retransmit_skb_hint == skb) sk->retransmit_skb_hint = nullptr;
  if (sk->highest_sack == skb) sk->highest_sack = nullptr;
  sk->tcp_rtx_queue.unlink(skb);
  tcp_free_tx_skb(n, sk, skb);
}

// Delivery rate (draft-cheng-iccrg-delivery-rate-estimation): the newest delivered segment gives the sample.
void tcp_rate_skb_delivered(tcp_sock* sk, const sk_buff* skb) {
  if (skb->tstamp > sk->rack_mstamp) sk->rack_mstamp = skb->tstamp;
  if (!skb->cb.delivered_mstamp) return;
  const nsec now = tcp_now(sk);
  const nsec snd = skb->tstamp - skb->cb.first_tx_mstamp, ack = now - skb->cb.delivered_mstamp;
  const uint64_t interval = (snd > ack ? snd : ack) / usec_ns;
  sk->first_tx_mstamp = skb->tstamp;
  if (interval) {
    sk->rate_delivered = sk->delivered - skb->cb.delivered;
    sk->rate_interval_us = interval;
  }
  if (sk->app_limited && after(sk->delivered, sk->app_limited)) sk->app_limited = 0;
}

static void tcp_snd_una_update(tcp_sock* sk, uint32_t ack) {
  sk->bytes_acked += ack - sk->snd_una;
  sk->snd_una = ack;
}

static bool tcp_may_update_window(const tcp_sock* sk, uint32_t ack, uint32_t ack_seq, uint32_t nwin) {
  return after(ack, sk->snd_una) || after(ack_seq, sk->snd_wl1) || (ack_seq == sk->snd_wl1 && (nwin > sk->snd_wnd || !nwin));
}

static uint32_t tcp_ack_update_window(tcp_sock* sk, const sk_buff* skb, const tcp_hdr* th, uint32_t ack) {
  uint32_t flag = 0, nwin = th->window;
  if (!(th->flags & TCPHDR_SYN)) nwin <<= sk->snd_wscale;
  if (tcp_may_update_window(sk, ack, skb->cb.seq, nwin)) {
    flag |= FLAG_WIN_UPDATE;
    sk->snd_wl1 = skb->cb.seq;
    if (sk->snd_wnd != nwin) {
      sk->snd_wnd = nwin;
      sk->pred_flags = 0;
      tcp_fast_path_check(sk);
      if (nwin > sk->max_window) {
        sk->max_window = nwin;
        if (sk->dst) tcp_sync_mss(sk, sk->dst->mtu);
      }
    }
  }
  tcp_snd_una_update(sk, ack);
  return flag;
}

// A TSO skb acknowledged in part: its head goes. Returns the segments acknowledged.
static uint32_t tcp_tso_acked(net& n, tcp_sock* sk, sk_buff* skb) {
  const uint32_t before_segs = tcp_skb_pcount(skb), cut = sk->snd_una - skb->cb.seq, old_true = skb->truesize;
  if (cut > skb->len || !skb_pull_any(n.skbs, skb, cut)) return 0;
  sk->wmem_queued += skb->truesize - old_true;
  skb->cb.seq += cut;
  tcp_set_skb_tso_segs(skb, tcp_skb_mss(skb));
  return before_segs - tcp_skb_pcount(skb);
}

static void tcp_remove_reno_sacks(tcp_sock* sk, uint32_t acked, bool ece) {
  if (acked > 0) {   // one of them was the hole
    sk->delivered += acked > sk->sacked_out ? acked - sk->sacked_out : 0;
    if (acked - 1 >= sk->sacked_out) sk->sacked_out = 0;
    else sk->sacked_out -= acked - 1;
  }
  (void)ece;
}

static uint32_t tcp_clean_rtx_queue(net& n, tcp_sock* sk, uint32_t prior_fack, const tcp_sacktag_state& st, uint32_t flag) {
  const nsec now = n.now;
  nsec first_ackt = 0, last_ackt = 0;
  uint32_t pkts_acked = 0, reord = st.have_reord ? st.reord : sk->snd_una;
  bool have_reord = st.have_reord;
  sk_buff* next;
  for (sk_buff* skb = sk->tcp_rtx_queue.first; skb; skb = next) {
    next = skb->next;
    uint32_t acked = tcp_skb_pcount(skb);
    bool full = true;
    const uint8_t sacked = skb->cb.sacked;
    const uint32_t start = skb->cb.seq;
    if (after(skb->cb.end_seq, sk->snd_una)) {
      if (acked == 1 || !after(sk->snd_una, skb->cb.seq)) break;
      acked = tcp_tso_acked(n, sk, skb);
      if (!acked) break;
      full = false;
    }
    if (sacked & (TCPCB_SACKED_RETRANS | TCPCB_EVER_RETRANS)) {
      if (sacked & TCPCB_SACKED_RETRANS) sk->retrans_out -= acked;
      flag |= FLAG_RETRANS_DATA_ACKED;
    } else if (!(sacked & TCPCB_SACKED_ACKED)) {
      last_ackt = skb->tstamp;
      if (!first_ackt) first_ackt = last_ackt;
      if (!have_reord || before(start, reord)) reord = start;
      have_reord = true;
      if (!after(skb->cb.end_seq, sk->high_seq)) flag |= FLAG_ORIG_SACK_ACKED;
    }
    if (sacked & TCPCB_SACKED_ACKED) sk->sacked_out -= acked;
    else if (sk->sack_ok) sk->delivered += acked;
    if (sacked & TCPCB_LOST) sk->lost_out -= acked;
    tcp_rate_skb_delivered(sk, skb);
    sk->packets_out -= acked;
    pkts_acked += acked;
    if (ICEPATH_LIKELY(!(skb->cb.tcp_flags & TCPHDR_SYN))) {
      flag |= FLAG_DATA_ACKED;
    } else {
      flag |= FLAG_SYN_ACKED;
      sk->retrans_stamp = 0;
    }
    if (!full) break;
    tcp_unlink_rtx(n, sk, skb);
  }
  if (!sk->packets_out) tcp_chrono_set(sk, sk->sock_nospace ? 3 : 0);
  if (sk->urg_mode && between(sk->snd_up, sk->snd_una - 0x7fffffff, sk->snd_una)) sk->urg_mode = false;

  int64_t seq_rtt = -1, ca_rtt = -1;
  if (first_ackt && !(flag & FLAG_RETRANS_DATA_ACKED)) {   // Karn: never from a retransmitted segment
    seq_rtt = now > first_ackt ? static_cast<int64_t>((now - first_ackt) / usec_ns) : 0;   // a clock that went back measures nothing, never 500 years
    ca_rtt = now > last_ackt ? static_cast<int64_t>((now - last_ackt) / usec_ns) : 0;
  }
  int64_t rtt = seq_rtt >= 0 ? seq_rtt : st.sack_rtt_us;
  if (rtt < 0 && sk->saw_tstamp && sk->rcv_tsecr && (flag & FLAG_ACKED)) {   // RFC 7323 section 4.1
    const uint32_t ms = tcp_ts_now(sk) - sk->rcv_tsecr;
    if (ms < 0x7fffffff / 1000) rtt = ms ? static_cast<int64_t>(ms) * 1000 : 1000;
  }
  if (rtt >= 0) {
    tcp_rtt_estimator(sk, rtt);
    tcp_set_rto(sk);
    sk->backoff = 0;   // RFC 6298 section 5: a new measurement ends the backoff
  }
  if (sk->ca_ops->pkts_acked && pkts_acked) sk->ca_ops->pkts_acked(sk, pkts_acked, ca_rtt >= 0 ? ca_rtt : st.sack_rtt_us);
  if (flag & FLAG_ACKED) {
    flag |= FLAG_SET_XMIT_TIMER;
    if (sk->backoff && rtt < 0) {   // progress, though of retransmitted data: the backed-off value must not outlive the trouble
      sk->backoff = 0;
      if (sk->srtt_us) tcp_set_rto(sk);
    }
    if (!sk->sack_ok) {
      tcp_remove_reno_sacks(sk, pkts_acked, false);
    } else if (have_reord && before(reord, prior_fack)) {
      tcp_check_sack_reordering(sk, reord);
    }
  } else if (rtt >= 0 && st.sack_rtt_us >= 0) {
    flag |= FLAG_SET_XMIT_TIMER;
  }
  return flag;
}

static void tcp_ack_probe(tcp_sock* sk) {
  sk_buff* head = tcp_send_head(sk);
  if (!head) return;
  if (!after(head->cb.end_seq, tcp_wnd_end(sk))) {
    sk->backoff = 0;
    sk->probes_tstamp = 0;
    tcp_clear_retrans_timer(sk);
  } else {
    tcp_reset_xmit_timer(sk, ICSK_TIME_PROBE0, tcp_probe0_when(sk));
  }
}

static bool tcp_ack_is_dubious(const tcp_sock* sk, uint32_t flag) {
  return !(flag & FLAG_NOT_DUP) || (flag & (FLAG_DATA_SACKED | FLAG_ECE | FLAG_DSACKING_ACK)) || sk->ca_state != TCP_CA_Open;
}

int tcp_ack(net& n, tcp_sock* sk, const sk_buff* skb, const tcp_hdr* th, const tcp_options_received* o, uint32_t flag) {
  const uint32_t prior_snd_una = sk->snd_una, ack = skb->cb.ack_seq;
  const uint32_t prior_packets = sk->packets_out, prior_delivered = sk->delivered;
  const uint32_t prior_fack = sk->highest_sack ? sk->highest_sack->cb.end_seq : sk->snd_una;
  tcp_sacktag_state st;
  int rexmit = 0;
  if (ICEPATH_UNLIKELY(before(ack, prior_snd_una))) {
    // RFC 5961 5.2: an ACK older than the largest window is a blind guess.
    const uint64_t w = sk->max_window < sk->bytes_acked || sk->bytes_acked > 0x7fffffff ? sk->max_window : sk->bytes_acked;
    if (before(ack, prior_snd_una - static_cast<uint32_t>(w))) {
      if (sk->state != TCP_SYN_RECV) tcp_send_challenge_ack(n, sk);
      return -1;
    }
    if (o && o->num_sacks && sk->sack_ok) {
      flag |= tcp_sacktag_write_queue(n, sk, skb, *o, prior_snd_una, st);
      tcp_fastretrans_alert(n, sk, prior_snd_una, 0, flag, rexmit, sk->delivered - prior_delivered);
      if (rexmit) tcp_xmit_retransmit_queue(n, sk);
    }
    return 0;
  }
  if (ICEPATH_UNLIKELY(after(ack, sk->snd_nxt))) {
    if (sk->state != TCP_SYN_RECV) tcp_send_challenge_ack(n, sk);
    return -1;
  }
  if (after(ack, prior_snd_una)) {
    flag |= FLAG_SND_UNA_ADVANCED;
    sk->retransmits = 0;
  }
  if (flag & FLAG_UPDATE_TS_RECENT) tcp_replace_ts_recent(sk, skb->cb.seq);
  if ((flag & (FLAG_SLOWPATH | FLAG_SND_UNA_ADVANCED)) == FLAG_SND_UNA_ADVANCED) {
    sk->snd_wl1 = skb->cb.seq;   // header prediction: the window is the one we know
    tcp_snd_una_update(sk, ack);
    flag |= FLAG_WIN_UPDATE;
  } else {
    if (skb->cb.seq != skb->cb.end_seq) flag |= FLAG_DATA;
    else net_stat(n, &mib::TcpExtTCPPureAcks);
    flag |= tcp_ack_update_window(sk, skb, th, ack);
    if (o && o->num_sacks && sk->sack_ok) flag |= tcp_sacktag_write_queue(n, sk, skb, *o, prior_snd_una, st);
  }
  sk->err_soft = 0;
  sk->probes_out = 0;
  sk->rcv_tstamp = n.now;
  if (prior_packets) {
    flag = tcp_clean_rtx_queue(n, sk, prior_fack, st, flag);
    if (sk->tlp_high_seq) tcp_process_tlp_ack(sk, ack, flag);
    const uint32_t newly = sk->delivered - prior_delivered;
    if (ICEPATH_UNLIKELY(tcp_ack_is_dubious(sk, flag))) {
      uint32_t dup = 0;
      if (!(flag & (FLAG_SND_UNA_ADVANCED | FLAG_NOT_DUP | FLAG_DSACKING_ACK))) dup = 1;
      tcp_fastretrans_alert(n, sk, prior_snd_una, dup, flag, rexmit, newly);
    }
    if ((flag & FLAG_SET_XMIT_TIMER) && !tcp_schedule_loss_probe(n, sk)) tcp_rearm_rto(sk);
    sk->delivered_mstamp = n.now;
    tcp_cong_control(sk, ack, sk->delivered - prior_delivered, flag);
    if (rexmit) tcp_xmit_retransmit_queue(n, sk);
  } else {
    if (flag & FLAG_DSACKING_ACK) tcp_fastretrans_alert(n, sk, prior_snd_una, 0, flag, rexmit, 0);
    tcp_ack_probe(sk);
    if (sk->tlp_high_seq) tcp_process_tlp_ack(sk, ack, flag);
  }
  return 1;
}

}  // namespace icepath
