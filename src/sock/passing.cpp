// Descriptors that come from elsewhere: a connection received by SCM_RIGHTS (node's cluster, systemd's FDSTORE, process managers), and one accepted from a
// listener that icepath did not see being made (inherited over exec, LISTEN_FDS, received). An accepted connection is its acceptor's alone; a received one
// is whoever's the table of holders says (holders.hpp), and the kernel's when it says nothing. Any thread; the kernel has done the call.
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>

#include "base/config.hpp"
#include "base/libc.hpp"
#include "sock/holders.hpp"
#include "sock/lane.hpp"
#include "sock/pool.hpp"
#include "sock/proc.hpp"
#include "sock/rows.hpp"
#include "stack/process.hpp"
#include "tcp/tcp_sock.hpp"

namespace icepath {
namespace {

constexpr int so_buf_lock = 72;

int option(int fd, int name, int absent) {
  int v = 0;
  socklen_t len = sizeof v;
  return real::getsockopt(fd, SOL_SOCKET, name, &v, &len) == 0 ? v : absent;
}

bool is_tcp(int fd) {
  const int domain = option(fd, SO_DOMAIN, 0);
  return (domain == AF_INET || domain == AF_INET6) && option(fd, SO_TYPE, 0) == SOCK_STREAM && option(fd, SO_PROTOCOL, 0) == IPPROTO_TCP;
}

// A socket for fd with what the kernel knows of it; not in the table of descriptors yet.
socket* describe(int fd) {
  process_start();
  socket* const s = socket_alloc();
  if (!s) return nullptr;
  s->family = static_cast<uint16_t>(option(fd, SO_DOMAIN, 0));
  s->nonblock.store((real::fcntl(fd, F_GETFL, 0) & O_NONBLOCK) != 0);
  s->rcvlowat = static_cast<uint32_t>(option(fd, SO_RCVLOWAT, 1));
  const int locked = option(fd, so_buf_lock, 0);
  s->buf_locked = static_cast<uint8_t>((locked & 2 ? 1 : 0) | (locked & 1 ? 2 : 0));
  sock_refresh_timeouts(s, fd);
  s->fd.store(fd);
  return s;
}

bool connected(int fd) {
  tcp_info ti{};
  socklen_t len = sizeof ti;
  return real::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &ti, &len) == 0 && ti.tcpi_state == TCP_ESTABLISHED;
}

void begin(socket* s, int fd) {
  s->state = sock_state::connected;
  s->reason = "new";
  fd_install(fd, s);
  rows_count_connection();
}

}  // namespace

void sock_on_accept_unseen(int fd) {
  if (static_cast<unsigned>(fd) >= fdtable_limit || sandboxed() || !is_tcp(fd)) return;
  socket* const s = describe(fd);
  if (!s) return;
  begin(s, fd);
  if (config_get().promote == promote_rule::eager) promote_step(s, fd);
}

bool sock_before_pass(int fd) {
  socket* const s = as_socket(fd_lookup(fd));
  if (!s || s->state == sock_state::listening) return true;
  if (s->state == sock_state::connected && !s->inherited.load() && !s->never.load()) {
    if (stack* st = s->st; st && stack_enter(st)) {
      if (lane* l = s->ln; l && l->s == s && l->st == st && !s->fast.load()) lane_open_failed(l, "fd passed", true);
      stack_leave(st);
    }
    if (!s->fast.load() && holders_before_pass(s)) { s->reason = "fd passed"; return true; }
  }
  return false;
}

void sock_pass_failed(int fd) {
  if (socket* const s = as_socket(fd_lookup(fd)); s && s->share.load()) holders_pass_failed(s);
}

void sock_on_received(int fd, bool peeked) {
  if (static_cast<unsigned>(fd) >= fdtable_limit || sandboxed() || fd_lookup(fd) || !is_tcp(fd)) return;
  if (peeked) { holders_spoil(fd); return; }   // the same descriptor comes again
  if (!connected(fd)) return;
  socket* const s = describe(fd);
  if (!s) return;
  if (!holders_received(s, fd)) { socket_release(s); return; }
  begin(s, fd);
}

}  // namespace icepath
