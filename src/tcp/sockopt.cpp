// Socket options that TCP itself honours (T12, tcp(7), socket(7)). Values and errors are the kernel's. Owner: the stack.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include "tcp/tcp_internal.hpp"

namespace icepath {

uint32_t tcp_info_bytes(const net& n, const tcp_sock* sk, void* to, uint32_t len);   // info.cpp

namespace {

constexpr int so_max_quick = 1;

int set_tcp(net& n, tcp_sock* sk, int name, const void* val, uint32_t len) {
  if (name == TCP_CONGESTION) {
    if (len < 1) return -EINVAL;
    const char* s = static_cast<const char*>(val);
    size_t k = 0;
    while (k < len && k < 15 && s[k]) ++k;
    const tcp_congestion_ops* ca = tcp_ca_find(s, k);
    if (!ca) return -ENOENT;
    if (ca != sk->ca_ops) tcp_ca_assign(sk, ca);
    return 0;
  }
  if (len < sizeof(int)) return -EINVAL;
  int v;
  std::memcpy(&v, val, sizeof v);
  switch (name) {
    case TCP_NODELAY:
      if (v) {
        sk->nonagle |= TCP_NAGLE_OFF | TCP_NAGLE_PUSH;   // an earlier small segment leaves now
        if (tcp_in_state(sk, tcpf(TCP_ESTABLISHED) | tcpf(TCP_CLOSE_WAIT))) tcp_push_pending_frames(n, sk);
        sk->nonagle &= static_cast<uint8_t>(~TCP_NAGLE_PUSH);
      } else {
        sk->nonagle &= static_cast<uint8_t>(~TCP_NAGLE_OFF);
      }
      return 0;
    case TCP_CORK:
      if (v) {
        sk->nonagle |= TCP_NAGLE_CORK;
      } else {
        sk->nonagle &= static_cast<uint8_t>(~TCP_NAGLE_CORK);
        const uint8_t keep = sk->nonagle;
        if (sk->nonagle & TCP_NAGLE_OFF) sk->nonagle |= TCP_NAGLE_PUSH;
        if (tcp_in_state(sk, tcpf(TCP_ESTABLISHED) | tcpf(TCP_CLOSE_WAIT))) tcp_push_pending_frames(n, sk);
        sk->nonagle = keep;
      }
      return 0;
    case TCP_MAXSEG:
      if (v && (v < static_cast<int>(tcp_min_mss) + 40 || v > 32767)) return -EINVAL;
      sk->user_mss = static_cast<uint16_t>(v);
      return 0;
    case TCP_KEEPIDLE:
      if (v < 1 || v > 32767) return -EINVAL;
      sk->keepalive_time = static_cast<nsec>(v) * sec_ns;
      if (sk->keepopen && !tcp_in_state(sk, tcpf(TCP_CLOSE) | tcpf(TCP_LISTEN))) {
        const nsec idle = n.now - (sk->rcv_tstamp > sk->ack.lrcvtime ? sk->rcv_tstamp : sk->ack.lrcvtime);
        tcp_reset_keepalive_timer(sk, sk->keepalive_time > idle ? sk->keepalive_time - idle : 0);
      }
      return 0;
    case TCP_KEEPINTVL:
      if (v < 1 || v > 32767) return -EINVAL;
      sk->keepalive_intvl = static_cast<nsec>(v) * sec_ns;
      return 0;
    case TCP_KEEPCNT:
      if (v < 1 || v > 127) return -EINVAL;
      sk->keepalive_probes = static_cast<uint8_t>(v);
      return 0;
    case TCP_SYNCNT:
      if (v < 1 || v > 127) return -EINVAL;
      sk->syn_retries = static_cast<uint8_t>(v);
      return 0;
    case TCP_LINGER2:
      if (v < 0) sk->linger2 = ~nsec{0};
      else if (static_cast<nsec>(v) * sec_ns > 120 * sec_ns) sk->linger2 = 0;
      else sk->linger2 = static_cast<nsec>(v) * sec_ns;
      return 0;
    case TCP_DEFER_ACCEPT:
      sk->defer_accept = static_cast<uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
      return 0;
    case TCP_WINDOW_CLAMP:
      if (!v) {
        if (sk->state != TCP_CLOSE) return -EINVAL;
        sk->user_window_clamp = 0;
      } else {
        sk->user_window_clamp = static_cast<uint32_t>(v) < tcp_min_rcvbuf / 2 ? tcp_min_rcvbuf / 2 : static_cast<uint32_t>(v);
        sk->window_clamp = sk->user_window_clamp;
        if (sk->rcv_ssthresh > sk->window_clamp) sk->rcv_ssthresh = sk->window_clamp;
      }
      return 0;
    case TCP_QUICKACK:
      if (!v) {
        sk->ack.pingpong = 3;
      } else {
        sk->ack.pingpong = 0;
        if (tcp_in_state(sk, tcpf(TCP_ESTABLISHED) | tcpf(TCP_CLOSE_WAIT)) && (sk->ack.pending & ACK_SCHED)) {
          sk->ack.pending |= ACK_PUSHED;
          tcp_cleanup_rbuf(n, sk, so_max_quick);
          if (!(v & 1)) sk->ack.pingpong = 3;
        }
      }
      return 0;
    case TCP_USER_TIMEOUT:
      if (v < 0) return -EINVAL;
      sk->user_timeout_ms = static_cast<uint32_t>(v);
      return 0;
    case 25 /* TCP_NOTSENT_LOWAT */:
      sk->notsent_lowat = v ? static_cast<uint32_t>(v) : ~0u;
      tcp_check_space(sk);
      return 0;
    default: return -ENOPROTOOPT;
  }
}

int set_socket(net& n, tcp_sock* sk, int name, const void* val, uint32_t len) {
  if (name == SO_LINGER) {
    linger l;
    if (len < sizeof l) return -EINVAL;
    std::memcpy(&l, val, sizeof l);
    sk->linger_on = l.l_onoff != 0;
    sk->linger_ns = l.l_linger < 0 ? ~nsec{0} : static_cast<nsec>(l.l_linger) * sec_ns;
    return 0;
  }
  if (len < sizeof(int)) return -EINVAL;
  int v;
  std::memcpy(&v, val, sizeof v);
  switch (name) {
    case SO_SNDBUF: {   // doubled, as the kernel does, for its own overhead
      const int64_t d = v < 0 ? int64_t{1} << 24 : 2ll * v;
      sk->sndbuf = static_cast<uint32_t>(d < tcp_min_sndbuf ? tcp_min_sndbuf : d > (1 << 30) ? 1 << 30 : d);
      sk->sndbuf_locked = true;
      tcp_check_space(sk);
      return 0;
    }
    case SO_RCVBUF: {
      const int64_t d = v < 0 ? int64_t{1} << 24 : 2ll * v;
      sk->rcvbuf = static_cast<uint32_t>(d < tcp_min_rcvbuf ? tcp_min_rcvbuf : d > (1 << 30) ? 1 << 30 : d);
      sk->rcvbuf_locked = true;
      return 0;
    }
    case SO_KEEPALIVE: tcp_set_keepalive(sk, v != 0); return 0;
    case SO_OOBINLINE: sk->urginline = v != 0; return 0;
    case SO_RCVLOWAT:
      sk->rcvlowat = v < 0 ? 0x7fffffff : v ? v : 1;
      if (sk->rcv_nxt - sk->copied_seq >= static_cast<uint32_t>(sk->rcvlowat)) tcp_data_ready(sk);
      if (!sk->rcvbuf_locked && sk->rcvlowat > 1) {   // the window must be able to hold that much
        const uint32_t half = sk->params.rcvbuf_max >> 1, want = tcp_space_from_win(sk, static_cast<uint32_t>(sk->rcvlowat) < half ? static_cast<uint32_t>(sk->rcvlowat) : half) << 1;
        const uint32_t cap = want < sk->params.rcvbuf_max ? want : sk->params.rcvbuf_max;
        if (cap > sk->rcvbuf) {
          sk->rcvbuf = cap;
          sk->rcv_ssthresh = tcp_win_from_space(sk, cap) < sk->window_clamp ? tcp_win_from_space(sk, cap) : sk->window_clamp;
        }
      }
      return 0;
    case SO_PRIORITY:
      if (v < 0 || v > 15) return -EINVAL;
      sk->priority = static_cast<uint8_t>(v);
      return 0;
    case SO_MARK: sk->mark = static_cast<uint32_t>(v); return 0;
    default: break;
  }
  (void)n;
  return -ENOPROTOOPT;
}

}  // namespace

int tcp_setsockopt(net& n, tcp_sock* sk, int level, int name, const void* val, uint32_t len) {
  if (level == IPPROTO_TCP) return set_tcp(n, sk, name, val, len);
  if (level == SOL_SOCKET) return set_socket(n, sk, name, val, len);
  if (level == IPPROTO_IP && len >= sizeof(int)) {
    int v;
    std::memcpy(&v, val, sizeof v);
    if (name == IP_TOS) return sk->tos = static_cast<uint8_t>(v), 0;
    if (name == IP_TTL) {
      if (v != -1 && (v < 1 || v > 255)) return -EINVAL;
      return sk->ttl = v == -1 ? tcp_default_ttl() : static_cast<uint8_t>(v), 0;
    }
  }
  return -ENOPROTOOPT;
}

int tcp_getsockopt(net& n, const tcp_sock* sk, int level, int name, void* val, uint32_t* len) {
  int v = 0;
  if (level == IPPROTO_TCP) {
    switch (name) {
      case TCP_INFO: *len = tcp_info_bytes(n, sk, val, *len); return 0;
      case TCP_CONGESTION: {
        char buf[16] = {};
        std::strncpy(buf, sk->ca_ops->name, sizeof buf - 1);
        if (*len > sizeof buf) *len = sizeof buf;
        std::memcpy(val, buf, *len);
        return 0;
      }
      case TCP_NODELAY: v = (sk->nonagle & TCP_NAGLE_OFF) != 0; break;
      case TCP_CORK: v = (sk->nonagle & TCP_NAGLE_CORK) != 0; break;
      case TCP_MAXSEG:
        v = sk->mss_cache;
        if (tcp_in_state(sk, tcpf(TCP_CLOSE) | tcpf(TCP_LISTEN)) && sk->user_mss) v = sk->user_mss;
        break;
      case TCP_KEEPIDLE: v = static_cast<int>(tcp_keepalive_time(sk) / sec_ns); break;
      case TCP_KEEPINTVL: v = static_cast<int>(tcp_keepalive_intvl(sk) / sec_ns); break;
      case TCP_KEEPCNT: v = static_cast<int>(tcp_keepalive_probes(sk)); break;
      case TCP_SYNCNT: v = sk->syn_retries ? sk->syn_retries : sk->params.syn_retries; break;
      case TCP_LINGER2: v = sk->linger2 == ~nsec{0} ? -1 : static_cast<int>((sk->linger2 ? sk->linger2 : sk->params.fin_timeout) / sec_ns); break;
      case TCP_DEFER_ACCEPT: v = sk->defer_accept; break;
      case TCP_WINDOW_CLAMP: v = static_cast<int>(sk->user_window_clamp ? sk->user_window_clamp : sk->window_clamp); break;
      case TCP_QUICKACK: v = sk->ack.pingpong < 3; break;
      case TCP_USER_TIMEOUT: v = static_cast<int>(sk->user_timeout_ms); break;
      case 25: v = static_cast<int>(sk->notsent_lowat); break;
      default: return -ENOPROTOOPT;
    }
  } else if (level == SOL_SOCKET) {
    switch (name) {
      case SO_SNDBUF: v = static_cast<int>(sk->sndbuf); break;
      case SO_RCVBUF: v = static_cast<int>(sk->rcvbuf); break;
      case SO_KEEPALIVE: v = sk->keepopen; break;
      case SO_OOBINLINE: v = sk->urginline; break;
      case SO_RCVLOWAT: v = sk->rcvlowat; break;
      case SO_PRIORITY: v = sk->priority; break;
      case SO_MARK: v = static_cast<int>(sk->mark); break;
      default: return -ENOPROTOOPT;
    }
  } else {
    return -ENOPROTOOPT;
  }
  if (*len > sizeof v) *len = sizeof v;
  std::memcpy(val, &v, *len);
  return 0;
}

}  // namespace icepath
