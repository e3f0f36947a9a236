// Hand-back: the connection returns to its kernel socket so completely that whoever reads the raw descriptor, with or without this
// library, finds exactly the bytes the program has not read yet. For fork children, exec, SCM_RIGHTS and calls without a fast form.
// Under the owner word of lane::st; nothing here waits, every step is taken from lane_advance.
//
// Bytes that have arrived in the fast receive queue (or are mixed with headers in the kernel lane) cannot be put into a kernel receive queue by
// us; only the peer's send() can do that. So the end that hands back, Y, asks the peer, X, by bits of the lane option:
//   Y: moves its own sending direction to the kernel lane; sets RETURN.
//   X: stops sending on either lane; when all it has sent is acknowledged, sets FROZEN (and CANNOT when its kernel lane is shut for writing).
//   Y: has meanwhile taken everything out of both lanes into its spool; with FROZEN seen and both lanes empty it writes the spool into a file of
//      the runtime directory, named by the connection, and sets RETURNED.
//   X: writes a kernel header {flags = returned} and the bytes of the file into the kernel lane, then goes on there.
//   Y: takes the header off the kernel lane. What follows in it is the stream from where the program is.
// Both directions may do so at once, and both ends may be in one thread. The file keeps the way back free of flow control: X's program may leave the
// bytes of the other direction unread for ever.
// How it fails: X is gone or has shut its writing side. Then the spool is kept as a prefix that this process's (or its fork child's) reads give first;
// a program that reads the raw descriptor cannot get it, which is logged.
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "base/alloc.hpp"
#include "base/log.hpp"
#include "base/no_cancel.hpp"
#include "base/sig_gate.hpp"
#include "base/usercopy.hpp"
#include "base/libc.hpp"
#include "skb/region.hpp"
#include "sock/lane.hpp"
#include "sock/lane_sys.hpp"
#include "sock/takeover.hpp"
#include "stack/helper.hpp"
#include "stack/process.hpp"
#include "tcp/tcp_sock.hpp"

