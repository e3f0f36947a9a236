// See proc.hpp. fork handlers run in the forking thread; control commands on the helper thread; the rest anywhere.
#include "sock/proc.hpp"

#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "base/clock.hpp"
#include "base/config.hpp"
#include "base/log.hpp"
#include "libc.hpp"
#include "sock/lane.hpp"
#include "sock/mux.hpp"
#include "sock/pool.hpp"
#include "sock/rendezvous.hpp"
#include "sock/rows.hpp"
#include "sock/wait.hpp"
#include "stack/helper.hpp"
#include "stack/process.hpp"
#include "tcp/tcp_sock.hpp"

namespace icepath {
namespace {

constexpr const char* off_reason = "off by the operator";
constexpr const char* fork_reason = "shared by fork";
std::atomic<bool> off{false};
const char* failure = nullptr;
uint32_t parent_slot = 0;
uint64_t parent_cookie = 0;

void lane_event(uint64_t key, uint32_t) {
  lane* l = lane_by_key(key);
  if (!l || !l->s) return;
  stack* st = l->st;
  if (!st || !stack_enter(st)) return;
  if (l->s && lane_key(l) == key) {
    st->net.now = clock_now();
    l->kernel_event = true;
    if (l->rx == rx_lane::fast) lane_kernel_input(l);
    if (l->s) lane_advance(l);
  }
  stack_leave(st);
}

struct demotion { const char* why; uint32_t row; unsigned count; bool all; };

void demote_one(socket* s, void* ctx) {
  auto* d = static_cast<demotion*>(ctx);
  if (!d->all && s->row != d->row) return;
  stack* st = s->st;
  if (!st) {
    if (d->all && s->state == sock_state::connected && !s->never.load()) { s->reason = d->why; s->never.store(true); ++d->count; }
    return;
  }
  if (!stack_enter(st)) return;
  if (lane* l = s->ln; l && l->s == s) {
    st->net.now = clock_now();
    ++d->count;
    lane_demote(l, d->why);
    lane_run_work(st);
  }
  stack_leave(st);
}

void allow_again(socket* s, void* ctx) {
  if (s->reason != off_reason) return;
  ++static_cast<demotion*>(ctx)->count;
  s->ops.store(0);
  s->reason = "new";
  s->never.store(false);
  stack* st = s->st;
  if (st && stack_enter(st)) {
    if (lane* l = s->ln; l && l->s == s) l->want_kernel = false;
    stack_leave(st);
  }
}

int control(uint32_t cmd, uint64_t arg, uint32_t* count) {
  demotion d{off_reason, static_cast<uint32_t>(arg), 0, true};
  switch (static_cast<control_cmd>(cmd)) {
    case control_cmd::off:
      off.store(true);
      sockets_for_each(demote_one, &d);
      break;
    case control_cmd::on:
      off.store(false);
      sockets_for_each(allow_again, &d);
      break;
    case control_cmd::refresh: rows_refresh(); break;
    case control_cmd::demote_sock:
      d.all = false;
      d.why = fork_reason;
      sockets_for_each(demote_one, &d);
      break;
    default: return -EINVAL;
  }
  *count = d.count;
  return 0;
}

void share_at_fork(socket* s, void*) {
  if (s->state != sock_state::connected || s->fast.load()) return;
  stack* st = s->st;
  if (st && stack_enter(st)) {
    if (lane* l = s->ln; l && l->s == s && !s->fast.load()) lane_open_failed(l, fork_reason);
    stack_leave(st);
  }
  s->reason = fork_reason;
  s->never.store(true);
}

void child_socket(socket* s, void*) {
  const bool fast = s->fast.load(std::memory_order_relaxed);
  s->inherited.store(fast);
  s->parent_row = s->row;
  s->ln = nullptr;
  s->st = nullptr;
  s->fast.store(false);
  s->soft_block.store(false);
  s->rx_calls.store(0);
  s->tx_calls.store(0);
  s->wait_lock.store(0);
  if (s->state == sock_state::connected || s->state == sock_state::connecting) {
    s->never.store(true);
    s->reason = fork_reason;
  }
  s->row = row_alloc();
}

void exit_one(socket* s, void*) {
  stack* st = s->st;
  if (!st || !stack_enter(st)) return;
  if (lane* l = s->ln; l && l->s == s && l->sk) {
    st->net.now = clock_now();
    lane_close(l, true);
    s->ln = nullptr;
    s->fast.store(false);
  }
  stack_leave(st);
}

void exec_one(socket* s, void*) {
  if (!s->fast.load()) return;
  const int fd = s->fd.load();
  const int fl = real::fcntl(fd, F_GETFD, 0);
  if (fl < 0 || (fl & FD_CLOEXEC)) return;
  if (sock_demote(s, "exec") != 0) log_warn("fd %d crosses exec with data the program has not read; it is lost to the new program", fd);
}

int demoted(void* ctx) { return static_cast<socket*>(ctx)->fast.load(std::memory_order_acquire) ? 0 : 1; }

}  // namespace

bool sock_init() {
  if (!config_get().port_local) { failure = "no port is configured (ICEPATH_PORTS)"; return false; }
  if (!fdtable_start()) { failure = "no memory for the descriptor table"; return false; }
  helper_set_handlers(lane_event, control);
  if (config_get().require && !process_start()) { failure = process_why(); return false; }
  return true;
}

const char* sock_init_failure() { return failure ? failure : ""; }
void sock_print_stats() { print_stats_line(); }
bool sock_fd_is_internal(int fd) { return process_fd_is_internal(fd); }
bool promotion_off() { return off.load(std::memory_order_relaxed); }

int sock_demote(socket* s, const char* why) {
  if (s->inherited.load()) sock_claim_inherited(s);
  stack* st = s->st;
  if (st && stack_enter(st)) {
    if (lane* l = s->ln; l && l->s == s) {
      st->net.now = clock_now();
      lane_demote(l, why);
      lane_run_work(st);
    }
    stack_leave(st);
  }
  s->never.store(true);
  if (!s->fast.load()) { s->reason = why; return 0; }
  wait_plan p;
  p.check = demoted;
  p.ctx = s;
  p.deadline = clock_now() + sec_ns;
  if (st) p.stacks = 1ull << st->no;
  return wait_until(p) > 0 ? 0 : -EAGAIN;
}

void sock_check_connected(socket* s, int fd) {
  tcp_info ti{};
  socklen_t len = sizeof ti;
  if (real::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &ti, &len) != 0 || ti.tcpi_state != TCP_ESTABLISHED) return;
  s->state = sock_state::connected;
  s->reason = "new";
  rows_count_connection();
}

