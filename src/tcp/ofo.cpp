// The receive queue and the out-of-order queue. Owner: the stack.
// Always: sk_receive_queue holds exactly the unread part of the stream up to rcv_nxt (a FIN takes a number but no place), without gap or
// overlap; out_of_order_queue is sorted, disjoint and above rcv_nxt. rmem_alloc is the truesize of both. Memory is bounded by rcvbuf: data
// that was promised by the window is taken beyond it within a fixed factor, anything else is dropped and acknowledged again.
#include "tcp/tcp_internal.hpp"

namespace icepath {

void tcp_data_ready(tcp_sock* sk) {
  if (!sk->ops || !sk->ops->data_ready) return;
  if (sk->rcvlowat > 1 && !(sk->sk_shutdown & RCV_SHUTDOWN) && sk->rcv_nxt - sk->copied_seq < static_cast<uint32_t>(sk->rcvlowat) &&
      tcp_receive_window(sk) > sk->ack.rcv_mss && !sk->urg_data)
    return;
  sk->ops->data_ready(sk);
}

// Appends skb's bytes to `to` when the memory they pin gets less by it. true: skb is gone.
static bool tcp_try_coalesce(net& n, tcp_sock* sk, sk_buff* to, sk_buff* skb) {
  if (to->cb.end_seq != skb->cb.seq || (to->cb.tcp_flags & TCPHDR_FIN)) return false;
  if (skb->len <= to->tailroom() && !n.skbs.frames.shared(to->head)) {
    skb_copy_bits(skb, 0, to->tail(), skb->len);
    to->len += skb->len;
  } else {
    const uint32_t head_bytes = skb->headlen();
    // Whole frames are moved only when they are well filled: else small messages would pin a frame each.
    if (skb->len < 2048u * (skb->nr_frags + (head_bytes ? 1u : 0u))) return false;
    if (to->nr_frags + skb->nr_frags + (head_bytes ? 1u : 0u) > max_skb_frags) return false;
    uint32_t moved = 0;
    if (head_bytes) {
      to->frags[to->nr_frags++] = {skb->data, head_bytes};
      skb->head = nullptr;   // its reference moves along
      moved += skb_truesize_frame;
    }
    for (unsigned i = 0; i < skb->nr_frags; ++i) {
      to->frags[to->nr_frags++] = skb->frags[i];
      moved += skb_truesize_frame;
    }
    skb->nr_frags = 0;
    to->len += skb->len;
    to->data_len += skb->len;
    to->truesize += moved;
    sk->rmem_alloc += moved;
  }
  to->cb.end_seq = skb->cb.end_seq;
  to->cb.ack_seq = skb->cb.ack_seq;
  to->cb.tcp_flags |= skb->cb.tcp_flags;
  skb->len = skb->data_len = 0;
  n.skbs.free(skb);
  net_stat(n, &mib::TcpExtTCPRcvCoalesce);
  return true;
}

bool tcp_queue_rcv(net& n, tcp_sock* sk, sk_buff* skb) {
  sk_buff* tail = sk->sk_receive_queue.last;
  sk->bytes_received += skb->len;
  net_stat(n, &mib::RxBytes, skb->len);
  sk->rcv_nxt = skb->cb.end_seq;
  if (tail && tcp_try_coalesce(n, sk, tail, skb)) return true;
  sk->sk_receive_queue.push_back(skb);
  sk->rmem_alloc += skb->truesize;
  return false;
}

// Room for skb? In order: what the window promised is taken, out-of-order data gives way first.
bool tcp_try_rmem(net& n, tcp_sock* sk, const sk_buff* skb, bool in_order) {
  if (sk->rmem_alloc + skb->truesize <= sk->rcvbuf) return true;
  tcp_clamp_window(sk);
  if (sk->rmem_alloc + skb->truesize <= sk->rcvbuf) return true;
  if (!in_order) return false;
  bool pruned = false;
  while (!sk->out_of_order_queue.empty() && sk->rmem_alloc + skb->truesize > sk->rcvbuf) {
    sk_buff* last = sk->out_of_order_queue.last;   // the farthest first: it is needed last
    sk->out_of_order_queue.unlink(last);
    sk->rmem_alloc -= last->truesize;
    n.skbs.free(last);
    pruned = true;
  }
  if (pruned) {
    net_stat(n, &mib::TcpExtTCPRcvQDrop);
    tcp_sack_rebuild(sk);
  }
  return sk->sk_receive_queue.empty() || sk->rmem_alloc <= 2ull * sk->rcvbuf + (256u << 10);
}

void tcp_event_data_recv(net& n, tcp_sock* sk, const sk_buff* skb) {
  sk->ack.pending |= ACK_SCHED;
  tcp_measure_rcv_mss(sk, skb);
  tcp_rcv_rtt_measure(sk);
  if (!sk->ack.ato) {   // first data: acknowledge at once so that the peer's slow start gets going
    tcp_enter_quickack_mode(sk, tcp_max_quickacks);
    sk->ack.ato = sk->params.delack_min;
  } else {
    const nsec m = n.now - sk->ack.lrcvtime;
    if (m <= tcp_ato_min / 2) sk->ack.ato = (sk->ack.ato >> 1) + tcp_ato_min / 2;
    else if (m < sk->ack.ato) {
      sk->ack.ato = (sk->ack.ato >> 1) + m;
      if (sk->ack.ato > sk->rto) sk->ack.ato = sk->rto;
    } else if (m > sk->rto) {
      tcp_enter_quickack_mode(sk, tcp_max_quickacks);   // a new burst after a pause
    }
  }
  sk->ack.lrcvtime = n.now;
  if (skb->len >= 128) tcp_grow_window(sk, skb);
}

static bool trim_front(net& n, sk_buff* skb, uint32_t to_seq) {
  const uint32_t cut = to_seq - skb->cb.seq;
  if (cut == 0) return true;
  if (!skb_pull_any(n.skbs, skb, cut)) return false;
  skb->cb.seq = to_seq;
  return true;
}

static void tcp_ofo_queue(net& n, tcp_sock* sk) {
  bool fin = false;
  while (sk_buff* skb = sk->out_of_order_queue.first) {
    if (after(skb->cb.seq, sk->rcv_nxt)) break;
    sk->out_of_order_queue.unlink(skb);
    sk->rmem_alloc -= skb->truesize;
    if (before(skb->cb.seq, sk->rcv_nxt)) tcp_dsack_set(sk, skb->cb.seq, after(skb->cb.end_seq, sk->rcv_nxt) ? sk->rcv_nxt : skb->cb.end_seq);
    if (!after(skb->cb.end_seq, sk->rcv_nxt) || !trim_front(n, skb, sk->rcv_nxt)) {
      n.skbs.free(skb);
      continue;
    }
    fin = skb->cb.tcp_flags & TCPHDR_FIN;
    if (skb->len == 0) {
      sk->rcv_nxt = skb->cb.end_seq;
      n.skbs.free(skb);
    } else {
      tcp_queue_rcv(n, sk, skb);
    }
    if (fin) break;
  }
  if (fin) tcp_fin(n, sk);
}

static void tcp_data_queue_ofo(net& n, tcp_sock* sk, sk_buff* skb) {
  if (!tcp_try_rmem(n, sk, skb, false)) {
    net_stat(n, &mib::TcpExtTCPRcvQDrop);
    n.skbs.free(skb);
    return;
  }
  sk->pred_flags = 0;
  sk->ack.pending |= ACK_SCHED;
  ++sk->rcv_ooopack;
  net_stat(n, &mib::TcpExtTCPOFOQueue);
  const uint32_t seq = skb->cb.seq, end = skb->cb.end_seq;
  sk_buff_head& q = sk->out_of_order_queue;
  sk_buff* prev = q.last;
  while (prev && after(prev->cb.seq, seq)) prev = prev->prev;
  if (prev && !after(end, prev->cb.end_seq)) {   // all of it is here already
    tcp_dsack_set(sk, seq, end);
    n.skbs.free(skb);
    return;
  }
  if (prev && before(seq, prev->cb.end_seq)) {
    tcp_dsack_set(sk, seq, prev->cb.end_seq);
    if (!trim_front(n, skb, prev->cb.end_seq)) return n.skbs.free(skb);
  }
  for (sk_buff* next = prev ? prev->next : q.first; next && before(next->cb.seq, end);) {
    sk_buff* after_next = next->next;
    if (after(next->cb.end_seq, end)) {
      tcp_dsack_set(sk, next->cb.seq, end);
      skb_trim(n.skbs, skb, next->cb.seq - skb->cb.seq);
      skb->cb.end_seq = next->cb.seq;
      skb->cb.tcp_flags &= static_cast<uint8_t>(~TCPHDR_FIN);
      break;
    }
    tcp_dsack_set(sk, next->cb.seq, next->cb.end_seq);
    q.unlink(next);
    sk->rmem_alloc -= next->truesize;
    n.skbs.free(next);
    net_stat(n, &mib::TcpExtTCPOFOMerge);
    next = after_next;
  }
  if (!(prev && tcp_try_coalesce(n, sk, prev, skb))) {
    sk->rmem_alloc += skb->truesize;
    if (prev) q.insert_after(prev, skb);
    else q.push_front(skb);
  }
  if (sk->sack_ok) tcp_sack_new_ofo_skb(sk, seq, end);
}

void tcp_data_queue(net& n, tcp_sock* sk, sk_buff* skb) {
  if (skb->cb.seq == skb->cb.end_seq) return n.skbs.free(skb);
  const uint32_t wnd = tcp_receive_window(sk);
  bool drop = false;
  if (!after(skb->cb.end_seq, sk->rcv_nxt)) {   // nothing new: the peer lost our ACK
    net_stat(n, &mib::TcpExtDelayedACKLost);
    tcp_dsack_set(sk, skb->cb.seq, skb->cb.end_seq);
    drop = true;
  } else if (!before(skb->cb.seq, sk->rcv_nxt + wnd)) {
    // Outside the window. A bare FIN at a closed window needs no room.
    drop = !(skb->cb.seq == sk->rcv_nxt && skb->len == 0);
  }
  if (drop) {
    tcp_enter_quickack_mode(sk, tcp_max_quickacks);
    sk->ack.pending |= ACK_SCHED | ACK_NOW;
    return n.skbs.free(skb);
  }
  if (after(skb->cb.seq, sk->rcv_nxt)) return tcp_data_queue_ofo(n, sk, skb);
  if (before(skb->cb.seq, sk->rcv_nxt)) {
    tcp_dsack_set(sk, skb->cb.seq, sk->rcv_nxt);
    if (!trim_front(n, skb, sk->rcv_nxt)) return n.skbs.free(skb);
  }
  if (!tcp_try_rmem(n, sk, skb, true)) {
    net_stat(n, &mib::TcpExtTCPRcvQDrop);
    sk->ack.pending |= ACK_SCHED | ACK_NOW;
    return n.skbs.free(skb);
  }
  const bool fin = skb->cb.tcp_flags & TCPHDR_FIN;
  if (skb->len) {
    tcp_event_data_recv(n, sk, skb);
    tcp_queue_rcv(n, sk, skb);
  } else {
    sk->rcv_nxt = skb->cb.end_seq;
    n.skbs.free(skb);
  }
  if (fin) tcp_fin(n, sk);
  if (!sk->out_of_order_queue.empty()) {
    tcp_ofo_queue(n, sk);
    if (sk->out_of_order_queue.empty()) sk->ack.pending |= ACK_NOW;   // RFC 5681 4.2: a gap was filled
  }
  if (sk->freed || sk->state == TCP_CLOSE) return;
  if (sk->num_sacks) tcp_sack_remove(sk);
  tcp_fast_path_check(sk);
  tcp_data_ready(sk);
}

}  // namespace icepath
