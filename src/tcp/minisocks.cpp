// Connections that have no application yet, or no more: the SYN queue and accept queue of a listener (native admission), and
// TIME-WAIT (RFC 9293 3.6.1, RFC 1337, RFC 6191). Owner: the stack.
// Always: a child with `listener` set is in exactly one of the listener's two queues, syn_qlen and accept_qlen count them, and both are bounded.
#include "ip/ip.hpp"
#include "tcp/tcp_internal.hpp"

namespace icepath {

namespace {
tcp_sock* child_of(list_node* p) { return list_entry<tcp_sock, &tcp_sock::accept_node>(p); }
}  // namespace

int tcp_listen(net& n, tcp_sock* sk, const inet_addr& addr, uint16_t port, int backlog) {
  sk->backlog = backlog < 0 ? 0 : static_cast<uint32_t>(backlog);
  if (sk->state == TCP_LISTEN && !sk->expect) return 0;
  if (sk->state != TCP_CLOSE) return -EINVAL;
  const tcp_sock* other = tcp_lookup_listener(n, addr, port);
  if (other && other->tuple.saddr == addr) return -EADDRINUSE;
  sk->tuple = {addr, inet_addr{}, port, 0};
  tcp_hash_listener(n, sk);
  tcp_set_state(sk, TCP_LISTEN);
  return 0;
}

tcp_sock* tcp_accept(net&, tcp_sock* l) {
  if (l->accept_queue.empty()) return nullptr;
  tcp_sock* sk = child_of(l->accept_queue.next);
  sk->accept_node.unlink();
  --l->accept_qlen;
  sk->listener = nullptr;
  sk->dead = false;
  sk->ops = l->ops;
  return sk;
}

void tcp_listen_rcv(net& n, tcp_sock* l, sk_buff* skb, tcp_hdr* th, const four_tuple& t) {
  if (th->flags & TCPHDR_RST) return n.skbs.free(skb);
  if (th->flags & TCPHDR_ACK) {
    tcp_send_reset(n, t, th, skb->len - th->doff(), l->dst);
    return n.skbs.free(skb);
  }
  if (!(th->flags & TCPHDR_SYN) || (th->flags & TCPHDR_FIN)) return n.skbs.free(skb);
  const uint32_t syn_max = l->backlog > 8 ? l->backlog : 8;
  tcp_sock* sk = nullptr;
  if (l->accept_qlen > l->backlog) net_stat(n, &mib::TcpExtListenOverflows);
  else if (l->syn_qlen < syn_max) sk = tcp_sk_alloc(n, nullptr, nullptr);
  if (!sk) {
    net_stat(n, &mib::TcpExtListenDrops);
    return n.skbs.free(skb);
  }
  sk->tuple = t;
  sk->params = l->params;
  sk->rcvbuf = l->rcvbuf;
  sk->sndbuf = l->sndbuf;
  sk->rcvbuf_locked = l->rcvbuf_locked;
  sk->sndbuf_locked = l->sndbuf_locked;
  sk->nonagle = l->nonagle;
  sk->keepopen = l->keepopen;
  sk->keepalive_time = l->keepalive_time;
  sk->keepalive_intvl = l->keepalive_intvl;
  sk->keepalive_probes = l->keepalive_probes;
  sk->linger2 = l->linger2;
  sk->user_mss = l->user_mss;
  sk->user_timeout_ms = l->user_timeout_ms;
  sk->notsent_lowat = l->notsent_lowat;
  sk->urginline = l->urginline;
  sk->tos = l->tos;
  sk->ttl = l->ttl;
  sk->mark = l->mark;
  sk->priority = l->priority;
  sk->lane_opt_tx = l->lane_opt_tx;
  if (sk->ca_ops != l->ca_ops) tcp_ca_assign(sk, l->ca_ops);
  sk->dead = true;
  if (l->dst) {
    ++l->dst->refcnt;
    tcp_set_dst(n, sk, l->dst);
  }
  tcp_options_received o;
  tcp_parse_options(th, o);
  if (!tcp_hash(n, sk) || !tcp_route(n, sk)) {
    tcp_sk_free(n, sk);
    return n.skbs.free(skb);
  }
  sk->listener = l;
  l->syn_queue.push_back(sk->accept_node);
  ++l->syn_qlen;
  tcp_rcv_syn_recv_open(n, sk, skb, th, o);
  n.skbs.free(skb);
}

bool tcp_child_established(net& n, tcp_sock* sk) {
  tcp_sock* l = sk->listener;
  sk->accept_node.unlink();
  --l->syn_qlen;
  l->accept_queue.push_back(sk->accept_node);
  ++l->accept_qlen;
  net_stat(n, &mib::TcpPassiveOpens);
  if (l->ops && l->ops->data_ready) l->ops->data_ready(l);
  return true;
}

void tcp_listener_forget(tcp_sock* sk) {
  tcp_sock* l = sk->listener;
  if (!l) return;
  const bool established = sk->passive && sk->state != TCP_SYN_RECV && sk->rcvq_space.time != 0;
  sk->accept_node.unlink();
  --(established ? l->accept_qlen : l->syn_qlen);
  sk->listener = nullptr;
}

void tcp_close_listener(net& n, tcp_sock* l) {
  while (!l->syn_queue.empty()) {
    tcp_sock* sk = child_of(l->syn_queue.next);
    tcp_sk_free(n, sk);
  }
  while (!l->accept_queue.empty()) {   // RFC 9293: connections nobody will ever take are reset
    tcp_sock* sk = child_of(l->accept_queue.next);
    sk->accept_node.unlink();
    --l->accept_qlen;
    sk->listener = nullptr;
    if (sk->state != TCP_CLOSE) tcp_abort(n, sk);
    if (!sk->freed) tcp_sk_free(n, sk);
  }
  tcp_unhash(l);
  l->state = TCP_CLOSE;
}

// ---- TIME-WAIT

void tcp_time_wait(net& n, tcp_sock* sk) {
  tcp_timewait_sock* tw = sk->params.timewait_len ? tcp_tw_alloc(n) : nullptr;
  if (tw) {
    tw->tuple = sk->tuple;
    tw->tw_rcv_nxt = sk->rcv_nxt;
    tw->tw_snd_nxt = sk->snd_nxt;
    tw->tw_rcv_wnd = tcp_receive_window(sk) >> sk->rcv_wscale;
    tw->tw_ts_recent = sk->ts_recent;
    tw->tw_ts_recent_stamp = sk->ts_recent_stamp;
    tw->tw_ts_offset = sk->tsoffset;
    tw->tw_tstamp_ok = sk->tstamp_ok;
    tw->tw_tos = sk->tos;
    tw->tw_len = sk->params.timewait_len;
    tw->dst = sk->dst;
    if (tw->dst) ++tw->dst->refcnt;
    tcp_unhash(sk);
    if (tcp_hash(n, tw)) tcp_start_timewait_timer(n, tw);
    else tcp_tw_free(n, tw);
  }
  tcp_done(n, sk);
}

void tcp_timewait_rcv(net& n, tcp_timewait_sock* tw, sk_buff* skb, tcp_hdr* th, const four_tuple& t) {
  tcp_options_received o;
  tcp_parse_options(th, o);
  const uint32_t seg_len = skb->len - th->doff();
  const bool ts = o.saw_tstamp && tw->tw_tstamp_ok;
  const bool paws_bad = ts && static_cast<int32_t>(tw->tw_ts_recent - o.rcv_tsval) > 0;
  const bool in_seq = skb->cb.seq == tw->tw_rcv_nxt && skb->cb.seq == skb->cb.end_seq;
  if (!paws_bad && (in_seq || (th->flags & TCPHDR_RST))) {
    // RFC 1337: a RST does not end TIME-WAIT. A pure ACK in sequence needs no answer.
    if (!(th->flags & TCPHDR_RST) && ts) tw->tw_ts_recent = o.rcv_tsval;
    return n.skbs.free(skb);
  }
  if ((th->flags & (TCPHDR_SYN | TCPHDR_ACK | TCPHDR_RST)) == TCPHDR_SYN && !paws_bad &&
      (after(skb->cb.seq, tw->tw_rcv_nxt) || (ts && static_cast<int32_t>(tw->tw_ts_recent - o.rcv_tsval) < 0))) {
    // RFC 9293 3.6.1 and RFC 6191: a new incarnation may begin where a listener waits.
    if (tcp_sock* l = tcp_lookup_listener(n, t.saddr, t.sport)) {
      tcp_tw_free(n, tw);
      return tcp_listen_rcv(n, l, skb, th, t);
    }
  }
  if (paws_bad) net_stat(n, &mib::TcpExtPAWSEstab);
  if (!(th->flags & TCPHDR_RST)) {
    if (!paws_bad && (seg_len || (th->flags & TCPHDR_FIN)) && (th->flags & TCPHDR_ACK)) tcp_start_timewait_timer(n, tw);   // the peer repeats its FIN: once more from the start
    if (!paws_bad || !tcp_oow_rate_limited(n, &tw->tw_last_oow_ack)) tcp_send_tw_ack(n, tw);
  }
  n.skbs.free(skb);
}

}  // namespace icepath
