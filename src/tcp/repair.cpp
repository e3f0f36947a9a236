// A tcp_sock from the state of a connection, and back (T11g). Owner: the stack. Always: a failed import leaves the socket closed, empty and out
// of the table; a failed export changes nothing. What was in flight is in flight afterwards, marked as sent before: no round trip is measured by it
// (Karn), and a retransmission timer runs for it.
#include "tcp/repair.hpp"
#include "ip/ip.hpp"
#include "tcp/tcp_internal.hpp"

namespace icepath {

namespace {

uint32_t clamped(uint32_t v, uint32_t lo, uint32_t hi) { return v < lo ? lo : v > hi ? hi : v; }

// An skb with up to `n` bytes of p: *got says how many fit. nullptr: no memory.
sk_buff* make_skb(net& n, const uint8_t* p, size_t len, uint32_t* got) {
  sk_buff* skb = n.skbs.alloc();
  if (!skb) return nullptr;
  uint32_t k = skb->tailroom() < len ? skb->tailroom() : static_cast<uint32_t>(len);
  std::memcpy(skb_put(skb, k), p, k);
  uint32_t done = k;
  while (done < len && skb->nr_frags < max_skb_frags) {
    uint8_t* f = n.skbs.frames.alloc();
    if (!f) {
      n.skbs.free(skb);
      return nullptr;
    }
    k = len - done < frame_size ? static_cast<uint32_t>(len - done) : static_cast<uint32_t>(frame_size);
    std::memcpy(f, p + done, k);
    skb->frags[skb->nr_frags++] = {f, k};
    skb->len += k;
    skb->data_len += k;
    skb->truesize += skb_truesize_frame;
    done += k;
  }
  *got = done;
  return skb;
}

bool fill_receive_queue(net& n, tcp_sock* sk, const tcp_repair_state& s) {
  uint32_t seq = s.copied_seq, got = 0;
  for (size_t off = 0; off < s.rcvq.len; off += got, seq += got) {
    sk_buff* skb = make_skb(n, s.rcvq.data + off, s.rcvq.len - off, &got);
    if (!skb) return false;
    skb->cb.seq = seq;
    skb->cb.end_seq = seq + got;
    skb->cb.tcp_flags = TCPHDR_ACK;
    sk->sk_receive_queue.push_back(skb);
    sk->rmem_alloc += skb->truesize;
  }
  return true;
}

// One part of the send stream, [from, to) with the FIN when `fin`: into the retransmit queue as sent, or into the write queue.
bool fill_send_queue(net& n, tcp_sock* sk, const tcp_repair_state& s, uint32_t from, uint32_t to, bool sent, bool fin) {
  const uint32_t mss = tcp_current_mss(sk), goal = mss * sk->gso_segs_max;
  uint32_t end = to - (fin ? 1 : 0);
  for (uint32_t seq = from, got = 0; seq != end || fin; seq += got) {
    const uint32_t want = end - seq < goal ? end - seq : goal;
    sk_buff* skb = make_skb(n, s.sndq.data + (seq - s.snd_una), want, &got);
    if (!skb) return false;
    skb->cb.seq = seq;
    skb->cb.end_seq = seq + got;
    skb->cb.tcp_flags = TCPHDR_ACK;
    if (seq + got == end) {
      skb->cb.tcp_flags |= TCPHDR_PSH;
      if (fin) {
        skb->cb.tcp_flags |= TCPHDR_FIN;
        ++skb->cb.end_seq;
        fin = false;
      }
    }
    sk->wmem_queued += skb->truesize;
    if (!sent) {
      sk->sk_write_queue.push_back(skb);
      continue;
    }
    tcp_set_skb_tso_segs(skb, mss);
    skb->cb.sacked = TCPCB_EVER_RETRANS;
    skb->tstamp = n.now;
    skb->cb.first_tx_mstamp = skb->cb.delivered_mstamp = n.now;
    sk->tcp_rtx_queue.push_back(skb);
    sk->packets_out += tcp_skb_pcount(skb);
  }
  return true;
}

void take_options(tcp_sock* sk, const tcp_repair_state& s) {
  if (s.sndbuf) sk->sndbuf = clamped(s.sndbuf, tcp_min_sndbuf, 1u << 30);
  if (s.rcvbuf) sk->rcvbuf = clamped(s.rcvbuf, tcp_min_rcvbuf, 1u << 30);
  sk->sndbuf_locked = s.buf_lock & 1;
  sk->rcvbuf_locked = s.buf_lock & 2;
  sk->nonagle = static_cast<uint8_t>((s.nodelay ? TCP_NAGLE_OFF : 0) | (s.cork ? TCP_NAGLE_CORK : 0));
  sk->urginline = s.oobinline;
  sk->linger_on = s.linger_on;
  sk->linger_ns = nsec{s.linger_s} * sec_ns;
  sk->tos = s.tos;
  sk->ttl = s.ttl ? s.ttl : tcp_default_ttl();
  sk->priority = s.priority & 15;
  sk->mark = s.mark;
  sk->user_timeout_ms = s.user_timeout_ms;
  sk->notsent_lowat = s.notsent_lowat ? s.notsent_lowat : ~0u;
  sk->rcvlowat = s.rcvlowat > 0 ? s.rcvlowat : 1;
  if (s.keepidle_s && s.keepidle_s <= 32767) sk->keepalive_time = nsec{s.keepidle_s} * sec_ns;
  if (s.keepintvl_s && s.keepintvl_s <= 32767) sk->keepalive_intvl = nsec{s.keepintvl_s} * sec_ns;
  if (s.keepcnt && s.keepcnt <= 127) sk->keepalive_probes = static_cast<uint8_t>(s.keepcnt);
  sk->keepopen = s.keepopen;
  const tcp_congestion_ops* ca = tcp_ca_find(s.congestion, std::strlen(s.congestion));
  if (ca && ca != sk->ca_ops) tcp_ca_assign(sk, ca);   // one that we do not have: ours
}

void take_measures(tcp_sock* sk, const tcp_repair_state& s) {
  const nsec now = tcp_now(sk);
  if (s.srtt_us) {
    const uint32_t rtt = clamped(s.srtt_us, 1, 60u * 1000 * 1000), var = clamped(s.rttvar_us, 1, 60u * 1000 * 1000);
    sk->srtt_us = rtt << 3;
    sk->mdev_us = sk->mdev_max_us = var << 2;
    const uint32_t min = static_cast<uint32_t>(sk->params.rto_min / usec_ns);
    sk->rttvar_us = sk->mdev_us < min ? min : sk->mdev_us;
    sk->rtt_seq = sk->snd_nxt;
    tcp_set_rto(sk);
    sk->backoff = static_cast<uint8_t>(clamped(s.backoff, 0, 15));
    sk->rto = sk->rto << sk->backoff < sk->params.rto_max ? sk->rto << sk->backoff : sk->params.rto_max;
  } else {
    sk->rto = sk->params.rto_init;
  }
  if (s.min_rtt_us && s.min_rtt_us != ~0u) {
    sk->rtt_min_us = s.min_rtt_us;
    sk->rtt_min_stamp = now;
  }
  sk->rcv_rtt_est.rtt_us = clamped(s.rcv_rtt_us, 0, 60u * 1000 * 1000) << 3;
  sk->snd_cwnd = clamped(s.snd_cwnd, 1, 1u << 16);
  sk->snd_ssthresh = clamped(s.snd_ssthresh, 2, tcp_infinite_ssthresh);
  sk->snd_cwnd_stamp = now;
  sk->reordering = static_cast<uint16_t>(clamped(s.reordering, sk->params.reordering, sk->params.max_reordering));
  sk->bytes_acked = s.bytes_acked;
  sk->bytes_received = s.bytes_received;
  sk->bytes_sent = s.bytes_sent;
  sk->bytes_retrans = s.bytes_retrans;
  sk->segs_in = s.segs_in;
  sk->segs_out = s.segs_out;
  sk->data_segs_in = s.data_segs_in;
  sk->data_segs_out = s.data_segs_out;
  sk->total_retrans = s.total_retrans;
  sk->delivered = s.delivered;
}

// What was offered must be taken (no shrinking), so the buffer is at least as large as the promise and what it lies on.
void take_receive_window(tcp_sock* sk, const tcp_repair_state& s) {
  sk->rcv_wnd = s.rcv_wnd;
  sk->rcv_wup = s.rcv_wup;
  const uint64_t need = uint64_t{tcp_space_from_win(sk, tcp_receive_window(sk))} + sk->rmem_alloc;
  if (sk->rcvbuf < need) sk->rcvbuf = need < (1u << 30) ? static_cast<uint32_t>(need) : 1u << 30;
  const uint32_t max = 65535u << sk->rcv_wscale;
  sk->window_clamp = sk->user_window_clamp && sk->user_window_clamp < max ? sk->user_window_clamp : max;
  const uint32_t want = s.rcv_ssthresh > s.rcv_wnd ? s.rcv_ssthresh : s.rcv_wnd;
  sk->rcv_ssthresh = want < sk->window_clamp ? want : sk->window_clamp;
  sk->rcvq_space.space = s.rcv_space && s.rcv_space < (1u << 30) ? s.rcv_space : sk->rcv_wnd < 10u * sk->advmss ? sk->rcv_wnd : 10u * sk->advmss;
  sk->rcvq_space.time = tcp_now(sk);
  sk->rcvq_space.seq = sk->copied_seq;
}

void take_timestamps(tcp_sock* sk, const tcp_repair_state& s) {
  sk->tstamp_ok = s.tstamp_ok;
  if (!s.tstamp_ok) return;
  // One tick ahead: the value's lowest bit is not told by the kernel, and a timestamp must not go back (RFC 7323 5.3).
  const uint32_t then = static_cast<uint32_t>(s.ts_clock / msec_ns);
  sk->tsoffset = (s.ts_val | 1) - then;
  sk->ts_recent = s.ts_recent_valid ? s.ts_recent : 0;
  // Unknown: as if it were too old to compare with (5.5), so the next segment sets it.
  sk->ts_recent_stamp = s.ts_recent_valid ? tcp_now(sk) : tcp_now(sk) - tcp_paws_24days - sec_ns;
  sk->tcp_header_len = sizeof(tcp_hdr) + 12;
}

// Whatever now waits for a timer gets one, and what may go goes. `left`: until the timer that ran before, ~0: start anew.
void set_going(net& n, tcp_sock* sk, bool ack, nsec left, nsec idle) {
  if (sk->keepopen) tcp_reset_keepalive_timer(sk, tcp_keepalive_time(sk) > idle ? tcp_keepalive_time(sk) - idle : 0);
  tcp_fast_path_check(sk);
  if (sk->packets_out) tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, left < sk->rto ? left : sk->rto);
  if (ack) tcp_send_ack(n, sk);
  if (tcp_send_head(sk)) {
    tcp_push_pending(n, sk, tcp_current_mss(sk), sk->nonagle);
    if (sk->icsk_pending == ICSK_TIME_PROBE0) tcp_reset_xmit_timer(sk, ICSK_TIME_PROBE0, left < tcp_probe0_when(sk) ? left : tcp_probe0_when(sk));
  }
  if (sk->state == TCP_ESTABLISHED || sk->state == TCP_CLOSE_WAIT) tcp_check_space(sk);
}

void undo(net& n, tcp_sock* sk) {
  tcp_clear_xmit_timers(sk);
  tcp_unhash(sk);
  tcp_write_queue_purge(n, sk);
  sk->sk_receive_queue.purge(n.skbs);
  sk->rmem_alloc = 0;
  sk->state = TCP_CLOSE;
  sk->sk_shutdown = 0;
}

bool copy_queue(repair_bytes& to, const sk_buff_head& q, uint32_t from_seq) {
  for (const sk_buff* s = q.first; s; s = s->next) {
    const uint32_t skip = before(s->cb.seq, from_seq) ? from_seq - s->cb.seq : 0;
    if (skip >= s->len) continue;
    skb_copy_bits(s, skip, to.data + to.len, s->len - skip);
    to.len += s->len - skip;
  }
  return true;
}

}  // namespace

