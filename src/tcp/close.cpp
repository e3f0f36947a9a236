// Opening actively, closing in every way, and the last steps of a connection (RFC 9293 3.6, 3.10.1, 3.10.4, 3.10.5). Owner: the stack.
// Always: a socket whose owner called tcp_close is `dead` and frees itself when it reaches CLOSED; any other is freed by its owner.
#include <sys/epoll.h>
#include "ip/ip.hpp"
#include "tcp/tcp_internal.hpp"

namespace icepath {

void tcp_set_state(tcp_sock* sk, uint8_t state) {
  if (state == TCP_CLOSE && tcp_in_state(sk, tcpf(TCP_SYN_SENT) | tcpf(TCP_SYN_RECV))) tcp_stat(sk, &mib::TcpAttemptFails);
  sk->state = state;
  if (state != TCP_ESTABLISHED) sk->pred_flags = 0;
}

void tcp_state_change(tcp_sock* sk) {
  if (!sk->dead && sk->ops && sk->ops->state_change) sk->ops->state_change(sk);
}

void tcp_write_queue_purge(net& n, tcp_sock* sk) {
  sk->sk_write_queue.purge(n.skbs);
  sk->tcp_rtx_queue.purge(n.skbs);
  sk->wmem_queued = 0;
  sk->packets_out = sk->sacked_out = sk->lost_out = sk->retrans_out = 0;
  sk->highest_sack = sk->retransmit_skb_hint = nullptr;
  sk->backoff = 0;
}

// CLOSED. What was received stays readable for the owner.
void tcp_done(net& n, tcp_sock* sk) {
  if (sk->freed) return;
  const bool waiting_child = sk->listener && !(sk->rcvq_space.time != 0);
  if (waiting_child) return tcp_sk_free(n, sk);
  tcp_set_state(sk, TCP_CLOSE);
  tcp_clear_xmit_timers(sk);
  tcp_unhash(sk);
  sk->out_of_order_queue.purge(n.skbs);
  sk->num_sacks = 0;
  sk->rmem_alloc = 0;
  for (const sk_buff* s = sk->sk_receive_queue.first; s; s = s->next) sk->rmem_alloc += s->truesize;
  sk->sk_shutdown = SHUTDOWN_MASK;
  sk->probes_out = 0;
  if (sk->listener) return;   // in the accept queue: the application will see the error
  if (sk->dead) return tcp_sk_free(n, sk);
  if (!sk->err) tcp_write_queue_purge(n, sk);
  tcp_state_change(sk);
}

void tcp_done_err(net& n, tcp_sock* sk, int err) {
  sk->err = err;
  tcp_write_queue_purge(n, sk);
  tcp_done(n, sk);
}

void tcp_write_err(net& n, tcp_sock* sk) {
  net_stat(n, &mib::TcpExtTCPAbortOnTimeout);
  tcp_done_err(n, sk, sk->err_soft ? sk->err_soft : ETIMEDOUT);
}

// The owner may have changed params since the socket was made.
static void tcp_take_params(tcp_sock* sk) {
  if (!sk->rcvbuf_locked) sk->rcvbuf = sk->params.rcvbuf;
  if (!sk->sndbuf_locked) sk->sndbuf = sk->params.sndbuf;
  sk->reordering = sk->params.reordering;
}

int tcp_connect(net& n, tcp_sock* sk, const four_tuple& t) {
  if (sk->state != TCP_CLOSE) return -EISCONN;
  sk->tuple = t;
  if (!tcp_route(n, sk)) return -EHOSTUNREACH;
  if (sock_common* c = tcp_lookup(n, t)) {
    // RFC 6191: a TIME-WAIT of ours with timestamps may be followed by a new connection after a second.
    if (!c->is_tw) return -EADDRINUSE;
    tcp_timewait_sock* tw = static_cast<tcp_timewait_sock*>(c);
    if (!tw->tw_tstamp_ok || n.now - tw->tw_ts_recent_stamp < sec_ns) return -EADDRINUSE;
    sk->write_seq = tw->tw_snd_nxt + 65535 + 2;
    sk->ts_recent = tw->tw_ts_recent;
    sk->ts_recent_stamp = tw->tw_ts_recent_stamp;
    tcp_tw_free(n, tw);
  }
  if (!tcp_hash(n, sk)) return -EADDRINUSE;
  tcp_take_params(sk);
  const uint32_t pmtu = sk->dst->mtu;
  uint32_t adv = pmtu > 40 + tcp_min_mss ? pmtu - 40 : tcp_min_mss;
  if (adv > 65495) adv = 65495;
  if (sk->user_mss && sk->user_mss < adv) adv = sk->user_mss;
  sk->advmss = static_cast<uint16_t>(adv);
  sk->mss_clamp = static_cast<uint16_t>(adv);
  sk->tsoffset = tcp_secure_ts_off(n, t);
  if (!sk->write_seq) sk->write_seq = tcp_secure_seq(n, t);
  sk->snd_una = sk->snd_nxt = sk->snd_sml = sk->snd_up = sk->pushed_seq = sk->write_seq;
  sk->rcv_nxt = sk->rcv_wup = sk->copied_seq = 0;
  sk->max_window = 0;
  tcp_sync_mss(sk, pmtu);
  tcp_select_initial_window(sk);
  sk->rto = sk->params.rto_init;
  tcp_set_state(sk, TCP_SYN_SENT);
  net_stat(n, &mib::TcpActiveOpens);
  if (const int err = tcp_send_syn(n, sk, TCPHDR_SYN)) {
    sk->state = TCP_CLOSE;
    tcp_unhash(sk);
    return err;
  }
  return 0;
}

int tcp_expect(net& n, tcp_sock* sk, const four_tuple& t) {
  if (sk->state != TCP_CLOSE) return -EISCONN;
  sk->tuple = t;
  if (!tcp_hash(n, sk)) return -EADDRINUSE;
  sk->expect = true;
  tcp_take_params(sk);
  tcp_set_state(sk, TCP_LISTEN);
  return 0;
}

// The transition that sending our FIN means. True: a FIN is to be sent.
static bool tcp_close_state(tcp_sock* sk) {
  switch (sk->state) {
    case TCP_ESTABLISHED: tcp_set_state(sk, TCP_FIN_WAIT1); return true;
    case TCP_CLOSE_WAIT: tcp_set_state(sk, TCP_LAST_ACK); return true;
    default: return false;   // SYN-SENT, SYN-RECEIVED: the FIN follows the handshake (tcp_deferred_shutdown)
  }
}

void tcp_shutdown_write(net& n, tcp_sock* sk) {
  if (sk->sk_shutdown & SEND_SHUTDOWN) return;
  if (!tcp_in_state(sk, tcpf(TCP_ESTABLISHED) | tcpf(TCP_SYN_SENT) | tcpf(TCP_SYN_RECV) | tcpf(TCP_CLOSE_WAIT)) && !(sk->state == TCP_LISTEN && sk->expect)) return;
  sk->sk_shutdown |= SEND_SHUTDOWN;
  if (tcp_close_state(sk)) tcp_send_fin(n, sk);
}

void tcp_close(net& n, tcp_sock* sk) {
  if (sk->freed) return;
  const bool fin_sent = sk->sk_shutdown & SEND_SHUTDOWN;
  sk->ops = nullptr;
  sk->owner = nullptr;
  if (sk->state == TCP_LISTEN || sk->state == TCP_CLOSE || sk->state == TCP_SYN_SENT) return tcp_sk_free(n, sk);
  const bool unread = tcp_inq(sk) != 0;
  sk->sk_shutdown = SHUTDOWN_MASK;
  sk->dead = true;
  if (unread || (sk->linger_on && !sk->linger_ns)) {   // RFC 2525 2.17; SO_LINGER with zero
    tcp_send_active_reset(n, sk);
    return tcp_done(n, sk);
  }
  sk->sk_receive_queue.purge(n.skbs);
  sk->rmem_alloc = 0;
  for (const sk_buff* s = sk->out_of_order_queue.first; s; s = s->next) sk->rmem_alloc += s->truesize;
  if (!fin_sent && tcp_close_state(sk)) tcp_send_fin(n, sk);
  if (sk->state == TCP_FIN_WAIT2) {
    if (sk->linger2 == ~nsec{0}) {
      tcp_send_active_reset(n, sk);
      return tcp_done(n, sk);
    }
    tcp_reset_keepalive_timer(sk, tcp_fin_time(sk));
  } else if (sk->state == TCP_CLOSE) {
    tcp_sk_free(n, sk);
  }
}

void tcp_abort(net& n, tcp_sock* sk) {
  if (sk->freed || sk->state == TCP_CLOSE) return;
  if (sk->state == TCP_LISTEN) {
    if (!sk->expect) tcp_close_listener(n, sk);
    return tcp_done(n, sk);
  }
  if (!tcp_in_state(sk, tcpf(TCP_SYN_SENT) | tcpf(TCP_LAST_ACK) | tcpf(TCP_CLOSING))) tcp_send_active_reset(n, sk);
  tcp_done_err(n, sk, ECONNABORTED);
}

uint32_t tcp_inq(const tcp_sock* sk) {
  if (tcp_in_state(sk, tcpf(TCP_SYN_SENT) | tcpf(TCP_SYN_RECV) | tcpf(TCP_LISTEN))) return 0;
  uint32_t answ = 0;
  const sk_buff* last = sk->sk_receive_queue.last;
  if (!last) return 0;
  answ = last->cb.seq + last->len - sk->copied_seq;
  if (sk->urg_data && !sk->urginline && before(sk->urg_seq, sk->rcv_nxt) && !before(sk->urg_seq, sk->copied_seq)) {
    // Only up to the mark; a read that begins at the mark skips that byte.
    answ = sk->urg_seq == sk->copied_seq ? answ - 1 : sk->urg_seq - sk->copied_seq;
  }
  return static_cast<int32_t>(answ) < 0 ? 0 : answ;
}

uint32_t tcp_outq(const tcp_sock* sk) {
  if (tcp_in_state(sk, tcpf(TCP_SYN_SENT) | tcpf(TCP_SYN_RECV) | tcpf(TCP_LISTEN) | tcpf(TCP_CLOSE))) return 0;
  return sk->write_seq - sk->snd_una;
}
uint32_t tcp_outq_nsd(const tcp_sock* sk) {
  if (tcp_in_state(sk, tcpf(TCP_SYN_SENT) | tcpf(TCP_SYN_RECV) | tcpf(TCP_LISTEN) | tcpf(TCP_CLOSE))) return 0;
  return sk->write_seq - sk->snd_nxt;
}

uint32_t tcp_poll(const tcp_sock* sk) {
  if (sk->state == TCP_LISTEN && sk->expect) return 0;
  if (sk->state == TCP_LISTEN) return sk->accept_queue.empty() ? 0 : static_cast<uint32_t>(EPOLLIN | EPOLLRDNORM);
  uint32_t mask = 0;
  if (sk->sk_shutdown == SHUTDOWN_MASK || sk->state == TCP_CLOSE) mask |= EPOLLHUP;
  if (sk->sk_shutdown & RCV_SHUTDOWN) mask |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
  if (!tcp_in_state(sk, tcpf(TCP_SYN_SENT) | tcpf(TCP_SYN_RECV))) {
    uint32_t target = sk->rcvlowat > 1 ? static_cast<uint32_t>(sk->rcvlowat) : 1;
    if (sk->urg_data && sk->urg_seq == sk->copied_seq && !sk->urginline) ++target;
    const sk_buff* last = sk->sk_receive_queue.last;
    if (last && last->cb.seq + last->len - sk->copied_seq >= target) mask |= EPOLLIN | EPOLLRDNORM;
    if (sk->sk_shutdown & SEND_SHUTDOWN) mask |= EPOLLOUT | EPOLLWRNORM;
    else if (sk_stream_is_writeable(sk)) mask |= EPOLLOUT | EPOLLWRNORM;
    else const_cast<tcp_sock*>(sk)->sock_nospace = true;   // write_space is owed from now on
    if (sk->urg_data & TCP_URG_VALID) mask |= EPOLLPRI;
  }
  if (sk->err) mask |= EPOLLERR;
  return mask;
}

}  // namespace icepath
