// See fake_sock.hpp.
#include "fake_sock.hpp"
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <mutex>
#include <vector>
#include "base/clock.hpp"
#include "base/libc.hpp"
#include "sock/pool.hpp"
#include "stack/process.hpp"

namespace fake {
std::atomic<unsigned> sleeps{0}, stack_polls{0}, demotions{0}, kernel_waits{0}, kernel_polls{0}, kernel_ctls{0};
std::atomic<nsec> spin{20 * usec_ns};
void (*on_stack_poll)(unsigned) = nullptr;
}  // namespace fake

namespace icepath {

namespace real {
int close(int fd) { return ::close(fd); }
int poll(pollfd* f, nfds_t n, int t) { ++fake::kernel_polls; return ::poll(f, n, t); }
int ppoll(pollfd* f, nfds_t n, const timespec* ts, const sigset_t* m) { ++fake::kernel_polls; return ::ppoll(f, n, ts, m); }
int epoll_ctl(int ep, int op, int fd, epoll_event* ev) { ++fake::kernel_ctls; return ::epoll_ctl(ep, op, fd, ev); }
int epoll_wait(int ep, epoll_event* ev, int max, int t) { ++fake::kernel_waits; return ::epoll_wait(ep, ev, max, t); }
int epoll_pwait2(int ep, epoll_event* ev, int max, const timespec* ts, const sigset_t* m) {
  ++fake::kernel_waits;
  return static_cast<int>(::syscall(441 /* epoll_pwait2 */, ep, ev, max, ts, m, 8));
}
int pselect(int n, fd_set* r, fd_set* w, fd_set* e, const timespec* ts, const sigset_t* m) { return ::pselect(n, r, w, e, ts, m); }
int fcntl(int fd, int cmd, long arg) { return ::fcntl(fd, cmd, arg); }
}  // namespace real

// Type-stable: never freed, and not a leak.
template <class T>
static T* kept(T* t) {
  static std::mutex m;
  static std::vector<T*>& all = *new std::vector<T*>;
  const std::lock_guard g(m);
  all.push_back(t);
  return t;
}

bool sandboxed() { return false; }

static std::atomic<file*> table[4096];
std::atomic<file*>* fdtable = table;
unsigned fdtable_limit = 4096;
void fd_install(int fd, file* f) { f->nr_fds.fetch_add(1); f->fd.store(fd); fdtable[fd].store(f); }
file* fd_remove(int fd) {
  file* const f = fdtable[fd].exchange(nullptr);
  if (f) f->nr_fds.fetch_sub(1);
  return f;
}

static stack stacks[4];
stack* stack_by_no(uint16_t no) { return no < 4 ? &stacks[no] : nullptr; }
stack* stack_of_thread() { return &stacks[3]; }
bool stack_poll(stack* s) {
  ++fake::stack_polls;
  if (fake::on_stack_poll) fake::on_stack_poll(static_cast<unsigned>(s - stacks));
  return false;
}
bool stack_poll_inside(stack* s) { return stack_poll(s); }
bool stack_enter(stack*) { return true; }
void stack_leave(stack*) {}
void process_fd_add_internal(int) {}
void process_fd_del_internal(int) {}
int process_move_high(int fd) { const int h = ::fcntl(fd, F_DUPFD_CLOEXEC, 500); ::close(fd); return h; }

readiness sock_poll(socket* s) {
  const uint64_t v = s->rd_state.load();
  return {static_cast<uint32_t>(v), static_cast<uint32_t>(v >> 32)};
}
static void lock(socket* s) { while (s->wait_lock.exchange(1)) cpu_relax(); }
void sock_claim_inherited(socket*) {}
void sock_add_waiter(socket* s, wait_entry* w) { lock(s); s->waiters.push_back(w->node); s->wait_lock.store(0); }
void sock_del_waiter(socket* s, wait_entry* w) { lock(s); w->node.unlink(); s->wait_lock.store(0); }
void sock_wake(socket* s, uint32_t mask) {
  lock(s);
  for (list_node* n = s->waiters.next; n != &s->waiters; n = n->next) {
    wait_entry* const w = list_entry<wait_entry, &wait_entry::node>(n);
    w->fn(w, mask);
  }
  s->wait_lock.store(0);
}
int sock_demote(socket* s, const char* why) {
  ++fake::demotions;
  s->reason = why;
  s->rd_state.store(~0ull << 32);
  s->st = nullptr;
  epoll_sync(s);
  return 0;
}
void sock_before_replace(int fd) {
  file* f = fd_lookup(fd);
  if (!f) return;
  epoll_on_close(fd, f);
  fd_remove(fd);
  if (!f->nr_fds.load() && f->kind == file_kind::epoll) epoll_destroy(f);
}

static thread_local waiter* self = nullptr;
waiter* this_waiter() {
  if (!self) { self = kept(new waiter); self->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }
  return self;
}
void waiter_wake(waiter* w) {
  if (w->signaled.exchange(1)) return;
  const uint64_t one = 1;
  if (::write(w->event_fd, &one, 8) < 0) return;
}
int wait_until(const wait_plan& p) {
  waiter* const w = this_waiter();
  for (;;) {
    const nsec t0 = clock_now();
    do {
      uint64_t drop;
      if (w->signaled.exchange(0) && ::read(w->event_fd, &drop, 8) < 0) cpu_relax();
      for (uint64_t m = p.stacks; m; m &= m - 1) stack_poll(stack_by_no(static_cast<uint16_t>(__builtin_ctzll(m))));
      if (const int r = p.check(p.ctx); r > 0) return r;
      if (p.check_kernel) if (const int r = p.check_kernel(p.ctx); r > 0) return r;
      if (clock_now() >= p.deadline) return 0;
    } while (clock_now() - t0 < fake::spin);
    ++fake::sleeps;
    const nsec now = clock_now();
    pollfd wake{w->event_fd, POLLIN, 0};
    const int r = p.sleep(p.ctx, &wake, 1, p.deadline == ~nsec{0} ? ~nsec{0} : p.deadline > now ? p.deadline - now : 0, p.mask);
    if (const int c = p.check(p.ctx); c > 0) return c;
    if (r < 0) return r;
  }
}

}  // namespace icepath

