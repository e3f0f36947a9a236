// IPv4 output (T17-T20): header, route, size, next hop. Under the owner word. Every function consumes the skb.
// What the host's firewall and policies ask per packet is decided before a connection comes here (DESIGN section 9): none of the
// kernel's hooks has a place in this file.
#include "ip/ip.hpp"
#include "ip/ipv4_hdr.hpp"
#include "net/dev.hpp"
#include "net/gso.hpp"

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

// T18: what depends on the final length.
int ip_local_out(net& n, const dst_entry& d, sk_buff* skb) {
  auto* ip = reinterpret_cast<iphdr_v4*>(skb->data);
  // A segmented packet may be longer than the field holds only if its device takes such: its length is then per segment.
  ip->tot_len = static_cast<uint16_t>(skb->len <= 0xffff ? skb->len : 0);
  ip->check.raw = 0;
  ip->check.raw = ip_fast_csum(ip, 5);
  return ip_output(n, d, skb);
}

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
    auto* ip = reinterpret_cast<iphdr_v4*>(skb_push(skb, 20));
    skb_reset_network(skb);
    ip->ver_ihl = 0x45;
    ip->tos = p.tos;
    ip->id = n.ip_id;  // RFC 6864: free for atomic datagrams; one for each segment to come
    n.ip_id = static_cast<uint16_t>(n.ip_id + (skb->gso_segs > 1 ? skb->gso_segs : 1));
    ip->frag_off = p.df ? IP_DF : uint16_t{0};
    ip->ttl = p.ttl;
    ip->protocol = p.protocol;
    std::memcpy(&ip->saddr, p.saddr.b + 12, 4);
    std::memcpy(&ip->daddr, p.daddr.b + 12, 4);
    if (skb->priority == 0 && p.tos) skb->priority = rt_tos2priority(p.tos);
    if (skb->ip_summed == ip_sum::partial) {
      const be16 sum = [&] { be16 v; v = pseudo_header_sum(skb->data, p.protocol, skb->len - 20); return v; }();
      std::memcpy(skb->head + skb->csum_start + skb->csum_offset, &sum, 2);
    }
    rc = ip_local_out(n, *d, skb);
  }
  if (ICEPATH_UNLIKELY(own != nullptr)) dst_release(n, own);
  return rc;
}

}  // namespace icepath
