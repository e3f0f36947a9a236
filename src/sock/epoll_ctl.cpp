// epoll_ctl, and the registration of our sockets in the kernel's half of a set.
// Any thread. Holds the set's lock across the kernel's epoll_ctl; with signals blocked where socket::wait_lock is taken as well.
//
// How an item stands in the kernel set (item_kernel_apply):
//   kernel answers all its bits, no oneshot   with the application's own data: the kernel's results need no translation
//   kernel answers some of them, or oneshot   with our cookie as data: results are filtered, merged and translated (epoll_wait.cpp)
//   the fast side answers all                 not at all: the kernel reports EPOLLERR and EPOLLHUP of whatever stands there
// Failure: an errno of the kernel is the call's result; when the kernel refuses a later change, the item is left to the fast side.
#include <cerrno>
#include "base/usercopy.hpp"
#include "sock/epoll.hpp"
#include "sock/proc.hpp"
#include "stack/process.hpp"
#include "stack/stack.hpp"

namespace icepath {
namespace {

constexpr uint32_t exclusive_ok = EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;
constexpr const char* why_unwatched = "in an epoll set icepath does not watch";
constexpr const char* why_nested = "in an epoll set watched by too many others";

int passed(int r) { return r < 0 ? -errno : r; }

void wait_lock(socket* s) {
  for (unsigned spins = 0; s->wait_lock.exchange(1, std::memory_order_acquire); ++spins)
    if (spins < 200) cpu_relax(); else sched_yield();
}
void wait_unlock(socket* s) { s->wait_lock.store(0, std::memory_order_release); }

epoll_item** fd_slot(epoll* ep, int fd, bool make) {
  if (static_cast<unsigned>(fd) >= static_cast<unsigned>(fdtable_size)) return nullptr;
  const auto pages = [](size_t n) {
    void* const m = mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return m == MAP_FAILED ? nullptr : m;
  };
  if (!ep->by_fd) {
    if (!make) return nullptr;
    ep->by_fd = static_cast<epoll_item***>(pages(sizeof(epoll_item**) * epoll::fd_pages));
    if (!ep->by_fd) return nullptr;
  }
  epoll_item**& page = ep->by_fd[fd / epoll::fd_page];
  if (!page) {
    if (!make) return nullptr;
    page = static_cast<epoll_item**>(pages(sizeof(epoll_item*) * epoll::fd_page));
    if (!page) return nullptr;
  }
  return &page[fd % epoll::fd_page];
}

epoll_item* find(epoll* ep, int fd, const file* target) {
  epoll_item** const p = fd_slot(ep, fd, false);
  epoll_item* const it = p ? *p : nullptr;
  if (!it || it->fd != fd || it->dead.load(std::memory_order_relaxed)) return nullptr;
  return it->s == target || it->inner == target ? it : nullptr;
}

// Sets that are not ours (inherited, from before our time) as one pseudo set: their sockets stay in the kernel.
epoll* unwatched_set() {
  static epoll* const ep = [] {
    epoll* const e = epoll_alloc();
    if (e) e->exported.store(why_unwatched, std::memory_order_release);
    return e;
  }();
  return ep;
}

bool link_outer(epoll_item* it) {
  for (auto& o : it->inner->outer) {
    epoll_item* expected = nullptr;
    if (o.compare_exchange_strong(expected, it, std::memory_order_seq_cst)) {
      it->inner->watched.fetch_add(1, std::memory_order_seq_cst);
      return true;
    }
  }
  return false;
}

// False: somebody walks the list and will not leave it (a signal handler interrupted it in this thread): the item must not be reused.
bool unlink_outer(epoll_item* it) {
  bool was_there = false;
  for (auto& o : it->inner->outer) {
    epoll_item* expected = it;
    if (o.compare_exchange_strong(expected, nullptr, std::memory_order_seq_cst)) { was_there = true; break; }
  }
  if (!was_there) return true;
  it->inner->watched.fetch_sub(1, std::memory_order_seq_cst);
  for (unsigned spins = 0; it->inner->notifying.load(std::memory_order_seq_cst); ++spins) {
    if (spins > 100000) return false;
    if (spins > 200) sched_yield(); else cpu_relax();
  }
  return true;
}

// The inner set cannot tell all who watch it: its sockets go back to the kernel, where readiness of nested sets is the kernel's business.
void export_set(epoll* ep, const char* why) {
  ep->exported.store(why, std::memory_order_seq_cst);
  for (;;) {
    socket* s = nullptr;
    if (!ep->lock.lock()) return;
    for (list_node* n = ep->items.next; n != &ep->items && !s; n = n->next) {
      epoll_item* const it = list_entry<epoll_item, &epoll_item::all>(n);
      if (it->s && stack_of(it->s)) s = it->s;
    }
    epoll_unlock(ep);
    if (!s || sock_demote(s, why) < 0) return;
    if (s->st) return;
  }
}

int add(epoll* ep, int epfd, int fd, file* target, const epoll_event& ev, bool watched) {
  no_signals block;
  if (!ep->lock.lock()) return -EAGAIN;
  int err = 0;
  epoll_item* it = nullptr;
  epoll_item** const slot = watched ? fd_slot(ep, fd, true) : nullptr;
  if (watched && !slot) err = -ENOMEM;
  else if (watched && find(ep, fd, target)) err = -EEXIST;
  else if ((ev.events & EPOLLEXCLUSIVE) && ((ev.events & ~exclusive_ok) || as_epoll(target))) err = -EINVAL;
  else if (!(it = item_alloc())) err = -ENOMEM;
  if (err) {
    epoll_unlock(ep);
    return err;
  }
  it->ep = ep;
  it->fd = it->kfd = fd;
  it->events.store(ev.events, std::memory_order_relaxed);
  it->data = ev.data.u64;
  it->added_at = ep->drained.load(std::memory_order_relaxed);
  it->told_out.store(false, std::memory_order_relaxed);
  it->told.store(0, std::memory_order_relaxed);
  it->s = as_socket(target);
  it->inner = as_epoll(target);
  ep->items.push_back(it->all);
  if (it->s) {                                          // before the look at the lanes: a change from now on is told to us
    wait_lock(it->s);
    it->s->items.push_back(it->of_socket);
    wait_unlock(it->s);
    if (watched) sock_add_waiter(it->s, &it->we);
  } else if (!link_outer(it)) {
    err = -EMFILE;
  } else {
    ep->nested.fetch_add(1, std::memory_order_relaxed);
  }
  bool ours = false;
  if (!err && watched) ours = item_kernel_apply(it, false, &err);
  if (err) {
    item_remove(it);
    epoll_unlock(ep);
    if (err != -EMFILE) return err;
    export_set(as_epoll(target), why_nested);
    ep->foreign.store(true, std::memory_order_relaxed);
    return kernel_ctl(epfd, EPOLL_CTL_ADD, fd, ev.events, ev.data.u64);
  }
  if (slot) *slot = it;
  if (watched) item_set_stack(it);
  if (ours && item_poll(it) && item_queue(it)) epoll_notify(ep);   // what comes later queues it by itself
  if (it->inner && ep->plain.load(std::memory_order_seq_cst)) epoll_kick(ep);
  epoll_unlock(ep);
  return 0;
}

int modify(epoll* ep, int epfd, int fd, file* target, const epoll_event& ev) {
  if (!ep->lock.lock()) return -EAGAIN;
  epoll_item* const it = find(ep, fd, target);
  int err = 0;
  if (!it) {
    err = kernel_ctl(epfd, EPOLL_CTL_MOD, fd, ev.events, ev.data.u64);
  } else if ((ev.events | it->events.load(std::memory_order_relaxed)) & EPOLLEXCLUSIVE) {
    err = -EINVAL;
  } else {
    it->events.store(ev.events, std::memory_order_relaxed);
    it->data = ev.data.u64;
    it->added_at = ep->drained.load(std::memory_order_relaxed);
    it->told_out.store(false, std::memory_order_relaxed);
    it->told.store(0, std::memory_order_relaxed);
    it->disabled.store(false, std::memory_order_seq_cst);
    if (item_kernel_apply(it, true, &err) && item_poll(it) && item_queue(it)) epoll_notify(ep);
  }
  epoll_unlock(ep);
  return err;
}

int remove(epoll* ep, int epfd, int fd, file* target) {
  no_signals block;
  if (!ep->lock.lock()) return -EAGAIN;
  epoll_item* const it = find(ep, fd, target);
  int err = 0;
  if (it) {
    item_kernel_del(it);
    item_remove(it);
  } else {
    err = kernel_ctl(epfd, EPOLL_CTL_DEL, fd, 0, 0);
  }
  epoll_unlock(ep);
  return err;
}

// ours in a set that is not: the kernel does it all; we only see to it that the socket stays there.
int unwatched_ctl(int epfd, int op, int fd, epoll_event* ev, file* target) {
  const int r = passed(real::epoll_ctl(epfd, op, fd, ev));
  if (r < 0 || op != EPOLL_CTL_ADD) return r;
  if (epoll* const in = as_epoll(target)) { export_set(in, why_unwatched); return r; }
  socket* const s = as_socket(target);
  epoll* const pseudo = unwatched_set();
  if (s && pseudo && add(pseudo, -1, fd, target, epoll_event{}, false) == 0 && s->st) sock_demote(s, why_unwatched);
  return r;
}

}  // namespace

int mux_epoll_ctl(int epfd, int op, int fd, epoll_event* ev) {
  file* const target = fd_lookup(fd);
  epoll* const ep = as_epoll(fd_lookup(epfd));
  if (!target || target->kind == file_kind::none || (!ep && (target->kind != file_kind::tcp && target->kind != file_kind::epoll))) {
    const int r = passed(real::epoll_ctl(epfd, op, fd, ev));
    if (ep && r == 0 && op == EPOLL_CTL_ADD) ep->foreign.store(true, std::memory_order_relaxed);
    return r;
  }
  if (!ep) return unwatched_ctl(epfd, op, fd, ev, target);
  epoll_event own{};
  if (op == EPOLL_CTL_DEL) return remove(ep, epfd, fd, target);
  if ((op != EPOLL_CTL_ADD && op != EPOLL_CTL_MOD) || copy_from_user(&own, ev, sizeof own) || target == ep)
    return passed(real::epoll_ctl(epfd, op, fd, ev));
  if (socket* const s = as_socket(target); s && ICEPATH_UNLIKELY(s->inherited.load(std::memory_order_relaxed))) sock_claim_inherited(s);
  return op == EPOLL_CTL_ADD ? add(ep, epfd, fd, target, own, true) : modify(ep, epfd, fd, target, own);
}

// ---- the kernel's half

bool item_kernel_apply(epoll_item* it, bool force, int* err) {
  epoll* const ep = it->ep;
  if (it->disabled.load(std::memory_order_relaxed)) return false;
  const uint32_t asked = it->events.load(std::memory_order_relaxed);
  const uint32_t all = (asked & ep_bits) | ep_always;
  const uint32_t answers = it->inner ? ~0u : sock_poll(it->s).kernel_bits;
  uint32_t k = all & ep_kernel_part(answers, asked);
  if ((asked & EPOLLET) && (it->told.load(std::memory_order_relaxed) & told_end)) k &= ~uint32_t{EPOLLIN | EPOLLRDNORM | EPOLLRDBAND};
  const bool echo = !force && !err && (asked & EPOLLET) && (it->told.load(std::memory_order_relaxed) & told_end);
  const bool fast = it->inner || (all & ~ep_expand_kernel(answers));
  if (!k || item_has_ended(it, asked)) { item_kernel_del(it); return fast; }
  // What was asked beside the event bits stays; EPOLLERR and EPOLLHUP need not be named.
  const uint32_t want = k == all ? asked : (k & ~ep_always) | (asked & ~ep_bits);
  // With lanes under it, what an edge-triggered item has been told must be known; that alone is no reason to register it anew.
  const bool lanes = it->s && (asked & EPOLLET) && it->s->fast.load(std::memory_order_relaxed) && (force || !it->in_kernel || it->kreg != want);
  const bool cookie = fast || (asked & EPOLLONESHOT) || k != all || echo || lanes;
  const uint64_t data = cookie ? item_cookie(it) : it->data;
  const int epfd = ep->fd.load(std::memory_order_relaxed);
  int r = 0;
  // An edge-triggered item that stands there for the same bits stays as it is, even if it needs no cookie any more: registered anew it would tell again.
  const bool same = it->kcookie && (asked & EPOLLET) ? (it->kreg | ep_always) == (want | ep_always) : it->kreg == want && it->kcookie == cookie;
  const bool anew = !it->in_kernel || force || !same;
  if (it->in_kernel && anew) {
    if (want & EPOLLEXCLUSIVE) {                        // the kernel does not modify these
      item_kernel_del(it);
    } else {
      r = kernel_ctl(epfd, EPOLL_CTL_MOD, it->kfd, want, data);
      if (r == -ENOENT || r == -EBADF) item_kernel_del(it);
    }
  }
  if (!it->in_kernel) {
    r = kernel_ctl(epfd, EPOLL_CTL_ADD, it->kfd, want, data);
    // Without err (a lane came back) an entry that stands there is a fork relative's, or one we lost sight of: take it over.
    if (r == -EEXIST && !err) r = kernel_ctl(epfd, EPOLL_CTL_MOD, it->kfd, want, data);
    if (r == 0) {
      it->in_kernel = true;
      ep->in_kernel.fetch_add(1, std::memory_order_relaxed);
    }
  }
  if (r == 0) {
    if (anew) {
      it->kreg = want;
      it->kcookie = cookie;
      it->echo.store(echo, std::memory_order_relaxed);
    }
    if (anew && (k & EPOLLIN)) {                        // the program's own call tells all that is unread, on both lanes
      it->edge_at = ep->drained.load(std::memory_order_relaxed);
      it->edged.store((force || err) && (asked & EPOLLET) && it->s && sock_poll(it->s).kernel_bits != ~0u, std::memory_order_relaxed);
    }
    ep->hot.store(true, std::memory_order_release);
  } else if (err) {
    *err = r;
  }
  return fast;
}

void item_kernel_del(epoll_item* it) {
  if (!it->in_kernel) return;
  kernel_ctl(it->ep->fd.load(std::memory_order_relaxed), EPOLL_CTL_DEL, it->kfd, 0, 0);
  it->in_kernel = false;
  it->ep->in_kernel.fetch_sub(1, std::memory_order_relaxed);
}

void item_remove(epoll_item* it) {
  epoll* const ep = it->ep;
  bool reusable = true;
  if (it->s && !it->dead.load(std::memory_order_relaxed)) {
    if (it->we.node.linked()) sock_del_waiter(it->s, &it->we);
    wait_lock(it->s);
    it->of_socket.unlink();
    wait_unlock(it->s);
  }
  if (it->inner) {
    reusable = unlink_outer(it);
    ep->nested.fetch_sub(1, std::memory_order_relaxed);
  }
  epoll_take_incoming(ep);                              // nobody can push it any more
  if (it->ready.linked()) {
    it->ready.unlink();
    ep->nready.store(ep->nready.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
  }
  if (it->in_kernel) ep->in_kernel.fetch_sub(1, std::memory_order_relaxed);
  if (it->stack_no >= 0 && --ep->stack_refs[it->stack_no] == 0) ep->mask.fetch_and(~(uint64_t{1} << it->stack_no), std::memory_order_seq_cst);
  if (epoll_item** const p = fd_slot(ep, it->fd, false); p && *p == it) *p = nullptr;
  it->all.unlink();
  if (reusable) item_free(it); else it->ep = nullptr;
}

void item_set_stack(epoll_item* it) {
  epoll* const ep = it->ep;
  const stack* const st = it->s ? stack_of(it->s) : nullptr;
  const int8_t no = st && st->no < 64 ? static_cast<int8_t>(st->no) : int8_t{-1};
  if (no == it->stack_no) return;
  if (it->stack_no >= 0 && --ep->stack_refs[it->stack_no] == 0) ep->mask.fetch_and(~(uint64_t{1} << it->stack_no), std::memory_order_seq_cst);
  it->stack_no = no;
  if (no >= 0 && ep->stack_refs[no]++ == 0) {
    ep->mask.fetch_or(uint64_t{1} << no, std::memory_order_seq_cst);
    if (ep->plain.load(std::memory_order_seq_cst)) epoll_kick(ep);   // partner: epoll_wait looks at mask after it counted itself
    for (auto& o : ep->outer)
      if (epoll_item* const out = o.load(std::memory_order_acquire))
        if (epoll* const oe = out->ep; oe && oe->plain.load(std::memory_order_seq_cst)) epoll_kick(oe);
  }
}

// ---- lane changes

void epoll_sync_item(epoll_item* it) {
  if (it->dead.load(std::memory_order_relaxed)) return;
  item_kernel_apply(it, false);
  item_set_stack(it);
  item_wake(&it->we, wake_changed);
}

// fn on every item of s, under its set's lock. Where a signal handler finds its own thread at work on the set, that thread does an epoll_sync_item.
static void each_item(socket* s, void (*fn)(epoll_item*)) {
  static std::atomic<uint32_t> marks{0};
  if (s->items.empty()) return;
  no_signals block;
  const uint32_t mark = marks.fetch_add(1, std::memory_order_relaxed) + 1;
  for (;;) {
    epoll_item* it = nullptr;
    epoll* ep = nullptr;
    wait_lock(s);
    for (list_node* n = s->items.next; n != &s->items && !it; n = n->next) {
      epoll_item* const i = list_entry<epoll_item, &epoll_item::of_socket>(n);
      if (i->sync_mark == mark || !i->we.node.linked()) continue;
      i->sync_mark = mark;
      it = i;
      ep = i->ep;
    }
    wait_unlock(s);
    if (!it) break;
    if (!ep->lock.lock()) {
      it->resync.store(true, std::memory_order_relaxed);
      ep->pending.store(true, std::memory_order_relaxed);
      continue;
    }
    if (it->ep == ep && it->s == s) fn(it);
    epoll_unlock(ep);
  }
}

void epoll_sync(socket* s) {
  each_item(s, epoll_sync_item);
  sock_wake(s, wake_changed);                           // poll and select ask anew who answers what
}

void epoll_edge(socket* s) {
  each_item(s, [](epoll_item* it) {
    if (!(it->events.load(std::memory_order_relaxed) & EPOLLET) || !it->in_kernel || it->disabled.load(std::memory_order_relaxed)) return;
    if (it->dead.load(std::memory_order_relaxed) || !(it->kreg & (EPOLLIN | EPOLLRDNORM | EPOLLRDBAND))) return;
    // The kernel looks at what is registered anew, and reports it once, together with what it may have to tell already.
    it->echo.store(false, std::memory_order_relaxed);
    it->edge_at = it->ep->drained.load(std::memory_order_relaxed);
    it->edged.store(true, std::memory_order_relaxed);
    kernel_ctl(it->ep->fd.load(std::memory_order_relaxed), EPOLL_CTL_MOD, it->kfd, it->kreg, it->kcookie ? item_cookie(it) : it->data);
    it->ep->hot.store(true, std::memory_order_release);
  });
}

// shutdown() raises an edge of its own, also on a connection that has ended: what item_has_ended keeps out of the kernel set comes in again.
void epoll_shut(socket* s) {
  if (s->items.empty()) return;
  bool any = false;
  {
    no_signals block;
    wait_lock(s);
    for (list_node* n = s->items.next; n != &s->items; n = n->next) {
      epoll_item* const it = list_entry<epoll_item, &epoll_item::of_socket>(n);
      auto& told = it->told;
      it->echo.store(false, std::memory_order_relaxed);
      if (told.load(std::memory_order_relaxed) & EPOLLHUP) { told.store(0, std::memory_order_relaxed); any = true; }
    }
    wait_unlock(s);
  }
  if (any) epoll_sync(s);
}

void epoll_on_close(int fd, file* f) {
  socket* const s = as_socket(f);
  if (s ? s->items.empty() : f->fd.load(std::memory_order_relaxed) != fd) return;
  const bool last = f->nr_fds.load(std::memory_order_acquire) <= (fd_lookup(fd) == f ? 1u : 0u);
  int other = -1;
  for (int i = 0; !last && other < 0 && static_cast<unsigned>(i) < fdtable_limit; ++i)
    if (i != fd && fdtable[i].load(std::memory_order_relaxed) == f) other = i;
  if (!s) {                                             // an epoll set goes on under another of its numbers
    if (other >= 0) f->fd.store(other, std::memory_order_relaxed);
    return;
  }
  no_signals block;
  for (;;) {
    epoll_item* it = nullptr;
    epoll* ep = nullptr;
    wait_lock(s);
    for (list_node* n = s->items.next; n != &s->items && !it; n = n->next) {
      epoll_item* const i = list_entry<epoll_item, &epoll_item::of_socket>(n);
      if (!last && (i->kfd != fd || other < 0)) continue;
      it = i;
      ep = i->ep;
    }
    wait_unlock(s);
    if (!it) return;
    if (!ep->lock.lock()) {                             // handler of the thread that works on the set: it removes the item when it unlocks
      if (!last) return;
      if (it->we.node.linked()) sock_del_waiter(s, &it->we);
      wait_lock(s);
      it->of_socket.unlink();
      wait_unlock(s);
      it->dead.store(true, std::memory_order_seq_cst);
      ep->pending.store(true, std::memory_order_seq_cst);
      continue;
    }
    if (it->ep != ep || it->s != s) { epoll_unlock(ep); continue; }
    if (last) {
      if (it->kcookie) item_kernel_del(it);             // else the kernel does what it always does
      item_remove(it);
    } else {                                            // Linux keeps the registration: carry it over to a number we can still name
      item_kernel_del(it);
      it->kfd = other;
      if (it->we.node.linked()) item_kernel_apply(it, false);
    }
    epoll_unlock(ep);
  }
}

bool epoll_item_allows_promotion(socket* s, const char** reason) {
  bool ok = true;
  if (s->items.empty()) return ok;
  no_signals block;
  wait_lock(s);
  for (list_node* n = s->items.next; n != &s->items && ok; n = n->next)
    if (const char* const why = list_entry<epoll_item, &epoll_item::of_socket>(n)->ep->exported.load(std::memory_order_acquire)) {
      ok = false;
      if (reason) *reason = why;
    }
  wait_unlock(s);
  return ok;
}

// A oneshot that has fired on the fast side stands in no kernel set; it gets a place there that reports nothing but the end, for the MOD to come.
void epoll_give_back(epoll* ep) {
  const int epfd = ep->fd.load(std::memory_order_relaxed);
  for (list_node* n = ep->items.next; n != &ep->items; n = n->next) {
    epoll_item* const it = list_entry<epoll_item, &epoll_item::all>(n);
    const bool fired = it->disabled.load(std::memory_order_relaxed);
    if (it->in_kernel && it->kcookie && !fired) kernel_ctl(epfd, EPOLL_CTL_MOD, it->kfd, it->kreg, it->data);
    else if (!it->in_kernel && fired && kernel_ctl(epfd, EPOLL_CTL_ADD, it->kfd, EPOLLONESHOT, it->data) == 0) {
      it->in_kernel = true;
      it->kcookie = false;
      it->kreg = EPOLLONESHOT;
      ep->in_kernel.fetch_add(1, std::memory_order_relaxed);
    }
  }
}

void epoll_export(int epfd) {
  epoll* const ep = as_epoll(fd_lookup(epfd));
  if (!ep) return;
  export_set(ep, "in an epoll set given to another program");
  if (!ep->lock.lock()) return;
  epoll_give_back(ep);
  epoll_unlock(ep);
}

}  // namespace icepath
