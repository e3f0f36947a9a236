// See policy_nft.hpp. Bounded: by a number of rows looked at, by the depth of jumps, and by the table, whatever the rows say.
#include "control/policy_nft.hpp"

#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>

namespace icepath {
namespace {

constexpr const char *may_drop = "nftables: a rule may drop it", *may_act = "nftables: a rule may act on it",
                     *by_policy = "nftables: a chain's policy drops it", *too_much = "nftables: more rules than can be followed",
                     *malformed = "nftables: not understood";

struct packet {
  uint8_t net[40], net_known[40], transport[4];   // transport: the ports, all of the header that is fixed
  uint8_t family;
  bool out;
  uint32_t iif, oif, mark, uid;
  bool iif_known, mark_known, uid_known;
  const char *iifname, *oifname;
};

packet make(const policy_flow& f, const link_row& l, bool out, uint8_t family, uint32_t hook) {
  const four_tuple t = out ? f.tuple : f.tuple.reversed();
  packet p{};
  p.out = out;
  p.family = family;
  const bool v4 = t.daddr.is_v4();
  p.net[0] = v4 ? 0x40 : 0x60;
  p.net_known[0] = 0xf0;
  const unsigned s = v4 ? 12 : 8, d = v4 ? 16 : 24, n = v4 ? 4 : 16;
  std::memcpy(p.net + s, t.saddr.b + (16 - n), n);
  std::memcpy(p.net + d, t.daddr.b + (16 - n), n);
  std::memset(p.net_known + s, 0xff, 2 * n);
  if (v4) p.net[9] = 6, p.net_known[9] = 0xff;
  if (!v4 && out) p.net[6] = 6, p.net_known[6] = 0xff;   // coming in, extension headers may stand between
  const uint16_t ports[2] = {__builtin_bswap16(t.sport), __builtin_bswap16(t.dport)};
  std::memcpy(p.transport, ports, 4);
  p.iifname = p.oifname = "";
  if (out) {
    p.oif = f.ifindex;
    p.oifname = l.name;
    p.iif_known = family != NFPROTO_NETDEV && hook == NF_INET_LOCAL_OUT;
    p.mark = f.mark;
    p.uid = f.uid;
    p.mark_known = p.uid_known = true;
  } else {
    p.iif = f.ifindex;
    p.iifname = l.name;
    p.iif_known = true;
  }
  return p;
}

// The bytes that a test looks at, and which bits of them are known. false: none.
bool load(const packet& p, const nft_row& r, uint8_t* v, uint8_t* known) {
  const auto put = [&](const void* from, size_t n) {
    if (r.len > 16) return false;
    std::memset(v, 0, 16);
    std::memset(known, 0xff, 16);
    std::memcpy(v, from, n < r.len ? n : r.len);
    return true;
  };
  if (r.len == 0 || r.len > 16) return false;
  if (r.base == nft_net) {
    if (r.offset > sizeof p.net || r.len > sizeof p.net - r.offset) return false;
    std::memcpy(v, p.net + r.offset, r.len);
    std::memcpy(known, p.net_known + r.offset, r.len);
    return true;
  }
  if (r.base == nft_transport) {
    if (r.offset >= sizeof p.transport) return false;
    std::memset(known, 0, r.len);
    for (uint32_t i = 0; i < r.len && r.offset + i < sizeof p.transport; ++i) v[i] = p.transport[r.offset + i], known[i] = 0xff;
    for (uint32_t i = 0; i < r.len; ++i)
      if (!known[i]) v[i] = 0;
    return true;
  }
  if (r.base != nft_meta) return false;
  const bool v4 = (p.net[0] & 0xf0) == 0x40;
  char name[16] = {};
  const uint8_t tcp = 6, proto = p.family == NFPROTO_NETDEV ? uint8_t{NFPROTO_NETDEV} : v4 ? uint8_t{NFPROTO_IPV4} : uint8_t{NFPROTO_IPV6};
  const uint8_t ether[2] = {static_cast<uint8_t>(v4 ? 0x08 : 0x86), static_cast<uint8_t>(v4 ? 0x00 : 0xdd)};
  switch (r.offset) {
    case NFT_META_L4PROTO: return put(&tcp, 1);
    case NFT_META_NFPROTO: return p.family != NFPROTO_NETDEV && put(&proto, 1);
    case NFT_META_PROTOCOL: return put(ether, 2);
    case NFT_META_IIF: return p.iif_known && put(&p.iif, 4);
    case NFT_META_OIF: return put(&p.oif, 4);
    case NFT_META_IIFNAME: std::memcpy(name, p.iifname, strnlen(p.iifname, 15)); return p.iif_known && put(name, 16);
    case NFT_META_OIFNAME: std::memcpy(name, p.oifname, strnlen(p.oifname, 15)); return put(name, 16);
    case NFT_META_MARK: return p.mark_known && put(&p.mark, 4);
    case NFT_META_SKUID: return p.uid_known && put(&p.uid, 4);
    default: return false;
  }
}

enum class truth : uint8_t { no, yes, maybe };

truth test(const packet& p, const nft_row& r) {
  uint8_t v[16], known[16];
  if (!load(p, r, v, known)) return truth::maybe;
  bool all = true, differs = false;
  for (unsigned i = 0; i < r.len; ++i) {
    if (r.mask[i] & ~known[i]) all = false;
    v[i] &= r.mask[i];
    if ((v[i] ^ r.lo[i]) & (known[i] | ~r.mask[i])) differs = true;   // a bit outside the mask that lo wants set is never there
  }
  const auto is = [](bool b) { return b ? truth::yes : truth::no; };
  if (r.cmp == nft_eq && differs) return truth::no;
  if (r.cmp == nft_neq && differs) return truth::yes;
  if (!all) return truth::maybe;
  const int lo = std::memcmp(v, r.lo, r.len), hi = std::memcmp(v, r.hi, r.len);
  switch (r.cmp) {
    case nft_eq: return is(lo == 0);
    case nft_neq: return is(lo != 0);
    case nft_lt: return is(lo < 0);
    case nft_lte: return is(lo <= 0);
    case nft_gt: return is(lo > 0);
    case nft_gte: return is(lo >= 0);
    case nft_in: return is(lo >= 0 && hi <= 0);
    case nft_notin: return is(lo < 0 || hi > 0);
    default: return truth::maybe;
  }
}

struct outcome {
  enum { accepted, through, kernel } what;
  const char* why;
};

struct evaluation {
  const control_tables& t;
  uint32_t g, total, budget = 100000;

