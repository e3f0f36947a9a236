// TSO and checksum insertion done by the device, for a receiver that does not take whole TSO frames or unchecked sums. The frame is gathered into the
// queue's bounce buffer and cut there; a cut-off by missing buffers is resumed at seg_done. RFC 9293 section 3.1 (sequence numbers,
// flags), RFC 791 (length, identification, checksum), RFC 1071 (sums). The driver's checksum field holds the pseudo header's sum:
// with the length for a single frame, without it for TSO.
#include "driver/e810/device.hpp"

namespace icepath {

namespace {

uint32_t rd16(const uint8_t* p) { return static_cast<uint32_t>(p[0]) << 8 | p[1]; }
void wr16(uint8_t* p, uint32_t v) { p[0] = static_cast<uint8_t>(v >> 8); p[1] = static_cast<uint8_t>(v); }
uint32_t rd32(const uint8_t* p) { return rd16(p) << 16 | rd16(p + 2); }
void wr32(uint8_t* p, uint32_t v) { wr16(p, v >> 16); wr16(p + 2, v & 0xffff); }

uint64_t sum_bytes(const uint8_t* p, uint32_t n, uint64_t sum) {  // n even, or the last piece
  for (; n > 1; n -= 2, p += 2) sum += rd16(p);
  return n ? sum + (uint64_t{*p} << 8) : sum;
}
uint32_t fold(uint64_t s) {
  while (s >> 16) s = (s & 0xffff) + (s >> 16);
  return static_cast<uint32_t>(s);
}

void ip_check(uint8_t* ip, uint32_t iplen) {
  wr16(ip + 10, 0);
  wr16(ip + 10, ~fold(sum_bytes(ip, iplen, 0)) & 0xffff);
}

}  // namespace

segment_result e810_segment(e810_txq& q, const e810_packet& p) {
  uint8_t* const f = q.bounce;
  uint32_t at = 0;
  for (uint32_t k = 0; k < p.nbuf; ++k) {
    std::memcpy(f + at, p.buf[k].addr, p.buf[k].len);
    at += p.buf[k].len;
  }
  const uint32_t l3 = p.maclen, l4 = p.maclen + p.iplen, hdr = p.hdr_len();
  const bool v6 = (p.cmd & ICE_TX_DESC_CMD_IIPT) == ICE_TX_DESC_CMD_IIPT_IPV6, tcp = (p.cmd & ICE_TX_DESC_CMD_L4T) == ICE_TX_DESC_CMD_L4T_EOFT_TCP;
  if ((f[l3] >> 4) != (v6 ? 6 : 4) || (!v6 && (f[l3] & 15) * 4u != p.iplen)) return segment_result::bad_headers;
  if (tcp && (f[l4 + 12] >> 4) * 4u != p.l4len) return segment_result::bad_headers;
  const uint32_t check = l4 + (tcp ? 16 : 6);
  e810_rx_meta m{};
  m.status = ICE_RX_FLEX_DESC_STATUS0_L3L4P | (p.tag ? ICE_RX_FLEX_DESC_STATUS0_L2TAG1P : 0u);
  m.rxdid = ICE_RXDID_FLEX_NIC;
  m.l2tag1 = p.l2tag1;

  if (!p.mss) {
    if ((p.cmd & ICE_TX_DESC_CMD_IIPT) == ICE_TX_DESC_CMD_IIPT_IPV4_CSUM) ip_check(f + l3, p.iplen);
    uint32_t v = ~fold(sum_bytes(f + l4, p.total - l4, 0)) & 0xffff;
    wr16(f + check, !v && !tcp ? 0xffff : v);
    const e810_buf one{f, p.total};
    return e810_rx_put(q, &one, 1, p.total, m) ? segment_result::done : segment_result::more_buffers;
  }

  const uint32_t payload = p.total - hdr, seq = rd32(f + l4 + 4), id = rd16(f + l3 + 4), flags = f[l4 + 13];
  const uint32_t seed = rd16(f + check);
  uint8_t h[ICE_TSO_MAX_HDR];
  while (q.seg_done < payload) {
    const uint32_t off = q.seg_done, n = payload - off < p.mss ? payload - off : p.mss;
    const bool last = off + n == payload;
    std::memcpy(h, f, hdr);
    if (v6) {
      wr16(h + l3 + 4, p.iplen - 40 + p.l4len + n);
    } else {
      wr16(h + l3 + 2, p.iplen + p.l4len + n);
      wr16(h + l3 + 4, (id + off / p.mss) & 0xffff);
      ip_check(h + l3, p.iplen);
    }
    wr32(h + l4 + 4, seq + off);
    uint32_t fl = flags;
    if (!last) fl &= ~0x09u;        // FIN, PSH: the last segment's
    if (off) fl &= ~0x80u;          // CWR: the first segment's (RFC 3168 section 6.1.2)
    h[l4 + 13] = static_cast<uint8_t>(fl);
    wr16(h + check, 0);
    const uint64_t sum = sum_bytes(f + hdr + off, n, sum_bytes(h + l4, p.l4len, uint64_t{seed} + p.l4len + n));
    wr16(h + check, ~fold(sum) & 0xffff);
    const e810_buf piece[2] = {{h, hdr}, {f + hdr + off, n}};
    if (!e810_rx_put(q, piece, 2, hdr + n, m)) return segment_result::more_buffers;
    q.seg_done += n;
  }
  return segment_result::done;
}

}  // namespace icepath
