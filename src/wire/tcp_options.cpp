// See tcp_options.hpp.
#include "wire/tcp_options.hpp"

namespace icepath {

namespace {
enum : uint8_t { opt_eol = 0, opt_nop = 1, opt_mss = 2, opt_wscale = 3, opt_sackok = 4, opt_sack = 5, opt_ts = 8, opt_exp = 254 };
uint16_t rd16(const uint8_t* p) { return static_cast<uint16_t>(p[0] << 8 | p[1]); }
uint32_t rd32(const uint8_t* p) { return uint32_t{rd16(p)} << 16 | rd16(p + 2); }

struct writer {
  uint8_t b[64];   // more than 40, so that overflow is seen once, at the end
  size_t n = 0;
  void u8(unsigned v) { if (n < sizeof b) b[n] = static_cast<uint8_t>(v); ++n; }
  void u16(unsigned v) { u8(v >> 8); u8(v & 255); }
  void u32(uint32_t v) { u16(v >> 16); u16(v & 0xffff); }
};
}  // namespace

bool tcp_options_parse(const uint8_t* p, size_t n, tcp_options& o) {
  o = tcp_options{};
  for (size_t i = 0; i < n;) {
    const uint8_t kind = p[i];
    if (kind == opt_eol) return true;
    if (kind == opt_nop) {
      ++i;
      continue;
    }
    if (n - i < 2) return false;
    const size_t len = p[i + 1];
    if (len < 2 || len > n - i) return false;
    const uint8_t* v = p + i + 2;
    switch (kind) {
      case opt_mss:
        if (len == 4 && rd16(v)) o.has_mss = true, o.mss = rd16(v);
        break;
      case opt_wscale:
        if (len == 3) o.has_wscale = true, o.wscale = v[0] > tcp_max_window_shift ? tcp_max_window_shift : v[0];
        break;
      case opt_sackok:
        if (len == 2) o.sack_permitted = true;
        break;
      case opt_sack:
        if (len >= 10 && (len - 2) % 8 == 0) {
          o.nr_sacks = 0;
          for (size_t k = 0; k < (len - 2) / 8 && k < tcp_max_sack_blocks; ++k) o.sacks[o.nr_sacks++] = {rd32(v + 8 * k), rd32(v + 8 * k + 4)};
        }
        break;
      case opt_ts:
        if (len == 10) o.has_timestamp = true, o.tsval = rd32(v), o.tsecr = rd32(v + 4);
        break;
      case opt_exp:
        if (len >= 4 && !o.has_exp) {
          o.has_exp = true;
          o.exp_id = rd16(v);
          o.exp = v + 2;
          o.exp_len = static_cast<uint8_t>(len - 4);
        }
        break;
      default:
        break;
    }
    i += len;
  }
  return true;
}

size_t tcp_options_build(const tcp_options& o, uint8_t* to, size_t room) {
  writer w;
  if (o.has_mss) w.u8(opt_mss), w.u8(4), w.u16(o.mss);
  if (o.has_timestamp) {
    if (o.sack_permitted) w.u8(opt_sackok), w.u8(2);
    else w.u8(opt_nop), w.u8(opt_nop);
    w.u8(opt_ts), w.u8(10), w.u32(o.tsval), w.u32(o.tsecr);
  } else if (o.sack_permitted) {
    w.u8(opt_nop), w.u8(opt_nop), w.u8(opt_sackok), w.u8(2);
  }
  if (o.has_wscale) w.u8(opt_nop), w.u8(opt_wscale), w.u8(3), w.u8(o.wscale);
  const unsigned sacks = o.nr_sacks < tcp_max_sack_blocks ? o.nr_sacks : tcp_max_sack_blocks;
  if (sacks) {
    w.u8(opt_nop), w.u8(opt_nop), w.u8(opt_sack), w.u8(2 + 8 * sacks);
    for (unsigned i = 0; i < sacks; ++i) w.u32(o.sacks[i].start), w.u32(o.sacks[i].end);
  }
  if (o.has_exp) {
    w.u8(opt_exp), w.u8(4u + o.exp_len), w.u16(o.exp_id);
    for (unsigned i = 0; i < o.exp_len; ++i) w.u8(o.exp[i]);
    while (w.n % 4) w.u8(opt_nop);
  }
  if (w.n > tcp_max_options || w.n > room) return 0;
  std::memcpy(to, w.b, w.n);
  return w.n;
}

}  // namespace icepath
