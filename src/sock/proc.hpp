// Process life of the socket layer (DESIGN section 7): set-up, fork, exec, exit, and the operator's on and off. See proc.cpp.
#pragma once
#include "sock/init.hpp"
#include "sock/socket.hpp"

namespace icepath {

void sock_claim_inherited(socket* s);             // fork child, first use: the parent brings the connection back to the kernel
void sock_check_connected(socket* s, int fd);     // connecting -> connected, when the kernel says so
ssize_t sock_empty_send(socket* s, int fd, int flags);
ssize_t sock_empty_recv(socket* s, int fd, int flags);
void sock_refresh_timeouts(socket* s, int fd);
bool promotion_paused();                          // a fork is under way
bool sandboxed();                                 // since sock_before_sandbox
bool sock_is_wire(socket* s);          // its connection has left the kernel (takeover.hpp). Outside of its stack
bool promotion_off();                             // `icepath off`
inline constexpr const char* off_reason = "off by the operator";

}  // namespace icepath
