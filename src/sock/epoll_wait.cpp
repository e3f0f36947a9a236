// epoll_wait: the fast ready list and the kernel set as one.
// Any number of threads in one set. The ready list is looked at under the set's lock; system calls are made outside of it.
//
// Fairness. A call that finds fast events asks the kernel as well when the ring says that it may have something, when the last look left events
// behind (`hot`), at the 16th call or 50 us after the last look; the kernel then gets at most half of the room, and with room for one
// event the sides take turns. A call that finds nothing fast always asks the kernel, by the ring when it can.
// Sleep. ppoll on the epoll fd and the wake fds: nothing of ours stands in the application's kernel set, so a fork child, another thread
// or a program that inherits the set meets only what the application put there; kernel events are then collected by one more call.
// Failure: a bad event buffer gives EFAULT; events taken from the kernel are always delivered, whatever ends the wait.
#include <algorithm>
#include <cerrno>
#include <climits>
#include "base/clock.hpp"
#include "base/usercopy.hpp"
#include "sock/epoll.hpp"
#include "sock/lane_sys.hpp"
#include "stack/stack.hpp"

namespace icepath {
namespace {

uint64_t next_id() {
  static thread_local uint64_t n [[gnu::tls_model("initial-exec")]] = 0;
  return ++n;
}

struct wait_call {
  epoll* ep;
  int epfd;
  epoll_event* out;
  int max;
  int n = 0;            // events written so far
  int err = 0;
  uint64_t id = next_id();   // with the thread: for merging
  int slot = -1;
  uint64_t planned = 0; // stacks the running wait_until knows
  waiter* self = nullptr;
  bool last = false;    // does not wait: what is not seen now is missed
  bool stale = false;   // the plan must be made anew
};

int kernel_wait(epoll* ep, int epfd, epoll_event* ev, int max, nsec timeout, const sigset_t* mask) {
  int r;
  if (timeout == 0 && !mask) {
    r = real::epoll_wait(epfd, ev, max, 0);
  } else if (!mask && (timeout == ~nsec{0} || (timeout % msec_ns == 0 && timeout / msec_ns <= INT_MAX))) {
    r = real::epoll_wait(epfd, ev, max, timeout == ~nsec{0} ? -1 : static_cast<int>(timeout / msec_ns));
  } else {
    const timespec ts = to_timespec(timeout);
    r = real::epoll_pwait2(epfd, ev, max, timeout == ~nsec{0} ? nullptr : &ts, mask);
  }
  if (ep && r >= 0 && r < max) ep->drained.fetch_add(1, std::memory_order_relaxed);
  return r < 0 ? -errno : r;
}

// Under the lock, before a look at the item: what happens from now on queues it again.
void unqueue(epoll_item* it) {
  epoll* const ep = it->ep;
  epoll_take_incoming(ep);
  if (!it->ready.linked()) return;
  it->ready.unlink();
  ep->nready.store(ep->nready.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
  it->queued.exchange(false, std::memory_order_seq_cst);
}

// Results of the kernel set, in place: cookies are translated, the kick dropped. Returns how many are left.
int translate(wait_call& c, epoll_event* ev, int n) {
  int i = 0;
  while (i < n && !is_cookie(ev[i].data.u64)) ++i;
  if (ICEPATH_LIKELY(i == n)) return n;
  epoll* const ep = c.ep;
  const bool locked = ep->lock.lock();
  bool kicked = false;
  int w = i;
  for (; i < n; ++i) {
    const uint64_t data = ev[i].data.u64;
    if (!is_cookie(data)) { ev[w++] = ev[i]; continue; }
    if (is_kick(data)) { kicked = true; continue; }
    epoll_item* const it = item_of_cookie(data);
    if (!it || it->ep != ep || !it->in_kernel) continue;
    const uint32_t asked = (it->events.load(std::memory_order_relaxed) & ep_bits) | ep_always;
    const uint32_t flags = it->events.load(std::memory_order_relaxed), kernel = it->inner ? asked : sock_poll(it->s).kernel_bits;
    uint32_t bits = ev[i].events & asked & (it->inner ? asked : ep_kernel_part(kernel, flags));
    // Came behind unread fast bytes; when those are still under way, their arrival is the edge.
    if (!(kernel & EPOLLIN) && (bits & EPOLLIN) && !(item_poll(it) & EPOLLIN)) bits &= ~uint32_t{EPOLLIN | EPOLLRDNORM};
    const bool oneshot = flags & EPOLLONESHOT, edge = flags & EPOLLET;
    if (!bits) {                                        // of a lane that has moved meanwhile
      if (oneshot) item_kernel_apply(it, true);
      continue;
    }
    const uint32_t told = it->told.load(std::memory_order_relaxed);
    if (ICEPATH_UNLIKELY(it->echo.load(std::memory_order_relaxed))) {
      it->echo.store(false, std::memory_order_relaxed);
      if (!(bits & ~told) && !it->s->tx_blocked.load(std::memory_order_relaxed)) continue;
    }
    if (oneshot && it->disabled.exchange(true, std::memory_order_relaxed)) continue;
    if (locked && edge) unqueue(it);                    // what it was queued for is in this report
    const uint32_t merged = bits | (it->inner ? 0 : item_poll(it)) | (asked & end_bits(told));
    if (edge && it->s && (merged & EPOLLIN) && !(told & told_end) && (lane_sys::look(it->kfd, POLLRDHUP) & POLLRDHUP))
      it->told.fetch_or(told_end, std::memory_order_relaxed);
    if (it->seen_call == c.id && it->seen_by == &mux_self) {  // the fast side has reported it in this call
      it->seen_bits |= merged;
      c.out[it->seen_at].events |= merged;
      continue;
    }
    if (merged & EPOLLOUT) it->told_out.store(true, std::memory_order_relaxed);
    it->told.fetch_or(merged, std::memory_order_relaxed);
    ev[w].events = merged;
    ev[w].data.u64 = it->data;
    it->seen_call = c.id;
    it->seen_by = &mux_self;
    it->seen_at = static_cast<int>(&ev[w] - c.out);
    it->seen_bits = merged;
    ++w;
  }
  if (locked) epoll_unlock(ep);
  if (kicked) epoll_kick_again(ep);
  return w;
}

// Without the lock. Adds what the kernel has now, at most `room`. What is merged into reports that this call has already takes no room: the kernel is asked
// again for the places that became free, where it cannot tell anything twice by that: all it has told are our cookies, and not all of them yet.
void harvest(wait_call& c, int room) {
  epoll* const ep = c.ep;
  if (room > c.max - c.n) room = c.max - c.n;
  if (room <= 0) return;
  ep->since_look.store(0, std::memory_order_relaxed);
  ep->last_look.store(cycles(), std::memory_order_relaxed);
  ep->hot.store(false, std::memory_order_seq_cst);      // before the look: what a concurrent look leaves behind makes it hot again
  if (ep->ring.is(kready::open) && ep->ring.owner == &mux_self && kready_raised(ep->ring)) kready_ack(ep->ring, c.epfd);
  for (uint32_t asked = 0;;) {
    const int r = kernel_wait(ep, c.epfd, c.out + c.n, room, 0, nullptr);
    if (r < 0) { if (r != -EINTR && !asked) c.err = r; return; }
    if (r == 0) { ep->empty_looks.fetch_add(1, std::memory_order_relaxed); return; }
    ep->hot.store(true, std::memory_order_release);
    const bool again = r == room && std::all_of(c.out + c.n, c.out + c.n + r, [](const epoll_event& e) { return is_cookie(e.data.u64); });
    const int left = translate(c, c.out + c.n, r);
    c.n += left;
    asked += static_cast<uint32_t>(r);
    room -= left;
    if (ICEPATH_LIKELY(!again || left == r) || asked >= ep->in_kernel.load(std::memory_order_relaxed) || room <= 0) return;
  }
}

// Under the lock. Adds what is ready on the fast side.
void collect(wait_call& c, int room) {
  epoll* const ep = c.ep;
  epoll_take_incoming(ep);
  list_node* const last = ep->ready.prev;               // what is put back goes behind it: one round
  uint32_t nready = ep->nready.load(std::memory_order_relaxed);
  bool more = !ep->ready.empty();
  while (more && c.n < room) {
    list_node* const node = ep->ready.next;
    more = node != last;
    epoll_item* const it = list_entry<epoll_item, &epoll_item::ready>(node);
    node->unlink();
    --nready;
    it->queued.exchange(false, std::memory_order_seq_cst);
    if (it->dead.load(std::memory_order_relaxed) || it->disabled.load(std::memory_order_relaxed)) continue;
    uint32_t bits = item_poll(it);
    const uint32_t flags = it->events.load(std::memory_order_relaxed);
    // One report: the bits the kernel answers belong to it. They are the whole report of an edge whose own bits are gone again (data that was read).
    if (it->in_kernel && it->kcookie && it->s && ((flags & EPOLLET) || bits)) {
      const uint32_t now = static_cast<uint16_t>(lane_sys::look(it->kfd, static_cast<short>((it->kreg & 0x3fff) | POLLRDHUP)));
      bits |= now & ((flags & ep_bits) | ep_always) & ep_expand_kernel(sock_poll(it->s).kernel_bits);
      bits |= flags & end_bits(it->told.load(std::memory_order_relaxed));
      if ((flags & (EPOLLET | EPOLLONESHOT)) && (bits & EPOLLIN) && (now & POLLRDHUP)) it->told.fetch_or(told_end, std::memory_order_relaxed);
    }
    if (!bits) continue;
    if (bits & EPOLLOUT) it->told_out.store(true, std::memory_order_relaxed);
    it->told.fetch_or(bits, std::memory_order_relaxed);
    epoll_event ev;
    const bool again = it->seen_call == c.id && it->seen_by == &mux_self;
    ev.events = bits | (again ? it->seen_bits : 0);
    ev.data.u64 = it->data;
    if (copy_to_user(c.out + (again ? it->seen_at : c.n), &ev, sizeof ev)) {
      if (!it->queued.exchange(true, std::memory_order_seq_cst)) { ep->ready.push_front(it->ready); ++nready; }
      c.err = -EFAULT;
      break;
    }
    if (!again) {
      it->seen_call = c.id;
      it->seen_by = &mux_self;
      it->seen_at = c.n++;
    }
    it->seen_bits = ev.events;
    if (flags & EPOLLONESHOT) {
      it->disabled.store(true, std::memory_order_relaxed);
      item_kernel_del(it);
    } else if (!(flags & EPOLLET) && !it->queued.exchange(true, std::memory_order_seq_cst)) {
      ep->ready.push_back(it->ready);
      ++nready;
    }
  }
  ep->nready.store(nready, std::memory_order_relaxed);
}

bool kernel_members(const epoll* ep) {
  return ep->foreign.load(std::memory_order_relaxed) || ep->in_kernel.load(std::memory_order_relaxed);
}

// May the kernel set have something? The ring knows, or is made when asking in vain goes on. A ring of another thread may have ended with it: it spares
// most of the looks, not all.
bool kernel_maybe(epoll* ep, int epfd) {
  if (!kernel_members(ep)) return false;
  if (ep->ring.is(kready::open)) {
    if (ep->hot.load(std::memory_order_acquire) || kready_raised(ep->ring)) return true;
    return ep->ring.owner != &mux_self && (ep->since_look.fetch_add(1, std::memory_order_relaxed) >= 15 ||
                                           cycles() - ep->last_look.load(std::memory_order_relaxed) > ns_to_cycles(50 * usec_ns));
  }
  if (ep->ring.is(kready::none) && ep->empty_looks.load(std::memory_order_relaxed) >= 32 && ep->refs.load(std::memory_order_relaxed)) {
    no_signals block;                                   // a handler must not meet a ring half made
    if (ep->lock.lock()) {
      if (ep->ring.is(kready::none)) {
        ep->hot.store(true, std::memory_order_relaxed);
        kready_open(ep->ring, epfd, &mux_self);
      }
      epoll_unlock(ep);
    }
  }
  return true;
}

void poll_stacks(uint64_t stacks, bool last) {
  for (; stacks; stacks &= stacks - 1)
    if (stack* const st = stack_by_no(static_cast<uint16_t>(__builtin_ctzll(stacks)))) last ? stack_look(st) : static_cast<void>(stack_poll(st));
}

// One look at both sides, no sleep.
void look(wait_call& c) {
  epoll* const ep = c.ep;
  const bool fast = epoll_fast_pending(ep);
  bool kernel = kernel_members(ep);
  if (fast && kernel) {
    const bool due = c.last || ep->since_look.fetch_add(1, std::memory_order_relaxed) >= 15 ||
                     cycles() - ep->last_look.load(std::memory_order_relaxed) > ns_to_cycles(50 * usec_ns);
    kernel = due || ep->hot.load(std::memory_order_acquire) || (ep->ring.is(kready::open) && kready_raised(ep->ring));
    if (kernel && c.max == 1) {
      kernel = ep->kernel_turn;
      ep->kernel_turn = !ep->kernel_turn;
    }
    if (kernel && c.max > 1 && ep->lock.lock()) {         // half of the room for the fast side, then the kernel's, then what is left
      collect(c, c.max / 2);
      epoll_unlock(ep);
    }
    if (kernel) harvest(c, c.max);
  }
  if (fast && ep->lock.lock()) {
    collect(c, c.max);
    epoll_unlock(ep);
  }
  if (c.n == 0 && !c.err && kernel_members(ep) && (!(fast && kernel) || c.max == 1)) {
    ep->refs.fetch_add(1, std::memory_order_acq_rel);   // the ring may be made here: the set must not go meanwhile
    const bool ask = fd_lookup(c.epfd) != ep || ep->gone.load(std::memory_order_acquire) || kernel_maybe(ep, c.epfd);
    epoll_put(ep);
    if (ask) harvest(c, c.max);
  }
}

int result_of(wait_call& c) { return c.n ? c.n : c.err; }

// ---- what wait_until calls

int on_check(void* ctx) {
  wait_call& c = *static_cast<wait_call*>(ctx);
  epoll* const ep = c.ep;
  if (c.n || c.err || c.stale) return 1;
  if (c.slot >= 0 && ep->slots[c.slot].load(std::memory_order_relaxed) != c.self) {
    ep->waiting.fetch_sub(1, std::memory_order_relaxed);   // a waker took it: offer ourselves again, then look
    c.slot = slot_publish(ep->slots, ep->waiting, c.self);
  }
  if (epoll_fast_pending(ep) && ep->lock.lock()) {
    collect(c, c.max);
    epoll_unlock(ep);
  }
  if (c.n || c.err) return 1;
  if (ep->gone.load(std::memory_order_relaxed)) c.err = -EBADF;
  else if (epoll_stacks(ep) & ~c.planned) c.stale = true;
  return c.err || c.stale;
}

int on_check_kernel(void* ctx) {
  wait_call& c = *static_cast<wait_call*>(ctx);
  if (c.n || c.err) return 1;
  if (!kernel_maybe(c.ep, c.epfd)) return 0;
  harvest(c, c.max);
  return c.n || c.err;
}

int on_sleep(void* ctx, pollfd* wake, unsigned n, nsec timeout, const sigset_t* mask) {
  wait_call& c = *static_cast<wait_call*>(ctx);
  pollfd f[1 + 80];
  if (n > 80) n = 80;
  f[0] = {c.epfd, POLLIN, 0};
  std::copy_n(wake, n, f + 1);
  const timespec ts = to_timespec(timeout);
  const int r = real::ppoll(f, 1 + n, timeout == ~nsec{0} ? nullptr : &ts, mask);
  if (r < 0) return -errno;
  std::copy_n(f + 1, n, wake);
  if (f[0].revents & POLLNVAL) { c.err = -EBADF; return 0; }
  if (f[0].revents) harvest(c, c.max);
  return 0;
}

int wait_mixed(epoll* ep, wait_call& c, nsec deadline, const sigset_t* mask) {
  ep->refs.fetch_add(1, std::memory_order_acq_rel);
  if (fd_lost(c.epfd, ep) || ep->gone.load(std::memory_order_acquire)) {
    epoll_put(ep);
    return -EBADF;
  }
  c.self = this_waiter();
  c.slot = slot_publish(ep->slots, ep->waiting, c.self);
  const stack* const own = stack_of_thread();
  int r;
  do {
    c.stale = false;
    c.planned = epoll_stacks(ep) | (own && own->no < 64 ? uint64_t{1} << own->no : 0);
    wait_plan p;
    p.stacks = c.planned;
    p.check = on_check;
    p.check_kernel = on_check_kernel;
    p.sleep = on_sleep;
    p.ctx = &c;
    p.mask = mask;
    p.deadline = deadline;
    if (ICEPATH_UNLIKELY(c.slot < 0)) {                      // nobody can wake us: look every few milliseconds
      const nsec piece = clock_now() + 5 * msec_ns;
      if (piece < deadline) p.deadline = piece;
    }
    r = wait_until(p);
    if (r == 0 && p.deadline < deadline) c.stale = true;
  } while (c.stale && !c.n && !c.err && r >= 0);
  slot_withdraw(ep->slots, ep->waiting, c.slot, c.self);
  // We may have taken a wake-up and leave with something else: pass it on.
  if (ep->waiting.load(std::memory_order_seq_cst) && epoll_fast_pending(ep)) epoll_notify(ep);
  epoll_put(ep);
  if (c.n || c.err) return result_of(c);
  return r < 0 ? r : 0;
}

}  // namespace

int mux_epoll_wait(int epfd, epoll_event* ev, int max, nsec timeout, const sigset_t* mask) {
  epoll* const ep = as_epoll(fd_lookup(epfd));
  if (!ep) return kernel_wait(nullptr, epfd, ev, max, timeout, mask);
  if (max <= 0 || max > static_cast<int>(INT_MAX / sizeof(epoll_event))) return -EINVAL;
  if (ICEPATH_UNLIKELY(ep->inherited.load(std::memory_order_relaxed))) epoll_claim(ep);
  wait_call c{ep, epfd, ev, max};
  nsec deadline = ~nsec{0};
  const bool timed = timeout != 0 && timeout != ~nsec{0};
  for (;;) {
    const uint64_t stacks = epoll_stacks(ep);
    if (!stacks && !epoll_fast_pending(ep)) {           // the kernel's alone
      if (timeout == 0) {
        const int r = kernel_wait(ep, epfd, ev, max, 0, mask);
        return r > 0 ? translate(c, ev, r) : r;
      }
      const nsec began = timed ? clock_now() : 0;
      ep->plain.fetch_add(1, std::memory_order_seq_cst);  // partner: item_set_stack
      int r = 0;
      const bool still = !epoll_stacks(ep) && !epoll_fast_pending(ep);
      if (still) r = kernel_wait(ep, epfd, ev, max, timeout, mask);
      ep->plain.fetch_sub(1, std::memory_order_seq_cst);
      if (still && r <= 0) return r;
      if (still) r = translate(c, ev, r);
      if (r) return r;
      if (timed) {                                      // kicked, or all filtered: go on with the time that is left
        const nsec now = clock_now(), end = began + timeout;
        timeout = end > now ? end - now : 0;
      }
      continue;
    }
    poll_stacks(stacks, timeout == 0);
    c.last = timeout == 0;
    look(c);
    if (c.n || c.err || timeout == 0) return result_of(c);
    if (timed && deadline == ~nsec{0}) {
      const nsec now = clock_now();
      deadline = now + timeout < now ? ~nsec{0} : now + timeout;
    }
    return wait_mixed(ep, c, deadline, mask);
  }
}

}  // namespace icepath
