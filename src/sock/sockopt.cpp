// Options, ioctl, shutdown of a watched socket. The kernel socket is where options live; what the fast lane honours is mirrored to it, what it cannot
// honour demotes first. Any thread. Return value or -errno.
#include <errno.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include <cstring>

#include "base/alloc.hpp"
#include "base/clock.hpp"
#include "base/usercopy.hpp"
#include "base/libc.hpp"
#include "sock/lane.hpp"
#include "sock/lane_sys.hpp"
#include "sock/proc.hpp"
#include "sock/wait.hpp"
#include "tcp/tcp_sock.hpp"

namespace icepath {
namespace {

struct inside {   // the lane of s under its owner word, or nothing
  stack* st = nullptr;
  lane* l = nullptr;
  explicit inside(socket* s) {
    stack* t = s->st;
    if (!t || !s->fast.load(std::memory_order_acquire) || !stack_enter(t)) return;
    st = t;
    if (lane* k = s->ln; k && k->s == s && k->st == t && s->fast.load(std::memory_order_relaxed)) l = k;
    stack_tick(st);
  }
  ~inside() {
    if (l && l->s) lane_publish(l);
    if (st) stack_leave(st);
  }
};

// Set on a fast socket: kept by the kernel lane only is a lie, so the connection goes back first.
bool needs_kernel(int level, int name) {
  if (level == SOL_SOCKET)
    switch (name) {
      case 60 /* SO_ZEROCOPY */: case SO_MARK: case SO_TIMESTAMP: case SO_TIMESTAMPNS: case SO_TIMESTAMPING:
      case SO_BINDTODEVICE: case SO_MAX_PACING_RATE: case 61 /* SO_TXTIME */: case SO_ATTACH_FILTER: case SO_ATTACH_BPF: return true;
      default: return false;
    }
  if (level == IPPROTO_TCP)
    switch (name) {
      case TCP_REPAIR: case TCP_ULP: case TCP_MD5SIG: case 32 /* TCP_MD5SIG_EXT */: case 37 /* TCP_TX_DELAY */: return true;
      default: return false;
    }
  return false;
}

bool mirrored(int level, int name) {
  if (level == SOL_SOCKET) return name == SO_RCVBUF || name == SO_SNDBUF;
  if (level == IPPROTO_TCP)
    switch (name) {
      case TCP_NODELAY: case TCP_CORK: case TCP_QUICKACK: case TCP_NOTSENT_LOWAT: case TCP_WINDOW_CLAMP: case TCP_CONGESTION: return true;
      default: return false;
    }
  return false;
}

// A parked socket has these for its own purposes (kernel_repair.hpp): the program's are kept here, and given back with the connection.
bool wire_only(int level, int name) { return level == SOL_SOCKET && (name == SO_KEEPALIVE || name == SO_REUSEADDR); }

// While the kernel lane is drained: of `more` bytes in it behind the `left` that come before the fast stream, those that count. Not the kernel
// header, nor what has come by the fast lane too.
uint64_t behind_header(const lane* l, uint64_t left, uint64_t more) {
  kernel_header h{};
  if (more < sizeof h) return 0;
  auto* b = static_cast<uint8_t*>(mem_alloc(left + sizeof h));
  if (!b) return 0;
  const bool whole = lane_sys::recv(l->fd, b, left + sizeof h, MSG_PEEK | MSG_DONTWAIT) == static_cast<ssize_t>(left + sizeof h);
  if (whole) std::memcpy(&h, b + left, sizeof h);
  mem_free(b);
  if (!whole || h.magic != kernel_magic) return 0;
  const uint64_t have = lane_unread(l), twice = h.f < have ? have - h.f : 0;
  more -= sizeof h;
  return more > twice ? more - twice : 0;
}

}  // namespace

int sock_setsockopt(socket* s, int fd, int level, int name, const void* val, socklen_t len) {
  if (needs_kernel(level, name) && s->state == sock_state::connected && (s->fast.load() || s->ln)) {
    const int r = sock_demote(s, "socket option");
    if (r < 0) return r;
  }
  if (wire_only(level, name) && val && len >= sizeof(int)) {
    const inside in(s);
    if (in.l && in.l->wire) {
      int v = 0;
      if (copy_from_user(&v, val, sizeof v)) return -EFAULT;
      if (name == SO_REUSEADDR) in.l->reuse_addr = v != 0;
      else tcp_setsockopt(in.st->net, in.l->sk, level, name, &v, sizeof v);
      return 0;
    }
  }
  const int r = real::setsockopt(fd, level, name, val, len);
  if (r != 0) return -errno;
  if (level == SOL_SOCKET && (name == SO_RCVTIMEO || name == SO_SNDTIMEO)) sock_refresh_timeouts(s, fd);
  if (level == SOL_SOCKET && name == SO_RCVLOWAT) {
    int v = 1;
    socklen_t l = sizeof v;
    if (real::getsockopt(fd, level, name, &v, &l) == 0) s->rcvlowat = v > 0 ? static_cast<uint32_t>(v) : 1;
    const inside in(s);
    if (in.l) in.l->k_lowat = 0;
  }
  if (level == SOL_SOCKET && name == SO_RCVBUF) s->buf_locked |= 1;
  if (level == SOL_SOCKET && name == SO_SNDBUF) s->buf_locked |= 2;
  const bool always = mirrored(level, name);
  if (always || level == IPPROTO_TCP || level == SOL_SOCKET || level == IPPROTO_IP) {
    const inside in(s);
    if (in.l && in.l->sk && (always || in.l->wire)) tcp_setsockopt(in.st->net, in.l->sk, level, name, val, len);
  }
  return 0;
}

int sock_getsockopt(socket* s, int fd, int level, int name, void* val, socklen_t* len) {
  if (level == SOL_SOCKET && name == SO_ERROR && val && len && *len >= sizeof(int)) {
    int e = 0;
    {
      const inside in(s);
      if (in.l) {
        socklen_t n = sizeof e;
        e = in.l->pending_err;
        in.l->pending_err = 0;
        if (!e && !in.l->wire && real::getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n) == 0 && e == ECONNRESET) in.l->reset_told = true;
        if (!e && in.l->wire) { e = in.l->sk->err; in.l->sk->err = 0; }
      }
    }
    if (!e && s->pending_err) { e = s->pending_err; s->pending_err = 0; }
    if (e) {
      socklen_t n = sizeof e;
      if (copy_to_user(val, &e, sizeof e) || copy_to_user(len, &n, sizeof n)) return -EFAULT;
      return 0;
    }
    if (s->state == sock_state::connecting) {
      const int r = real::getsockopt(fd, level, name, val, len);
      if (r == 0) sock_check_connected(s, fd);
      return r == 0 ? 0 : -errno;
    }
  }
  if (level == IPPROTO_TCP && name == TCP_INFO) {
    tcp_info ti{};
    bool have = false, wire = false;
    {
      const inside in(s);
      if (in.l && in.l->sk && in.l->phase == lane_phase::open && (in.l->tx == tx_lane::fast || in.l->rx == rx_lane::fast)) {
        tcp_get_info(in.st->net, in.l->sk, &ti);
        have = true;
        wire = in.l->wire;
      }
    }
    if (have) {
      socklen_t n = 0;
      if (copy_from_user(&n, len, sizeof n)) return -EFAULT;
      if (static_cast<int>(n) < 0) return -EINVAL;
      tcp_info k{};
      socklen_t kn = sizeof k;
      if (real::getsockopt(fd, level, name, &k, &kn) != 0) return -errno;
      // The connection's state, and the bytes that went by the kernel before, are the kernel lane's to tell.
      if (!wire) ti.tcpi_state = k.tcpi_state;
      if (wire) k = tcp_info{};   // they have come along
      ti.tcpi_bytes_acked += k.tcpi_bytes_acked;
      ti.tcpi_bytes_received += k.tcpi_bytes_received;
      ti.tcpi_bytes_sent += k.tcpi_bytes_sent;
      ti.tcpi_segs_in += k.tcpi_segs_in;
      ti.tcpi_segs_out += k.tcpi_segs_out;
      ti.tcpi_data_segs_in += k.tcpi_data_segs_in;
      ti.tcpi_data_segs_out += k.tcpi_data_segs_out;
      if (n > kn) n = kn;
      if (copy_to_user(val, &ti, n) || copy_to_user(len, &n, sizeof n)) return -EFAULT;
      return 0;
    }
  }
  const int r = real::getsockopt(fd, level, name, val, len) == 0 ? 0 : -errno;
  if (r == 0 && wire_only(level, name)) {
    socklen_t n = 0;
    const inside in(s);
    if (in.l && in.l->wire) {
      const int v = name == SO_REUSEADDR ? in.l->reuse_addr : in.l->sk->keepopen;
      if (copy_from_user(&n, len, sizeof n) || copy_to_user(val, &v, n < sizeof v ? n : sizeof v)) return -EFAULT;
    }
  }
  if (r == 0 && level == SOL_SOCKET && name == SO_RCVLOWAT && s->rcvlowat > 1) {
    socklen_t n = 0;   // the kernel lane's may be lower for now
    if (copy_from_user(&n, len, sizeof n) || copy_to_user(val, &s->rcvlowat, n < sizeof s->rcvlowat ? n : sizeof s->rcvlowat)) return -EFAULT;
  }
  return r;
}

