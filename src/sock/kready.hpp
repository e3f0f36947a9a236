// Readiness of a kernel epoll set without system calls: an io_uring with a multishot poll request on the epoll fd. With deferred task
// work (Linux 6.1) the kernel only sets a flag in the shared submission ring when the set becomes ready; nothing interrupts the thread, and
// no blocking call is disturbed. One load tells the spinner.
//
// Owner: the thread that opened the ring (single issuer). Others may read the flag, only the owner may acknowledge. When io_uring is not
// permitted or too old, open fails once and for all, and the caller asks the kernel at a rate limit instead.
#pragma once
#include <liburing.h>
#include <atomic>
#include "base/types.hpp"

namespace icepath {

struct kready {
  io_uring ring{};
  enum state_t : uint8_t { none, open, failed };
  std::atomic<state_t> state{none};     // release when it becomes open; the ring stays mapped until kready_close
  bool is(state_t s) const { return state.load(std::memory_order_acquire) == s; }
  const char* owner = nullptr;          // &mux_self of the owning thread
};

bool kready_open(kready& k, int epfd, const char* self);
// May the set have become ready since the last kready_ack? One load.
inline bool kready_raised(const kready& k) {
  return (__atomic_load_n(k.ring.sq.kflags, __ATOMIC_ACQUIRE) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}
// Owner: lower the flag and keep the request armed. To be called before the set is read, so that what comes later raises it again.
void kready_ack(kready& k, int epfd);
void kready_close(kready& k);
void kready_forget(kready& k);          // in a fork child: the ring is the parent's

}  // namespace icepath
