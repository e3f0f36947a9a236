// See neigh.hpp; and control_pmtu of route.hpp, which asks in the same way.
#include "control/neigh.hpp"

#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "base/fd.hpp"
#include "base/raw_syscall.hpp"
#include "control/route.hpp"

namespace icepath {
namespace {

constexpr int msg_probe = 0x10;   // MSG_PROBE of linux/socket.h, which the C library has not: do not send, only probe the path

int open_fd(int family, int type, int protocol) {
  const long fd = raw_syscall(SYS_socket, family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);
  return fd < 0 ? static_cast<int>(fd) : fd_move_high(static_cast<int>(fd));
}

}  // namespace

neigh_answer control_neigh(const control_tables& t, uint32_t ifindex, const inet_addr& next_hop) {
  for (int tries = 0; tries < 16; ++tries) {
    const uint32_t g = t.neighs.generation();
    neigh_answer a{};
    a.generation = g;
    a.verdict = t.neighs.known(g) ? neigh_verdict::none : neigh_verdict::unknown;
    uint32_t lo = 0, hi = t.neighs.count(g);
    while (lo < hi) {
      const uint32_t mid = lo + (hi - lo) / 2;
      const neigh_row r = t.neighs.at(g, mid);
      const int c = r.ifindex != ifindex ? (r.ifindex < ifindex ? -1 : 1) : std::memcmp(r.addr.b, next_hop.b, 16);
      if (c < 0) lo = mid + 1;
      else if (c > 0) hi = mid;
      else {
        const bool valid = r.has_mac && (r.state & (NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE | NUD_PROBE | NUD_STALE | NUD_DELAY));
        a.verdict = valid ? (r.state & NUD_STALE ? neigh_verdict::stale : neigh_verdict::usable)
                    : r.state & NUD_FAILED ? neigh_verdict::failed
                    : r.state & NUD_INCOMPLETE ? neigh_verdict::incomplete
                                               : neigh_verdict::none;
        if (valid) std::memcpy(a.mac, r.mac, 6);
        break;
      }
    }
    if (t.neighs.valid(g)) return a;
  }
  return neigh_answer{neigh_verdict::unknown, {}, 0};
}

int control_neigh_open(neigh_fds& f) {
  f.rt = open_fd(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
  f.udp4 = open_fd(AF_INET, SOCK_DGRAM, 0);
  f.udp6 = open_fd(AF_INET6, SOCK_DGRAM, 0);   // may fail: no IPv6
  const int e = f.rt < 0 ? f.rt : f.udp4 < 0 ? f.udp4 : 0;
  if (e < 0) control_neigh_close(f);
  return e;
}

void control_neigh_close(neigh_fds& f) {
  for (int* fd : {&f.rt, &f.udp4, &f.udp6}) {
    if (*fd >= 0) raw_syscall(SYS_close, *fd);
    *fd = -1;
  }
}

int control_resolve(neigh_fds& f, uint32_t ifindex, const inet_addr& a) {
  struct {
    nlmsghdr h;
    ndmsg nd;
    rtattr attr;
    uint8_t addr[16];
  } m{};
  const bool v4 = a.is_v4();
  const uint32_t len = v4 ? 4 : 16;
  m.h.nlmsg_len = static_cast<uint32_t>(offsetof(decltype(m), addr)) + len;
  m.h.nlmsg_type = RTM_NEWNEIGH;
  m.h.nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK;
  m.nd.ndm_family = v4 ? AF_INET : AF_INET6;
  m.nd.ndm_ifindex = static_cast<int>(ifindex);
  m.nd.ndm_state = NUD_NONE;
  m.nd.ndm_flags = NTF_USE;
  m.attr.rta_type = NDA_DST;
  m.attr.rta_len = static_cast<uint16_t>(RTA_LENGTH(len));
  std::memcpy(m.addr, a.b + (v4 ? 12 : 0), len);
  // The answer is written while we are in sendto: it is there at once.
  char answer[512];
  while (raw_syscall(SYS_recvfrom, f.rt, answer, sizeof answer, MSG_DONTWAIT, nullptr, nullptr) > 0) {}
  sockaddr_nl to{};
  to.nl_family = AF_NETLINK;
  const long sent = raw_syscall(SYS_sendto, f.rt, &m, m.h.nlmsg_len, 0, &to, sizeof to);
  if (sent < 0) return static_cast<int>(sent);
  const long k = raw_syscall(SYS_recvfrom, f.rt, answer, sizeof answer, MSG_DONTWAIT, nullptr, nullptr);
  if (k < static_cast<long>(sizeof(nlmsghdr) + sizeof(int32_t))) return k < 0 ? static_cast<int>(k) : -EBADMSG;
  nlmsghdr h;
  int32_t e;
  std::memcpy(&h, answer, sizeof h);
  std::memcpy(&e, answer + sizeof h, sizeof e);
  return h.nlmsg_type == NLMSG_ERROR ? e : -EBADMSG;
}

int control_confirm(neigh_fds& f, const inet_addr& saddr, const inet_addr& daddr, uint32_t ifindex) {
  const bool v4 = daddr.is_v4();
  const int fd = v4 ? f.udp4 : f.udp6;
  if (fd < 0) return -EAFNOSUPPORT;
  union {
    char buf[CMSG_SPACE(sizeof(in6_pktinfo))];
    cmsghdr align;
  } c{};
  sockaddr_in6 to6{};
  sockaddr_in to4{};
  msghdr m{};
  m.msg_control = c.buf;
  cmsghdr* h = &c.align;
  if (v4) {
    to4.sin_family = AF_INET;
    to4.sin_port = __builtin_bswap16(9);
    std::memcpy(&to4.sin_addr, daddr.b + 12, 4);
    m.msg_name = &to4;
    m.msg_namelen = sizeof to4;
    in_pktinfo p{};
    p.ipi_ifindex = static_cast<int>(ifindex);
    std::memcpy(&p.ipi_spec_dst, saddr.b + 12, 4);
    h->cmsg_level = IPPROTO_IP;
    h->cmsg_type = IP_PKTINFO;
    h->cmsg_len = CMSG_LEN(sizeof p);
    std::memcpy(CMSG_DATA(h), &p, sizeof p);
    m.msg_controllen = CMSG_SPACE(sizeof p);
  } else {
    to6.sin6_family = AF_INET6;
    to6.sin6_port = __builtin_bswap16(9);
    std::memcpy(&to6.sin6_addr, daddr.b, 16);
    m.msg_name = &to6;
    m.msg_namelen = sizeof to6;
    in6_pktinfo p{};
    p.ipi6_ifindex = ifindex;
    std::memcpy(&p.ipi6_addr, saddr.b, 16);
    h->cmsg_level = IPPROTO_IPV6;
    h->cmsg_type = IPV6_PKTINFO;
    h->cmsg_len = CMSG_LEN(sizeof p);
    std::memcpy(CMSG_DATA(h), &p, sizeof p);
    m.msg_controllen = CMSG_SPACE(sizeof p);
  }
  const long k = raw_syscall(SYS_sendmsg, fd, &m, MSG_CONFIRM | msg_probe | MSG_DONTWAIT | MSG_NOSIGNAL);
  return k < 0 ? static_cast<int>(k) : 0;
}

int control_pmtu(const inet_addr& saddr, const inet_addr& daddr, uint32_t oif) {
  const bool v4 = daddr.is_v4();
  const long fd = raw_syscall(SYS_socket, v4 ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return static_cast<int>(fd);
  union {
    sockaddr any;
    sockaddr_in v4;
    sockaddr_in6 v6;
  } a[2]{};
  const inet_addr* from[2] = {&saddr, &daddr};
  for (int i = 0; i < 2; ++i) {
    if (v4) {
      a[i].v4.sin_family = AF_INET;
      std::memcpy(&a[i].v4.sin_addr, from[i]->b + 12, 4);
      a[i].v4.sin_port = i ? __builtin_bswap16(9) : 0;
    } else {
      a[i].v6.sin6_family = AF_INET6;
      std::memcpy(&a[i].v6.sin6_addr, from[i]->b, 16);
      a[i].v6.sin6_port = i ? __builtin_bswap16(9) : 0;
    }
  }
  const socklen_t len = v4 ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  int mtu = 0;
  socklen_t mtu_len = sizeof mtu;
  const int index = static_cast<int>(oif);
  long e = oif ? raw_syscall(SYS_setsockopt, fd, SOL_SOCKET, SO_BINDTOIFINDEX, &index, sizeof index) : 0;
  if (e >= 0) e = raw_syscall(SYS_bind, fd, &a[0], len);
  if (e >= 0) e = raw_syscall(SYS_connect, fd, &a[1], len);
  if (e >= 0) e = raw_syscall(SYS_getsockopt, fd, v4 ? IPPROTO_IP : IPPROTO_IPV6, v4 ? IP_MTU : IPV6_MTU, &mtu, &mtu_len);
  raw_syscall(SYS_close, fd);
  return e < 0 ? static_cast<int>(e) : mtu;
}

}  // namespace icepath
