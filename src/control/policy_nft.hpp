// An nftables ruleset as rows, and what it would do with an established packet of one connection.
//
// policy_nft.cpp compiles (control thread, from the kernel's own dump); policy_nft_eval.cpp evaluates (any thread). Each chain is a row `chain`,
// then for each rule a row `rule` that knows where the next begins, then what the rule does in the kernel's order, then `end`.
//
// A test looks at bytes of the packet or at meta data. What of them is fixed for this connection is known (addresses, ports, protocol, interface,
// mark on output); the rest (flags, lengths, conntrack state, sets) is not. A rule is passed over when a test is certainly false before anything
// else happens. What has an effect (counter, limit, log, nat, queue, an unknown expression) and may be reached means kernel, as does a verdict of
// drop that may be reached. An accept that may be reached is looked past: the packet is accepted there or by what follows.
#pragma once
#include "control/policy.hpp"

namespace icepath {

enum nft_op : uint8_t { nft_end, nft_chain, nft_rule, nft_test, nft_maybe, nft_opaque, nft_accept, nft_drop, nft_return, nft_jump, nft_goto };
// nft_chain: base = family (NFPROTO_*), cmp = 1 for a base chain, len = its policy (1 accept), offset = hook, lo = device or empty for any.
// nft_rule:  offset = row after the rule.    nft_jump, nft_goto: offset = row of the chain, nft_nowhere for one without rules.
// nft_test:  base, offset and len name the bytes; cmp says how they are compared under mask with lo, or with lo..hi.
enum nft_base : uint8_t { nft_net, nft_transport, nft_meta };
enum nft_cmp : uint8_t { nft_eq, nft_neq, nft_lt, nft_lte, nft_gt, nft_gte, nft_in, nft_notin };
constexpr uint32_t nft_nowhere = ~0u;

const char* nft_check(const control_tables& t, uint32_t generation, const policy_flow& f, const link_row& l);

}  // namespace icepath
