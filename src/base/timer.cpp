// Hierarchical timer wheel. A timer of tick T lies on the level of the highest 6-bit group in which T differs from clk_, in the
// slot named by that group of T. So all timers of a level are earlier than all of the level above, and inside a level the
// lowest occupied slot is the earliest: the next deadline is found without looking at any other slot.
//
// run() works in two steps: first clk_ moves to now and everything due goes to a list of its own, then that list is fired. A timer
// armed by a callback is therefore never fired by the same run(), whatever its deadline, and run() always ends.
#include "base/timer.hpp"

namespace icepath {

namespace {
constexpr unsigned group_bits = 6;
constexpr unsigned long_list = 32;  // slots with more timers than this are not searched for their earliest one
uint64_t low_mask(unsigned level) { return (uint64_t{1} << (group_bits * level)) - 1; }

void splice(list_head& from, list_head& to) {  // all of from to the end of to
  while (!from.empty()) {
    list_node* n = from.next;
    n->unlink();
    to.push_back(*n);
  }
}
timer* of(list_node* n) { return list_entry<timer, &timer::node>(n); }
}  // namespace

void timer_wheel::place(timer& t) {
  uint64_t tick = t.expires >> tick_shift;
  if (tick < clk_) tick = clk_;
  uint64_t diff = tick ^ clk_;
  if (diff > low_mask(levels)) {  // beyond the reach: wait in the last slot and be placed again from there
    tick = clk_ | low_mask(levels);
    diff = tick ^ clk_;
  }
  const unsigned level = diff ? (63u - static_cast<unsigned>(__builtin_clzll(diff))) / level_bits : 0;
  const unsigned slot = (tick >> (level_bits * level)) & (slots - 1);
  wheel_[level][slot].push_back(t.node);
  occupied_[level] |= uint64_t{1} << slot;
}

void timer_wheel::arm(timer& t, nsec expires) {
  if (t.armed()) {
    if (t.expires == expires) return;
    if (t.expires <= bound_) loose_ = true;
    t.node.unlink();
  } else {
    ++count_;
  }
  t.expires = expires;
  place(t);
  if (expires <= bound_) {
    bound_ = expires;
    loose_ = false;
  }
}

void timer_wheel::cancel(timer& t) {
  if (!t.armed()) return;
  t.node.unlink();
  --count_;
  if (t.expires <= bound_) loose_ = true;
}

void timer_wheel::take_due(nsec now, list_head& due) {
  const uint64_t target = now >> tick_shift;
  list_head later;
  for (;;) {
    unsigned level = 0;
    while (level < levels && !occupied_[level]) ++level;
    if (level == levels) break;
    const auto slot = static_cast<unsigned>(__builtin_ctzll(occupied_[level]));
    const uint64_t start = (clk_ & ~low_mask(level + 1)) | (uint64_t{slot} << (level_bits * level));
    if (start > target) break;
    occupied_[level] &= ~(uint64_t{1} << slot);
    if (start > clk_) clk_ = start;
    list_head batch;
    splice(wheel_[level][slot], batch);
    while (!batch.empty()) {
      timer* t = of(batch.next);
      t->node.unlink();
      if (t->expires <= now) due.push_back(t->node);
      else if (level == 0) later.push_back(t->node);  // later in the current tick, or it came from beyond the reach
      else place(*t);
    }
  }
  if (target > clk_) clk_ = target;
  while (!later.empty()) {
    timer* t = of(later.next);
    t->node.unlink();
    place(*t);
  }
}

size_t timer_wheel::run(nsec now) {
  if (ICEPATH_LIKELY(now < bound_)) return 0;
  list_head due;
  take_due(now, due);
  bound_ = find_next();
  loose_ = false;
  size_t fired = 0;
  while (!due.empty()) {
    timer* t = of(due.next);
    t->node.unlink();
    --count_;
    ++fired;
    t->fn(t, now);  // t may be gone afterwards
  }
  return fired;
}

nsec timer_wheel::find_next() const {
  for (unsigned level = 0; level < levels; ++level) {
    while (occupied_[level]) {
      const auto slot = static_cast<unsigned>(__builtin_ctzll(occupied_[level]));
      list_head& l = wheel_[level][slot];
      if (l.empty()) {
        occupied_[level] &= ~(uint64_t{1} << slot);
        continue;
      }
      nsec best = ~nsec{0};
      unsigned seen = 0;
      for (list_node* n = l.next; n != &l; n = n->next) {
        if (of(n)->expires < best) best = of(n)->expires;
        // A crowded slot of a coarse level: its start is a bound, and run() at that time spreads it over finer slots.
        if (level && ++seen == long_list)
          return ((clk_ & ~low_mask(level + 1)) | (uint64_t{slot} << (level_bits * level))) << tick_shift;
      }
      return best;
    }
  }
  return ~nsec{0};
}

nsec timer_wheel::next_expiry() const {
  if (loose_) {
    bound_ = find_next();
    loose_ = false;
  }
  return bound_;
}

}  // namespace icepath
