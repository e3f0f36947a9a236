// Selective acknowledgement (RFC 2018, RFC 2883), both ways: marking what the peer reports, and reporting what we hold.
// Owner: the stack. Always: sacked_out, lost_out and retrans_out are the sums of tcp_gso_segs over the skbs that carry the mark;
// selective_acks are disjoint, above rcv_nxt, the most recently changed block first.
#include "tcp/tcp_internal.hpp"

namespace icepath {

namespace {

bool tcp_is_sackblock_valid(const tcp_sock* sk, bool dsack, uint32_t start, uint32_t end) {
  if (after(end, sk->snd_nxt) || !before(start, end) || !before(start, sk->snd_nxt)) return false;
  if (after(start, sk->snd_una)) return true;
  if (!dsack || !sk->undo_marker) return false;
  if (after(end, sk->snd_una)) return false;
  return !before(start, sk->undo_marker) || after(end, sk->undo_marker);
}

struct tagger {
  net& n;
  tcp_sock* sk;
  tcp_sacktag_state& st;
  uint32_t flag = 0;
  nsec first_sackt = 0;

  void reorder_at(uint32_t seq) {
    if (!st.have_reord || before(seq, st.reord)) st.reord = seq;
    st.have_reord = true;
  }

  void tag(sk_buff* skb, bool dup) {
    uint8_t& sacked = skb->cb.sacked;
    const uint32_t pcount = tcp_skb_pcount(skb);
    if (dup && (sacked & (TCPCB_SACKED_RETRANS | TCPCB_EVER_RETRANS))) {
      if (sk->undo_marker && sk->undo_retrans > 0 && after(skb->cb.end_seq, sk->undo_marker))
        sk->undo_retrans = sk->undo_retrans > static_cast<int32_t>(pcount) ? sk->undo_retrans - static_cast<int32_t>(pcount) : 0;
      if (sacked & TCPCB_SACKED_ACKED) reorder_at(skb->cb.seq);
    }
    if (!after(skb->cb.end_seq, sk->snd_una)) return;
    if (!(sacked & TCPCB_SACKED_ACKED)) {
      if (sacked & TCPCB_SACKED_RETRANS) {
        if (sacked & TCPCB_LOST) {   // the retransmission arrived
          sacked &= static_cast<uint8_t>(~(TCPCB_LOST | TCPCB_SACKED_RETRANS));
          sk->lost_out -= pcount;
          sk->retrans_out -= pcount;
        }
      } else {
        if (!(sacked & TCPCB_EVER_RETRANS)) {   // an original that filled a hole: the network reorders
          if (sk->highest_sack && before(skb->cb.seq, sk->highest_sack->cb.seq)) reorder_at(skb->cb.seq);
          if (!after(skb->cb.end_seq, sk->high_seq)) flag |= FLAG_ORIG_SACK_ACKED;
          if (!first_sackt) first_sackt = skb->tstamp;
        }
        if (sacked & TCPCB_LOST) {
          sacked &= static_cast<uint8_t>(~TCPCB_LOST);
          sk->lost_out -= pcount;
        }
      }
      sacked |= TCPCB_SACKED_ACKED;
      flag |= FLAG_DATA_SACKED;
      sk->sacked_out += pcount;
      sk->delivered += pcount;
      tcp_rate_skb_delivered(sk, skb);
      if (!sk->highest_sack || after(skb->cb.seq, sk->highest_sack->cb.seq)) sk->highest_sack = skb;
    }
    if (dup && (sacked & TCPCB_SACKED_RETRANS)) {
      sacked &= static_cast<uint8_t>(~TCPCB_SACKED_RETRANS);
      sk->retrans_out -= pcount;
    }
  }

