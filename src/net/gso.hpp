// What a packet needs that its device cannot do (T26): segmentation, checksum, scatter/gather, VLAN tag; done in software just
// before the driver. Runs in the thread that holds the run bit, with that thread's packet memory.
#pragma once
#include "net/net.hpp"

namespace icepath {

namespace gso_detail {
bool needs_software(const net_device& dev, const sk_buff* skb);
}
// False for every packet the device takes as it is: the common case, decided with no look at the packet's bytes.
inline bool skb_needs_validate(const net_device& dev, const sk_buff* skb) {
  constexpr uint32_t all = NETIF_F_SG | NETIF_F_IP_CSUM | NETIF_F_IPV6_CSUM | NETIF_F_TSO | NETIF_F_TSO6 | NETIF_F_HW_VLAN_TX;
  if (ICEPATH_LIKELY((dev.features & all) == all && skb->len <= dev.gso_max_size && skb->gso_segs <= dev.gso_max_segs &&
                     (!skb->gso_size || skb->gso_size >= dev.gso_min_size)))
    return false;
  return gso_detail::needs_software(dev, skb);
}

// Appends to `out` the packet, or the packets it became, ready for the device. Consumes skb; what cannot be made ready is
// dropped and counted (appends nothing): no memory, or bytes that do not fit a device without scatter/gather.
void validate_xmit_skb(net& n, net_device& dev, sk_buff* skb, sk_buff_head& out);

// Cuts a TCP packet (IPv4 or IPv6, link-layer header in place, transport_header set) into segments of at most gso_size bytes.
// sg: segments refer to the payload's frames; otherwise they copy. The charge (sk, destructor, truesize) moves to the last segment.
// True: skb consumed, segments appended to out. False: nothing changed.
bool skb_gso_segment(net& n, sk_buff* skb, bool sg, sk_buff_head& out);
// Computes the transport checksum of an ip_sum::partial packet over all its bytes, from its addresses: what the field held before
// does not matter. False: the packet's layout makes no sense (unchanged).
bool skb_checksum_help(sk_buff* skb);
// Sum (RFC 1071, not complemented) of the pseudo-header for the packet's IP header and `len` transport bytes; IPv4 and IPv6.
uint16_t pseudo_header_sum(const uint8_t* ip, uint8_t proto, uint32_t len);

}  // namespace icepath
