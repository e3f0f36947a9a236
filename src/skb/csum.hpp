// The internet checksum over a range of an sk_buff, across its fragments. Pure; the skb's holder.
#pragma once
#include "skb/sk_buff.hpp"
#include "wire/checksum.hpp"

namespace icepath {

// off + len <= s->len. `sum` may already hold a pseudo header; the range begins at an even offset of the checksummed text.
csum skb_checksum(const sk_buff* s, uint32_t off, uint32_t len, csum sum = 0);

}  // namespace icepath
