// poll, ppoll, and the wait that select shares with them.
// Runs in the calling thread; nothing is shared but the wait entries, which come from a type-stable pool and are linked into the sockets only
// while the call blocks. What is reported is complete: when anything is ready, both sides are asked about every descriptor.
// The kernel's order is kept: events before signals, signals before the timeout; a signal that `mask` admits ends a call that
// found nothing, even with timeout 0.
// Failure: EFAULT for a bad array; without memory for a large set, ENOMEM.
#include <algorithm>
#include <sys/mman.h>
#include <cerrno>
#include <climits>
#include <cstddef>
#include "base/clock.hpp"
#include "base/usercopy.hpp"
#include "sock/epoll.hpp"
#include "sock/poll_set.hpp"
#include "sock/proc.hpp"
#include "stack/stack.hpp"

namespace icepath {
namespace {

stable_pool<poll_entry, 256, 4096> entries;

void entry_wake(wait_entry* we, uint32_t) {
  poll_entry* const e = reinterpret_cast<poll_entry*>(reinterpret_cast<char*>(we) - offsetof(poll_entry, we));
  if (waiter* const w = e->w.load(std::memory_order_acquire)) waiter_wake(w);
}

int kernel_poll(pollfd* f, nfds_t n, nsec timeout, const sigset_t* mask) {
  int r;
  if (!mask && timeout == 0) {
    r = real::poll(f, n, 0);
  } else {
    const timespec ts = to_timespec(timeout);
    r = real::ppoll(f, n, timeout == ~nsec{0} ? nullptr : &ts, mask);
  }
  return r < 0 ? -errno : r;
}

// Asks the fast side about every entry, and keeps fds[].fd and events at what the kernel is to be asked. True: something is ready.
bool look_fast(poll_set& p) {
  bool any = false;
  for (unsigned i = 0; i < p.nfast; ++i) {
    poll_fast& f = p.fast[i];
    pollfd& k = p.fds[f.at];
    const uint32_t asked = static_cast<uint16_t>(f.events) | ep_always;
    f.ready = 0;
    if (f.ep) {
      if ((asked & (POLLIN | POLLRDNORM)) && epoll_readable(f.ep)) f.ready = static_cast<short>((POLLIN | POLLRDNORM) & asked);
    } else {
      const readiness r = sock_poll(f.s);
      const uint32_t kb = ep_expand_kernel(r.kernel_bits) & asked;
      f.ready = static_cast<short>(ep_expand(r.ready & ~r.kernel_bits) & ~kb & asked);
      const int fd = k.fd < 0 ? ~k.fd : k.fd;
      const int want = kb ? fd : ~fd;                   // the complement: not asked, and remembered
      if (k.fd != want || static_cast<uint16_t>(k.events) != kb) {
        k.fd = want;
        k.events = static_cast<short>(kb);
        k.revents = 0;
      }
    }
    any |= f.ready != 0;
  }
  return any;
}

bool kernel_ready(const poll_set& p) {
  for (unsigned i = 0; i < p.n; ++i) if (p.fds[i].revents) return true;
  return false;
}
bool kernel_asked(const poll_set& p) {
  for (unsigned i = 0; i < p.n; ++i) if (p.fds[i].fd >= 0) return true;
  return false;
}

// Both answers together.
int merge(poll_set& p) {
  for (unsigned i = 0; i < p.nfast; ++i) p.fds[p.fast[i].at].revents = static_cast<short>(p.fds[p.fast[i].at].revents | p.fast[i].ready);
  int n = 0;
  for (unsigned i = 0; i < p.n; ++i) n += p.fds[i].revents != 0;
  return n;
}

uint64_t stacks_of(const poll_set& p) {
  uint64_t m = 0;
  for (unsigned i = 0; i < p.nfast; ++i) {
    if (p.fast[i].ep) { m |= epoll_stacks(p.fast[i].ep); continue; }
    const stack* const st = stack_of(p.fast[i].s);
    if (st && st->no < 64) m |= uint64_t{1} << st->no;
  }
  return m;
}

int on_check(void* ctx) {
  poll_set& p = *static_cast<poll_set*>(ctx);
  if (p.kernel_done || p.stale || p.err || look_fast(p)) return 1;
  if (stacks_of(p) & ~p.planned) p.stale = true;
  return p.stale;
}

int on_check_kernel(void* ctx) {
  poll_set& p = *static_cast<poll_set*>(ctx);
  if (!kernel_asked(p)) return 0;
  const int r = kernel_poll(p.fds, p.n, 0, nullptr);
  if (r < 0 && r != -EINTR) p.err = r;
  if (r > 0) p.kernel_done = true;
  return r > 0 || p.err;
}

int on_sleep(void* ctx, pollfd* wake, unsigned n, nsec timeout, const sigset_t* mask) {
  poll_set& p = *static_cast<poll_set*>(ctx);
  if (n > poll_max_wake) n = poll_max_wake;
  std::copy_n(wake, n, p.fds + p.n);
  int r = kernel_poll(p.fds, p.n + n, timeout, mask);
  if (r >= 0) std::copy_n(p.fds + p.n, n, wake);
  if (r == -EINVAL) {                                   // the wake fds exceed RLIMIT_NOFILE: sleep in short pieces without them
    r = kernel_poll(p.fds, p.n, timeout < msec_ns ? timeout : nsec{msec_ns}, mask);
  }
  if (r < 0) return r;
  if (r > 0 && kernel_ready(p)) p.kernel_done = true;
  return 0;
}

void link_entries(poll_set& p, waiter* w) {
  for (unsigned i = 0; i < p.nfast; ++i) {
    poll_fast& f = p.fast[i];
    if (f.ep) {
      f.slot = slot_publish(f.ep->pollers, f.ep->polling, w);
      p.short_sleep |= f.slot < 0;
      continue;
    }
    f.entry = entries.get();
    if (!f.entry) { p.short_sleep = true; continue; }
    f.entry->w.store(w, std::memory_order_relaxed);
    f.entry->we.fn = entry_wake;
    sock_add_waiter(f.s, &f.entry->we);
  }
}

void unlink_entries(poll_set& p, waiter* w) {
  for (unsigned i = 0; i < p.nfast; ++i) {
    poll_fast& f = p.fast[i];
    if (f.ep) { slot_withdraw(f.ep->pollers, f.ep->polling, f.slot, w); continue; }
    if (!f.entry) continue;
    sock_del_waiter(f.s, &f.entry->we);
    f.entry->w.store(nullptr, std::memory_order_relaxed);
    entries.put(f.entry);
    f.entry = nullptr;
  }
}

}  // namespace

bool poll_concerns(file* f) {
  if (!f) return false;
  if (f->kind == file_kind::epoll) {
    epoll* const ep = static_cast<epoll*>(f);
    return ep->mask.load(std::memory_order_relaxed) || ep->nested.load(std::memory_order_relaxed) || !ep->items.empty();
  }
  if (f->kind != file_kind::tcp) return false;
  auto* const s = static_cast<socket*>(f);
  if (ICEPATH_UNLIKELY(s->inherited.load(std::memory_order_relaxed))) sock_claim_inherited(s);
  if (s->never.load(std::memory_order_relaxed) && !stack_of(s)) return s->fast.load(std::memory_order_acquire);
  return s->fast.load(std::memory_order_acquire) || stack_of(s) || s->state == sock_state::connected || s->state == sock_state::connecting;
}

int poll_set_wait(poll_set& p, nsec timeout) {
  nsec deadline = ~nsec{0};
  if (timeout != 0 && timeout != ~nsec{0}) {
    const nsec now = clock_now();
    deadline = now + timeout < now ? ~nsec{0} : now + timeout;
  }
  for (uint64_t m = stacks_of(p); m; m &= m - 1)
    if (stack* const st = stack_by_no(static_cast<uint16_t>(__builtin_ctzll(m)))) timeout == 0 ? stack_look(st) : static_cast<void>(stack_poll(st));
  for (bool first = true;; first = false) {
    // One look at both sides. The kernel is not asked when it is asked nothing.
    const bool fast = look_fast(p);
    int r = 0;
    const bool have = p.kernel_done;
    p.kernel_done = false;
    // With no stack to poll there is nothing to spin for: the sleep is the look.
    const bool sleep_only = first && timeout != 0 && !fast && !stacks_of(p);
    if (!have && !sleep_only && (kernel_asked(p) || (first && !fast && p.mask))) r = kernel_poll(p.fds, p.n, 0, fast ? nullptr : p.mask);
    if (r < 0 && !(fast && r == -EINTR)) return r;
    if (const int n = merge(p)) return n;
    if (timeout == 0 || (!first && deadline != ~nsec{0} && clock_now() >= deadline)) return 0;

    waiter* const w = this_waiter();
    link_entries(p, w);
    const stack* const own = stack_of_thread();
    p.stale = false;
    const uint64_t stacks = stacks_of(p);
    p.planned = stacks | (stacks && own && own->no < 64 ? uint64_t{1} << own->no : 0);
    wait_plan plan;
    plan.stacks = p.planned;
    plan.check = on_check;
    plan.check_kernel = on_check_kernel;
    plan.sleep = on_sleep;
    plan.ctx = &p;
    plan.mask = p.mask;
    plan.deadline = deadline;
    if (ICEPATH_UNLIKELY(p.short_sleep)) {
      const nsec piece = clock_now() + 5 * msec_ns;
      if (piece < deadline) plan.deadline = piece;
    }
    r = wait_until(plan);
    unlink_entries(p, w);
    if (p.err) return p.err;
    if (r < 0 && !p.kernel_done && !(r == -EINTR && look_fast(p))) return r;   // events come before signals
    if (r == 0 && plan.deadline == deadline) {          // the timeout; a last look, as the kernel has it
      const bool late = look_fast(p);
      return late ? merge(p) : 0;
    }
  }
}

bool poll_memory::get(size_t n, size_t nfast) {
  const size_t a = (n + poll_max_wake) * sizeof(pollfd), b = nfast * sizeof(poll_fast);
  void* const m = mmap(nullptr, a + b + 64, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (m == MAP_FAILED) return false;
  mapped = a + b + 64;
  fds = static_cast<pollfd*>(m);
  fast = reinterpret_cast<poll_fast*>(static_cast<char*>(m) + (a + 63) / 64 * 64);
  return true;
}
void poll_memory::put() { if (mapped) munmap(fds, mapped); }

int mux_poll(pollfd* fds, nfds_t n, nsec timeout, const sigset_t* mask) {
  pollfd small[poll_small + poll_max_wake];
  if (n == 0 || n > static_cast<nfds_t>(fdtable_size) || fdtable_limit == 0) return kernel_poll(fds, n, timeout, mask);
  // Any of ours? Looked at in pieces, so that a large set of the kernel's costs no memory.
  size_t nfast = 0;
  for (nfds_t i = 0; i < n; i += poll_small) {
    const size_t part = n - i < poll_small ? n - i : poll_small;
    if (copy_from_user(small, fds + i, part * sizeof(pollfd))) return -EFAULT;
    for (size_t j = 0; j < part; ++j) nfast += poll_concerns(fd_lookup(small[j].fd));
  }
  if (nfast == 0) return kernel_poll(fds, n, timeout, mask);
  poll_fast small_fast[poll_small];
  poll_memory mem;
  mem.fds = small;
  mem.fast = small_fast;
  if (n > poll_small) {
    if (!mem.get(n, n)) return -ENOMEM;
    if (copy_from_user(mem.fds, fds, n * sizeof(pollfd))) { mem.put(); return -EFAULT; }
  }
  poll_set p{mem.fds, static_cast<unsigned>(n), mem.fast, 0, mask};
  for (unsigned i = 0; i < n; ++i) {
    pollfd& k = mem.fds[i];
    k.revents = 0;
    if (k.fd < 0) { k.fd = -1; continue; }
    file* const f = fd_lookup(k.fd);
    if (poll_concerns(f)) p.fast[p.nfast++] = {as_socket(f), as_epoll(f), i, k.events, 0, nullptr, -1};
  }
  int r = poll_set_wait(p, timeout);
  for (unsigned i = 0; i < n && r >= 0; ++i)
    if (copy_to_user(&fds[i].revents, &mem.fds[i].revents, sizeof(short))) r = -EFAULT;
  mem.put();
  return r;
}

}  // namespace icepath
