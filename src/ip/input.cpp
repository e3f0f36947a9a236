// IPv4 input (T33): checks the header (RFC 1122 section 3.2.1) and hands the packet to its protocol. Under the owner word.
// Consumes every skb. What is wrong is counted by reason and dropped; nothing is answered, nothing is logged per packet.
//
// No forwarding and no list of local addresses: a frame that reached this port is for this host, and a connection is found by its whole
// 4-tuple or not at all. Fragments are dropped and counted: TCP's senders use path MTU discovery.
#include "ip/ip.hpp"
#include "ip/ipv4_hdr.hpp"
#include "net/dev.hpp"

namespace icepath {
namespace {

using protocol_fn = void (*)(net& n, sk_buff* skb);
constinit std::atomic<protocol_fn> inet_protos[256];   // release in inet_add_protocol, acquire in ip_local_deliver

void drop(net& n, sk_buff* skb, std::atomic<uint64_t> mib::*why) {
  dev_count(n, why);
  n.skbs.free(skb);
}

// RFC 791 section 3.1 option encoding. False: malformed, or a source route, which the kernel refuses by default too.
bool options_ok(const uint8_t* o, unsigned len) {
  for (unsigned i = 0; i < len;) {
    if (o[i] == 0) return true;           // end of list
    if (o[i] == 1) { ++i; continue; }     // no operation
    if (i + 1 >= len || o[i + 1] < 2 || i + o[i + 1] > len) return false;
    if (o[i] == 131 || o[i] == 137) return false;   // LSRR, SSRR
    i += o[i + 1];
  }
  return true;
}

// Never a sender (RFC 1122 section 3.2.1.3): multicast, reserved and limited broadcast, "this network".
bool bad_source(uint32_t a) { return a >= 0xe0000000u || a >> 24 == 0; }
// Not a unicast destination.
bool bad_destination(uint32_t a) { return a >= 0xe0000000u || a == 0; }

void ip_local_deliver(net& n, sk_buff* skb, unsigned ihl, uint8_t proto) {
  const protocol_fn fn = inet_protos[proto].load(std::memory_order_acquire);
  if (ICEPATH_UNLIKELY(!fn)) return drop(n, skb, &mib::IpInUnknownProtos);
  skb_pull(skb, ihl);
  skb_reset_transport(skb);
  dev_count(n, &mib::IpInDelivers);
  fn(n, skb);
}

}  // namespace

void inet_add_protocol(uint8_t proto, void (*handler)(net& n, sk_buff* skb)) {
  inet_protos[proto].store(handler, std::memory_order_release);
  dev_add_pack(0x0800, ip_rcv);
}

void ip_rcv(net& n, sk_buff* skb) {
  dev_count(n, &mib::IpInReceives);
  constexpr unsigned min_hdr = sizeof(iphdr_v4);
  if (ICEPATH_UNLIKELY(skb->len < min_hdr)) return drop(n, skb, &mib::IpInTruncatedPkts);
  if (ICEPATH_UNLIKELY(skb->headlen() < min_hdr) && !skb_pull_head(n.skbs, skb, min_hdr)) return drop(n, skb, &mib::IpInDiscards);
  const unsigned ihl = (skb->data[0] & 15) * 4u;
  if (ICEPATH_UNLIKELY(skb->data[0] >> 4 != 4 || ihl < min_hdr)) return drop(n, skb, &mib::IpInHdrErrors);
  if (ICEPATH_UNLIKELY(skb->len < ihl)) return drop(n, skb, &mib::IpInTruncatedPkts);
  if (ICEPATH_UNLIKELY(skb->headlen() < ihl) && !skb_pull_head(n.skbs, skb, ihl)) return drop(n, skb, &mib::IpInDiscards);
  skb_reset_network(skb);
  const auto* ip = reinterpret_cast<const iphdr_v4*>(skb->data);
  if (ICEPATH_UNLIKELY(ip_fast_csum(ip, ihl / 4) != 0)) {
    dev_count(n, &mib::IpInCsumErrors);
    return drop(n, skb, &mib::IpInHdrErrors);
  }
  // A whole TSO frame that is longer than the field can say carries 0 there; only a device that takes such frames marks them so.
  const uint32_t tot_len = ip->tot_len == 0 && skb->gso_size ? skb->len : ip->tot_len.get();
  if (ICEPATH_UNLIKELY(tot_len < ihl)) return drop(n, skb, &mib::IpInHdrErrors);
  if (ICEPATH_UNLIKELY(skb->len < tot_len)) return drop(n, skb, &mib::IpInTruncatedPkts);
  if (ICEPATH_UNLIKELY(skb->len > tot_len)) {
    skb_trim(n.skbs, skb, tot_len);  // padding of the link; a sum over it is worth nothing
    if (skb->ip_summed == ip_sum::complete) skb->ip_summed = ip_sum::none;
  }
  if (ICEPATH_UNLIKELY(ihl > min_hdr) && !options_ok(skb->data + min_hdr, ihl - min_hdr)) return drop(n, skb, &mib::IpInHdrErrors);
  if (ICEPATH_UNLIKELY(bad_source(ip->saddr) || bad_destination(ip->daddr))) return drop(n, skb, &mib::IpInAddrErrors);
  if (ICEPATH_UNLIKELY(ip->frag_off & (IP_MF | IP_OFFSET))) return drop(n, skb, &mib::IpReasmFails);
  ip_local_deliver(n, skb, ihl, ip->protocol);
}

}  // namespace icepath
