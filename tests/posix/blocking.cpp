// Calls that sleep: timeouts, signals, cancellation, and a close by another thread.
#include <linux/sockios.h>
#include <pthread.h>

#include <atomic>

#include "common.hpp"

namespace {

volatile sig_atomic_t hits;
void on_signal(int) { hits = hits + 1; }

struct handler {
  struct sigaction old {};
  explicit handler(int flags) {
    struct sigaction a {};
    a.sa_handler = on_signal;
    a.sa_flags = flags;
    sigaction(SIGUSR1, &a, &old);
    hits = 0;
  }
  ~handler() { sigaction(SIGUSR1, &old, nullptr); }
};

void timeout(int fd, int which, long ms) {
  timeval tv{ms / 1000, ms % 1000 * 1000};
  if (setsockopt(fd, SOL_SOCKET, which, &tv, sizeof tv) < 0) give_up("timeout");
}

// Full for good: acknowledgements on their way have made what room they can, and so has the kernel's first window probe (200 ms), which makes the
// receiver pack what it holds.
void fill(int fd) {
  std::vector<char> b(65536, 'f');
  for (int refused = 0; refused < 60;) {
    if (send(fd, b.data(), b.size(), MSG_DONTWAIT | MSG_NOSIGNAL) > 0 || send(fd, b.data(), 1, MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
      refused = 0;
      continue;
    }
    refused++;
    nap_us(5000);
  }
}

template <class F>
void took(const char* what, long least_ms, F f) {
  long t = now_ms();
  f();
  t = now_ms() - t;
  say("%s took at least %ld ms: %s, less than 5 s: %s", what, least_ms, t >= least_ms - 2 ? "yes" : "no", t < 5000 ? "yes" : "no");
}

void recv_timeout(duo& d) {
  d.connect();
  d.a([](int fd) {
    timeout(fd, SO_RCVTIMEO, 40);
    char b[8];
    took("recv", 40, [&] { SHOW(recv(fd, b, 8, 0)); });
    took("read", 40, [&] { SHOW(read(fd, b, 8)); });
    took("waitall", 40, [&] { SHOW(recv(fd, b, 8, MSG_WAITALL)); });
    timeval tv{};
    socklen_t l = sizeof tv;
    getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, &l);
    say("SO_RCVTIMEO says %ld.%06ld, %u bytes", tv.tv_sec, tv.tv_usec, l);
  });
  d.b([](int fd) { send_all(fd, "abc", 3); });
  d.a([](int fd) {
    wait_unread(fd, 3);
    char b[8];
    took("waitall of 8 with 3 there", 40, [&] { SHOW(recv(fd, b, 8, MSG_WAITALL)); });
    timeval bad{0, 2000000};
    SHOW(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &bad, sizeof bad));
    SHOW(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &bad, 4));
  });
  d.both([](int fd) { timeout(fd, SO_RCVTIMEO, 3000), show_recv("recv in time", fd, 8); },
         [](int fd) { nap_us(5000), send_all(fd, "now", 3); });
  d.close_both();
}

void send_timeout(duo& d) {
  d.connect();
  d.a([](int fd) {
    fill(fd);
    timeout(fd, SO_SNDTIMEO, 40);
    took("send", 40, [&] { SHOW(send(fd, "x", 1, 0)); });
    took("write", 40, [&] { SHOW(write(fd, "x", 1)); });
  });
  d.close_both();
}

void send_blocks_until_read(duo& d) {
  d.connect();
  constexpr size_t n = 20000000;
  bool all = false;
  d.both(
      [&](int fd) {
        std::vector<char> v(n, 'b');
        SHOW(send(fd, v.data(), n, 0));
      },
      [&](int fd) {
        nap_us(20000);
        std::vector<char> v(n);
        all = recv_upto(fd, v.data(), n) == n;
      });
  d.b([&](int) { ask("received all", all); });
  d.close_both();
}

// Runs call() in a thread, sends it signals while it sleeps.
template <class F>
void signalled(int flags, F call, std::function<void()> release) {
  handler h(flags);
  std::atomic<bool> done{false};
  std::thread t([&] {
    call();
    done = true;
  });
  nap_us(20000);
  if (!done) pthread_kill(t.native_handle(), SIGUSR1);
  if (flags & SA_RESTART) {
    nap_us(10000);
    pthread_kill(t.native_handle(), SIGUSR1);
    nap_us(10000);
    ask("still asleep after two signals", !done);
    release();
  }
  while (!(flags & SA_RESTART) && !done) {   // the first may have come before the call
    nap_us(5000);
    if (!done) pthread_kill(t.native_handle(), SIGUSR1);
  }
  t.join();
  ask("handler ran", hits > 0);
}

