// The mirror of the kernel's control plane (DESIGN section 10): one flat block without pointers, written by one control thread (mirror.hpp), read
// by any stack without locks and system calls. It may lie in shared memory: a reader bounds every index by the capacity, whatever the writer says.
//
// | who    | what                                            | order                                                                                |
// |--------|-------------------------------------------------|--------------------------------------------------------------------------------------|
// | writer | fills side[(gen + 1) & 1] by words, then ++gen  | words release, gen release                                                           |
// | reader | g = gen; words of side[g & 1]; gen is still g   | acquire each. Who sees a word of a later filling sees the gen stored before it began |
//
// A reader never waits for a writer that was put to sleep: the side it reads is left alone until the writer has gone on to the next generation.
// Generation 0 is "never read"; a table that could not be read, or does not fit, is published as unknown, which means: the kernel's business.
#pragma once
#include <atomic>

#include "base/types.hpp"

namespace icepath {

template <class T, uint32_t N>
struct mirror_table {
  static_assert(sizeof(T) % 8 == 0 && alignof(T) <= 8);
  static constexpr uint32_t capacity = N;
  struct side_t {
    uint64_t count, known;
    uint64_t words[N * (sizeof(T) / 8)];
  };
  alignas(64) std::atomic<uint32_t> gen;
  alignas(64) side_t side[2];

  uint32_t generation() const { return gen.load(std::memory_order_acquire); }
  bool valid(uint32_t g) const { return gen.load(std::memory_order_relaxed) == g; }
  bool known(uint32_t g) const { return g && __atomic_load_n(&side[g & 1].known, __ATOMIC_ACQUIRE); }
  uint32_t count(uint32_t g) const {
    const uint64_t c = __atomic_load_n(&side[g & 1].count, __ATOMIC_ACQUIRE);
    return c < N ? static_cast<uint32_t>(c) : N;
  }
  T at(uint32_t g, uint32_t i) const {   // i < N
    uint64_t w[sizeof(T) / 8];
    const uint64_t* from = side[g & 1].words + size_t{i} * (sizeof(T) / 8);
    for (size_t k = 0; k < sizeof(T) / 8; ++k) w[k] = __atomic_load_n(from + k, __ATOMIC_ACQUIRE);
    T t;
    std::memcpy(&t, w, sizeof t);
    return t;
  }

  // Writer. Returns whether anything is different from what was there; then, and only then, there is a new generation.
  bool publish(const T* rows, uint32_t n, bool is_known) {
    const uint32_t g = gen.load(std::memory_order_relaxed);
    const side_t& now = side[g & 1];
    if (!is_known) n = 0;
    if (g && now.count == n && now.known == is_known && (n == 0 || std::memcmp(now.words, rows, n * sizeof(T)) == 0)) return false;
    side_t& next = side[(g + 1) & 1];
    __atomic_store_n(&next.count, n, __ATOMIC_RELEASE);
    __atomic_store_n(&next.known, uint64_t{is_known}, __ATOMIC_RELEASE);
    uint64_t w;
    for (size_t k = 0; k < size_t{n} * (sizeof(T) / 8); ++k) {
      std::memcpy(&w, reinterpret_cast<const char*>(rows) + k * 8, 8);
      __atomic_store_n(next.words + k, w, __ATOMIC_RELEASE);
    }
    gen.store(g + 1 ? g + 1 : 2, std::memory_order_release);   // never 0 again; the parity goes on
    return true;
  }
};

constexpr uint8_t family_v4 = 2, family_v6 = 10;   // AF_INET, AF_INET6

struct link_row {
  uint32_t ifindex, master, mtu, mtu6, flags;   // IFF_*; mtu6: what IPv6 uses there
  uint16_t type;                          // ARPHRD_*
  uint8_t mac[6];
  uint32_t pad;
  char name[16], kind[16];                // zero padded; kind: IFLA_INFO_KIND, empty for hardware
};
struct addr_row {
  inet_addr local, peer;
  uint32_t ifindex, flags;                // IFA_F_*
  uint8_t family, plen, scope, pad[5];
};
enum : uint16_t { route_complex = 1, route_dead = 2, route_linkdown = 4, route_has_gw = 8, route_src_prefix = 16 };
struct route_row {                        // sorted: family, table, plen descending, dst, tos descending, metric
  inet_addr dst, gw, src;                 // gw may be of the other family; src: RTA_PREFSRC or all zero
  uint32_t table, metric, ifindex, mtu;   // mtu: RTAX_MTU or 0
  uint16_t bits, seq;                     // seq: order in the kernel's list, low bits
  uint8_t family, plen, tos, type, scope, protocol, mtu_locked, pad[5];
};
struct rule_row {
  uint32_t priority, table;
  uint8_t family, plain, action, pad[5];  // plain: no selector; action FR_ACT_*
};
struct neigh_row {                        // sorted: ifindex, addr
  inet_addr addr;
  uint32_t ifindex;
  uint16_t state;                         // NUD_*
  uint8_t flags, pad;                     // NTF_*
  uint8_t mac[6];
  uint8_t has_mac, pad2;
};

// Policy (policy.hpp says what they mean, policy_nft.hpp how a ruleset is held).
struct nft_row {
  uint8_t op, base, cmp, len;             // nft_op; of a test: where, how, how many bytes
  uint32_t offset;                        // of a test: byte or meta key; of jump: row; of chain: hook and family
  uint8_t mask[16], lo[16], hi[16];       // masked value against lo, or lo..hi; of a chain: device name in lo
};
struct tc_row { uint32_t ifindex, why; };  // why: policy_tc
struct xfrm_row {
  inet_addr saddr, daddr;
  uint32_t ifindex;
  uint16_t sport, smask, dport, dmask;    // network order, as the kernel compares them
  uint8_t family, plen_s, plen_d, proto, dir, pad[7];
};
struct host_row { uint32_t bits, pad; };  // policy_host

struct control_tables {
  mirror_table<link_row, 512> links;
  mirror_table<addr_row, 2048> addrs;
  mirror_table<route_row, 16384> routes;
  mirror_table<rule_row, 256> rules;
  mirror_table<neigh_row, 4096> neighs;
  mirror_table<nft_row, 8192> nft;
  mirror_table<tc_row, 512> tc;
  mirror_table<xfrm_row, 1024> xfrm;
  mirror_table<host_row, 1> host;
  alignas(64) std::atomic<uint64_t> netns_cookie;        // SO_NETNS_COOKIE of the namespace that is mirrored
  std::atomic<uint32_t> policy_generation;               // any change of any authority of policy.hpp
};

bool control_link(const control_tables& t, uint32_t ifindex, link_row& out);   // false: no such link, or unknown

}  // namespace icepath
