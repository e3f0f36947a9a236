// Netlink sockets of the control thread. libmnl lays messages out and takes them apart; the socket calls are raw, because libmnl's would go through
// the symbols that preload/ interposes. Owner: whoever opened it; one thread.
#pragma once
#include <libmnl/libmnl.h>

#include "base/types.hpp"

namespace icepath {

struct netlink {
  int fd = -1;
  uint32_t seq = 0;
};

int netlink_open(netlink& n, int protocol, bool nonblocking);       // 0 or -errno
void netlink_close(netlink& n);
int netlink_join(netlink& n, unsigned group);                       // 0 or -errno
// Sends m (its seq is set here) and gives every answer to each until the end of the dump, or the acknowledgement. each returns false to stop
// listening to the rest (which is read all the same). 0, or -errno: the kernel's own, EINTR for a dump that was interrupted by a change, ETIMEDOUT
// after a second.
int netlink_talk(netlink& n, nlmsghdr* m, bool (*each)(const nlmsghdr*, void*), void* arg);
// One datagram of notifications to each. Bytes, 0 when there is none, -ENOBUFS when some were lost, other -errno.
int netlink_events(netlink& n, void (*each)(const nlmsghdr*, void*), void* arg);

// Attributes 0..max of a message behind its family header; those that are too short for their place are left out. false: malformed.
bool netlink_attrs(const nlmsghdr* m, size_t header, const nlattr** tb, unsigned max);
bool netlink_nested(const nlattr* a, const nlattr** tb, unsigned max);
inline uint32_t attr_u32(const nlattr* a, uint32_t otherwise = 0) {
  return a && mnl_attr_get_payload_len(a) >= 4 ? mnl_attr_get_u32(a) : otherwise;
}
inline uint32_t attr_be32(const nlattr* a, uint32_t otherwise = 0) {
  return a && mnl_attr_get_payload_len(a) >= 4 ? __builtin_bswap32(mnl_attr_get_u32(a)) : otherwise;
}
void attr_name(const nlattr* a, char* to, size_t room);             // terminated, zero padded

}  // namespace icepath
