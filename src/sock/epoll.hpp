// An epoll set and its items. Private to src/sock/epoll*.cpp and poll.cpp.
//
// Synchronisation
//   epoll::lock       set, items, private ready list. Held by one thread, named; a signal handler that finds its own thread there does
//                     not wait: it leaves `dead` or `resync` on the item and `pending` on the set, and unlock does the rest.
//   epoll::incoming   lock-free stack: any thread and any signal handler pushes (item_queue), the holder of `lock` takes all.
//   item::queued      true from the push until the item is taken off the ready list to be looked at. Cleared (exchange, a full
//                     barrier) before sock_poll, so a wake that comes after that look queues the item again. Partner: item_queue.
//   slots             who waits: published (seq_cst) before the last look at the ready list. Partner: epoll_notify, which looks at the
//                     slots after the push. A waker takes the slot away, so that the next event wakes another thread.
//   socket::items     guarded by socket::wait_lock, taken inside `lock` and with signals blocked.
// Lock order: outer set's lock, inner set's lock, socket::wait_lock. fn of a wait_entry takes none.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <cerrno>
#include <new>
#include "base/clock.hpp"
#include "base/sig_gate.hpp"
#include "base/libc.hpp"
#include "sock/kready.hpp"
#include "sock/mux.hpp"
#include "sock/socket.hpp"
#include "sock/wait.hpp"

namespace icepath {

inline thread_local char mux_self [[gnu::tls_model("initial-exec")]];

// A lock for short sections that knows its holder. lock(): false when the calling thread holds it already.
class self_lock {
 public:
  bool lock() {
    char* const me = &mux_self;
    for (unsigned spins = 0;; ++spins) {
      char* cur = nullptr;
      if (owner_.compare_exchange_weak(cur, me, std::memory_order_acquire, std::memory_order_relaxed)) return true;
      if (cur == me) return false;
      if (spins < 200) cpu_relax(); else sched_yield();
    }
  }
  void unlock() { owner_.store(nullptr, std::memory_order_release); }
  void reset() { owner_.store(nullptr, std::memory_order_relaxed); }

 private:
  std::atomic<char*> owner_{nullptr};  // release in unlock pairs with acquire in lock
};

// No handler of the program runs for the life of the object: sections that hold socket::wait_lock.
using no_signals = closed_gate;

// Type-stable objects: made in chunks that are never unmapped, kept on a lock-free free list (index and tag in one word against ABA). One at a time,
// so that a fork child that needs two touches no more. Any thread and any signal handler. get() returns nullptr when memory or chunks are used up.
template <class T, uint32_t PerChunk, uint32_t MaxChunks>
class stable_pool {
 public:
  T* get() {
    uint64_t h = head_.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(h)) {
      T* const t = at(static_cast<uint32_t>(h) - 1);
      const uint64_t next = ((h >> 32) + 1) << 32 | t->pool_next.load(std::memory_order_relaxed);
      if (head_.compare_exchange_weak(h, next, std::memory_order_acq_rel, std::memory_order_acquire)) return t;
    }
    return fresh();
  }
  void put(T* t) {
    uint64_t h = head_.load(std::memory_order_relaxed), n;
    do {
      t->pool_next.store(static_cast<uint32_t>(h), std::memory_order_relaxed);
      n = ((h >> 32) + 1) << 32 | (t->pool_index + 1);
    } while (!head_.compare_exchange_weak(h, n, std::memory_order_acq_rel, std::memory_order_relaxed));
  }
  T* at(uint32_t i) const {  // nullptr: no such object
    const uint32_t c = i / PerChunk;
    if (c >= MaxChunks) return nullptr;
    T* const chunk = chunks_[c].load(std::memory_order_acquire);
    return chunk ? chunk + i % PerChunk : nullptr;
  }
  template <class F>
  void each(F f) {
    const uint32_t n = made_.load(std::memory_order_acquire);
    for (uint32_t i = 0; i < n; ++i)
      if (T* const t = at(i)) f(t);
  }

