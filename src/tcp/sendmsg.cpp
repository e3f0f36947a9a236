// From user memory to the write queue (T09, T11, T13). Owner: the stack; runs in the sending thread.
// Always: bytes counted in write_seq are in the queue; a fault, a full buffer or no memory ends the copy at a byte boundary and what was
// taken is reported. Small sends fill the linear frame of the tail skb first, then share the rest of the last fragment's frame.
#include "base/usercopy.hpp"
#include "tcp/tcp_internal.hpp"

namespace icepath {

namespace {

// Moves n bytes of the message to `to`. Returns bytes copied; fewer: the rest faulted.
uint32_t copy_in(user_msg& m, uint8_t* to, uint32_t n) {
  uint32_t done = 0;
  while (done < n) {
    const iovec& v = *m.iov;
    size_t k = v.iov_len - m.iov_off;
    if (k > n - done) k = n - done;
    if (k) {
      const size_t left = copy_from_user(to + done, static_cast<const uint8_t*>(v.iov_base) + m.iov_off, k);
      const uint32_t got = static_cast<uint32_t>(k - left);
      done += got;
      m.iov_off += got;
      m.count -= got;
      if (ICEPATH_UNLIKELY(left)) return done;
    }
    if (m.iov_off == v.iov_len && m.iovcnt > 1) {
      ++m.iov;
      --m.iovcnt;
      m.iov_off = 0;
    } else if (k == 0) {
      return done;
    }
  }
  return done;
}

bool page_refill(net& n, tcp_sock* sk) {
  if (sk->frag_page && sk->frag_off < frame_size) return true;
  if (sk->frag_page) n.skbs.frames.put(sk->frag_page);
  sk->frag_page = n.skbs.frames.alloc();
  sk->frag_off = 0;
  return sk->frag_page != nullptr;
}

enum class add : uint8_t { ok, full, nomem, fault };

// Appends up to `copy` bytes to skb; *got says how many.
add append(net& n, tcp_sock* sk, sk_buff* skb, user_msg& m, uint32_t copy, uint32_t* got) {
  *got = 0;
  const uint32_t room = skb->tailroom();
  if (ICEPATH_LIKELY(room)) {
    if (copy > room) copy = room;
    *got = copy_in(m, skb->tail(), copy);
    skb->len += *got;
    return *got == copy ? add::ok : add::fault;
  }
  if (!page_refill(n, sk)) return add::nomem;
  uint8_t* at = sk->frag_page + sk->frag_off;
  skb_frag* last = skb->nr_frags ? &skb->frags[skb->nr_frags - 1] : nullptr;
  const bool joins = last && sk->frag_off && last->addr + last->len == at;
  if (!joins && skb->nr_frags == max_skb_frags) return add::full;
  if (copy > frame_size - sk->frag_off) copy = static_cast<uint32_t>(frame_size - sk->frag_off);
  *got = copy_in(m, at, copy);
  if (*got) {
    if (joins) {
      last->len += *got;
    } else {
      n.skbs.frames.get(sk->frag_page);
      skb->frags[skb->nr_frags++] = {at, *got};
      skb->truesize += skb_truesize_frame;
      sk->wmem_queued += skb_truesize_frame;
    }
    skb->len += *got;
    skb->data_len += *got;
    sk->frag_off += *got;
  }
  return *got == copy ? add::ok : add::fault;
}

void mark_push(tcp_sock* sk, sk_buff* skb) {
  skb->cb.tcp_flags |= TCPHDR_PSH;
  sk->pushed_seq = sk->write_seq;
}
bool forced_push(const tcp_sock* sk) { return after(sk->write_seq, sk->pushed_seq + (sk->max_window >> 1)); }   // T11l

// T13: while earlier data still sits below us, a small tail may grow; Tx completion releases it.
bool should_autocork(const tcp_sock* sk, const sk_buff* skb, uint32_t size_goal) {
  return skb->len < size_goal && sk->params.autocorking && !sk->tcp_rtx_queue.empty() && sk->wmem_alloc > skb->truesize && !skb->cb.eor;
}

void tcp_push(net& n, tcp_sock* sk, int flags, uint32_t mss_now, uint8_t nonagle, uint32_t size_goal) {
  sk_buff* skb = sk->sk_write_queue.last;
  if (!skb) return;
  if (!(flags & MSG_MORE) || forced_push(sk)) mark_push(sk, skb);
  if (flags & MSG_OOB) {   // RFC 6093: snd_up is the byte after the urgent one
    sk->snd_up = sk->write_seq;
    sk->urg_mode = true;
  }
  if (should_autocork(sk, skb, size_goal)) {
    if (!sk->tsq_throttled) net_stat(n, &mib::TcpExtTCPAutoCorking);
    sk->tsq_throttled = true;
    return;
  }
  tcp_push_pending(n, sk, mss_now, flags & MSG_MORE ? static_cast<uint8_t>(TCP_NAGLE_CORK) : nonagle);
}

}  // namespace

ssize_t tcp_sendmsg(net& n, tcp_sock* sk, user_msg& m, int flags) {
  if (ICEPATH_UNLIKELY(!tcp_in_state(sk, tcpf(TCP_ESTABLISHED) | tcpf(TCP_CLOSE_WAIT)) || sk->err || (sk->sk_shutdown & SEND_SHUTDOWN))) {
    if (sk->err) {   // T11i: the pending error wins
      const int e = sk->err;
      sk->err = 0;
      return -e;
    }
    if (sk->sk_shutdown & SEND_SHUTDOWN) return -EPIPE;
    if (tcp_in_state(sk, tcpf(TCP_SYN_SENT) | tcpf(TCP_SYN_RECV)) || (sk->state == TCP_LISTEN && sk->expect)) {   // T11f
      sk->sock_nospace = true;
      return -EAGAIN;
    }
    return -EPIPE;
  }
  uint32_t size_goal;
  const uint32_t mss = tcp_send_mss(sk, &size_goal, flags);
  ssize_t copied = 0;
  int err = 0;
  if (!sk->packets_out && sk->sk_write_queue.empty() && sk->delivered) sk->app_limited = sk->delivered + 1;   // T11e
  while (m.count) {
    sk_buff* skb = sk->sk_write_queue.last;
    uint32_t copy = skb && skb->len < size_goal ? size_goal - skb->len : 0;
    if (!copy || skb->cb.eor || (skb->cb.tcp_flags & TCPHDR_FIN)) {
      if (ICEPATH_UNLIKELY(!sk_stream_memory_free(sk))) {
        err = EAGAIN;
        break;
      }
      skb = tcp_stream_alloc_skb(n, sk);
      if (ICEPATH_UNLIKELY(!skb)) {
        err = ENOBUFS;
        break;
      }
      tcp_queue_skb(sk, skb);
      copy = size_goal;
    }
    if (copy > m.count) copy = static_cast<uint32_t>(m.count);
    uint32_t got;
    const add verdict = append(n, sk, skb, m, copy, &got);
    if (got) {
      if (!copied) skb->cb.tcp_flags &= static_cast<uint8_t>(~TCPHDR_PSH);
      sk->write_seq += got;
      skb->cb.end_seq += got;
      skb->cb.tcp_gso_segs = 0;
      copied += got;
    }
    if (ICEPATH_UNLIKELY(verdict != add::ok)) {
      if (verdict == add::full) {
        size_goal = skb->len;   // no place for another fragment: this skb is complete
        mark_push(sk, skb);
        tcp_push_pending(n, sk, mss, TCP_NAGLE_PUSH);
        tcp_send_mss(sk, &size_goal, flags);
        if (sk->sk_write_queue.last == skb) skb->cb.eor = 1;
        continue;
      }
      if (skb->len == 0 && skb == sk->sk_write_queue.last) {   // T11o: no empty skb stays behind
        sk->sk_write_queue.unlink(skb);
        tcp_free_tx_skb(n, sk, skb);
      }
      err = verdict == add::fault ? EFAULT : ENOBUFS;
      break;
    }
    if (!m.count) {
      if (flags & MSG_EOR) skb->cb.eor = 1;
      break;
    }
    if (skb->len < size_goal || (flags & MSG_OOB)) continue;
    if (forced_push(sk)) {
      mark_push(sk, skb);
      tcp_push_pending(n, sk, mss, TCP_NAGLE_PUSH);
    } else if (skb == tcp_send_head(sk)) {
      tcp_push_one(n, sk, mss);
    }
    if (ICEPATH_UNLIKELY(!tcp_in_state(sk, tcpf(TCP_ESTABLISHED) | tcpf(TCP_CLOSE_WAIT)))) break;
  }
  if (ICEPATH_LIKELY(!err)) {
    if (copied) tcp_push(n, sk, flags, mss, sk->nonagle, size_goal);
    return copied;
  }
  if (err == EFAULT) {
    if (copied) tcp_push(n, sk, flags, mss, sk->nonagle, size_goal);
    return copied ? copied : -EFAULT;
  }
  // Out of space (T11n): everything goes that may go, and write_space is owed.
  sk->sock_nospace = true;
  tcp_push(n, sk, flags & ~MSG_MORE, mss, TCP_NAGLE_PUSH, size_goal);
  if (copied) return copied;
  if (err == ENOBUFS && (sk->packets_out || tcp_send_head(sk))) err = EAGAIN;   // an ACK will bring memory back
  if (err == EAGAIN && !sk->packets_out) tcp_check_probe_timer(sk);
  tcp_chrono_set(sk, sk->packets_out && sk->chrono_type == 2 ? 2 : 3);
  return -err;
}

size_t tcp_peek_send_queue(net&, const tcp_sock* sk, uint32_t off, uint8_t* to, size_t len) {
  size_t done = 0;
  uint32_t at = sk->snd_una + off;
  for (const sk_buff_head* q : {&sk->tcp_rtx_queue, &sk->sk_write_queue}) {
    for (const sk_buff* s = q->first; s && done < len; s = s->next) {
      uint32_t first = s->cb.seq + ((s->cb.tcp_flags & TCPHDR_SYN) ? 1 : 0);
      if (!before(at, first + s->len) || before(at, first)) continue;
      const uint32_t skip = at - first;
      uint32_t k = s->len - skip;
      if (k > len - done) k = static_cast<uint32_t>(len - done);
      skb_copy_bits(s, skip, to + done, k);
      done += k;
      at += k;
    }
  }
  return done;
}

}  // namespace icepath
