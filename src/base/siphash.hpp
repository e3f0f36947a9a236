// SipHash-2-4 (Aumasson and Bernstein, 2012): a keyed hash for what a peer may choose, so that it cannot choose collisions or
// foresee results: hash tables of flows, initial sequence numbers (RFC 6528). Forty lines of our own: Debian has no library
// whose only work this is, and linking a crypto library into every preloaded program for it would cost more. Pure.
#pragma once
#include "base/types.hpp"

namespace icepath {

inline uint64_t siphash(const uint64_t key[2], const void* data, size_t n) {
  const auto rotl = [](uint64_t x, int b) { return (x << b) | (x >> (64 - b)); };
  uint64_t v0 = key[0] ^ 0x736f6d6570736575ull, v1 = key[1] ^ 0x646f72616e646f6dull;
  uint64_t v2 = key[0] ^ 0x6c7967656e657261ull, v3 = key[1] ^ 0x7465646279746573ull;
  const auto round = [&] {
    v0 += v1; v1 = rotl(v1, 13); v1 ^= v0; v0 = rotl(v0, 32);
    v2 += v3; v3 = rotl(v3, 16); v3 ^= v2;
    v0 += v3; v3 = rotl(v3, 21); v3 ^= v0;
    v2 += v1; v1 = rotl(v1, 17); v1 ^= v2; v2 = rotl(v2, 32);
  };
  const auto word = [](const uint8_t* p, size_t k) {  // little endian, k <= 8 bytes
    uint64_t m = 0;
    for (size_t i = 0; i < k; ++i) m |= uint64_t{p[i]} << (8 * i);
    return m;
  };
  const auto* p = static_cast<const uint8_t*>(data);
  const uint64_t last = uint64_t{n} << 56;
  for (; n >= 8; n -= 8, p += 8) {
    const uint64_t m = word(p, 8);
    v3 ^= m; round(); round(); v0 ^= m;
  }
  const uint64_t m = last | word(p, n);
  v3 ^= m; round(); round(); v0 ^= m;
  v2 ^= 0xff;
  round(); round(); round(); round();
  return v0 ^ v1 ^ v2 ^ v3;
}

}  // namespace icepath
