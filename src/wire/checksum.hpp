// The internet checksum (RFC 1071), in 64-bit partial sums. A partial sum (csum) is kept in the byte order of the machine that reads the
// packet's bytes as they lie, which RFC 1071 section 2(B) allows: only the folded result is put into the header, unswapped. Pure.
#pragma once
#include "base/types.hpp"

namespace icepath {

using csum = uint64_t;   // ones' complement sum, any value congruent mod 0xffff

constexpr csum csum_add(csum a, csum b) { const csum s = a + b; return s + (s < a); }
constexpr uint16_t csum_fold_up(csum s) {   // 16 bits, not complemented
  s = (s >> 32) + (s & 0xffffffff);
  s = (s >> 32) + (s & 0xffffffff);
  s = (s >> 16) + (s & 0xffff);
  s = (s >> 16) + (s & 0xffff);
  return static_cast<uint16_t>(s);
}
// What goes into the header's raw field.
constexpr uint16_t csum_fold(csum s) { return static_cast<uint16_t>(~csum_fold_up(s)); }
// The sum of bytes that begin at an odd offset of the text, as it counts there (RFC 1071 section 2(B), byte swap).
constexpr csum csum_odd(csum s) { return __builtin_bswap16(csum_fold_up(s)); }

csum csum_partial(const void* p, size_t n, csum sum = 0);

inline csum csum_pseudo_v4(be32 saddr, be32 daddr, uint8_t proto, uint32_t len) {   // RFC 9293 section 3.1
  return csum{saddr.raw} + daddr.raw + __builtin_bswap16(proto) + __builtin_bswap32(len);
}
inline csum csum_pseudo_v6(const uint8_t saddr[16], const uint8_t daddr[16], uint8_t proto, uint32_t len) {   // RFC 8200 section 8.1
  csum s = csum{__builtin_bswap32(len)} + __builtin_bswap32(proto);
  uint64_t w[4];
  std::memcpy(w, saddr, 16);
  std::memcpy(w + 2, daddr, 16);
  for (uint64_t x : w) s = csum_add(s, x);
  return s;
}
// RFC 1624 equation 3: the checksum after a 16- or 32-bit field changed. All raw, as they lie in the packet.
constexpr uint16_t csum_update16(uint16_t check, uint16_t from, uint16_t to) {
  return csum_fold(csum{static_cast<uint16_t>(~check)} + static_cast<uint16_t>(~from) + to);
}
constexpr uint16_t csum_update32(uint16_t check, uint32_t from, uint32_t to) {
  return csum_fold(csum{static_cast<uint16_t>(~check)} + static_cast<uint32_t>(~from) + to);
}

}  // namespace icepath