int tcp_import(net& n, tcp_sock* sk, const tcp_repair_state& s) {
  if (const int err = tcp_repair_check(s)) return err;
  if (sk->state != TCP_CLOSE || sk->hashed) return -EISCONN;
  sk->tuple = s.tuple;
  if (!tcp_route(n, sk)) return -EHOSTUNREACH;
  if (!tcp_hash(n, sk)) return -EADDRINUSE;
  take_options(sk, s);
  sk->snd_una = s.snd_una;
  sk->snd_nxt = s.snd_nxt;
  sk->write_seq = sk->pushed_seq = s.write_seq;
  sk->snd_sml = sk->high_seq = s.snd_una;
  sk->snd_wnd = s.snd_wnd;
  sk->max_window = s.max_window;
  sk->snd_wl1 = s.snd_wl1;
  sk->rcv_nxt = s.rcv_nxt;
  sk->copied_seq = s.copied_seq;
  sk->snd_wscale = s.snd_wscale;
  sk->rcv_wscale = s.rcv_wscale;
  sk->wscale_ok = s.wscale_ok;
  sk->sack_ok = s.sack_ok;
  sk->tcp_header_len = sizeof(tcp_hdr);
  take_timestamps(sk, s);
  sk->mss_clamp = s.mss_clamp;
  sk->advmss = s.advmss;
  sk->ack.rcv_mss = static_cast<uint16_t>(clamped(s.rcv_mss, tcp_min_mss, s.advmss));
  sk->ack.ato = sk->params.delack_min;
  tcp_sync_mss(sk, sk->dst->mtu);
  take_measures(sk, s);
  const bool fin = repair_fin_queued(s.state) && s.state != TCP_FIN_WAIT2, fin_sent = fin && s.snd_nxt == s.write_seq;
  if (!fill_receive_queue(n, sk, s) || !fill_send_queue(n, sk, s, s.snd_una, s.snd_nxt, true, fin_sent) ||
      !fill_send_queue(n, sk, s, s.snd_nxt, s.write_seq, false, fin && !fin_sent)) {
    undo(n, sk);
    return -ENOBUFS;
  }
  take_receive_window(sk, s);
  const nsec since = n.now > s.ts_clock && s.ts_clock ? n.now - s.ts_clock : 0;
  const nsec idle = since + nsec{s.idle_us} * usec_ns, left = nsec{s.timer_left_us} * usec_ns;
  sk->rcv_tstamp = sk->ack.lrcvtime = idle < n.now ? n.now - idle : n.now;
  sk->lsndtime = sk->packets_out ? n.now : 0;
  sk->delivered_mstamp = sk->first_tx_mstamp = n.now;
  if (s.urg) {
    const uint16_t valid = static_cast<uint16_t>(TCP_URG_VALID | s.urg_byte);
    sk->urg_data = s.urg == REPAIR_URG_NOTYET ? TCP_URG_NOTYET : s.urg == REPAIR_URG_READ ? TCP_URG_READ : valid;
    sk->urg_seq = s.urg_seq;
  }
  sk->urg_mode = s.urg_mode;
  sk->snd_up = s.urg_mode ? s.snd_up : s.snd_una;
  sk->state = s.state;
  const bool no_more = repair_fin_received(s.state) || s.rcv_shutdown;
  sk->sk_shutdown = static_cast<uint8_t>((repair_fin_queued(s.state) ? SEND_SHUTDOWN : 0) | (no_more ? RCV_SHUTDOWN : 0));
  if (s.state == TCP_CLOSE_WAIT) sk->ack.pingpong = 3;
  set_going(n, sk, s.rcv_nxt != s.rcv_wup, s.timer_left_us == ~0u ? ~nsec{0} : left > since ? left - since : 0, idle);
  return 0;
}

