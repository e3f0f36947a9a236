// See mirror.hpp.
#include "control/mirror.hpp"

#include <linux/netfilter/nfnetlink.h>
#include <linux/rtnetlink.h>
#include <linux/xfrm.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <iterator>

#include "base/alloc.hpp"
#include "base/clock.hpp"
#include "base/fd.hpp"
#include "base/raw_syscall.hpp"
#include "control/dump.hpp"
#include "control/policy_watch.hpp"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

namespace icepath {
namespace {

enum kind : uint32_t { k_links, k_addrs, k_routes, k_rules, k_neighs, k_nft, k_tc, k_xfrm, k_host, kinds };
constexpr uint32_t bit(uint32_t k) { return 1u << k; }
constexpr uint32_t all_kinds = bit(kinds) - 1, rt_kinds = bit(k_nft) - 1;
constexpr nsec look_every = sec_ns;   // what has no notification: legacy tables, tcx, the LSMs (policy.hpp says what a look costs)

template <class T>
constexpr size_t bytes = sizeof(T);
constexpr size_t scratch_bytes = std::max({
    bytes<link_row> * decltype(control_tables::links)::capacity, bytes<addr_row> * decltype(control_tables::addrs)::capacity,
    bytes<route_row> * decltype(control_tables::routes)::capacity, bytes<rule_row> * decltype(control_tables::rules)::capacity,
    bytes<neigh_row> * decltype(control_tables::neighs)::capacity, bytes<nft_row> * decltype(control_tables::nft)::capacity,
    bytes<tc_row> * decltype(control_tables::tc)::capacity, bytes<xfrm_row> * decltype(control_tables::xfrm)::capacity});

void* map(size_t n) {
  const long p = raw_syscall(SYS_mmap, nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p < 0 && p > -4096 ? nullptr : reinterpret_cast<void*>(p);
}

}  // namespace

struct control {
  control_tables* tables;
  void* scratch;
  netlink events, ask;        // of rtnetlink
  netlink nf_events, nf_ask, xfrm_events, xfrm_ask;
  bool nf_watched, xfrm_watched;
  int ep;
  uint32_t old;               // kinds to be read again
  nsec not_before[kinds];     // a table that changes all the time is read at most a tenth of the time
  nsec look_at;
};

namespace {

template <class T, uint32_t N>
bool take(mirror_table<T, N>& table, const T* rows, int n) {
  return table.publish(rows, n < 0 ? 0 : static_cast<uint32_t>(n), n >= 0);
}

template <class T, uint32_t N, class F>
bool read_table(control* c, mirror_table<T, N>& table, F f) {
  auto* rows = static_cast<T*>(c->scratch);
  return take(table, rows, f(rows, N));
}

bool refresh(control* c, uint32_t k) {
  control_tables& t = *c->tables;
  switch (k) {
    case k_links: return read_table(c, t.links, [&](link_row* r, uint32_t n) { return dump_links(c->ask, r, n); });
    case k_addrs: return read_table(c, t.addrs, [&](addr_row* r, uint32_t n) { return dump_addrs(c->ask, r, n); });
    case k_routes: return read_table(c, t.routes, [&](route_row* r, uint32_t n) { return dump_routes(c->ask, r, n); });
    case k_rules: return read_table(c, t.rules, [&](rule_row* r, uint32_t n) { return dump_rules(c->ask, r, n); });
    case k_neighs: return read_table(c, t.neighs, [&](neigh_row* r, uint32_t n) { return dump_neighs(c->ask, r, n); });
    case k_nft:
      return read_table(c, t.nft, [&](nft_row* r, uint32_t n) { return c->nf_watched ? dump_nft(c->nf_ask, r, n) : dump_nft_unwatched(c->nf_ask); });
    case k_tc: return read_table(c, t.tc, [&](tc_row* r, uint32_t n) { return dump_tc(c->ask, t, r, n); });
    case k_xfrm:
      return read_table(c, t.xfrm, [&](xfrm_row* r, uint32_t n) { return c->xfrm_ask.fd < 0 ? dump_xfrm_none()
                                                                      : c->xfrm_watched ? dump_xfrm(c->xfrm_ask, r, n) : -EPERM; });
    default: return read_table(c, t.host, [&](host_row* r, uint32_t) { return dump_host(r); });
  }
}

void on_rt_event(const nlmsghdr* m, void* p) {
  auto* c = static_cast<control*>(p);
  switch (m->nlmsg_type) {
    // Routes go, come and die with links and addresses, and IPv4 does not announce it.
    case RTM_NEWLINK: case RTM_DELLINK: c->old |= bit(k_links) | bit(k_routes) | bit(k_neighs) | bit(k_tc); break;
    case RTM_NEWADDR: case RTM_DELADDR: c->old |= bit(k_addrs) | bit(k_routes); break;
    case RTM_NEWROUTE: case RTM_DELROUTE: case RTM_NEWNEXTHOP: case RTM_DELNEXTHOP: c->old |= bit(k_routes); break;
    case RTM_NEWRULE: case RTM_DELRULE: c->old |= bit(k_rules); break;
    case RTM_NEWNEIGH: case RTM_DELNEIGH: c->old |= bit(k_neighs); break;
    case RTM_NEWQDISC: case RTM_DELQDISC: case RTM_NEWTFILTER: case RTM_DELTFILTER: case RTM_NEWCHAIN: case RTM_DELCHAIN:
      c->old |= bit(k_tc);
      break;
    default: break;
  }
}
void on_nf_event(const nlmsghdr*, void* p) { static_cast<control*>(p)->old |= bit(k_nft); }
void on_xfrm_event(const nlmsghdr*, void* p) { static_cast<control*>(p)->old |= bit(k_xfrm); }

// Bounded: what comes after 1024 datagrams is read at the next step. On loss everything that the socket tells of is old.
void drain(control* c, netlink& n, void (*each)(const nlmsghdr*, void*), uint32_t when_lost) {
  if (n.fd < 0) return;
  for (int i = 0; i < 1024; ++i) {
    const int k = netlink_events(n, each, c);
    if (k == 0) return;
    if (k < 0) c->old |= when_lost;
    if (k < 0 && k != -ENOBUFS && k != -EMSGSIZE) return;
  }
}

bool watch(control* c, int fd) {
  epoll_event e{};
  e.events = EPOLLIN;
  return raw_syscall(SYS_epoll_ctl, c->ep, EPOLL_CTL_ADD, fd, &e) == 0;
}

int open_sockets(control* c) {
  if (const int e = netlink_open(c->events, NETLINK_ROUTE, true); e < 0) return e;
  if (const int e = netlink_open(c->ask, NETLINK_ROUTE, false); e < 0) return e;
  for (const unsigned g : {RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_TC, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_IFADDR,
                           RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE, RTNLGRP_IPV6_IFINFO, RTNLGRP_NEXTHOP})
    if (const int e = netlink_join(c->events, g); e < 0 && g != RTNLGRP_NEXTHOP) return e;
  const long ep = raw_syscall(SYS_epoll_create1, EPOLL_CLOEXEC);
  if (ep < 0) return static_cast<int>(ep);
  c->ep = fd_move_high(static_cast<int>(ep));
  if (!watch(c, c->events.fd)) return -ENOMEM;
  // The policy's sockets need CAP_NET_ADMIN: without it their tables are unknown. Who cannot be told of changes must not use what he reads once.
  if (netlink_open(c->nf_ask, NETLINK_NETFILTER, false) == 0 && netlink_open(c->nf_events, NETLINK_NETFILTER, true) == 0)
    c->nf_watched = netlink_join(c->nf_events, NFNLGRP_NFTABLES) == 0 && watch(c, c->nf_events.fd);
  if (netlink_open(c->xfrm_ask, NETLINK_XFRM, false) == 0 && netlink_open(c->xfrm_events, NETLINK_XFRM, true) == 0)
    c->xfrm_watched = netlink_join(c->xfrm_events, XFRMNLGRP_POLICY) == 0 && watch(c, c->xfrm_events.fd);
  return 0;
}

void close_fds(control* c) {
  for (netlink* n : {&c->events, &c->ask, &c->nf_events, &c->nf_ask, &c->xfrm_events, &c->xfrm_ask}) netlink_close(*n);
  if (c->ep >= 0) raw_syscall(SYS_close, c->ep);
  c->ep = -1;
}

}  // namespace

control* control_open(int* err) {
  auto* c = static_cast<control*>(mem_zalloc(sizeof(control)));
  if (!c) return *err = ENOMEM, nullptr;
  for (netlink* n : {&c->events, &c->ask, &c->nf_events, &c->nf_ask, &c->xfrm_events, &c->xfrm_ask}) n->fd = -1;
  c->ep = -1;
  c->tables = static_cast<control_tables*>(map(sizeof(control_tables)));   // zeroed: every generation is 0, nothing known
  c->scratch = map(scratch_bytes);
  int e = c->tables && c->scratch ? open_sockets(c) : -ENOMEM;
  if (e < 0) {
    control_close(c);
    return *err = -e, nullptr;
  }
  uint64_t cookie = 0;
  socklen_t len = sizeof cookie;
  if (raw_syscall(SYS_getsockopt, c->ask.fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &len) < 0) cookie = 0;
  c->tables->netns_cookie.store(cookie, std::memory_order_release);
  c->old = all_kinds;
  nsec next;
  control_step(c, clock_now(), &next);
  return c;
}

void control_close(control* c) {
  if (!c) return;
  close_fds(c);
  if (c->tables) raw_syscall(SYS_munmap, c->tables, sizeof(control_tables));
  if (c->scratch) raw_syscall(SYS_munmap, c->scratch, scratch_bytes);
  mem_free(c);
}

void control_forget(control* c) { close_fds(c); }
const control_tables& control_view(const control* c) { return *c->tables; }
int control_fd(const control* c) { return c->ep; }
int control_fds(const control* c, int* to, int room) {
  int n = 0;
  for (const int fd : {c->ep, c->events.fd, c->ask.fd, c->nf_events.fd, c->nf_ask.fd, c->xfrm_events.fd, c->xfrm_ask.fd})
    if (fd >= 0 && n < room) to[n++] = fd;
  return n;
}

control_changes control_step(control* c, nsec now, nsec* next) {
  drain(c, c->events, on_rt_event, rt_kinds | bit(k_tc));
  drain(c, c->nf_events, on_nf_event, bit(k_nft));
  drain(c, c->xfrm_events, on_xfrm_event, bit(k_xfrm));
  if (now >= c->look_at) {
    c->old |= bit(k_host) | bit(k_tc) | (c->nf_watched ? 0 : bit(k_nft));
    c->look_at = now + look_every;
  }
  *next = c->look_at;
  uint32_t changed = 0;
  for (uint32_t k = 0; k < kinds; ++k) {
    if (!(c->old & bit(k))) continue;
    if (now < c->not_before[k]) {
      *next = std::min(*next, c->not_before[k]);
      continue;
    }
    c->old &= ~bit(k);
    const nsec begin = clock_now();
    if (refresh(c, k)) changed |= bit(k);
    const nsec end = clock_now();
    c->not_before[k] = end - begin < 200 * usec_ns ? 0 : end + 9 * (end - begin);
  }
  control_changes r{};
  r.links = changed & bit(k_links);
  r.addrs = changed & bit(k_addrs);
  r.routes = changed & bit(k_routes);
  r.rules = changed & bit(k_rules);
  r.neighs = changed & bit(k_neighs);
  r.policy = changed & (bit(k_nft) | bit(k_tc) | bit(k_xfrm) | bit(k_host) | bit(k_links) | bit(k_rules) | bit(k_routes) | bit(k_addrs));
  if (r.policy) c->tables->policy_generation.fetch_add(1, std::memory_order_release);
  return r;
}

}  // namespace icepath
