// Data calls on a watched socket (T02-T05): the plain kernel call while it is not promoted, the lanes when it is; blocking, timeouts and
// the kernel's rules for partial results. Any thread. Returns bytes or -errno.
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/epoll.h>

#include "base/clock.hpp"
#include "base/config.hpp"
#include "base/sig_gate.hpp"
#include "base/libc.hpp"
#include "sock/holders.hpp"
#include "sock/lane.hpp"
#include "sock/lane_sys.hpp"
#include "sock/proc.hpp"
#include "sock/wait.hpp"
#include "tcp/tcp_sock.hpp"

namespace icepath {
namespace {

constexpr ssize_t not_fast = -SSIZE_MAX;   // the lane went away meanwhile: make the plain call

struct call {
  socket* s;
  int fd;
  user_msg m;
  size_t want;       // recv: bytes asked
  size_t target;     // recv: enough to return
  size_t done;
  int flags;
  bool rx, no_buffer;
  ssize_t result;
  bool held = false;   // sock_hold: the descriptor may be closed under us
  bool no_frames = false;   // it was memory that was missing: nobody tells when there is some
  pollfd pf{};
};

user_msg view(const iovec* iov, size_t n) {
  user_msg m{iov, n, 0, 0};
  for (size_t i = 0; i < n; ++i) m.count += iov[i].iov_len;
  while (m.iovcnt && m.iov->iov_len == 0) { ++m.iov; --m.iovcnt; }
  return m;
}

// MSG_PEEK starts over at every attempt. True: c.result is the call's.
bool peek(call& c, lane* l) {
  user_msg m = c.m;
  const ssize_t r = lane_recv(l, c.no_buffer ? nullptr : &m, c.want, c.flags);
  c.done = r > 0 ? static_cast<size_t>(r) : 0;
  c.result = r;
  if (r == -EAGAIN) return false;
  if (r <= 0 || c.done >= c.target) return true;
  return (l->rx != rx_lane::fast || l->rx_f != ~0ull) && lane_sys::look(l->fd, POLLRDHUP);   // MSG_WAITALL: no more will come
}

// As far as it goes without waiting, inside st. True: c.result is the call's.
bool attempt_inside(call& c, stack* st) {
  socket* s = c.s;
  bool end = true;
  // What the peer has done by now counts, as on the kernel's loopback: after its close this write is the kernel lane's to answer, and what is
  // acknowledged is not in flight (its ACK would push out what MSG_MORE holds back).
  // A whole round when the helper thread attends this stack, because that is ours to do from now on, and when a timer is due: a thread whose sends all
  // succeed at once would never run it.
  if (!c.rx) {
    const bool due = st->net.timers.armed() && st->net.timers.next_expiry() + timer_wheel::tick <= st->clock.now();
    const bool attended = st->helper_armed.load(std::memory_order_relaxed);
    if (ICEPATH_UNLIKELY(attended)) stack_take_over(st);
    if (ICEPATH_UNLIKELY(due || attended)) stack_poll_inside(st);
    else if (stack_receive_inside(st) && ICEPATH_UNLIKELY(!st->lane_work.empty())) st->lane_work_fn(st);
  }
  lane* l = s->ln;
  if (ICEPATH_UNLIKELY(!s->fast.load(std::memory_order_relaxed) || !l || l->s != s || l->st != st)) {
    c.result = c.done ? static_cast<ssize_t>(c.done) : not_fast;
  } else if (ICEPATH_UNLIKELY(fd_lost(c.fd, s) && !c.held)) {
    c.result = c.done ? static_cast<ssize_t>(c.done) : -EBADF;
  } else {
    stack_tick(st);
    for (;;) {
      ssize_t r;
      if (ICEPATH_UNLIKELY(c.rx && (c.flags & MSG_PEEK))) {
        end = peek(c, l);
        break;
      }
      const rx_lane was = l->rx;
      if (c.rx) r = lane_recv(l, c.no_buffer ? nullptr : &c.m, c.want - c.done, c.flags);
      else r = lane_send(l, c.m, c.flags);
      if (r > 0) {
        c.done += static_cast<size_t>(r);
        bool enough = c.rx ? c.done >= c.target : c.m.count == 0;
        if (c.rx && c.done < c.want && ICEPATH_UNLIKELY(l->rx != was || l->rx_f == l->f_rx)) {
          // This lane's part is read: what the next one has is part of the answer, up to the urgent mark.
          lane_settle(l);
          enough = l->s == s && lane_at_mark(l);
        }
        if (!enough && l->s == s) continue;
        c.result = static_cast<ssize_t>(c.done);
        break;
      }
      if (r == -EAGAIN || r == -ENOBUFS || r == -ENOMEM) {
        c.no_frames = r != -EAGAIN;
        if (c.rx && c.done && c.done >= c.target) { c.result = static_cast<ssize_t>(c.done); break; }
        end = false;
        break;
      }
      // End of stream or error: bytes already moved win, the error stays for the next call.
      if (c.done) {
        if (r < 0 && r != -EFAULT && c.rx && l->s == s) l->pending_err = static_cast<int>(-r);
        c.result = static_cast<ssize_t>(c.done);
      } else {
        c.result = r;
      }
      break;
    }
    if (ICEPATH_UNLIKELY(st != stack_mine()) && l->s == s) lane_steer(l);
    else if (l->s == s) l->rfs_thread = 0;
    if (l->s == s) lane_publish(l);
    st->last_poll.store(st->net.now, std::memory_order_relaxed);
  }
  return end;
}

bool attempt(call& c) {
  stack* st = c.s->st;
  if (!st || !stack_enter(st)) {
    c.result = st ? -EAGAIN : not_fast;  // a signal handler over the owner of the stack: nothing can be done now
    return true;
  }
  bool end = attempt_inside(c, st);
  if (ICEPATH_UNLIKELY(!end && !st->lane_work.empty())) {   // it may just have changed lanes
    st->lane_work_fn(st);
    end = attempt_inside(c, st);
  }
  stack_leave(st);
  return end;
}

// The usual end of a blocking call: the answer is microseconds away. Polls the one stack that matters and tries again without leaving it, until the
// budget is used up, somebody else wants the stack, or a signal is pending.
bool spin(call& c) {
  stack* st = c.s->st;
  const nsec budget = wait_spin_budget();
  if (!budget || !st || !stack_try_enter(st)) return false;
  const uint64_t t0 = cycles(), end = ns_to_cycles(budget < 5 * usec_ns ? budget : 5 * usec_ns);
  bool done = false;
  while (!sig_gate.pending && st->want.load(std::memory_order_relaxed) == 0) {
    if (stack_poll_inside(st) && (done = attempt_inside(c, st))) break;
    if (cycles() - t0 > end) break;
    cpu_relax();
  }
  stack_leave(st);
  wait_spun(done);
  return done;
}

int check(void* ctx) {
  auto* c = static_cast<call*>(ctx);
  if (attempt(*c)) return 1;
  // What the sleep asks of the kernel lane: the attempt may have changed lanes. A close meanwhile gives it another number.
  c->pf.events = static_cast<short>(sock_poll(c->s).kernel_bits & (c->rx ? EPOLLIN : EPOLLOUT));
  c->pf.fd = c->pf.events ? c->s->fd.load(std::memory_order_relaxed) : -1;
  return 0;
}

// The fast side. not_fast: the caller makes the plain call.
ssize_t lanes(call& c, bool nonblock, nsec timeo) {
  if (nonblock) {
    stack* st = c.s->st;
    if (!st) return not_fast;
    if (!stack_enter(st)) return -EAGAIN;  // a signal handler over the owner of the stack: nothing can be done now
    // Again after each look at the ring that found something: a non-blocking caller may be the only one who polls it, and EAGAIN means that
    // nothing moves any more.
    bool end = attempt_inside(c, st);
    for (unsigned i = 0; i < 32 && !end && stack_poll_inside(st); ++i) end = attempt_inside(c, st);
    stack_leave(st);
    return end ? c.result : c.done ? static_cast<ssize_t>(c.done) : -EAGAIN;
  }
  const uint32_t began = timeo == ~nsec{0} ? signals_breaking : signals_seen;
  if (attempt(c) || (timeo == ~nsec{0} && spin(c))) return c.result;
  if (!sock_hold(c.s, c.fd)) return c.done ? static_cast<ssize_t>(c.done) : -EBADF;
  c.held = true;
  const sock_sleeper sl(c.s, true);
  wait_plan p;
  p.check = check;
  p.ctx = &c;
  p.fds = &c.pf;
  p.nfds = 1;
  const nsec deadline = timeo == ~nsec{0} ? timeo : clock_now() + timeo;
  p.restart = timeo == ~nsec{0};
  p.since = &began;
  for (;;) {
    stack* st = c.s->st;
    if (!st) return c.done ? static_cast<ssize_t>(c.done) : not_fast;
    p.stacks = 1ull << st->no;
    p.deadline = deadline;
    if (ICEPATH_UNLIKELY(c.no_frames)) {
      const nsec soon = clock_now() + msec_ns;
      if (soon < deadline) p.deadline = soon;
    }
    const int r = wait_until(p);
    if (r > 0) return c.result;
    if (r == 0 && clock_now() >= deadline) return c.done ? static_cast<ssize_t>(c.done) : -EAGAIN;
    if (r < 0) return c.done ? static_cast<ssize_t>(c.done) : r;
  }
}

struct in_flight {   // a plain kernel call: promotion waits for it
  std::atomic<uint32_t>& n;
  explicit in_flight(std::atomic<uint32_t>& c) : n(c) { n.fetch_add(1, std::memory_order_seq_cst); }  // partner: lane_commit
  ~in_flight() { n.fetch_sub(1, std::memory_order_release); }
};

struct plain_wait { socket* s; pollfd pf; };
int promoted(void* ctx) {
  auto* w = static_cast<plain_wait*>(ctx);
  return w->s->fast.load(std::memory_order_acquire) ? 1 : w->pf.revents ? 2 : 0;
}

// A blocking plain call that a promotion may interrupt: 1 promoted, 2 the kernel is ready, else as wait_until.
int wait_plain(socket* s, int fd, short events, nsec timeo) {
  plain_wait pw{s, {fd, events, 0}};
  if (real::poll(&pw.pf, 1, 0) != 0) return 2;
  if (!sock_hold(s, fd)) return -EBADF;
  const sock_sleeper sl(s, true);   // another thread, or the helper, may promote it: that wakes us
  wait_plan p;
  p.check = promoted;
  p.ctx = &pw;
  p.fds = &pw.pf;
  p.nfds = 1;
  p.deadline = timeo == ~nsec{0} ? timeo : clock_now() + timeo;
  p.restart = timeo == ~nsec{0};
  if (stack* st = s->st) p.stacks = 1ull << st->no;
  return wait_until(p);
}

// The kernel's answer, by the call that the program made: libc's bytes or -1.
ssize_t kernel_send(int fd, const sock_msg& m) {
  if (m.hdr) {
    msghdr h = *m.hdr;
    h.msg_iov = const_cast<iovec*>(m.iov);
    h.msg_iovlen = m.iovcnt;
    return real::sendmsg(fd, &h, m.flags);
  }
  if (m.file_call) return m.iovcnt == 1 ? real::write(fd, m.iov->iov_base, m.iov->iov_len) : real::writev(fd, m.iov, static_cast<int>(m.iovcnt));
  if (m.iovcnt == 1) return real::sendto(fd, m.iov->iov_base, m.iov->iov_len, m.flags, m.name, m.namelen);
  msghdr h{};
  h.msg_iov = const_cast<iovec*>(m.iov);
  h.msg_iovlen = m.iovcnt;
  return real::sendmsg(fd, &h, m.flags);
}

// As above: bytes or -errno.
ssize_t kernel_recv(int fd, sock_msg& m) {
  ssize_t r;
  if (m.file_call) {
    r = m.iovcnt == 1 ? real::read(fd, m.iov->iov_base, m.iov->iov_len) : real::readv(fd, m.iov, static_cast<int>(m.iovcnt));
  } else if (m.hdr || m.iovcnt != 1) {
    msghdr h{};
    if (m.hdr) h = *m.hdr;
    h.msg_iov = const_cast<iovec*>(m.iov);
    h.msg_iovlen = m.iovcnt;
    r = real::recvmsg(fd, &h, m.flags);
    if (r >= 0 && m.hdr) { m.hdr->msg_namelen = h.msg_namelen; m.hdr->msg_controllen = h.msg_controllen; m.hdr->msg_flags = h.msg_flags; }
  } else {
    r = real::recvfrom(fd, m.iov->iov_base, m.iov->iov_len, m.flags, m.rname, m.rnamelen);
  }
  return r < 0 ? -errno : r;
}

bool watched_only(const socket* s) {
  return s->state != sock_state::connected || s->never.load(std::memory_order_relaxed);
}

// Before a plain data call. True: the socket is promoted now.
bool before_plain(socket* s, int fd) {
  if (ICEPATH_UNLIKELY(s->inherited.load(std::memory_order_relaxed))) sock_claim_inherited(s);
  if (ICEPATH_UNLIKELY(s->share.load(std::memory_order_relaxed) != 0)) holders_note_use(s);
  if (s->state == sock_state::connecting) sock_check_connected(s, fd);
  if (watched_only(s)) return false;
  promote_step(s, fd);
  return s->fast.load(std::memory_order_acquire);
}

// Urgent data: the kernel's, as are the byte counts from there on (the urgent byte is not in the reader's). Our direction goes to the kernel lane before
// the next byte; the connection is never promoted again.
void leave_for_good(socket* s, const char* why) {
  s->never.store(true, std::memory_order_relaxed);
  stack* st = s->st;
  if (!st || !stack_enter(st)) return;
  if (lane* l = s->ln; l && l->s == s && l->st == st) {
    stack_tick(st);
    lane_demote(l, why);
    lane_run_work(st);
  }
  stack_leave(st);
}

void note_blocked(socket* s, bool blocked) {
  if (s->tx_blocked.load(std::memory_order_relaxed) != blocked) s->tx_blocked.store(blocked, std::memory_order_relaxed);
}

}  // namespace

bool sock_plain_tx_begin(socket* s, int fd) {
  if (before_plain(s, fd)) return false;
  s->tx_calls.fetch_add(1, std::memory_order_seq_cst);
  if (!s->fast.load(std::memory_order_seq_cst)) return true;
  s->tx_calls.fetch_sub(1, std::memory_order_release);
  return false;
}

void sock_plain_tx_end(socket* s, ssize_t bytes, size_t wanted) {
  note_blocked(s, bytes < 0 ? bytes == -EAGAIN : bytes > 0 && static_cast<size_t>(bytes) < wanted);
  if (bytes > 0) s->k_tx.fetch_add(static_cast<uint64_t>(bytes), std::memory_order_relaxed);
  s->tx_calls.fetch_sub(1, std::memory_order_release);
}

ssize_t sock_sendmsg(socket* s, int fd, sock_msg& m) {
  for (;;) {
    if (ICEPATH_UNLIKELY(s->pending_err)) {
      const int e = s->pending_err;
      s->pending_err = 0;
      return -e;
    }
    if (ICEPATH_UNLIKELY(m.flags & MSG_OOB) && !s->never.load(std::memory_order_relaxed)) leave_for_good(s, "MSG_OOB");
    if (ICEPATH_LIKELY(s->fast.load(std::memory_order_acquire))) {
      if (ICEPATH_UNLIKELY((m.flags & MSG_FASTOPEN) || (m.hdr && m.hdr->msg_controllen))) {
        const int r = sock_demote(s, "control message");
        if (r < 0) return r;
        continue;
      }
      if (ICEPATH_UNLIKELY(m.iovcnt > IOV_MAX)) return -EMSGSIZE;
      call c{s, fd, view(m.iov, m.iovcnt), 0, 0, 0, m.flags, false, false, 0};
      if (c.m.count == 0) return sock_empty_send(s, fd, m.flags);
      const ssize_t r = lanes(c, (m.flags & MSG_DONTWAIT) || s->nonblock.load(std::memory_order_relaxed), s->sndtimeo);
      if (ICEPATH_LIKELY(r != not_fast)) {
        note_blocked(s, c.m.count != 0);
        return r;
      }
      if (fd_lost(fd, s)) return -EBADF;
      continue;
    }
    if (before_plain(s, fd)) continue;
    if (s->soft_block.load(std::memory_order_relaxed) && !(m.flags & MSG_DONTWAIT) && !s->nonblock.load(std::memory_order_relaxed)) {
      const int w = wait_plain(s, fd, POLLOUT, s->sndtimeo);
      if (w == 1) continue;
      if (w == 0) { note_blocked(s, true); return -EAGAIN; }
      if (w < 0) return w;
    }
    const in_flight f(s->tx_calls);
    if (s->fast.load(std::memory_order_seq_cst)) continue;
    const ssize_t r = kernel_send(fd, m);
    note_blocked(s, r < 0 ? errno == EAGAIN : m.iovcnt && static_cast<size_t>(r) < m.iov->iov_len);
    if (r < 0) return errno == EPIPE ? -EPIPE_RAISED : -errno;
    s->k_tx.fetch_add(static_cast<uint64_t>(r), std::memory_order_relaxed);
    return r;
  }
}

ssize_t sock_recvmsg(socket* s, int fd, sock_msg& m) {
  for (;;) {
    if (ICEPATH_UNLIKELY(s->pending_err && !(m.flags & MSG_ERRQUEUE))) {
      const int e = s->pending_err;
      s->pending_err = 0;
      return -e;
    }
    if (ICEPATH_LIKELY(s->fast.load(std::memory_order_acquire))) {
      if (ICEPATH_UNLIKELY(m.flags & (MSG_OOB | MSG_ERRQUEUE))) return kernel_recv(fd, m);  // out of band: always in the kernel
      if (ICEPATH_UNLIKELY(m.iovcnt > IOV_MAX)) return -EMSGSIZE;
      call c{s, fd, view(m.iov, m.iovcnt), 0, 0, 0, m.flags, true, false, 0};
      c.want = c.m.count;
      const bool nothing = c.want == 0;
      if (ICEPATH_UNLIKELY(nothing)) {  // waits as one that asks for a byte, and takes none
        c.want = 1;
        c.flags = (c.flags & ~MSG_WAITALL) | MSG_PEEK | MSG_TRUNC;
        c.no_buffer = true;
      }
      c.target = m.flags & MSG_WAITALL ? c.want : s->rcvlowat < c.want ? s->rcvlowat : c.want;
      const ssize_t r = lanes(c, (m.flags & MSG_DONTWAIT) || s->nonblock.load(std::memory_order_relaxed), s->rcvtimeo);
      if (ICEPATH_UNLIKELY(r == not_fast)) {
        if (fd_lost(fd, s)) return -EBADF;
        continue;
      }
      if (r >= 0) {
        if (m.hdr) { m.hdr->msg_namelen = 0; m.hdr->msg_controllen = 0; m.hdr->msg_flags = 0; }
        if (m.rname && m.rnamelen) *m.rnamelen = 0;
      }
      return nothing && r > 0 ? 0 : r;
    }
    if (before_plain(s, fd)) continue;
    if (ICEPATH_UNLIKELY(s->prefix_len.load(std::memory_order_acquire) && !(m.flags & (MSG_ERRQUEUE | MSG_OOB)))) {
      const ssize_t r = sock_read_prefix(s, m.iov, m.iovcnt, m.flags);
      if (r != -EAGAIN) return r;
    }
    if (s->soft_block.load(std::memory_order_relaxed) && !(m.flags & MSG_DONTWAIT) && !s->nonblock.load(std::memory_order_relaxed)) {
      const int w = wait_plain(s, fd, POLLIN, s->rcvtimeo);
      if (w == 1) continue;
      if (w == 0) return -EAGAIN;
      if (w < 0) return w;
    }
    const in_flight f(s->rx_calls);
    if (s->fast.load(std::memory_order_seq_cst)) continue;
    const ssize_t r = kernel_recv(fd, m);
    if (r < 0) return r;
    if (!(m.flags & (MSG_PEEK | MSG_ERRQUEUE | MSG_OOB))) s->k_rx.fetch_add(static_cast<uint64_t>(r), std::memory_order_relaxed);
    return r;
  }
}

}  // namespace icepath
