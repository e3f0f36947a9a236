// See policy.hpp, rows tc and tcx. One row for each link that has something; links that are only loopback are left out by policy.cpp.
// A tcx program has no notification: the control thread looks each second, two bpf() calls for each link.
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>

#include <cerrno>

#include "base/raw_syscall.hpp"
#include "control/dump.hpp"
#include "control/policy.hpp"
#include "control/policy_watch.hpp"

namespace icepath {
namespace {

// Not in the oldest headers we build with.
constexpr uint32_t tcx_ingress = 46, tcx_egress = 47;

struct look {
  uint32_t ifindex, why;
  bool ingress, clsact;
  bool classful;       // of qdiscs that may hold filters at the root
};

struct qdiscs {
  look* l;
  uint32_t n;
};

bool is(const nlattr* a, const char* name) {
  const size_t n = std::strlen(name) + 1;
  return a && mnl_attr_get_payload_len(a) == n && std::memcmp(mnl_attr_get_payload(a), name, n) == 0;
}

bool on_qdisc(const nlmsghdr* m, void* p) {
  auto& q = *static_cast<qdiscs*>(p);
  constexpr unsigned last = 14;   // TCA_EGRESS_BLOCK
  const nlattr* tb[last + 1];
  if (m->nlmsg_type != RTM_NEWQDISC || !netlink_attrs(m, sizeof(tcmsg), tb, last)) return true;
  const auto* h = static_cast<const tcmsg*>(mnl_nlmsg_get_payload(m));
  for (uint32_t i = 0; i < q.n; ++i) {
    look& l = q.l[i];
    if (l.ifindex != static_cast<uint32_t>(h->tcm_ifindex)) continue;
    const nlattr* kind = tb[TCA_KIND];
    if (tb[13] || tb[14]) l.why |= tc_block;
    if (is(kind, "clsact") || is(kind, "ingress")) {
      l.ingress = true;
      l.clsact |= is(kind, "clsact");
      continue;
    }
    bool usual = false;
    for (const char* k : {"noqueue", "mq", "pfifo_fast", "pfifo", "bfifo", "fq", "fq_codel", "codel"}) usual |= is(kind, k);
    if (!usual) l.why |= tc_qdisc;
    if (is(kind, "fq_codel")) l.classful = true;   // the only one of these that takes filters
  }
  return true;
}

bool on_filter(const nlmsghdr* m, void* p) {
  if (m->nlmsg_type == RTM_NEWTFILTER) *static_cast<bool*>(p) = true;
  return true;
}

// Filters hang on a parent: they are asked for by it.
int has_filter(netlink& n, uint32_t ifindex, uint32_t parent, bool* yes) {
  alignas(nlmsghdr) char buf[256];
  nlmsghdr* m = mnl_nlmsg_put_header(buf);
  m->nlmsg_type = RTM_GETTFILTER;
  m->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  auto* h = static_cast<tcmsg*>(mnl_nlmsg_put_extra_header(m, sizeof(tcmsg)));
  h->tcm_family = 0;
  h->tcm_ifindex = static_cast<int>(ifindex);
  h->tcm_parent = parent;
  return netlink_talk(n, m, on_filter, yes);
}

uint32_t tcx(uint32_t ifindex) {
  for (const uint32_t type : {tcx_ingress, tcx_egress}) {
    bpf_attr a{};
    a.query.target_fd = ifindex;   // target_ifindex shares its place
    a.query.attach_type = type;
    const long r = raw_syscall(SYS_bpf, BPF_PROG_QUERY, &a, sizeof a);
    if (r == -EPERM || r == -EACCES) return tc_tcx_unknown;
    if (r == -EINVAL) return 0;    // a kernel that has no tcx
    if (r == -ENOENT) continue;    // nothing was ever attached there
    if (r < 0) return tc_tcx_unknown;
    if (a.query.prog_cnt) return tc_tcx;
  }
  return 0;
}

}  // namespace

int dump_tc(netlink& n, const control_tables& t, tc_row* rows, uint32_t max) {
  static_assert(decltype(control_tables::tc)::capacity == decltype(control_tables::links)::capacity);
  static look looks[decltype(control_tables::links)::capacity];   // one control thread
  const uint32_t g = t.links.generation();
  if (!t.links.known(g)) return -EAGAIN;
  qdiscs q{looks, 0};
  for (uint32_t i = 0; i < t.links.count(g); ++i) looks[q.n++] = look{t.links.at(g, i).ifindex, 0, false, false, false};
  alignas(nlmsghdr) char buf[256];
  nlmsghdr* m = mnl_nlmsg_put_header(buf);
  m->nlmsg_type = RTM_GETQDISC;
  m->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  mnl_nlmsg_put_extra_header(m, sizeof(tcmsg));
  int e;
  int tries = 0;
  while ((e = netlink_talk(n, m, on_qdisc, &q)) == -EINTR && ++tries < 8) {}
  if (e < 0) return e;
  uint32_t k = 0;
  for (uint32_t i = 0; i < q.n; ++i) {
    look& l = looks[i];
    bool yes = false;
    e = 0;
    if (l.ingress) e = has_filter(n, l.ifindex, TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS), &yes);
    if (e == 0 && l.clsact) e = has_filter(n, l.ifindex, TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS), &yes);
    if (e == 0 && l.classful) e = has_filter(n, l.ifindex, TC_H_ROOT, &yes);
    if (yes || e == -EINTR) l.why |= tc_filter;   // interrupted: somebody is changing them
    else if (e < 0 && e != -ENODEV) return e;
    l.why |= tcx(l.ifindex);
    if (!l.why) continue;
    if (k == max) return -EOVERFLOW;
    rows[k++] = tc_row{l.ifindex, l.why};
  }
  return static_cast<int>(k);
}

}  // namespace icepath
