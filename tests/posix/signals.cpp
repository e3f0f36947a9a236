// Signal handlers that use sockets in the middle of traffic, a thousand times a second.
#include <setjmp.h>
#include <sys/time.h>
#include <atomic>

#include "common.hpp"

namespace {

std::atomic<int> handler_fd{-1};     // written by the handler
std::atomic<int> handler_close{-1};  // closed by the handler, once
std::atomic<uint32_t> handler_sent{0}, handler_runs{0}, handler_failed{0};
bool handler_uses_write;

// One record of four bytes, in order.
void on_alarm(int) {
  int saved = errno;
  handler_runs.fetch_add(1, std::memory_order_relaxed);
  int c = handler_close.exchange(-1);
  if (c >= 0) close(c);
  int fd = handler_fd.load();
  if (fd >= 0) {
    uint32_t n = htonl(handler_sent.load());
    ssize_t r = handler_uses_write ? write(fd, &n, 4) : send(fd, &n, 4, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (r == 4) handler_sent.fetch_add(1);
    else if (r >= 0 || errno != EAGAIN) handler_failed.fetch_add(1);
  }
  errno = saved;
}

struct storm {
  timer_t t{};
  explicit storm(int per_second) {
    struct sigaction a {};
    a.sa_handler = on_alarm;
    a.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &a, nullptr);
    sigevent e{};
    e.sigev_notify = SIGEV_SIGNAL;
    e.sigev_signo = SIGALRM;
    if (timer_create(CLOCK_MONOTONIC, &e, &t)) give_up("timer_create");
    itimerspec s{{0, 1000000000 / per_second}, {0, 1000000000 / per_second}};
    timer_settime(t, 0, &s, nullptr);
  }
  ~storm() {
    timer_delete(t);
    signal(SIGALRM, SIG_IGN);
  }
};

bool traffic(pair_of& p, int rounds, size_t n) {
  std::vector<uint8_t> out(n), in(n);
  for (int i = 0; i < rounds; i++) {
    stream_fill(out.data(), 0, n, static_cast<uint32_t>(i));
    if (!send_all(p.a, out.data(), n) || recv_upto(p.b, in.data(), n) != n || in != out) return false;
    if (!send_all(p.b, in.data(), n) || recv_upto(p.a, out.data(), n) != n || in != out) return false;
  }
  return true;
}

// At least this many handler runs happen during the traffic.
bool traffic_under_storm(pair_of& p, uint32_t runs) {
  bool ok = true;
  long end = now_ms() + 8000;
  do ok &= traffic(p, 50, 1000);
  while (ok && handler_runs < runs && now_ms() < end);
  return ok && handler_runs >= runs;
}

void reset() { handler_fd = -1, handler_close = -1, handler_sent = 0, handler_runs = 0, handler_failed = 0; }

// The handler only runs; the calls under it must not notice.
void harmless(duo&) {
  reset();
  pair_of p;
  storm s(1000);
  ask("traffic right", traffic_under_storm(p, 100));
}

bool records_right(int fd, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    uint32_t n = 0;
    if (recv_upto(fd, &n, 4) != 4 || ntohl(n) != i) return false;
  }
  return true;
}

// The handler sends on another connection of the same thread.
void sends_on_other(duo&) {
  for (bool w : {false, true}) {
    reset();
    handler_uses_write = w;
    pair_of p, q;
    handler_fd = q.a;
    {
      storm s(1000);
      ask("traffic right", traffic_under_storm(p, 100));
    }
    handler_fd = -1;
    ask("handler sent without failure", handler_sent > 0 && handler_failed == 0);
    ask("its records arrived in order", records_right(q.b, handler_sent));
  }
  handler_uses_write = false;
}

// The handler sends on the very connection that the thread is using; its records land between those of the program, whole.
void sends_on_same(duo&) {
  reset();
  pair_of p;
  handler_fd = p.a;
  uint32_t mine = 0, theirs = 0, bad = 0;
  {
    storm s(1000);
    std::string left;
    char b[4096];
    long end = now_ms() + 8000;
    while (handler_runs < 100 && now_ms() < end) {
      for (int i = 0; i < 20; i++) {
        uint32_t rec = htonl(0x80000000u | mine);
        if (send_all(p.a, &rec, 4)) mine++;
      }
      ssize_t r = recv(p.b, b, sizeof b, MSG_DONTWAIT);
      if (r > 0) left.append(b, static_cast<size_t>(r));
    }
    handler_fd = -1;
    shutdown(p.a, SHUT_WR);
    ssize_t r;
    while ((r = recv(p.b, b, sizeof b, 0)) > 0) left.append(b, static_cast<size_t>(r));
    uint32_t next_mine = 0;
    for (size_t i = 0; i + 4 <= left.size(); i += 4) {
      uint32_t rec;
      memcpy(&rec, left.data() + i, 4);
      rec = ntohl(rec);
      if (rec & 0x80000000u) bad += (rec & 0x7fffffffu) != next_mine++;
      else bad += rec != theirs++;
    }
    bad += left.size() % 4 != 0 || next_mine != mine || theirs != handler_sent;
  }
  ask("both sent", mine > 0 && handler_sent > 0);
  ask("all records whole and in order", bad == 0 && handler_failed == 0);
}

