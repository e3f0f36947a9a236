// Readiness of a kernel epoll set without system calls: an io_uring with a multishot poll request on the epoll fd. With deferred task
// work (Linux 6.1) the kernel only sets a flag in the shared submission ring when the set becomes ready; nothing interrupts the thread, and
// no blocking call is disturbed. One load tells the spinner.
//
// The end of a ring does disturb: the kernel interrupts the thread that made it, some 20 ms later, in whatever call it waits then (EINTR without a
// signal). So a ring is never closed while its thread lives. It is parked, without a request, for the next set of the same thread.
//
// Owner: the thread that opened the ring (single issuer). Others may read the flag, only the owner may acknowledge: another thread must not rely on the
// flag alone, because the owner may have ended, and its request with it. When io_uring is not permitted or too old, open fails once and for all, and
// the caller asks the kernel at a rate limit instead.
#pragma once
#include <liburing.h>
#include <atomic>
#include "base/types.hpp"

namespace icepath {

// Made once, never freed: whoever still looks at a set that another thread closes finds a ring.
struct kring {
  std::atomic<uint32_t> pool_next{0};
  uint32_t pool_index = 0;
  io_uring ring{};
  const char* owner = nullptr;          // &mux_self of the thread that made the ring
  int tid = 0;                          // and its thread id
  uint64_t serial = 0;                  // user_data of the request that counts
  bool armed = false;                   // parked by another thread, with the request of the closed set. Under the lock of the list
  kring* next = nullptr;                // parked. Under the same lock
};

struct kready {
  enum state_t : uint8_t { none, open, failed };
  std::atomic<state_t> state{none};     // release when it becomes open
  bool is(state_t s) const { return state.load(std::memory_order_acquire) == s; }
  kring* r = nullptr;                   // while open. Kept afterwards for late readers
  const char* owner = nullptr;          // &mux_self of the owning thread
};

bool kready_open(kready& k, int epfd, const char* self);
// May the set have become ready since the last kready_ack? Two loads.
inline bool kready_raised(const kready& k) {
  const unsigned* const flags = __atomic_load_n(&k.r->ring.sq.kflags, __ATOMIC_RELAXED);
  return !flags || (__atomic_load_n(flags, __ATOMIC_ACQUIRE) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}
// Owner: lower the flag and keep the request armed. To be called before the set is read, so that what comes later raises it again.
void kready_ack(kready& k, int epfd);
// Any thread. By the owner the request ends here; else when the owner opens or acknowledges again, or is gone: until then the epoll set stays alive in
// the kernel, which nobody notices.
void kready_close(kready& k);
void kready_forget(kready& k);          // in a fork child: the ring is the parent's
void kready_fork_prepare();             // signals blocked until one of the next two. The child drops the rings of no set
void kready_fork_parent();
void kready_fork_child();

}  // namespace icepath
