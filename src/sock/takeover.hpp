// A connection that moves out of the kernel and back by itself (DESIGN section 8): on a port whose peer is anybody, there is no second lane. The kernel's
// socket stays on its fd, parked (kernel_repair.hpp); the connection is in a tcp_sock of the wire port's stack.
//
// Such a lane has lane::wire set, phase `open`, both directions `fast` for its whole life, no header and no peer process. Leaving it is one synchronous
// step that needs nobody's help: so every rare call gives back, and the kernel goes on.
//
// Always: the steering rule is there exactly while the connection is in our tcp_sock, or is on its way. Under the owner word of lane::st, except takeover.
#pragma once
#include "sock/lane.hpp"

namespace icepath {

// From the thread that makes a data call on s, outside of any stack. t: ours first. nullptr: it is on the fast path now. Else why not; *again: later, perhaps.
// wire_local_reason: not this port's, the peer is on this host.
const char* takeover(socket* s, int fd, const four_tuple& t, bool* again);

// To the kernel, now. True: the lane is gone, s is a plain socket. False: the kernel cannot have it at this moment, it goes on where it is. later: it may be
// taken over again.
bool give_back(lane* l, const char* why, bool later = false);
bool takeover_close(lane* l);                          // the last fd closes: as lane_close, always true
ssize_t takeover_send(lane* l, user_msg& m, int flags);
ssize_t takeover_recv(lane* l, user_msg* m, size_t max, int flags);
bool takeover_leave_bulk(lane* l);                     // it has become a large transfer, and they are the kernel's here: true: it has gone home
void takeover_readiness(lane* l, uint32_t* ready);     // what sock_poll answers; the kernel answers for nothing
// The host's tables have changed, or it is time to look at what tells nobody: connections that may not stay go home. Helper thread, outside. When to come
// again, ~0: when something comes.
nsec takeover_look(nsec now);
void takeover_forget();                                // in a fork child

}  // namespace icepath
