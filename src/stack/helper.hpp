// The helper thread (DESIGN section 4): asleep while application threads attend their stacks; all signals blocked.
//  - a stack with live sockets that nobody has polled for `silence` is polled, then armed, by the helper: ACKs, timers and retransmits go on
//    while the application computes;
//  - kernel lanes of promoted connections are watched here, and the peers' processes (pidfd): a dead or demoting peer is noticed at once;
//  - the control mailbox (`icepath off|on|ss`) is answered here.
// An idle process uses no CPU: the helper parks (no timeout) when every stack is attended by a sleeper or armed by itself. Whoever ends that, after he
// has taken the arming away, calls helper_unpark.
#pragma once
#include <cstdint>
#include "base/types.hpp"

namespace icepath {

struct stack;
constexpr nsec helper_silence = 2 * msec_ns;

bool helper_start();                       // idempotent
void helper_forget();                      // in a fork child
void helper_stop();                        // ends it for good and waits for that; not from the helper thread itself, nor while lanes need it
void helper_unpark();                      // an application thread has woken: somebody may stop attending
// A timer that nobody else may look at is due at `next` (~0: none): of a stack that is armed in the helper's name, or of a lane that is going home while its
// thread may stay away. The helper will be awake then.
void helper_expect(nsec next);
// s's wake fd is in the helper's set; inside s. It stays there until a byte comes that is not for the helper.
bool helper_watch_stack(stack* s);
void helper_unwatch_stack(stack* s);
// Kernel lane watching. fn runs on the helper thread, with no owner word held. key is given back to fn.
bool helper_watch(int fd, uint64_t key);
void helper_unwatch(int fd);
// The process in that slot is a peer from now on: its death is told even when its kernel lanes stay open, in a fork child of it. Any thread; idempotent.
void helper_watch_peer(uint32_t slot, uint64_t cookie, int pid);
struct helper_handlers {
  void (*lane_event)(uint64_t key, uint32_t events);
  void (*peer_died)(uint32_t slot, uint64_t cookie);
  int (*control)(uint32_t cmd, uint64_t arg, uint32_t* count);
  nsec (*wire)(nsec now);                  // the host's tables have changed, or it is time to look. When to look again, ~0: when something comes
};
// The mirror of the host's tables (wire_port.hpp) is looked after by the helper: when fd is readable, and when helper_wire_due says so. Any thread.
void helper_watch_wire(int fd);
void helper_wire_due(nsec at);
void helper_set_handlers(const helper_handlers& h);

}  // namespace icepath