void eintr(duo&) {
  pair_of p;
  char b[8];
  signalled(0, [&] { SHOW(recv(p.a, b, 8, 0)); }, {});
  signalled(0, [&] { SHOW(read(p.a, b, 8)); }, {});
  iovec v{b, 8};
  msghdr m{};
  m.msg_iov = &v, m.msg_iovlen = 1;
  signalled(0, [&] { SHOW(recvmsg(p.a, &m, 0)); }, {});
  signalled(0, [&] { SHOW(readv(p.a, &v, 1)); }, {});
  signalled(0, [&] {
    pollfd f{p.a, POLLIN, 0};
    SHOW(poll(&f, 1, 5000));
  }, {});
  signalled(0, [&] {
    int ep = epoll_create1(0);
    epoll_event e{EPOLLIN, {}};
    epoll_ctl(ep, EPOLL_CTL_ADD, p.a, &e);
    SHOW(epoll_wait(ep, &e, 1, 5000));
    close(ep);
  }, {});
  signalled(0, [&] {
    fd_set r;
    FD_ZERO(&r);
    FD_SET(p.a, &r);
    timeval tv{5, 0};
    SHOW(select(p.a + 1, &r, nullptr, nullptr, &tv));
  }, {});
  int l = listen_on();
  signalled(0, [&] { SHOW(accept(l, nullptr, nullptr)); }, {});
  close(l);
  fill(p.a);
  signalled(0, [&] { SHOW(send(p.a, b, 8, 0)); }, {});
  signalled(0, [&] { SHOW(write(p.a, b, 8)); }, {});
}

void restart(duo&) {
  pair_of p;
  auto answer = [&] { send_all(p.b, "answered", 8); };
  char b[9] = "";
  signalled(SA_RESTART, [&] { SHOW(recv(p.a, b, 8, 0)); }, answer);
  signalled(SA_RESTART, [&] { SHOW(read(p.a, b, 8)); }, answer);
  signalled(SA_RESTART, [&] { SHOW(recv(p.a, b, 8, MSG_WAITALL)); }, answer);
  say("%s", b);
  fill(p.a);
  std::atomic<bool> stop{false};
  std::thread drain;
  signalled(SA_RESTART, [&] { SHOW(send(p.a, b, 8, 0)); }, [&] {
    drain = std::thread([&] {
      std::vector<char> v(1 << 20);
      while (!stop)
        if (recv(p.b, v.data(), v.size(), MSG_DONTWAIT) <= 0) nap_us(200);
    });
  });
  stop = true;
  drain.join();
}

// Poll, epoll_wait and select are interrupted even with SA_RESTART; so are calls with a timeout set.
void never_restarted(duo&) {
  pair_of p;
  auto hit = [&](auto call) {
    handler h(SA_RESTART);
    std::atomic<bool> done{false};
    std::thread t([&] {
      call();
      done = true;
    });
    nap_us(20000);
    while (!done) {
      pthread_kill(t.native_handle(), SIGUSR1);
      nap_us(5000);
    }
    t.join();
    ask("handler ran", hits > 0);
  };
  hit([&] {
    pollfd f{p.a, POLLIN, 0};
    SHOW(poll(&f, 1, 5000));
  });
  hit([&] {
    int ep = epoll_create1(0);
    epoll_event e{EPOLLIN, {}};
    epoll_ctl(ep, EPOLL_CTL_ADD, p.a, &e);
    SHOW(epoll_wait(ep, &e, 1, 5000));
    close(ep);
  });
  timeout(p.a, SO_RCVTIMEO, 5000);
  hit([&] {
    char b[8];
    SHOW(recv(p.a, b, 8, 0));
  });
}

// A signal after some bytes: the count of those bytes, not EINTR.
void partial_then_signal(duo&) {
  pair_of p;
  handler h(0);
  std::thread t([&] {
    char b[16];
    SHOW(recv(p.a, b, 16, MSG_WAITALL));
  });
  send_all(p.b, "five!", 5);
  // Taken by the sleeper: neither on the way nor waiting.
  until([&] {
    int out = 1;
    ioctl(p.b, SIOCOUTQ, &out);
    return out == 0 && unread(p.a) == 0;
  });
  nap_us(20000);
  pthread_kill(t.native_handle(), SIGUSR1);
  t.join();
  std::vector<char> big(30000000, 'z');
  std::thread s([&] {
    ssize_t r = send(p.a, big.data(), big.size(), 0);
    ask("send cut by a signal gives a short count", r > 0 && static_cast<size_t>(r) < big.size());
  });
  nap_us(30000);
  pthread_kill(s.native_handle(), SIGUSR1);
  s.join();
}

void cancelled(void* arg) { *static_cast<bool*>(arg) = true; }

