// Life of a watched socket: made, listening, connecting, accepted, duplicated, closed. See socket.hpp. Any thread; the kernel has the last word, this
// file only notes what it said.
#include "sock/socket.hpp"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>

#include "base/clock.hpp"
#include "base/sig_gate.hpp"
#include "base/config.hpp"
#include "base/libc.hpp"
#include "sock/holders.hpp"
#include "sock/lane.hpp"
#include "sock/lane_sys.hpp"
#include "sock/pool.hpp"
#include "sock/proc.hpp"
#include "sock/rows.hpp"
#include "sock/wait.hpp"
#include "stack/process.hpp"

namespace icepath {
namespace {

socket* watch(int fd, int domain, bool nonblock) {
  if (static_cast<unsigned>(fd) >= fdtable_limit || sandboxed()) return nullptr;
  process_start();
  socket* s = socket_alloc();
  if (!s) return nullptr;
  s->family = static_cast<uint16_t>(domain);
  s->nonblock.store(nonblock, std::memory_order_relaxed);
  fd_install(fd, s);
  return s;
}

nsec timeout_of(int fd, int name) {
  timeval tv{};
  socklen_t len = sizeof tv;
  if (real::getsockopt(fd, SOL_SOCKET, name, &tv, &len) != 0 || (tv.tv_sec == 0 && tv.tv_usec == 0)) return ~nsec{0};
  return static_cast<nsec>(tv.tv_sec) * sec_ns + static_cast<nsec>(tv.tv_usec) * usec_ns;
}

// The last descriptor of s is going: finish the lanes. True: the caller closes fd. False: an orphan keeps a dup of it.
// Leaves with the owner word held in *held when there was a fast connection, so that the peer never meets a stack without the connection
// before the kernel's FIN has been sent.
void finish(socket* s, stack** held) {
  *held = nullptr;
  stack* st = s->st;
  if (!st || !s->ln) return;
  const bool entered = stack_enter(st);
  if (entered) stack_poll_inside(st);   // bytes that are here and unread make the close a reset
  lane* l = s->ln;
  if (l && l->s == s && l->st == st) {
    stack_tick(st);
    if (lane_close(l, false)) s->ln = nullptr;
  }
  if (entered) *held = st;
}

// After the last descriptor has left the table: true when a blocked call keeps the connection; s->fd is then a descriptor of its own.
bool defer_close(socket* s) {
  if (s->refs.load(std::memory_order_seq_cst) == 0) return false;   // partner: sock_hold
  stack* st = s->st;
  if (!st || !stack_enter(st)) return false;
  bool kept = false;
  if (lane* l = s->ln; l && l->s == s && l->st == st && s->fast.load(std::memory_order_relaxed)) {
    const int d = real::fcntl(l->fd, F_DUPFD_CLOEXEC, 3);
    if (d >= 0) {
      const int hi = process_move_high(d);
      process_fd_add_internal(hi);
      lane_rebase(l, hi);
      s->fd.store(hi, std::memory_order_relaxed);
      s->close_wait.store(true, std::memory_order_seq_cst);
      kept = true;
    }
  }
  stack_leave(st);
  return kept;
}

void let_go(socket* s) {
  if (s->ln == nullptr) {
    if (s->share.load(std::memory_order_relaxed)) holders_release(s);
    s->st = nullptr;
    s->fast.store(false, std::memory_order_relaxed);
    socket_release(s);
  }
}

}  // namespace

bool sock_address(const sockaddr_storage& a, inet_addr* addr, uint16_t* port) {
  if (a.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(a);
    *addr = inet_addr::v4(ntohl(in.sin_addr.s_addr));
    *port = ntohs(in.sin_port);
    return true;
  }
  if (a.ss_family == AF_INET6) {
    const auto& in = reinterpret_cast<const sockaddr_in6&>(a);
    std::memcpy(addr->b, &in.sin6_addr, 16);
    *port = ntohs(in.sin6_port);
    return true;
  }
  return false;
}

void sock_on_socket(int fd, int domain, int type, int protocol) {
  if ((domain != AF_INET && domain != AF_INET6) || (type & 0xf) != SOCK_STREAM || (protocol != 0 && protocol != IPPROTO_TCP)) return;
  watch(fd, domain, (type & SOCK_NONBLOCK) != 0);
}

void sock_on_listen(file* f) {
  if (socket* s = as_socket(f)) {
    s->state = sock_state::listening;
    s->reason = "listening";
    row_listening(s);
  }
}

void sock_on_accept(file* listener, int fd, int flags) {
  socket* ls = as_socket(listener);
  if (!ls) return;
  socket* s = watch(fd, ls->family, (flags & SOCK_NONBLOCK) != 0);
  if (!s) return;
  s->state = sock_state::connected;
  s->reason = "new";
  s->rcvlowat = ls->rcvlowat;
  s->buf_locked = ls->buf_locked;
  s->rcvtimeo = ls->rcvtimeo;
  s->sndtimeo = ls->sndtimeo;
  rows_count_connection();
  if (config_get().promote == promote_rule::eager) promote_step(s, fd);
}

void sock_on_connect(file* f, int fd, int err) {
  socket* s = as_socket(f);
  if (!s) return;
  if (err == 0) {
    s->state = sock_state::connected;
    s->reason = "new";
    rows_count_connection();
    if (config_get().promote == promote_rule::eager) promote_step(s, fd);
  } else if (err == EINPROGRESS || err == EALREADY || err == EINTR) {
    if (s->state == sock_state::fresh) {
      s->state = sock_state::connecting;
      s->reason = "connecting";
    }
  } else if (err == EISCONN && s->state == sock_state::connecting) {
    s->state = sock_state::connected;
    s->reason = "new";
    rows_count_connection();
  }
}

namespace {
void close_deferred(socket* s) {
  if (!s->close_wait.exchange(false, std::memory_order_seq_cst)) return;
  const int fd = s->fd.load(std::memory_order_relaxed);
  stack* held;
  finish(s, &held);
  lane_sys::close(fd);
  process_fd_del_internal(fd);
  if (held) stack_leave(held);
  let_go(s);
}
}  // namespace

bool sock_hold(socket* s, int fd) {
  s->refs.fetch_add(1, std::memory_order_seq_cst);  // partner: defer_close, after the table slot was taken
  if (!fd_lost(fd, s)) return true;
  sock_put(s);
  return false;
}

void sock_put(socket* s) {
  if (s->refs.fetch_sub(1, std::memory_order_seq_cst) == 1 && s->close_wait.load(std::memory_order_seq_cst)) close_deferred(s);
}

void sock_before_replace(int newfd) {
  file* f = static_cast<unsigned>(newfd) < fdtable_limit ? fdtable[newfd].load(std::memory_order_acquire) : nullptr;
  if (!f) return;
  epoll_on_close(newfd, f);
  f = fd_remove(newfd);
  if (!f) return;
  if (f->nr_fds.load(std::memory_order_acquire) != 0) return;
  if (f->kind == file_kind::epoll) { epoll_destroy(f); return; }
  auto* s = static_cast<socket*>(f);
  if (ICEPATH_UNLIKELY(defer_close(s))) {
    if (s->refs.load(std::memory_order_seq_cst) == 0) close_deferred(s);
    return;
  }
  stack* held;
  finish(s, &held);
  sock_wake(s, ~0u);
  if (held) stack_leave(held);
  let_go(s);
}

int sock_close(int fd) {
  file* f = fd_lookup(fd);
  if (!f) return real::close(fd) == 0 ? 0 : -errno;
  wait_reap(__builtin_frame_address(0));
  if (f->kind == file_kind::tcp && f->nr_fds.load(std::memory_order_acquire) == 1 && static_cast<socket*>(f)->ln) {
    auto* s = static_cast<socket*>(f);
    epoll_on_close(fd, f);
    if (fd_remove(fd) != f) return -EBADF;
    if (ICEPATH_UNLIKELY(defer_close(s))) {
      const int r = lane_sys::close(fd) == 0 ? 0 : -errno;
      if (s->refs.load(std::memory_order_seq_cst) == 0) close_deferred(s);
      return r;
    }
    stack* held;
    finish(s, &held);
    const int r = lane_sys::close(fd) == 0 ? 0 : -errno;
    sock_wake(s, ~0u);
    if (held) stack_leave(held);
    let_go(s);
    return r;
  }
  lane_fd_gone(f, fd);
  sock_before_replace(fd);
  return real::close(fd) == 0 ? 0 : -errno;
}

void sock_on_dup(int oldfd, int newfd) {
  file* f = fd_lookup(oldfd);
  if (!f) return;
  fd_install(newfd, f);
}

// One of several descriptors closes: the lane must not go on using its number.
void lane_fd_gone(file* f, int fd) {
  if (f->kind != file_kind::tcp) return;
  auto* s = static_cast<socket*>(f);
  if (f->nr_fds.load(std::memory_order_acquire) < 2) return;
  int other = -1;
  for (int i = 0; i < 65536 && other < 0; ++i)
    if (i != fd && fdtable[i].load(std::memory_order_relaxed) == f) other = i;
  if (other < 0) return;
  s->fd.store(other, std::memory_order_relaxed);
  stack* st = s->st;
  if (!st || !stack_enter(st)) return;
  if (lane* l = s->ln; l && l->s == s && l->st == st && l->fd == fd) lane_rebase(l, other);
  stack_leave(st);
}

void sock_on_setfl(socket* s, int flags) { s->nonblock.store((flags & O_NONBLOCK) != 0, std::memory_order_relaxed); }

void sock_add_waiter(socket* s, wait_entry* w) {
  const closed_gate no_handlers;
  while (s->wait_lock.exchange(1, std::memory_order_acquire)) __builtin_ia32_pause();
  s->waiters.push_back(w->node);
  s->wait_lock.store(0, std::memory_order_release);
}

void sock_del_waiter(socket* s, wait_entry* w) {
  const closed_gate no_handlers;
  while (s->wait_lock.exchange(1, std::memory_order_acquire)) __builtin_ia32_pause();
  w->node.unlink();
  s->wait_lock.store(0, std::memory_order_release);
}

void sock_wake(socket* s, uint32_t mask) {
  if (s->waiters.empty()) return;  // a waiter that is being added looks at readiness afterwards
  const closed_gate no_handlers;
  while (s->wait_lock.exchange(1, std::memory_order_acquire)) __builtin_ia32_pause();
  for (list_node* n = s->waiters.next; n != &s->waiters;) {
    list_node* nx = n->next;
    auto* w = list_entry<wait_entry, &wait_entry::node>(n);
    w->fn(w, mask);
    n = nx;
  }
  s->wait_lock.store(0, std::memory_order_release);
}

readiness sock_poll(socket* s) {
  if (ICEPATH_UNLIKELY(!s->fast.load(std::memory_order_acquire))) {
    // What the kernel does not know: an error it has told us already, bytes taken from it. The rest of the mask is its own.
    const uint32_t ours = (s->pending_err ? 8u /* EPOLLERR */ : 0u) | (s->prefix_len.load(std::memory_order_acquire) ? 0x41u /* EPOLLIN | EPOLLRDNORM */ : 0u);
    return {ours, ~(ours & 8u)};
  }
  const uint64_t v = s->rd_state.load(std::memory_order_seq_cst);
  return {static_cast<uint32_t>(v), static_cast<uint32_t>(v >> 32)};
}

void sock_refresh_timeouts(socket* s, int fd) {
  s->rcvtimeo = timeout_of(fd, SO_RCVTIMEO);
  s->sndtimeo = timeout_of(fd, SO_SNDTIMEO);
}

}  // namespace icepath
