// Byte queue limits (T31): how many bytes may wait in a hardware ring. A pure module: it knows neither drivers nor rings.
//
// The limit is learnt, not configured. It should be just large enough that the ring does not run empty between two
// completions: when the ring starved although the producer had been held back, the limit grows by what was missing; when the
// ring never came close to empty for a whole hold time, the limit shrinks by the smallest surplus seen in that time.
//
// Who may run together: one producer (dql_queued, dql_avail: whoever may write to the ring) and one completer (dql_completed:
// whoever cleans it). dql_reset needs both to be quiet.
//   num_queued   written by the producer (release), read by the completer (acquire)
//   last_obj     the same, ordered by num_queued
//   adj_limit    written by the completer (release), read by the producer (acquire)
// Always holds: adj_limit == limit + num_completed after a completion; all counters are compared modulo 2^32.
// The stop test races with a completion: the driver sets its stop bit, then a full fence, then asks dql_avail again.
#pragma once
#include <atomic>
#include "base/types.hpp"

namespace icepath {

constexpr uint32_t dql_max_object = UINT32_MAX / 16, dql_max_limit = UINT32_MAX / 2 - dql_max_object;

struct dql {
  // Producer's line.
  alignas(64) std::atomic<uint32_t> num_queued{0};  // bytes ever queued
  std::atomic<uint32_t> last_obj{0};                // size of the latest piece queued
  // Completer's line; the producer reads adj_limit.
  alignas(64) std::atomic<uint32_t> adj_limit{0};
  uint32_t limit = 0;
  uint32_t num_completed = 0;                       // bytes ever completed
  uint32_t prev_ovlimit = 0;                        // how far over the limit we were at the last completion
  uint32_t prev_num_queued = 0, prev_last_obj = 0;  // the producer's fields as the last completion saw them
  uint32_t lowest_slack = UINT32_MAX;               // smallest surplus in this hold time
  nsec slack_start = 0;                             // when this hold time began
  nsec slack_hold = sec_ns;
  uint32_t min_limit = 0, max_limit = dql_max_limit;
};

namespace dql_detail {
constexpr uint32_t posdiff(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) > 0 ? a - b : 0; }
}  // namespace dql_detail

// Bytes that may still be queued; negative when the last piece went over the limit (it may: the limit stops the next one).
inline int dql_avail(const dql& d) {
  return static_cast<int>(d.adj_limit.load(std::memory_order_acquire) - d.num_queued.load(std::memory_order_relaxed));
}

// Producer: a piece of `bytes` was given to the ring. Call before the doorbell.
inline void dql_queued(dql& d, uint32_t bytes) {
  d.last_obj.store(bytes, std::memory_order_relaxed);
  d.num_queued.store(d.num_queued.load(std::memory_order_relaxed) + bytes, std::memory_order_release);
}

// Completer: `bytes` left the ring since the last call. Once per clean-up round, not per packet. `now` drives the shrinking
// only: with a constant time the limit grows and never shrinks. More bytes than were queued count as all of them.
inline void dql_completed(dql& d, uint32_t bytes, nsec now = 0) {
  using dql_detail::posdiff;
  const uint32_t queued = d.num_queued.load(std::memory_order_acquire);
  const uint32_t last = d.last_obj.load(std::memory_order_relaxed);
  const uint32_t waiting = queued - d.num_completed;
  if (bytes > waiting) bytes = waiting;
  const uint32_t completed = d.num_completed + bytes, left = queued - completed;
  const bool had_work_before = d.prev_num_queued != d.num_completed;
  const bool all_previous_done = static_cast<int32_t>(completed - d.prev_num_queued) >= 0;
  uint32_t over = posdiff(waiting, d.limit), limit = d.limit;

  if ((over && !left) || (d.prev_ovlimit && all_previous_done)) {
    // Starved: the producer was stopped by the limit, and the ring ran dry (or would have, had nothing been added since).
    limit += posdiff(completed, d.prev_num_queued) + d.prev_ovlimit;
    d.slack_start = now;
    d.lowest_slack = UINT32_MAX;
  } else if (left && had_work_before && !all_previous_done) {
    // Busy during the whole interval. Two intervals' worth of completions would have been enough; the rest is surplus. The
    // last piece may have been large and hung over the limit: that much is not evidence for shrinking less than it.
    uint32_t slack = posdiff(limit + d.prev_ovlimit, 2 * bytes);
    const uint32_t slack_last = d.prev_ovlimit ? posdiff(d.prev_last_obj, d.prev_ovlimit) : 0;
    if (slack_last > slack) slack = slack_last;
    if (slack < d.lowest_slack) d.lowest_slack = slack;
    if (now > d.slack_start + d.slack_hold) {
      limit = posdiff(limit, d.lowest_slack);
      d.slack_start = now;
      d.lowest_slack = UINT32_MAX;
    }
  }
  if (limit < d.min_limit) limit = d.min_limit;
  if (limit > d.max_limit) limit = d.max_limit;
  if (limit != d.limit) {
    d.limit = limit;
    over = 0;
  }
  d.prev_ovlimit = over;
  d.prev_last_obj = last;
  d.num_completed = completed;
  d.prev_num_queued = queued;
  d.adj_limit.store(limit + completed, std::memory_order_release);
}

// Back to the beginning, as when the ring is emptied by force. The configured minimum, maximum and hold time stay.
inline void dql_reset(dql& d) {
  d.num_queued.store(0, std::memory_order_relaxed);
  d.last_obj.store(0, std::memory_order_relaxed);
  d.limit = d.min_limit;
  d.num_completed = d.prev_ovlimit = d.prev_num_queued = d.prev_last_obj = 0;
  d.lowest_slack = UINT32_MAX;
  d.slack_start = 0;
  d.adj_limit.store(d.min_limit, std::memory_order_release);
}

}  // namespace icepath
