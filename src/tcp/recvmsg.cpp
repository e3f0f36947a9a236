// From the receive queue to user memory (T33). Owner: the stack; runs in the reading thread.
// Always: copied_seq advances only over bytes that were copied (or discarded by MSG_TRUNC); a fault leaves the faulting byte unread.
#include "base/usercopy.hpp"
#include "tcp/tcp_internal.hpp"

namespace icepath {

namespace {

uint32_t copy_out_flat(user_msg& m, const uint8_t* from, uint32_t n) {
  uint32_t done = 0;
  while (done < n) {
    const iovec& v = *m.iov;
    size_t k = v.iov_len - m.iov_off;
    if (k > n - done) k = n - done;
    if (k) {
      const size_t left = copy_to_user(static_cast<uint8_t*>(v.iov_base) + m.iov_off, from + done, k);
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

// Bytes copied of [off, off + n) of skb; fewer: fault.
uint32_t copy_out(user_msg& m, const sk_buff* skb, uint32_t off, uint32_t n) {
  uint32_t done = 0;
  const uint32_t head = skb->headlen();
  if (off < head) {
    const uint32_t k = head - off < n ? head - off : n;
    done = copy_out_flat(m, skb->data + off, k);
    if (done < k || done == n) return done;
    off = head;
  }
  uint32_t base = head;
  for (unsigned i = 0; i < skb->nr_frags && done < n; ++i) {
    const skb_frag& f = skb->frags[i];
    if (off < base + f.len) {
      const uint32_t skip = off - base;
      const uint32_t k = f.len - skip < n - done ? f.len - skip : n - done;
      const uint32_t got = copy_out_flat(m, f.addr + skip, k);
      done += got;
      off += got;
      if (got < k) return done;
    }
    base += f.len;
  }
  return done;
}

ssize_t tcp_recv_urg(tcp_sock* sk, user_msg* m, size_t max, int flags) {
  if (sk->urginline || !sk->urg_data || sk->urg_data == TCP_URG_READ) return -EINVAL;
  if (sk->state == TCP_CLOSE && !(sk->sk_shutdown & RCV_SHUTDOWN)) return -ENOTCONN;
  if (sk->urg_data & TCP_URG_VALID) {
    const uint8_t c = static_cast<uint8_t>(sk->urg_data);
    if (!(flags & MSG_PEEK)) sk->urg_data = TCP_URG_READ;
    if (max && m && !(flags & MSG_TRUNC)) return copy_out_flat(*m, &c, 1) == 1 ? 1 : -EFAULT;
    return max ? 1 : 0;
  }
  if (sk->state == TCP_CLOSE || (sk->sk_shutdown & RCV_SHUTDOWN)) return 0;
  return -EAGAIN;
}

void eat_skb(net& n, tcp_sock* sk, sk_buff* skb) {
  sk->sk_receive_queue.unlink(skb);
  sk->rmem_alloc -= skb->truesize < sk->rmem_alloc ? skb->truesize : sk->rmem_alloc;
  n.skbs.free(skb);
}

}  // namespace

ssize_t tcp_recvmsg(net& n, tcp_sock* sk, user_msg* m, size_t max, int flags) {
  if (ICEPATH_UNLIKELY(sk->state == TCP_LISTEN)) return sk->expect ? -EAGAIN : -ENOTCONN;
  if (ICEPATH_UNLIKELY(flags & MSG_OOB)) return tcp_recv_urg(sk, m, max, flags);
  const bool peek = flags & MSG_PEEK, trunc = flags & MSG_TRUNC;
  uint32_t seq = sk->copied_seq;
  size_t copied = 0;
  bool fault = false;
  sk_buff* next;
  for (sk_buff* skb = sk->sk_receive_queue.first; skb && copied < max; skb = next) {
    next = skb->next;
    uint32_t off = seq - skb->cb.seq;
    if (off < skb->len) {
      uint32_t used = skb->len - off;
      if (ICEPATH_UNLIKELY(sk->urg_data)) {   // a read stops at the mark, and goes past it only when it begins there
        const uint32_t urg_off = sk->urg_seq - seq;
        if (urg_off < used) {
          if (urg_off) {
            used = urg_off;
          } else {
            if (copied && sk->urg_data != TCP_URG_READ) break;
            if (!sk->urginline) {
              ++seq;
              ++off;
              --used;
            }
          }
        } else if (urg_off == 0 && copied) {
          break;
        }
      }
      if (used > max - copied) used = static_cast<uint32_t>(max - copied);
      if (used) {
        uint32_t got = used;
        if (!trunc && m) got = copy_out(*m, skb, off, used);
        seq += got;
        copied += got;
        if (ICEPATH_UNLIKELY(got < used)) {
          fault = true;
          if (!peek) sk->copied_seq = seq;
          break;
        }
      }
    }
    if (!peek) {
      sk->copied_seq = seq;
      if (ICEPATH_UNLIKELY(sk->urg_data && after(seq, sk->urg_seq))) {
        sk->urg_data = 0;
        tcp_fast_path_check(sk);
      }
      if (seq - skb->cb.seq >= skb->len) eat_skb(n, sk, skb);
    }
  }
  if (ICEPATH_LIKELY(copied)) {
    if (!peek) {
      tcp_rcv_space_adjust(n, sk);
      tcp_cleanup_rbuf(n, sk, static_cast<int>(copied < 0x7fffffff ? copied : 0x7fffffff));
    }
    return static_cast<ssize_t>(copied);
  }
  if (fault) return -EFAULT;
  if (max == 0) return 0;
  if (sk->err) {
    const int e = sk->err;
    if (!peek) sk->err = 0;
    return -e;
  }
  if (sk->sk_shutdown & RCV_SHUTDOWN) return 0;
  if (sk->state == TCP_CLOSE) return -ENOTCONN;
  if (!peek) tcp_cleanup_rbuf(n, sk, 0);
  return -EAGAIN;
}

}  // namespace icepath
