// See dump.hpp. Sorting makes two dumps of the same table byte-equal, so that a publication without a change is seen as none.
#include "control/dump.hpp"

#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/ipv6.h>
#include <linux/lwtunnel.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>

namespace icepath {
namespace {

template <class H>
nlmsghdr* request(char* buf, uint16_t type, uint8_t family) {
  nlmsghdr* m = mnl_nlmsg_put_header(buf);
  m->nlmsg_type = type;
  m->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  auto* h = static_cast<H*>(mnl_nlmsg_put_extra_header(m, sizeof(H)));
  *reinterpret_cast<uint8_t*>(h) = family;   // the first member of each of these headers
  return m;
}

bool on_link(const nlmsghdr* m, void* p) {
  auto& s = *static_cast<dump_sink*>(p);
  const nlattr* tb[IFLA_AF_SPEC + 1];
  const nlattr* info[IFLA_INFO_KIND + 1];
  const nlattr* family[AF_INET6 + 1];
  const nlattr* inet6[IFLA_INET6_CONF + 1];
  if (m->nlmsg_type != RTM_NEWLINK) return true;
  if (!netlink_attrs(m, sizeof(ifinfomsg), tb, IFLA_AF_SPEC)) return s.err = -EBADMSG, false;
  const auto* h = static_cast<const ifinfomsg*>(mnl_nlmsg_get_payload(m));
  link_row r{};
  r.ifindex = static_cast<uint32_t>(h->ifi_index);
  r.flags = h->ifi_flags;
  r.type = h->ifi_type;
  r.mtu = attr_u32(tb[IFLA_MTU]);
  r.master = attr_u32(tb[IFLA_MASTER]);
  attr_name(tb[IFLA_IFNAME], r.name, sizeof r.name);
  if (tb[IFLA_ADDRESS] && mnl_attr_get_payload_len(tb[IFLA_ADDRESS]) == 6) std::memcpy(r.mac, mnl_attr_get_payload(tb[IFLA_ADDRESS]), 6);
  if (tb[IFLA_LINKINFO] && netlink_nested(tb[IFLA_LINKINFO], info, IFLA_INFO_KIND)) attr_name(info[IFLA_INFO_KIND], r.kind, sizeof r.kind);
  r.mtu6 = r.mtu;
  if (tb[IFLA_AF_SPEC] && netlink_nested(tb[IFLA_AF_SPEC], family, AF_INET6) && netlink_nested(family[AF_INET6], inet6, IFLA_INET6_CONF) &&
      inet6[IFLA_INET6_CONF] && mnl_attr_get_payload_len(inet6[IFLA_INET6_CONF]) >= (DEVCONF_MTU6 + 1) * 4)
    std::memcpy(&r.mtu6, static_cast<const char*>(mnl_attr_get_payload(inet6[IFLA_INET6_CONF])) + DEVCONF_MTU6 * 4, 4);
  return dump_add(s, r);
}

bool on_addr(const nlmsghdr* m, void* p) {
  auto& s = *static_cast<dump_sink*>(p);
  const nlattr* tb[IFA_FLAGS + 1];
  if (m->nlmsg_type != RTM_NEWADDR) return true;
  if (!netlink_attrs(m, sizeof(ifaddrmsg), tb, IFA_FLAGS)) return s.err = -EBADMSG, false;
  const auto* h = static_cast<const ifaddrmsg*>(mnl_nlmsg_get_payload(m));
  if (h->ifa_family != AF_INET && h->ifa_family != AF_INET6) return true;
  addr_row r{};
  r.family = h->ifa_family;
  r.plen = h->ifa_prefixlen;
  r.scope = h->ifa_scope;
  r.ifindex = h->ifa_index;
  r.flags = attr_u32(tb[IFA_FLAGS], h->ifa_flags);
  if (!attr_addr(tb[IFA_ADDRESS], r.peer)) return true;
  if (!attr_addr(tb[IFA_LOCAL], r.local)) r.local = r.peer;
  return dump_add(s, r);
}

bool on_route(const nlmsghdr* m, void* p) {
  auto& s = *static_cast<dump_sink*>(p);
  const nlattr* tb[RTA_NH_ID + 1];
  const nlattr* metrics[RTAX_MTU + 1];
  if (m->nlmsg_type != RTM_NEWROUTE) return true;
  if (!netlink_attrs(m, sizeof(rtmsg), tb, RTA_NH_ID)) return s.err = -EBADMSG, false;
  const auto* h = static_cast<const rtmsg*>(mnl_nlmsg_get_payload(m));
  if (h->rtm_family != s.family) return true;   // multicast routing, MPLS
  if (h->rtm_flags & RTM_F_CLONED) return true;
  route_row r{};
  r.family = h->rtm_family;
  r.plen = h->rtm_dst_len;
  if (r.plen > (r.family == AF_INET ? 32 : 128)) return s.err = -EBADMSG, false;
  r.tos = h->rtm_tos;
  r.type = h->rtm_type;
  r.scope = h->rtm_scope;
  r.protocol = h->rtm_protocol;
  r.table = attr_u32(tb[RTA_TABLE], h->rtm_table);
  r.metric = attr_u32(tb[RTA_PRIORITY]);
  r.ifindex = attr_u32(tb[RTA_OIF]);
  r.seq = static_cast<uint16_t>(s.n);
  if (r.family == AF_INET) r.dst = inet_addr::v4(0);
  if (tb[RTA_DST] && !attr_addr(tb[RTA_DST], r.dst)) return s.err = -EBADMSG, false;
  if (tb[RTA_PREFSRC]) attr_addr(tb[RTA_PREFSRC], r.src);
  if (tb[RTA_GATEWAY] && attr_addr(tb[RTA_GATEWAY], r.gw)) r.bits |= route_has_gw;
  if (tb[RTA_VIA]) {   // a gateway of the other family: 16 bits of it, then the address
    const auto len = mnl_attr_get_payload_len(tb[RTA_VIA]);
    const auto* v = static_cast<const uint8_t*>(mnl_attr_get_payload(tb[RTA_VIA]));
    if (len == 18) std::memcpy(r.gw.b, v + 2, 16), r.bits |= route_has_gw;
    else r.bits |= route_complex;
  }
  if (tb[RTA_MULTIPATH] || tb[RTA_NH_ID] || attr_u32(tb[RTA_NH_ID])) r.bits |= route_complex;
  if (tb[RTA_ENCAP_TYPE] || tb[RTA_ENCAP] || tb[RTA_NEWDST]) r.bits |= route_complex;
  if (tb[RTA_EXPIRES]) r.bits |= route_complex;   // may end without a word
  if (h->rtm_src_len) r.bits |= route_src_prefix;
  if (h->rtm_flags & RTNH_F_DEAD) r.bits |= route_dead;
  if (h->rtm_flags & RTNH_F_LINKDOWN) r.bits |= route_linkdown;
  if (tb[RTA_METRICS] && netlink_nested(tb[RTA_METRICS], metrics, RTAX_MTU)) {
    r.mtu = attr_u32(metrics[RTAX_MTU]);
    r.mtu_locked = (attr_u32(metrics[RTAX_LOCK]) >> RTAX_MTU) & 1;
  }
  return dump_add(s, r);
}

bool on_rule(const nlmsghdr* m, void* p) {
  auto& s = *static_cast<dump_sink*>(p);
  constexpr unsigned last = FRA_DPORT_RANGE + 40;
  const nlattr* tb[last + 1];
  if (m->nlmsg_type != RTM_NEWRULE) return true;
  if (!netlink_attrs(m, sizeof(fib_rule_hdr), tb, last)) return s.err = -EBADMSG, false;
  const auto* h = static_cast<const fib_rule_hdr*>(mnl_nlmsg_get_payload(m));
  if (h->family != AF_INET && h->family != AF_INET6) return true;
  rule_row r{};
  r.family = h->family;
  r.priority = attr_u32(tb[FRA_PRIORITY]);
  r.table = attr_u32(tb[FRA_TABLE], h->table);
  r.action = h->action;
  r.plain = !h->dst_len && !h->src_len && !h->tos && !(h->flags & ~FIB_RULE_PERMANENT);   // FIB_RULE_INVERT and the like
  for (unsigned i = 1; i <= last; ++i) {
    if (!tb[i] || i == FRA_TABLE || i == FRA_PRIORITY || i == FRA_PROTOCOL || i == FRA_PAD) continue;
    if (i == FRA_SUPPRESS_PREFIXLEN && attr_u32(tb[i]) == ~0u) continue;
    r.plain = 0;                                                  // a selector, known or not
  }
  return dump_add(s, r);
}

bool on_neigh(const nlmsghdr* m, void* p) {
  auto& s = *static_cast<dump_sink*>(p);
  const nlattr* tb[NDA_LLADDR + 1];
  if (m->nlmsg_type != RTM_NEWNEIGH) return true;
  if (!netlink_attrs(m, sizeof(ndmsg), tb, NDA_LLADDR)) return s.err = -EBADMSG, false;
  const auto* h = static_cast<const ndmsg*>(mnl_nlmsg_get_payload(m));
  if ((h->ndm_family != AF_INET && h->ndm_family != AF_INET6) || (h->ndm_flags & NTF_PROXY)) return true;
  neigh_row r{};
  if (!attr_addr(tb[NDA_DST], r.addr)) return true;
  r.ifindex = static_cast<uint32_t>(h->ndm_ifindex);
  r.state = h->ndm_state;
  r.flags = h->ndm_flags;
  if (tb[NDA_LLADDR] && mnl_attr_get_payload_len(tb[NDA_LLADDR]) == 6) {
    std::memcpy(r.mac, mnl_attr_get_payload(tb[NDA_LLADDR]), 6);
    r.has_mac = 1;
  }
  return dump_add(s, r);
}

int order(const inet_addr& a, const inet_addr& b) { return std::memcmp(a.b, b.b, 16); }

bool route_less(const route_row& a, const route_row& b) {
  if (a.family != b.family) return a.family < b.family;
  if (a.table != b.table) return a.table < b.table;
  if (a.plen != b.plen) return a.plen > b.plen;
  if (const int c = order(a.dst, b.dst)) return c < 0;
  if (a.tos != b.tos) return a.tos > b.tos;
  if (a.metric != b.metric) return a.metric < b.metric;
  return a.seq < b.seq;
}

template <class H>
int dump(netlink& n, uint16_t type, uint8_t family, bool (*each)(const nlmsghdr*, void*), dump_sink& s) {
  alignas(nlmsghdr) char buf[256];
  return dump_all(n, request<H>(buf, type, family), each, s);
}

}  // namespace

bool attr_addr(const nlattr* a, inet_addr& out) {
  if (!a) return false;
  const auto len = mnl_attr_get_payload_len(a);
  const void* v = mnl_attr_get_payload(a);
  if (len == 4) {
    out = inet_addr::v4(0);
    std::memcpy(out.b + 12, v, 4);
    return true;
  }
  if (len == 16) std::memcpy(out.b, v, 16);
  return len == 16;
}

int dump_all(netlink& n, nlmsghdr* m, bool (*each)(const nlmsghdr*, void*), dump_sink& s) {
  const uint32_t before = s.n;
  for (int tries = 0;; ++tries) {
    s.n = before;
    s.err = 0;
    const int e = netlink_talk(n, m, each, &s);
    if (e == -EINTR && tries < 8) continue;
    if (e < 0) return e;
    return s.err ? s.err : static_cast<int>(s.n);
  }
}

int dump_links(netlink& n, link_row* rows, uint32_t max) {
  dump_sink s{rows, 0, max, 0};
  const int k = dump<ifinfomsg>(n, RTM_GETLINK, AF_UNSPEC, on_link, s);
  if (k > 0) std::sort(rows, rows + k, [](const link_row& a, const link_row& b) { return a.ifindex < b.ifindex; });
  return k;
}

int dump_addrs(netlink& n, addr_row* rows, uint32_t max) {
  dump_sink s{rows, 0, max, 0};
  return dump<ifaddrmsg>(n, RTM_GETADDR, AF_UNSPEC, on_addr, s);   // the kernel's order decides which is primary
}

int dump_routes(netlink& n, route_row* rows, uint32_t max) {
  dump_sink s{rows, 0, max, 0};
  int k = 0;
  for (const uint8_t family : {family_v4, family_v6})
    if (s.family = family; (k = dump<rtmsg>(n, RTM_GETROUTE, family, on_route, s)) < 0) return k;
  if (k <= 0) return k;
  std::sort(rows, rows + k, route_less);
  for (int i = 0; i < k; ++i) rows[i].seq = 0;   // it has done its work; equal keys mean unknown anyway
  return k;
}

int dump_rules(netlink& n, rule_row* rows, uint32_t max) {
  dump_sink s{rows, 0, max, 0};
  const int k = dump<fib_rule_hdr>(n, RTM_GETRULE, AF_INET, on_rule, s);
  if (k < 0) return k;
  const int k6 = dump<fib_rule_hdr>(n, RTM_GETRULE, AF_INET6, on_rule, s);
  return k6 == -EAFNOSUPPORT ? k : k6;   // no IPv6: no plain rules of it, so every such route is unknown
}

int dump_neighs(netlink& n, neigh_row* rows, uint32_t max) {
  dump_sink s{rows, 0, max, 0};
  const int k = dump<ndmsg>(n, RTM_GETNEIGH, AF_UNSPEC, on_neigh, s);
  if (k > 0) std::sort(rows, rows + k, [](const neigh_row& a, const neigh_row& b) {
    return a.ifindex != b.ifindex ? a.ifindex < b.ifindex : order(a.addr, b.addr) < 0;
  });
  return k;
}

}  // namespace icepath
