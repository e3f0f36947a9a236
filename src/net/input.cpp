// The first step of the way back (T33): an Ethernet frame from a driver to the handler of its ethertype. Runs under the owner
// word of the stack. Frames that are not for us, are too short or of a type nobody takes are counted (rx_dropped) and freed.
#include "net/dev.hpp"

namespace icepath {
namespace {

struct packet_type {
  std::atomic<uint32_t> type{0};             // ethertype + 1; 0: free. Claimed by CAS
  std::atomic<packet_type_fn> fn{nullptr};   // release; acquire in netif_receive_skb
};
constinit packet_type ptypes[4];

packet_type_fn handler_of(uint16_t type) {
  for (auto& p : ptypes)
    if (p.type.load(std::memory_order_acquire) == type + 1u) return p.fn.load(std::memory_order_acquire);
  return nullptr;
}

}  // namespace

bool dev_add_pack(uint16_t ethertype, packet_type_fn fn) {
  for (auto& p : ptypes) {
    uint32_t t = 0;
    if (p.type.load(std::memory_order_acquire) != ethertype + 1u && !p.type.compare_exchange_strong(t, ethertype + 1u, std::memory_order_acq_rel) &&
        t != ethertype + 1u)
      continue;
    p.fn.store(fn, std::memory_order_release);
    return true;
  }
  return false;
}

void netif_receive_skb(net& n, sk_buff* skb) {
  constexpr uint32_t eth_hlen = 14;
  if (const packet_tap_fn tap = packet_tap.load(std::memory_order_acquire); ICEPATH_UNLIKELY(tap != nullptr) && skb->dev) tap(n, *skb->dev, skb, false);
  net_device* const dev = skb->dev;
  if (ICEPATH_LIKELY(skb->len >= eth_hlen && (skb->headlen() >= eth_hlen || skb_pull_head(n.skbs, skb, eth_hlen)))) {
    skb_reset_mac(skb);
    const uint8_t* eth = skb->data;
    // Unicast to us only: neither TCP nor anything else here listens to broadcast, multicast or other hosts' frames.
    const bool ours = !dev || std::memcmp(eth, dev->dev_addr, 6) == 0;
    const auto type = static_cast<uint16_t>(eth[12] << 8 | eth[13]);
    if (const packet_type_fn fn = ours ? handler_of(type) : nullptr; ICEPATH_LIKELY(fn != nullptr)) {
      skb_pull(skb, eth_hlen);
      skb_reset_network(skb);
      return fn(n, skb);
    }
  }
  if (dev) ++dev->rx_dropped;
  n.skbs.free(skb);
}

}  // namespace icepath
