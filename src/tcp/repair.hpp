// A tcp_sock from the state of a connection, and back. Under the owner word of the stack, n.now set to CLOCK_MONOTONIC. See repair_state.hpp.
#pragma once
#include "net/net.hpp"
#include "tcp/repair_state.hpp"

namespace icepath {

struct tcp_sock;

// sk: closed, from tcp_sk_alloc, with its route set (tcp_set_dst) or findable. Afterwards it is what s says, in the table, timers armed;
// what may be sent goes at once. s is only read. 0, or a negative errno: what tcp_repair_check says, -EISCONN, -EADDRINUSE, -EHOSTUNREACH,
// -ENOBUFS; then sk is closed and empty as before and nothing was sent.
int tcp_import(net& n, tcp_sock* sk, const tcp_repair_state& s);

// Freezes sk and copies it to s: out of the table, no timer, nothing will be sent or received. The caller then frees it (tcp_sk_free sends
// nothing), or, when the other side could not take it, thaws it. 0, or -ENOTCONN (no state that can be carried), -ENOBUFS: sk goes on as it was.
// The buffers of s are used again when there are any. What is in the device's ring already may still go out.
int tcp_export(net& n, tcp_sock* sk, tcp_repair_state& s);
int tcp_thaw(net& n, tcp_sock* sk);    // 0, or -EADDRINUSE

// Would a move now cost the peer nothing? False while data waits out of order, or urgent data is pending. A caller that can wait asks this first.
bool tcp_export_ready(const tcp_sock* sk);

}  // namespace icepath