namespace fake {

sock::sock() {
  int p[2];
  EXPECT_EQ(0, ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, p));
  fd = p[0];
  peer = p[1];
  s = kept(new icepath::socket);
  s->kind = file_kind::tcp;
  s->state = sock_state::connected;
  fd_install(fd, s);
}
sock::~sock() {
  if (fd_lookup(fd) == s) close_fd(fd);
  ::close(peer);
}
void sock::promote(uint32_t kernel_bits, unsigned no) {
  __atomic_store_n(&s->st, stack_by_no(static_cast<uint16_t>(no)), __ATOMIC_RELEASE);
  s->st->no = static_cast<uint16_t>(no);
  stack_of_thread()->no = 3;
  s->fast.store(true);
  s->rd_state.store(uint64_t{kernel_bits} << 32);
  epoll_sync(s);
}
void sock::demote() {
  s->rd_state.store(~0ull << 32);
  __atomic_store_n(&s->st, static_cast<stack*>(nullptr), __ATOMIC_RELEASE);
  s->fast.store(false);
  epoll_sync(s);
}
void sock::ready(uint32_t bits) {
  const uint64_t old = s->rd_state.load();
  s->rd_state.store(old >> 32 << 32 | bits);
  if (bits) sock_wake(s, bits);
}

epoll_fd::epoll_fd(bool) : fd(::epoll_create1(EPOLL_CLOEXEC)), open(true) { epoll_on_create(fd); }
epoll_fd::~epoll_fd() { close(); }
void epoll_fd::close() { if (open) close_fd(fd); open = false; }
int epoll_fd::ctl(int op, int what, uint32_t events, uint64_t data) {
  epoll_event ev{};
  ev.events = events;
  ev.data.u64 = data;
  return mux_epoll_ctl(fd, op, what, &ev);
}
int close_fd(int fd) {
  sock_before_replace(fd);
  return ::close(fd);
}
int dup_fd(int fd) {
  const int n = ::dup(fd);
  fd_install(n, fd_lookup(fd));
  return n;
}

}  // namespace fake
