// See csum.hpp. A piece that begins at an odd offset counts byte-swapped (RFC 1071 section 2(B)).
#include "skb/csum.hpp"

namespace icepath {

csum skb_checksum(const sk_buff* s, uint32_t off, uint32_t len, csum sum) {
  bool odd = false;
  const auto piece = [&](const uint8_t* p, uint32_t have) {
    if (off >= have) {
      off -= have;
      return;
    }
    const uint32_t k = len < have - off ? len : have - off;
    const csum c = csum_partial(p + off, k);
    sum = csum_add(sum, odd ? csum_odd(c) : c);
    odd ^= k & 1;
    len -= k;
    off = 0;
  };
  piece(s->data, s->headlen());
  for (unsigned i = 0; len && i < s->nr_frags; ++i) piece(s->frags[i].addr, s->frags[i].len);
  return sum;
}

}  // namespace icepath
