// See policy.hpp: XFRM policies, and what holds for the whole host or namespace and has no notification (legacy tables, LSMs).
#include <fcntl.h>
#include <linux/xfrm.h>
#include <sys/socket.h>

#include <cerrno>

#include "base/raw_syscall.hpp"
#include "control/dump.hpp"
#include "control/policy.hpp"
#include "control/policy_watch.hpp"

namespace icepath {
namespace {

inet_addr address(const xfrm_address_t& a, uint16_t family) {
  inet_addr r{};
  if (family == AF_INET) {
    r = inet_addr::v4(0);
    std::memcpy(r.b + 12, &a.a4, 4);
  } else {
    std::memcpy(r.b, a.a6, 16);
  }
  return r;
}

bool on_policy(const nlmsghdr* m, void* p) {
  auto& s = *static_cast<dump_sink*>(p);
  if (m->nlmsg_type != XFRM_MSG_NEWPOLICY) return true;
  xfrm_userpolicy_info info;
  if (mnl_nlmsg_get_payload_len(m) < sizeof info) return s.err = -EBADMSG, false;
  std::memcpy(&info, mnl_nlmsg_get_payload(m), sizeof info);
  if (info.dir != XFRM_POLICY_IN && info.dir != XFRM_POLICY_OUT) return true;   // forwarding; per-socket ones are 3 and 4
  xfrm_row r{};
  r.family = static_cast<uint8_t>(info.sel.family);
  r.saddr = address(info.sel.saddr, info.sel.family);
  r.daddr = address(info.sel.daddr, info.sel.family);
  r.plen_s = info.sel.prefixlen_s;
  r.plen_d = info.sel.prefixlen_d;
  r.sport = info.sel.sport;
  r.smask = info.sel.sport_mask;
  r.dport = info.sel.dport;
  r.dmask = info.sel.dport_mask;
  r.proto = info.sel.proto;
  r.dir = info.dir;
  r.ifindex = static_cast<uint32_t>(info.sel.ifindex);
  return dump_add(s, r);
}

// Whole blocks without a policy: the default may be set to block (XFRM_MSG_SETDEFAULT), as if a policy matched everything.
bool on_default(const nlmsghdr* m, void* p) {
  auto& s = *static_cast<dump_sink*>(p);
  uint8_t v[3];   // in, fwd, out: 1 blocks
  if (m->nlmsg_type != XFRM_MSG_GETDEFAULT || mnl_nlmsg_get_payload_len(m) < sizeof v) return true;
  std::memcpy(v, mnl_nlmsg_get_payload(m), sizeof v);
  xfrm_row r{};
  for (const uint8_t dir : {uint8_t{XFRM_POLICY_IN}, uint8_t{XFRM_POLICY_OUT}}) {
    r.dir = dir;
    if (v[dir == XFRM_POLICY_IN ? 0 : 2] == 1 && !dump_add(s, r)) return false;
  }
  return true;
}

// The file, up to room - 1 bytes. -errno.
long read_file(const char* path, char* to, size_t room) {
  const long fd = raw_syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return fd;
  size_t n = 0;
  long k = 0;
  while (n < room - 1 && (k = raw_syscall(SYS_read, fd, to + n, room - 1 - n)) > 0) n += static_cast<size_t>(k);
  raw_syscall(SYS_close, fd);
  to[n] = 0;
  return k < 0 ? k : static_cast<long>(n);
}

// A table that is registered, filters or not; the kernel registers one when somebody first asks for it.
uint32_t legacy(const char* path, uint32_t when_there) {
  char b[256];
  const long n = read_file(path, b, sizeof b);
  if (n == -ENOENT) return 0;   // the kernel has no legacy tables
  if (n < 0) return host_tables_unknown;
  return n > 0 ? when_there : 0;
}

uint32_t lsm() {
  char b[4096];
  const long n = read_file("/proc/filesystems", b, sizeof b);   // selinuxfs and smackfs are registered where that LSM is active
  if (n <= 0) return host_lsm_unknown;
  return std::strstr(b, "selinuxfs") || std::strstr(b, "smackfs") ? uint32_t{host_lsm} : 0;
}

}  // namespace

int dump_xfrm(netlink& n, xfrm_row* rows, uint32_t max) {
  alignas(nlmsghdr) char buf[256];
  dump_sink s{rows, 0, max, 0};
  nlmsghdr* m = mnl_nlmsg_put_header(buf);
  m->nlmsg_type = XFRM_MSG_GETPOLICY;
  m->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  mnl_nlmsg_put_extra_header(m, sizeof(xfrm_userpolicy_id));
  int k = dump_all(n, m, on_policy, s);
  if (k < 0) return k;
  m = mnl_nlmsg_put_header(buf);
  m->nlmsg_type = XFRM_MSG_GETDEFAULT;
  m->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  mnl_nlmsg_put_extra_header(m, sizeof(xfrm_userpolicy_default));
  k = netlink_talk(n, m, on_default, &s);
  if (k < 0 && k != -EINVAL) return k;   // EINVAL: a kernel without a default to set
  return s.err ? s.err : static_cast<int>(s.n);
}

int dump_xfrm_none() {
  const long fd = raw_syscall(SYS_socket, AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_XFRM);
  if (fd >= 0) raw_syscall(SYS_close, fd);
  return fd == -EPROTONOSUPPORT ? 0 : -EPERM;
}

int dump_host(host_row* rows) {
  const uint32_t v4 = legacy("/proc/thread-self/net/ip_tables_names", host_ip_tables);
  const uint32_t v6 = legacy("/proc/thread-self/net/ip6_tables_names", host_ip6_tables);
  rows[0] = host_row{v4 | v6 | lsm(), 0};
  return 1;
}

}  // namespace icepath
