// See policy_nft.hpp: the compiler of the kernel's dump. An expression that is not known here becomes nft_opaque; a value that is not known,
// nft_maybe.
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nf_tables_compat.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/xt_tcpudp.h>

#include <cerrno>

#include "base/alloc.hpp"
#include "control/dump.hpp"
#include "control/policy_nft.hpp"
#include "control/policy_watch.hpp"

namespace icepath {
namespace {

constexpr uint32_t most_chains = 4096, no_row = ~0u;

struct chain_info {
  uint64_t key;       // of family, table and name
  uint32_t row;       // of its nft_chain, no_row before its first rule
  uint32_t hook;
  uint8_t family, base, policy;
  char dev[16];
};

struct build {
  dump_sink out;      // nft_row
  chain_info* chains;
  uint32_t n_chains;
  uint32_t in;        // the chain that rules are being added to, no_row before the first
  uint32_t open_rule;
};

uint64_t hash_name(uint64_t h, const nlattr* a) {
  if (!a) return h;
  const auto* p = static_cast<const uint8_t*>(mnl_attr_get_payload(a));
  for (unsigned i = 0; i < mnl_attr_get_payload_len(a) && p[i]; ++i) h = (h ^ p[i]) * 0x100000001b3ull;
  return hash_mix(h ^ 0x9e3779b97f4a7c15ull);
}
uint64_t key_of(uint8_t family, const nlattr* table, const nlattr* name) { return hash_name(hash_name(hash_mix(family + 1), table), name); }

bool is(const nlattr* a, const char* name) {
  const size_t n = std::strlen(name) + 1;
  return a && mnl_attr_get_payload_len(a) == n && std::memcmp(mnl_attr_get_payload(a), name, n) == 0;
}

struct rule_state {
  struct reg {
    bool known;
    uint8_t base, start, len;
    uint32_t offset;
    uint8_t mask[16];
  } regs[16];   // by 4-byte register: what was loaded beginning there
};

// Registers come as four of 16 bytes (1..4) or as sixteen of 4 bytes (8..23), over the same memory. -1: none of them.
int reg_index(uint32_t r) { return r >= 1 && r <= 4 ? static_cast<int>(r - 1) * 4 : r >= 8 && r < 24 ? static_cast<int>(r - 8) : -1; }

void forget(rule_state& s, int at, uint32_t len) {
  const int words = static_cast<int>((len + 3) / 4);
  for (int i = 0; i < 16; ++i) {
    auto& r = s.regs[i];
    const int end = i + (r.len + 3) / 4;
    if (r.known && i < at + words && end > at) r.known = false;
  }
}
void forget_all(rule_state& s) { s = rule_state{}; }

bool add(build& b, uint8_t op, uint32_t offset = 0) {
  nft_row r{};
  r.op = op;
  r.offset = offset;
  return dump_add(b.out, r);
}

bool set_load(rule_state& s, uint32_t dreg, uint8_t base, uint32_t offset, uint32_t len) {
  const int at = reg_index(dreg);
  if (at < 0) return false;
  forget(s, at, len);
  if (len == 0 || len > 16 || at + static_cast<int>((len + 3) / 4) > 16) return forget_all(s), true;
  auto& r = s.regs[at];
  r.known = true;
  r.base = base;
  r.offset = offset;
  r.len = static_cast<uint8_t>(len);
  std::memset(r.mask, 0xff, sizeof r.mask);
  return true;
}

const nlattr* data_value(const nlattr* a) {
  const nlattr* tb[NFTA_DATA_MAX + 1];
  return a && netlink_nested(a, tb, NFTA_DATA_MAX) ? tb[NFTA_DATA_VALUE] : nullptr;
}

// Compares what is in the register with a constant, or the range of two.
bool add_test(build& b, const rule_state& s, uint32_t sreg, uint8_t cmp, const nlattr* lo, const nlattr* hi) {
  const int at = reg_index(sreg);
  if (at < 0 || !lo) return add(b, nft_maybe);
  const auto& g = s.regs[at];
  const uint32_t len = mnl_attr_get_payload_len(lo);
  if (!g.known || len == 0 || len > g.len || (hi && mnl_attr_get_payload_len(hi) != len)) return add(b, nft_maybe);
  nft_row r{};
  r.op = nft_test;
  r.base = g.base;
  r.offset = g.offset;
  r.cmp = cmp;
  r.len = static_cast<uint8_t>(len);
  std::memcpy(r.mask, g.mask, 16);
  std::memcpy(r.lo, mnl_attr_get_payload(lo), len);
  if (hi) std::memcpy(r.hi, mnl_attr_get_payload(hi), len);
  return dump_add(b.out, r);
}

bool on_immediate(build& b, rule_state& s, const nlattr* data, uint8_t family, const nlattr* table) {
  const nlattr *tb[NFTA_IMMEDIATE_MAX + 1], *d[NFTA_DATA_MAX + 1], *v[NFTA_VERDICT_MAX + 1];
  if (!netlink_nested(data, tb, NFTA_IMMEDIATE_MAX) || !netlink_nested(tb[NFTA_IMMEDIATE_DATA], d, NFTA_DATA_MAX)) return add(b, nft_opaque);
  if (attr_be32(tb[NFTA_IMMEDIATE_DREG]) != NFT_REG_VERDICT) return forget_all(s), true;
  if (!netlink_nested(d[NFTA_DATA_VERDICT], v, NFTA_VERDICT_MAX)) return add(b, nft_opaque);
  const int code = static_cast<int>(attr_be32(v[NFTA_VERDICT_CODE]));
  switch (code) {
    case NF_ACCEPT: return add(b, nft_accept);
    case NF_DROP: return add(b, nft_drop);
    case NFT_RETURN: return add(b, nft_return);
    case NFT_CONTINUE: return true;
    case NFT_JUMP: case NFT_GOTO: {
      const uint64_t key = key_of(family, table, v[NFTA_VERDICT_CHAIN]);
      for (uint32_t i = 0; i < b.n_chains; ++i)   // the number of the chain for now, its row at the end
        if (b.chains[i].key == key) return add(b, code == NFT_JUMP ? nft_jump : nft_goto, i);
      return add(b, nft_opaque);
    }
    default: return add(b, nft_opaque);
  }
}

bool on_cmp(build& b, const rule_state& s, const nlattr* data) {
  const nlattr* tb[NFTA_CMP_MAX + 1];
  if (!netlink_nested(data, tb, NFTA_CMP_MAX)) return add(b, nft_maybe);
  const uint32_t op = attr_be32(tb[NFTA_CMP_OP], ~0u);
  static constexpr uint8_t how[] = {nft_eq, nft_neq, nft_lt, nft_lte, nft_gt, nft_gte};   // NFT_CMP_*
  if (op >= sizeof how) return add(b, nft_maybe);
  return add_test(b, s, attr_be32(tb[NFTA_CMP_SREG]), how[op], data_value(tb[NFTA_CMP_DATA]), nullptr);
}

bool on_range(build& b, const rule_state& s, const nlattr* data) {
  const nlattr* tb[NFTA_RANGE_MAX + 1];
  if (!netlink_nested(data, tb, NFTA_RANGE_MAX)) return add(b, nft_maybe);
  const nlattr *lo = data_value(tb[NFTA_RANGE_FROM_DATA]), *hi = data_value(tb[NFTA_RANGE_TO_DATA]);
  const uint32_t op = attr_be32(tb[NFTA_RANGE_OP], ~0u);
  if (!lo || !hi || op > NFT_RANGE_NEQ) return add(b, nft_maybe);
  return add_test(b, s, attr_be32(tb[NFTA_RANGE_SREG]), op == NFT_RANGE_EQ ? nft_in : nft_notin, lo, hi);
}

bool on_bitwise(rule_state& s, const nlattr* data) {
  constexpr unsigned op_attr = 6;   // NFTA_BITWISE_OP, 0: mask and xor
  const nlattr* tb[op_attr + 1];
  if (!netlink_nested(data, tb, op_attr)) return forget_all(s), true;
  const int from = reg_index(attr_be32(tb[NFTA_BITWISE_SREG])), to = reg_index(attr_be32(tb[NFTA_BITWISE_DREG]));
  const uint32_t len = attr_be32(tb[NFTA_BITWISE_LEN]);
  const nlattr *mask = data_value(tb[NFTA_BITWISE_MASK]), *flip = data_value(tb[NFTA_BITWISE_XOR]);
  if (from < 0 || to < 0 || attr_be32(tb[op_attr]) != 0 || !mask || !flip || len == 0 || len > 16 || mnl_attr_get_payload_len(mask) != len ||
      mnl_attr_get_payload_len(flip) != len || !s.regs[from].known || s.regs[from].len != len)
    return forget_all(s), true;
  const auto* x = static_cast<const uint8_t*>(mnl_attr_get_payload(flip));
  const auto* m = static_cast<const uint8_t*>(mnl_attr_get_payload(mask));
  rule_state::reg r = s.regs[from];
  for (uint32_t i = 0; i < len; ++i) {
    if (x[i]) return forget_all(s), true;
    r.mask[i] &= m[i];
  }
  forget(s, to, len);
  s.regs[to] = r;
  return true;
}

bool on_payload(build& b, rule_state& s, const nlattr* data) {
  const nlattr* tb[NFTA_PAYLOAD_MAX + 1];
  if (!netlink_nested(data, tb, NFTA_PAYLOAD_MAX) || tb[NFTA_PAYLOAD_SREG]) return add(b, nft_opaque);   // with a source it writes into the packet
  const uint32_t base = attr_be32(tb[NFTA_PAYLOAD_BASE], ~0u), len = attr_be32(tb[NFTA_PAYLOAD_LEN]);
  if (base != NFT_PAYLOAD_NETWORK_HEADER && base != NFT_PAYLOAD_TRANSPORT_HEADER) return forget_all(s), true;
  const uint8_t to = base == NFT_PAYLOAD_NETWORK_HEADER ? nft_net : nft_transport;
  return set_load(s, attr_be32(tb[NFTA_PAYLOAD_DREG]), to, attr_be32(tb[NFTA_PAYLOAD_OFFSET], ~0u), len) || add(b, nft_opaque);
}

bool on_meta(build& b, rule_state& s, const nlattr* data) {
  const nlattr* tb[NFTA_META_MAX + 1];
  if (!netlink_nested(data, tb, NFTA_META_MAX) || tb[NFTA_META_SREG]) return add(b, nft_opaque);
  const uint32_t key = attr_be32(tb[NFTA_META_KEY], ~0u);
  uint32_t len = 4;
  if (key == NFT_META_L4PROTO || key == NFT_META_NFPROTO) len = 1;
  if (key == NFT_META_PROTOCOL) len = 2;
  if (key == NFT_META_IIFNAME || key == NFT_META_OIFNAME) len = 16;
  if (key == NFT_META_PRANDOM) return add(b, nft_maybe) && (forget_all(s), true);
  return set_load(s, attr_be32(tb[NFTA_META_DREG]), nft_meta, key, len) || add(b, nft_opaque);
}

bool port_range(build& b, uint32_t offset, const uint16_t range[2], bool inverted) {
  if (range[0] == 0 && range[1] == 0xffff && !inverted) return true;
  nft_row r{};
  r.op = nft_test;
  r.base = nft_transport;
  r.offset = offset;
  r.len = 2;
  r.cmp = inverted ? nft_notin : nft_in;
  r.mask[0] = r.mask[1] = 0xff;
  for (int i = 0; i < 2; ++i) {
    r.lo[i] = static_cast<uint8_t>(range[0] >> (8 - 8 * i));
    r.hi[i] = static_cast<uint8_t>(range[1] >> (8 - 8 * i));
  }
  return dump_add(b.out, r);
}

// A match of iptables within nftables: those that only look.
bool on_match(build& b, const nlattr* data) {
  const nlattr* tb[NFTA_MATCH_MAX + 1];
  if (!netlink_nested(data, tb, NFTA_MATCH_MAX)) return add(b, nft_opaque);
  const nlattr* name = tb[NFTA_MATCH_NAME];
  if (is(name, "comment")) return true;
  if (is(name, "tcp") && tb[NFTA_MATCH_INFO] && mnl_attr_get_payload_len(tb[NFTA_MATCH_INFO]) >= sizeof(xt_tcp)) {
    xt_tcp t;
    std::memcpy(&t, mnl_attr_get_payload(tb[NFTA_MATCH_INFO]), sizeof t);
    if (!port_range(b, 0, t.spts, t.invflags & XT_TCP_INV_SRCPT) || !port_range(b, 2, t.dpts, t.invflags & XT_TCP_INV_DSTPT)) return false;
    return !(t.option || t.flg_mask || (t.invflags & ~(XT_TCP_INV_SRCPT | XT_TCP_INV_DSTPT))) || add(b, nft_maybe);
  }
  for (const char* pure : {"conntrack", "state", "addrtype", "multiport", "mark", "connmark", "owner", "pkttype", "iprange", "physdev"})
    if (is(name, pure)) return add(b, nft_maybe);
  return add(b, nft_opaque);
}

bool on_expression(build& b, rule_state& s, const nlattr* expr, uint8_t family, const nlattr* table) {
  const nlattr* tb[NFTA_EXPR_MAX + 1];
  if (!netlink_nested(expr, tb, NFTA_EXPR_MAX)) return add(b, nft_opaque);
  const nlattr *name = tb[NFTA_EXPR_NAME], *data = tb[NFTA_EXPR_DATA];
  if (!data) return add(b, nft_opaque);
  if (is(name, "cmp")) return on_cmp(b, s, data);
  if (is(name, "range")) return on_range(b, s, data);
  if (is(name, "payload")) return on_payload(b, s, data);
  if (is(name, "meta")) return on_meta(b, s, data);
  if (is(name, "bitwise")) return on_bitwise(s, data);
  if (is(name, "immediate")) return on_immediate(b, s, data, family, table);
  if (is(name, "match")) return on_match(b, data);
  if (is(name, "lookup")) {
    const nlattr* l[NFTA_LOOKUP_MAX + 1];
    if (!netlink_nested(data, l, NFTA_LOOKUP_MAX)) return add(b, nft_opaque);
    if (l[NFTA_LOOKUP_DREG] && attr_be32(l[NFTA_LOOKUP_DREG]) == NFT_REG_VERDICT) return add(b, nft_opaque);   // a verdict map
    forget_all(s);
    return add(b, nft_maybe);
  }
  if (is(name, "ct")) {
    const nlattr* c[NFTA_CT_MAX + 1];
    if (!netlink_nested(data, c, NFTA_CT_MAX) || c[NFTA_CT_SREG]) return add(b, nft_opaque);
    return forget_all(s), true;
  }
  if (is(name, "rt") || is(name, "fib") || is(name, "socket")) return forget_all(s), true;   // loads of what we do not know
  return add(b, nft_opaque);
}

struct expression_sink {
  build& b;
  rule_state& s;
  uint8_t family;
  const nlattr* table;
};
int each_expression(const nlattr* a, void* p) {
  auto& x = *static_cast<expression_sink*>(p);
  return on_expression(x.b, x.s, a, x.family, x.table) ? MNL_CB_OK : MNL_CB_STOP;
}

bool on_chain(const nlmsghdr* m, void* p) {
  auto& b = *static_cast<build*>(p);
  const nlattr *tb[NFTA_CHAIN_MAX + 1], *hook[NFTA_HOOK_MAX + 1];
  if (m->nlmsg_type != ((NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_NEWCHAIN)) return true;
  if (!netlink_attrs(m, sizeof(nfgenmsg), tb, NFTA_CHAIN_MAX)) return b.out.err = -EBADMSG, false;
  if (b.n_chains == most_chains) return b.out.err = -EOVERFLOW, false;
  chain_info& c = b.chains[b.n_chains++];
  c = chain_info{};
  c.family = static_cast<const nfgenmsg*>(mnl_nlmsg_get_payload(m))->nfgen_family;
  c.key = key_of(c.family, tb[NFTA_CHAIN_TABLE], tb[NFTA_CHAIN_NAME]);
  c.row = no_row;
  if (!tb[NFTA_CHAIN_HOOK]) return true;
  if (!netlink_nested(tb[NFTA_CHAIN_HOOK], hook, NFTA_HOOK_MAX)) return b.out.err = -EBADMSG, false;
  c.base = 1;
  c.hook = attr_be32(hook[NFTA_HOOK_HOOKNUM]);
  c.policy = static_cast<uint8_t>(attr_be32(tb[NFTA_CHAIN_POLICY], NF_ACCEPT));
  if (hook[NFTA_HOOK_DEV]) attr_name(hook[NFTA_HOOK_DEV], c.dev, sizeof c.dev);   // of several devices: any
  return true;
}

bool begin_chain(build& b, uint32_t i) {
  chain_info& c = b.chains[i];
  if (b.in != no_row && !add(b, nft_end)) return false;
  b.in = i;
  c.row = b.out.n;
  nft_row r{};
  r.op = nft_chain;
  r.base = c.family;
  r.cmp = c.base;
  r.len = c.policy;
  r.offset = c.hook;
  std::memcpy(r.lo, c.dev, sizeof r.lo);
  return dump_add(b.out, r);
}

bool on_rule(const nlmsghdr* m, void* p) {
  auto& b = *static_cast<build*>(p);
  const nlattr* tb[NFTA_RULE_MAX + 1];
  if (m->nlmsg_type != ((NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_NEWRULE)) return true;
  if (!netlink_attrs(m, sizeof(nfgenmsg), tb, NFTA_RULE_MAX)) return b.out.err = -EBADMSG, false;
  const uint8_t family = static_cast<const nfgenmsg*>(mnl_nlmsg_get_payload(m))->nfgen_family;
  const uint64_t key = key_of(family, tb[NFTA_RULE_TABLE], tb[NFTA_RULE_CHAIN]);
  if (b.in == no_row || b.chains[b.in].key != key) {
    uint32_t i = 0;
    while (i < b.n_chains && b.chains[i].key != key) ++i;
    // A chain made since the dump of chains, or rules of one chain in two pieces: what follows from it is coming as a notification.
    if (i == b.n_chains || b.chains[i].row != no_row) return b.out.err = -EAGAIN, false;
    if (!begin_chain(b, i)) return false;
  }
  const uint32_t at = b.out.n;
  if (!add(b, nft_rule)) return false;
  rule_state s{};
  if (tb[NFTA_RULE_EXPRESSIONS]) {
    expression_sink to{b, s, family, tb[NFTA_RULE_TABLE]};
    if (mnl_attr_parse_nested(tb[NFTA_RULE_EXPRESSIONS], each_expression, &to) < 0) b.out.err = -EBADMSG;
    if (b.out.err) return false;
  }
  static_cast<nft_row*>(b.out.rows)[at].offset = b.out.n;
  return true;
}

nlmsghdr* request(char* buf, uint16_t type) {
  nlmsghdr* m = mnl_nlmsg_put_header(buf);
  m->nlmsg_type = static_cast<uint16_t>((NFNL_SUBSYS_NFTABLES << 8) | type);
  m->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  auto* g = static_cast<nfgenmsg*>(mnl_nlmsg_put_extra_header(m, sizeof(nfgenmsg)));
  g->nfgen_family = NFPROTO_UNSPEC;
  g->version = NFNETLINK_V0;
  return m;
}

int once(netlink& n, build& b) {
  alignas(nlmsghdr) char buf[256];
  b.out.n = b.n_chains = 0;
  b.out.err = 0;
  b.in = no_row;
  int e = netlink_talk(n, request(buf, NFT_MSG_GETCHAIN), on_chain, &b);
  if (e == 0 && !b.out.err) e = netlink_talk(n, request(buf, NFT_MSG_GETRULE), on_rule, &b);
  if (e == 0) e = b.out.err;
  if (e < 0) return e;
  for (uint32_t i = 0; i < b.n_chains; ++i)   // base chains without a rule have a policy
    if (b.chains[i].base && b.chains[i].row == no_row && !begin_chain(b, i)) return -EOVERFLOW;
  if (b.in != no_row && !add(b, nft_end)) return -EOVERFLOW;
  auto* rows = static_cast<nft_row*>(b.out.rows);
  for (uint32_t i = 0; i < b.out.n; ++i)
    if (rows[i].op == nft_jump || rows[i].op == nft_goto) rows[i].offset = b.chains[rows[i].offset].row;   // no_row is nft_nowhere
  return static_cast<int>(b.out.n);
}

}  // namespace

int dump_nft(netlink& n, nft_row* rows, uint32_t max) {
  auto* chains = static_cast<chain_info*>(mem_alloc(most_chains * sizeof(chain_info)));
  if (!chains) return -ENOMEM;
  build b{{rows, 0, max, 0}, chains, 0, no_row, 0};
  int r = -EAGAIN;
  for (int tries = 0; tries < 4 && (r == -EAGAIN || r == -EINTR); ++tries) r = once(n, b);
  mem_free(chains);
  return r;
}

int dump_nft_unwatched(netlink& n) {
  if (n.fd < 0) return -EPERM;
  alignas(nlmsghdr) char buf[256];
  const int e = netlink_talk(n, request(buf, NFT_MSG_GETCHAIN), nullptr, nullptr);
  return e == -EINVAL || e == -EOPNOTSUPP ? 0 : -EPERM;   // no such subsystem in this kernel
}

}  // namespace icepath
