// `icepath stat`: the counters of src/net/mib.hpp, summed over a process's stacks and sorted by layer (the counter's first word),
// with the gauges of the region's header.
#include <cctype>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include "cli.hpp"

namespace icepath::cli {
namespace {

constexpr const char* layers[] = {"TcpExt", "Tcp", "Ip", "Qdisc", "Ring", "Sock", "Stack"};   // longer prefix first
const char* layer_of(const char* name) {
  for (const char* l : layers)
    if (strncmp(name, l, strlen(l)) == 0 && isupper(static_cast<unsigned char>(name[strlen(l)]))) return l;
  return "Bytes";   // TxBytes, RxBytes: payload that went by the fast path
}

}  // namespace

int stat(bool json) {
  auto out = nlohmann::json::array();
  for_each_process(true, [&](const process& p) {
    const region_header* h = p.peer.hdr();
    using word [[gnu::may_alias]] = uint64_t;
    uint64_t sum[mib_count] = {};
    for (const mib& m : h->stats) {
      const word* c = reinterpret_cast<const word*>(&m);
      for (unsigned i = 0; i < mib_count; ++i) sum[i] += __atomic_load_n(c + i, __ATOMIC_RELAXED);
    }
    const auto relaxed = std::memory_order_relaxed;
    const uint32_t fast_now = h->fast_now.load(relaxed), kernel_now = h->kernel_now.load(relaxed);
    const uint64_t fast_total = h->fast_total.load(relaxed), kernel_total = h->kernel_total.load(relaxed);
    const uint64_t ktx = h->kernel_tx_bytes.load(relaxed), krx = h->kernel_rx_bytes.load(relaxed);
    if (json) {
      nlohmann::json layer = nlohmann::json::object();
      for (unsigned i = 0; i < mib_count; ++i) layer[layer_of(mib_names[i])][mib_names[i]] = sum[i];
      out.push_back({{"pid", p.pid},
                     {"comm", p.comm},
                     {"exe", p.exe},
                     {"ports", p.ports},
                     {"start_ns", p.start_ns},
                     {"sockets", {{"fast", fast_now}, {"kernel", kernel_now}, {"fast_total", fast_total}, {"kernel_total", kernel_total}}},
                     {"kernel_bytes", {{"tx", ktx}, {"rx", krx}}},
                     {"layers", layer}});
      return true;
    }
    printf("%d %s (%s) ports=%s\n", p.pid, p.comm.c_str(), p.exe.c_str(), p.ports.c_str());
    printf("  sockets now: fast %u, kernel %u; ever: fast %llu, kernel %llu; kernel bytes: tx %llu, rx %llu\n", fast_now, kernel_now,
           static_cast<unsigned long long>(fast_total), static_cast<unsigned long long>(kernel_total),
           static_cast<unsigned long long>(ktx), static_cast<unsigned long long>(krx));
    for (unsigned i = 0; i < mib_count; ++i)
      if (sum[i]) printf("  %-7s %-24s %20llu\n", layer_of(mib_names[i]), mib_names[i], static_cast<unsigned long long>(sum[i]));
    return true;
  });
  if (json) puts(out.dump(2).c_str());
  return exit_ok;
}

}  // namespace icepath::cli