template <class F>
void cancel(const char* what, F call) {
  bool cleaned = false;
  auto body = [&] {
    pthread_cleanup_push(cancelled, &cleaned);
    call();
    pthread_cleanup_pop(0);
  };
  pthread_t t;
  pthread_create(&t, nullptr, [](void* f) -> void* { return (*static_cast<decltype(body)*>(f))(), nullptr; }, &body);
  nap_us(15000);
  pthread_cancel(t);
  void* r = nullptr;
  pthread_join(t, &r);
  say("%s: cancelled %s, cleanup ran %s", what, r == PTHREAD_CANCELED ? "yes" : "no", cleaned ? "yes" : "no");
}

void cancellation(duo&) {
  pair_of p;
  int l = listen_on();
  char b[8];
  cancel("recv", [&] { recv(p.a, b, 8, 0); });
  cancel("read", [&] { (void)!read(p.a, b, 8); });
  iovec v{b, 8};
  msghdr m{};
  m.msg_iov = &v, m.msg_iovlen = 1;
  cancel("recvmsg", [&] { recvmsg(p.a, &m, 0); });
  cancel("accept", [&] { accept(l, nullptr, nullptr); });
  pollfd f{p.a, POLLIN, 0};
  cancel("poll", [&] { poll(&f, 1, -1); });
  int ep = epoll_create1(0);
  epoll_event e{EPOLLIN, {}};
  epoll_ctl(ep, EPOLL_CTL_ADD, p.a, &e);
  cancel("epoll_wait", [&] { epoll_wait(ep, &e, 1, -1); });
  close(ep), close(l);
  warm_up(p.a, p.b);  // nothing was left locked
  fill(p.a);
  cancel("send", [&] { send(p.a, b, 8, 0); });
  std::vector<char> big(1 << 20);
  while (recv(p.b, big.data(), big.size(), MSG_DONTWAIT) > 0) nap_us(100);
  ask("still usable", send(p.b, "x", 1, 0) == 1 && recv(p.a, b, 8, 0) == 1);
}

// Another thread closes the fd: the sleeper goes on sleeping on the connection until the peer says something, because its call holds it open.
void close_while_blocked(duo&) {
  pair_of p;
  std::atomic<bool> done{false};
  std::thread t([&] {
    char b[8];
    SHOW(recv(p.a, b, 8, 0));
    done = true;
  });
  nap_us(20000);
  SHOW(close(p.a));
  nap_us(20000);
  ask("still asleep", !done);
  send_all(p.b, "wake", 4);
  t.join();
  p.a = -1;
  wait_hangup(p.b);
  char c[4];
  SHOW(recv(p.b, c, 4, 0));
}

void shutdown_wakes(duo&) {
  pair_of p;
  std::thread t([&] {
    char b[8];
    SHOW(recv(p.a, b, 8, 0));
  });
  nap_us(20000);
  shutdown(p.a, SHUT_RD);
  t.join();
  pair_of q;
  fill(q.a);
  std::thread s([&] {
    std::vector<char> v(1000000);
    const ssize_t r = send(q.a, v.data(), v.size(), MSG_NOSIGNAL);
    // A window probe may have made some room before.
    ask("send woken", r < 0 ? errno == EPIPE : r > 0 && static_cast<size_t>(r) < v.size());
  });
  nap_us(20000);
  shutdown(q.a, SHUT_WR);
  s.join();
  int l = listen_on();
  std::thread u([&] { SHOW(accept(l, nullptr, nullptr)); });
  nap_us(20000);
  shutdown(l, SHUT_RDWR);
  u.join();
  close(l);
}

// The peer is slow, the reader sleeps many times.
void ping_pong_slow(duo& d) {
  d.connect();
  d.both(
      [](int fd) {
        char c = 0;
        for (int i = 0; i < 30; i++) {
          nap_us(i % 3 * 700);
          if (!send_all(fd, &c, 1) || recv_upto(fd, &c, 1) != 1) give_up("ping");
          if (c != i + 1) give_up("wrong answer");
        }
      },
      [](int fd) {
        char c = 0;
        for (int i = 0; i < 30; i++) {
          if (recv_upto(fd, &c, 1) != 1) give_up("pong");
          nap_us(i % 4 * 500);
          c = static_cast<char>(i + 1);
          if (!send_all(fd, &c, 1)) give_up("pong");
        }
      });
  d.a([](int) { say("done"); });
  d.close_both();
}

}  // namespace

int main(int argc, char** argv) {
  constexpr unsigned two = in_threads | in_procs;
  return run_all(argc, argv,
                 {{"recv_timeout", recv_timeout, two},
                  {"T11d_send_timeout", send_timeout, everywhere},
                  {"T11n_send_blocks_until_read", send_blocks_until_read, two},
                  {"eintr", eintr},
                  {"restart", restart},
                  {"never_restarted", never_restarted},
                  {"T11o_partial_then_signal", partial_then_signal},
                  {"T01_cancellation", cancellation},
                  {"close_while_blocked", close_while_blocked},
                  {"shutdown_wakes", shutdown_wakes},
                  {"ping_pong_slow", ping_pong_slow, two}});
}
