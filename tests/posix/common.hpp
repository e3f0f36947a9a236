// What every posix program shares. A program is a list of cases; a case uses sockets through the plain calls and prints what it saw: counts, errno
// names, event masks, orders. Never a time, an address, a pid or a buffer size of the implementation, so that the text is the same on every run and the
// kernel's text can be compared byte for byte with icepath's (run.py does that).
//
// A case is written once and run in three topologies. Its body is executed by both sides (two threads, or two processes forked before any socket
// exists); a() runs a step on side A while B waits, b() the other way round, both() runs two steps at the same time. With topology::self there is one
// thread that runs all steps in order. Steps are ordered by tokens over two pipes, so prints of the two sides never race.
#pragma once
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace posix {

// ---- printing -------------------------------------------------------------------------------------------------------------------------------------

[[gnu::format(printf, 1, 2)]] inline void say(const char* fmt, ...) {
  char text[16384];
  va_list ap;
  va_start(ap, fmt);
  int n = vsnprintf(text, sizeof text - 1, fmt, ap);
  va_end(ap);
  if (n > static_cast<int>(sizeof text) - 2) n = sizeof text - 2;
  text[n++] = '\n';
  for (int off = 0; off < n;) {
    ssize_t r = ::write(1, text + off, static_cast<size_t>(n - off));
    if (r < 0 && errno == EINTR) continue;
    if (r <= 0) _exit(3);
    off += static_cast<int>(r);
  }
}

[[noreturn, gnu::format(printf, 1, 2)]] inline void give_up(const char* fmt, ...) {
  int e = errno;
  va_list ap;
  va_start(ap, fmt);
  vfprintf(stderr, fmt, ap);
  va_end(ap);
  fprintf(stderr, " (errno %s)\n", strerrorname_np(e));
  _exit(4);
}

inline const char* err_name(int e) {
  if (e == 0) return "0";
  const char* n = strerrorname_np(e);
  return n ? n : "E?";
}

// The result of a call: its value, or -1 with the name of errno.
inline std::string res(long r) {
  int e = errno;
  if (r != -1) return std::to_string(r);
  return std::string("-1 ") + err_name(e);
}

inline long show(const char* what, long r) {
  int e = errno;
  errno = e;
  say("%s = %s", what, res(r).c_str());
  errno = e;
  return r;
}
#define SHOW(call) ::posix::show(#call, static_cast<long>(call))

inline void ask(const char* what, bool yes) { say("%s: %s", what, yes ? "yes" : "no"); }

inline std::string mask_text(uint32_t m, bool is_poll = false) {
  struct bit { uint32_t v; const char* n; };
  static const bit bits[] = {{EPOLLIN, "IN"}, {EPOLLPRI, "PRI"}, {EPOLLOUT, "OUT"}, {EPOLLERR, "ERR"}, {EPOLLHUP, "HUP"}, {EPOLLRDHUP, "RDHUP"}};
  std::string s;
  auto add = [&](const char* n) { s += s.empty() ? n : std::string("|") + n; };
  for (const bit& b : bits) {
    if (m & b.v) add(b.n);
    m &= ~b.v;
  }
  if (is_poll && (m & POLLNVAL)) add("NVAL"), m &= ~static_cast<uint32_t>(POLLNVAL);
  if (m) add("other");
  return s.empty() ? "none" : s;
}

// ---- waiting --------------------------------------------------------------------------------------------------------------------------------------

inline void nap_us(long us) {
  timespec ts{us / 1000000, us % 1000000 * 1000};
  while (nanosleep(&ts, &ts) < 0 && errno == EINTR) {}
}

inline long now_ms() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

// Waits until pred() holds; false after ms.
template <class F>
bool until(F pred, long ms = 5000) {
  long end = now_ms() + ms;
  while (!pred()) {
    if (now_ms() > end) return pred();
    nap_us(100);
  }
  return true;
}

inline uint32_t poll_now(int fd, short want = POLLIN | POLLPRI | POLLOUT | POLLRDHUP) {
  pollfd p{fd, want, 0};
  int r;
  do r = poll(&p, 1, 0);
  while (r < 0 && errno == EINTR);
  return static_cast<uint16_t>(p.revents);
}

inline int unread(int fd) {
  int n = -1;
  return ioctl(fd, FIONREAD, &n) < 0 ? -1 : n;
}

inline bool wait_unread(int fd, int n) { return until([=] { return unread(fd) >= n; }); }
inline bool wait_event(int fd, short ev) {
  return until([=] { return (poll_now(fd, ev) & static_cast<uint32_t>(ev | POLLERR | POLLHUP)) != 0; });
}
inline bool wait_hangup(int fd) {
  return until([=] { return (poll_now(fd) & (POLLERR | POLLHUP | POLLRDHUP)) != 0; });
}

// ---- plain whole transfers (blocking or not) ---------------------------------------------------------------------------------------------------------

inline bool send_all(int fd, const void* p, size_t n, int flags = MSG_NOSIGNAL) {
  auto* c = static_cast<const char*>(p);
  while (n) {
    ssize_t r = send(fd, c, n, flags);
    if (r < 0 && errno == EINTR) continue;
    if (r < 0 && errno == EAGAIN) {
      wait_event(fd, POLLOUT);
      continue;
    }
    if (r <= 0) return false;
    c += r;
    n -= static_cast<size_t>(r);
  }
  return true;
}

// Reads until n bytes, end of file or error; how many bytes came.
inline size_t recv_upto(int fd, void* p, size_t n) {
  auto* c = static_cast<char*>(p);
  size_t got = 0;
  while (got < n) {
    ssize_t r = recv(fd, c + got, n - got, 0);
    if (r < 0 && errno == EINTR) continue;
    if (r < 0 && errno == EAGAIN) {
      wait_event(fd, POLLIN);
      continue;
    }
    if (r <= 0) break;
    got += static_cast<size_t>(r);
  }
  return got;
}

// recv of at most n bytes, printed with its text.
inline void show_recv(const char* what, int fd, size_t n, int flags = 0) {
  std::string b(n, '\0');
  ssize_t r = recv(fd, b.data(), n, flags);
  if (r < 0) say("%s = -1 %s", what, err_name(errno));
  else say("%s = %zd \"%.*s\"", what, r, static_cast<int>(r), b.c_str());
}

// A byte stream that is known at every position, to check large transfers without keeping them.
inline uint8_t stream_byte(uint64_t pos, uint32_t seed) {
  return static_cast<uint8_t>((static_cast<uint32_t>(pos) * 0x9E3779B1u + seed) >> 24);
}
inline void stream_fill(uint8_t* p, uint64_t pos, size_t n, uint32_t seed) {
  for (size_t i = 0; i < n; i++) p[i] = stream_byte(pos + i, seed);
}
inline bool stream_check(const uint8_t* p, uint64_t pos, size_t n, uint32_t seed) {
  unsigned bad = 0;
  for (size_t i = 0; i < n; i++) bad |= p[i] ^ stream_byte(pos + i, seed);
  return bad == 0;
}

// ---- sockets ------------------------------------------------------------------------------------------------------------------------------------------

inline sockaddr_in loopback(uint16_t port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(port);
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return a;
}
inline const sockaddr* sa(const sockaddr_in& a) { return reinterpret_cast<const sockaddr*>(&a); }
inline sockaddr* sa(sockaddr_in& a) { return reinterpret_cast<sockaddr*>(&a); }

inline uint16_t port_of(int fd) {
  sockaddr_in a{};
  socklen_t l = sizeof a;
  if (getsockname(fd, sa(a), &l) < 0) give_up("getsockname");
  return ntohs(a.sin_port);
}

inline int set_opt(int fd, int level, int name, int v) { return setsockopt(fd, level, name, &v, sizeof v); }
inline int get_opt(int fd, int level, int name) {
  int v = -1;
  socklen_t l = sizeof v;
  return getsockopt(fd, level, name, &v, &l) < 0 ? -1 : v;
}

inline int listen_on(int backlog = 64, int rcvbuf = 0) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (fd < 0) give_up("socket");
  if (rcvbuf) set_opt(fd, SOL_SOCKET, SO_RCVBUF, rcvbuf);
  sockaddr_in a = loopback(0);
  if (bind(fd, sa(a), sizeof a) < 0 || listen(fd, backlog) < 0) give_up("bind/listen");
  return fd;
}

