// A stack: one thread's TCP/IP instance (DESIGN section 4): struct net, a local port, timers, counters.
//
// Owner word: a stack is used only between stack_enter and stack_leave. Uncontended: one CAS. The word holds the owner's
// thread id. Inside, the signal gate (base/sig_gate.hpp) is closed: handlers of the program run after the leave. A handler the gate does not
// hold back (set before the library was active) sees that it must not wait: stack_enter returns false, hand the work to the backlog. At leave, the backlog (lock-free, Boost.Lockfree) is run; an item pushed while somebody owns the word
// is never stranded: the pusher re-checks the word after pushing.
//
// Who polls: the thread that is in a call on one of the stack's sockets (stack_poll); when it stays away for a short silence while
// connections live, the helper thread does (timers, ACKs, retransmits go on while the application computes).
// Sleeping: a thread that will sleep calls stack_arm on every stack it waits for, then sleeps on stack_wake_fd; the peer's device model or
// stack_kick makes that fd readable. Whoever uses a stack meanwhile leaves nothing undone that only a poll would do: stack_leave runs the lane work,
// and kicks the sleeper for a timer earlier than the one it waits for. A sleeper that returns although no peer woke it (a timeout, a kernel fd) leaves the
// stack armed in the helper's name (stack_rest): nothing is written and nobody wakes, until a peer sends or the thread uses the stack in earnest.
#pragma once
#include <atomic>
#include "base/clock.hpp"
#include "base/list.hpp"
#include "net/net.hpp"

namespace icepath {

struct local_port;
struct stack;

struct backlog_item {                 // owned by whoever allocated it until fn has run
  void (*fn)(stack*, backlog_item*);
  backlog_item* next;
};

struct stack {
  struct net net;
  uint16_t no = 0;
  local_port* port = nullptr;
  int sleep_fd = -1;                                  // with a wire port: an epoll descriptor over all that wakes a sleeper. Set inside, once
  alignas(64) std::atomic<uint32_t> owner{0};         // 0, or the tid of the thread inside; bit 31: somebody sleeps on it
  std::atomic<uint32_t> want{0};                      // contenders: a spinning owner must let go
  std::atomic<backlog_item*> backlog{nullptr};        // MPSC: pushed by anybody, run at leave
  alignas(64) std::atomic<nsec> last_poll{0};         // for the helper thread
  std::atomic<bool> armed{false};                     // somebody sleeps on the wake fd and the port knows. Written inside
  std::atomic<bool> helper_armed{false};              // that somebody is the helper thread. Written inside, together with `armed`
  bool helper_watches = false;                        // the wake fd is in the helper's epoll set. Inside
  std::atomic<nsec> expect_at{~nsec{0}};              // the helper looks then, whoever attends: a lane is going home
  std::atomic<uint32_t> sockets{0};                   // sockets published or promoted here
  std::atomic<bool> in_use{false};                    // owned by a live thread
  nsec timers_due = 0;                                // timers are looked at from then on
  nsec armed_until = ~nsec{0};                        // armed: the sleeper returns then at the latest. Inside
  uint32_t busy_rounds = 0;
  uint32_t calm = 0;                                  // sleeps in a row that no peer ended. Inside
  tsc_clock clock;                                    // inside only
  list_head lane_work;                                // lanes that something happened to (src/sock/lane.cpp), run at the end of a poll
  void (*lane_work_fn)(stack*) = nullptr;
};

// A port to the outside for this stack; wake_fd is readable while packets wait. Inside; once. 0 or -errno.
int stack_add_wire(stack* s, net_device* dev, int wake_fd);
// The time of the stack: net.now, by the one clock that all who are inside use. Never back: TCP measures by its differences. Inside.
inline void stack_tick(stack* s) {
  const nsec t = s->clock.now();
  if (t > s->net.now) s->net.now = t;
}
stack* stack_of_thread();                 // the calling thread's stack, made on first use; nullptr: none to be had
stack* stack_mine();                      // the calling thread's, or nullptr when it has none yet; one load
uint32_t stack_thread_id();
stack* stack_by_no(uint16_t no);          // nullptr when never made
bool stack_enter(stack* s);               // false only when the calling thread is already inside (signal handler)
bool stack_try_enter(stack* s);           // never waits
void stack_leave(stack* s);
void stack_defer(stack* s, backlog_item* it);  // run it under the owner word, soon; any thread, signal-safe
// One round: attach work, rx_burst -> netif_receive_skb, clean_tx, timers, qdiscs. Must be inside. True when something was done.
bool stack_poll_inside(stack* s);
// The helper attends s: not any more, from now on the caller does. Inside.
void stack_take_over(stack* s);
bool stack_receive_inside(stack* s);      // the receive part of a round only: no timers, no lane work. True when something came
// enter + poll + leave; does nothing when another thread is inside. True when something was done.
bool stack_poll(stack* s);
// Before sleeping. False: there is work, poll again. *next: when a timer is due, ~0 none; the sleeper runs it (stack_poll). When somebody arms
// an earlier one meanwhile, his leave makes the sleeper return.
bool stack_arm(stack* s, nsec* next, bool by_helper = false);
void stack_disarm(stack* s, bool woke = false);   // woke: its wake fd is readable
// After a sleep that nobody on the stack ended: runs the timers, and leaves the stack armed, in the helper thread's name. False: something came, or the
// helper cannot watch; disarm as usual.
bool stack_rest(stack* s);
// The helper found the wake fd readable. True: it was the helper's to take, s is not armed any more. False: a sleeper's, or stray (taken).
bool stack_woke_helper(stack* s);
int stack_wake_fd(const stack* s);
void stack_kick(stack* s);                // make sleepers return; any thread, signal-safe
void stack_abandon(uint64_t mask);        // a thread that slept on these stacks has ended in its sleep: others attend again
nsec stack_next_timer(stack* s);          // absolute; ~0 none
void stacks_forget();                     // in a fork child
bool stack_is_helper_thread();

// The port's attach and detach, for promotion (inside).
enum class stack_attach { ready, pending, failed };
struct stack_id { uint32_t process_slot; uint16_t stack_no; uint64_t process_cookie; };
stack_id stack_self(const stack* s);
stack_attach stack_attach_peer(stack* s, const stack_id& peer, uint16_t* txq, uint8_t mac[6]);
void stack_detach_peer(stack* s, const stack_id& peer);
int stack_peer_pid(stack* s, const stack_id& peer);   // as it says itself; 0: this process, or not attached
// What a peer process (dead or alive) has published in its row `row` as its count of fast bytes; false when its memory is not mapped any more.
bool stack_peer_row_sent(stack* s, const stack_id& peer, uint32_t row, uint64_t* bytes);

}  // namespace icepath
