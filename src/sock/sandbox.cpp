// A program that is about to set a seccomp filter: from then on only the system calls that it foresaw may be made, and ours are not among them.
// In the thread that sets the filter, before it does; other threads may be in the middle of their calls. Once for the life of the process.
//
//   1. Every connection goes home (in both directions, as before an exec), orphans deliver what they have, nothing is promoted any more.
//   2. The helper thread ends: a filter for all threads (SECCOMP_FILTER_FLAG_TSYNC) would kill the process at the helper's next call. `icepath off` and
//      `icepath ss` find nobody to ask, and read the region only.
//   3. The library steps aside: the epoll sets get the program's own data back, and no descriptor is known any more, so that every call is libc's,
//      with the kernel call that the program made.
// How it fails: a connection that cannot be brought home (its peer does not answer) stays ours, and the library with it; the calls that it needs may be
// forbidden. Another thread that sleeps in one of our waits at this moment wakes to calls of ours. A filter that the kernel refuses has the same effect as
// one that it takes: the process is not accelerated any more.
#include <atomic>

#include "sock/lane.hpp"
#include "sock/mux.hpp"
#include "sock/pool.hpp"
#include "sock/proc.hpp"
#include "stack/helper.hpp"
#include "stack/process.hpp"
#include "stack/stack.hpp"

namespace icepath {
namespace {
std::atomic<bool> in_sandbox{false};
constexpr const char* sandbox_reason = "seccomp filter";

void sandbox_one(socket* s, void*) {
  if (s->state == sock_state::listening) return;
  if (s->fast.load() || s->inherited.load()) sock_demote(s, sandbox_reason);
  lane_unpublish(s, sandbox_reason);
  s->never.store(true);
  s->soft_block.store(false);
  s->reason = sandbox_reason;
}
}  // namespace

bool sandboxed() { return in_sandbox.load(std::memory_order_relaxed); }

void sock_before_sandbox() {
  if (in_sandbox.exchange(true)) return;
  sockets_for_each(sandbox_one, nullptr);
  for (uint16_t i = 0; i < max_stacks; ++i) {
    stack* st = stack_by_no(i);
    if (!st) break;
    lanes_exit(st, true);
  }
  helper_stop();
  bool left = false;
  sockets_for_each([](socket* s, void* any) {
    if (s->ln || s->prefix_len.load() || s->inherited.load()) *static_cast<bool*>(any) = true;
  }, &left);
  if (left) return;
  mux_step_aside();
  fdtable_stop();
}

}  // namespace icepath
