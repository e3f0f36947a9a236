// See route.hpp. The rows are sorted so that one prefix length after the other is a binary search; the answer is valid when no table has changed
// meanwhile.
#include "control/route.hpp"

#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>

#include "control/neigh.hpp"

namespace icepath {
namespace {

constexpr int most_tries = 16;

struct view {
  const control_tables& t;
  uint32_t links, addrs, routes, rules, neighs;
  explicit view(const control_tables& tables)
      : t(tables), links(t.links.generation()), addrs(t.addrs.generation()), routes(t.routes.generation()), rules(t.rules.generation()),
        neighs(t.neighs.generation()) {}
  bool known() const { return t.links.known(links) && t.addrs.known(addrs) && t.routes.known(routes) && t.rules.known(rules); }
  bool valid() const {
    return t.links.valid(links) && t.addrs.valid(addrs) && t.routes.valid(routes) && t.rules.valid(rules) && t.neighs.valid(neighs);
  }
};

int order(const inet_addr& a, const inet_addr& b) { return std::memcmp(a.b, b.b, 16); }

inet_addr masked(inet_addr a, uint8_t family, unsigned plen) {
  if (family == family_v4) plen += 96;
  for (unsigned i = 0; i < 16; ++i) {
    const unsigned keep = plen >= (i + 1) * 8 ? 8 : plen > i * 8 ? plen - i * 8 : 0;
    a.b[i] &= static_cast<uint8_t>(0xff00 >> keep);
  }
  return a;
}

// The first row that is not before (family, table, plen, dst).
uint32_t lower_bound(const view& v, uint8_t family, uint32_t table, unsigned plen, const inet_addr& dst) {
  uint32_t lo = 0, hi = v.t.routes.count(v.routes);
  while (lo < hi) {
    const uint32_t mid = lo + (hi - lo) / 2;
    const route_row r = v.t.routes.at(v.routes, mid);
    const bool less = r.family != family ? r.family < family
                      : r.table != table ? r.table < table
                      : r.plen != plen   ? r.plen > plen
                                         : order(r.dst, dst) < 0;
    if (less) lo = mid + 1;
    else hi = mid;
  }
  return lo;
}

struct found {
  bool any;
  const char* unknown;   // the kernel would choose by what we do not see
  route_row row;
};

bool applies(const route_row& r, const route_query& q) {
  if (r.family == family_v4 && r.tos && ((r.tos ^ q.tos) & 0xfc)) return false;
  if (r.bits & route_dead) return false;
  const bool has_nexthop = r.type == RTN_UNICAST || r.type == RTN_LOCAL;
  return !(q.oif && has_nexthop && !(r.bits & route_complex) && r.ifindex != q.oif);
}

// One table. Starting from prefix length `from`: to find what comes after a match.
found lookup(const view& v, const route_query& q, uint8_t family, uint32_t table, int from) {
  const uint32_t total = v.t.routes.count(v.routes);
  for (int plen = from; plen >= 0;) {
    const inet_addr dst = masked(q.daddr, family, static_cast<unsigned>(plen));
    uint32_t i = lower_bound(v, family, table, static_cast<unsigned>(plen), dst);
    found f{};
    route_row r{};
    for (; i < total; ++i) {
      r = v.t.routes.at(v.routes, i);
      if (r.family != family || r.table != table || r.plen != plen || !(r.dst == dst)) break;
      if (!applies(r, q)) continue;
      if (!f.any) {
        f.any = true;
        f.row = r;
        continue;
      }
      // IPv4 takes the first of equals, but of default routes the one whose gateway answers; IPv6 chooses by the state of neighbours.
      const bool equal = r.tos == f.row.tos && r.metric == f.row.metric;
      if (family == family_v4 && plen == 0 && (r.metric <= f.row.metric || r.tos != f.row.tos)) f.unknown = "several default routes";
      if (family == family_v6 && equal) f.unknown = "several routes of equal metric";
    }
    if (f.any) return f;
    if (i >= total || r.family != family || r.table != table) return {};
    plen = r.plen < plen ? r.plen : plen - 1;   // a row of a shorter prefix: nothing in between
  }
  return {};
}

bool rules_plain(const view& v, uint8_t family) {
  struct { uint32_t priority, table; } want[3] = {{0, RT_TABLE_LOCAL}, {32766, RT_TABLE_MAIN}, {32767, RT_TABLE_DEFAULT}};
  const uint32_t need = family == family_v4 ? 3 : 2;
  uint32_t k = 0;
  for (uint32_t i = 0; i < v.t.rules.count(v.rules); ++i) {
    const rule_row r = v.t.rules.at(v.rules, i);
    if (r.family != family) continue;
    if (k == need || !r.plain || r.action != FR_ACT_TO_TBL || r.priority != want[k].priority || r.table != want[k].table) return false;
    ++k;
  }
  return k == need;
}

bool is_zero(const inet_addr& a) { return order(a, inet_addr{}) == 0 || (a.is_v4() && a.to_v4() == 0); }

bool own_address(const view& v, const route_query& q, uint8_t family) {
  for (uint32_t i = 0; i < v.t.addrs.count(v.addrs); ++i)
    if (v.t.addrs.at(v.addrs, i).local == q.saddr) return true;
  route_query back{};
  back.daddr = q.saddr;
  const found f = lookup(v, back, family, RT_TABLE_LOCAL, family == family_v4 ? 32 : 128);
  return f.any && f.row.type == RTN_LOCAL;
}

// The source of an IPv4 packet by this route: the first primary address of the interface, of the gateway's net if there is one.
inet_addr pick_source(const view& v, const route_row& r) {
  if (!is_zero(r.src)) return r.src;
  inet_addr first{};
  if (r.family != family_v4) return first;
  for (uint32_t i = 0; i < v.t.addrs.count(v.addrs); ++i) {
    const addr_row a = v.t.addrs.at(v.addrs, i);
    if (a.family != family_v4 || a.ifindex != r.ifindex || (a.flags & IFA_F_SECONDARY) || a.scope > r.scope) continue;
    if (!(r.bits & route_has_gw) || !r.gw.is_v4()) return a.local;
    if (masked(r.gw, family_v4, a.plen) == masked(a.peer, family_v4, a.plen)) return a.local;
    if (is_zero(first)) first = a.local;
  }
  return first;
}

route_answer unknown(const char* why) {
  route_answer a{};
  a.verdict = route_verdict::unknown;
  a.reason = why;
  return a;
}
route_answer refused(int err) {
  route_answer a{};
  a.verdict = route_verdict::error;
  a.err = err;
  return a;
}

bool find_link(const view& v, uint32_t ifindex, link_row& out) {
  for (uint32_t i = 0; i < v.t.links.count(v.links); ++i)
    if ((out = v.t.links.at(v.links, i)).ifindex == ifindex) return true;
  return false;
}

// IPv6 prefers, among all that match, what goes by a next hop that answers; with nothing else to choose there is no choice.
bool v6_has_choice(const view& v, const route_query& q, const route_row& r) {
  if (!(r.bits & route_has_gw)) return false;
  const neigh_answer n = control_neigh(v.t, r.ifindex, r.gw);
  if (n.verdict == neigh_verdict::usable || n.verdict == neigh_verdict::stale) return false;
  const inet_addr dst = masked(q.daddr, family_v6, r.plen);
  const uint32_t i = lower_bound(v, family_v6, r.table, r.plen, dst), total = v.t.routes.count(v.routes);
  for (uint32_t k = i; k < total; ++k) {
    const route_row o = v.t.routes.at(v.routes, k);
    if (o.family != family_v6 || o.table != r.table || o.plen != r.plen || !(o.dst == dst)) break;
    if (applies(o, q) && o.metric != r.metric) return true;
  }
  return r.plen && lookup(v, q, family_v6, r.table, r.plen - 1).any;
}

route_answer answer_of(const view& v, const route_query& q, const found& f) {
  const route_row& r = f.row;
  if (f.unknown) return unknown(f.unknown);
  if (r.bits & route_src_prefix) return unknown("a route by source prefix");
  switch (r.type) {
    case RTN_UNREACHABLE: return refused(r.family == family_v6 && r.metric == ~0u ? ENETUNREACH : EHOSTUNREACH);
    case RTN_PROHIBIT: return refused(EACCES);
    case RTN_BLACKHOLE: return refused(EINVAL);
    case RTN_UNICAST: case RTN_LOCAL: break;
    default: return unknown("a route of a type that carries no connection");
  }
  if (r.bits & route_complex) return unknown("a multipath or nexthop route, or one with an encapsulation");
  if (r.bits & route_linkdown) return unknown("the route's link is down");
  if (r.type == RTN_UNICAST && r.family == family_v6 && v6_has_choice(v, q, r)) return unknown("the next hop is not known to work");
  route_answer a{};
  a.verdict = route_verdict::ok;
  a.local = r.type == RTN_LOCAL;
  a.table = r.table;
  a.ifindex = a.local ? 1 : r.ifindex;   // the loopback device has number 1 in every namespace
  a.has_gw = !a.local && (r.bits & route_has_gw);
  a.next_hop = a.has_gw ? r.gw : q.daddr;
  link_row l;
  if (!find_link(v, a.ifindex, l)) return unknown("the route's link is not there");
  const uint32_t link_mtu = r.family == family_v6 ? l.mtu6 : l.mtu;
  a.mtu = r.mtu && (r.mtu < link_mtu || a.local) ? r.mtu : link_mtu;
  a.src = is_zero(q.saddr) ? (a.local && is_zero(r.src) ? q.daddr : pick_source(v, r)) : q.saddr;
  return a;
}

route_answer route_v4(const view& v, const route_query& q) {
  const found local = lookup(v, q, family_v4, RT_TABLE_LOCAL, 32), main = lookup(v, q, family_v4, RT_TABLE_MAIN, 32);
  if (local.any && main.any && main.row.plen >= local.row.plen) return unknown("local and main contradict each other");
  if (local.any) return answer_of(v, q, local);
  const uint32_t at = lower_bound(v, family_v4, RT_TABLE_DEFAULT, 32, inet_addr{});
  const route_row r = at < v.t.routes.count(v.routes) ? v.t.routes.at(v.routes, at) : route_row{};
  const bool has_default_table = r.family == family_v4 && r.table == RT_TABLE_DEFAULT;
  if (main.any) {
    const route_answer a = answer_of(v, q, main);
    if (a.verdict == route_verdict::error && has_default_table) return unknown("main refuses and there is a table default");
    return a;
  }
  const found def = has_default_table ? lookup(v, q, family_v4, RT_TABLE_DEFAULT, 32) : found{};
  return def.any ? answer_of(v, q, def) : refused(ENETUNREACH);
}

route_answer route_v6(const view& v, const route_query& q) {
  const found local = lookup(v, q, family_v6, RT_TABLE_LOCAL, 128);
  if (local.any) return answer_of(v, q, local);
  const found main = lookup(v, q, family_v6, RT_TABLE_MAIN, 128);
  return main.any ? answer_of(v, q, main) : refused(ENETUNREACH);
}

route_answer route_once(const view& v, const route_query& q) {
  if (!v.known()) return unknown("the routing tables are not known");
  const bool v4 = q.daddr.is_v4();
  if (!is_zero(q.saddr) && q.saddr.is_v4() != v4) return unknown("addresses of two families");
  const uint8_t family = v4 ? family_v4 : family_v6;
  if (!rules_plain(v, family)) return unknown("ip rules");
  if (is_zero(q.daddr)) return unknown("no destination");
  if (v4 ? (q.daddr.to_v4() >> 28) >= 14 : q.daddr.b[0] == 0xff || (q.daddr.b[0] == 0xfe && (q.daddr.b[1] & 0xc0) == 0x80))
    return unknown("a multicast or link-local destination");
  if (v4 && !is_zero(q.saddr) && !own_address(v, q, family)) return unknown("the source is no address of this host");
  return v4 ? route_v4(v, q) : route_v6(v, q);
}

}  // namespace

route_answer control_route(const control_tables& t, const route_query& q) {
  for (int i = 0; i < most_tries; ++i) {
    const view v(t);
    const route_answer a = route_once(v, q);
    if (v.valid()) return a;
  }
  return unknown("the routing tables change all the time");
}

bool control_link(const control_tables& t, uint32_t ifindex, link_row& out) {
  for (int i = 0; i < most_tries; ++i) {
    const view v(t);
    const bool r = t.links.known(v.links) && find_link(v, ifindex, out);
    if (t.links.valid(v.links)) return r;
  }
  return false;
}

}  // namespace icepath
