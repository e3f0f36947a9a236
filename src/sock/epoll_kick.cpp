// Getting threads out of a plain kernel wait when their set stops being plain: an eventfd that is always readable is put into the set for one wake-up at
// a time. Whoever finds it among his events and knows that others still sleep arms it again, a bounded number of times.
// Any thread. One eventfd serves all sets; without one (no descriptors left) the sleepers wake at their next event.
#include <sys/eventfd.h>
#include "sock/epoll.hpp"
#include "stack/process.hpp"

namespace icepath {
namespace {

uint64_t kick_data() {
  static const uint64_t high = [] {
    epoll_item probe;
    return item_cookie(&probe) >> 32 << 32;
  }();
  return high | ~uint32_t{0};
}

void arm_kick(epoll* ep) {
  static std::atomic<int> kick_fd{-1};
  int fd = kick_fd.load(std::memory_order_acquire);
  if (fd < 0) {
    const int made = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    if (made < 0) return;
    fd = process_move_high(made);
    process_fd_add_internal(fd);
    int expected = -1;
    if (!kick_fd.compare_exchange_strong(expected, fd, std::memory_order_acq_rel)) {
      process_fd_del_internal(fd);
      real::close(fd);
      fd = expected;
    }
  }
  const int epfd = ep->fd.load(std::memory_order_relaxed);
  const int r = kernel_ctl(epfd, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLONESHOT, kick_data());
  if (r == -EEXIST) kernel_ctl(epfd, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT, kick_data());
}

}  // namespace

bool is_kick(uint64_t data) { return is_cookie(data) && static_cast<uint32_t>(data) == ~0u; }

void epoll_kick(epoll* ep) {
  ep->kicks.store(1000, std::memory_order_relaxed);
  arm_kick(ep);
}

void epoll_kick_again(epoll* ep) {
  if (!ep->plain.load(std::memory_order_seq_cst)) return;
  uint32_t k = ep->kicks.load(std::memory_order_relaxed);
  while (k && !ep->kicks.compare_exchange_weak(k, k - 1, std::memory_order_relaxed)) {}
  if (k) arm_kick(ep);
}

}  // namespace icepath
