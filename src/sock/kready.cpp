// See kready.hpp. The poll request holds a reference of the epoll file: the ring must be closed before the set can go away.
#include "sock/kready.hpp"
#include <sys/epoll.h>
#include "base/libc.hpp"
#include "stack/process.hpp"

namespace icepath {
namespace {

std::atomic<bool> forbidden{false};     // io_uring is not to be had in this process

bool arm(kready& k, int epfd) {
  io_uring_sqe* const sqe = io_uring_get_sqe(&k.ring);
  if (!sqe) return false;
  io_uring_prep_poll_multishot(sqe, epfd, EPOLLIN);
  return io_uring_submit(&k.ring) == 1;
}

}  // namespace

bool kready_open(kready& k, int epfd, const char* self) {
  k.state.store(kready::failed, std::memory_order_relaxed);
  if (forbidden.load(std::memory_order_relaxed)) return false;
  io_uring_params p{};
  p.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_CLAMP;
  const int err = io_uring_queue_init_params(4, &k.ring, &p);
  if (err < 0) {
    k.ring = {};
    if (err != -ENOMEM && err != -EMFILE && err != -ENFILE) forbidden.store(true, std::memory_order_relaxed);
    return false;
  }
  io_uring_ring_dontfork(&k.ring);
  k.ring.ring_fd = k.ring.enter_ring_fd = process_move_high(k.ring.ring_fd);
  process_fd_add_internal(k.ring.ring_fd);
  if (!arm(k, epfd)) {
    process_fd_del_internal(k.ring.ring_fd);
    io_uring_queue_exit(&k.ring);
    k.ring = {};
    return false;
  }
  k.owner = self;
  k.state.store(kready::open, std::memory_order_release);
  return true;
}

void kready_ack(kready& k, int epfd) {
  bool again = false;
  if (io_uring_get_events(&k.ring) < 0) { k.state.store(kready::failed, std::memory_order_relaxed); return; }
  io_uring_cqe* cqe;
  while (io_uring_peek_cqe(&k.ring, &cqe) == 0 && cqe) {
    if (!(cqe->flags & IORING_CQE_F_MORE)) again = true;   // the request has ended: overflow, or the kernel's choice
    io_uring_cqe_seen(&k.ring, cqe);
  }
  if (again && !arm(k, epfd)) k.state.store(kready::failed, std::memory_order_relaxed);
}

void kready_close(kready& k) {
  if (k.ring.sq.ring_ptr) {
    process_fd_del_internal(k.ring.ring_fd);
    io_uring_queue_exit(&k.ring);
    k.ring = {};
  }
  k.state.store(kready::none, std::memory_order_relaxed);
  k.owner = nullptr;
}

void kready_forget(kready& k) {
  if (k.ring.sq.ring_ptr) {
    process_fd_del_internal(k.ring.ring_fd);
    real::close(k.ring.ring_fd);
  }
  k.ring = {};
  k.state.store(kready::none, std::memory_order_relaxed);
  k.owner = nullptr;
}

}  // namespace icepath