 private:
  T* fresh() {
    uint32_t i = made_.load(std::memory_order_relaxed);
    do if (i >= PerChunk * MaxChunks) return nullptr;
    while (!made_.compare_exchange_weak(i, i + 1, std::memory_order_acq_rel, std::memory_order_relaxed));
    std::atomic<T*>& c = chunks_[i / PerChunk];
    T* p = c.load(std::memory_order_acquire);
    if (!p) {
      void* const m = mmap(nullptr, sizeof(T) * PerChunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (m == MAP_FAILED) return nullptr;         // this index is lost, no more
      if (c.compare_exchange_strong(p, static_cast<T*>(m), std::memory_order_acq_rel)) p = static_cast<T*>(m);
      else munmap(m, sizeof(T) * PerChunk);        // another thread's is there
    }
    T* const t = new (p + i % PerChunk) T;
    t->pool_index = i;
    return t;
  }
  std::atomic<uint64_t> head_{0};
  std::atomic<uint32_t> made_{0};                 // indices given out so far
  std::atomic<T*> chunks_[MaxChunks] = {};
};

struct epoll;

// In epoll_item::told: EPOLLIN was reported when the peer's FIN had come. No byte comes after it, and a change of lanes is not news.
constexpr uint32_t told_end = 1u << 27;

// Not registered with the kernel any more, but true in every report that something else causes.
constexpr uint32_t end_bits(uint32_t told) { return told & told_end ? EPOLLIN | EPOLLRDNORM : 0u; }

struct epoll_item {
  std::atomic<uint32_t> pool_next{0};
  uint32_t pool_index = 0;
  uint8_t gen = 0;                      // of the kernel cookie; counts up with every use of the object
  epoll* ep = nullptr;
  socket* s = nullptr;                  // what it watches: one of these two
  epoll* inner = nullptr;
  int fd = -1;                          // as registered by the application
  int kfd = -1;                         // as registered in the kernel: fd, or a dup when fd was closed
  std::atomic<uint32_t> events{0};      // as the application asked
  uint64_t data = 0;
  bool in_kernel = false;               // stands in the kernel set, with events kreg
  bool kcookie = false;                 // there with our cookie as data; otherwise with the application's data
  uint32_t kreg = 0;
  std::atomic<bool> disabled{false};    // oneshot has fired
  std::atomic<bool> dead{false};        // closed by a signal handler while its set was locked
  std::atomic<bool> resync{false};      // its lanes changed in the same situation
  int8_t stack_no = -1;                 // counted in ep->stack_refs
  uint32_t sync_mark = 0;               // epoll_sync's, under wait_lock
  std::atomic<bool> queued{false};
  epoll_item* next_in = nullptr;        // in ep->incoming
  list_node ready;                      // in ep->ready
  list_node all;                        // in ep->items
  list_node of_socket;                  // in s->items
  wait_entry we;
  uint32_t added_at = 0;                // ep->drained at the last ADD or MOD
  std::atomic<bool> told_out{false};    // EPOLLOUT reported since then by the fast side
  std::atomic<uint32_t> told{0};        // every bit this side of the library has reported since then; written under ep->lock
  // After told_end: the kernel set reports what was registered anew, because lanes have changed, once more; that is no event. Set under ep->lock.
  std::atomic<bool> echo{false};
  // epoll_edge has told the kernel set of bytes that are the fast lane's when the kernel lane is read; edge_at: ep->drained then.
  std::atomic<bool> edged{false};
  uint32_t edge_at = 0;
  uint64_t seen_call = 0;               // reported in this call of this thread already, at place seen_at: bits are merged
  const char* seen_by = nullptr;
  int seen_at = 0;
  uint32_t seen_bits = 0;
};

struct epoll : file {
  static constexpr unsigned max_slots = 64, max_outer = 8, fd_page = 512, fd_pages = fdtable_size / fd_page;

  std::atomic<uint32_t> pool_next{0};
  uint32_t pool_index = 0;
  self_lock lock;
  std::atomic<bool> pending{false};
  std::atomic<bool> closing{false};     // closed by a signal handler while locked
  std::atomic<bool> gone{false};        // its last fd was closed; freed when refs is zero
  std::atomic<bool> inherited{false};   // in a fork child: its connections are the parent's, asked back before the first wait
  std::atomic<epoll_item*> incoming{nullptr};
  list_head ready;
  std::atomic<uint32_t> nready{0};      // length of ready; written under lock
  list_head items;
  epoll_item*** by_fd = nullptr;        // fd_pages pointers to pages of fd_page items, made on demand, kept

  std::atomic<uint64_t> mask{0};        // stacks where its sockets live
  uint32_t stack_refs[64] = {};
  std::atomic<uint32_t> nested{0};      // items that watch another set
  std::atomic<uint32_t> watched{0};     // how many places of outer are taken
  std::atomic<uint32_t> notifying{0};   // threads that walk outer: an item is freed only when there is none
  std::atomic<epoll_item*> outer[max_outer] = {};  // items of other sets that watch this one
  std::atomic<const char*> exported{nullptr};      // why its sockets must stay in the kernel

  std::atomic<bool> foreign{false};     // descriptors that are not ours were put in
  std::atomic<uint32_t> in_kernel{0};   // items of ours that stand in the kernel set
  std::atomic<bool> hot{true};          // the kernel set may be ready although the ring is silent
  std::atomic<uint32_t> drained{0};     // how often the kernel set was found with no more than we had room for: all its edges are told
  std::atomic<uint32_t> empty_looks{0};
  std::atomic<uint32_t> since_look{0};  // calls since the kernel was asked
  std::atomic<uint64_t> last_look{0};   // cycles()
  bool kernel_turn = true;              // with room for one event only, sides take turns; under lock
  kready ring;

