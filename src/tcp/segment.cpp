// Checksums over segments and the keyed hash behind ISNs. Pure functions; any thread.
#include "ip/ip.hpp"
#include "tcp/tcp_internal.hpp"

namespace icepath {

// RFC 1071, with 64-bit partial sums. `odd`: the bytes begin at an odd offset of the checksummed text.
uint32_t csum_add(const void* data, size_t n, uint32_t sum, bool odd) {
  const uint8_t* p = static_cast<const uint8_t*>(data);
  uint64_t acc = 0;
  while (n >= 32) {
    uint64_t v[4];
    std::memcpy(v, p, 32);
    for (uint64_t x : v) acc += (x & 0xffffffff) + (x >> 32);
    p += 32;
    n -= 32;
  }
  while (n >= 2) {
    uint16_t v;
    std::memcpy(&v, p, 2);
    acc += v;
    p += 2;
    n -= 2;
  }
  if (n) acc += *p;
  while (acc >> 16) acc = (acc & 0xffff) + (acc >> 16);
  uint32_t s = static_cast<uint32_t>(acc);
  if (odd) s = ((s & 0xff) << 8) | (s >> 8);
  s += sum & 0xffff;
  s += sum >> 16;
  return s;
}

uint16_t csum_fold16(uint32_t s) {
  while (s >> 16) s = (s & 0xffff) + (s >> 16);
  return static_cast<uint16_t>(s);
}

uint32_t tcp_pseudo_sum(const inet_addr& s, const inet_addr& d, uint32_t len) {
  uint32_t sum = 0;
  if (s.is_v4()) {
    sum = csum_add(s.b + 12, 4, sum);
    sum = csum_add(d.b + 12, 4, sum);
  } else {
    sum = csum_add(s.b, 16, sum);
    sum = csum_add(d.b, 16, sum);
  }
  const uint8_t tail[8] = {static_cast<uint8_t>(len >> 24), static_cast<uint8_t>(len >> 16), static_cast<uint8_t>(len >> 8),
                           static_cast<uint8_t>(len), 0, 0, 0, 6};
  return csum_add(tail, 8, sum);
}

static uint32_t skb_sum(const sk_buff* skb, uint32_t sum) {
  sum = csum_add(skb->data, skb->headlen(), sum);
  bool odd = skb->headlen() & 1;
  for (unsigned i = 0; i < skb->nr_frags; ++i) {
    sum = csum_add(skb->frags[i].addr, skb->frags[i].len, sum, odd);
    odd ^= skb->frags[i].len & 1;
  }
  return sum;
}

bool tcp_checksum_ok(const sk_buff* skb, const four_tuple& t) {
  return csum_fold16(skb_sum(skb, tcp_pseudo_sum(t.saddr, t.daddr, skb->len))) == 0xffff;
}

void tcp_fill_checksum(sk_buff* skb, const four_tuple& t) {
  tcp_hdr* th = reinterpret_cast<tcp_hdr*>(skb->data);
  th->check.raw = 0;
  th->check.raw = static_cast<uint16_t>(~csum_fold16(skb_sum(skb, tcp_pseudo_sum(t.saddr, t.daddr, skb->len))));
}

// SipHash-2-4 (Aumasson and Bernstein).
uint64_t siphash_2_4(const uint64_t key[2], const void* data, size_t n) {
  uint64_t v0 = key[0] ^ 0x736f6d6570736575ull, v1 = key[1] ^ 0x646f72616e646f6dull;
  uint64_t v2 = key[0] ^ 0x6c7967656e657261ull, v3 = key[1] ^ 0x7465646279746573ull;
  const auto rotl = [](uint64_t x, int b) { return (x << b) | (x >> (64 - b)); };
  const auto round = [&] {
    v0 += v1; v1 = rotl(v1, 13) ^ v0; v0 = rotl(v0, 32);
    v2 += v3; v3 = rotl(v3, 16) ^ v2;
    v0 += v3; v3 = rotl(v3, 21) ^ v0;
    v2 += v1; v1 = rotl(v1, 17) ^ v2; v2 = rotl(v2, 32);
  };
  const uint8_t* p = static_cast<const uint8_t*>(data);
  size_t left = n;
  for (; left >= 8; p += 8, left -= 8) {
    uint64_t m;
    std::memcpy(&m, p, 8);
    v3 ^= m;
    round(); round();
    v0 ^= m;
  }
  uint64_t b = uint64_t{n} << 56;
  for (size_t i = 0; i < left; ++i) b |= uint64_t{p[i]} << (8 * i);
  v3 ^= b;
  round(); round();
  v0 ^= b;
  v2 ^= 0xff;
  round(); round(); round(); round();
  return v0 ^ v1 ^ v2 ^ v3;
}

}  // namespace icepath
