// Segments that reach the wire port although their connection is not here: it has just been given back to the kernel, and they were on their way,
// or waited in our ring meanwhile. They are the kernel's, so it gets them: by a raw socket, from the peer's address, through the loopback device,
// whole and in order. What the kernel says to them (an RST, if it has no such connection either) is what it would have said without us.
//
// Owner: the wire port's stack, under its owner word. A segment that cannot be given over is dropped, and its sender sends it again.
#pragma once
#include "net/net.hpp"

namespace icepath {

struct sk_buff;

void foreign_segment(net& n, const sk_buff* skb);   // tcp_table::foreign. skb stays the caller's
// Between these one raw socket serves all segments; outside each opens its own.
void foreign_begin();
void foreign_end();

}  // namespace icepath
