// What the descriptors say about a packet: VLAN tag, checksum and segmentation (T29). Pure functions of the skb; run by start_xmit.
// They fail (false) for a frame the hardware would not send; ring and skb are unchanged then, except that a checksum the device cannot insert
// is inserted here.
#include <arpa/inet.h>

#include "driver/ice/ring.hpp"

namespace icepath {

namespace {

constexpr uint16_t eth_p_ip = 0x0800, eth_p_ipv6 = 0x86dd;
constexpr unsigned tcp_check_off = 16, udp_check_off = 6;

uint16_t load16(const uint8_t* p) { uint16_t v; std::memcpy(&v, p, 2); return v; }
void store16(uint8_t* p, uint16_t v) { std::memcpy(p, &v, 2); }

// Length of the TCP header of a packet that wants its checksum inserted; 0 when it is not TCP or not whole.
uint32_t tcp_hdr_len(const sk_buff* skb) {
  const uint8_t* th = skb->head + skb->csum_start;
  if (skb->csum_offset != tcp_check_off || th + 20 > skb->tail()) return 0;
  const uint32_t n = (th[12] >> 4) * 4u;
  return n >= 20 && th + n <= skb->tail() ? n : 0;
}

bool ice_tx_csum(sk_buff* skb, ice_tx_offload_params& off) {
  const uint8_t* const l2 = skb->data;
  const uint8_t* const l3 = skb->network();
  const uint8_t* const l4 = skb->head + skb->csum_start;
  if (skb->headlen() < 14 || l3 < l2 + 14 || l4 <= l3 || l4 > skb->tail()) return false;
  const uint32_t maclen = static_cast<uint32_t>(l3 - l2), iplen = static_cast<uint32_t>(l4 - l3);
  const uint16_t proto = ntohs(load16(l3 - 2));
  const bool tso = skb->is_gso();
  uint32_t cmd = 0, l4len = 0;
  if (skb->csum_offset == tcp_check_off) {
    cmd = ICE_TX_DESC_CMD_L4T_EOFT_TCP;
    l4len = tcp_hdr_len(skb);
    if (!l4len) return false;
  } else if (skb->csum_offset == udp_check_off && !tso) {
    cmd = ICE_TX_DESC_CMD_L4T_EOFT_UDP;
    l4len = 8;
  }
  if (proto == eth_p_ip) cmd |= tso ? ICE_TX_DESC_CMD_IIPT_IPV4_CSUM : ICE_TX_DESC_CMD_IIPT_IPV4;
  else if (proto == eth_p_ipv6) cmd |= ICE_TX_DESC_CMD_IIPT_IPV6;
  const bool fits = !(maclen & 1) && !(iplen & 3) && maclen / 2 <= TXD_OFFSET_MACLEN.max() && iplen / 4 <= TXD_OFFSET_IPLEN.max();
  if (!fits || !(cmd & ICE_TX_DESC_CMD_IIPT) || !(cmd & ICE_TX_DESC_CMD_L4T)) return !tso && ice_skb_checksum_help(skb);
  off.td_cmd |= cmd;
  off.td_offset = static_cast<uint32_t>(TXD_OFFSET_MACLEN.put(maclen / 2) | TXD_OFFSET_IPLEN.put(iplen / 4) | TXD_OFFSET_L4_LEN.put(l4len / 4));
  off.header_len = maclen + iplen + l4len;
  return true;
}

// The device adds each segment's own length to the pseudo header's sum, so the whole packet's is taken out here (RFC 1624).
bool ice_tso(sk_buff* skb, ice_tx_offload_params& off) {
  if (skb->gso_size < ICE_TXD_CTX_MIN_MSS || skb->gso_size > ICE_TXD_CTX_MAX_MSS) return false;
  if (!(off.td_cmd & ICE_TX_DESC_CMD_L4T) || skb->len <= off.header_len || off.header_len > ICE_TSO_MAX_HDR) return false;
  const uint32_t payload = skb->len - off.header_len;
  if (payload > TXD_CTX_QW1_TSO_LEN.max()) return false;
  uint8_t* const check = skb->head + skb->csum_start + tcp_check_off;
  const uint32_t paylen = skb->len - static_cast<uint32_t>(skb->head + skb->csum_start - skb->data);
  uint32_t sum = load16(check);
  sum += static_cast<uint16_t>(~htons(static_cast<uint16_t>(paylen)));
  if (paylen >> 16) sum += static_cast<uint16_t>(~htons(static_cast<uint16_t>(paylen >> 16)));
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  store16(check, static_cast<uint16_t>(sum));
  off.cd_qw1_cmd |= ICE_TX_CTX_DESC_TSO;
  off.cd_tso_len = payload;
  off.cd_mss = skb->gso_size;
  off.gso_segs = (payload + skb->gso_size - 1) / skb->gso_size;
  return true;
}

}  // namespace

bool ice_skb_checksum_help(sk_buff* skb) {
  const uint32_t start = static_cast<uint32_t>(skb->head + skb->csum_start - skb->data);
  if (start + skb->csum_offset + 2 > skb->headlen()) return false;
  uint64_t sum = 0;
  bool odd = false;
  const auto add = [&](const uint8_t* p, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i, odd = !odd) sum += odd ? uint64_t{p[i]} << 8 : p[i];
  };
  add(skb->data + start, skb->headlen() - start);
  for (unsigned f = 0; f < skb->nr_frags; ++f) add(skb->frags[f].addr, skb->frags[f].len);
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  uint16_t v = static_cast<uint16_t>(~sum);
  if (!v) v = 0xffff;
  store16(skb->data + start + skb->csum_offset, v);
  skb->ip_summed = ip_sum::none;
  return true;
}

bool ice_tx_offload(sk_buff* skb, ice_tx_offload_params& off) {
  if (skb->ip_summed == ip_sum::partial) {
    if (!ice_tx_csum(skb, off)) return false;
  } else if (skb->is_gso()) {
    return false;
  }
  if (skb->is_gso()) {
    if (!ice_tso(skb, off)) return false;
  } else if (skb->len > ICE_MAX_FRAME) {
    return false;
  }
  if (skb->vlan_present) off.td_l2tag1 = skb->vlan_tci;
  // Tag 0 (priority only) cannot be told from "no tag" in td_l2tag1; the command bit says it.
  if (skb->vlan_present && !skb->vlan_tci) off.td_cmd |= ICE_TX_DESC_CMD_IL2TAG1;
  return true;
}

}  // namespace icepath