  std::atomic<uint32_t> plain{0};       // threads in a plain kernel wait
  std::atomic<uint32_t> kicks{0};       // how often the kick may still be armed again
  std::atomic<uint32_t> waiting{0};     // slots in use or about to be
  std::atomic<waiter*> slots[max_slots] = {};
  std::atomic<uint32_t> polling{0};
  std::atomic<waiter*> pollers[max_slots] = {};    // threads in poll/select on this set: all are woken
};

// Read by any thread while the lane code changes it; stacks are never freed.
inline stack* stack_of(const socket* s) { return __atomic_load_n(&s->st, __ATOMIC_ACQUIRE); }

inline epoll* as_epoll(file* f) { return f && f->kind == file_kind::epoll ? static_cast<epoll*>(f) : nullptr; }

constexpr uint32_t ep_bits = 0x3fff | EPOLLRDHUP;       // event bits, as opposed to EPOLLET and the like
constexpr uint32_t ep_always = EPOLLERR | EPOLLHUP;
// tcp_poll raises the bits of one group together; whoever asks for one of them gets it.
constexpr uint32_t ep_expand(uint32_t b) {
  if (b & EPOLLIN) b |= EPOLLRDNORM;
  if (b & EPOLLOUT) b |= EPOLLWRNORM;
  return b;
}
constexpr uint32_t ep_expand_kernel(uint32_t b) {
  if (b & EPOLLIN) b |= EPOLLRDNORM | EPOLLRDBAND;
  if (b & EPOLLOUT) b |= EPOLLWRNORM | EPOLLWRBAND;
  return b;
}

inline int kernel_ctl(int ep, int op, int fd, uint32_t events, uint64_t data) {   // 0 or -errno
  epoll_event ev{};
  ev.events = events;
  ev.data.u64 = data;
  return real::epoll_ctl(ep, op, fd, &ev) < 0 ? -errno : 0;
}

inline timespec to_timespec(nsec t) { return {static_cast<time_t>(t / sec_ns), static_cast<long>(t % sec_ns)}; }

// The bits an item stands in the kernel set for, given those the kernel answers. While fast bytes are unread whose end is known, the fast side answers
// EPOLLIN, but what comes behind them comes by the kernel lane: an edge, which only the kernel set can tell.
constexpr uint32_t ep_kernel_part(uint32_t kernel_bits, uint32_t events) {
  const bool behind = (events & EPOLLET) && (kernel_bits & EPOLLRDHUP) && !(kernel_bits & EPOLLIN);
  return ep_expand_kernel(kernel_bits) | (behind ? EPOLLIN | EPOLLRDNORM : 0u);
}

// epoll.cpp: life and ready list
epoll* epoll_alloc();
void epoll_put(epoll* ep);                              // give back a reference of a blocking call
void epoll_unlock(epoll* ep);                           // unlock, then do what signal handlers left
epoll_item* item_alloc();
void item_free(epoll_item* it);
epoll_item* item_of_cookie(uint64_t data);              // nullptr: not a cookie, or of an item that is gone
uint64_t item_cookie(const epoll_item* it);
bool is_cookie(uint64_t data);
bool item_queue(epoll_item* it);                        // on the ready list; false: it was there. Lock-free
void item_wake(wait_entry* we, uint32_t mask);          // wait_entry::fn
void epoll_notify(epoll* ep);                           // wake who waits for the set. Lock-free
void epoll_take_incoming(epoll* ep);                    // under lock
uint32_t item_poll(epoll_item* it);                     // fast side's events, under lock
bool item_has_ended(const epoll_item* it, uint32_t asked);
bool epoll_readable(epoll* ep);                         // anything on the fast side?
void epoll_claim(epoll* ep);                            // of a fork child
int slot_publish(std::atomic<waiter*>* slots, std::atomic<uint32_t>& n, waiter* w);   // its place; -1: none free
void slot_withdraw(std::atomic<waiter*>* slots, std::atomic<uint32_t>& n, int at, waiter* w);
uint64_t epoll_stacks(epoll* ep);                       // mask, with those of nested sets
inline bool epoll_fast_pending(const epoll* ep) {
  return ep->incoming.load(std::memory_order_seq_cst) || ep->nready.load(std::memory_order_relaxed);
}

// epoll_ctl.cpp: items and the kernel set
bool item_kernel_apply(epoll_item* it, bool force, int* err = nullptr);  // under lock; true: the fast side answers some bits
void item_kernel_del(epoll_item* it);                   // under lock
void item_remove(epoll_item* it);                       // under lock, signals blocked
void item_set_stack(epoll_item* it);                    // under lock
void epoll_sync_item(epoll_item* it);                   // under lock
void epoll_give_back(epoll* ep);                        // under lock: the kernel set as the application made it

// epoll_kick.cpp
void epoll_kick(epoll* ep);                             // get threads out of the plain kernel wait
bool is_kick(uint64_t data);
void epoll_kick_again(epoll* ep);

}  // namespace icepath
