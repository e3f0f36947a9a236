// Descriptors in control messages (SCM_RIGHTS) on sockets that are not ours: whoever receives one has the same kernel socket as we.
#pragma once
#include <sys/socket.h>

namespace icepath {

// The message carries control data: the only case in which a call on a foreign socket concerns us. False before set-up.
bool has_control(const msghdr* user);
void rights_leave(const msghdr* user);                 // before the descriptors are sent
void rights_stayed(const msghdr* user);                // they were not
void rights_arrived(const msghdr* user, int flags);    // after a receive; flags: the call's

}  // namespace icepath
