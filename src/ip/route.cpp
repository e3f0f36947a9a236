// Routes as sockets hold them (T17). A dst_entry belongs to the stack it was made in and lives while it has references; it holds one
// on its next hop. Under the owner word. Made when a connection begins, never per packet on the fast path.
#include <new>

#include "ip/ip.hpp"
#include "skb/sk_buff.hpp"
#include "wire/headers.hpp"

namespace icepath {

std::atomic<uint32_t> ip_route_generation{1};
bool (*ip_fib_lookup)(net& n, const inet_addr& daddr, const inet_addr& saddr, fib_result& out) = nullptr;

namespace {

// Takes over one reference on nb, also when it fails.
dst_entry* dst_alloc(net& n, net_device* dev, neighbour* nb, uint32_t mtu, uint32_t gen, bool pinned) {
  auto* d = new (std::nothrow) dst_entry;
  if (!d) {
    neigh_release(n, nb);
    return nullptr;
  }
  d->dev = dev;
  d->neigh = nb;
  d->mtu = mtu && mtu < dev->mtu ? mtu : dev->mtu;
  d->gen = gen;
  d->pinned = pinned;
  d->refcnt = 1;
  return d;
}

}  // namespace

dst_entry* ip_route_via(net& n, net_device* dev, neighbour* nb, uint32_t mtu) {
  ++nb->refcnt;
  return dst_alloc(n, dev, nb, mtu, ip_route_generation.load(std::memory_order_acquire), true);
}

dst_entry* ip_route_back(net& n, const sk_buff* skb) {
  const auto* eth = reinterpret_cast<const eth_hdr*>(skb->mac());
  neighbour* nb = neigh_lookup(n, n.dev, link_local_of(eth->src));
  if (!nb) return nullptr;
  dst_entry* d = ip_route_via(n, n.dev, nb, n.dev->mtu);
  neigh_release(n, nb);
  return d;
}

dst_entry* ip_route_output(net& n, const inet_addr& daddr, const inet_addr& saddr) {
  // The generation is read before the table: a change meanwhile makes the result obsolete at once, not valid for ever.
  const uint32_t gen = ip_route_generation.load(std::memory_order_acquire);
  fib_result r{};
  if (!ip_fib_lookup || !ip_fib_lookup(n, daddr, saddr, r)) return nullptr;
  return dst_alloc(n, r.dev, r.neigh, r.mtu, gen, false);
}

void dst_release(net& n, dst_entry* d) {
  if (!d || --d->refcnt) return;
  neigh_release(n, d->neigh);
  delete d;
}

}  // namespace icepath
