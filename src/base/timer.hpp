// Timers of one stack. A binary heap would do; a hierarchical wheel gives O(1) arm and cancel, which TCP
// does on every ACK. Owner: the stack (all calls under its owner word). Time is a parameter: nothing here
// reads a clock. A timer fires at or after its deadline, never before; re-arming an armed timer moves it.
#pragma once
#include "base/list.hpp"
#include "base/types.hpp"

namespace icepath {

struct timer {
  list_node node;
  nsec expires = 0;                 // absolute; valid while node.linked()
  void (*fn)(timer*, nsec now) = nullptr;
  bool armed() const { return node.linked(); }
};

class timer_wheel {
 public:
  static constexpr nsec tick = nsec{1} << 16;   // a timer fires at the first tick after its deadline
  explicit timer_wheel(nsec now = 0) : clk_(now >> tick_shift) {}
  void arm(timer& t, nsec expires);      // moves it when armed
  void cancel(timer& t);                 // no effect when not armed
  size_t run(nsec now);                  // fires all that are due; returns how many. fn may arm and cancel any timer
  nsec next_expiry() const;              // lower bound for the next deadline; ~0 when none is armed
  size_t armed() const { return count_; }

 private:
  static constexpr unsigned level_bits = 6, levels = 7, tick_shift = 16;  // tick = 65.536 us, reach = 2^58 ns
  static constexpr unsigned slots = 1u << level_bits;
  mutable list_head wheel_[levels][slots];
  mutable uint64_t occupied_[levels] = {};  // a bit may outlive its last timer, it is cleared when met
  uint64_t clk_;                         // current tick: everything before it has been fired or cascaded
  size_t count_ = 0;
  mutable nsec bound_ = ~nsec{0};        // no timer is due before it
  mutable bool loose_ = false;           // bound_ may be raised: its timer was cancelled
  void place(timer& t);
  void take_due(nsec now, list_head& due);
  nsec find_next() const;
};

}  // namespace icepath
