// validate_xmit_skb and what it needs (T26): see gso.hpp. RFC 791, RFC 8200 and RFC 9293 for the fields, RFC 1071 for the sums.
#include "net/gso.hpp"

#include "net/dev.hpp"

namespace icepath {
namespace {

constexpr uint8_t proto_tcp = 6, proto_udp = 17;
constexpr uint8_t tcp_fin = 0x01, tcp_psh = 0x08, tcp_cwr = 0x80;

uint16_t get16(const uint8_t* p) { return static_cast<uint16_t>(p[0] << 8 | p[1]); }
uint32_t get32(const uint8_t* p) { return uint32_t{get16(p)} << 16 | get16(p + 2); }
void put16(uint8_t* p, uint32_t v) { p[0] = static_cast<uint8_t>(v >> 8), p[1] = static_cast<uint8_t>(v); }
void put32(uint8_t* p, uint32_t v) { put16(p, v >> 16), put16(p + 2, v); }

// Sum of bytes as 16-bit big-endian words, added to `sum`; `odd`: the bytes begin in the second half of a word.
uint64_t sum_bytes(const uint8_t* p, size_t n, uint64_t sum, bool odd) {
  if (odd && n) sum += *p++, --n;
  for (; n >= 4; p += 4, n -= 4) sum += get32(p);
  if (n >= 2) sum += get16(p), p += 2, n -= 2;
  if (n) sum += uint32_t{*p} << 8;
  return sum;
}
uint16_t fold(uint64_t sum) {
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(sum);
}

bool is_v6(const sk_buff* skb) { return skb->network()[0] >> 4 == 6; }

// Lengths of the headers, from the offsets the layers above left; false when they make no sense.
struct layout { uint32_t mac, ip, l4, all; bool v6; uint8_t proto; };
bool parse(const sk_buff* skb, layout& h) {
  const uint8_t* const end = skb->tail();
  const uint8_t *ip = skb->network(), *l4 = skb->transport();
  if (ip < skb->data || l4 < ip + 20 || l4 + 8 > end) return false;
  h.v6 = is_v6(skb);
  if (h.v6 && l4 < ip + 40) return false;
  h.proto = h.v6 ? ip[6] : ip[9];
  if (h.v6 && l4 > ip + 40) h.proto = proto_tcp;  // extension headers between: only TCP sends those here
  h.mac = static_cast<uint32_t>(ip - skb->data);
  h.ip = static_cast<uint32_t>(l4 - ip);
  h.l4 = 8;
  if (h.proto == proto_tcp) {
    if (l4 + 20 > end) return false;
    h.l4 = (l4[12] >> 4) * 4u;
    if (h.l4 < 20 || l4 + h.l4 > end) return false;
  }
  h.all = h.mac + h.ip + h.l4;
  return true;
}

// Payload bytes [off, off + n) of src become fragments of dst that refer to src's frames. False: too many pieces; dst then
// holds some references and is to be freed.
bool share_payload(net& n, const sk_buff* src, uint32_t off, uint32_t len, sk_buff* dst) {
  auto piece = [&](uint8_t* addr, uint32_t have) {
    if (off >= have) return off -= have, true;
    const uint32_t take = have - off < len ? have - off : len;
    if (take) {
      if (dst->nr_frags == max_skb_frags) return false;
      n.skbs.frames.get(addr + off);
      dst->frags[dst->nr_frags++] = {addr + off, take};
      dst->len += take;
      dst->data_len += take;
      len -= take;
    }
    off = 0;
    return true;
  };
  if (!piece(src->data, src->headlen())) return false;
  for (unsigned i = 0; i < src->nr_frags && len; ++i)
    if (!piece(src->frags[i].addr, src->frags[i].len)) return false;
  return len == 0;
}

void drop(net& n, net_device& dev, sk_buff* skb) {
  ++dev.tx_dropped;
  dev_count(n, &mib::IpOutDiscards);
  n.skbs.free(skb);
}

// The tag goes between the addresses and the ethertype (IEEE 802.1Q).
bool insert_vlan(sk_buff* skb) {
  if (skb->headroom() < 4 || skb->headlen() < 14) return false;
  uint8_t* p = skb_push(skb, 4);
  std::memmove(p, p + 4, 12);
  put16(p + 12, 0x8100);
  put16(p + 14, skb->vlan_tci);
  skb_reset_mac(skb);
  skb->vlan_present = 0;
  return true;
}

bool gso_is_ok(const net_device& dev, const sk_buff* skb) {
  const uint32_t need = is_v6(skb) ? NETIF_F_TSO6 : NETIF_F_TSO;
  return (dev.features & need) && skb->len <= dev.gso_max_size && skb->gso_segs <= dev.gso_max_segs && skb->gso_size >= dev.gso_min_size &&
         (!skb->nr_frags || (dev.features & NETIF_F_SG));
}

bool csum_is_ok(const net_device& dev, const sk_buff* skb) {
  return skb->ip_summed != ip_sum::partial || (dev.features & (is_v6(skb) ? NETIF_F_IPV6_CSUM : NETIF_F_IP_CSUM));
}

// One packet that is no longer to be segmented: linear, summed, tagged as the device wants it.
bool finish_one(net& n, net_device& dev, sk_buff* skb) {
  if (skb->nr_frags && !(dev.features & NETIF_F_SG)) {
    if (skb->len > frame_size - skb->headroom() || !skb_pull_head(n.skbs, skb, skb->len)) return false;
  }
  if (!csum_is_ok(dev, skb) && !skb_checksum_help(skb)) return false;
  return !skb->vlan_present || (dev.features & NETIF_F_HW_VLAN_TX) || insert_vlan(skb);
}

}  // namespace

namespace gso_detail {
bool needs_software(const net_device& dev, const sk_buff* skb) {
  if (skb->gso_size && !gso_is_ok(dev, skb)) return true;
  if (skb->nr_frags && !(dev.features & NETIF_F_SG)) return true;
  if (!skb->gso_size && !csum_is_ok(dev, skb)) return true;
  return skb->vlan_present && !(dev.features & NETIF_F_HW_VLAN_TX);
}
}  // namespace gso_detail

uint16_t pseudo_header_sum(const uint8_t* ip, uint8_t proto, uint32_t len) {
  uint64_t sum = uint64_t{proto} + (len >> 16) + (len & 0xffff);
  sum = ip[0] >> 4 == 6 ? sum_bytes(ip + 8, 32, sum, false) : sum_bytes(ip + 12, 8, sum, false);
  return fold(sum);
}

bool skb_checksum_help(sk_buff* skb) {
  layout h;
  if (!parse(skb, h) || (h.proto != proto_tcp && h.proto != proto_udp)) return false;
  const uint32_t start = h.mac + h.ip, l4_len = skb->len - start;
  uint8_t* const field = skb->data + start + (h.proto == proto_tcp ? 16 : 6);
  put16(field, 0);
  uint64_t sum = pseudo_header_sum(skb->network(), h.proto, l4_len);
  uint32_t at = skb->headlen() - start;
  sum = sum_bytes(skb->data + start, at, sum, false);
  for (unsigned i = 0; i < skb->nr_frags; ++i) {
    sum = sum_bytes(skb->frags[i].addr, skb->frags[i].len, sum, at & 1);
    at += skb->frags[i].len;
  }
  uint16_t c = static_cast<uint16_t>(~fold(sum));
  if (c == 0 && h.proto == proto_udp) c = 0xffff;  // RFC 768: zero means "no checksum"
  put16(field, c);
  skb->ip_summed = ip_sum::none;
  return true;
}

bool skb_gso_segment(net& n, sk_buff* skb, bool sg, sk_buff_head& out) {
  layout h;
  const uint32_t mss = skb->gso_size;
  if (mss == 0 || !parse(skb, h) || h.proto != proto_tcp || h.all > skb->headlen() || skb->len <= h.all) return false;
  const uint32_t payload = skb->len - h.all;
  const uint32_t seq = get32(skb->transport() + 4);
  const uint8_t flags = skb->transport()[13];
  const uint16_t id = h.v6 ? uint16_t{0} : get16(skb->network() + 4);
  sk_buff_head segs;
  uint32_t i = 0;
  for (uint32_t off = 0; off < payload; off += mss, ++i) {
    const uint32_t len = payload - off < mss ? payload - off : mss;
    const bool last = off + len == payload;
    sk_buff* s = n.skbs.alloc(skb_headroom);
    if (!s) break;
    segs.push_back(s);
    if (s->tailroom() < h.all + (sg ? 0 : len)) break;
    std::memcpy(skb_put(s, h.all), skb->data, h.all);
    s->mac_header = static_cast<uint16_t>(s->headroom());
    s->network_header = static_cast<uint16_t>(s->mac_header + h.mac);
    s->transport_header = static_cast<uint16_t>(s->network_header + h.ip);
    if (sg) {
      if (!share_payload(n, skb, h.all + off, len, s)) break;
    } else {
      skb_copy_bits(skb, h.all + off, skb_put(s, len), len);
    }
    uint8_t *ip = s->network(), *tcp = s->transport();
    if (h.v6) {
      put16(ip + 4, h.ip - 40 + h.l4 + len);
    } else {
      put16(ip + 2, h.ip + h.l4 + len);
      put16(ip + 4, id + i);
      put16(ip + 10, 0);
      put16(ip + 10, static_cast<uint16_t>(~fold(sum_bytes(ip, h.ip, 0, false))));
    }
    put32(tcp + 4, seq + off);
    uint8_t f = flags;
    if (!last) f &= static_cast<uint8_t>(~(tcp_fin | tcp_psh));
    if (off) f &= static_cast<uint8_t>(~tcp_cwr);  // RFC 3168 6.1.2: once, on the first
    tcp[13] = f;
    put16(tcp + 16, pseudo_header_sum(ip, proto_tcp, h.l4 + len));
    s->ip_summed = ip_sum::partial;
    s->csum_start = s->transport_header;
    s->csum_offset = 16;
    s->dev = skb->dev;
    s->priority = skb->priority;
    s->queue_mapping = skb->queue_mapping;
    s->vlan_present = skb->vlan_present;
    s->vlan_tci = skb->vlan_tci;
    s->mark = skb->mark;
    s->hash = skb->hash;
    s->tstamp = skb->tstamp;
    if (!last) continue;
    s->sk = skb->sk;
    s->destructor = skb->destructor;
    s->truesize = skb->truesize;
    skb->sk = nullptr;
    skb->destructor = nullptr;
    n.skbs.free(skb);
    while (sk_buff* p = segs.pop_front()) out.push_back(p);
    return true;
  }
  segs.purge(n.skbs);
  return false;
}

void validate_xmit_skb(net& n, net_device& dev, sk_buff* skb, sk_buff_head& out) {
  if (skb->gso_size && !gso_is_ok(dev, skb)) {
    sk_buff_head segs;
    if (!skb_gso_segment(n, skb, dev.features & NETIF_F_SG, segs)) return drop(n, dev, skb);
    while (sk_buff* s = segs.pop_front()) {
      if (finish_one(n, dev, s)) out.push_back(s);
      else drop(n, dev, s);
    }
    return;
  }
  if (skb->gso_size ? !skb->vlan_present || (dev.features & NETIF_F_HW_VLAN_TX) || insert_vlan(skb) : finish_one(n, dev, skb))
    out.push_back(skb);
  else drop(n, dev, skb);
}

}  // namespace icepath
