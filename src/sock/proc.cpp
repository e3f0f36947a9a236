// See proc.hpp. fork handlers run in the forking thread; control commands on the helper thread; the rest anywhere.
#include "sock/proc.hpp"

#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include <cstdio>
#include <new>

#include "base/clock.hpp"
#include "base/config.hpp"
#include "base/log.hpp"
#include "base/no_cancel.hpp"
#include "base/sig_gate.hpp"
#include "base/libc.hpp"
#include "sock/holders.hpp"
#include "sock/lane.hpp"
#include "sock/mux.hpp"
#include "sock/pool.hpp"
#include "sock/rendezvous.hpp"
#include "sock/rows.hpp"
#include "sock/takeover.hpp"
#include "sock/wait.hpp"
#include "stack/helper.hpp"
#include "stack/process.hpp"
#include "tcp/tcp_sock.hpp"

namespace icepath {
namespace {

constexpr const char* fork_reason = "shared by fork";
const char* failure = nullptr;
std::atomic<uint32_t> forking{0};
constexpr nsec claim_limit = 5 * sec_ns, exit_limit = 2 * sec_ns, demote_limit = 2 * sec_ns;

void lane_event(uint64_t key, uint32_t) {
  lane* l = lane_by_key(key);
  if (!l || !l->s) return;
  stack* st = l->st;
  if (!st || !stack_enter(st)) return;
  if (l->s && lane_key(l) == key) {
    stack_tick(st);
    l->kernel_event = true;
    if (l->rx == rx_lane::fast) lane_kernel_input(l);
    if (l->s) lane_advance(l);
  }
  stack_leave(st);
}

thread_local stack_id dead_peer;   // lanes_for_each takes no context; the helper thread only

void peer_died(uint32_t slot, uint64_t cookie) {
  dead_peer = {slot, 0, cookie};
  for (uint16_t i = 0; i < max_stacks; ++i) {
    stack* st = stack_by_no(i);
    if (!st) break;
    if (!stack_enter(st)) continue;
    stack_tick(st);
    lanes_for_each(st, [](lane* l) {
      if (l->peer.process_slot == dead_peer.process_slot && l->peer.process_cookie == dead_peer.process_cookie) lane_peer_died(l);
    });
    stack_leave(st);
  }
}

struct demotion { const char* why; unsigned count; };

void demote_one(socket* s, void* ctx) {
  auto* d = static_cast<demotion*>(ctx);
  stack* st = s->st;
  if (!st) {
    if (s->state == sock_state::connected && !s->never.load()) { s->reason = d->why; s->never.store(true); ++d->count; }
    return;
  }
  if (!stack_enter(st)) return;
  if (lane* l = s->ln; l && l->s == s && l->st == st) {
    stack_tick(st);
    ++d->count;
    lane_demote(l, d->why);
    lane_run_work(st);
  }
  stack_leave(st);
}

// A fork child asks for its connection: begun at the first request, done when the status is 0. Requests are repeated.
struct claim { uint32_t serial; int status; };

void claim_one(socket* s, void* ctx) {
  auto* c = static_cast<claim*>(ctx);
  if (s->serial != c->serial) return;
  stack* st = s->st;
  if (st && stack_enter(st)) {
    if (lane* l = s->ln; l && l->s == s && l->st == st) {
      stack_tick(st);
      if (!l->want_kernel || l->back == lane_back::none) lane_handback(l, fork_reason);
      lane_run_work(st);
    }
    stack_leave(st);
  }
  s->never.store(true);
  if (s->serial != c->serial || s->kind != file_kind::tcp) return;   // it was closed meanwhile
  if (s->fast.load()) c->status = -EAGAIN;
  else sock_give_prefix(s);
}

void allow_again(socket* s, void* ctx) {
  if (s->reason != off_reason) return;
  ++static_cast<demotion*>(ctx)->count;
  s->ops.store(0);
  s->reason = "new";
  s->never.store(false);
  stack* st = s->st;
  if (st && stack_enter(st)) {
    if (lane* l = s->ln; l && l->s == s && l->st == st) l->want_kernel = false;
    stack_leave(st);
  }
}

int control(uint32_t cmd, uint64_t arg, uint32_t* count) {
  demotion d{off_reason, 0};
  switch (static_cast<control_cmd>(cmd)) {
    case control_cmd::off:
      process_region()->hdr->control.off.store(1);
      sockets_for_each(demote_one, &d);
      break;
    case control_cmd::on:
      process_region()->hdr->control.off.store(0);
      sockets_for_each(allow_again, &d);
      break;
    case control_cmd::refresh: rows_refresh(); break;
    case control_cmd::demote_sock: {
      claim c{static_cast<uint32_t>(arg), 0};
      sockets_for_each(claim_one, &c);
      *count = 0;
      return c.status;
    }
    default: return -EINVAL;
  }
  *count = d.count;
  return 0;
}

thread_local bool fork_has_places = false;

// Before the fork (promotion is paused): what is on the fast lane is marked; what is not stays off it until one process alone has it (holders.hpp).
void share_at_fork(socket* s, void*) {
  if (s->state == sock_state::listening || s->state == sock_state::closed) return;
  if (s->fast.load() && sock_is_wire(s) && sock_demote(s, fork_reason) == 0) s->never.store(false);   // not for ever: holders.hpp says until when
  if (s->fast.load()) { s->shared.store(true); return; }
  stack* st = s->st;
  if (st && stack_enter(st)) {
    if (lane* l = s->ln; l && l->s == s && l->st == st && !s->fast.load()) lane_open_failed(l, fork_reason, true);
    stack_leave(st);
  }
  if (s->fast.load()) { s->shared.store(true); return; }
  s->reason = fork_reason;
  if (fork_has_places && holders_before_fork(s)) return;
  s->never.store(true);
  holders_uncounted(s);
}

struct parent { uint32_t slot; uint64_t cookie; };

void child_socket(socket* s, void* ctx) {
  const bool fast = s->fast.load(std::memory_order_relaxed);
  if (fast) {           // else it may be inherited from further up: that stays as it is
    const auto* p = static_cast<const parent*>(ctx);
    s->inherited.store(true);
    s->parent_slot = p->slot;
    s->parent_cookie = p->cookie;
    s->parent_serial = s->serial;
  }
  s->shared.store(false);
  s->prefix_lock.store(0);
  new (&s->waiters) list_head;   // of threads that are not here
  s->ln = nullptr;
  s->st = nullptr;
  s->fast.store(false);
  s->soft_block.store(false);
  s->rx_calls.store(0);
  s->tx_calls.store(0);
  s->wait_lock.store(0);
  s->publishing.store(false);
  if (s->state != sock_state::listening) {
    s->reason = fork_reason;
    // One that is registered in a set which the parent uses too would have to be in two states there.
    if (fast || s->inherited.load() || !fork_has_places || !s->items.empty()) s->never.store(true);
    if (fork_has_places && s->share.load()) holders_fork_child(s);
    else if (s->share.exchange(0)) s->never.store(true);
  }
  s->row = row_alloc();
}

void exit_one(socket* s, void*) {
  stack* st = s->st;
  if (!st || !stack_enter(st)) return;
  if (lane* l = s->ln; l && l->s == s && l->st == st && l->sk) {
    stack_tick(st);
    lane_close(l, true);
    s->ln = nullptr;
    s->fast.store(false);
  }
  stack_leave(st);
}

// Does a descriptor of s stay open across exec?
bool crosses_exec(socket* s) {
  const auto open_after = [](int fd) {
    const int fl = real::fcntl(fd, F_GETFD, 0);
    return fl >= 0 && !(fl & FD_CLOEXEC);
  };
  if (open_after(s->fd.load())) return true;
  if (s->nr_fds.load() < 2) return false;
  for (unsigned fd = 0; fd < 65536 && fd < fdtable_limit; ++fd)
    if (fdtable[fd].load(std::memory_order_relaxed) == s && open_after(static_cast<int>(fd))) return true;
  return false;
}

struct leaving { bool replaces; };   // the program itself is replaced: also what is closed then must have been delivered

void exec_one(socket* s, void* ctx) {
  const bool all = static_cast<leaving*>(ctx)->replaces;
  if (s->state == sock_state::listening) return;
  const bool crosses = crosses_exec(s);
  if (!s->fast.load() && !s->inherited.load()) {   // in the kernel: nobody counts what the new program does with it
    if (crosses) { s->never.store(true); s->reason = "exec"; holders_uncounted(s); }
    else if (all) holders_end(s);
    return;
  }
  if (!crosses && !(all && s->fast.load())) return;
  if (sock_demote(s, "exec") != 0) log_warn("fd %d crosses exec before the peer has answered", s->fd.load());
  else if (crosses && s->prefix_len.load()) log_warn("fd %d crosses exec with bytes from a finished peer that only this program could read", s->fd.load());
}

uint64_t live_stacks() {
  uint64_t m = 0;
  for (uint16_t i = 0; i < max_stacks && i < 64; ++i) {
    stack* st = stack_by_no(i);
    if (!st) break;
    if (st->sockets.load(std::memory_order_relaxed)) m |= 1ull << i;
  }
  return m;
}

int demoted(void* ctx) {
  auto* s = static_cast<socket*>(ctx);
  stack* st = s->st;
  if (s->fast.load(std::memory_order_acquire) && st && stack_enter(st)) {
    if (lane* l = s->ln; l && l->s == s && l->st == st && l->sk && l->phase == lane_phase::open) { stack_tick(st); lane_note(l); lane_run_work(st); }
    stack_leave(st);
  }
  return s->fast.load(std::memory_order_acquire) ? 0 : 1;
}

void home_one(socket* s, void*) {
  stack* st = s->st;
  if (!s->shared.load() || !st || !stack_enter(st)) return;
  if (lane* l = s->ln; l && l->s == s && l->st == st) {
    stack_tick(st);
    lane_handback(l, "exit");
    lane_run_work(st);
  }
  stack_leave(st);
}

struct pending { unsigned n; uint64_t on_ring; };
void pending_one(socket* s, void* ctx) {
  stack* st = s->st;
  if (!st || !stack_enter(st)) return;
  if (lane* l = s->ln; l && l->s == s && l->st == st && l->sk && !l->peer_gone && !l->wire) {
    stack_tick(st);
    lane_note(l);
    lane_run_work(st);
    const bool unacked = s->ln == l && l->s == s && l->st == st && l->sk &&
                         (l->tx == tx_lane::fast ? !lane_header_acked(l) : !l->moved && lane_outq(l) != 0);
    if (s->ln == l && l->s == s && l->st == st && l->sk && !l->peer_gone && l->tx == tx_lane::fast) static_cast<pending*>(ctx)->on_ring += lane_outq(l);
    if (s->ln == l && l->s == s && l->st == st && l->sk && !l->peer_gone && (lane_moving(l) || s->shared.load() || unacked)) ++static_cast<pending*>(ctx)->n;
  }
  stack_leave(st);
}

// What is on the ring is best delivered there: waited for while the peer takes it, for a moment without progress.
struct exit_wait { uint64_t on_ring = ~0ull; nsec progress = 0; };
int nothing_pending(void* ctx) {
  auto& w = *static_cast<exit_wait*>(ctx);
  pending p{0, 0};
  sockets_for_each(pending_one, &p);
  const nsec now = clock_now();
  if (p.on_ring != w.on_ring) { w.on_ring = p.on_ring; w.progress = now; }
  if (p.on_ring && now - w.progress < 50 * msec_ns) return 0;
  return p.n == 0;
}

}  // namespace

bool sock_init() {
  if (!config_get().port_local && !config_get().xdp_ifname[0]) { failure = "no port is configured (ICEPATH_PORTS)"; return false; }
  if (!fdtable_start()) { failure = "no memory for the descriptor table"; return false; }
  helper_set_handlers({lane_event, peer_died, control, takeover_look});
  if (config_get().require && !process_start()) { failure = process_why(); return false; }
  return true;
}

const char* sock_init_failure() { return failure ? failure : ""; }
void sock_print_stats() { print_stats_line(); }
bool sock_fd_is_internal(int fd) { return process_fd_is_internal(fd); }
bool promotion_off() { return process_ready() && process_region()->hdr->control.off.load(std::memory_order_seq_cst) != 0; }

int sock_demote(socket* s, const char* why) {
  if (s->inherited.load()) sock_claim_inherited(s);
  stack* st = s->st;
  if (st && stack_enter(st)) {
    if (lane* l = s->ln; l && l->s == s && l->st == st) {
      stack_tick(st);
      lane_handback(l, why);
      lane_run_work(st);
    }
    stack_leave(st);
  }
  s->never.store(true);
  if (!s->fast.load()) { s->reason = why; return 0; }
  wait_plan p;
  p.check = demoted;
  p.ctx = s;
  p.deadline = clock_now() + demote_limit;
  p.stacks = live_stacks();   // the other end may be in this process
  p.restart = true;
  int r;
  do {
    pollfd home{s->fd.load(), POLLIN, 0};
    p.fds = &home;
    p.nfds = 1;
    const sock_sleeper sl(s);
    r = wait_until(p);
  } while (r == -EINTR);        // what is under way has to be waited for
  return r > 0 ? 0 : -EAGAIN;
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
  if (stack* st = s->st; st && stack_enter(st)) {
    int e = 0;
    bool wire = false;
    if (lane* l = s->ln; l && l->s == s && l->st == st) {
      e = l->pending_err ? l->pending_err : l->fin_wanted ? EPIPE : 0;
      l->pending_err = 0;
      wire = l->wire;
      if (wire && !e && l->sk->state == TCP_CLOSE) e = l->sk->err ? l->sk->err : EPIPE;
      lane_publish(l);
    }
    stack_leave(st);
    if (e) return -e;
    if (wire) return 0;
  }
  const ssize_t r = real::send(fd, "", 0, flags | MSG_DONTWAIT);  // TCP sends nothing; the kernel knows the errors
  return r < 0 ? (errno == EPIPE ? -EPIPE_RAISED : -errno) : r;
}

ssize_t sock_empty_recv(socket*, int, int) { return 0; }

bool sock_is_wire(socket* s) {
  stack* st = s->st;
  if (!st || !stack_enter(st)) return false;
  const lane* l = s->ln;
  const bool wire = l && l->s == s && l->st == st && l->wire;
  stack_leave(st);
  return wire;
}

bool promotion_paused() { return forking.load(std::memory_order_seq_cst) != 0; }

void sock_fork_prepare() {
  fork_has_places = forking.fetch_add(1, std::memory_order_seq_cst) == 0;   // another thread's fork: its places are not ours
  if (process_ready()) sockets_for_each(share_at_fork, nullptr);
  mux_fork_prepare();
}

void sock_fork_parent() {
  mux_fork_parent();
  forking.fetch_sub(1, std::memory_order_seq_cst);
}

void sock_fork_child() {
  parent p{0, 0};
  if (process_ready()) p = {process_region()->slot, process_region()->cookie};
  forking.store(0);
  sockets_forget_locks();
  lanes_forget();
  rows_forget();
  wait_forget();
  rendezvous_forget();
  promote_forget();
  takeover_forget();
  holders_fork_forget();
  process_forget();
  mux_fork_child();
  sockets_for_each(child_socket, &p);
}

// Asks the parent until it says that the connection is in the kernel. The parent's helper thread answers each request at once, whatever the
// connection needs; a parent that is gone brought everything home at its exit.
void sock_claim_inherited(socket* s) {
  if (!s->inherited.load()) return;
  const closed_gate no_handlers;
  const no_cancel whole;
  while (s->prefix_lock.exchange(1, std::memory_order_acquire)) sched_yield();
  if (s->inherited.load()) {
    const nsec end = clock_now() + claim_limit;
    int status = -EAGAIN;
    auto p = region_open_peer(s->parent_slot, s->parent_cookie, false);
    if (p.ok()) {
      region_peer peer = *p;
      control_mailbox& m = const_cast<region_header*>(peer.hdr())->control;
      char path[256];
      std::snprintf(path, sizeof path, "%s/p%u.ctl", runtime_dir_path(), s->parent_slot);
      const int bell = ::open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
      for (unsigned look = 0; status == -EAGAIN && clock_now() < end; ++look) {
        uint32_t zero = 0;
        if (!m.lock.compare_exchange_strong(zero, static_cast<uint32_t>(getpid()))) { usleep(100); continue; }
        m.cmd = static_cast<uint32_t>(control_cmd::demote_sock);
        m.arg = s->parent_serial;
        const uint32_t req = m.req.load() + 1;
        m.req.store(req, std::memory_order_release);
        if (bell < 0 || ::write(bell, "x", 1) != 1) status = -ESRCH;
        for (unsigned i = 0; status == -EAGAIN && m.done.load(std::memory_order_acquire) != req; ++i) {
          if (clock_now() > end || (i % 256 == 255 && !region_alive(s->parent_slot, s->parent_cookie))) status = -ESRCH;
          else usleep(50);
        }
        if (status == -EAGAIN) status = m.status;
        m.lock.store(0);
        if (status == -EAGAIN) usleep(look < 20 ? 100 : 1000);
      }
      if (bell >= 0) real::close(bell);
      region_close_peer(peer);
    }
    if (status == -EAGAIN) log_warn("fd %d: the parent did not bring the connection home", s->fd.load());
    sock_take_prefix(s, s->parent_slot, s->parent_serial);
    s->inherited.store(false);
  }
  s->prefix_lock.store(0, std::memory_order_release);
}

void sock_before_exec(bool replaces) {
  leaving l{replaces};
  sockets_for_each(exec_one, &l);
}

void sock_exit() {
  static std::atomic<bool> once{false};
  if (once.exchange(true)) return;
  sockets_for_each([](socket* s, void*) { if (s->share.load()) holders_end(s); }, nullptr);
  if (!process_ready()) return;
  if (live_stacks()) {   // what a fork child may hold goes home, what is on its way home arrives
    sockets_for_each(home_one, nullptr);
    wait_plan p;
    exit_wait w;
    p.check = nothing_pending;
    p.ctx = &w;
    p.stacks = live_stacks();
    const nsec end = clock_now() + exit_limit;
    do {
      const nsec step = clock_now() + msec_ns;
      p.deadline = step < end ? step : end;
    } while (wait_until(p) <= 0 && clock_now() < end);
  }
  sockets_for_each(exit_one, nullptr);
  for (uint16_t i = 0; i < max_stacks; ++i) {
    stack* st = stack_by_no(i);
    if (!st) break;
    lanes_exit(st);
  }
  if (!sandboxed()) process_stop();   // what is left behind is the next one's to take
}

}  // namespace icepath