  outcome chain(uint32_t at, const packet& p, int depth) {   // at: the row after `chain`
    if (depth > 16) return {outcome::kernel, too_much};
    uint32_t next = at;
    bool sure = true;
    for (uint32_t i = at; i < total; ++i) {
      if (--budget == 0) return {outcome::kernel, too_much};
      const nft_row r = t.nft.at(g, i);
      switch (r.op) {
        case nft_end: return {outcome::through, nullptr};
        case nft_rule:
          if (r.offset <= i) return {outcome::kernel, malformed};
          next = r.offset;
          sure = true;
          break;
        case nft_test: {
          const truth x = test(p, r);
          if (x == truth::maybe) sure = false;
          if (x == truth::no) i = next - 1;
          break;
        }
        case nft_maybe: sure = false; break;
        case nft_opaque: return {outcome::kernel, may_act};
        case nft_drop: return {outcome::kernel, may_drop};
        case nft_accept:
          if (sure) return {outcome::accepted, nullptr};
          i = next - 1;
          break;
        case nft_return:
          return sure ? outcome{outcome::through, nullptr} : outcome{outcome::kernel, may_act};
        case nft_jump: case nft_goto: {
          const outcome o = r.offset == nft_nowhere ? outcome{outcome::through, nullptr} : chain(r.offset + 1, p, depth + 1);
          if (o.what == outcome::kernel) return o;
          if (sure && o.what == outcome::accepted) return o;
          if (r.op == nft_goto && o.what == outcome::through) return sure ? o : outcome{outcome::kernel, may_act};
          i = next - 1;
          break;
        }
        default: return {outcome::kernel, malformed};
      }
    }
    return {outcome::kernel, malformed};
  }
};

// Whether a packet of this direction comes by that hook.
bool passes(const nft_row& c, const policy_flow& f, const link_row& l, bool out) {
  const bool v4 = f.tuple.daddr.is_v4();
  const char* dev = reinterpret_cast<const char*>(c.lo);
  const bool our_device = !dev[0] || std::strncmp(dev, l.name, 15) == 0;
  if (c.base == NFPROTO_NETDEV) return our_device && c.offset == (out ? unsigned{NF_NETDEV_EGRESS} : unsigned{NF_NETDEV_INGRESS});
  if (c.base != NFPROTO_INET && c.base != (v4 ? NFPROTO_IPV4 : NFPROTO_IPV6)) return false;   // arp, and bridge: no bridge port gets here
  if (c.base == NFPROTO_INET && c.offset == 5) return our_device && !out;                      // NF_INET_INGRESS
  return out ? c.offset == NF_INET_LOCAL_OUT || c.offset == NF_INET_POST_ROUTING : c.offset == NF_INET_PRE_ROUTING || c.offset == NF_INET_LOCAL_IN;
}

}  // namespace

const char* nft_check(const control_tables& t, uint32_t g, const policy_flow& f, const link_row& l) {
  if (!t.nft.known(g)) return "nftables: the ruleset cannot be read";
  evaluation e{t, g, t.nft.count(g)};
  for (uint32_t i = 0; i < e.total; ++i) {
    const nft_row c = t.nft.at(g, i);
    if (c.op != nft_chain || !c.cmp) continue;
    for (const bool out : {true, false}) {
      if (!passes(c, f, l, out)) continue;
      const uint8_t family = c.base == NFPROTO_INET && c.offset == 5 ? uint8_t{NFPROTO_NETDEV} : c.base;
      const packet p = make(f, l, out, family, c.offset);
      const outcome o = e.chain(i + 1, p, 0);
      if (o.what == outcome::kernel) return o.why;
      if (o.what == outcome::through && c.len != NF_ACCEPT) return by_policy;
    }
  }
  return nullptr;
}

}  // namespace icepath
