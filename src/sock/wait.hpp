// Waiting: spin for a budget that adapts, then sleep in the kernel on kernel fds, port fds and timers together (DESIGN section 6).
//
// A waiting thread names the stacks its condition depends on. While it spins it polls them; before it sleeps it arms them
// and checks once more, so no wake-up is lost: (a) the peer's device model sees `armed` and writes the FIFO, (b) another thread of this
// process that makes the condition true calls waiter_wake, which is seen by the check or wakes the sleeper.
#pragma once
#include <poll.h>
#include <signal.h>
#include <atomic>
#include "base/types.hpp"
#include "sock/socket.hpp"
#include "stack/stack.hpp"

namespace icepath {

// One round of s, also when another thread is inside: the caller is about to say that nothing is there.
inline void stack_look(stack* s) {
  if (!stack_enter(s)) return;
  stack_poll_inside(s);
  stack_leave(s);
}

struct waiter {                       // one per thread; type-stable, goes to another thread when its own ends
  std::atomic<uint32_t> signaled{0};
  std::atomic<uint32_t> sleeping{0};  // about to sleep on event_fd, or asleep
  std::atomic<uint32_t> poked{0};     // a byte was written to event_fd
  int event_fd = -1;                  // made on first sleep
  uint64_t armed = 0;                 // stacks that nobody else attends while it sleeps
  wait_entry entry;                   // for waiting on one socket (sock_sleeper)
  socket* on = nullptr;
  bool held = false;                  // `on` is kept open by us
  uint32_t sleeper = 0;               // id of the sock_sleeper that stands here, 0: none
  const void* frame = nullptr;        // of the outermost call that waits now
  waiter* next_free = nullptr;
};

// While it lives, a change of readiness of s wakes the calling thread's wait_until.
// With `held` it takes over the caller's sock_hold, which is let go also when the thread is cancelled. Sleepers nest: a signal handler that waits in
// a wait stands in for the outer one, which looks again afterwards.
class sock_sleeper {
 public:
  explicit sock_sleeper(socket* s, bool held = false);
  ~sock_sleeper();
  sock_sleeper(const sock_sleeper&) = delete;

 private:
  waiter* w_;
  socket* outer_;
  bool outer_held_;
  uint32_t id_, outer_id_;
  const void* outer_frame_;
};

// A handler of the program may leave a wait by longjmp. The next wait of the thread, or its next close, finds that the frame of the former one is gone,
// and gives back what it held. here: an address in the caller's frame.
void wait_reap(const void* here);

// Raised by every signal handler that runs in this thread (preload/call_signal.cpp): a wait that spins must end with EINTR as one in the kernel would.
// signals_breaking counts only handlers without SA_RESTART: those alone interrupt a restartable call.
extern constinit thread_local volatile uint32_t signals_seen, signals_breaking;
void wait_forget();                   // in a fork child
waiter* this_waiter();
void waiter_wake(waiter* w);          // any thread, signal-safe

struct wait_plan {
  uint64_t stacks = 0;                // bit n: stack number n
  int (*check)(void* ctx) = nullptr;  // > 0: condition holds, returned by wait_until. Called with no owner word held
  // Cheap look at kernel readiness while spinning, at most every few microseconds; > 0 as above. May be null.
  int (*check_kernel)(void* ctx) = nullptr;
  // Sleep: by default ppoll over fds[0..nfds) plus the wake fds. epoll supplies its own: it must return on any wake fd, kernel event, signal or timeout:
  // 0, with the revents of the wake fds, or -errno.
  int (*sleep)(void* ctx, pollfd* wake, unsigned n, nsec timeout /* ~0 forever */, const sigset_t* mask) = nullptr;
  pollfd* fds = nullptr;
  unsigned nfds = 0;
  void* ctx = nullptr;
  nsec deadline = ~nsec{0};           // absolute
  const sigset_t* mask = nullptr;     // for the sleep, as ppoll
  const uint32_t* since = nullptr;    // signals_breaking (restart) or signals_seen when the call began; null: when wait_until is called
  bool spun = false;                  // the caller has spun already: the first round sleeps
  bool restart = false;               // the call goes on after a handler with SA_RESTART (recv, send without a timeout)
};
// The budget of the calling thread's next spin (0: do not), and what came of a spin that a caller did by itself.
nsec wait_spin_budget();
void wait_spun(bool paid);

// check's or check_kernel's value, 0 at the deadline, -EINTR when a signal handler ran.
int wait_until(const wait_plan& p);

}  // namespace icepath
