// The IPv4 header (RFC 791 section 3.1) and its checksum.
#pragma once
#include "base/types.hpp"

namespace icepath {

struct iphdr_v4 {
  uint8_t ver_ihl, tos;
  be16 tot_len, id, frag_off;
  uint8_t ttl, protocol;
  be16 check;
  be32 saddr, daddr;
};
static_assert(sizeof(iphdr_v4) == 20 && offsetof(iphdr_v4, check) == 10 && offsetof(iphdr_v4, daddr) == 16);

constexpr uint16_t IP_DF = 0x4000, IP_MF = 0x2000, IP_OFFSET = 0x1fff;

// Ones' complement of the sum over `words` 32-bit words, in wire order (RFC 1071 section 2: the order of bytes does not matter
// as long as sum and field agree). 0 over a header whose check is right.
inline uint16_t ip_fast_csum(const void* hdr, unsigned words) {
  const auto* p = static_cast<const uint8_t*>(hdr);
  uint64_t sum = 0;
  for (unsigned i = 0; i < words; ++i) {
    uint32_t w;
    std::memcpy(&w, p + 4 * i, 4);
    sum += w;
  }
  sum = (sum & 0xffffffff) + (sum >> 32);
  sum = (sum & 0xffffffff) + (sum >> 32);
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(~sum);
}

}  // namespace icepath
