// The device's reading of Tx descriptors, with the checks of the datasheet's malicious driver detection. Every descriptor is copied
// once, then checked, then used: a driver that changes it meanwhile changes nothing.
#include "driver/e810/device.hpp"

namespace icepath {

namespace {
constexpr uint32_t mask = ice_tx_count - 1;
constexpr uint32_t cmd_refused = ICE_TX_DESC_CMD_RSVD | ICE_TX_DESC_CMD_DUMMY | ICE_TX_DESC_CMD_RSVD2 | ICE_TX_DESC_CMD_RE | ICE_TX_DESC_CMD_RSVD3;
constexpr uint32_t ctx_cmd_refused = ~uint32_t{ICE_TX_CTX_DESC_TSO};   // time stamps, a second tag and switch overrides are not this device's

uint64_t load(const uint64_t& q) { return std::atomic_ref<uint64_t>(const_cast<uint64_t&>(q)).load(std::memory_order_relaxed); }

// At most 8 buffers make one segment on the wire: the header's and those its payload touches.
bool tso_bufs_ok(const e810_packet& p) {
  if (p.nbuf <= ICE_MAX_BUF_TXD) return true;
  uint32_t b = 0, off = p.hdr_len();
  while (off >= p.buf[b].len) off -= p.buf[b++].len;      // total > hdr_len, so this ends
  uint32_t hdr_bufs = b + (off ? 1 : 0);
  for (uint32_t left = p.total - p.hdr_len(); left;) {
    uint32_t seg = left < p.mss ? left : p.mss, touched = hdr_bufs;
    left -= seg;
    while (seg) {
      const uint32_t in = p.buf[b].len - off, n = in < seg ? in : seg;
      ++touched;
      seg -= n;
      off += n;
      if (off == p.buf[b].len) {
        ++b;
        off = 0;
      }
    }
    if (touched > ICE_MAX_BUF_TXD + 1) return false;       // a buffer that holds header and payload was counted twice
    if (touched == ICE_MAX_BUF_TXD + 1 && hdr_bufs < 2 && p.buf[0].len == p.hdr_len()) return false;
  }
  return true;
}

mdd check_offsets(e810_packet& p, uint32_t offset) {
  p.maclen = TXD_OFFSET_MACLEN.get(offset) * 2;
  p.iplen = TXD_OFFSET_IPLEN.get(offset) * 4;
  p.l4len = TXD_OFFSET_L4_LEN.get(offset) * 4;
  const uint32_t iipt = p.cmd & ICE_TX_DESC_CMD_IIPT, l4t = p.cmd & ICE_TX_DESC_CMD_L4T;
  if (!l4t && !iipt) return p.mss ? mdd::tso_needs_l4 : mdd::none;
  if (p.maclen < 14 || !iipt || p.iplen < (iipt == ICE_TX_DESC_CMD_IIPT_IPV6 ? 40u : 20u)) return mdd::header_offsets;
  if (iipt != ICE_TX_DESC_CMD_IIPT_IPV6 && p.iplen > 60) return mdd::header_offsets;
  if (l4t == ICE_TX_DESC_CMD_L4T_EOFT_TCP && p.l4len < 20) return mdd::header_offsets;
  if (l4t == ICE_TX_DESC_CMD_L4T_EOFT_UDP && p.l4len != 8) return mdd::header_offsets;
  if (l4t == ICE_TX_DESC_CMD_L4T_EOFT_SCTP) return mdd::header_offsets;   // CRC32c is not this device's
  return p.hdr_len() > p.total ? mdd::header_offsets : mdd::none;
}

mdd check_tso(const e810_packet& p, uint32_t tso_len) {
  if (p.mss < ICE_TXD_CTX_MIN_MSS || p.mss > ICE_TXD_CTX_MAX_MSS) return mdd::tso_mss;
  if ((p.cmd & ICE_TX_DESC_CMD_L4T) != ICE_TX_DESC_CMD_L4T_EOFT_TCP) return mdd::tso_needs_l4;
  const uint32_t iipt = p.cmd & ICE_TX_DESC_CMD_IIPT;
  if (iipt != ICE_TX_DESC_CMD_IIPT_IPV6 && iipt != ICE_TX_DESC_CMD_IIPT_IPV4_CSUM) return mdd::tso_needs_l4;
  if (p.hdr_len() > ICE_TSO_MAX_HDR) return mdd::tso_header;
  uint32_t first = 0;
  for (uint32_t k = 0; k < p.nbuf && k < ICE_TSO_HDR_BUFS; ++k) first += p.buf[k].len;
  if (first < p.hdr_len()) return mdd::tso_header;
  if (p.total > e810_max_tso) return mdd::too_long;
  if (!tso_len || p.total - p.hdr_len() != tso_len) return mdd::tso_len;
  return tso_bufs_ok(p) ? mdd::none : mdd::too_many_bufs;
}

}  // namespace

mdd e810_parse(const e810_txq& q, uint32_t head, uint32_t tail, e810_packet& p) {
  const ice_tx_ring& r = q.ring;
  uint32_t i = head, offset = 0, tso_len = 0, n = 0;
  bool tso = false, ctx = false;
  for (;; i = (i + 1) & mask) {
    if (i == tail) return ctx && !p.nbuf ? mdd::ctx_without_data : mdd::no_eop;
    const uint64_t q0 = load(r.desc[i].buf_addr), q1 = load(r.desc[i].cmd_type_offset_bsz);
    ++n;
    const uint32_t dtype = TXD_QW1_DTYPE.get(q1);
    if (dtype == ICE_TX_DESC_DTYPE_CTX) {
      if (ctx || p.nbuf) return mdd::ctx_without_data;     // only one, and only before the data
      ctx = true;
      const uint32_t cmd = TXD_CTX_QW1_CMD.get(q1);
      if (q0 || (q1 & TXD_CTX_QW1_RSVD) || (cmd & ctx_cmd_refused)) return mdd::reserved_bits;
      tso = cmd & ICE_TX_CTX_DESC_TSO;
      p.mss = TXD_CTX_QW1_MSS.get(q1);
      tso_len = TXD_CTX_QW1_TSO_LEN.get(q1);
      if (tso && !p.mss) return mdd::tso_mss;
      if (!tso && (p.mss || tso_len)) return mdd::reserved_bits;
      continue;
    }
    if (dtype != ICE_TX_DESC_DTYPE_DATA) return mdd::bad_dtype;
    const uint32_t cmd = TXD_QW1_CMD.get(q1), len = TXD_QW1_TX_BUF_SZ.get(q1);
    constexpr uint32_t last_only = ICE_TX_DESC_CMD_EOP | ICE_TX_DESC_CMD_RS;
    if (ICEPATH_UNLIKELY(cmd & cmd_refused)) return mdd::reserved_bits;
    if (ICEPATH_UNLIKELY(!len)) return mdd::zero_length;
    if (ICEPATH_UNLIKELY(q0 < r.dma_lo || q0 > r.dma_hi || len > r.dma_hi - q0)) return mdd::address;
    if (p.nbuf == 0) {
      p.cmd = cmd & ~last_only;
      offset = TXD_QW1_OFFSET.get(q1);
      p.l2tag1 = TXD_QW1_L2TAG1.get(q1);
    } else {
      if ((cmd & ~last_only) != p.cmd || TXD_QW1_OFFSET.get(q1) != offset || TXD_QW1_L2TAG1.get(q1) != p.l2tag1) return mdd::cmd_mismatch;
      if (p.nbuf == (tso ? e810_max_pkt_bufs : ICE_MAX_BUF_TXD)) return mdd::too_many_bufs;
    }
    p.buf[p.nbuf++] = {r.dma_base + q0, len};
    p.total += len;
    if (!(cmd & ICE_TX_DESC_CMD_EOP)) {
      if (cmd & ICE_TX_DESC_CMD_RS) return mdd::rs_without_eop;
      continue;
    }
    p.eop = i;
    p.rs = cmd & ICE_TX_DESC_CMD_RS;
    break;
  }
  p.ndesc = n;
  p.tag = p.cmd & ICE_TX_DESC_CMD_IL2TAG1;
  if (!p.tag && p.l2tag1) return mdd::reserved_bits;
  if (p.total < ICE_MIN_TX_LEN) return mdd::too_short;
  if (!tso && p.total > ICE_MAX_FRAME) return mdd::too_long;
  if (const mdd m = check_offsets(p, offset); ICEPATH_UNLIKELY(m != mdd::none)) return m;
  return tso ? check_tso(p, tso_len) : mdd::none;
}

}  // namespace icepath
