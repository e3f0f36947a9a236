// See wait.hpp. Runs in the waiting thread.
//
// Spin budget, per thread: waits that ended soon (whether spinning or asleep) raise it to `spin_max`, waits that did not halve it; a wait in which the thread
// lost the processor clears it for a while. So a thread that is answered within microseconds spins, one that idles does not, and with more
// runnable threads than processors spinning stops by itself: what is left of it are offers of the processor (sched_yield) to those who have work, which
// is cheaper than to sleep and be woken. ICEPATH_SPIN_USEC fixes it.
#include "sock/wait.hpp"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <new>

#include "base/clock.hpp"
#include "base/config.hpp"
#include "base/raw_syscall.hpp"
#include "base/sig_gate.hpp"
#include "base/alloc.hpp"
#include "base/libc.hpp"
#include "stack/helper.hpp"
#include "stack/process.hpp"
#include "stack/stack.hpp"

namespace icepath {

constinit thread_local volatile uint32_t signals_seen __attribute__((tls_model("initial-exec"))) = 0;
constinit thread_local volatile uint32_t signals_breaking __attribute__((tls_model("initial-exec"))) = 0;

namespace {

constexpr nsec spin_max = 60 * usec_ns, soon = 150 * usec_ns, yield_after = 4 * usec_ns, lost_cpu = 400 * usec_ns;

struct spin_state {
  nsec budget = spin_max;
  uint32_t rest = 0;          // waits to come without spinning
};
thread_local spin_state spin __attribute__((tls_model("initial-exec")));
thread_local waiter* mine __attribute__((tls_model("initial-exec"))) = nullptr;

std::atomic<uint32_t> lock{0};
waiter* free_waiters = nullptr;
pthread_key_t key;
bool key_made = false;

void gone(void* p) {
  auto* w = static_cast<waiter*>(p);
  w->sleeping.store(0, std::memory_order_relaxed);
  if (w->armed) stack_abandon(w->armed);
  w->armed = 0;
  if (socket* s = w->on) {  // the thread was cancelled in its sleep
    sock_del_waiter(s, &w->entry);
    w->on = nullptr;
    if (w->held) sock_put(s);
    w->held = false;
  }
  while (lock.exchange(1, std::memory_order_acquire)) cpu_relax();
  w->next_free = free_waiters;
  free_waiters = w;
  lock.store(0, std::memory_order_release);
}

void entry_wake(wait_entry* e, uint32_t) {
  waiter_wake(reinterpret_cast<waiter*>(reinterpret_cast<char*>(e) - __builtin_offsetof(waiter, entry)));
}

nsec budget_now() {
  const int32_t fixed = config_get().spin_usec;
  if (fixed >= 0) return static_cast<nsec>(fixed) * usec_ns;
  if (spin.rest) { --spin.rest; return 0; }
  return spin.budget;
}

void learn(nsec waited, bool preempted) {
  if (preempted) { spin.rest = 64; spin.budget = spin_max; return; }
  if (waited < soon) spin.budget = spin_max;
  else spin.budget = spin.budget > 2 * usec_ns ? spin.budget / 2 : 0;
}

template <class F>
void each_stack(uint64_t mask, F f) {
  for (; mask; mask &= mask - 1)
    if (stack* s = stack_by_no(static_cast<uint16_t>(__builtin_ctzll(mask)))) f(s);
}

// The event fd stays readable until somebody reads it; `signaled` may have been taken before the byte was seen.
void drain(waiter* w) {
  if (w->poked.load(std::memory_order_relaxed) == 0 || w->poked.exchange(0, std::memory_order_acquire) == 0) return;
  uint64_t v;
  raw_syscall(SYS_read, w->event_fd, &v, sizeof v);
}

int plain_sleep(const wait_plan& p, pollfd* wake, unsigned n, nsec timeout, const sigset_t* mask) {
  pollfd few[80];
  pollfd* f = p.nfds + n <= 80 ? few : static_cast<pollfd*>(mem_alloc((p.nfds + n) * sizeof(pollfd)));
  if (!f) return -ENOMEM;
  for (unsigned i = 0; i < p.nfds; ++i) f[i] = {p.fds[i].fd, p.fds[i].events, 0};
  std::copy_n(wake, n, f + p.nfds);
  const timespec ts{static_cast<time_t>(timeout / sec_ns), static_cast<long>(timeout % sec_ns)};
  const int r = real::ppoll(f, p.nfds + n, timeout == ~nsec{0} ? nullptr : &ts, mask);
  const int e = r < 0 ? errno : 0;
  for (unsigned i = 0; i < p.nfds; ++i) p.fds[i].revents = r > 0 ? f[i].revents : short{0};
  if (r > 0) std::copy_n(f + p.nfds, n, wake);
  if (f != few) mem_free(f);
  return -e;
}

// rang: stacks whose wake fd ended the sleep; all, when that is not known.
int sleep_once(const wait_plan& p, waiter* w, nsec timeout, const sigset_t* mask, uint64_t* rang) {
  pollfd wake[66];
  unsigned n = 0;
  each_stack(p.stacks, [&](stack* s) { wake[n++] = {stack_wake_fd(s), POLLIN, 0}; });
  if (w->event_fd >= 0) wake[n++] = {w->event_fd, POLLIN, 0};
  const int r = p.sleep ? p.sleep(p.ctx, wake, n, timeout, mask) : plain_sleep(p, wake, n, timeout, mask);
  *rang = r < 0 ? p.stacks : 0;
  n = 0;
  each_stack(p.stacks, [&](stack* s) { if (wake[n++].revents) *rang |= uint64_t{1} << s->no; });
  return r;
}

}  // namespace

nsec wait_spin_budget() { return budget_now(); }
void wait_spun(bool paid) {
  if (paid) learn(0, false);
}

waiter* this_waiter() {
  if (ICEPATH_LIKELY(mine != nullptr)) return mine;
  while (lock.exchange(1, std::memory_order_acquire)) cpu_relax();
  if (!key_made) key_made = pthread_key_create(&key, gone) == 0;
  waiter* w = free_waiters;
  if (w) free_waiters = w->next_free;
  lock.store(0, std::memory_order_release);
  if (!w) {
    void* m = mem_alloc(sizeof(waiter));
    if (!m) { static waiter last_resort; return &last_resort; }
    w = new (m) waiter;
  }
  w->entry.fn = entry_wake;
  w->signaled.store(0, std::memory_order_relaxed);
  if (key_made) pthread_setspecific(key, w);
  mine = w;
  return w;
}

void wait_forget() {
  lock.store(0);
  free_waiters = nullptr;
  mine = nullptr;
}

void waiter_wake(waiter* w) {
  w->signaled.store(1, std::memory_order_seq_cst);  // partner: wait_until, which sets `sleeping` and then looks at `signaled`
  if (w->sleeping.load(std::memory_order_seq_cst) && w->event_fd >= 0) {
    const uint64_t one = 1;
    raw_syscall(SYS_write, w->event_fd, &one, sizeof one);
    w->poked.store(1, std::memory_order_release);  // after the write: whoever sees it finds the byte (drain)
  }
}

void wait_reap(const void* here) {
  waiter* const w = mine;
  if (ICEPATH_LIKELY(!w || !w->frame) || here < w->frame) return;   // a handler over the wait stands deeper
  stack_t alt{};
  if (sigaltstack(nullptr, &alt) != 0 || (alt.ss_flags & SS_ONSTACK)) return;   // a handler on a stack of its own: nothing can be said
  const closed_gate no_handlers;
  w->frame = nullptr;
  w->sleeper = 0;
  w->sleeping.store(0, std::memory_order_relaxed);
  if (w->armed) stack_abandon(w->armed);
  w->armed = 0;
  if (socket* const s = w->on) {
    sock_del_waiter(s, &w->entry);
    w->on = nullptr;
    if (w->held) sock_put(s);
    w->held = false;
  }
}

sock_sleeper::sock_sleeper(socket* s, bool held) : w_(this_waiter()) {
  static std::atomic<uint32_t> ids{0};
  wait_reap(this);
  const closed_gate no_handlers;
  outer_ = w_->on;
  outer_held_ = w_->held;
  outer_id_ = w_->sleeper;
  outer_frame_ = w_->frame;
  do id_ = ids.fetch_add(1, std::memory_order_relaxed) + 1;
  while (id_ == 0);
  if (outer_) sock_del_waiter(outer_, &w_->entry);
  w_->on = s;
  w_->held = held;
  w_->sleeper = id_;
  if (!w_->frame) w_->frame = this;
  sock_add_waiter(s, &w_->entry);
}
sock_sleeper::~sock_sleeper() {
  const closed_gate no_handlers;
  if (ICEPATH_UNLIKELY(w_->sleeper != id_)) return;   // reaped
  w_->sleeper = outer_id_;
  w_->frame = outer_frame_;
  socket* const s = w_->on;
  const bool held = w_->held;
  sock_del_waiter(s, &w_->entry);
  w_->on = outer_;
  w_->held = outer_held_;
  if (outer_) {
    sock_add_waiter(outer_, &w_->entry);
    w_->signaled.store(1, std::memory_order_relaxed);
  }
  if (held) sock_put(s);
}

int wait_until(const wait_plan& p) {
  waiter* const w = this_waiter();
  if (ICEPATH_UNLIKELY(w->frame != nullptr) && !w->sleeper) wait_reap(__builtin_frame_address(0));
  const volatile uint32_t& signals = p.restart ? signals_breaking : signals_seen;
  const uint32_t sig0 = p.since ? *p.since : signals;
  int r;
  if ((r = p.check(p.ctx)) > 0) return r;
  const uint64_t began = cycles();
  bool first = true;
  for (;;) {
    // Spin.
    const nsec budget = first && p.spun ? 0 : budget_now();
    first = false;
    bool preempted = false;
    if (budget) {
      const uint64_t t0 = cycles(), per_us = cycles_per_2_20_ns() / 1048, end = budget * per_us / 1000;
      uint64_t last = t0, asked = t0;
      for (;;) {
        bool did = false;
        each_stack(p.stacks, [&](stack* s) { did |= stack_poll(s); });
        if (did || w->signaled.load(std::memory_order_relaxed)) {
          w->signaled.store(0, std::memory_order_relaxed);
          if ((r = p.check(p.ctx)) > 0) { learn(0, false); return r; }
        }
        const uint64_t t = cycles();
        if (t - last > lost_cpu * per_us / 1000) preempted = true;
        last = t;
        if (p.check_kernel && t - asked > 4 * per_us) {
          asked = t;
          if ((r = p.check_kernel(p.ctx)) > 0) return r;
        }
        if (signals != sig0) return -EINTR;
        if (t - t0 > end || preempted) break;
        if (p.deadline != ~nsec{0} && clock_now() >= p.deadline) break;
        if (t - t0 > yield_after * per_us / 1000) sched_yield(); else cpu_relax();
      }
    }
    // Sleep. Armed first, then one more look: whatever happens after the look finds somebody to wake.
    if (w->event_fd < 0) {
      const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
      if (fd >= 0) { w->event_fd = process_move_high(fd); process_fd_add_internal(w->event_fd); }
    }
    w->sleeping.store(1, std::memory_order_seq_cst);
    bool attended = false;   // we take stacks from the helper thread's care
    bool work = w->signaled.exchange(0, std::memory_order_seq_cst) != 0;
    nsec wake_at = p.deadline;
    each_stack(p.stacks, [&](stack* s) {
      if (s->sockets.load(std::memory_order_relaxed) == 0) return;
      nsec t;
      attended = true;
      if (!stack_arm(s, &t)) work = true;
      if (t != ~nsec{0} && t + timer_wheel::tick < wake_at) wake_at = t + timer_wheel::tick;   // before, it would be looked at in vain
    });
    if ((r = p.check(p.ctx)) > 0 || work || (p.check_kernel && (r = p.check_kernel(p.ctx)) > 0)) {
      w->sleeping.store(0, std::memory_order_relaxed);
      each_stack(p.stacks, [&](stack* s) { if (s->armed.load(std::memory_order_relaxed)) stack_disarm(s); stack_poll(s); });
      if (attended) helper_unpark();
      if (r > 0) return r;
      if ((r = p.check(p.ctx)) > 0) return r;
      if (signals != sig0) return -EINTR;
      if (p.deadline != ~nsec{0} && clock_now() >= p.deadline) return 0;
      continue;
    }
    nsec timeout = ~nsec{0};
    if (wake_at != ~nsec{0}) {
      const nsec now = clock_now();
      timeout = wake_at > now ? wake_at - now : 0;
    }
    // A handler that runs between the last look and the sleep must end the sleep: signals are let in by the sleep itself.
    int slept = 0;
    uint64_t rang = 0;
    if (timeout != 0) {
      sigset_t all, mask;
      sigfillset(&all);
      raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &mask, _NSIG / 8);
      const void* const outer = w->frame;
      const uint64_t outer_armed = w->armed;
      if (!outer) w->frame = __builtin_frame_address(0);
      w->armed = outer_armed | p.stacks;
      slept = signals != sig0 ? -EINTR : sleep_once(p, w, timeout, p.mask ? p.mask : &mask, &rang);
      w->armed = outer_armed;
      w->frame = outer;
      raw_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, nullptr, _NSIG / 8);
    }
    w->sleeping.store(0, std::memory_order_relaxed);
    w->signaled.store(0, std::memory_order_relaxed);  // the checks below look at everything
    drain(w);
    bool others = false;
    each_stack(p.stacks, [&](stack* s) {
      mib_add(s->net.stats->StackSleeps);
      const bool woke = rang >> s->no & 1;
      if (!woke && stack_rest(s)) return;
      if (s->sockets.load(std::memory_order_relaxed) != 0) others = true;
      if (woke || s->armed.load(std::memory_order_relaxed)) stack_disarm(s, woke);
      stack_poll(s);
    });
    if (attended && others) helper_unpark();   // not before: he would find the stacks attended, and park again
    learn(cycles_to_ns(cycles() - began), preempted);
    if ((r = p.check(p.ctx)) > 0) return r;
    if (p.check_kernel && (r = p.check_kernel(p.ctx)) > 0) return r;
    if (signals != sig0 || (slept == -EINTR && !p.restart)) return -EINTR;
    if (slept < 0 && slept != -EINTR) return slept;
    if (p.deadline != ~nsec{0} && clock_now() >= p.deadline) return 0;
  }
}

}  // namespace icepath
