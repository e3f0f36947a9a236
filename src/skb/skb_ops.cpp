// Cutting and reading sk_buffs. Runs under the owner word of the stack whose pool is passed; no bytes are copied where a
// frame reference does. Nobody here touches sk, destructor or what is charged to a socket: truesize is kept right and the
// caller charges the difference.
#include "skb/sk_buff.hpp"

namespace icepath {

namespace {

// Forgets fragments [from, nr_frags).
void drop_frags(skb_pool& p, sk_buff* s, unsigned from) {
  for (unsigned i = from; i < s->nr_frags; ++i) {
    s->data_len -= s->frags[i].len;
    s->len -= s->frags[i].len;
    s->truesize -= skb_truesize_frame;
    p.frames.put(s->frags[i].addr);
  }
  s->nr_frags = static_cast<uint16_t>(from);
}

// The last n linear bytes leave. When somebody else still reads them, nobody may append in their place.
void cut_tail(skb_pool& p, sk_buff* s, uint32_t n) {
  s->len -= n;
  if (p.frames.shared(s->head)) s->no_tail = 1;
}

// The first `n` fragments leave from the front, already released or moved elsewhere.
void shift_frags(sk_buff* s, unsigned n) {
  if (!n) return;
  s->nr_frags = static_cast<uint16_t>(s->nr_frags - n);
  std::memmove(s->frags, s->frags + n, s->nr_frags * sizeof(skb_frag));
}

}  // namespace

bool skb_pull_any(skb_pool& p, sk_buff* s, uint32_t n) {
  if (n > s->len) return false;
  const uint32_t lin = n < s->headlen() ? n : s->headlen();
  if (lin) skb_pull(s, lin);
  n -= lin;
  unsigned gone = 0;
  while (n) {
    skb_frag& f = s->frags[gone];
    const uint32_t k = n < f.len ? n : f.len;
    s->len -= k;
    s->data_len -= k;
    n -= k;
    if (k < f.len) {
      f.addr += k;
      f.len -= k;
    } else {
      p.frames.put(f.addr);
      s->truesize -= skb_truesize_frame;
      ++gone;
    }
  }
  shift_frags(s, gone);
  return true;
}

void skb_trim(skb_pool& p, sk_buff* s, uint32_t len) {
  if (len >= s->len) return;
  if (len <= s->headlen()) {
    drop_frags(p, s, 0);
    if (len < s->len) cut_tail(p, s, s->len - len);
    return;
  }
  uint32_t at = s->headlen();
  for (unsigned i = 0; i < s->nr_frags; ++i) {
    if (at + s->frags[i].len < len) {
      at += s->frags[i].len;
      continue;
    }
    const uint32_t keep = len - at, cut = s->frags[i].len - keep;  // keep > 0
    s->frags[i].len = keep;
    s->len -= cut;
    s->data_len -= cut;
    drop_frags(p, s, i + 1);
    return;
  }
}

sk_buff* skb_split(skb_pool& p, sk_buff* s, uint32_t len) {
  if (len > s->len) return nullptr;
  sk_buff* n = p.alloc();  // its linear frame is for headers
  if (!n) return nullptr;
  n->priority = s->priority;
  n->mark = s->mark;
  n->hash = s->hash;
  n->queue_mapping = s->queue_mapping;
  n->ip_summed = s->ip_summed;
  n->tstamp = s->tstamp;
  n->dev = s->dev;

  const uint32_t head = s->headlen();
  unsigned first = 0;  // first fragment that moves
  if (len < head) {
    const uint32_t rest = head - len;
    if (s->nr_frags == max_skb_frags || rest <= 256) {  // no slot for it, or cheaper than a shared cache line
      if (rest > n->tailroom()) return p.free(n), nullptr;
      std::memcpy(skb_put(n, rest), s->data + len, rest);
    } else {
      p.frames.get(s->head);
      n->frags[0] = {s->data + len, rest};
      n->nr_frags = 1;
      n->len = n->data_len = rest;
      n->truesize += skb_truesize_frame;
    }
    cut_tail(p, s, rest);  // fragments follow below
  } else {
    uint32_t at = head;
    while (first < s->nr_frags && at + s->frags[first].len <= len) at += s->frags[first++].len;
    if (first < s->nr_frags && at < len) {  // this one is cut
      skb_frag& f = s->frags[first];
      const uint32_t keep = len - at, rest = f.len - keep;
      p.frames.get(f.addr);
      n->frags[n->nr_frags++] = {f.addr + keep, rest};
      n->len += rest;
      n->data_len += rest;
      n->truesize += skb_truesize_frame;
      f.len = keep;
      s->len -= rest;
      s->data_len -= rest;
      ++first;
    }
  }
  for (unsigned i = first; i < s->nr_frags; ++i) {
    const skb_frag& f = s->frags[i];
    n->frags[n->nr_frags++] = f;
    n->len += f.len;
    n->data_len += f.len;
    n->truesize += skb_truesize_frame;
    s->len -= f.len;
    s->data_len -= f.len;
    s->truesize -= skb_truesize_frame;
  }
  s->nr_frags = static_cast<uint16_t>(first);
  return n;
}

void skb_copy_bits(const sk_buff* s, uint32_t off, void* to, uint32_t n) {
  auto* d = static_cast<uint8_t*>(to);
  if (off < s->headlen()) {
    const uint32_t k = n < s->headlen() - off ? n : s->headlen() - off;
    std::memcpy(d, s->data + off, k);
    d += k;
    n -= k;
    off = 0;
  } else {
    off -= s->headlen();
  }
  for (unsigned i = 0; n && i < s->nr_frags; ++i) {
    const skb_frag& f = s->frags[i];
    if (off >= f.len) {
      off -= f.len;
      continue;
    }
    const uint32_t k = n < f.len - off ? n : f.len - off;
    std::memcpy(d, f.addr + off, k);
    d += k;
    n -= k;
    off = 0;
  }
}

bool skb_pull_head(skb_pool& p, sk_buff* s, uint32_t n) {
  if (n > s->len) return false;
  const uint32_t have = s->headlen();
  if (n <= have) return true;
  const uint32_t want = n - have;
  // In place when the bytes behind our tail are nobody else's, else in a frame of our own at the same offset, so that
  // mac_header and its sisters stay true.
  const bool room = s->head && static_cast<uint32_t>(s->head + frame_size - s->tail()) >= want;
  if (!room || s->no_tail || p.frames.shared(s->head)) {
    const uint32_t off = s->head ? s->headroom() : (n <= frame_size - skb_headroom ? uint32_t{skb_headroom} : 0);
    if (off + n > frame_size) return false;
    uint8_t* f = p.frames.alloc();
    if (!f) return false;
    if (s->head) {
      std::memcpy(f, s->head, off + have);
      p.frames.put(s->head);
    } else {
      s->truesize += skb_truesize_frame;
    }
    s->head = f;
    s->data = f + off;
    s->no_tail = 0;
  }
  uint8_t* to = s->data + have;
  uint32_t left = want;
  unsigned gone = 0;
  while (left) {
    skb_frag& f = s->frags[gone];
    const uint32_t k = left < f.len ? left : f.len;
    std::memcpy(to, f.addr, k);
    to += k;
    left -= k;
    s->data_len -= k;  // len stays: the bytes only move
    if (k < f.len) {
      f.addr += k;
      f.len -= k;
    } else {
      p.frames.put(f.addr);
      s->truesize -= skb_truesize_frame;
      ++gone;
    }
  }
  shift_frags(s, gone);
  return true;
}

}  // namespace icepath
