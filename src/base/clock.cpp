// Calibration of the cycle counter. Two threads may measure at once: both answers are good, either may be kept.
#include "base/clock.hpp"

#include <atomic>

namespace icepath {

uint64_t cycles_per_2_20_ns() {
  static std::atomic<uint64_t> rate{0};  // relaxed: the number is all there is
  uint64_t r = rate.load(std::memory_order_relaxed);
  if (ICEPATH_LIKELY(r != 0)) return r;
  const nsec t0 = clock_now();
  const uint64_t c0 = cycles();
  nsec t1;
  uint64_t c1;
  do {
    t1 = clock_now();
    c1 = cycles();
  } while (t1 - t0 < 200 * usec_ns);
  r = static_cast<uint64_t>((static_cast<unsigned __int128>(c1 - c0) << 20) / (t1 - t0));
  if (r == 0) r = 1;
  rate.store(r, std::memory_order_relaxed);
  return r;
}

}  // namespace icepath
