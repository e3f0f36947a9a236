// See policy.hpp: the rows that are read from the tables, cheapest first.
#include "control/policy.hpp"

#include <linux/if.h>
#include <linux/xfrm.h>

#include "control/policy_nft.hpp"
#include "control/route.hpp"

namespace icepath {
namespace {

bool prefix_match(const inet_addr& a, const inet_addr& net, uint8_t plen, bool v4) {
  const uint8_t* x = a.b + (v4 ? 12 : 0);
  const uint8_t* y = net.b + (v4 ? 12 : 0);
  const unsigned most = v4 ? 32 : 128, n = plen < most ? plen : most;
  if (n / 8 && std::memcmp(x, y, n / 8) != 0) return false;
  const unsigned rest = n % 8;
  return !rest || !((x[n / 8] ^ y[n / 8]) >> (8 - rest));
}

bool selects(const xfrm_row& r, const four_tuple& t, bool v4) {
  const uint16_t sport = __builtin_bswap16(t.sport), dport = __builtin_bswap16(t.dport);
  if (r.family != (v4 ? family_v4 : family_v6) && r.family != 0) return false;
  if (r.family == 0 && (r.plen_s || r.plen_d)) return true;   // of no family, yet with addresses: not understood
  if (r.proto && r.proto != 6) return false;
  if (((r.sport ^ sport) & r.smask) || ((r.dport ^ dport) & r.dmask)) return false;
  return r.family == 0 || (prefix_match(t.saddr, r.saddr, r.plen_s, v4) && prefix_match(t.daddr, r.daddr, r.plen_d, v4));
}

const char* check_xfrm(const control_tables& t, uint32_t g, const policy_flow& f) {
  if (!t.xfrm.known(g)) return "XFRM: policies cannot be read";
  const bool v4 = f.tuple.daddr.is_v4();
  for (uint32_t i = 0; i < t.xfrm.count(g); ++i) {
    const xfrm_row r = t.xfrm.at(g, i);
    if (r.ifindex && r.ifindex != f.ifindex) continue;
    if (r.dir == XFRM_POLICY_OUT ? selects(r, f.tuple, v4) : selects(r, f.tuple.reversed(), v4)) return "XFRM: a policy may match";
  }
  return nullptr;
}

const char* check_tc(const control_tables& t, uint32_t g, uint32_t ifindex) {
  if (!t.tc.known(g)) return "tc: cannot be read";
  for (uint32_t i = 0; i < t.tc.count(g); ++i) {
    const tc_row r = t.tc.at(g, i);
    if (r.ifindex != ifindex) continue;
    if (r.why & tc_filter) return "tc: a filter on the interface";
    if (r.why & tc_block) return "tc: a shared block on the interface";
    if (r.why & tc_qdisc) return "tc: a qdisc that shapes or drops";
    if (r.why & tc_tcx) return "tcx: a program on the interface";
    if (r.why & tc_tcx_unknown) return "tcx: programs cannot be asked for";
  }
  return nullptr;
}

const char* check_host(const control_tables& t, uint32_t g, bool v4) {
  if (!t.host.known(g) || t.host.count(g) != 1) return "the host's authorities cannot be read";
  const uint32_t b = t.host.at(g, 0).bits;
  if (b & host_lsm) return "LSM: packets are labelled";
  if (b & host_lsm_unknown) return "LSM: cannot be read";
  if (b & host_tables_unknown) return "legacy iptables: cannot be read";
  if (b & (v4 ? host_ip_tables : host_ip6_tables)) return "legacy iptables: tables in this namespace";
  return nullptr;
}

const char* check_link(const link_row& l) {
  if (!(l.flags & IFF_UP)) return "the interface is down";
  if (l.flags & IFF_LOOPBACK) return "the loopback interface";
  if (l.master) return "the interface has a master (VRF, bridge, bond)";
  if (l.kind[0] && std::strncmp(l.kind, "veth", sizeof l.kind) != 0) return "a virtual interface of a kind that does more than send";
  return nullptr;
}

const char* check_route(const control_tables& t, const policy_flow& f) {
  route_query q{};
  q.saddr = f.tuple.saddr;
  q.daddr = f.tuple.daddr;
  q.mark = f.mark;
  q.oif = f.bound_ifindex;
  q.tos = f.tos;
  const route_answer a = control_route(t, q);
  if (a.verdict == route_verdict::unknown) return a.reason;
  if (a.verdict == route_verdict::error) return "no route to the peer";
  if (a.local) return "the peer is this host";
  if (a.ifindex != f.ifindex) return "the route leaves by another interface (rp_filter)";
  return nullptr;
}

const char* once(const control_tables& t, const policy_flow& f, uint32_t nft, uint32_t tc, uint32_t xfrm, uint32_t host) {
  if (const uint64_t ns = t.netns_cookie.load(std::memory_order_acquire); f.netns_cookie && f.netns_cookie != ns)
    return "the socket is of another network namespace";
  link_row l;
  if (!control_link(t, f.ifindex, l)) return "no such interface";
  if (const char* why = check_link(l)) return why;
  if (f.bound_ifindex && f.bound_ifindex != f.ifindex) return "SO_BINDTODEVICE: another interface";
  if (const char* why = check_route(t, f)) return why;
  if (const char* why = check_host(t, host, f.tuple.daddr.is_v4())) return why;
  if (const char* why = check_tc(t, tc, f.ifindex)) return why;
  if (const char* why = check_xfrm(t, xfrm, f)) return why;
  return nft_check(t, nft, f, l);
}

}  // namespace

const char* control_policy_tables(const control_tables& t, const policy_flow& f) {
  for (int i = 0; i < 16; ++i) {
    const uint32_t nft = t.nft.generation(), tc = t.tc.generation(), xfrm = t.xfrm.generation(), host = t.host.generation();
    const char* why = once(t, f, nft, tc, xfrm, host);
    if (t.nft.valid(nft) && t.tc.valid(tc) && t.xfrm.valid(xfrm) && t.host.valid(host)) return why;
  }
  return "the rules change all the time";
}

const char* control_policy_check(const control_tables& t, const policy_flow& f) {
  const char* why = control_policy_tables(t, f);
  if (!why) why = control_policy_cgroup(f.cgroup);
  return why ? why : control_policy_conntrack(f.tuple);
}

}  // namespace icepath