int sock_ioctl(socket* s, int fd, unsigned long req, void* arg) {
  if (ICEPATH_UNLIKELY(s->inherited.load(std::memory_order_relaxed))) sock_claim_inherited(s);
  switch (req) {
    case FIONREAD: {   // SIOCINQ
      if (stack* st = s->st) stack_look(st);
      const inside in(s);
      if (!in.l) break;
      lane_settle(in.l);
      int k = 0;
      if ((in.l->rx != rx_lane::fast || in.l->rx_f != ~0ull) && real::ioctl(fd, FIONREAD, &k) != 0) return -errno;
      uint64_t v = static_cast<uint64_t>(k);
      if (in.l->rx == rx_lane::draining) {
        const uint64_t left = in.l->rx_n - s->k_rx.load(std::memory_order_relaxed);
        if (v > left) v = left + behind_header(in.l, left, v - left);
      }
      v = v > in.l->k_skip ? v - in.l->k_skip : 0;
      if (in.l->rx != rx_lane::kernel) v += lane_unread(in.l);
      const int out = static_cast<int>(v);
      return copy_to_user(arg, &out, sizeof out) ? -EFAULT : 0;
    }
    case SIOCOUTQ:     // TIOCOUTQ
    case SIOCOUTQNSD: {
      if (stack* st = s->st) stack_poll(st);   // who asks again and again may be the only one who looks for the ACK
      const inside in(s);
      if (!in.l || !in.l->sk) break;
      int k = 0;
      if (!in.l->wire && real::ioctl(fd, req, &k) != 0) return -errno;   // also what went there before the switch
      const int out = k + static_cast<int>(req == SIOCOUTQ ? tcp_outq(in.l->sk) : tcp_outq_nsd(in.l->sk));
      return copy_to_user(arg, &out, sizeof out) ? -EFAULT : 0;
    }
    case SIOCATMARK: {
      const inside in(s);
      if (!in.l) break;
      lane_settle(in.l);
      const int out = lane_at_mark(in.l);
      return copy_to_user(arg, &out, sizeof out) ? -EFAULT : 0;
    }
    case FIONBIO: {
      int v = 0;
      if (copy_from_user(&v, arg, sizeof v)) return -EFAULT;
      const int r = real::ioctl(fd, req, arg);
      if (r < 0) return -errno;
      s->nonblock.store(v != 0, std::memory_order_relaxed);
      return r;
    }
    case FIOASYNC: {   // SIGIO is the kernel's to send
      int v = 0;
      if (copy_from_user(&v, arg, sizeof v)) return -EFAULT;
      if (v) sock_demote(s, "FIOASYNC");
      break;
    }
    default: break;
  }
  const int r = real::ioctl(fd, req, arg);
  return r < 0 ? -errno : r;
}

