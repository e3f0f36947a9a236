// Receive side of the xdp port: posts frames, turns the descriptors of a packet into an sk_buff around the frames they name, without a copy. Under
// the stack's owner word. A frame is in the posted set from fill ring to rx ring: a descriptor that names another one is
// dropped, so that no frame can be adopted twice.
#include "wire/checksum.hpp"
#include "xdp/port.hpp"

namespace icepath {
namespace {

// The TCP header of an IPv4 packet, if all of it is in the first buffer; the program redirects nothing else.
struct headers { const uint8_t *ip, *tcp; uint32_t tcp_len, hdr_len; };
bool find_headers(const sk_buff* s, headers& h) {
  const uint32_t lin = s->headlen();
  if (lin < 14 + 20 + 20) return false;
  h.ip = s->data + 14;
  const uint32_t ihl = (h.ip[0] & 15) * 4u, tot = static_cast<uint32_t>(h.ip[2] << 8 | h.ip[3]);
  if (h.ip[0] >> 4 != 4 || h.ip[9] != 6 || ihl < 20 || 14 + ihl + 20 > lin || tot < ihl + 20 || 14 + tot > s->len) return false;
  h.tcp = h.ip + ihl;
  h.tcp_len = tot - ihl;
  h.hdr_len = ihl + (h.tcp[12] >> 4) * 4u;
  return true;
}

// A sender on the other side of a software device that leaves the checksum to an offload has put the sum of the pseudo header into the
// field (not complemented), and nobody has touched it since: the bytes have not left this machine's memory. Exactly that, or TCP checks as ever.
bool sum_left_out(const headers& h) {
  be32 s, d;
  std::memcpy(&s, h.ip + 12, 4);
  std::memcpy(&d, h.ip + 16, 4);
  uint16_t field;
  std::memcpy(&field, h.tcp + 16, 2);
  return field == csum_fold_up(csum_pseudo_v4(s, d, 6, h.tcp_len));
}

// A packet larger than the MTU was many on the sender's side, or is one that it left to us to cut; how large a segment would be is a guess.
void look_inside(xdp_port& p, sk_buff* s) {
  headers h;
  const bool gso = s->len > p.mtu + 14;
  if (ICEPATH_LIKELY(!gso && !p.partial_csum) || !find_headers(s, h)) return;
  if (p.partial_csum && sum_left_out(h)) s->ip_summed = ip_sum::unnecessary;
  if (!gso || h.hdr_len >= p.mtu) return;
  const uint32_t mss = p.mtu - h.hdr_len, payload = s->len - 14 - h.hdr_len;
  s->gso_size = static_cast<uint16_t>(mss);
  s->gso_segs = static_cast<uint16_t>((payload + mss - 1) / mss);
}

}  // namespace

void xdp_port::refill(xdp_queue& q) {
  xsk_ring& r = q.x.fill;
  const uint32_t start = r.prod;
  frame_cache& frames = owner->skbs.frames;
  while (q.nr_posted < fill_want) {
    uint8_t* f = frames.alloc();
    if (ICEPATH_UNLIKELY(!f)) break;
    const uint32_t i = q.x.umem->pool->index(f);
    if (ICEPATH_UNLIKELY(i >= q.x.umem->nr_frames)) {   // not of the UMEM: only if the pool could not be bounded
      frames.put(f);
      break;
    }
    xdp_set_posted(q, i);
    r.addr(r.prod++) = uint64_t{i} << frame_shift;
  }
  const bool starves = q.nr_posted < fill_want / 2;
  if (ICEPATH_UNLIKELY(starves) && !q.starving && owner->stats) mib_add(owner->stats->RingRxNoBuf);
  q.starving = starves;
  if (r.prod == start) return;
  r.store_producer(r.prod);
  if (ICEPATH_UNLIKELY(r.need_wakeup())) xsk_kick_rx(q.x);
}

int xdp_clean_rx(xdp_port& p, unsigned queue, sk_buff** skbs, int budget) {
  xdp_queue& q = p.queue[queue];
  xsk_ring& r = q.x.rx;
  const xsk_umem& u = *q.x.umem;
  skb_pool& pool = p.owner->skbs;
  const uint32_t prod = r.load_producer();
  const uint32_t start = r.cons;
  int got = 0;
  while (r.cons != prod && got < budget) {
    uint32_t chain = 1;
    while (r.pkt(r.cons + chain - 1).options & XSK_DESC_CONTD && r.cons + chain != prod) ++chain;
    if (r.pkt(r.cons + chain - 1).options & XSK_DESC_CONTD) break;   // the rest comes
    sk_buff* skb = pool.alloc_empty();
    if (ICEPATH_UNLIKELY(!skb)) break;
    bool sane = true;
    for (uint32_t k = 0; k < chain; ++k) {
      const xdp_desc d = r.pkt(r.cons + k);
      const auto f = static_cast<uint32_t>(d.addr >> frame_shift);
      const auto off = static_cast<uint32_t>(d.addr & (frame_size - 1));
      if (d.addr >> frame_shift >= u.nr_frames || !xdp_test_posted(q, f)) {
        sane = false;
        continue;
      }
      xdp_clear_posted(q, f);
      uint8_t* const base = u.pool->addr(f);
      if (ICEPATH_UNLIKELY(!sane || d.len == 0 || d.len > frame_size - off || k >= xdp_max_chain)) {
        sane = false;
        pool.frames.put(base);
        continue;
      }
      if (k == 0) {
        skb->head = base;
        skb->data = base + off;
        __builtin_prefetch(skb->data);
      } else {
        skb->frags[skb->nr_frags++] = {base + off, d.len};
        skb->data_len += d.len;
      }
      skb->len += d.len;
      skb->truesize += skb_truesize_frame;
    }
    r.cons += chain;
    if (ICEPATH_UNLIKELY(!sane || skb->headlen() < 14)) {
      ++p.rx_dropped;
      pool.free(skb);
      continue;
    }
    skb->dev = &p;
    skb->queue_mapping = static_cast<uint16_t>(queue);
    skb->tstamp = p.owner->now;
    skb_reset_mac(skb);
    look_inside(p, skb);
    ++p.rx_packets;
    p.rx_bytes += skb->len;
    skbs[got++] = skb;
  }
  if (r.cons != start) {
    r.store_consumer(r.cons);
    if (p.owner->stats) mib_add(p.owner->stats->RingRxDesc, r.cons - start);
  }
  return got;
}

}  // namespace icepath
