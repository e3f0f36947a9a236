// See config.hpp.
#include "base/config.hpp"

#include <stdlib.h>

#include <atomic>
#include <cstring>

#include "base/clock.hpp"
#include "base/log.hpp"

namespace icepath {

namespace {

void complain(const char* name, const char* value, const char* accepted, const char* kept) {
  log_error("%s=%.80s is not one of %s; using %s", name, value, accepted, kept);
}

// Index of the value among the words, or -1 when it is unset, empty or none of them.
int choice(const char* name, const char* value, const char* const* words, int n, const char* accepted, const char* kept) {
  if (!value || !*value) return -1;
  for (int i = 0; i < n; ++i)
    if (!std::strcmp(value, words[i])) return i;
  complain(name, value, accepted, kept);
  return -1;
}

void flag(const char* name, const char* value, bool& to) {
  static constexpr const char* words[] = {"0", "1"};
  const int i = choice(name, value, words, 2, "0, 1", to ? "1" : "0");
  if (i >= 0) to = i == 1;
}

// A list of ports. False: not one; c is unchanged.
bool parse_ports(const char* v, config& c) {
  bool local = false, none = false;
  char ifname[sizeof c.xdp_ifname] = "";
  if (std::strlen(v) >= sizeof c.ports) return false;
  for (const char* p = v;;) {
    const char* end = ::strchrnul(p, ',');
    const auto n = static_cast<size_t>(end - p);
    if (n == 5 && !std::memcmp(p, "local", 5)) {
      local = true;
    } else if (n == 4 && !std::memcmp(p, "none", 4)) {
      none = true;
    } else if (n > 4 && !std::memcmp(p, "xdp:", 4) && n - 4 < sizeof ifname && !ifname[0]) {
      std::memcpy(ifname, p + 4, n - 4);
    } else {
      return false;
    }
    if (!*end) break;
    p = end + 1;
  }
  if (none && (local || ifname[0])) return false;
  c.port_local = local;
  std::memcpy(c.xdp_ifname, ifname, sizeof ifname);
  return true;
}

config parsed;
std::atomic<int> state{0};  // 0 not parsed, 1 being parsed, 2 done; release by the parser, acquire by readers

}  // namespace

config config_parse(const char* (*env)(const char*)) {
  config c;
  static constexpr const char* levels[] = {"error", "warn", "info", "debug"};
  const int level = choice("ICEPATH_LOG", env("ICEPATH_LOG"), levels, 4, "error, warn, info, debug", "warn");
  if (level >= 0) c.log = level;

  if (const char* v = env("ICEPATH_PORTS"); v && *v) {
    if (!parse_ports(v, c)) complain("ICEPATH_PORTS", v, "local, none, xdp:IFNAME (local and one xdp:IFNAME with a comma between)", "local");
    else std::strcpy(c.ports, v);
  }
  flag("ICEPATH_REQUIRE", env("ICEPATH_REQUIRE"), c.require);
  flag("ICEPATH_STATS", env("ICEPATH_STATS"), c.stats);

  static constexpr const char* rules[] = {"lazy", "eager", "never"};
  const int rule = choice("ICEPATH_PROMOTE", env("ICEPATH_PROMOTE"), rules, 3, "eager, lazy, never", "lazy");
  if (rule >= 0) c.promote = static_cast<promote_rule>(rule);

  static constexpr const char* bulk[] = {"auto", "fast"};
  c.bulk_fast = choice("ICEPATH_BULK", env("ICEPATH_BULK"), bulk, 2, "auto, fast", "auto") == 1;

  const char* spin = env("ICEPATH_SPIN_USEC");
  if (spin && *spin) {
    int64_t v = 0;
    const char* p = spin;
    for (; *p >= '0' && *p <= '9' && v <= 1000000; ++p) v = v * 10 + (*p - '0');
    if (*p || v > 1000000) complain("ICEPATH_SPIN_USEC", spin, "0..1000000 (microseconds)", "the adaptive budget");
    else c.spin_usec = static_cast<int32_t>(v);
  }
  return c;
}

const config& config_get() {
  int s = state.load(std::memory_order_acquire);
  if (ICEPATH_LIKELY(s == 2)) return parsed;
  if (s == 0 && state.compare_exchange_strong(s, 1, std::memory_order_acq_rel)) {
    parsed = config_parse([](const char* n) -> const char* { return ::getenv(n); });
    log_threshold.store(parsed.log, std::memory_order_relaxed);
    state.store(2, std::memory_order_release);
  }
  while (state.load(std::memory_order_acquire) != 2) cpu_relax();
  return parsed;
}

}  // namespace icepath