  void walk(uint32_t start, uint32_t end, bool dup) {
    sk_buff* skb = sk->tcp_rtx_queue.first;
    if (sk->highest_sack && !before(start, sk->highest_sack->cb.seq)) skb = sk->highest_sack;
    for (; skb; skb = skb->next) {
      if (!before(skb->cb.seq, end)) return;
      if (!after(skb->cb.end_seq, start)) continue;
      const uint32_t mss = tcp_skb_mss(skb);
      if (before(skb->cb.seq, start)) {   // only the tail is covered: cut before it, at a segment boundary
        if (tcp_skb_pcount(skb) == 1 || !mss) continue;
        const uint32_t cut = (start - skb->cb.seq + mss - 1) / mss * mss;
        if (cut >= skb->len || !tcp_fragment(n, sk, sk->tcp_rtx_queue, skb, cut, mss)) continue;
        continue;   // the new skb comes next
      }
      if (after(skb->cb.end_seq, end)) {
        if (tcp_skb_pcount(skb) == 1 || !mss) continue;
        const uint32_t cut = (end - skb->cb.seq) / mss * mss;
        if (!cut || cut >= skb->len || !tcp_fragment(n, sk, sk->tcp_rtx_queue, skb, cut, mss)) continue;
      }
      tag(skb, dup);
    }
  }
};

}  // namespace

uint32_t tcp_sacktag_write_queue(net& n, tcp_sock* sk, const sk_buff* skb, const tcp_options_received& o, uint32_t prior_snd_una, tcp_sacktag_state& st) {
  tagger t{n, sk, st};
  const uint32_t ack = skb->cb.ack_seq;
  tcp_sack_seq b[4];
  unsigned used = 0, first = 0;
  bool dsack = false;
  if (o.num_sacks) {   // RFC 2883 section 4
    const uint32_t s0 = o.sacks[0].start_seq, e0 = o.sacks[0].end_seq;
    dsack = before(s0, ack) || (o.num_sacks > 1 && !after(e0, o.sacks[1].end_seq) && !before(s0, o.sacks[1].start_seq));
    if (dsack) {
      t.flag |= FLAG_DSACKING_ACK;
      net_stat(n, &mib::TcpExtTCPDSACKRecv);
      ++sk->dsack_dups;
      if (sk->undo_marker && sk->undo_retrans > 0 && !after(e0, prior_snd_una) && after(e0, sk->undo_marker)) {
        const uint32_t segs = (e0 - s0 + sk->mss_cache - 1) / (sk->mss_cache ? sk->mss_cache : 1);
        sk->undo_retrans = sk->undo_retrans > static_cast<int32_t>(segs) ? sk->undo_retrans - static_cast<int32_t>(segs) : 0;
      }
      first = 1;
      if (tcp_is_sackblock_valid(sk, true, s0, e0) && after(e0, sk->snd_una)) t.walk(s0, e0, true);
    }
  }
  if (before(ack, prior_snd_una - sk->max_window)) return t.flag;
  if (!sk->packets_out) return t.flag;
  for (unsigned i = first; i < o.num_sacks; ++i) {
    if (!tcp_is_sackblock_valid(sk, false, o.sacks[i].start_seq, o.sacks[i].end_seq)) continue;
    unsigned at = used++;
    for (; at && after(b[at - 1].start_seq, o.sacks[i].start_seq); --at) b[at] = b[at - 1];
    b[at] = {o.sacks[i].start_seq, o.sacks[i].end_seq};
  }
  for (unsigned i = 0; i < used; ++i) {
    // What an earlier ACK already reported is not walked again.
    uint32_t s = b[i].start_seq;
    const uint32_t e = b[i].end_seq;
    bool skip = false;
    for (const tcp_sack_seq& c : sk->recv_sack_cache) {
      if (c.start_seq == c.end_seq) continue;
      if (!before(s, c.start_seq) && !after(e, c.end_seq)) skip = true;
      else if (!before(s, c.start_seq) && before(s, c.end_seq)) s = c.end_seq;
    }
    if (!skip) t.walk(s, e, false);
  }
  for (unsigned i = 0; i < 4; ++i) sk->recv_sack_cache[i] = i < used ? b[i] : tcp_sack_seq{};
  if (st.have_reord && sk->ca_state != TCP_CA_Loss) tcp_check_sack_reordering(sk, st.reord);
  if (t.first_sackt) st.sack_rtt_us = n.now > t.first_sackt ? static_cast<int64_t>((n.now - t.first_sackt) / usec_ns) : 0;
  return t.flag;
}

// ---- what we report

static bool tcp_sack_extend(tcp_sack_seq& b, uint32_t seq, uint32_t end) {
  if (after(seq, b.end_seq) || after(b.start_seq, end)) return false;
  if (before(seq, b.start_seq)) b.start_seq = seq;
  if (after(end, b.end_seq)) b.end_seq = end;
  return true;
}

void tcp_sack_new_ofo_skb(tcp_sock* sk, uint32_t seq, uint32_t end) {
  tcp_sack_seq* a = sk->selective_acks;
  unsigned i = 0;
  while (i < sk->num_sacks && !tcp_sack_extend(a[i], seq, end)) ++i;
  tcp_sack_seq b{seq, end};
  if (i < sk->num_sacks) {
    b = a[i];
  } else {
    if (sk->num_sacks < 4) ++sk->num_sacks;   // else the oldest block is forgotten
    i = sk->num_sacks - 1u;
  }
  for (; i; --i) a[i] = a[i - 1];
  a[0] = b;
  for (unsigned j = 1; j < sk->num_sacks;) {   // the grown block may have swallowed others
    if (tcp_sack_extend(a[0], a[j].start_seq, a[j].end_seq)) {
      for (unsigned k = j + 1; k < sk->num_sacks; ++k) a[k - 1] = a[k];
      --sk->num_sacks;
    } else {
      ++j;
    }
  }
}

void tcp_sack_remove(tcp_sock* sk) {
  if (sk->out_of_order_queue.empty()) {
    sk->num_sacks = 0;
    return;
  }
  for (unsigned i = 0; i < sk->num_sacks;) {
    if (!before(sk->rcv_nxt, sk->selective_acks[i].start_seq)) {
      for (unsigned k = i + 1; k < sk->num_sacks; ++k) sk->selective_acks[k - 1] = sk->selective_acks[k];
      --sk->num_sacks;
    } else {
      ++i;
    }
  }
}

// After the out-of-order queue was pruned: report only what is still there (RFC 2018 section 8 allows it).
void tcp_sack_rebuild(tcp_sock* sk) {
  sk->num_sacks = 0;
  if (!sk->sack_ok) return;
  for (const sk_buff* s = sk->out_of_order_queue.first; s; s = s->next) tcp_sack_new_ofo_skb(sk, s->cb.seq, s->cb.end_seq);
}

void tcp_dsack_set(tcp_sock* sk, uint32_t seq, uint32_t end) {
  if (!sk->sack_ok || !sk->params.dsack) return;
  if (sk->dsack_pending && tcp_sack_extend(sk->duplicate_sack, seq, end)) return;
  sk->dsack_pending = true;
  sk->duplicate_sack = {seq, end};
}

}  // namespace icepath