bool tcp_export_ready(const tcp_sock* sk) {
  return sk->out_of_order_queue.empty() && !sk->urg_data && !sk->urg_mode && !sk->fin_owed;
}

int tcp_export(net& n, tcp_sock* sk, tcp_repair_state& s) {
  if (sk->freed || sk->listener || sk->err || sk->fin_owed || !repair_can_move(sk->state)) return -ENOTCONN;
  const uint32_t their_fin = repair_fin_received(sk->state) ? 1 : 0;
  const uint32_t unread = sk->rcv_nxt - sk->copied_seq - their_fin;
  if (!s.rcvq.reserve(unread) || !s.sndq.reserve(sk->write_seq - sk->snd_una)) return -ENOBUFS;
  const repair_bytes rq = s.rcvq, sq = s.sndq;
  s = tcp_repair_state{};
  s.rcvq = rq;
  s.sndq = sq;
  s.rcvq.len = s.sndq.len = 0;
  copy_queue(s.rcvq, sk->sk_receive_queue, sk->copied_seq);
  copy_queue(s.sndq, sk->tcp_rtx_queue, sk->snd_una);
  copy_queue(s.sndq, sk->sk_write_queue, sk->snd_una);
  s.tuple = sk->tuple;
  s.state = sk->state;
  s.rcv_shutdown = (sk->sk_shutdown & RCV_SHUTDOWN) && !their_fin;
  s.snd_una = sk->snd_una;
  s.snd_nxt = sk->snd_nxt;
  s.write_seq = sk->write_seq;
  s.rcv_nxt = sk->rcv_nxt;
  s.copied_seq = sk->copied_seq;
  s.snd_wl1 = sk->snd_wl1;
  s.snd_wnd = sk->snd_wnd;
  s.max_window = sk->max_window;
  s.rcv_wnd = sk->rcv_wnd;
  s.rcv_wup = sk->rcv_wup;
  s.mss_clamp = sk->mss_clamp;
  s.advmss = sk->advmss;
  s.rcv_mss = sk->ack.rcv_mss;
  s.snd_wscale = sk->snd_wscale;
  s.rcv_wscale = sk->rcv_wscale;
  s.wscale_ok = sk->wscale_ok;
  s.sack_ok = sk->sack_ok;
  s.tstamp_ok = sk->tstamp_ok;
  s.ts_val = tcp_ts_now(sk);
  s.ts_clock = n.now;
  s.ts_recent = sk->ts_recent;
  s.ts_recent_valid = sk->tstamp_ok && n.now - sk->ts_recent_stamp <= tcp_paws_24days;
  s.srtt_us = sk->srtt_us >> 3;
  s.rttvar_us = sk->mdev_us >> 2;
  s.rto_us = static_cast<uint32_t>(sk->rto / usec_ns);
  nsec deadline = sk->icsk_pending == ICSK_TIME_RETRANS || sk->icsk_pending == ICSK_TIME_PROBE0 ? sk->retransmit_timer.deadline : 0;
  if (sk->icsk_pending == ICSK_TIME_LOSS_PROBE && sk->tcp_rtx_queue.first) deadline = sk->tcp_rtx_queue.first->tstamp + sk->rto;
  if (deadline) s.timer_left_us = deadline > n.now ? static_cast<uint32_t>((deadline - n.now) / usec_ns) : 0;
  const nsec idle = (n.now - (sk->rcv_tstamp > sk->ack.lrcvtime ? sk->rcv_tstamp : sk->ack.lrcvtime)) / usec_ns;
  s.idle_us = idle < ~0u ? static_cast<uint32_t>(idle) : ~0u;
  s.backoff = sk->backoff;
  s.min_rtt_us = sk->rtt_min_us;
  s.rcv_rtt_us = sk->rcv_rtt_est.rtt_us >> 3;
  s.snd_cwnd = sk->snd_cwnd;
  s.snd_ssthresh = sk->snd_ssthresh;
  s.rcv_ssthresh = sk->rcv_ssthresh;
  s.rcv_space = sk->rcvq_space.space;
  s.pmtu = sk->dst ? sk->dst->mtu : 0;
  s.reordering = sk->reordering;
  s.bytes_acked = sk->bytes_acked;
  s.bytes_received = sk->bytes_received;
  s.bytes_sent = sk->bytes_sent;
  s.bytes_retrans = sk->bytes_retrans;
  s.segs_in = sk->segs_in;
  s.segs_out = sk->segs_out;
  s.data_segs_in = sk->data_segs_in;
  s.data_segs_out = sk->data_segs_out;
  s.total_retrans = sk->total_retrans;
  s.delivered = sk->delivered;
  s.sndbuf = sk->sndbuf;
  s.rcvbuf = sk->rcvbuf;
  s.buf_lock = static_cast<uint8_t>((sk->sndbuf_locked ? 1 : 0) | (sk->rcvbuf_locked ? 2 : 0));
  s.nodelay = sk->nonagle & TCP_NAGLE_OFF;
  s.cork = sk->nonagle & TCP_NAGLE_CORK;
  s.keepopen = sk->keepopen;
  s.oobinline = sk->urginline;
  s.linger_on = sk->linger_on;
  s.linger_s = static_cast<uint32_t>(sk->linger_ns / sec_ns);
  s.tos = sk->tos;
  s.ttl = sk->ttl;
  s.priority = sk->priority;
  s.mark = sk->mark;
  s.user_timeout_ms = sk->user_timeout_ms;
  s.notsent_lowat = sk->notsent_lowat == ~0u ? 0 : sk->notsent_lowat;
  s.rcvlowat = sk->rcvlowat;
  s.keepidle_s = static_cast<uint32_t>(sk->keepalive_time / sec_ns);
  s.keepintvl_s = static_cast<uint32_t>(sk->keepalive_intvl / sec_ns);
  s.keepcnt = sk->keepalive_probes;
  std::strncpy(s.congestion, sk->ca_ops->name, sizeof s.congestion - 1);
  s.urg = sk->urg_data == TCP_URG_NOTYET ? REPAIR_URG_NOTYET : sk->urg_data == TCP_URG_READ ? REPAIR_URG_READ : REPAIR_URG_VALID;
  if (!sk->urg_data) s.urg = REPAIR_URG_NONE;
  s.urg_byte = static_cast<uint8_t>(sk->urg_data);
  s.urg_seq = sk->urg_seq;
  s.urg_mode = sk->urg_mode;
  s.snd_up = sk->snd_up;
  tcp_clear_xmit_timers(sk);
  tcp_unhash(sk);
  if (sk->tsq_node.linked()) sk->tsq_node.unlink();
  return 0;
}

int tcp_thaw(net& n, tcp_sock* sk) {
  if (!tcp_hash(n, sk)) return -EADDRINUSE;
  sk->tsq_throttled = false;
  const nsec idle = n.now - sk->rcv_tstamp;
  set_going(n, sk, true, ~nsec{0}, idle);
  return 0;
}

}  // namespace icepath
