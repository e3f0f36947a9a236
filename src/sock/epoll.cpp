// Epoll sets: their life, their ready lists, and who is woken. The synchronisation table is in epoll.hpp.
// Any thread; item_wake and what it calls may run under a stack's owner word and in signal handlers: lock-free, no system call but the
// one in waiter_wake. Running out of memory for sets or items leaves the descriptor to the kernel alone.
#include "sock/epoll.hpp"
#include <cstddef>
#include "sock/lane_sys.hpp"
#include "sock/pool.hpp"
#include "sock/proc.hpp"

namespace icepath {
namespace {

stable_pool<epoll, 16, 4096> epolls;
stable_pool<epoll_item, 256, 8192> items;               // 2 million items
constexpr uint32_t cookie_index_bits = 24;

// Upper half of every cookie: random, and with top bits that neither a pointer nor a small number has, so that no program's own
// epoll_data is taken for one of ours.
uint32_t cookie_tag() {
  static const uint32_t tag = [] {
    const uint64_t h = hash_mix(clock_now() ^ reinterpret_cast<uintptr_t>(&epolls) ^ (uint64_t(reinterpret_cast<uintptr_t>(&mux_self)) << 20));
    return (static_cast<uint32_t>(h) & 0x3fffffffu) | 0x40000000u | 0x00010000u;
  }();
  return tag;
}

void epoll_release(epoll* ep) {
  ep->lock.lock();
  kready_close(ep->ring);
  if (ep->by_fd) {
    for (unsigned i = 0; i < epoll::fd_pages; ++i)
      if (ep->by_fd[i]) munmap(ep->by_fd[i], sizeof(epoll_item*) * epoll::fd_page);
    munmap(ep->by_fd, sizeof(epoll_item**) * epoll::fd_pages);
    ep->by_fd = nullptr;
  }
  ep->kind = file_kind::none;
  ep->lock.unlock();
  epolls.put(ep);
}

}  // namespace

epoll* epoll_alloc() {
  epoll* const ep = epolls.get();
  if (!ep) return nullptr;
  ep->pending.store(false, std::memory_order_relaxed);
  ep->incoming.store(nullptr, std::memory_order_relaxed);
  ep->nready.store(0, std::memory_order_relaxed);
  ep->mask.store(0, std::memory_order_relaxed);
  for (auto& r : ep->stack_refs) r = 0;
  ep->nested.store(0, std::memory_order_relaxed);
  for (auto& o : ep->outer) o.store(nullptr, std::memory_order_relaxed);
  ep->exported.store(nullptr, std::memory_order_relaxed);
  ep->foreign.store(false, std::memory_order_relaxed);
  ep->in_kernel.store(0, std::memory_order_relaxed);
  ep->hot.store(true, std::memory_order_relaxed);
  ep->empty_looks.store(0, std::memory_order_relaxed);
  ep->since_look.store(0, std::memory_order_relaxed);
  ep->last_look.store(0, std::memory_order_relaxed);
  ep->kernel_turn = true;
  ep->plain.store(0, std::memory_order_relaxed);
  ep->kicks.store(0, std::memory_order_relaxed);
  ep->waiting.store(0, std::memory_order_relaxed);
  for (auto& s : ep->slots) s.store(nullptr, std::memory_order_relaxed);
  ep->polling.store(0, std::memory_order_relaxed);
  for (auto& s : ep->pollers) s.store(nullptr, std::memory_order_relaxed);
  ep->nr_fds.store(0, std::memory_order_relaxed);
  ep->closing.store(false, std::memory_order_relaxed);
  ep->watched.store(0, std::memory_order_relaxed);
  ep->inherited.store(false, std::memory_order_relaxed);
  ep->gone.store(false, std::memory_order_relaxed);     // refs is zero already, but for calls that just found out that it is not their set
  ep->kind = file_kind::epoll;
  return ep;
}

void epoll_on_create(int epfd) {
  if (static_cast<unsigned>(epfd) >= fdtable_limit) return;
  if (fd_lookup(epfd)) sock_before_replace(epfd);       // its former file was closed behind our back
  epoll* const ep = epoll_alloc();
  if (!ep) return;
  fd_install(epfd, ep);
}

void epoll_destroy(file* f) {
  epoll* const ep = as_epoll(f);
  if (!ep) return;
  no_signals block;
  if (!ep->lock.lock()) {                               // a signal handler closed the set its own thread works on
    ep->closing.store(true, std::memory_order_relaxed);
    ep->pending.store(true, std::memory_order_relaxed);
    return;
  }
  ep->refs.fetch_add(1, std::memory_order_acq_rel);
  ep->gone.store(true, std::memory_order_seq_cst);
  while (!ep->items.empty()) item_remove(list_entry<epoll_item, &epoll_item::all>(ep->items.next));
  ep->lock.unlock();
  for (auto& o : ep->outer) {                           // as the kernel does, a closed set disappears from others
    epoll_item* const it = o.load(std::memory_order_acquire);
    if (!it) continue;
    epoll* const out = it->ep;
    if (out && out->lock.lock()) {
      if (it->inner == ep && it->ep == out) item_remove(it);
      epoll_unlock(out);
    }
  }
  epoll_notify(ep);
  epoll_put(ep);
}

// Whoever takes refs to zero on a set that is gone frees it, once: gone is exchanged.
void epoll_put(epoll* ep) {
  if (ep->refs.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  if (ep->gone.load(std::memory_order_acquire) && ep->gone.exchange(false, std::memory_order_acq_rel)) epoll_release(ep);
}

void epoll_unlock(epoll* ep) {
  for (;;) {
    ep->lock.unlock();
    if (ICEPATH_LIKELY(!ep->pending.load(std::memory_order_relaxed))) return;
    no_signals block;
    if (!ep->lock.lock()) return;
    ep->pending.store(false, std::memory_order_relaxed);
    for (list_node* n = ep->items.next; n != &ep->items;) {
      epoll_item* const it = list_entry<epoll_item, &epoll_item::all>(n);
      n = n->next;
      if (it->dead.load(std::memory_order_relaxed)) item_remove(it);
      else if (it->resync.exchange(false, std::memory_order_relaxed)) epoll_sync_item(it);
    }
    if (ep->closing.exchange(false, std::memory_order_relaxed)) {
      ep->lock.unlock();
      epoll_destroy(ep);
      return;
    }
  }
}

epoll_item* item_alloc() {
  epoll_item* const it = items.get();
  if (!it) return nullptr;
  ++it->gen;
  it->ep = nullptr;
  it->s = nullptr;
  it->inner = nullptr;
  it->in_kernel = it->kcookie = false;
  it->kreg = 0;
  it->disabled.store(false, std::memory_order_relaxed);
  it->dead.store(false, std::memory_order_relaxed);
  it->resync.store(false, std::memory_order_relaxed);
  it->stack_no = -1;
  it->sync_mark = 0;
  it->queued.store(false, std::memory_order_relaxed);
  it->seen_call = 0;
  it->echo.store(false, std::memory_order_relaxed);
  it->edged.store(false, std::memory_order_relaxed);
  it->we.fn = item_wake;
  return it;
}

void item_free(epoll_item* it) {
  it->ep = nullptr;
  it->s = nullptr;
  it->inner = nullptr;
  items.put(it);
}

uint64_t item_cookie(const epoll_item* it) {
  return uint64_t{cookie_tag()} << 32 | uint32_t{it->gen} << cookie_index_bits | it->pool_index;
}
bool is_cookie(uint64_t data) { return data >> 32 == cookie_tag(); }
epoll_item* item_of_cookie(uint64_t data) {
  if (!is_cookie(data)) return nullptr;
  epoll_item* const it = items.at(static_cast<uint32_t>(data) & ((1u << cookie_index_bits) - 1));
  return it && it->gen == static_cast<uint8_t>(data >> cookie_index_bits) && it->ep ? it : nullptr;
}

// ---- ready list

bool item_queue(epoll_item* it) {
  if (it->queued.exchange(true, std::memory_order_seq_cst)) return false;
  epoll* const ep = it->ep;
  if (!ep) return false;
  epoll_item* head = ep->incoming.load(std::memory_order_relaxed);
  do it->next_in = head;
  while (!ep->incoming.compare_exchange_weak(head, it, std::memory_order_seq_cst, std::memory_order_relaxed));
  return true;
}

// Takes what was pushed and appends it in the order of arrival.
void epoll_take_incoming(epoll* ep) {
  if (!ep->incoming.load(std::memory_order_seq_cst)) return;
  epoll_item* it = ep->incoming.exchange(nullptr, std::memory_order_acquire);
  epoll_item* in_order = nullptr;
  uint32_t n = 0;
  while (it) {
    epoll_item* const next = it->next_in;
    it->next_in = in_order;
    in_order = it;
    it = next;
    ++n;
  }
  ep->nready.store(ep->nready.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  for (; in_order; in_order = in_order->next_in) ep->ready.push_back(in_order->ready);
}

void item_wake(wait_entry* we, uint32_t mask) {
  epoll_item* const it = reinterpret_cast<epoll_item*>(reinterpret_cast<char*>(we) - offsetof(epoll_item, we));
  const uint32_t asked = it->events.load(std::memory_order_relaxed) | ep_always;
  if ((mask & wake_changed) && (asked & EPOLLET)) {
    // A change of lanes is no event: only what the program has not been told of is.
    uint32_t news = ep_expand_kernel(mask & ~wake_changed) & asked & ep_bits;
    uint32_t bits = item_poll(it);
    const bool told = it->told_out.load(std::memory_order_relaxed) || (it->ep && it->ep->drained.load(std::memory_order_relaxed) != it->added_at);
    if (it->s && told && !it->s->tx_blocked.load(std::memory_order_relaxed)) {
      bits &= ~uint32_t{EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND};
      news &= ~uint32_t{EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND};
    }
    if (it->edged.load(std::memory_order_relaxed) && it->ep && it->ep->drained.load(std::memory_order_relaxed) != it->edge_at) {
      bits &= ~uint32_t{EPOLLIN | EPOLLRDNORM | EPOLLRDBAND};   // those unread bytes have been told as an edge when they came
      news &= ~uint32_t{EPOLLIN | EPOLLRDNORM | EPOLLRDBAND};
    }
    const uint32_t all = it->told.load(std::memory_order_relaxed);
    const uint32_t old = all & EPOLLHUP ? all : all & told_end ? EPOLLIN | EPOLLRDNORM | EPOLLRDBAND : 0u;   // after the end nothing comes anew
    bits &= ~old;
    news &= ~old;
    if (!bits && !news) return;
  } else if (mask && !(mask & wake_changed) && !(ep_expand_kernel(mask) & asked)) {
    return;
  } else if (mask & EPOLLIN) {
    it->edged.store(false, std::memory_order_relaxed);
  }
  if (it->disabled.load(std::memory_order_relaxed)) return;
  epoll* const ep = it->ep;
  if (item_queue(it) && ep) epoll_notify(ep);
}

// One thread that waits in the set, everybody who polls it, and the sets that watch it (the kernel has made sure that there is no ring of them).
void epoll_notify(epoll* ep) {
  if (ep->waiting.load(std::memory_order_seq_cst)) {
    const bool all = ep->gone.load(std::memory_order_relaxed);
    for (auto& s : ep->slots) {
      if (!s.load(std::memory_order_relaxed)) continue;
      waiter* const w = s.exchange(nullptr, std::memory_order_acq_rel);
      if (!w) continue;
      waiter_wake(w);
      if (!all) break;
    }
  }
  if (ICEPATH_UNLIKELY(ep->polling.load(std::memory_order_seq_cst)))
    for (auto& s : ep->pollers)
      if (waiter* const w = s.load(std::memory_order_acquire)) waiter_wake(w);
  if (ICEPATH_LIKELY(!ep->watched.load(std::memory_order_seq_cst))) return;
  ep->notifying.fetch_add(1, std::memory_order_seq_cst);
  for (auto& o : ep->outer) {
    epoll_item* const it = o.load(std::memory_order_seq_cst);
    if (!it) continue;
    epoll* const out = it->ep;
    if (!it->disabled.load(std::memory_order_relaxed) && item_queue(it) && out) epoll_notify(out);
  }
  ep->notifying.fetch_sub(1, std::memory_order_release);
}

uint32_t item_poll(epoll_item* it) {
  const uint32_t asked = (it->events.load(std::memory_order_relaxed) & ep_bits) | ep_always;
  if (ICEPATH_UNLIKELY(it->inner != nullptr)) return epoll_readable(it->inner) ? (EPOLLIN | EPOLLRDNORM) & asked : 0;
  const readiness r = sock_poll(it->s);
  return ep_expand(r.ready & ~r.kernel_bits) & ~ep_expand_kernel(r.kernel_bits) & asked;
}

// Edge-triggered, at the end of its connection, and all told: nothing can happen to it any more, and registered anew it would be reported once more.
bool item_has_ended(const epoll_item* it, uint32_t asked) {
  const uint32_t told = it->told.load(std::memory_order_relaxed);
  if (!(asked & EPOLLET) || !(told & EPOLLHUP) || !it->s) return false;
  const uint32_t now = static_cast<uint16_t>(lane_sys::look(it->kfd, static_cast<short>(asked & ep_bits)));
  return (now & EPOLLHUP) && !(now & ~told);
}

bool epoll_readable(epoll* ep) {
  if (!epoll_fast_pending(ep)) return false;
  if (!ep->lock.lock()) return true;                    // our own thread is at work on it: let it look again
  epoll_take_incoming(ep);
  bool found = false;
  while (!found && !ep->ready.empty()) {
    epoll_item* const it = list_entry<epoll_item, &epoll_item::ready>(ep->ready.next);
    it->ready.unlink();
    ep->nready.store(ep->nready.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
    it->queued.exchange(false, std::memory_order_seq_cst);
    if (it->dead.load(std::memory_order_relaxed) || it->disabled.load(std::memory_order_relaxed) || !item_poll(it)) continue;
    found = true;                                       // stays on the list: looking does not consume
    if (!it->queued.exchange(true, std::memory_order_seq_cst)) {
      ep->ready.push_front(it->ready);
      ep->nready.store(ep->nready.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
  }
  epoll_unlock(ep);
  return found;
}

// ---- who waits

int slot_publish(std::atomic<waiter*>* slots, std::atomic<uint32_t>& n, waiter* w) {
  n.fetch_add(1, std::memory_order_seq_cst);
  for (unsigned i = 0; i < epoll::max_slots; ++i) {
    waiter* expected = nullptr;
    if (!slots[i].load(std::memory_order_relaxed) && slots[i].compare_exchange_strong(expected, w, std::memory_order_seq_cst)) return static_cast<int>(i);
  }
  return -1;                                            // more threads than slots: the caller sleeps in short pieces
}

void slot_withdraw(std::atomic<waiter*>* slots, std::atomic<uint32_t>& n, int at, waiter* w) {
  waiter* expected = w;
  if (at >= 0) slots[at].compare_exchange_strong(expected, nullptr, std::memory_order_acq_rel);
  n.fetch_sub(1, std::memory_order_release);
}

uint64_t epoll_stacks(epoll* ep) {
  uint64_t m = ep->mask.load(std::memory_order_seq_cst);
  if (ICEPATH_LIKELY(!ep->nested.load(std::memory_order_relaxed))) return m;
  if (!ep->lock.lock()) return m;
  for (list_node* n = ep->items.next; n != &ep->items; n = n->next)
    if (epoll* const in = list_entry<epoll_item, &epoll_item::all>(n)->inner) m |= epoll_stacks(in);
  epoll_unlock(ep);
  return m;
}

// ---- fork: the child gets every set at rest. Rings and sleeping threads are the parent's.

void mux_fork_prepare() {
  epolls.each([](epoll* ep) { if (ep->kind == file_kind::epoll && !ep->lock.lock()) ep->pending.store(true, std::memory_order_relaxed); });
  kready_fork_prepare();
}
void mux_fork_parent() {
  kready_fork_parent();
  epolls.each([](epoll* ep) { if (ep->kind == file_kind::epoll) epoll_unlock(ep); });
}
void mux_fork_child() {
  kready_fork_child();
  epolls.each([](epoll* ep) {
    if (ep->kind != file_kind::epoll) return;
    kready_forget(ep->ring);
    ep->plain.store(0, std::memory_order_relaxed);
    ep->waiting.store(0, std::memory_order_relaxed);
    ep->polling.store(0, std::memory_order_relaxed);
    ep->refs.store(0, std::memory_order_relaxed);
    for (auto& s : ep->slots) s.store(nullptr, std::memory_order_relaxed);
    for (auto& s : ep->pollers) s.store(nullptr, std::memory_order_relaxed);
    ep->hot.store(true, std::memory_order_relaxed);
    ep->lock.reset();
    ep->inherited.store(!ep->items.empty(), std::memory_order_relaxed);
    epoll_unlock(ep);
  });
}

// The rings stay: their owners may be looking at them, and the end of a ring interrupts (kready.hpp).
void mux_step_aside() {
  epolls.each([](epoll* ep) {
    if (ep->kind != file_kind::epoll || !ep->lock.lock()) return;
    if (!ep->items.empty()) epoll_give_back(ep);
    epoll_unlock(ep);
  });
}

// The kernel set is the parent's too. What it has taken out of it for the fast lanes comes back with the connections.
void epoll_claim(epoll* ep) {
  for (;;) {
    socket* s = nullptr;
    if (!ep->lock.lock()) return;   // a handler over the set: at the next wait
    for (list_node* n = ep->items.next; n != &ep->items && !s; n = n->next) {
      socket* const i = list_entry<epoll_item, &epoll_item::all>(n)->s;
      if (i && i->inherited.load(std::memory_order_relaxed)) s = i;
    }
    if (!s) break;
    epoll_unlock(ep);
    sock_claim_inherited(s);
  }
  for (list_node* n = ep->items.next; n != &ep->items; n = n->next) {
    epoll_item* const it = list_entry<epoll_item, &epoll_item::all>(n);
    if (it->s && it->s->state != sock_state::listening) item_kernel_apply(it, false);
  }
  ep->inherited.store(false, std::memory_order_relaxed);
  epoll_unlock(ep);
}

}  // namespace icepath