namespace icepath {
namespace {

constexpr nsec look_again = msec_ns;
constexpr size_t most = size_t{256} << 20;      // more than two lanes can hold
constexpr uint32_t returned_flag = 1;

void look_timer(timer* t, nsec) { lane_note(lane_of_timer(t)); }

void tell(lane* l, uint8_t bits) {
  if ((l->sk->lane_opt_tx & bits) == bits) return;
  l->sk->lane_opt_tx |= bits;
  tcp_send_ack(l->st->net, l->sk);
}

// The file by which the end with tuple t in process `slot` returns its bytes.
void return_path(char (&p)[300], uint32_t slot, const four_tuple& t) {
  std::snprintf(p, sizeof p, "%s/p%u.ret.%llx", runtime_dir_path(), slot,
                static_cast<unsigned long long>(hash_of(t)) << 32 | static_cast<unsigned long long>(t.sport) << 16 | t.dport);
}
void prefix_path(char (&p)[300], uint32_t slot, uint32_t serial) {
  std::snprintf(p, sizeof p, "%s/p%u.pre.%u", runtime_dir_path(), slot, serial);
}

bool write_file(const char* path, const uint8_t* b, size_t n) {
  const no_cancel whole;
  ::unlink(path);
  const int fd = ::open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return false;
  size_t off = 0;
  while (off < n) {
    const ssize_t r = ::write(fd, b + off, n - off);
    if (r < 0 && errno == EINTR) continue;
    if (r <= 0) break;
    off += static_cast<size_t>(r);
  }
  lane_sys::close(fd);
  if (off == n) return true;
  ::unlink(path);
  return false;
}

// room bytes stay free before the contents. nullptr: no such file, or not one we can have written.
uint8_t* read_file(const char* path, size_t room, size_t* n) {
  const no_cancel whole;
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return nullptr;
  ::unlink(path);
  struct stat sb;
  uint8_t* b = nullptr;
  if (::fstat(fd, &sb) == 0 && S_ISREG(sb.st_mode) && static_cast<size_t>(sb.st_size) <= most)
    b = static_cast<uint8_t*>(mem_alloc(room + static_cast<size_t>(sb.st_size) + 1));
  size_t off = 0;
  while (b && off < static_cast<size_t>(sb.st_size)) {
    const ssize_t r = ::read(fd, b + room + off, static_cast<size_t>(sb.st_size) - off);
    if (r < 0 && errno == EINTR) continue;
    if (r <= 0) break;
    off += static_cast<size_t>(r);
  }
  lane_sys::close(fd);
  *n = off;
  return b;
}

uint8_t* spool_room(lane* l, size_t n) {
  if (l->spool_len + n > most) return nullptr;
  if (l->spool_len + n > l->spool_cap) {
    size_t cap = l->spool_cap ? l->spool_cap * 2 : 65536;
    while (cap < l->spool_len + n) cap *= 2;
    auto* b = static_cast<uint8_t*>(mem_alloc(cap));
    if (!b) return nullptr;
    if (l->spool_len) std::memcpy(b, l->spool, l->spool_len);
    mem_free(l->spool);
    l->spool = b;
    l->spool_cap = cap;
  }
  return l->spool + l->spool_len;
}

// Takes what the kernel lane has, at most `max` bytes. False: it has ended.
bool pull_kernel(lane* l, uint64_t max) {
  while (max) {
    const size_t want = max < 65536 ? static_cast<size_t>(max) : 65536;
    uint8_t* b = spool_room(l, want);
    if (!b) return true;   // no memory now: later
    const ssize_t r = lane_sys::recv(l->fd, b, want, MSG_DONTWAIT);
    if (r < 0) return errno == EAGAIN || errno == EINTR;
    if (r == 0) return false;
    l->spool_len += static_cast<size_t>(r);
    l->s->k_rx.fetch_add(static_cast<uint64_t>(r), std::memory_order_relaxed);
    max -= static_cast<uint64_t>(r);
  }
  return true;
}

void pull_fast(lane* l) {
  for (;;) {
    const uint64_t left = l->rx_f - l->f_rx;
    const uint32_t have = tcp_inq(l->sk);
    const size_t want = have < left ? have : static_cast<size_t>(left);
    uint8_t* b = want ? spool_room(l, want) : nullptr;
    if (!b) return;
    iovec v{b, want};
    user_msg m{&v, 1, 0, want};
    const ssize_t r = tcp_recvmsg(l->st->net, l->sk, &m, want, 0);
    if (r <= 0) return;
    l->spool_len += static_cast<size_t>(r);
    l->f_rx += static_cast<uint64_t>(r);
  }
}

// Everything that has arrived, from both lanes. False: the kernel lane has ended.
bool pull(lane* l) {
  socket* s = l->s;
  if (!l->rx_hdr_seen) return true;
  if (l->rx == rx_lane::draining) {
    const uint64_t left = l->rx_n - s->k_rx.load(std::memory_order_relaxed);
    if (!pull_kernel(l, left)) return false;
    lane_settle(l);
  }
  if (l->rx == rx_lane::fast) {
    pull_fast(l);
    lane_kernel_input(l);
    if (l->peer_gone) { pull_fast(l); return false; }
    pull_fast(l);
    lane_settle(l);
  }
  if (l->rx == rx_lane::kernel) {
    while (l->k_skip) {
      char scratch[4096];
      const ssize_t r = lane_sys::recv(l->fd, scratch, l->k_skip < sizeof scratch ? l->k_skip : sizeof scratch, MSG_DONTWAIT);
      if (r < 0) return errno == EAGAIN || errno == EINTR;
      if (r == 0) return false;
      l->k_skip -= static_cast<size_t>(r);
      s->k_rx.fetch_add(static_cast<uint64_t>(r), std::memory_order_relaxed);
    }
    return pull_kernel(l, ~0ull);
  }
  return true;
}

bool all_pulled(const lane* l) {
  if (!l->rx_hdr_seen || l->rx == rx_lane::draining || l->k_skip) return false;
  return l->rx == rx_lane::kernel || tcp_inq(l->sk) == 0;
}

bool write_side_shut(int fd) {
  tcp_info ti{};
  socklen_t len = sizeof ti;
  if (real::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &ti, &len) != 0) return true;
  return ti.tcpi_state != TCP_ESTABLISHED && ti.tcpi_state != TCP_CLOSE_WAIT;
}

// X cannot help: what we took stays here and is read first.
void keep_as_prefix(lane* l) {
  socket* s = l->s;
  if (l->spool_len) {
    mem_free(s->prefix);
    s->prefix = l->spool;
    s->prefix_off = 0;
    l->spool = nullptr;
    s->prefix_len.store(l->spool_len, std::memory_order_release);
    l->spool_len = l->spool_cap = 0;
  }
  l->back = lane_back::none;
  if (l->rx != rx_lane::kernel) {
    if (l->rx_f == ~0ull) l->rx_f = l->f_rx;
    if (l->rx_f == l->f_rx) l->rx = rx_lane::kernel;
  }
}

void step_back(lane* l) {
  if (l->back == lane_back::asked) {
    const bool alive = pull(l);
    const bool closed = l->sk->state == TCP_CLOSE;
    if (!alive || closed || (l->opt_seen & LANE_OPT_CANNOT)) {
      // With CANNOT or a finished peer the rest is in the kernel lane behind its header, in order, which everybody may read.
      if (!alive || l->rx == rx_lane::kernel) keep_as_prefix(l);
      return;
    }
    if (!(l->opt_seen & LANE_OPT_FROZEN) || !all_pulled(l)) return;
    if (l->rx == rx_lane::kernel && l->spool_len && !pull_kernel(l, ~0ull)) { keep_as_prefix(l); return; }
    char path[300];
    return_path(path, process_region()->slot, l->t);
    if (!write_file(path, l->spool, l->spool_len)) { keep_as_prefix(l); return; }
    l->back = lane_back::returned;
    l->in_len = 0;
    tell(l, LANE_OPT_RETURNED);
  }
  if (l->back == lane_back::returned) {
    kernel_header h;
    ssize_t r = lane_sys::recv(l->fd, &h, sizeof h, MSG_DONTWAIT | MSG_PEEK);
    if (r < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (r > 0 && r < static_cast<ssize_t>(sizeof h)) return;
    if (r == static_cast<ssize_t>(sizeof h) && h.magic == kernel_magic && h.flags == returned_flag) {
      r = lane_sys::recv(l->fd, &h, sizeof h, MSG_DONTWAIT);
      mem_free(l->spool);
      l->spool = nullptr;
      l->spool_len = l->spool_cap = 0;
    } else {
      l->peer_gone = l->peer_gone || r <= 0;
    }
    keep_as_prefix(l);
    l->rx_f = l->f_rx;
    l->rx = rx_lane::kernel;
  }
}

void step_held(lane* l) {
  if (l->held == lane_held::none && (l->opt_seen & LANE_OPT_RETURN) && !(l->sk->lane_opt_tx & LANE_OPT_FROZEN)) {
    l->held = lane_held::freezing;
    const int one = 1;
    const bool off = (l->sk->nonagle & TCP_NAGLE_OFF) != 0;
    if (!off) tcp_setsockopt(l->st->net, l->sk, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);  // what MSG_MORE or Nagle holds goes out
  }
  if (l->held == lane_held::freezing) {
    int q = 0;
    if (l->out_len || l->tail || tcp_outq(l->sk)) return;
    const bool shut = write_side_shut(l->fd);
    if (!shut && real::ioctl(l->fd, SIOCOUTQ, &q) == 0 && q != 0) return;
    l->held = lane_held::frozen;
    tell(l, static_cast<uint8_t>(LANE_OPT_FROZEN | (shut ? LANE_OPT_CANNOT : 0)));
    if (shut) l->held = lane_held::none;
  }
  if (l->held == lane_held::frozen && (l->opt_seen & LANE_OPT_RETURNED)) {
    char path[300];
    return_path(path, l->peer.process_slot, l->t.reversed());
    size_t n = 0;
    uint8_t* b = read_file(path, sizeof(kernel_header), &n);
    if (!b) {
      log_error("bytes returned by the peer cannot be read: the connection ends");
      l->fatal = true;
      l->held = lane_held::none;
      return;
    }
    const kernel_header h{kernel_magic, returned_flag, l->f_tx};
    std::memcpy(b, &h, sizeof h);
    l->tail = b;
    l->tail_len = sizeof h + n;
    l->tail_off = 0;
    l->s->k_tx.fetch_add(n, std::memory_order_relaxed);
    l->tx = tx_lane::kernel;
    l->held = lane_held::writing;
  }
}

}  // namespace

bool lane_flush_tail(lane* l) {
  while (l->tail && l->tail_off < l->tail_len) {
    const ssize_t r = lane_sys::send(l->fd, l->tail + l->tail_off, l->tail_len - l->tail_off, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (r < 0) {
      if (errno == EAGAIN || errno == EINTR) return false;
      break;   // the kernel lane is dead: the next kernel call says so
    }
    l->tail_off += static_cast<size_t>(r);
  }
  if (!l->tail) return true;
  mem_free(l->tail);
  l->tail = nullptr;
  lane_tell_kernel(l);
  if (l->held == lane_held::writing) l->held = lane_held::none;
  return true;
}

bool lane_moving(const lane* l) { return l->back != lane_back::none || l->held != lane_held::none || l->tail || l->hand_back || l->tx_wanted || l->fin_wanted; }

// Before the fast connection is established, giving up is safe only while the peer cannot have established it either.
bool lane_may_give_up(const lane* l) {
  if (l->phase == lane_phase::published || l->phase == lane_phase::attaching) return true;
  return l->phase == lane_phase::opening && l->sk && (l->sk->state == TCP_SYN_SENT || l->sk->state == TCP_LISTEN || l->sk->state == TCP_CLOSE);
}

void lane_handback(lane* l, const char* why) {
  if (l->wire) { give_back(l, why); return; }
  socket* s = l->s;
  s->reason = why;
  l->want_kernel = true;
  if (lane_may_give_up(l)) { lane_open_failed(l, why); return; }
  if (l->phase == lane_phase::opening) { l->hand_back = true; return; }
  if ((l->phase != lane_phase::open && l->phase != lane_phase::closing) || l->back != lane_back::none) return;
  l->hand_back = false;
  lane_move(l);
  if (l->tx == tx_lane::fast && l->held == lane_held::none) lane_tx_to_kernel(l);
  const bool rx_home = l->rx_hdr_seen && l->rx == rx_lane::kernel && l->f_rx == l->rx_f && l->k_skip == 0;
  if (!rx_home) {
    l->back = lane_back::asked;
    tell(l, LANE_OPT_RETURN);
  }
  lane_note(l);
}

// What the peer has not acknowledged goes by the kernel lane: it need not read what it has for us to leave.
bool lane_move(lane* l) {
  socket* s = l->s;
  lane_start_tx(l);
  if (l->tx == tx_lane::fast && !l->peer_gone && l->sk->state != TCP_CLOSE && lane_header_acked(l) && l->held == lane_held::none && !l->tail) {
    const size_t outq = lane_outq(l), left = outq < l->f_tx ? outq : static_cast<size_t>(l->f_tx);
    auto* b = static_cast<uint8_t*>(mem_alloc(sizeof(kernel_header) + left));
    if (b && tcp_peek_send_queue(l->st->net, l->sk, static_cast<uint32_t>(outq - left), b + sizeof(kernel_header), left) == left) {
      const kernel_header h{kernel_magic, lane_header_flags(l), l->f_tx - left};
      std::memcpy(b, &h, sizeof h);
      l->tail = b;
      l->tail_len = sizeof h + left;
      l->tail_off = 0;
      l->tx = tx_lane::kernel;
      l->moved = true;
      s->k_tx.fetch_add(left, std::memory_order_relaxed);
      mib_add(l->st->net.stats->SockDemoted);
    } else {
      mem_free(b);
      return false;
    }
    lane_flush_tail(l);
  }
  return l->tx == tx_lane::kernel;
}

void lane_handback_step(lane* l) {
  l->opt_seen |= l->sk->lane_opt_rx;
  if (l->hand_back && l->phase != lane_phase::opening) lane_handback(l, l->s->reason);
  if (l->tail) lane_flush_tail(l);
  if (l->tx_wanted) lane_tx_to_kernel(l);
  step_held(l);
  if (l->back != lane_back::none) step_back(l);
  if (l->tail) lane_flush_tail(l);
  if (l->fin_wanted && l->phase != lane_phase::opening && l->held == lane_held::none) {
    const bool gone = l->peer_gone || l->sk->state == TCP_CLOSE;
    if ((gone || (lane_outq(l) <= lane_move_most && lane_move(l))) && !l->tail && !l->out_len) {
      l->fin_wanted = false;
      real::shutdown(l->fd, SHUT_WR);
    }
  }
  if (lane_moving(l)) {
    l->tm.fn = look_timer;
    l->st->net.timers.arm(l->tm, l->st->net.now + look_again);
    l->st->expect_at.store(l->st->net.now + look_again, std::memory_order_relaxed);   // our thread may stay away meanwhile
    if (!stack_is_helper_thread()) helper_expect(l->st->net.now + look_again);
  }
}

// ---- the prefix

bool sock_give_prefix(socket* s) {
  const size_t n = s->prefix_len.load(std::memory_order_acquire);
  if (!n) return false;
  char path[300];
  prefix_path(path, process_region()->slot, s->serial);
  const bool ok = write_file(path, s->prefix + s->prefix_off, n - s->prefix_off);
  mem_free(s->prefix);
  s->prefix = nullptr;
  s->prefix_len.store(0, std::memory_order_release);
  return ok;
}

void sock_take_prefix(socket* s, uint32_t slot, uint32_t serial) {
  char path[300];
  prefix_path(path, slot, serial);
  size_t n = 0;
  uint8_t* b = read_file(path, 0, &n);
  if (!b) return;
  if (n == 0) { mem_free(b); return; }
  s->prefix = b;
  s->prefix_off = 0;
  s->prefix_len.store(n, std::memory_order_release);
}

ssize_t sock_read_prefix(socket* s, const iovec* iov, size_t iovcnt, int flags) {
  const closed_gate no_handlers;
  while (s->prefix_lock.exchange(1, std::memory_order_acquire)) __builtin_ia32_pause();
  const size_t n = s->prefix_len.load(std::memory_order_relaxed);
  size_t at = s->prefix_off;
  ssize_t done = 0;
  for (size_t i = 0; i < iovcnt && at < n; ++i) {
    const size_t k = iov[i].iov_len < n - at ? iov[i].iov_len : n - at;
    if (!(flags & MSG_TRUNC) && copy_to_user(iov[i].iov_base, s->prefix + at, k)) { if (!done) done = -EFAULT; break; }
    at += k;
    done += static_cast<ssize_t>(k);
  }
  if (n == 0) done = -EAGAIN;
  else if (done > 0 && !(flags & MSG_PEEK)) {
    s->prefix_off = at;
    if (at == n) {
      mem_free(s->prefix);
      s->prefix = nullptr;
      s->prefix_len.store(0, std::memory_order_release);
    }
  }
  s->prefix_lock.store(0, std::memory_order_release);
  return done;
}

}  // namespace icepath
