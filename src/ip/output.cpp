// IPv4 output (T17-T20): header, route, size, next hop. Under the owner word. Every function consumes the skb.
// What the host's firewall and policies ask per packet is decided before a connection comes here (DESIGN section 9): none of the
// kernel's hooks has a place in this file.
#include "ip/ip.hpp"
#include "ip/ipv4_hdr.hpp"
#include "net/dev.hpp"

namespace icepath {
namespace {

int drop(net& n, sk_buff* skb, std::atomic<uint64_t> mib::*why, int err) {
  dev_count(n, why);
  n.skbs.free(skb);
  return err;
}

// T20. The gateway may have an IPv6 address: the neighbour's link-layer header decides, not the packet's destination.
int ip_finish_output2(net& n, const dst_entry& d, sk_buff* skb) {
  return neigh_output(n, d.neigh, skb);
}

// T19. The size of what goes on the wire: of the packet, or of each segment that the device or validate_xmit_skb will cut.
// TCP is the only sender and sets DF or keeps to the MSS: too large is its business to mend (EMSGSIZE), nothing is fragmented.
int ip_finish_output(net& n, const dst_entry& d, sk_buff* skb) {
  uint32_t size = skb->len;
  if (skb->gso_size) {
    const uint32_t ip_len = static_cast<uint32_t>(skb->transport_header - skb->network_header);
    size = ip_len + (skb->transport()[12] >> 4) * 4u + skb->gso_size;
    if (size > skb->len) size = skb->len;
  }
  if (ICEPATH_UNLIKELY(size > d.mtu)) return drop(n, skb, &mib::IpOutFragFails, -EMSGSIZE);
  return ip_finish_output2(n, d, skb);
}

int ip_output(net& n, const dst_entry& d, sk_buff* skb) {
  skb->dev = d.dev;
  skb->queue_mapping = d.neigh->txq;
  return ip_finish_output(n, d, skb);
}

uint32_t wire32(uint32_t v) { return __builtin_bswap32(v); }
uint16_t fold(uint64_t sum) {  // ones' complement sum of 32-bit words to 16 bits
  sum = (sum & 0xffffffff) + (sum >> 32);
  sum = (sum & 0xffffffff) + (sum >> 32);
  sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>((sum & 0xffff) + (sum >> 16));
}

// T18: header, length and checksum, made of five words in registers: reading them back for the checksum would wait for the
// narrow stores. The sums are in wire order throughout (RFC 1071 section 2 allows it).
int ip_local_out(net& n, const dst_entry& d, const ip_params& p, sk_buff* skb) {
  const uint32_t l4_len = skb->len;
  uint8_t* const ip = skb_push(skb, sizeof(iphdr_v4));
  skb_reset_network(skb);
  // A packet longer than the field holds is a segmented one whose device takes such: the length is each segment's there.
  const uint32_t tot_len = skb->len <= 0xffff ? skb->len : 0;
  const uint32_t segs = skb->gso_segs > 1 ? skb->gso_segs : 1;
  uint32_t w[5];
  w[0] = wire32(0x45000000u | uint32_t{p.tos} << 16 | tot_len);
  w[1] = wire32(uint32_t{n.ip_id} << 16 | (p.df ? IP_DF : 0u));   // ID: free for atomic datagrams (RFC 6864); one for each segment to come
  w[2] = wire32(uint32_t{p.ttl} << 24 | uint32_t{p.protocol} << 16);
  n.ip_id = static_cast<uint16_t>(n.ip_id + segs);
  std::memcpy(&w[3], p.saddr.b + 12, 4);
  std::memcpy(&w[4], p.daddr.b + 12, 4);
  const uint64_t addrs = uint64_t{w[3]} + w[4];
  const uint16_t check = static_cast<uint16_t>(~fold(addrs + w[0] + w[1] + w[2]));
  w[2] |= uint32_t{check} << 16;   // bytes 10 and 11 of the header on a little-endian machine
  std::memcpy(ip, w, sizeof w);
  if (skb->ip_summed == ip_sum::partial) {
    const uint16_t sum = fold(addrs + wire32(p.protocol) + wire32(l4_len));
    std::memcpy(skb->head + skb->csum_start + skb->csum_offset, &sum, 2);
  }
  return ip_output(n, d, skb);
}
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

}  // namespace

int ip_queue_xmit(net& n, dst_entry* d, const ip_params& p, sk_buff* skb) {
  dst_entry* own = nullptr;  // looked up for this packet only
  if (ICEPATH_UNLIKELY(!d || !dst_valid(d))) {
    d = own = ip_route_output(n, p.daddr, p.saddr);
    if (!d) return drop(n, skb, &mib::IpOutNoRoutes, -EHOSTUNREACH);
  }
  dev_count(n, &mib::IpOutRequests);
  int rc;
  if (ICEPATH_UNLIKELY(skb->headroom() < 20 + 16)) {
    rc = drop(n, skb, &mib::IpOutDiscards, -ENOBUFS);
  } else {
    if (skb->priority == 0 && p.tos) skb->priority = rt_tos2priority(p.tos);
    rc = ip_local_out(n, *d, p, skb);
  }
  if (ICEPATH_UNLIKELY(own != nullptr)) dst_release(n, own);
  return rc;
}

}  // namespace icepath
