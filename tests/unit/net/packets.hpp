// Packets for the tests of net and ip, built byte by byte without the code under test, and a reference checksum.
#pragma once
#include <string>

#include "tests/unit/net/fake_device.hpp"

namespace icepath {

inline std::string b16(unsigned v) { return {static_cast<char>(v >> 8), static_cast<char>(v)}; }
inline std::string b32(uint32_t v) { return b16(v >> 16) + b16(v & 0xffff); }
inline unsigned at8(const std::string& s, size_t i) { return static_cast<uint8_t>(s.at(i)); }
inline unsigned at16(const std::string& s, size_t i) { return at8(s, i) << 8 | at8(s, i + 1); }
inline uint32_t at32(const std::string& s, size_t i) { return at16(s, i) << 16 | at16(s, i + 2); }

// RFC 1071 in its plainest form.
inline unsigned ref_sum(const std::string& s) {
  uint32_t sum = 0;
  for (size_t i = 0; i < s.size(); ++i) sum += i & 1 ? at8(s, i) : at8(s, i) << 8;
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return sum;
}

struct ipv4_spec {
  uint32_t saddr = 0x0a000001, daddr = 0x0a000002;
  unsigned ver = 4, tos = 0, id = 0, frag = 0x4000, ttl = 64, proto = 6, tot_len = 0 /* 0: right */;
  std::string options;
  bool bad_sum = false;
};
inline std::string ipv4(const ipv4_spec& s, const std::string& payload) {
  const unsigned ihl = 20 + static_cast<unsigned>(s.options.size());
  std::string h = std::string{static_cast<char>(s.ver << 4 | ihl / 4), static_cast<char>(s.tos)} +
                  b16(s.tot_len ? s.tot_len : ihl + static_cast<unsigned>(payload.size())) + b16(s.id) + b16(s.frag) +
                  std::string{static_cast<char>(s.ttl), static_cast<char>(s.proto)} + b16(0) + b32(s.saddr) + b32(s.daddr) + s.options;
  h.replace(10, 2, b16((~ref_sum(h) & 0xffff) ^ (s.bad_sum ? 0x0100 : 0)));
  return h + payload;
}
inline std::string ipv6(const std::string& payload) {
  std::string a(16, '\0'), b(16, '\0');
  a[0] = b[0] = '\x20', a[15] = 1, b[15] = 2;
  return b32(0x60000000) + b16(static_cast<unsigned>(payload.size())) + std::string{6, 64} + a + b + payload;
}
// The TCP header with 12 bytes of options, checksum 0.
inline std::string tcp(uint32_t seq, unsigned flags, const std::string& payload) {
  return b16(1000) + b16(2000) + b32(seq) + b32(77) + std::string{static_cast<char>(8 << 4), static_cast<char>(flags)} + b16(500) + b16(0) + b16(0) +
         std::string("\x01\x01\x08\x0a", 4) + b32(5) + b32(6) + payload;
}
inline std::string eth(unsigned type) { return std::string("\x02\0\0\0\0\x01\x02\0\0\0\0\x02", 12) + b16(type); }
inline std::string bytes(size_t n) {
  std::string s(n, '\0');
  for (size_t i = 0; i < n; ++i) s[i] = static_cast<char>(hash_mix(i));
  return s;
}
// Is the TCP checksum of this IP packet right?
inline bool tcp_sum_ok(const std::string& ip) {
  const bool v6 = at8(ip, 0) >> 4 == 6;
  const std::string l4 = ip.substr(v6 ? 40 : (at8(ip, 0) & 15) * 4);
  return ref_sum((v6 ? ip.substr(8, 32) : ip.substr(12, 8)) + b32(6) + b32(static_cast<uint32_t>(l4.size())) + l4) == 0xffff;
}

// A frame as TCP hands it down: headers linear, `linear` payload bytes behind them, the rest in fragments of at most `piece` bytes.
inline sk_buff* tcp_frame(fake_stack& st, net_device& dev, const std::string& headers, const std::string& payload, size_t linear,
                          size_t piece, unsigned ip_len) {
  sk_buff* s = st.packet(headers + payload.substr(0, linear));
  for (size_t off = linear; off < payload.size(); off += piece) {
    const size_t n = std::min(piece, payload.size() - off);
    uint8_t* f = st.net.skbs.frames.alloc();
    std::memcpy(f + 100, payload.data() + off, n);
    s->frags[s->nr_frags++] = {f + 100, static_cast<uint32_t>(n)};
    s->len += static_cast<uint32_t>(n);
    s->data_len += static_cast<uint32_t>(n);
  }
  s->dev = &dev;
  s->network_header = static_cast<uint16_t>(s->mac_header + 14);
  s->transport_header = static_cast<uint16_t>(s->network_header + ip_len);
  s->ip_summed = ip_sum::partial;
  s->csum_start = s->transport_header;
  s->csum_offset = 16;
  return s;
}

}  // namespace icepath