int sock_shutdown(socket* s, int fd, int how) {
  bool hold_read = false, hold_write = false;
  lane_unpublish(s, "shut down");
  if (s->fast.load() && sock_is_wire(s) && sock_demote(s, "shut down") != 0) return -EAGAIN;
  {
    const inside in(s);
    if (in.l && in.l->sk && in.l->phase == lane_phase::opening && lane_may_give_up(in.l)) lane_open_failed(in.l, "shut down");
  }
  {
    const inside in(s);
    if (in.l && (how == SHUT_RD || how == SHUT_WR || how == SHUT_RDWR)) {
      if (how != SHUT_RD) {
        hold_write = !lane_shut_write(in.l);
        s->reason = "shut down";
      }
      if (how != SHUT_WR && !(in.l->rx == rx_lane::kernel && in.l->rx_hdr_seen)) {
        // The kernel lane still has to bring the peer's header: reading is shut here, and there once it is the kernel's turn again.
        if (!in.l->rd_shut) {
          int k = 0;
          real::ioctl(in.l->fd, FIONREAD, &k);
          in.l->rd_end = in.l->f_rx + lane_unread(in.l);
          in.l->k_rd_end = in.l->rx == rx_lane::fast ? 0 : s->k_rx.load(std::memory_order_relaxed) + static_cast<uint64_t>(k);
        }
        in.l->rd_shut = true;
        hold_read = true;
      }
      lane_note(in.l);
      lane_run_work(in.st);
    }
  }
  s->never.store(true, std::memory_order_relaxed);
  if ((hold_read && how == SHUT_RD) || (hold_write && how == SHUT_WR)) { sock_wake(s, EPOLLIN | EPOLLRDHUP); return 0; }
  if (hold_write && how == SHUT_RDWR) how = SHUT_RD;
  if (hold_write && hold_read) { sock_wake(s, ~0u); return 0; }
  const int r = real::shutdown(fd, hold_read ? SHUT_WR : how);
  const int e = r == 0 ? 0 : -errno;
  epoll_shut(s);
  sock_wake(s, ~0u);
  return e;
}

}  // namespace icepath
