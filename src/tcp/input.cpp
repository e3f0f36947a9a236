// Segments from IP: demultiplexing, header prediction (Van Jacobson), the established path, acceptability (RFC 9293 3.10.7.4, RFC 5961,
// RFC 7323 section 5). Owner: the stack. tcp_v4_rcv consumes the skb in every case; below it, whoever takes an skb says so.
#include "tcp/tcp_internal.hpp"

namespace icepath {

void tcp_take_lane_option(tcp_sock* sk, uint8_t v) {
  if (v == 0 || v == sk->lane_opt_rx) return;
  sk->lane_opt_rx = v;
  if (sk->ops && sk->ops->lane_option) sk->ops->lane_option(sk, v);
}

void tcp_fast_path_on(tcp_sock* sk) {
  sk->pred_flags = (uint32_t{sk->tcp_header_len} << 26) | (uint32_t{TCPHDR_ACK} << 16) | ((sk->snd_wnd >> sk->snd_wscale) & 0xffff);
}

void tcp_fast_path_check(tcp_sock* sk) {
  if (sk->out_of_order_queue.empty() && sk->rcv_wnd && sk->rmem_alloc < sk->rcvbuf && !sk->urg_data &&
      !(sk->snd_wnd & ((1u << sk->snd_wscale) - 1)))
    tcp_fast_path_on(sk);
}

// Options of a segment of a synchronized connection: nothing, or exactly our timestamp, or the long way.
bool tcp_fast_parse_options(tcp_sock* sk, const tcp_hdr* th, tcp_options_received& o) {
  sk->saw_tstamp = false;
  if (th->doff() == sizeof(tcp_hdr)) return false;
  tcp_parse_options(th, o);
  if (o.saw_tstamp && sk->tstamp_ok) {
    sk->saw_tstamp = true;
    sk->rcv_tsval = o.rcv_tsval;
    sk->rcv_tsecr = o.rcv_tsecr ? o.rcv_tsecr : 0;
  }
  if (ICEPATH_UNLIKELY(o.lane)) tcp_take_lane_option(sk, o.lane);
  return true;
}

// RFC 5961 section 10 and the kernel's tcp_invalid_ratelimit: at most one answer per half second to segments without data.
bool tcp_oow_rate_limited(net& n, nsec* last) {
  if (*last && n.now - *last < 500 * msec_ns) return true;
  *last = n.now;
  return false;
}

void tcp_send_challenge_ack(net& n, tcp_sock* sk) {
  if (tcp_oow_rate_limited(n, &sk->last_oow_ack_time)) return;
  tcp_table* t = n.tcp;
  if (n.now - t->challenge_stamp >= sec_ns) {
    t->challenge_stamp = n.now;
    t->challenge_count = 0;
  }
  if (t->challenge_count++ >= t->challenge_limit) return;
  net_stat(n, &mib::TcpExtTCPChallengeACK);
  tcp_send_ack(n, sk);
}

void tcp_data_snd_check(net& n, tcp_sock* sk) {
  if (sk->freed || sk->state == TCP_CLOSE) return;
  if (tcp_send_head(sk)) tcp_push_pending_frames(n, sk);
  tcp_check_space(sk);
}

// RFC 1122 4.2.3.2, RFC 5681 4.2: at once for the second full segment, a filled or new gap, in quickack mode; else delayed.
void tcp_ack_snd_check(net& n, tcp_sock* sk) {
  if (!(sk->ack.pending & (ACK_SCHED | ACK_NOW)) || sk->state == TCP_CLOSE) return;
  if ((sk->rcv_nxt - sk->rcv_wup > sk->ack.rcv_mss &&
       (sk->rcv_nxt - sk->copied_seq < static_cast<uint32_t>(sk->rcvlowat) || tcp_select_window_raw(sk) >= sk->rcv_wnd)) ||
      tcp_in_quickack_mode(sk) || (sk->ack.pending & ACK_NOW) || !sk->out_of_order_queue.empty() || sk->dsack_pending)
    tcp_send_ack(n, sk);
  else
    tcp_send_delayed_ack(n, sk);
}

static void tcp_send_dupack(net& n, tcp_sock* sk, const sk_buff* skb) {
  if (skb->cb.end_seq != skb->cb.seq && before(skb->cb.seq, sk->rcv_nxt)) {
    net_stat(n, &mib::TcpExtDelayedACKLost);
    tcp_enter_quickack_mode(sk, tcp_max_quickacks);
    if (sk->sack_ok) tcp_dsack_set(sk, skb->cb.seq, after(skb->cb.end_seq, sk->rcv_nxt) ? sk->rcv_nxt : skb->cb.end_seq);
  }
  tcp_send_ack(n, sk);
}

// RFC 7323 5.3 R1, with the exception for a harmlessly reordered pure ACK.
static bool tcp_paws_discard(const tcp_sock* sk, const sk_buff* skb, const tcp_hdr* th) {
  if (static_cast<int32_t>(sk->ts_recent - sk->rcv_tsval) <= 0) return false;
  if (tcp_now(sk) - sk->ts_recent_stamp > tcp_paws_24days) return false;   // 5.5: too long idle to compare
  const bool pure_ack = skb->cb.seq == skb->cb.end_seq && skb->cb.seq == sk->rcv_nxt;
  if (pure_ack && (th->flags & TCPHDR_ACK) && skb->cb.ack_seq == sk->snd_una &&
      static_cast<int32_t>(sk->ts_recent - sk->rcv_tsval) <= static_cast<int32_t>(sk->rto / msec_ns))
    return false;
  return true;
}

// False: not acceptable; whatever had to be answered was. The caller frees skb.
bool tcp_validate_incoming(net& n, tcp_sock* sk, sk_buff* skb, const tcp_hdr* th, bool syn_inerr) {
  const bool rst = th->flags & TCPHDR_RST, syn = th->flags & TCPHDR_SYN;
  if (sk->saw_tstamp && tcp_paws_discard(sk, skb, th) && !rst) {
    net_stat(n, &mib::TcpExtPAWSEstab);
    if (!tcp_oow_rate_limited(n, &sk->last_oow_ack_time)) tcp_send_dupack(n, sk, skb);
    return false;
  }
  if (before(skb->cb.end_seq, sk->rcv_wup) || after(skb->cb.seq, sk->rcv_nxt + tcp_receive_window(sk))) {
    if (rst) {
      // A RST that answers our FIN may be one number behind (the kernel accepts it too).
      if (skb->cb.seq == sk->rcv_nxt - 1 && tcp_in_state(sk, tcpf(TCP_CLOSE_WAIT) | tcpf(TCP_LAST_ACK) | tcpf(TCP_CLOSING))) tcp_reset(n, sk);
      return false;
    }
    if (syn) {
      if (syn_inerr) net_stat(n, &mib::TcpInErrs);
      net_stat(n, &mib::TcpExtTCPSYNChallenge);
      tcp_send_challenge_ack(n, sk);
    } else if (skb->cb.seq != skb->cb.end_seq || !tcp_oow_rate_limited(n, &sk->last_oow_ack_time)) {
      tcp_send_dupack(n, sk, skb);   // data is always answered: it may be a retransmission
    }
    return false;
  }
  if (rst) {   // RFC 5961 3.2
    bool ok = skb->cb.seq == sk->rcv_nxt;
    for (unsigned i = 0; !ok && i < sk->num_sacks; ++i) ok = skb->cb.seq == sk->selective_acks[i].end_seq;
    if (ok) tcp_reset(n, sk);
    else tcp_send_challenge_ack(n, sk);
    return false;
  }
  if (syn) {   // RFC 5961 4.2; a SYN-ACK that completes a simultaneous open passes
    if (sk->state == TCP_SYN_RECV && (th->flags & TCPHDR_ACK) && skb->cb.seq + 1 == sk->rcv_nxt && skb->cb.ack_seq == sk->snd_nxt) return true;
    if (syn_inerr) net_stat(n, &mib::TcpInErrs);
    net_stat(n, &mib::TcpExtTCPSYNChallenge);
    tcp_send_challenge_ack(n, sk);
    return false;
  }
  return true;
}

void tcp_urg(net& n, tcp_sock* sk, sk_buff* skb, const tcp_hdr* th) {   // skb->data at the TCP header
  (void)n;
  if (ICEPATH_LIKELY(!(th->flags & TCPHDR_URG) && sk->urg_data != TCP_URG_NOTYET)) return;
  if (th->flags & TCPHDR_URG) {
    uint32_t ptr = th->urg_ptr;
    if (ptr) --ptr;   // RFC 6093: the pointer means the byte after
    ptr += skb->cb.seq;
    if (!after(sk->copied_seq, ptr) && !before(ptr, sk->rcv_nxt) && !(sk->urg_data && !after(ptr, sk->urg_seq))) {
      if (sk->urg_seq == sk->copied_seq && sk->urg_data && !sk->urginline && sk->copied_seq != sk->rcv_nxt) {
        const sk_buff* first = sk->sk_receive_queue.first;
        ++sk->copied_seq;   // the earlier urgent byte was not fetched and is skipped
        if (first && !before(sk->copied_seq, first->cb.seq + first->len)) {
          sk_buff* gone = sk->sk_receive_queue.pop_front();
          sk->rmem_alloc -= gone->truesize;
          sk->nt->skbs.free(gone);
        }
      }
      sk->urg_data = TCP_URG_NOTYET;
      sk->urg_seq = ptr;
      sk->pred_flags = 0;
    }
  }
  if (sk->urg_data == TCP_URG_NOTYET) {
    const uint32_t off = sk->urg_seq - skb->cb.seq + th->doff();
    if (off < skb->len) {
      uint8_t b;
      skb_copy_bits(skb, off, &b, 1);
      sk->urg_data = static_cast<uint16_t>(TCP_URG_VALID | b);
      if (sk->ops && sk->ops->data_ready) sk->ops->data_ready(sk);
    }
  }
}

static uint32_t flag_word(const tcp_hdr* th) {
  uint32_t v;
  std::memcpy(&v, reinterpret_cast<const uint8_t*>(th) + 12, 4);
  return __builtin_bswap32(v);
}

// skb->data at the TCP header; consumed.
void tcp_rcv_established(net& n, tcp_sock* sk, sk_buff* skb, tcp_hdr* th) {
  const uint32_t hdr = th->doff();
  if (ICEPATH_LIKELY((flag_word(th) & ~(uint32_t{TCPHDR_PSH} << 16)) == sk->pred_flags && skb->cb.seq == sk->rcv_nxt && !after(skb->cb.ack_seq, sk->snd_nxt))) {
    bool fast = true;
    sk->saw_tstamp = false;
    if (hdr == sizeof(tcp_hdr) + 12) {
      uint32_t w[3];
      std::memcpy(w, th + 1, 12);
      if (w[0] == __builtin_bswap32(0x0101080a)) {
        sk->saw_tstamp = true;
        sk->rcv_tsval = __builtin_bswap32(w[1]);
        sk->rcv_tsecr = __builtin_bswap32(w[2]);
        if (static_cast<int32_t>(sk->rcv_tsval - sk->ts_recent) < 0) fast = false;   // PAWS is decided on the slow path
      } else {
        fast = false;
      }
    }
    const uint32_t len = skb->len - hdr;
    if (fast && len == 0) {
      if (sk->saw_tstamp && sk->rcv_nxt == sk->rcv_wup) {
        sk->ts_recent = sk->rcv_tsval;
        sk->ts_recent_stamp = n.now;
      }
      net_stat(n, &mib::TcpExtTCPHPHits);
      tcp_ack(n, sk, skb, th, nullptr, 0);
      n.skbs.free(skb);
      tcp_data_snd_check(n, sk);
      return;
    }
    if (fast && len <= tcp_receive_window(sk) && tcp_try_rmem(n, sk, skb, true)) {
      if (sk->saw_tstamp) {
        if (sk->rcv_nxt == sk->rcv_wup) {
          sk->ts_recent = sk->rcv_tsval;
          sk->ts_recent_stamp = n.now;
        }
        tcp_rcv_rtt_measure_ts(sk, skb);
      }
      net_stat(n, &mib::TcpExtTCPHPHits);
      skb_pull(skb, hdr);
      const uint32_t ack = skb->cb.ack_seq;
      tcp_event_data_recv(n, sk, skb);
      if (ack != sk->snd_una) tcp_ack(n, sk, skb, th, nullptr, FLAG_DATA);
      tcp_queue_rcv(n, sk, skb);
      tcp_data_snd_check(n, sk);
      if (sk->ack.pending & ACK_SCHED) tcp_ack_snd_check(n, sk);
      tcp_data_ready(sk);
      return;
    }
  }
  tcp_options_received o;
  tcp_fast_parse_options(sk, th, o);
  if (!tcp_validate_incoming(n, sk, skb, th, true) || !(th->flags & TCPHDR_ACK) ||
      tcp_ack(n, sk, skb, th, &o, FLAG_SLOWPATH | FLAG_UPDATE_TS_RECENT) < 0)
    return n.skbs.free(skb);
  if (sk->saw_tstamp) tcp_rcv_rtt_measure_ts(sk, skb);
  tcp_urg(n, sk, skb, th);
  skb_pull(skb, hdr);
  tcp_data_queue(n, sk, skb);
  if (sk->freed) return;
  tcp_data_snd_check(n, sk);
  tcp_ack_snd_check(n, sk);
}

void tcp_v4_rcv(net& n, sk_buff* skb) {
  net_stat(n, &mib::TcpInSegs, skb->gso_segs > 1 ? skb->gso_segs : 1);
  if (skb->headlen() < sizeof(tcp_hdr) && (skb->len < sizeof(tcp_hdr) || !skb_pull_head(n.skbs, skb, sizeof(tcp_hdr)))) {
    net_stat(n, &mib::TcpInErrs);
    return n.skbs.free(skb);
  }
  tcp_hdr* th = reinterpret_cast<tcp_hdr*>(skb->data);
  const uint32_t hdr = th->doff();
  if (hdr < sizeof(tcp_hdr) || hdr > skb->len || (skb->headlen() < hdr && !skb_pull_head(n.skbs, skb, hdr))) {
    net_stat(n, &mib::TcpInErrs);
    return n.skbs.free(skb);
  }
  th = reinterpret_cast<tcp_hdr*>(skb->data);
  be32 src, dst;
  std::memcpy(&src, skb->network() + 12, 4);
  std::memcpy(&dst, skb->network() + 16, 4);
  const four_tuple t{inet_addr::v4(dst), inet_addr::v4(src), th->dest, th->source};
  if (skb->ip_summed != ip_sum::unnecessary && skb->ip_summed != ip_sum::partial && !tcp_checksum_ok(skb, t)) {
    net_stat(n, &mib::TcpInCsumErrors);
    net_stat(n, &mib::TcpInErrs);
    return n.skbs.free(skb);
  }
  const uint32_t len = skb->len - hdr;
  skb->cb = {};
  skb->cb.seq = th->seq;
  skb->cb.end_seq = skb->cb.seq + len + ((th->flags & TCPHDR_SYN) ? 1 : 0) + ((th->flags & TCPHDR_FIN) ? 1 : 0);
  skb->cb.ack_seq = th->ack_seq;
  skb->cb.tcp_flags = th->flags;
  sock_common* c = tcp_lookup(n, t);
  if (ICEPATH_UNLIKELY(!c && n.tcp->unmatched_syn && (th->flags & (TCPHDR_SYN | TCPHDR_ACK | TCPHDR_RST)) == TCPHDR_SYN)) {
    c = n.tcp->unmatched_syn(n, t);   // prepared by tcp_expect, or not wanted now: the SYN is sent again
    if (!c) return n.skbs.free(skb);
  }
  if (ICEPATH_UNLIKELY(c && c->is_tw)) return tcp_timewait_rcv(n, static_cast<tcp_timewait_sock*>(c), skb, th, t);
  if (ICEPATH_LIKELY(c != nullptr)) {
    tcp_sock* sk = tcp_sk(c);
    sk->segs_in += skb->gso_segs > 1 ? skb->gso_segs : 1;
    if (len) sk->data_segs_in += skb->gso_segs > 1 ? skb->gso_segs : 1;
    if (ICEPATH_LIKELY(sk->state == TCP_ESTABLISHED)) return tcp_rcv_established(n, sk, skb, th);
    return tcp_rcv_state_process(n, sk, skb, th);
  }
  if (tcp_sock* l = tcp_lookup_listener(n, t.saddr, t.sport)) return tcp_listen_rcv(n, l, skb, th, t);
  if (n.wire && skb->dev == n.wire) {   // the interface is shared: only the kernel knows that nobody has it
    if (n.tcp->foreign) n.tcp->foreign(n, skb);
    return n.skbs.free(skb);
  }
  dst_entry* back = ip_route_back(n, skb);
  tcp_send_reset(n, t, th, len, back);
  if (back) dst_release(n, back);
  n.skbs.free(skb);
}

}  // namespace icepath