inline int connect_to(uint16_t port, int sndbuf = 0) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (fd < 0) give_up("socket");
  if (sndbuf) set_opt(fd, SOL_SOCKET, SO_SNDBUF, sndbuf);
  sockaddr_in a = loopback(port);
  if (connect(fd, sa(a), sizeof a) < 0) give_up("connect");
  return fd;
}

inline void nonblock(int fd, bool on = true) {
  int fl = fcntl(fd, F_GETFL);
  fcntl(fd, F_SETFL, on ? fl | O_NONBLOCK : fl & ~O_NONBLOCK);
}

constexpr int warm_rounds = 64;

// Round trips that make a connection worth promoting, with a little time in between for a promotion that is not immediate. Both ends in this thread.
inline void warm_up(int fd_a, int fd_b) {
  char c = 'w';
  for (int i = 0; i < warm_rounds; i++) {
    if (!send_all(fd_a, &c, 1) || recv_upto(fd_b, &c, 1) != 1 || !send_all(fd_b, &c, 1) || recv_upto(fd_a, &c, 1) != 1) give_up("warm-up");
    if (i % 20 == 19) nap_us(500);
  }
}
// The same with one end here and the other end elsewhere.
inline void warm_up_ask(int fd) {
  char c = 'w';
  for (int i = 0; i < warm_rounds; i++) {
    if (!send_all(fd, &c, 1) || recv_upto(fd, &c, 1) != 1) give_up("warm-up, asking end");
    if (i % 20 == 19) nap_us(500);
  }
}
inline void warm_up_answer(int fd) {
  char c = 'w';
  for (int i = 0; i < warm_rounds; i++)
    if (recv_upto(fd, &c, 1) != 1 || !send_all(fd, &c, 1)) give_up("warm-up, answering end");
}

