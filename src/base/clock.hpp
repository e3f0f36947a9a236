// The two clocks. clock_now: CLOCK_MONOTONIC through the vDSO, about 20 ns. cycles: the time stamp counter, for spin loops
// that must not pay even that; it is never compared across threads and never kept. Any thread, any signal handler.
#pragma once
#include <time.h>

#include "base/types.hpp"

namespace icepath {

inline nsec clock_now() {
  timespec t;
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<nsec>(t.tv_sec) * sec_ns + static_cast<nsec>(t.tv_nsec);
}

inline uint64_t cycles() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t v;
  asm volatile("mrs %0, cntvct_el0" : "=r"(v));
  return v;
#else
  return clock_now();
#endif
}

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

// Cycles per 2^20 ns, measured against CLOCK_MONOTONIC on first use (0.2 ms, good to about 0.1 %), then one load.
uint64_t cycles_per_2_20_ns();
inline uint64_t ns_to_cycles(nsec n) { return static_cast<uint64_t>((static_cast<unsigned __int128>(n) * cycles_per_2_20_ns()) >> 20); }
inline nsec cycles_to_ns(uint64_t c) { return static_cast<nsec>((static_cast<unsigned __int128>(c) << 20) / cycles_per_2_20_ns()); }

// CLOCK_MONOTONIC by the time stamp counter, for one owner (a stack): set right against the kernel's clock every millisecond, never goes back.
// About 10 ns where clock_now is 25 to 50.
class tsc_clock {
 public:
  nsec now() {
    const uint64_t c = cycles(), d = c - base_cycles_;
    if (__builtin_expect(d > resync_, 0)) return sync(c);
    const nsec t = base_ns_ + static_cast<nsec>((static_cast<unsigned __int128>(d) * ns_per_cycle_32_) >> 32);
    return last_ = t > last_ ? t : last_;
  }

 private:
  nsec sync(uint64_t c) {
    if (!ns_per_cycle_32_) {
      const uint64_t per = cycles_per_2_20_ns();
      ns_per_cycle_32_ = (uint64_t{1} << 52) / per;
      resync_ = ns_to_cycles(msec_ns);
    }
    base_cycles_ = c;
    base_ns_ = clock_now();
    return last_ = base_ns_ > last_ ? base_ns_ : last_;
  }
  uint64_t base_cycles_ = 0, ns_per_cycle_32_ = 0, resync_ = 0;
  nsec base_ns_ = 0, last_ = 0;
};

}  // namespace icepath
