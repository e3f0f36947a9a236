// See checksum.hpp. 64 bytes a round as 32-bit words into eight independent 64-bit sums: no carries to chase, and the compiler makes
// vector code of it.
#include "wire/checksum.hpp"

namespace icepath {

csum csum_partial(const void* data, size_t n, csum sum) {
  const auto* p = static_cast<const uint8_t*>(data);
  if (n >= 64) {
    uint64_t acc[8] = {};
    do {   // 2^32 rounds until a sum could overflow: no packet has them
      uint64_t w[8];
      std::memcpy(w, p, 64);
      for (int i = 0; i < 8; ++i) acc[i] += (w[i] & 0xffffffff) + (w[i] >> 32);
      p += 64;
      n -= 64;
    } while (n >= 64);
    for (uint64_t a : acc) sum = csum_add(sum, a);
  }
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t w;
    std::memcpy(&w, p, 8);
    sum = csum_add(sum, w);
  }
  if (n) {
    uint64_t w = 0;   // zero padding does not change the sum
    std::memcpy(&w, p, n);
    sum = csum_add(sum, w);
  }
  return sum;
}

}  // namespace icepath
