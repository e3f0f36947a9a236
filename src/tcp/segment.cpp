// Checksums over segments (RFC 9293 3.1). Pure functions; any thread.
#include "skb/csum.hpp"
#include "tcp/tcp_internal.hpp"

namespace icepath {

static csum pseudo(const four_tuple& t, uint32_t len) {
  if (!t.saddr.is_v4()) return csum_pseudo_v6(t.saddr.b, t.daddr.b, 6, len);
  be32 s, d;
  std::memcpy(&s, t.saddr.b + 12, 4);
  std::memcpy(&d, t.daddr.b + 12, 4);
  return csum_pseudo_v4(s, d, 6, len);
}

// The sum is the same in both directions, so t may be the connection as we see it.
bool tcp_checksum_ok(const sk_buff* skb, const four_tuple& t) {
  return csum_fold_up(skb_checksum(skb, 0, skb->len, pseudo(t, skb->len))) == 0xffff;
}

void tcp_fill_checksum(sk_buff* skb, const four_tuple& t) {
  tcp_hdr* th = reinterpret_cast<tcp_hdr*>(skb->data);
  th->check.raw = 0;
  th->check.raw = csum_fold(skb_checksum(skb, 0, skb->len, pseudo(t, skb->len)));
}

}  // namespace icepath