// The handler closes a connection while the thread works on another one.
void closes(duo&) {
  bool ok = true, ended = true;
  pair_of p;
  for (int i = 0; i < 20; i++) {
    reset();
    pair_of q;
    int gone = std::exchange(q.a, -1);
    handler_close = gone;
    storm s(1000);
    ok &= traffic_under_storm(p, 3);
    char c;
    ended &= recv(q.b, &c, 1, 0) == 0;
    ended &= handler_close == -1;
  }
  ask("traffic right", ok);
  ask("closed ones ended", ended);
}

// The same with a thread that sleeps: in recv, in poll, in epoll_wait.
void sleeper(duo&) {
  reset();
  pair_of p, q;
  handler_fd = q.a;
  std::atomic<bool> stop{false};
  sigset_t block;
  sigemptyset(&block), sigaddset(&block, SIGALRM);
  pthread_sigmask(SIG_BLOCK, &block, nullptr);
  std::thread slow([&] {
    char c = 's';
    for (int i = 0; i < 40 && !stop; i++) {
      nap_us(3000);
      send_all(p.b, &c, 1);
    }
  });
  pthread_sigmask(SIG_UNBLOCK, &block, nullptr);
  int got = 0;
  {
    storm s(1000);
    int ep = epoll_create1(0);
    epoll_event e{EPOLLIN, {}};
    epoll_ctl(ep, EPOLL_CTL_ADD, p.a, &e);
    while (got < 40) {
      if (got % 3 == 1) {
        pollfd f{p.a, POLLIN, 0};
        if (poll(&f, 1, 2000) < 0 && errno == EINTR) continue;
      }
      if (got % 3 == 2 && epoll_wait(ep, &e, 1, 2000) < 0 && errno == EINTR) continue;
      char c;
      ssize_t r = recv(p.a, &c, 1, 0);
      if (r <= 0) break;
      got++;
    }
    close(ep);
  }
  stop = true;
  slow.join();
  say("received %d", got);
  handler_fd = -1;
  ask("handler sent without failure", handler_sent > 0 && handler_failed == 0);
  ask("its records arrived in order", records_right(q.b, handler_sent));
}

std::atomic<int> io_signals{0};
void on_io(int) { io_signals.fetch_add(1); }

// SIGIO for what arrives, also when it was asked for in the middle of the connection's life.
void sigio(duo&) {
  struct sigaction a {};
  a.sa_handler = on_io;
  a.sa_flags = SA_RESTART;
  sigaction(SIGIO, &a, nullptr);
  for (bool by_ioctl : {false, true}) {
    pair_of p;
    ask("traffic before", traffic(p, 50, 100));
    fcntl(p.a, F_SETOWN, getpid());
    if (by_ioctl) {
      int on = 1;
      SHOW(ioctl(p.a, FIOASYNC, &on));
    } else {
      SHOW(fcntl(p.a, F_SETFL, fcntl(p.a, F_GETFL) | O_ASYNC));
    }
    int told = 0;
    for (int i = 0; i < 20; i++) {
      const int before = io_signals;
      send_all(p.b, "x", 1);
      for (int k = 0; k < 2000 && io_signals == before; k++) nap_us(500);
      told += io_signals != before;
      char c;
      if (recv(p.a, &c, 1, 0) != 1) give_up("recv");
    }
    say("told of %d", told);
    ask("traffic after", traffic(p, 50, 100));
  }
  signal(SIGIO, SIG_IGN);
}

sigjmp_buf out_of_wait;
void on_jump(int) { siglongjmp(out_of_wait, 1); }

// The old way to limit a wait: alarm, and longjmp out of the handler.
[[gnu::noinline]] bool interrupted(pair_of& p, int how, int ep) {
  itimerval t{{0, 0}, {0, 4000}};
  if (sigsetjmp(out_of_wait, 1)) return true;
  setitimer(ITIMER_REAL, &t, nullptr);
  char b[8];
  pollfd f{p.a, POLLIN, 0};
  epoll_event e;
  if (how == 0) (void)!recv(p.a, b, 8, 0);
  if (how == 1) (void)!poll(&f, 1, -1);
  if (how == 2) (void)!epoll_wait(ep, &e, 1, -1);
  return false;
}

void jump_out(duo&) {
  struct sigaction a {};
  a.sa_handler = on_jump;
  sigaction(SIGALRM, &a, nullptr);
  for (int how = 0; how < 3; how++) {
    pair_of p;
    int ep = epoll_create1(0), jumps = 0;
    epoll_event e{EPOLLIN, {}};
    epoll_ctl(ep, EPOLL_CTL_ADD, p.a, &e);
    bool ok = traffic(p, 50, 100);
    for (int i = 0; i < 20; i++) {
      jumps += interrupted(p, how, ep);
      ok &= traffic(p, 5, 100);
    }
    say("jumps %d", jumps);
    ask("traffic right", ok);
    send_all(p.a, "last", 4);
    interrupted(p, how, ep);
    p.close_a();
    char b[8] = {};
    say("received %zu: %s", recv_upto(p.b, b, 4), b);
    show_recv("end", p.b, 1);
    close(ep);
  }
  signal(SIGALRM, SIG_IGN);
}

}  // namespace

int main(int argc, char** argv) {
  return run_all(argc, argv,
                 {{"harmless", harmless},
                  {"sends_on_other", sends_on_other},
                  {"sends_on_same", sends_on_same},
                  {"closes", closes},
                  {"sleeper", sleeper},
                  {"sigio", sigio},
                  {"jump_out", jump_out}});
}
