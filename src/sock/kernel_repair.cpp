// See kernel_repair.hpp. The order of the calls is the contract with the kernel (net/ipv4/tcp.c, tcp_output.c): sequence numbers only while
// closed, options only while established, the window after the receive queue, because rcv_wup may not lie beyond rcv_nxt.
#include "sock/kernel_repair.hpp"

#include <linux/filter.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "base/clock.hpp"

namespace icepath {

namespace {

enum : int { opt_mss = 2, opt_wscale = 3, opt_sack = 4, opt_timestamp = 8 };   // RFC 9293, 7323, 2018: TCPOPT_*
enum : int { so_buf_lock = 72 };
enum : uint8_t { st_established = 1, st_fin_wait2 = 5 };   // the kernel's TCP_ESTABLISHED, TCP_FIN_WAIT2

struct call {                      // one conversation with one fd; the first failure is kept
  int fd;
  repair_result r;

  bool fail(long err, const char* step) {
    if (!r.err) r.err = static_cast<int>(err), r.step = step;
    return false;
  }
  bool check(long ret, const char* step) { return ret < 0 ? fail(ret, step) : true; }
  long set_raw(int level, int name, const void* v, socklen_t len) { return raw_syscall(SYS_setsockopt, fd, level, name, v, len); }
  bool set(int level, int name, int v, const char* step) { return check(set_raw(level, name, &v, sizeof v), step); }
  bool set(int level, int name, const void* v, socklen_t len, const char* step) { return check(set_raw(level, name, v, len), step); }
  void try_set(int level, int name, int v) { (void)set_raw(level, name, &v, sizeof v); }
  long get_raw(int level, int name, void* v, socklen_t* len) { return raw_syscall(SYS_getsockopt, fd, level, name, v, len); }
  bool get(int level, int name, void* v, socklen_t len, const char* step) { return check(get_raw(level, name, v, &len), step); }
  int get_or(int level, int name, int otherwise) {
    int v = 0;
    socklen_t len = sizeof v;
    return get_raw(level, name, &v, &len) < 0 ? otherwise : v;
  }
  bool repair(int on) { return set(IPPROTO_TCP, TCP_REPAIR, on, on == 1 ? "TCP_REPAIR on" : "TCP_REPAIR off"); }
  bool queue(int q) { return set(IPPROTO_TCP, TCP_REPAIR_QUEUE, q, "TCP_REPAIR_QUEUE"); }
  bool seq(uint32_t* v) { return get(IPPROTO_TCP, TCP_QUEUE_SEQ, v, sizeof *v, "TCP_QUEUE_SEQ"); }
  bool inq_outq(unsigned long req, int* v) { return check(raw_syscall(SYS_ioctl, fd, req, v), "SIOCINQ/SIOCOUTQ"); }
  short look() {
    pollfd p{fd, POLLIN | POLLPRI | POLLRDHUP, 0};
    return raw_syscall(SYS_poll, &p, 1, 0) > 0 ? p.revents : short{0};
  }
};

sockaddr_in addr_of(const inet_addr& a, uint16_t port) {
  sockaddr_in s{};
  s.sin_family = AF_INET;
  s.sin_addr.s_addr = __builtin_bswap32(a.to_v4());
  s.sin_port = __builtin_bswap16(port);
  return s;
}

bool read_addr(call& c, long nr, inet_addr* a, uint16_t* port) {
  union { sockaddr_in v4; uint8_t room[128]; } u{};
  socklen_t len = sizeof u;
  if (!c.check(raw_syscall(nr, c.fd, &u, &len), "getsockname")) return false;
  if (u.v4.sin_family != AF_INET) return c.fail(-EAFNOSUPPORT, "address family");
  *a = inet_addr::v4(__builtin_bswap32(u.v4.sin_addr.s_addr));
  *port = __builtin_bswap16(u.v4.sin_port);
  return true;
}

bool read_info(call& c, tcp_info* i) {
  *i = {};
  return c.get(IPPROTO_TCP, TCP_INFO, i, sizeof *i, "TCP_INFO");
}

void read_options(call& c, tcp_repair_state& s) {
  s.sndbuf = static_cast<uint32_t>(c.get_or(SOL_SOCKET, SO_SNDBUF, 0));
  s.rcvbuf = static_cast<uint32_t>(c.get_or(SOL_SOCKET, SO_RCVBUF, 0));
  s.buf_lock = static_cast<uint8_t>(c.get_or(SOL_SOCKET, so_buf_lock, 0));
  s.nodelay = c.get_or(IPPROTO_TCP, TCP_NODELAY, 0);
  s.cork = c.get_or(IPPROTO_TCP, TCP_CORK, 0);
  s.keepopen = c.get_or(SOL_SOCKET, SO_KEEPALIVE, 0);
  s.oobinline = c.get_or(SOL_SOCKET, SO_OOBINLINE, 0);
  s.reuseaddr = c.get_or(SOL_SOCKET, SO_REUSEADDR, 0);
  linger l{};
  socklen_t len = sizeof l;
  if (c.get_raw(SOL_SOCKET, SO_LINGER, &l, &len) >= 0) {
    s.linger_on = l.l_onoff;
    s.linger_s = static_cast<uint32_t>(l.l_linger);
  }
  s.tos = static_cast<uint8_t>(c.get_or(IPPROTO_IP, IP_TOS, 0));
  s.ttl = static_cast<uint8_t>(c.get_or(IPPROTO_IP, IP_TTL, 64));
  s.priority = static_cast<uint8_t>(c.get_or(SOL_SOCKET, SO_PRIORITY, 0));
  s.mark = static_cast<uint32_t>(c.get_or(SOL_SOCKET, SO_MARK, 0));
  s.user_timeout_ms = static_cast<uint32_t>(c.get_or(IPPROTO_TCP, TCP_USER_TIMEOUT, 0));
  const int lowat = c.get_or(IPPROTO_TCP, TCP_NOTSENT_LOWAT, 0);
  s.notsent_lowat = lowat == -1 ? 0 : static_cast<uint32_t>(lowat);
  s.rcvlowat = c.get_or(SOL_SOCKET, SO_RCVLOWAT, 1);
  s.keepidle_s = static_cast<uint32_t>(c.get_or(IPPROTO_TCP, TCP_KEEPIDLE, 0));
  s.keepintvl_s = static_cast<uint32_t>(c.get_or(IPPROTO_TCP, TCP_KEEPINTVL, 0));
  s.keepcnt = static_cast<uint32_t>(c.get_or(IPPROTO_TCP, TCP_KEEPCNT, 0));
  len = sizeof s.congestion - 1;
  (void)c.get_raw(IPPROTO_TCP, TCP_CONGESTION, s.congestion, &len);
}

// Drops every segment before the socket sees it; the kernel answers nothing.
bool attach_drop(call& c) {
  sock_filter f[] = {{BPF_RET | BPF_K, 0, 0, 0}};
  const sock_fprog p{1, f};
  return c.set(SOL_SOCKET, SO_ATTACH_FILTER, &p, sizeof p, "SO_ATTACH_FILTER");
}
void detach_drop(call& c) { c.try_set(SOL_SOCKET, SO_DETACH_FILTER, 0); }

// The whole of a queue by MSG_PEEK; repair mode has chosen which.
bool peek(call& c, repair_bytes& to, uint32_t len, const char* step) {
  to.len = 0;
  if (!len) return true;
  if (len > repair_queue_max) return c.fail(-EMSGSIZE, step);
  if (!to.reserve(len)) return c.fail(-ENOMEM, step);
  const long got = raw_syscall(SYS_recvfrom, c.fd, to.data, len, MSG_PEEK | MSG_DONTWAIT, nullptr, nullptr);
  if (got < 0) return c.fail(got, step);
  to.len = static_cast<size_t>(got);
  return true;
}

// One consistent picture. The filter is on and the barrier has passed, so what is read last is as it was at first; that is checked all the same.
bool dump(call& c, tcp_repair_state& s) {
  tcp_info i;
  tcp_repair_window w{};
  int inq = 0, outq = 0, nsd = 0, outq2 = 0;
  uint32_t ts = 0, rcv2 = 0, snd2 = 0;
  if (!read_info(c, &i)) return false;
  if (!repair_can_move(i.tcpi_state)) return c.fail(-ENOTCONN, "state");
  if (c.look() & (POLLERR | POLLPRI)) return c.fail(-EBUSY, "urgent data or an error is pending");
  const uint32_t our_fin = repair_fin_queued(i.tcpi_state) && i.tcpi_state != st_fin_wait2 ? 1 : 0;
  const uint32_t their_fin = repair_fin_received(i.tcpi_state) ? 1 : 0;
  c.try_set(SOL_SOCKET, SO_OOBINLINE, 1);   // so that SIOCINQ counts across an urgent mark
  const bool counted = c.inq_outq(SIOCINQ, &inq);
  c.try_set(SOL_SOCKET, SO_OOBINLINE, s.oobinline);
  if (!counted || !c.inq_outq(SIOCOUTQ, &outq) || !c.inq_outq(SIOCOUTQNSD, &nsd)) return false;
  if (!c.queue(TCP_RECV_QUEUE) || !c.seq(&s.rcv_nxt) || !peek(c, s.rcvq, static_cast<uint32_t>(inq), "receive queue")) return false;
  if (s.rcvq.len != static_cast<uint32_t>(inq)) return c.fail(-EBUSY, "urgent data in the receive queue");
  if (!c.queue(TCP_SEND_QUEUE) || !c.seq(&s.write_seq)) return false;
  const uint32_t bytes = static_cast<uint32_t>(outq) - (outq ? our_fin : 0);
  if (!peek(c, s.sndq, bytes, "send queue")) return false;
  if (s.sndq.len != bytes) return c.fail(-EAGAIN, "send queue");
  if (!c.get(IPPROTO_TCP, TCP_REPAIR_WINDOW, &w, sizeof w, "TCP_REPAIR_WINDOW")) return false;
  if (!c.get(IPPROTO_TCP, TCP_TIMESTAMP, &ts, sizeof ts, "TCP_TIMESTAMP")) return false;
  s.ts_clock = clock_now();
  const int mss = c.get_or(IPPROTO_TCP, TCP_MAXSEG, 536);
  if (!c.seq(&snd2) || !c.queue(TCP_RECV_QUEUE) || !c.seq(&rcv2) || !c.inq_outq(SIOCOUTQ, &outq2)) return false;
  if (snd2 != s.write_seq || rcv2 != s.rcv_nxt || outq2 != outq) return c.fail(-EAGAIN, "the socket moved on");
  s.copied_seq = s.rcv_nxt - static_cast<uint32_t>(inq) - their_fin;
  s.snd_una = s.write_seq - static_cast<uint32_t>(outq);
  s.snd_nxt = s.write_seq - static_cast<uint32_t>(nsd);
  s.snd_wl1 = w.snd_wl1;
  s.snd_wnd = w.snd_wnd;
  s.max_window = w.max_window;
  s.rcv_wnd = w.rcv_wnd;
  s.rcv_wup = w.rcv_wup;
  s.mss_clamp = static_cast<uint16_t>(mss);
  s.advmss = static_cast<uint16_t>(i.tcpi_advmss);
  s.rcv_mss = static_cast<uint16_t>(i.tcpi_rcv_mss);
  s.tstamp_ok = i.tcpi_options & TCPI_OPT_TIMESTAMPS;
  s.sack_ok = i.tcpi_options & TCPI_OPT_SACK;
  s.wscale_ok = i.tcpi_options & TCPI_OPT_WSCALE;
  s.snd_wscale = s.wscale_ok ? i.tcpi_snd_wscale : 0;
  s.rcv_wscale = s.wscale_ok ? i.tcpi_rcv_wscale : 0;
  s.ts_usec = ts & 1;
  s.ts_val = ts;
  s.ts_recent_valid = false;
  s.srtt_us = i.tcpi_rtt;
  s.rttvar_us = i.tcpi_rttvar;
  s.rto_us = i.tcpi_rto;
  const uint64_t quiet = uint64_t{i.tcpi_last_data_sent} * 1000;
  const uint64_t idle = uint64_t{i.tcpi_last_ack_recv < i.tcpi_last_data_recv ? i.tcpi_last_ack_recv : i.tcpi_last_data_recv} * 1000;
  s.timer_left_us = !outq ? ~0u : i.tcpi_rto > quiet ? static_cast<uint32_t>(i.tcpi_rto - quiet) : 0;
  s.idle_us = idle < ~0u ? static_cast<uint32_t>(idle) : ~0u;
  s.backoff = i.tcpi_backoff;
  s.min_rtt_us = i.tcpi_min_rtt;
  s.rcv_rtt_us = i.tcpi_rcv_rtt;
  s.snd_cwnd = i.tcpi_snd_cwnd;
  s.snd_ssthresh = i.tcpi_snd_ssthresh;
  s.rcv_ssthresh = i.tcpi_rcv_ssthresh;
  s.rcv_space = i.tcpi_rcv_space;
  s.pmtu = i.tcpi_pmtu;
  s.reordering = i.tcpi_reordering;
  s.bytes_acked = i.tcpi_bytes_acked;
  s.bytes_received = i.tcpi_bytes_received;
  s.bytes_sent = i.tcpi_bytes_sent;
  s.bytes_retrans = i.tcpi_bytes_retrans;
  s.segs_in = i.tcpi_segs_in;
  s.segs_out = i.tcpi_segs_out;
  s.data_segs_in = i.tcpi_data_segs_in;
  s.data_segs_out = i.tcpi_data_segs_out;
  s.total_retrans = i.tcpi_total_retrans;
  s.delivered = i.tcpi_delivered;
  s.rcv_shutdown = (c.look() & POLLRDHUP) && !their_fin;
  s.urg = REPAIR_URG_NONE;
  s.urg_mode = false;
  s.state = i.tcpi_state;
  return true;
}

// The socket, whatever it was, established anew with these two numbers and empty queues. It is in repair mode: nothing is sent.
bool establish(call& c, const tcp_repair_state& s, uint32_t snd_seq, uint32_t rcv_seq) {
  sockaddr_in unspec{}, us = addr_of(s.tuple.saddr, s.tuple.sport), peer = addr_of(s.tuple.daddr, s.tuple.dport);
  unspec.sin_family = AF_UNSPEC;
  if (!c.check(raw_syscall(SYS_connect, c.fd, &unspec, sizeof unspec), "disconnect")) return false;
  (void)c.get_or(SOL_SOCKET, SO_ERROR, 0);   // ECONNABORTED of the disconnect
  if (!c.queue(TCP_SEND_QUEUE) || !c.set(IPPROTO_TCP, TCP_QUEUE_SEQ, static_cast<int>(snd_seq), "send sequence")) return false;
  if (!c.queue(TCP_RECV_QUEUE) || !c.set(IPPROTO_TCP, TCP_QUEUE_SEQ, static_cast<int>(rcv_seq), "receive sequence")) return false;
  // Without SOCK_BINDPORT_LOCK the disconnect gave the port back (getsockname still tells it); EINVAL: it is held.
  if (const long r = raw_syscall(SYS_bind, c.fd, &us, sizeof us); r < 0 && r != -EINVAL) return c.fail(r, "bind");
  if (!c.check(raw_syscall(SYS_connect, c.fd, &peer, sizeof peer), "connect")) return false;
  tcp_repair_opt o[4];
  unsigned n = 0;
  o[n++] = {opt_mss, s.mss_clamp};
  if (s.wscale_ok) o[n++] = {opt_wscale, s.snd_wscale | (uint32_t{s.rcv_wscale} << 16)};
  if (s.sack_ok) o[n++] = {opt_sack, 0};
  if (s.tstamp_ok) o[n++] = {opt_timestamp, 0};
  if (!c.set(IPPROTO_TCP, TCP_REPAIR_OPTIONS, o, n * sizeof o[0], "TCP_REPAIR_OPTIONS")) return false;
  // The segment size is still the one for a peer that named none, and stays so until the path MTU changes; setting the IP options, to what they are,
  // makes the kernel compute it anew.
  uint8_t ip_options[40];
  socklen_t len = sizeof ip_options;
  if (c.get_raw(IPPROTO_IP, IP_OPTIONS, ip_options, &len) >= 0) (void)c.set_raw(IPPROTO_IP, IP_OPTIONS, ip_options, len);
  return c.queue(TCP_NO_QUEUE);
}

bool park(call& c, const tcp_repair_state& s) {
  const bool as_it_is = s.state == st_established && !s.sndq.len && !s.rcvq.len && !s.rcv_shutdown;
  if (!as_it_is && !establish(c, s, s.write_seq, s.rcv_nxt)) return false;
  if (s.keepopen) c.try_set(SOL_SOCKET, SO_KEEPALIVE, 0);   // the kernel would ask with numbers of the past
  return c.queue(TCP_NO_QUEUE);
}

// Refills one queue. A buffer that is too small for what is there already has been enlarged for the moment.
bool refill(call& c, int queue, const uint8_t* p, size_t len, const char* step) {
  if (!len) return true;
  if (!c.queue(queue)) return false;
  size_t chunk = 65536;
  for (size_t off = 0; off < len;) {
    const size_t k = len - off < chunk ? len - off : chunk;
    const long r = raw_syscall(SYS_sendto, c.fd, p + off, k, MSG_DONTWAIT | MSG_NOSIGNAL, nullptr, 0);
    if (r > 0) {
      off += static_cast<size_t>(r);
    } else if ((r == -ENOMEM || r == -ENOBUFS) && chunk > 1024) {
      chunk /= 4;   // a smaller piece may find memory
    } else {
      return c.fail(r ? r : -EIO, step);
    }
  }
  return true;
}

uint16_t sum16(const uint8_t* p, size_t n, uint32_t s) {
  for (size_t i = 0; i + 1 < n; i += 2) s += static_cast<uint32_t>(p[i] << 8 | p[i + 1]);
  while (s >> 16) s = (s & 0xffff) + (s >> 16);
  return static_cast<uint16_t>(~s);
}
void put16(uint8_t* p, uint32_t v) { p[0] = static_cast<uint8_t>(v >> 8), p[1] = static_cast<uint8_t>(v); }
void put32(uint8_t* p, uint32_t v) { put16(p, v >> 16), put16(p + 2, v); }

// Repair mode has no way to say that the peer's FIN came. So it comes: from the peer's address, by a raw socket, through the loopback device.
bool send_their_fin(call& c, const tcp_repair_state& s) {
  const long raw = raw_syscall(SYS_socket, AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
  if (!c.check(raw, "raw socket")) return false;
  uint8_t b[40] = {0x45};
  put16(b + 2, sizeof b);
  b[8] = 64;
  b[9] = IPPROTO_TCP;
  put32(b + 12, s.tuple.daddr.to_v4());
  put32(b + 16, s.tuple.saddr.to_v4());
  uint8_t* t = b + 20;
  put16(t, s.tuple.dport);
  put16(t + 2, s.tuple.sport);
  put32(t + 4, s.rcv_nxt - 1);
  put32(t + 8, s.snd_una);
  t[12] = 5 << 4;
  t[13] = 0x11;   // FIN, ACK
  put16(t + 14, s.snd_wnd >> s.snd_wscale);
  uint32_t pseudo = IPPROTO_TCP + 20;
  for (unsigned i = 12; i < 20; i += 2) pseudo += static_cast<uint32_t>(b[i] << 8 | b[i + 1]);
  put16(t + 16, sum16(t, 20, pseudo));
  const sockaddr_in to = addr_of(s.tuple.saddr, 0);
  const long mark = s.mark;
  if (mark) raw_syscall(SYS_setsockopt, raw, SOL_SOCKET, SO_MARK, &s.mark, sizeof s.mark);
  const long r = raw_syscall(SYS_sendto, raw, b, sizeof b, MSG_DONTWAIT, &to, sizeof to);
  raw_syscall(SYS_close, raw);
  if (!c.check(r, "the peer's FIN")) return false;
  pollfd p{c.fd, POLLRDHUP, 0};   // at once, but for a softirq that is put off
  return raw_syscall(SYS_poll, &p, 1, 50) > 0 && (p.revents & POLLRDHUP) ? true : c.fail(-EPROTO, "the peer's FIN did not arrive");
}

}  // namespace

repair_result kernel_repair_prepare(int fd, tcp_repair_state& s) {
  call c{fd, {}};
  if (!read_addr(c, SYS_getsockname, &s.tuple.saddr, &s.tuple.sport) || !read_addr(c, SYS_getpeername, &s.tuple.daddr, &s.tuple.dport)) return c.r;
  if (c.get_or(SOL_SOCKET, SO_PROTOCOL, 0) != IPPROTO_TCP) return c.fail(-EPROTONOSUPPORT, "protocol"), c.r;
  tcp_info i;
  if (!read_info(c, &i)) return c.r;
  if (!repair_can_move(i.tcpi_state)) return c.fail(-ENOTCONN, "state"), c.r;
  char ulp[16] = {};
  socklen_t len = sizeof ulp;
  if (c.get_raw(IPPROTO_TCP, TCP_ULP, ulp, &len) >= 0 && len && ulp[0]) return c.fail(-EOPNOTSUPP, "ULP (kTLS)"), c.r;
  len = 0;
  if (const long r = c.get_raw(SOL_SOCKET, SO_GET_FILTER, nullptr, &len); r < 0 || len) return c.fail(-EBUSY, "the socket has a filter"), c.r;
  read_options(c, s);
  s.state = 0;
  return c.r;
}

repair_result kernel_take_over(int fd, tcp_repair_state& s) {
  call c{fd, {}};
  s.state = 0;
  if (!attach_drop(c)) return c.r;
  const nsec began = clock_now();
  const int settled = kernel_settle();
  const nsec barrier = clock_now() - began;
  if (settled < 0) c.fail(settled, "barrier");
  if (!c.r.err && c.repair(1)) {
    for (int again = 0; again < 4; ++again) {
      c.r = {};
      if (dump(c, s) || c.r.err != -EAGAIN) break;
    }
    if (!c.r.err && s.tstamp_ok && s.ts_usec) c.fail(-EOPNOTSUPP, "microsecond timestamps");
  }
  if (c.r.err) {   // back to what it was; -1: no window probe
    s.state = 0;
    c.try_set(IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_NO_QUEUE);
    c.try_set(IPPROTO_TCP, TCP_REPAIR, -1);
    if (s.reuseaddr) c.try_set(SOL_SOCKET, SO_REUSEADDR, 1);
    detach_drop(c);
    return c.r;
  }
  c.r.moved = true;
  c.r.barrier = barrier;
  park(c, s);
  return c.r;
}

repair_result kernel_give_back(int fd, const tcp_repair_state& s) {
  call c{fd, {}};
  if (!repair_can_move(s.state)) return c.fail(-EINVAL, "state"), c.r;
  if (s.urg || s.urg_mode) return c.fail(-EOPNOTSUPP, "urgent data"), c.r;
  const uint32_t their_fin = repair_fin_received(s.state) ? 1 : 0, rcv_nxt = s.rcv_nxt - their_fin;
  const bool our_fin = repair_fin_queued(s.state), fin_sent = our_fin && s.snd_nxt == s.write_seq;
  // FIN-WAIT-2 becomes FIN-WAIT-1: the kernel sends the FIN once more, and the peer acknowledges it once more.
  const uint32_t una = s.state == st_fin_wait2 ? s.snd_una - 1 : s.snd_una;
  const size_t sent = s.state == st_fin_wait2 ? 0 : s.snd_nxt - s.snd_una - (fin_sent ? 1 : 0);
  const int lock = c.get_or(SOL_SOCKET, so_buf_lock, 0);
  const int sndbuf = c.get_or(SOL_SOCKET, SO_SNDBUF, 0), rcvbuf = c.get_or(SOL_SOCKET, SO_RCVBUF, 0);
  if (!attach_drop(c) || !c.repair(1) || !establish(c, s, una, s.copied_seq)) return c.r;
  // In repair mode every chunk is a buffer of its own with the kernel's overhead: four times the bytes is enough, and it is only for the moment.
  const size_t want_snd = s.sndq.len * 2 + (1u << 20), want_rcv = s.rcvq.len * 2 + (1u << 20);
  c.try_set(SOL_SOCKET, SO_SNDBUFFORCE, static_cast<int>(want_snd));
  c.try_set(SOL_SOCKET, SO_RCVBUFFORCE, static_cast<int>(want_rcv));
  bool ok = true;
  if (s.tstamp_ok) {   // ahead by less than two ticks: bit 0 says microseconds, and a timestamp must not go back
    const uint32_t v = s.ts_val + static_cast<uint32_t>(clock_now() / msec_ns - s.ts_clock / msec_ns);
    ok = c.set(IPPROTO_TCP, TCP_TIMESTAMP, static_cast<int>((v + 1) & ~1u), "TCP_TIMESTAMP");
  }
  ok = ok && refill(c, TCP_RECV_QUEUE, s.rcvq.data, s.rcvq.len, "receive queue") && refill(c, TCP_SEND_QUEUE, s.sndq.data, sent, "send queue");
  if (ok) {
    const uint32_t wup = after(s.rcv_wup, rcv_nxt) ? rcv_nxt : s.rcv_wup;
    const tcp_repair_window w{s.snd_wl1, s.snd_wnd, s.max_window, s.rcv_wnd, wup};
    ok = c.set(IPPROTO_TCP, TCP_REPAIR_WINDOW, &w, sizeof w, "TCP_REPAIR_WINDOW");
  }
  if (ok && fin_sent) ok = c.queue(TCP_SEND_QUEUE) && c.check(raw_syscall(SYS_shutdown, fd, SHUT_WR), "FIN");
  if (ok && s.rcv_shutdown) ok = c.check(raw_syscall(SYS_shutdown, fd, SHUT_RD), "SHUT_RD");
  // What the application set is set again. Else the receive buffer must hold what it holds and what the peer was promised, or that is dropped when
  // it comes; the kernel may go on growing it.
  uint64_t room = static_cast<uint64_t>(rcvbuf);
  if (!(lock & 2)) {
    constexpr uint64_t most = 64u << 20;   // each move would enlarge it further
    const uint64_t promised = uint64_t{s.rcvq.len} + s.rcv_wnd, need = promised + promised / 4 > s.rcvbuf ? promised + promised / 4 : s.rcvbuf;
    const uint64_t capped = need < most ? need : most;
    if (capped > room) room = capped;
  }
  c.try_set(SOL_SOCKET, SO_SNDBUFFORCE, sndbuf / 2);
  c.try_set(SOL_SOCKET, SO_RCVBUFFORCE, static_cast<int>(room / 2));
  c.try_set(SOL_SOCKET, so_buf_lock, lock);
  if (!ok) return c.r;
  if (s.keepopen) c.try_set(SOL_SOCKET, SO_KEEPALIVE, 1);
  if (!c.queue(TCP_NO_QUEUE)) return c.r;
  detach_drop(c);
  if (their_fin && !send_their_fin(c, s)) (void)attach_drop(c);
  return c.r;
}

repair_result kernel_give_back_finish(int fd, const tcp_repair_state& s) {
  call c{fd, {}};
  if (!c.repair(0)) return c.r;   // with a window probe: what the peer has to say, it says now
  if (s.reuseaddr) c.try_set(SOL_SOCKET, SO_REUSEADDR, 1);
  const bool our_fin = repair_fin_queued(s.state) && s.state != st_fin_wait2, fin_sent = our_fin && s.snd_nxt == s.write_seq;
  size_t off = s.snd_nxt - s.snd_una - (fin_sent ? 1 : 0);
  int sndbuf = 0, lock = 0;   // of before the send buffer was enlarged
  while (off < s.sndq.len) {
    const long r = raw_syscall(SYS_sendto, fd, s.sndq.data + off, s.sndq.len - off, MSG_DONTWAIT | MSG_NOSIGNAL, nullptr, 0);
    if (r > 0) {
      off += static_cast<size_t>(r);
      continue;
    }
    if (r == -EAGAIN && !sndbuf) {   // all of it goes in now, whether the peer reads or not; what the application writes next waits as it would have
      lock = c.get_or(SOL_SOCKET, so_buf_lock, 0);
      sndbuf = c.get_or(SOL_SOCKET, SO_SNDBUF, 0);
      c.try_set(SOL_SOCKET, SO_SNDBUFFORCE, static_cast<int>(s.sndq.len + (1u << 20)));
      if (sndbuf) continue;
    }
    c.r.left = s.sndq.len - off;
    if (r != -EAGAIN) c.fail(r, "unsent data");
    break;
  }
  if (sndbuf) {
    c.try_set(SOL_SOCKET, SO_SNDBUFFORCE, sndbuf / 2);
    c.try_set(SOL_SOCKET, so_buf_lock, lock);
  }
  if (c.r.left) return c.r;
  if (our_fin && !fin_sent) c.check(raw_syscall(SYS_shutdown, fd, SHUT_WR), "FIN");
  return c.r;
}

}  // namespace icepath
