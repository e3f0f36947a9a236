// The kernel's tables, read whole into rows (scratch memory of the control thread), sorted as tables.hpp says. Control thread only.
// Each returns the number of rows, or -errno: -EOVERFLOW when they do not fit, -EBADMSG when the kernel said what we do not understand.
#pragma once
#include "control/netlink.hpp"
#include "control/tables.hpp"

namespace icepath {

int dump_links(netlink& n, link_row* rows, uint32_t max);
int dump_addrs(netlink& n, addr_row* rows, uint32_t max);
int dump_routes(netlink& n, route_row* rows, uint32_t max);
int dump_rules(netlink& n, rule_row* rows, uint32_t max);
int dump_neighs(netlink& n, neigh_row* rows, uint32_t max);

// Dumps with the request m; each adds rows by dump_sink. Again when a change interrupted it.
struct dump_sink {
  void* rows;
  uint32_t n, max;
  int err;
  uint8_t family = 0;   // only rows of it: without IPv6 the kernel answers its dump with that of all families
};
int dump_all(netlink& n, nlmsghdr* m, bool (*each)(const nlmsghdr*, void*), dump_sink& s);
template <class T>
bool dump_add(dump_sink& s, const T& row) {
  if (s.n == s.max) { s.err = -EOVERFLOW; return false; }
  static_cast<T*>(s.rows)[s.n++] = row;
  return true;
}
// An address attribute of 4 or 16 bytes. false: neither.
bool attr_addr(const nlattr* a, inet_addr& out);

}  // namespace icepath
