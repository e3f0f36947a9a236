// From the write queue to IP: tcp_write_xmit decides what may go (T15), tcp_transmit_skb builds the segment (T16). Owner: the stack.
// Always: an skb is on sk_write_queue until its first transmission succeeded, then on tcp_rtx_queue until it is acknowledged; what goes
// down is a clone that shares its frames. When the layers below refuse, the skb stays where it was and a timer or an ACK tries again.
#include "ip/ip.hpp"
#include "tcp/tcp_internal.hpp"

namespace icepath {

// Tx completion of a charged clone (T16, T32). Only bookkeeping: what may be sent now is sent by tcp_tsq_run.
void tcp_wfree(sk_buff* skb) {
  tcp_sock* sk = skb->sk;
  net& n = *sk->nt;
  skb->sk = nullptr;
  sk->wmem_alloc -= skb->truesize < sk->wmem_alloc ? skb->truesize : sk->wmem_alloc;
  if (--sk->wmem_skbs == 0) {
    sk->wmem_alloc = 0;
    if (ICEPATH_UNLIKELY(sk->freed)) return tcp_sk_put_back(n, sk);
  }
  if (ICEPATH_UNLIKELY(sk->tsq_throttled) && !sk->freed && !sk->tsq_node.linked()) {
    n.tcp->tsq.push_back(sk->tsq_node);
    tcp_arm_tsq(n);
  }
}

void tcp_tsq_run(net& n) {
  tcp_table* t = n.tcp;
  while (!t->tsq.empty()) {
    tcp_sock* sk = list_entry<tcp_sock, &tcp_sock::tsq_node>(t->tsq.next);
    sk->tsq_node.unlink();
    sk->tsq_throttled = false;
    if (!tcp_in_state(sk, tcpf(TCP_ESTABLISHED) | tcpf(TCP_FIN_WAIT1) | tcpf(TCP_CLOSING) | tcpf(TCP_CLOSE_WAIT) | tcpf(TCP_LAST_ACK)))
      continue;
    if (sk->lost_out > sk->retrans_out && sk->snd_cwnd > tcp_packets_in_flight(sk)) tcp_xmit_retransmit_queue(n, sk);
    tcp_push_pending(n, sk, tcp_current_mss(sk), sk->nonagle);
  }
}

bool tcp_route(net& n, tcp_sock* sk) {
  if (ICEPATH_LIKELY(sk->dst && (sk->dst_pinned || dst_valid(sk->dst)))) return true;
  dst_entry* d = ip_route_output(n, sk->tuple.daddr, sk->tuple.saddr);
  if (!d) return false;
  const uint32_t old_mtu = sk->dst ? sk->dst->mtu : d->mtu;
  if (sk->dst) dst_release(n, sk->dst);
  sk->dst = d;
  if (d->mtu != old_mtu) tcp_sync_mss(sk, d->mtu);
  return true;
}

void tcp_set_skb_tso_segs(sk_buff* skb, uint32_t mss_now) {
  skb->cb.tcp_gso_size = static_cast<uint16_t>(mss_now);
  skb->cb.tcp_gso_segs = skb->len <= mss_now ? 1 : static_cast<uint16_t>((skb->len + mss_now - 1) / mss_now);
}

void tcp_adjust_pcount(tcp_sock* sk, const sk_buff* skb, int decr) {
  const uint32_t d = static_cast<uint32_t>(decr);
  sk->packets_out -= d;
  if (skb->cb.sacked & TCPCB_SACKED_ACKED) sk->sacked_out -= d;
  if (skb->cb.sacked & TCPCB_SACKED_RETRANS) sk->retrans_out -= d;
  if (skb->cb.sacked & TCPCB_LOST) sk->lost_out -= d;
  if (!sk->sack_ok && sk->sacked_out && decr > 0) sk->sacked_out -= sk->sacked_out < d ? sk->sacked_out : d;
}

// Cuts skb at `len`; the rest follows it in the same queue. false: no memory, nothing changed.
bool tcp_fragment(net& n, tcp_sock* sk, sk_buff_head& q, sk_buff* skb, uint32_t len, uint32_t mss_now) {
  const uint32_t old_true = skb->truesize;
  sk_buff* rest = skb_split(n.skbs, skb, len);
  if (!rest) return false;
  sk->wmem_queued += skb->truesize + rest->truesize - old_true;
  const int old_factor = static_cast<int>(tcp_skb_pcount(skb));
  const bool sent = &q == &sk->tcp_rtx_queue;
  rest->cb = skb->cb;
  rest->cb.seq = skb->cb.seq + len;
  skb->cb.end_seq = rest->cb.seq;
  skb->cb.tcp_flags &= static_cast<uint8_t>(~(TCPHDR_FIN | TCPHDR_PSH));
  skb->cb.eor = 0;
  rest->tstamp = skb->tstamp;
  rest->priority = skb->priority;
  tcp_set_skb_tso_segs(skb, mss_now);
  tcp_set_skb_tso_segs(rest, mss_now);
  if (sent) {
    const int diff = old_factor - static_cast<int>(tcp_skb_pcount(skb)) - static_cast<int>(tcp_skb_pcount(rest));
    if (diff) tcp_adjust_pcount(sk, skb, diff);
    if (sk->highest_sack == skb && (skb->cb.sacked & TCPCB_SACKED_ACKED)) sk->highest_sack = rest;
  }
  q.insert_after(skb, rest);
  return true;
}

// RFC 9293 3.7.1, RFC 6691: what the path and the peer allow, less the options every segment carries.
void tcp_sync_mss(tcp_sock* sk, uint32_t pmtu) {
  uint32_t mss = pmtu > 40 + tcp_min_mss ? pmtu - 40 : tcp_min_mss;
  if (mss > sk->mss_clamp) mss = sk->mss_clamp;
  mss -= sk->tcp_header_len - 20u;
  if (mss < tcp_min_mss) mss = tcp_min_mss;
  // RFC 9293 3.8.6.2.1: not more than half of the largest window seen, or small windows would stall.
  if (sk->max_window) {
    const uint32_t half = sk->max_window > 536 ? sk->max_window >> 1 : sk->max_window;
    if (mss > half) mss = half > tcp_min_mss ? half : tcp_min_mss;
  }
  sk->mss_cache = static_cast<uint16_t>(mss);
  const net_device* dev = sk->dst ? sk->dst->dev : nullptr;
  uint32_t segs = 1;
  if (dev && (dev->features & (NETIF_F_TSO | NETIF_F_SG))) {
    uint32_t max = dev->gso_max_size < 65536 ? dev->gso_max_size : 65536;
    max = max > 128 ? max - 128 : 0;   // IP and TCP headers are inside the 64 KiB
    const uint32_t room = (max_skb_frags - 1) << frame_shift;
    segs = (max < room ? max : room) / mss;
    if (segs > dev->gso_max_segs) segs = dev->gso_max_segs;
    if (segs < 1) segs = 1;
  }
  sk->gso_segs_max = static_cast<uint16_t>(segs);
}

uint32_t tcp_current_mss(tcp_sock* sk) {
  uint32_t mss = sk->mss_cache;
  if (ICEPATH_UNLIKELY(sk->lane_opt_tx || sk->num_sacks || sk->dsack_pending)) {
    const uint32_t extra = tcp_established_options_len(sk);
    mss = mss > extra + tcp_min_mss ? mss - extra : tcp_min_mss;
  }
  return mss;
}

// T11h. OOB data is sent in single segments so that the urgent pointer fits.
uint32_t tcp_send_mss(tcp_sock* sk, uint32_t* size_goal, int flags) {
  const uint32_t mss = tcp_current_mss(sk);
  uint32_t goal = mss;
  if (!(flags & MSG_OOB)) {
    goal = mss * sk->gso_segs_max;
    const uint32_t half = sk->max_window >> 1;   // keep the peer's window in at least two pieces
    if (goal > half && half >= mss) goal = half / mss * mss;
  }
  *size_goal = goal > mss ? goal : mss;
  return mss;
}

static void tcp_event_data_sent(tcp_sock* sk, nsec now) {
  if (sk->packets_out == 0 && sk->lsndtime && now - sk->lsndtime > sk->rto) tcp_cwnd_restart(sk, now - sk->lsndtime);
  if (sk->packets_out == 0 && sk->ca_ops->cwnd_event) sk->ca_ops->cwnd_event(sk, true);
  sk->lsndtime = now;
  if (now - sk->ack.lrcvtime < sk->ack.ato && sk->ack.pingpong < 3) ++sk->ack.pingpong;
}

// skb: data at the payload. clone_it: the caller keeps skb; else it is consumed in every case. 0 or -errno.
int tcp_transmit_skb(net& n, tcp_sock* sk, sk_buff* skb, bool clone_it) {
  sk_buff* out = skb;
  if (ICEPATH_UNLIKELY(!tcp_route(n, sk))) {
    if (!clone_it) n.skbs.free(skb);
    return -EHOSTUNREACH;
  }
  if (clone_it) {
    skb->cb.tx_in_flight = tcp_packets_in_flight(sk);
    skb->cb.delivered = sk->delivered;
    if (!sk->packets_out) sk->first_tx_mstamp = sk->delivered_mstamp = n.now;
    skb->cb.first_tx_mstamp = sk->first_tx_mstamp;
    skb->cb.delivered_mstamp = sk->delivered_mstamp;
    skb->cb.is_app_limited = sk->app_limited != 0;
    skb->tstamp = n.now;
    out = n.skbs.clone(skb);
    if (ICEPATH_UNLIKELY(!out)) return -ENOBUFS;
  }
  const uint8_t flags = skb->cb.tcp_flags;
  uint8_t opt[48];
  const unsigned optlen = ICEPATH_UNLIKELY(flags & TCPHDR_SYN) ? tcp_syn_options(sk, flags & TCPHDR_ACK, opt) : tcp_established_options(sk, skb, opt);
  const uint32_t payload = skb->len, hdr = 20 + optlen;
  tcp_hdr* th = reinterpret_cast<tcp_hdr*>(skb_push(out, hdr));
  skb_reset_transport(out);
  th->source.set(sk->tuple.sport);
  th->dest.set(sk->tuple.dport);
  th->seq.set(skb->cb.seq);
  th->ack_seq.set(sk->rcv_nxt);
  th->doff_res = static_cast<uint8_t>(hdr << 2);
  const uint32_t segs = tcp_skb_pcount(skb);
  th->flags = static_cast<uint8_t>(flags | (segs > 1 ? TCPHDR_PSH : 0));
  if (!(flags & TCPHDR_ACK)) th->ack_seq.set(0);
  if (ICEPATH_UNLIKELY(flags & TCPHDR_SYN)) th->window.set(static_cast<uint16_t>(sk->rcv_wnd < 65535 ? sk->rcv_wnd : 65535));
  else if (flags & TCPHDR_RST) th->window.set(static_cast<uint16_t>(sk->rcv_wnd >> sk->rcv_wscale));
  else th->window.set(static_cast<uint16_t>(tcp_select_window(sk)));
  th->urg_ptr.set(0);
  if (ICEPATH_UNLIKELY(sk->urg_mode && before(skb->cb.seq, sk->snd_up))) {
    const uint32_t up = sk->snd_up - skb->cb.seq;
    th->urg_ptr.set(static_cast<uint16_t>(up < 0xffff ? up : 0xffff));
    th->flags |= TCPHDR_URG;
  }
  std::memcpy(th + 1, opt, optlen);
  th->check.raw = 0;   // IP puts the pseudo header's sum here
  out->ip_summed = ip_sum::partial;
  out->csum_start = out->transport_header;
  out->csum_offset = offsetof(tcp_hdr, check);
  out->gso_size = segs > 1 ? skb->cb.tcp_gso_size : 0;
  out->gso_segs = segs > 1 ? static_cast<uint16_t>(segs) : 0;
  out->hash = static_cast<uint32_t>(sk->hash);
  out->priority = sk->priority;
  out->mark = sk->mark;
  if (flags & TCPHDR_ACK) {   // T16: this segment carries the ACK, nothing is owed any more
    sk->ack.pending = 0;
    if (sk->ack.quick) sk->ack.quick = static_cast<uint8_t>(sk->ack.quick > segs ? sk->ack.quick - segs : 0);
    sk->delack_timer.deadline = 0;
  }
  sk->segs_out += segs;
  net_stat(n, &mib::TcpOutSegs, segs);
  if (payload) {
    tcp_event_data_sent(sk, n.now);
    sk->data_segs_out += segs;
    sk->bytes_sent += payload;
    net_stat(n, &mib::TxBytes, payload);
  }
  if (clone_it) {
    out->sk = sk;
    out->destructor = tcp_wfree;
    sk->wmem_alloc += out->truesize;
    ++sk->wmem_skbs;
  }
  const ip_params p{sk->tuple.saddr, sk->tuple.daddr, sk->tos, sk->ttl, 6, true};
  const int err = ip_queue_xmit(n, sk->dst, p, out);
  if (ICEPATH_UNLIKELY(err)) {
    if (err == -ENOBUFS) tcp_enter_cwr(sk);                        // local congestion (T16)
    else if (err == -EMSGSIZE) tcp_sync_mss(sk, sk->dst->mtu);     // the path got narrower: the next try is cut anew
  }
  return err;
}

static void tcp_event_new_data_sent(tcp_sock* sk, sk_buff* skb) {
  const uint32_t prior = sk->packets_out;
  sk->snd_nxt = skb->cb.end_seq;
  sk->sk_write_queue.unlink(skb);
  sk->tcp_rtx_queue.push_back(skb);
  sk->packets_out += tcp_skb_pcount(skb);
  if (!prior || sk->icsk_pending == ICSK_TIME_LOSS_PROBE) tcp_rearm_rto(sk);
}

// RFC 896 with Minshall's change: only a small segment of ours in flight holds back another small one.
static bool tcp_nagle_check(const tcp_sock* sk, bool partial, uint8_t nonagle) {
  if (!partial) return false;
  if (nonagle & TCP_NAGLE_CORK) return true;
  return !nonagle && sk->packets_out && after(sk->snd_sml, sk->snd_una) && !after(sk->snd_sml, sk->snd_nxt);
}
static bool tcp_nagle_test(const tcp_sock* sk, const sk_buff* skb, uint32_t mss, uint8_t nonagle) {
  if (nonagle & TCP_NAGLE_PUSH) return true;
  if (sk->urg_mode || (skb->cb.tcp_flags & TCPHDR_FIN)) return true;
  return !tcp_nagle_check(sk, skb->len < mss, nonagle);
}

static uint32_t tcp_mss_split_point(const tcp_sock* sk, const sk_buff* skb, uint32_t mss, uint32_t max_segs, uint8_t nonagle) {
  const uint32_t window = tcp_wnd_end(sk) - skb->cb.seq, max_len = mss * max_segs;
  if (max_len <= window && !tcp_skb_is_last(skb)) return max_len;
  const uint32_t needed = skb->len < window ? skb->len : window;
  if (max_len <= needed) return max_len;
  const uint32_t partial = needed % mss;
  // The last bytes wait when Nagle says so, or when the window cuts the segment.
  if (needed < skb->len || tcp_nagle_check(sk, partial != 0, nonagle)) return needed >= mss ? needed - partial : needed;
  return needed;
}

// Waiting for a larger burst pays when an ACK is about to open more room.
static bool tcp_tso_should_defer(tcp_sock* sk, sk_buff* skb, uint32_t mss, bool* cwnd_lim, bool* rwnd_lim, uint32_t max_segs) {
  if (sk->ca_state >= TCP_CA_Recovery) return false;
  if (tcp_now(sk) - sk->lsndtime > msec_ns) return false;
  const uint32_t in_flight = tcp_packets_in_flight(sk);
  const uint32_t send_win = tcp_wnd_end(sk) - skb->cb.seq;
  const uint64_t cong_win64 = uint64_t{sk->snd_cwnd - in_flight} * mss;
  const uint32_t cong_win = cong_win64 > 0x7fffffff ? 0x7fffffff : static_cast<uint32_t>(cong_win64);
  const uint32_t limit = send_win < cong_win ? send_win : cong_win;
  if (limit >= max_segs * mss) return false;
  if (!tcp_skb_is_last(skb) && limit >= skb->len) return false;
  const uint64_t cw = uint64_t{sk->snd_cwnd} * mss;
  if (limit >= (sk->snd_wnd < cw ? sk->snd_wnd : cw) / 3) return false;
  const sk_buff* head = sk->tcp_rtx_queue.first;
  if (!head) return false;
  if (tcp_now(sk) - head->tstamp > (nsec{sk->srtt_us >> 3} * usec_ns) / 2) return false;
  if (cong_win < send_win) {
    if (cong_win <= skb->len) return *cwnd_lim = true;
  } else if (send_win <= skb->len) {
    return *rwnd_lim = true;
  }
  return !(skb->cb.tcp_flags & TCPHDR_FIN) && !skb->cb.eor;
}

// T15, TSQ: not more than a bounded amount below the socket; Tx completion lets it go on.
static bool tcp_small_queue_check(tcp_sock* sk, const sk_buff* skb) {
  const uint32_t two = 2 * skb->truesize, limit = sk->params.tsq_limit_min > two ? sk->params.tsq_limit_min : two;
  if (ICEPATH_LIKELY(sk->wmem_alloc <= limit) || sk->tcp_rtx_queue.empty()) return false;
  sk->tsq_throttled = true;
  return true;
}

// T15 "growing the head buffer": small linear successors join the head while they fit, so that what waited leaves together.
static void tcp_grow_head(net& n, tcp_sock* sk, sk_buff* skb, uint32_t goal) {
  while (skb->next && !skb->cb.eor && skb->len < goal) {
    sk_buff* next = skb->next;
    if (next->data_len || next->len == 0 || next->len > 1024 || next->len > skb->tailroom() || skb->len + next->len > goal) return;
    if ((next->cb.tcp_flags & (TCPHDR_FIN | TCPHDR_SYN)) || skb_fclone_busy(skb)) return;
    std::memcpy(skb_put(skb, next->len), next->data, next->len);
    skb->cb.end_seq = next->cb.end_seq;
    skb->cb.tcp_flags |= next->cb.tcp_flags;
    skb->cb.eor = next->cb.eor;
    sk->sk_write_queue.unlink(next);
    tcp_free_tx_skb(n, sk, next);
    skb->cb.tcp_gso_segs = 0;
  }
}

bool tcp_write_xmit(net& n, tcp_sock* sk, uint32_t mss_now, uint8_t nonagle, int push_one) {
  uint32_t sent = 0;
  bool cwnd_limited = false, rwnd_limited = false;
  const uint32_t max_segs = sk->gso_segs_max;
  while (sk_buff* skb = tcp_send_head(sk)) {
    if (ICEPATH_UNLIKELY(skb->next != nullptr && skb->len < mss_now)) tcp_grow_head(n, sk, skb, mss_now);
    if (skb->cb.tcp_gso_segs == 0 || skb->cb.tcp_gso_size != mss_now || skb->len > mss_now) tcp_set_skb_tso_segs(skb, mss_now);
    const uint32_t in_flight = tcp_packets_in_flight(sk);
    uint32_t quota = in_flight >= sk->snd_cwnd ? 0 : sk->snd_cwnd - in_flight;
    if (!quota) {
      if (push_one != 2) { cwnd_limited = true; break; }
      quota = 1;   // a loss probe
    }
    const uint32_t first_end = skb->len > mss_now ? skb->cb.seq + mss_now : skb->cb.end_seq;
    if (after(first_end, tcp_wnd_end(sk))) { rwnd_limited = true; break; }
    if (tcp_skb_pcount(skb) == 1) {
      if (!tcp_nagle_test(sk, skb, mss_now, tcp_skb_is_last(skb) ? nonagle : static_cast<uint8_t>(TCP_NAGLE_PUSH))) break;
    } else if (!push_one && tcp_tso_should_defer(sk, skb, mss_now, &cwnd_limited, &rwnd_limited, max_segs)) {
      break;
    }
    uint32_t limit = mss_now;
    if (tcp_skb_pcount(skb) > 1 && !sk->urg_mode)
      limit = tcp_mss_split_point(sk, skb, mss_now, quota < max_segs ? quota : max_segs, nonagle);
    if (skb->len > limit && !tcp_fragment(n, sk, sk->sk_write_queue, skb, limit, mss_now)) break;
    if (tcp_small_queue_check(sk, skb)) break;
    if (skb->cb.end_seq == skb->cb.seq) break;   // sendmsg is about to fill it
    if (tcp_transmit_skb(n, sk, skb, true)) break;
    tcp_event_new_data_sent(sk, skb);
    if (skb->len < tcp_skb_pcount(skb) * mss_now) sk->snd_sml = skb->cb.end_seq;   // Minshall
    sent += tcp_skb_pcount(skb);
    if (push_one) break;
  }
  tcp_chrono_set(sk, rwnd_limited ? 2 : sk->packets_out ? 1 : 0);
  if (ICEPATH_LIKELY(sent != 0)) {
    if (sk->ca_state == TCP_CA_CWR || sk->ca_state == TCP_CA_Recovery) sk->prr_out += sent;
    if (push_one != 2) tcp_schedule_loss_probe(n, sk);
    tcp_cwnd_validate(sk, cwnd_limited | (tcp_packets_in_flight(sk) >= sk->snd_cwnd));
    return false;
  }
  return !sk->packets_out && tcp_send_head(sk) != nullptr;
}

void tcp_push_pending(net& n, tcp_sock* sk, uint32_t mss_now, uint8_t nonagle) {
  if (ICEPATH_UNLIKELY(sk->state == TCP_CLOSE)) return;
  if (tcp_write_xmit(n, sk, mss_now, nonagle, 0)) tcp_check_probe_timer(sk);   // T14
}
void tcp_push_pending_frames(net& n, tcp_sock* sk) {
  if (tcp_send_head(sk)) tcp_push_pending(n, sk, tcp_current_mss(sk), sk->nonagle);
}
void tcp_push_one(net& n, tcp_sock* sk, uint32_t mss_now) { tcp_write_xmit(n, sk, mss_now, TCP_NAGLE_PUSH, 1); }

void tcp_chrono_set(tcp_sock* sk, uint8_t type) {
  if (sk->chrono_type == type) return;
  const nsec now = tcp_now(sk);
  if (sk->chrono_type) sk->chrono_stat[sk->chrono_type - 1] += now - sk->chrono_start;
  sk->chrono_type = type;
  sk->chrono_start = now;
}

}  // namespace icepath