// A warm connection with both ends in this thread.
struct pair_of {
  int a = -1, b = -1;
  explicit pair_of(bool warm = true) {
    int l = listen_on();
    a = connect_to(port_of(l));
    b = accept(l, nullptr, nullptr);
    if (b < 0) give_up("accept");
    ::close(l);
    if (warm) warm_up(a, b);
  }
  pair_of(const pair_of&) = delete;
  pair_of& operator=(const pair_of&) = delete;
  ~pair_of() {
    if (a >= 0) ::close(a);
    if (b >= 0) ::close(b);
  }
  void close_a() { ::close(std::exchange(a, -1)); }
  void close_b() { ::close(std::exchange(b, -1)); }
};

// ---- two sides ----------------------------------------------------------------------------------------------------------------------------------------

enum class topology { self, threads, procs };
inline const char* name_of(topology t) { return t == topology::self ? "self" : t == topology::threads ? "threads" : "procs"; }

class duo {
 public:
  duo(topology t, int side, int rd, int wr) : topo_(t), side_(side), rd_(rd), wr_(wr) {}
  topology topo() const { return topo_; }
  int fd_a = -1, fd_b = -1;  // each side knows its own; with topology::self both are set

  template <class F> long a(F f) { return at(0, f); }
  template <class F> long b(F f) { return at(1, f); }

  template <class F, class G>
  void both(F f, G g) {
    if (topo_ == topology::self) {
      f(fd_a);
      g(fd_b);
      return;
    }
    if (side_ == 0) f(fd_a);
    else g(fd_b);
    put(0);
    get();
  }

  // A connects, B accepts.
  void connect(bool warm = true, int rcvbuf = 0, int sndbuf = 0) {
    int l = -1;
    long port = b([&](int) {
      l = listen_on(64, rcvbuf);
      return static_cast<long>(port_of(l));
    });
    a([&](int) {
      fd_a = connect_to(static_cast<uint16_t>(port), sndbuf);
      if (rcvbuf) set_opt(fd_a, SOL_SOCKET, SO_RCVBUF, rcvbuf);
    });
    b([&](int) {
      fd_b = accept(l, nullptr, nullptr);
      if (fd_b < 0) give_up("accept");
      if (sndbuf) set_opt(fd_b, SOL_SOCKET, SO_SNDBUF, sndbuf);
      ::close(l);
    });
    if (!warm) return;
    if (topo_ == topology::self) posix::warm_up(fd_a, fd_b);
    else both([](int fd) { warm_up_ask(fd); }, [](int fd) { warm_up_answer(fd); });
  }
  void close_a() {
    a([&](int fd) {
      if (fd >= 0) ::close(std::exchange(fd_a, -1));
    });
  }
  void close_b() {
    b([&](int fd) {
      if (fd >= 0) ::close(std::exchange(fd_b, -1));
    });
  }
  void close_both() { close_a(), close_b(); }
  bool self() const { return topo_ == topology::self; }

