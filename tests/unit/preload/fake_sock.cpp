// A socket layer without a fast lane, for the tests of preload/: every TCP socket is watched, data goes through the kernel, and what the
// wrappers asked for is counted and printed by sock_print_stats. FAKE_LANE=fast makes sends behave like the fast lane (no
// SIGPIPE from the kernel) and marks sockets as promoted, so that the paths which demote are taken. FAKE_INIT=fail makes set-up fail.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <fcntl.h>
#include <unistd.h>
#include <sys/syscall.h>
#include "base/libc.hpp"
#include "sock/init.hpp"
#include "sock/mux.hpp"
#include "sock/socket.hpp"

namespace icepath {

thread_local volatile uint32_t signals_seen = 0, signals_breaking = 0;

namespace {
struct fake : socket {};
fake pool[2048];
file sets[256];
std::atomic<file*> table[4096];
std::atomic<unsigned> next_sock, next_set;
std::atomic<int> internal_fd{-1};
std::atomic<unsigned> n_socket, n_accept, n_listen, n_connect, n_close, n_dup, n_replace, n_send, n_recv, n_demote, n_exec, n_fork_child, n_exit, n_mux;
bool fast;

ssize_t kernel(ssize_t r) { return r < 0 ? -errno : r; }
void watch(int fd) {
  socket* s = &pool[next_sock++ % 2048];
  s->kind = file_kind::tcp;
  s->fast = fast;
  s->fd = fd;
  table[fd] = s;
}
timespec* span(nsec t, timespec* ts) {
  if (t == ~nsec{0}) return nullptr;
  *ts = {static_cast<time_t>(t / sec_ns), static_cast<long>(t % sec_ns)};
  return ts;
}
}  // namespace

std::atomic<file*> none{nullptr};
std::atomic<file*>* fdtable = &none;
unsigned fdtable_limit = 0;

bool sock_init() {
  const char* f = getenv("FAKE_INIT");
  if (f && !strcmp(f, "fail")) return false;
  const char* l = getenv("FAKE_LANE");
  fast = l && !strcmp(l, "fast");
  fdtable = table;
  fdtable_limit = 4096;
  const long fd = syscall(SYS_memfd_create, "fake", 1);
  internal_fd = static_cast<int>(real::fcntl(static_cast<int>(fd), F_DUPFD_CLOEXEC, 500));
  real::close(static_cast<int>(fd));
  return true;
}
const char* sock_init_failure() { return "the test says so"; }
void sock_print_stats() {
  char b[512];
  const int n = snprintf(b, sizeof b,
      "fake: internal=%d alive=%d socket=%u accept=%u listen=%u connect=%u close=%u dup=%u replace=%u send=%u recv=%u demote=%u exec=%u "
      "fork_child=%u exit=%u mux=%u\n", internal_fd.load(), real::fcntl(internal_fd, F_GETFD, 0) >= 0, +n_socket, +n_accept, +n_listen, +n_connect,
      +n_close, +n_dup, +n_replace, +n_send, +n_recv, +n_demote, +n_exec, +n_fork_child, +n_exit, +n_mux);
  (void)!::write(2, b, n);
}
bool sock_fd_is_internal(int fd) { return fd == internal_fd; }

void sock_on_socket(int fd, int domain, int type, int) {
  if ((domain == AF_INET || domain == AF_INET6) && (type & 0xf) == SOCK_STREAM) { ++n_socket; watch(fd); }
}
void sock_on_accept_unseen(int) {}
bool sock_before_pass(int) { return false; }
void sock_pass_failed(int) {}
void sock_on_received(int, bool) {}
void sock_on_accept(file*, int fd, int) { ++n_accept; watch(fd); }
void sock_on_listen(file* f) { ++n_listen; static_cast<socket*>(f)->state = sock_state::listening; }
void sock_on_connect(file*, int, int) { ++n_connect; errno = 9999; }
int sock_close(int fd) { ++n_close; table[fd] = nullptr; return static_cast<int>(kernel(real::close(fd))); }
void sock_on_dup(int oldfd, int newfd) { ++n_dup; table[newfd] = table[oldfd].load(); errno = 9999; }
void sock_before_replace(int fd) { ++n_replace; table[fd] = nullptr; errno = 9999; }

ssize_t sock_sendmsg(socket* s, int fd, sock_msg& m) {
  ++n_send;
  msghdr h{};
  if (m.hdr) h = *m.hdr;
  h.msg_iov = const_cast<iovec*>(m.iov);
  h.msg_iovlen = m.iovcnt;
  const ssize_t r = kernel(real::sendmsg(fd, &h, m.flags | (s->fast ? MSG_NOSIGNAL : 0)));
  return r == -EPIPE && !s->fast ? -EPIPE_RAISED : r;
}
ssize_t sock_recvmsg(socket*, int fd, sock_msg& m) {
  ++n_recv;
  msghdr h{};
  if (m.hdr) h = *m.hdr;
  h.msg_iov = const_cast<iovec*>(m.iov);
  h.msg_iovlen = m.iovcnt;
  const ssize_t r = kernel(real::recvmsg(fd, &h, m.flags));
  if (r >= 0 && m.hdr) *m.hdr = h;
  if (r >= 0) errno = 9999;
  return r;
}
bool sock_plain_tx_begin(socket* s, int) { return !s->fast; }
void sock_plain_tx_end(socket*, ssize_t, size_t) { errno = 9999; }
int sock_shutdown(socket*, int fd, int how) { return static_cast<int>(kernel(real::shutdown(fd, how))); }
int sock_setsockopt(socket*, int fd, int l, int n, const void* v, socklen_t k) { return static_cast<int>(kernel(real::setsockopt(fd, l, n, v, k))); }
int sock_getsockopt(socket*, int fd, int l, int n, void* v, socklen_t* k) { return static_cast<int>(kernel(real::getsockopt(fd, l, n, v, k))); }
// ioctl(fd, 0xfa4e00 + i) reads counter i; the order is that of counters[] (host.cpp has the same).
int sock_ioctl(socket*, int fd, unsigned long r, void* a) {
  static std::atomic<unsigned>* const counters[] = {&n_send, &n_recv, &n_demote, &n_exec, &n_fork_child, &n_mux, &n_close, &n_dup, &n_replace, &n_accept};
  if (r >= 0xfa4e00 && r < 0xfa4e00 + std::size(counters)) return static_cast<int>(counters[r - 0xfa4e00]->load());
 return static_cast<int>(kernel(real::ioctl(fd, r, a))); }
void sock_on_setfl(socket*, int) {}
int sock_demote(socket* s, const char*) { ++n_demote; s->fast = false; errno = 9999; return 0; }
void epoll_on_create(int ep) {
  file* f = &sets[next_set++ % 256];
  f->kind = file_kind::epoll;
  table[ep] = f;
}
void epoll_export(int) {}
int mux_poll(pollfd* f, nfds_t n, nsec t, const sigset_t* mask) {
  ++n_mux;
  timespec ts;
  return static_cast<int>(kernel(real::ppoll(f, n, span(t, &ts), mask)));
}
int mux_select(int n, fd_set* r, fd_set* w, fd_set* e, nsec t, const sigset_t* mask) {
  ++n_mux;
  timespec ts;
  return static_cast<int>(kernel(real::pselect(n, r, w, e, span(t, &ts), mask)));
}
int mux_epoll_ctl(int ep, int op, int fd, epoll_event* ev) { return static_cast<int>(kernel(real::epoll_ctl(ep, op, fd, ev))); }
int mux_epoll_wait(int ep, epoll_event* ev, int max, nsec t, const sigset_t* mask) {
  ++n_mux;
  timespec ts;
  return static_cast<int>(kernel(real::epoll_pwait2(ep, ev, max, span(t, &ts), mask)));
}
void sock_fork_prepare() {}
void sock_fork_parent() {}
void sock_fork_child() { ++n_fork_child; }
void sock_exit() { ++n_exit; }
void sock_before_exec(bool) { ++n_exec; }
void sock_before_sandbox() {}

}  // namespace icepath
