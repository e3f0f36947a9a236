// Socket options, TCP_INFO, ioctls, status flags and names.
#include <linux/sockios.h>

#include "common.hpp"

namespace {

// glibc's tcp_info ends early; this is how the kernel goes on.
struct long_info : tcp_info {
  uint64_t pacing_rate, max_pacing_rate, bytes_acked, bytes_received;
  uint32_t segs_out, segs_in;
};

struct option {
  const char* name;
  int level, opt, set;
};

void set_and_get(duo&) {
  static const option all[] = {
      {"TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, 1},        {"TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, 0},
      {"TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, 5},        {"TCP_CORK", IPPROTO_TCP, TCP_CORK, 1},
      {"TCP_CORK", IPPROTO_TCP, TCP_CORK, 0},              {"TCP_QUICKACK", IPPROTO_TCP, TCP_QUICKACK, 1},
      {"SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, 1},       {"SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, 0},
      {"TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 33},     {"TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 0},
      {"TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 40000},  {"TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL, 7},
      {"TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL, -1},   {"TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT, 4},
      {"TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT, 1000},     {"TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT, 12345},
      {"TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT, -1}, {"TCP_LINGER2", IPPROTO_TCP, TCP_LINGER2, 10},
      {"TCP_SYNCNT", IPPROTO_TCP, TCP_SYNCNT, 3},          {"TCP_SYNCNT", IPPROTO_TCP, TCP_SYNCNT, 1000},
      {"TCP_DEFER_ACCEPT", IPPROTO_TCP, TCP_DEFER_ACCEPT, 0}, {"TCP_NOTSENT_LOWAT", IPPROTO_TCP, TCP_NOTSENT_LOWAT, 65536},
      {"SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT, 5},         {"SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT, 0},
      {"SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT, 1},         {"SO_REUSEADDR", SOL_SOCKET, SO_REUSEADDR, 1},
      {"SO_REUSEPORT", SOL_SOCKET, SO_REUSEPORT, 1},       {"SO_OOBINLINE", SOL_SOCKET, SO_OOBINLINE, 1},
      {"SO_OOBINLINE", SOL_SOCKET, SO_OOBINLINE, 0},       {"SO_BROADCAST", SOL_SOCKET, SO_BROADCAST, 1},
      {"SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 4},         {"SO_SNDLOWAT", SOL_SOCKET, SO_SNDLOWAT, 2},
      {"SO_RCVBUF", SOL_SOCKET, SO_RCVBUF, 40000},         {"SO_SNDBUF", SOL_SOCKET, SO_SNDBUF, 40000},
      {"SO_ERROR", SOL_SOCKET, SO_ERROR, 1},               {"SO_TYPE", SOL_SOCKET, SO_TYPE, 1},
      {"SO_ACCEPTCONN", SOL_SOCKET, SO_ACCEPTCONN, 1},     {"SO_PROTOCOL", SOL_SOCKET, SO_PROTOCOL, 1},
      {"SO_DOMAIN", SOL_SOCKET, SO_DOMAIN, 1},             {"IP_TOS", IPPROTO_IP, IP_TOS, 0x10},
      {"IP_TTL", IPPROTO_IP, IP_TTL, 33},                  {"IP_TTL", IPPROTO_IP, IP_TTL, 0},
      {"IP_MTU_DISCOVER", IPPROTO_IP, IP_MTU_DISCOVER, 2}, {"SOL_SOCKET/9999", SOL_SOCKET, 9999, 1},
      {"IPPROTO_TCP/9999", IPPROTO_TCP, 9999, 1},          {"IPPROTO_IP/9999", IPPROTO_IP, 9999, 1},
      {"level 9999", 9999, 1, 1}};
  pair_of p;
  for (const option& o : all) {
    std::string s = res(set_opt(p.a, o.level, o.opt, o.set));
    int v = -7;
    socklen_t l = sizeof v;
    std::string g = res(getsockopt(p.a, o.level, o.opt, &v, &l));
    say("%s <- %d: set %s, get %s, value %d, length %u", o.name, o.set, s.c_str(), g.c_str(), v, l);
  }
  warm_up(p.a, p.b);
}

void lengths(duo&) {
  pair_of p;
  for (int opt : {TCP_NODELAY, TCP_KEEPCNT}) {
    char b[64];
    for (socklen_t n : {0u, 1u, 2u, 3u, 4u, 8u, 64u}) {
      memset(b, 0x55, sizeof b);
      socklen_t l = n;
      std::string g = res(getsockopt(p.a, IPPROTO_TCP, opt, b, &l));
      int v = 1;
      memcpy(b, &v, 4);
      std::string s = res(setsockopt(p.a, IPPROTO_TCP, opt, b, n));
      say("length %u: get %s gives %u, set %s", n, g.c_str(), l, s.c_str());
    }
  }
  socklen_t neg = static_cast<socklen_t>(-1);
  int v = 0;
  SHOW(getsockopt(p.a, IPPROTO_TCP, TCP_NODELAY, &v, &neg));
  SHOW(setsockopt(p.a, IPPROTO_TCP, TCP_NODELAY, &v, static_cast<socklen_t>(-1)));
  linger lg{};
  socklen_t l = 4;
  SHOW(getsockopt(p.a, SOL_SOCKET, SO_LINGER, &lg, &l));
  SHOW(setsockopt(p.a, SOL_SOCKET, SO_LINGER, &lg, 4));
  lg = {1, 7};
  SHOW(setsockopt(p.a, SOL_SOCKET, SO_LINGER, &lg, sizeof lg));
  lg = {};
  l = sizeof lg;
  SHOW(getsockopt(p.a, SOL_SOCKET, SO_LINGER, &lg, &l));
  say("linger %d %d, length %u", lg.l_onoff, lg.l_linger, l);
  lg = {0, 0};
  setsockopt(p.a, SOL_SOCKET, SO_LINGER, &lg, sizeof lg);
  char cc[16] = "";
  l = sizeof cc;
  say("TCP_CONGESTION %s, length %u, a name %s", res(getsockopt(p.a, IPPROTO_TCP, TCP_CONGESTION, cc, &l)).c_str(), l, cc[0] ? "yes" : "no");
  SHOW(setsockopt(p.a, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
  l = sizeof cc;
  getsockopt(p.a, IPPROTO_TCP, TCP_CONGESTION, cc, &l);
  say("now %s", cc);
  SHOW(setsockopt(p.a, IPPROTO_TCP, TCP_CONGESTION, "nonesuch", 8));
  warm_up(p.a, p.b);
}

void info(duo&) {
  pair_of p;
  std::vector<char> b(50000);
  send_all(p.a, b.data(), b.size());
  recv_upto(p.b, b.data(), b.size());
  until([&] {
    int out = 1;
    int back = -1;   // both ends: an acknowledgement may be delayed
    ioctl(p.a, SIOCOUTQ, &out);
    ioctl(p.b, SIOCOUTQ, &back);
    return out == 0 && back == 0;
  });
  for (int fd : {p.a, p.b}) {
    long_info i{};
    socklen_t l = sizeof i;
    SHOW(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &i, &l));
    say("state %d", i.tcpi_state);
    ask("rtt", i.tcpi_rtt > 0 && i.tcpi_rtt < 1000000);
    ask("snd_mss", i.tcpi_snd_mss >= 536 && i.tcpi_snd_mss <= 65535);
    ask("rcv_mss", i.tcpi_rcv_mss >= 536 && i.tcpi_rcv_mss <= 65535);
    ask("snd_cwnd", i.tcpi_snd_cwnd >= 1);
    ask("rto", i.tcpi_rto >= 1000);
    ask("pmtu", i.tcpi_pmtu >= 576);
    say("unacked %u, retransmits %u, lost %u", i.tcpi_unacked, i.tcpi_retransmits, i.tcpi_lost);
    if (fd == p.a) ask("bytes_acked", i.bytes_acked >= 50000 && i.bytes_acked < 51000);
    else ask("bytes_received", i.bytes_received >= 50000 && i.bytes_received < 51000);
    ask("segments", i.segs_in > 3 && i.segs_out > 3);
  }
  tcp_info i{};
  socklen_t l = 8;
  SHOW(getsockopt(p.a, IPPROTO_TCP, TCP_INFO, &i, &l));
  say("length %u, state %d", l, i.tcpi_state);
  SHOW(setsockopt(p.a, IPPROTO_TCP, TCP_INFO, &i, sizeof i));
  shutdown(p.a, SHUT_WR);
  wait_hangup(p.b);
  until([&] {
    l = sizeof i;
    getsockopt(p.a, IPPROTO_TCP, TCP_INFO, &i, &l);
    return i.tcpi_state == 5;
  });
  say("A after shutdown: state %d", i.tcpi_state);
  l = sizeof i;
  getsockopt(p.b, IPPROTO_TCP, TCP_INFO, &i, &l);
  say("B: state %d", i.tcpi_state);
}

void ioctls(duo& d) {
  d.connect();
  d.a([](int fd) {
    send_all(fd, "0123456789", 10);
    int n = -1;
    until([&] { return ioctl(fd, SIOCOUTQ, &n) == 0 && n == 0; });
    say("SIOCOUTQ after the peer has it: %d", n);
    SHOW(ioctl(fd, SIOCOUTQNSD, &n));
    say("SIOCOUTQNSD: %d", n);
  });
  d.b([](int fd) {
    int n = -1;
    SHOW(ioctl(fd, FIONREAD, &n));
    say("FIONREAD %d", n);
    show_recv("recv", fd, 4);
    say("FIONREAD %d", unread(fd));
    SHOW(ioctl(fd, SIOCATMARK, &n));
    say("at mark %d", n);
    int on = 1;
    SHOW(ioctl(fd, FIONBIO, &on));
    ask("non-blocking", fcntl(fd, F_GETFL) & O_NONBLOCK);
    show_recv("recv", fd, 10);
    show_recv("recv", fd, 10);
    on = 0;
    SHOW(ioctl(fd, FIONBIO, &on));
    ask("non-blocking", fcntl(fd, F_GETFL) & O_NONBLOCK);
    SHOW(ioctl(fd, 0x12345678, &n));
    SHOW(ioctl(fd, TCGETS, &n));
    SHOW(ioctl(fd, FIOCLEX));
    say("FD_CLOEXEC %d", fcntl(fd, F_GETFD));
    SHOW(ioctl(fd, FIONCLEX));
    say("isatty %d", isatty(fd));
  });
  d.a([](int fd) {
    say("FIONREAD of nothing %d", unread(fd));
    int fl = fcntl(fd, F_GETFL);
    say("F_GETFL access mode %d", fl & O_ACCMODE);
    SHOW(fcntl(fd, F_SETFL, fl | O_NONBLOCK));
    show_recv("recv", fd, 10);
    SHOW(fcntl(fd, F_SETFL, fl & ~O_NONBLOCK));
    SHOW(fcntl(fd, F_SETFD, FD_CLOEXEC));
    SHOW(fcntl(fd, F_GETFD));
    SHOW(fcntl(fd, 12345, 0));
    SHOW(lseek(fd, 0, SEEK_CUR));
    SHOW(fsync(fd));
    char c;
    SHOW(pread(fd, &c, 1, 0));
    SHOW(pwrite(fd, &c, 1, 0));
  });
  d.close_both();
}

void names(duo& d) {
  d.connect();
  long pa = d.a([](int fd) { return port_of(fd); }), pb = d.b([](int fd) { return port_of(fd); });
  auto look = [&](int fd, long mine, long theirs) {
    sockaddr_in s{}, t{};
    socklen_t ls = sizeof s, lt = sizeof t;
    SHOW(getsockname(fd, sa(s), &ls));
    SHOW(getpeername(fd, sa(t), &lt));
    say("lengths %u %u, family %d %d, address %#x %#x", ls, lt, s.sin_family, t.sin_family, ntohl(s.sin_addr.s_addr), ntohl(t.sin_addr.s_addr));
    ask("ports", ntohs(s.sin_port) == mine && ntohs(t.sin_port) == theirs);
    ls = 4;
    memset(&s, 0, sizeof s);
    SHOW(getsockname(fd, sa(s), &ls));
    say("short length gives %u, address %#x", ls, ntohl(s.sin_addr.s_addr));
    ls = static_cast<socklen_t>(-1);
    SHOW(getpeername(fd, sa(s), &ls));
  };
  d.a([&](int fd) { look(fd, pa, pb); });
  d.b([&](int fd) { look(fd, pb, pa); });
  d.close_both();
}

void low_water(duo&) {
  pair_of p;
  SHOW(set_opt(p.a, SOL_SOCKET, SO_RCVLOWAT, 10));
  send_all(p.b, "12345", 5);
  wait_unread(p.a, 5);
  say("5 of 10: poll %s", mask_text(poll_now(p.a)).c_str());
  send_all(p.b, "67890", 5);
  wait_unread(p.a, 10);
  say("10 of 10: poll %s", mask_text(poll_now(p.a)).c_str());
  show_recv("recv", p.a, 20);
  send_all(p.b, "abc", 3);
  wait_unread(p.a, 3);
  show_recv("recv dontwait", p.a, 20, MSG_DONTWAIT);
  std::thread t([&] { show_recv("recv sleeps for 10", p.a, 20); });
  nap_us(10000);
  // All at once: Linux does not wake a reader that has already taken a part when the rest is below the mark.
  send_all(p.b, "0123456789", 10);
  t.join();
  send_all(p.b, "end", 3);
  shutdown(p.b, SHUT_WR);
  wait_hangup(p.a);
  say("end below the mark: poll %s", mask_text(poll_now(p.a)).c_str());
  show_recv("recv", p.a, 20);
}

// Held back until uncorked, then whole.
void cork(duo&) {
  pair_of p;
  until([&] {
    int n = 1;
    return ioctl(p.b, SIOCOUTQ, &n) == 0 && n == 0;
  });
  set_opt(p.a, IPPROTO_TCP, TCP_CORK, 1);
  send_all(p.a, "one ", 4);
  send_all(p.a, "two", 3);
  nap_us(20000);
  say("corked: unread %d", unread(p.b));
  set_opt(p.a, IPPROTO_TCP, TCP_CORK, 0);
  wait_unread(p.b, 7);
  show_recv("uncorked", p.b, 20);
  send(p.a, "more ", 5, MSG_MORE);
  nap_us(20000);
  say("MSG_MORE: unread %d", unread(p.b));
  send(p.a, "rest", 4, 0);
  wait_unread(p.b, 9);
  show_recv("together", p.b, 20);
  set_opt(p.a, IPPROTO_TCP, TCP_CORK, 1);
  send_all(p.a, "last", 4);
  p.close_a();
  wait_hangup(p.b);
  show_recv("close pushes", p.b, 20);
}

volatile sig_atomic_t urgents;
void on_urgent(int) { urgents = urgents + 1; }

void urgent(duo&) {
  pair_of p;
  struct sigaction a {}, old {};
  a.sa_handler = on_urgent;
  sigaction(SIGURG, &a, &old);
  urgents = 0;
  SHOW(fcntl(p.b, F_SETOWN, getpid()));
  ask("F_GETOWN", fcntl(p.b, F_GETOWN) == getpid());
  send_all(p.a, "abc", 3);
  SHOW(send(p.a, "!", 1, MSG_OOB));
  send_all(p.a, "def", 3);
  until([&] { return (poll_now(p.b) & POLLPRI) && urgents > 0; });
  wait_unread(p.b, 3);
  say("SIGURG %d, poll %s", static_cast<int>(urgents), mask_text(poll_now(p.b)).c_str());
  int mark = -1;
  ioctl(p.b, SIOCATMARK, &mark);
  say("at mark %d", mark);
  show_recv("recv stops at the mark", p.b, 20);
  ioctl(p.b, SIOCATMARK, &mark);
  say("at mark %d", mark);
  show_recv("recv oob", p.b, 5, MSG_OOB);
  show_recv("recv oob again", p.b, 5, MSG_OOB);
  show_recv("recv", p.b, 20);
  show_recv("recv oob with none", p.b, 5, MSG_OOB);
  set_opt(p.b, SOL_SOCKET, SO_OOBINLINE, 1);
  SHOW(send(p.a, "xyZ", 3, MSG_OOB));
  send_all(p.a, "tail", 4);
  wait_unread(p.b, 3);
  until([&] { return poll_now(p.b) & POLLPRI; });
  show_recv("recv oob inline", p.b, 5, MSG_OOB);
  std::string s(7, 0);
  s.resize(recv_upto(p.b, s.data(), 7));
  say("inline: %s", s.c_str());
  sigaction(SIGURG, &old, nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  return run_all(argc, argv,
                 {{"set_and_get", set_and_get}, {"lengths", lengths}, {"info", info}, {"ioctls", ioctls, everywhere}, {"names", names, everywhere},
                  {"low_water", low_water}, {"cork", cork}, {"urgent", urgent}});
}