 private:
  template <class F>
  long at(int s, F f) {
    auto run = [&]() -> long {
      int fd = s ? fd_b : fd_a;
      if constexpr (std::is_void_v<decltype(f(fd))>) return f(fd), 0;
      else return static_cast<long>(f(fd));
    };
    if (topo_ == topology::self) return run();
    if (side_ != s) return get();
    long v = run();
    put(v);
    return v;
  }
  void put(long v) {
    ssize_t r;
    do r = ::write(wr_, &v, sizeof v);
    while (r < 0 && errno == EINTR);
    if (r != sizeof v) give_up("token write");
  }
  long get() {
    long v = 0;
    ssize_t r;
    do r = ::read(rd_, &v, sizeof v);
    while (r < 0 && errno == EINTR);
    if (r != sizeof v) give_up("token read: the other side is gone");
    return v;
  }

  topology topo_;
  int side_, rd_, wr_;
};

// ---- cases --------------------------------------------------------------------------------------------------------------------------------------------

constexpr unsigned in_self = 1, in_threads = 2, in_procs = 4, everywhere = 7;

struct test_case {
  const char* name;
  std::function<void(duo&)> body;
  unsigned where = in_self;  // a case that uses no duo runs once, as in_self
};

inline void run_case(const test_case& c, topology t) {
  say("== %s, %s", c.name, name_of(t));
  if (t == topology::self) {
    duo d(t, 0, -1, -1);
    c.body(d);
    return;
  }
  int ab[2], ba[2];
  if (pipe2(ab, O_CLOEXEC) < 0 || pipe2(ba, O_CLOEXEC) < 0) give_up("pipe");
  if (t == topology::threads) {
    std::thread other([&] {
      duo d(t, 1, ab[0], ba[1]);
      c.body(d);
    });
    duo d(t, 0, ba[0], ab[1]);
    c.body(d);
    other.join();
    for (int fd : {ab[0], ab[1], ba[0], ba[1]}) ::close(fd);
    return;
  }
  pid_t pid = fork();
  if (pid < 0) give_up("fork");
  if (pid == 0) {
    ::close(ab[1]), ::close(ba[0]);
    duo d(t, 1, ab[0], ba[1]);
    c.body(d);
    exit(0);
  }
  ::close(ab[0]), ::close(ba[1]);
  duo d(t, 0, ba[0], ab[1]);
  c.body(d);
  ::close(ab[1]), ::close(ba[0]);
  int st = 0;
  while (waitpid(pid, &st, 0) < 0 && errno == EINTR) {}
  if (st != 0) say("side B ended with status %#x", static_cast<unsigned>(st));
}

// Usage of every program: [case name…]; without a name all cases.
inline int run_all(int argc, char** argv, std::vector<test_case> cases) {
  signal(SIGPIPE, SIG_IGN);
  for (const test_case& c : cases) {
    bool chosen = argc < 2;
    for (int i = 1; i < argc; i++) chosen |= strcmp(argv[i], c.name) == 0;
    if (!chosen) continue;
    for (topology t : {topology::self, topology::threads, topology::procs})
      if (c.where & (1u << static_cast<int>(t))) run_case(c, t);
  }
  return 0;
}

// A child process that must end well; its way of ending is printed when it did not.
inline void reap(pid_t pid, const char* who) {
  int st = 0;
  while (waitpid(pid, &st, 0) < 0 && errno == EINTR) {}
  if (WIFSIGNALED(st)) say("%s: killed by SIG%s", who, sigabbrev_np(WTERMSIG(st)));
  else say("%s: exit %d", who, WEXITSTATUS(st));
}

// A descriptor through a Unix socket; pass_fd returns what sendmsg returned.
inline ssize_t pass_fd(int via, int fd, int flags = 0) {
  char c = 'f', control[CMSG_SPACE(sizeof(int))] = {};
  iovec v{&c, 1};
  msghdr m{};
  m.msg_iov = &v, m.msg_iovlen = 1, m.msg_control = control, m.msg_controllen = sizeof control;
  cmsghdr* h = CMSG_FIRSTHDR(&m);
  h->cmsg_level = SOL_SOCKET, h->cmsg_type = SCM_RIGHTS, h->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(h), &fd, sizeof fd);
  return sendmsg(via, &m, flags);
}
inline int take_fd(int via, int flags = 0) {
  char c, control[CMSG_SPACE(sizeof(int))] = {};
  iovec v{&c, 1};
  msghdr m{};
  m.msg_iov = &v, m.msg_iovlen = 1, m.msg_control = control, m.msg_controllen = sizeof control;
  if (recvmsg(via, &m, flags) != 1) return -1;
  int fd = -1;
  if (cmsghdr* h = CMSG_FIRSTHDR(&m)) memcpy(&fd, CMSG_DATA(h), sizeof fd);
  return fd;
}

}  // namespace posix
using namespace posix;
