// What the environment says (man icepath lists the variables). Parsed once, on first use, by whoever comes first; afterwards
// read-only and free to read anywhere. A bad value gives one line on stderr that names the variable and what it accepts, and
// the default stays.
#pragma once
#include <cstdint>

namespace icepath {

enum class promote_rule : uint8_t { lazy, eager, never };

struct config {
  bool port_local = true;                    // ICEPATH_PORTS=local|none|xdp:IFNAME, several with commas
  char xdp_ifname[16] = "";                  // of xdp:IFNAME; empty: no such port
  bool require = false;                      // ICEPATH_REQUIRE=0|1
  bool stats = false;                        // ICEPATH_STATS=0|1
  int log = 1;                               // ICEPATH_LOG=error|warn|info|debug
  int32_t spin_usec = -1;                    // ICEPATH_SPIN_USEC=0..1000000; -1: adaptive
  bool bulk_fast = false;                    // ICEPATH_BULK=auto|fast: large transfers too, where the kernel is faster with them
  promote_rule promote = promote_rule::lazy; // ICEPATH_PROMOTE=eager|lazy|never
  char ports[64] = "local";                  // as given, for `icepath stat`
};

const config& config_get();                  // also sets the log threshold
config config_parse(const char* (*env)(const char* name));   // the same without the process; for tests

}  // namespace icepath