ssize_t sock_empty_send(socket* s, int fd, int flags) {
  (void)s;
  const ssize_t r = real::send(fd, "", 0, flags | MSG_DONTWAIT);  // TCP sends nothing; the kernel knows the errors
  return r < 0 ? (errno == EPIPE ? -EPIPE_RAISED : -errno) : r;
}

ssize_t sock_empty_recv(socket*, int, int) { return 0; }

void sock_fork_prepare() { mux_fork_prepare(); }

void sock_fork_parent() {
  sockets_for_each(share_at_fork, nullptr);
  mux_fork_parent();
}

void sock_fork_child() {
  if (process_ready()) {
    parent_slot = process_region()->slot;
    parent_cookie = process_region()->cookie;
  }
  sockets_forget_locks();
  rows_forget();
  wait_forget();
  rendezvous_forget();
  promote_forget();
  process_forget();
  mux_fork_child();
  sockets_for_each(child_socket, nullptr);
}

void sock_claim_inherited(socket* s) {
  if (!s->inherited.exchange(false)) return;
  auto p = region_open_peer(parent_slot, parent_cookie, false);
  if (!p.ok()) return;  // the parent is gone; its exit brought everything back
  region_peer peer = *p;
  control_mailbox& m = const_cast<region_header*>(peer.hdr())->control;
  const nsec end = clock_now() + 2 * sec_ns;
  uint32_t zero = 0;
  while (!m.lock.compare_exchange_strong(zero, static_cast<uint32_t>(getpid()))) {
    if (clock_now() > end) { region_close_peer(peer); return; }
    zero = 0;
    usleep(200);
  }
  m.cmd = static_cast<uint32_t>(control_cmd::demote_sock);
  m.arg = s->parent_row;
  const uint32_t req = m.req.load() + 1;
  m.req.store(req, std::memory_order_release);
  char path[256];
  std::snprintf(path, sizeof path, "%s/p%u.ctl", runtime_dir_path(), parent_slot);
  const int fd = ::open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
  if (fd >= 0) {
    if (::write(fd, "x", 1) < 0) {}
    real::close(fd);
    while (m.done.load(std::memory_order_acquire) != req && clock_now() < end) usleep(100);
  }
  m.lock.store(0);
  // The parent's row tells when the connection is back.
  const sock_row* row = reinterpret_cast<const sock_row*>(peer.base + peer.hdr()->rows_off) + (s->parent_row % max_sock_rows);
  (void)row;
  usleep(2000);
  region_close_peer(peer);
}

void sock_before_exec() {
  if (process_ready()) sockets_for_each(exec_one, nullptr);
}

void sock_exit() {
  static std::atomic<bool> once{false};
  if (once.exchange(true)) return;
  if (!process_ready()) return;
  sockets_for_each(exit_one, nullptr);
  for (uint16_t i = 0; i < max_stacks; ++i) {
    stack* st = stack_by_no(i);
    if (!st) break;
    lanes_exit(st);
  }
  process_stop();
}

}  // namespace icepath
