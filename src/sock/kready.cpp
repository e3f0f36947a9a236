// See kready.hpp. The poll request holds a reference of the epoll file: it must end before the set can go away.
// Parked rings are on one list under a lock, signals blocked. A ring whose thread has ended is closed there: it interrupts nobody any more.
// How it fails: a ring that cannot be made, armed or emptied is given up, with its memory and descriptor while its thread lives.
#include "sock/kready.hpp"
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cerrno>
#include "base/libc.hpp"
#include "base/raw_syscall.hpp"
#include "sock/epoll.hpp"
#include "sock/proc.hpp"
#include "stack/process.hpp"

namespace icepath {
namespace {

std::atomic<bool> forbidden{false};     // io_uring is not to be had in this process
std::atomic<uint32_t> nr_armed{0};      // parked rings with a request
std::atomic<uint64_t> serials{0};
stable_pool<kring, 16, 4096> rings;
self_lock parked_lock;
kring* parked = nullptr;

struct parked_list {                    // holds the lock
  no_signals block;
  parked_list() { parked_lock.lock(); }
  ~parked_list() { parked_lock.unlock(); }
};

bool arm(kring* r, int epfd) {
  io_uring_sqe* const sqe = io_uring_get_sqe(&r->ring);
  if (!sqe) return false;
  r->serial = serials.fetch_add(1, std::memory_order_relaxed) + 1;
  io_uring_prep_poll_multishot(sqe, epfd, EPOLLIN);
  sqe->user_data = r->serial;
  return io_uring_submit(&r->ring) == 1;
}

// Owner. Takes the completions; true: the request that counts has ended.
bool drain(kring* r) {
  bool ended = false;
  io_uring_cqe* cqe;
  while (io_uring_peek_cqe(&r->ring, &cqe) == 0 && cqe) {
    if (cqe->user_data == r->serial && !(cqe->flags & IORING_CQE_F_MORE)) ended = true;   // overflow, the kernel's choice, or disarm
    io_uring_cqe_seen(&r->ring, cqe);
  }
  return ended;
}

// Owner. False: the request may still stand.
bool disarm(kring* r) {
  if (io_uring_get_events(&r->ring) < 0) return false;
  if (drain(r)) return true;
  io_uring_sqe* const sqe = io_uring_get_sqe(&r->ring);
  if (!sqe) return false;
  io_uring_prep_poll_remove(sqe, r->serial);
  sqe->user_data = 0;
  if (io_uring_submit(&r->ring) != 1) return false;
  for (int i = 0; i < 10; ++i) {
    if (io_uring_get_events(&r->ring) < 0) return false;
    if (drain(r)) return true;
  }
  return false;
}

// Its thread is gone, or this is a fork child. By then nobody looks at the flag but by mistake.
void destroy(kring* r) {
  process_fd_del_internal(r->ring.ring_fd);
  io_uring ring = r->ring;
  r->ring = {};
  r->owner = nullptr;
  r->armed = false;
  io_uring_queue_exit(&ring);
  rings.put(r);
}

bool alive(int tid) { return raw_syscall(SYS_tgkill, getpid(), tid, 0) != -ESRCH; }

void set_armed(kring* r, bool armed) {
  if (armed == r->armed) return;
  r->armed = armed;
  nr_armed.fetch_add(armed ? 1u : ~0u, std::memory_order_relaxed);
}

void park(kring* r, bool armed) {
  parked_list locked;
  set_armed(r, armed);
  r->next = parked;
  parked = r;
}

// A parked ring of this thread without a request, off the list; nullptr: none. Ends what other threads have left to us, and rings without a thread.
kring* unpark(const char* self) {
  parked_list locked;
  kring* found = nullptr;
  for (kring** at = &parked; *at;) {
    kring* const r = *at;
    if (r->owner == self) {
      // A later thread may have our address: the kernel knows whose the ring is.
      if (io_uring_get_events(&r->ring) == -EEXIST) {
        *at = r->next;
        set_armed(r, false);
        destroy(r);
        continue;
      }
      if (r->armed && disarm(r)) set_armed(r, false);
      if (!found && !r->armed) {
        found = r;
        *at = r->next;
        continue;
      }
    } else if (!alive(r->tid)) {
      *at = r->next;
      set_armed(r, false);
      destroy(r);
      continue;
    }
    at = &r->next;
  }
  return found;
}

void end_left_over(const char* self) {
  parked_list locked;
  for (kring* r = parked; r; r = r->next)
    if (r->armed && r->owner == self && disarm(r)) set_armed(r, false);
}

kring* make(const char* self) {
  kring* const r = rings.get();
  if (!r) return nullptr;
  io_uring_params p{};
  p.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_CLAMP;
  const long fd = raw_syscall(SYS_io_uring_setup, 4, &p);
  int err = fd < 0 ? static_cast<int>(-fd) : 0;
  if (!err && io_uring_queue_mmap(static_cast<int>(fd), &p, &r->ring) < 0) {
    process_fd_add_internal(static_cast<int>(fd));     // stays open: closing it would interrupt
    err = ENOTSUP;
  }
  if (err) {
    r->ring = {};
    rings.put(r);
    if (err != ENOMEM && err != EMFILE && err != ENFILE) forbidden.store(true, std::memory_order_relaxed);
    return nullptr;
  }
  for (unsigned i = 0; i < *r->ring.sq.kring_entries; ++i) r->ring.sq.array[i] = i;
  r->ring.features = p.features;
  r->ring.flags = p.flags;
  io_uring_ring_dontfork(&r->ring);
  r->ring.ring_fd = r->ring.enter_ring_fd = process_move_high(r->ring.ring_fd);
  process_fd_add_internal(r->ring.ring_fd);
  r->owner = self;
  r->tid = static_cast<int>(raw_syscall(SYS_gettid));
  return r;
}

}  // namespace

bool kready_open(kready& k, int epfd, const char* self) {
  k.state.store(kready::failed, std::memory_order_relaxed);
  if (forbidden.load(std::memory_order_relaxed) || sandboxed()) return false;
  kring* r = unpark(self);
  if (!r) r = make(self);
  if (!r) return false;
  if (!arm(r, epfd)) {
    park(r, true);
    return false;
  }
  k.r = r;
  k.owner = self;
  k.state.store(kready::open, std::memory_order_release);
  return true;
}

void kready_ack(kready& k, int epfd) {
  if (ICEPATH_UNLIKELY(nr_armed.load(std::memory_order_relaxed))) end_left_over(k.owner);
  if (io_uring_get_events(&k.r->ring) < 0) { k.state.store(kready::failed, std::memory_order_relaxed); return; }
  if (drain(k.r) && !arm(k.r, epfd)) k.state.store(kready::failed, std::memory_order_relaxed);
}

void kready_close(kready& k) {
  if (k.owner) {
    const bool own = k.owner == &mux_self;
    park(k.r, !(own && !sandboxed() && disarm(k.r)));
  }
  k.owner = nullptr;
  k.state.store(kready::none, std::memory_order_relaxed);
}

void kready_forget(kready& k) {
  if (k.owner) {
    process_fd_del_internal(k.r->ring.ring_fd);
    real::close(k.r->ring.ring_fd);
    k.r->ring = {};
    k.r->owner = nullptr;
    rings.put(k.r);
  }
  k.owner = nullptr;
  k.state.store(kready::none, std::memory_order_relaxed);
}

void kready_fork_prepare() { parked_lock.lock(); }
void kready_fork_parent() { parked_lock.unlock(); }
void kready_fork_child() {
  parked_lock.reset();
  for (kring* r = parked; r;) {
    kring* const next = r->next;
    process_fd_del_internal(r->ring.ring_fd);
    real::close(r->ring.ring_fd);
    r->ring = {};
    r->owner = nullptr;
    r->armed = false;
    rings.put(r);
    r = next;
  }
  parked = nullptr;
  nr_armed.store(0, std::memory_order_relaxed);
}

}  // namespace icepath
