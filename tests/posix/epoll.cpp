// epoll over fast and kernel descriptors: levels, edges, oneshot, sets that share an fd, dups, and what close does.
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <map>

#include "common.hpp"

namespace {

int add(int ep, int fd, uint32_t ev, uint64_t tag, int op = EPOLL_CTL_ADD) {
  epoll_event e{ev, {.u64 = tag}};
  return epoll_ctl(ep, op, fd, &e);
}

// What the set reports now (or within ms), sorted by tag.
void events(const char* when, int ep, int ms = 0) {
  epoll_event e[64];
  int n = epoll_wait(ep, e, 64, ms);
  if (n < 0) return say("%s: %s", when, res(n).c_str());
  std::sort(e, e + n, [](const epoll_event& x, const epoll_event& y) { return x.data.u64 < y.data.u64; });
  std::string s;
  for (int i = 0; i < n; i++) s += " " + std::to_string(e[i].data.u64) + "=" + mask_text(e[i].events);
  say("%s: %d%s", when, n, s.c_str());
}

void put(int from, int to, const char* text) {
  int before = unread(to);
  send_all(from, text, strlen(text));
  wait_unread(to, before + static_cast<int>(strlen(text)));
}
void take(int fd, size_t n) {
  std::string b(n, 0);
  recv_upto(fd, b.data(), n);
}

void level(duo&) {
  pair_of p;
  int ep = epoll_create1(0);
  SHOW(add(ep, p.a, EPOLLIN, 1));
  SHOW(add(ep, p.b, EPOLLIN | EPOLLOUT, 2));
  events("idle", ep);
  put(p.b, p.a, "12345");
  events("data at 1", ep);
  events("still", ep);
  take(p.a, 3);
  events("partly read", ep);
  take(p.a, 2);
  events("all read", ep);
  SHOW(add(ep, p.b, EPOLLIN, 22, EPOLL_CTL_MOD));
  events("without OUT", ep);
  SHOW(add(ep, p.b, EPOLLIN, 2));
  SHOW(epoll_ctl(ep, EPOLL_CTL_DEL, p.b, nullptr));
  SHOW(epoll_ctl(ep, EPOLL_CTL_DEL, p.b, nullptr));
  SHOW(add(ep, p.b, EPOLLIN, 2, EPOLL_CTL_MOD));
  SHOW(add(ep, 9999, EPOLLIN, 2));
  SHOW(add(p.a, p.b, EPOLLIN, 2));
  SHOW(add(ep, ep, EPOLLIN, 2));
  SHOW(epoll_ctl(ep, 77, p.a, nullptr));
  close(ep);
}

void edge(duo&) {
  pair_of p;
  int ep = epoll_create1(0);
  add(ep, p.a, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, 1);
  events("first", ep);
  events("no news", ep);
  put(p.b, p.a, "123");
  events("data", ep);
  events("no news", ep);
  take(p.a, 1);
  events("partly read is no news", ep);
  put(p.b, p.a, "456");
  events("more data", ep);
  take(p.a, 5);
  events("all read is no news", ep);
  put(p.b, p.a, "x");
  add(ep, p.a, EPOLLIN | EPOLLET, 11, EPOLL_CTL_MOD);
  events("MOD reports again", ep);
  add(ep, p.a, EPOLLIN | EPOLLET, 11, EPOLL_CTL_MOD);
  events("and again", ep);
  take(p.a, 1);
  shutdown(p.b, SHUT_WR);
  wait_hangup(p.a);
  events("end", ep);
  events("no news", ep);
  close(ep);
}

// ET with OUT: full, drained, writable once.
void edge_out(duo&) {
  pair_of p;
  int ep = epoll_create1(0);
  nonblock(p.a);
  add(ep, p.a, EPOLLOUT | EPOLLET, 1);
  events("first", ep);
  std::vector<char> b(65536);
  size_t sent = 0;
  for (int refused = 0; refused < 12;) {
    ssize_t r = send(p.a, b.data(), b.size(), 0);
    if (r > 0) sent += static_cast<size_t>(r), refused = 0;
    else refused++, nap_us(5000);
  }
  epoll_event e;
  while (epoll_wait(ep, &e, 1, 0) > 0) {}
  events("full", ep);
  std::vector<char> all(sent);
  ask("drained", recv_upto(p.b, all.data(), sent) == sent);
  events("writable again", ep, 3000);
  ask("sends", send(p.a, "x", 1, 0) == 1);
  close(ep);
}

void oneshot(duo&) {
  pair_of p;
  int ep = epoll_create1(0);
  add(ep, p.a, EPOLLIN | EPOLLONESHOT, 1);
  put(p.b, p.a, "123");
  events("once", ep);
  events("disabled", ep);
  put(p.b, p.a, "4");
  events("still disabled", ep);
  add(ep, p.a, EPOLLIN | EPOLLONESHOT, 2, EPOLL_CTL_MOD);
  events("armed again", ep);
  events("disabled", ep);
  add(ep, p.a, EPOLLIN | EPOLLOUT | EPOLLET | EPOLLONESHOT, 3, EPOLL_CTL_MOD);
  events("armed with ET", ep);
  close(p.b), p.b = -1;
  wait_hangup(p.a);
  events("hang-up while disabled", ep);
  add(ep, p.a, EPOLLIN | EPOLLRDHUP | EPOLLONESHOT, 4, EPOLL_CTL_MOD);
  events("armed", ep);
  close(ep);
}

void hangups(duo&) {
  for (bool et : {false, true}) {
    say(et ? "edge" : "level");
    uint32_t x = et ? static_cast<uint32_t>(EPOLLET) : 0u;
    pair_of p;
    int ep = epoll_create1(0);
    add(ep, p.a, EPOLLIN | EPOLLRDHUP | x, 1);
    int ep2 = epoll_create1(0);
    add(ep2, p.a, x, 2);
    shutdown(p.b, SHUT_WR);
    wait_hangup(p.a);
    events("peer shut down", ep);
    events("asking for nothing", ep2);
    shutdown(p.a, SHUT_WR);
    until([&] { return poll_now(p.a) & POLLHUP; });
    events("both shut down", ep);
    events("asking for nothing", ep2);
    pair_of q;
    add(ep, q.a, EPOLLIN | x, 3);
    add(ep2, q.a, x, 4);
    linger l{1, 0};
    setsockopt(q.b, SOL_SOCKET, SO_LINGER, &l, sizeof l);
    q.close_b();
    wait_hangup(q.a);
    epoll_ctl(ep, EPOLL_CTL_DEL, p.a, nullptr), epoll_ctl(ep2, EPOLL_CTL_DEL, p.a, nullptr);
    events("reset", ep);
    events("asking for nothing", ep2);
    close(ep), close(ep2);
  }
}

void two_sets(duo&) {
  pair_of p;
  int one = epoll_create1(0), two = epoll_create1(0);
  add(one, p.a, EPOLLIN | EPOLLET, 1);
  add(two, p.a, EPOLLIN, 2);
  put(p.b, p.a, "abc");
  events("one", one), events("one again", one);
  events("two", two), events("two again", two);
  int outer = epoll_create1(0);
  SHOW(add(outer, two, EPOLLIN, 3));
  events("nested", outer);
  take(p.a, 3);
  events("nested, read", outer);
  put(p.b, p.a, "d");
  events("nested, again", outer);
  say("poll of the set: %s", mask_text(poll_now(two, POLLIN), true).c_str());
  SHOW(add(two, outer, EPOLLIN, 4));
  close(one);
  events("two, one closed", two);
  close(two), close(outer);
}

void dups(duo&) {
  pair_of p;
  int ep = epoll_create1(0);
  int d = dup(p.a);
  SHOW(add(ep, p.a, EPOLLIN, 1));
  SHOW(add(ep, d, EPOLLIN | EPOLLOUT, 2));
  events("idle", ep);
  put(p.b, p.a, "x");
  events("data", ep);
  // Closing one of the two leaves its entry, because the connection is still open.
  close(d);
  events("dup closed", ep);
  SHOW(epoll_ctl(ep, EPOLL_CTL_DEL, d, nullptr));
  take(p.a, 1);
  events("read", ep);
  close(p.a), p.a = -1;
  events("both closed", ep);
  close(ep);
  pair_of q;
  ep = epoll_create1(0);
  add(ep, q.a, EPOLLIN, 5);
  int e2 = dup(ep);
  put(q.b, q.a, "y");
  events("by a dup of the set", e2);
  close(ep);
  events("the other is closed", e2);
  close(q.a), q.a = -1;
  events("member closed", e2);
  close(e2);
}

// A closed fd leaves the set; a new one with the same number is not in it.
void close_and_reuse(duo&) {
  int ep = epoll_create1(0);
  pair_of p;
  add(ep, p.a, EPOLLIN | EPOLLOUT, 1);
  events("open", ep);
  int was = p.a;
  p.close_a();
  events("closed", ep);
  pair_of q;
  int here = fcntl(q.a, F_DUPFD, was);
  ask("same number again", here == was || q.a == was || q.b == was);
  put(q.b, q.a, "z");
  events("reused", ep);
  SHOW(add(ep, was, EPOLLIN, 2));
  events("added", ep);
  if (here != was) close(here);
  close(ep);
}

void mixed(duo&) {
  pair_of p;
  int ep = epoll_create1(0), pp[2], us[2];
  if (pipe(pp) || socketpair(AF_UNIX, SOCK_STREAM, 0, us)) give_up("pipe");
  int ev = eventfd(0, EFD_NONBLOCK), tm = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  add(ep, p.a, EPOLLIN, 1), add(ep, pp[0], EPOLLIN, 2), add(ep, us[0], EPOLLIN, 3), add(ep, ev, EPOLLIN, 4), add(ep, tm, EPOLLIN, 5);
  events("idle", ep);
  put(p.b, p.a, "t");
  events("tcp", ep);
  (void)!write(pp[1], "p", 1);
  events("and pipe", ep);
  (void)!write(us[1], "u", 1);
  uint64_t one = 1;
  (void)!write(ev, &one, 8);
  itimerspec s{{0, 0}, {0, 1000}};
  timerfd_settime(tm, 0, &s, nullptr);
  nap_us(3000);
  events("all", ep);
  char c[8];
  (void)!read(pp[0], c, 1), (void)!read(us[0], c, 1), (void)!read(ev, c, 8), (void)!read(tm, c, 8);
  take(p.a, 1);
  events("all read", ep);
  int order[3] = {pp[1], us[1], p.b};
  for (int w : order) {
    std::thread t([w] {
      nap_us(8000);
      (void)!write(w, "w", 1);
    });
    events("sleeping, woken by", ep, 5000);
    t.join();
    nonblock(p.a), nonblock(us[0]), nonblock(pp[0]);
    while (read(pp[0], c, 8) > 0 || read(us[0], c, 8) > 0 || read(p.a, c, 8) > 0) {}
  }
  events("idle again", ep);
  for (int fd : {pp[0], pp[1], us[0], us[1], ev, tm, ep}) close(fd);
}

// Many ready, few taken at a time: everyone has its turn.
void fairness(duo&) {
  constexpr int n = 24;
  std::vector<pair_of*> all;
  int ep = epoll_create1(0);
  for (int i = 0; i < n; i++) {
    all.push_back(new pair_of);
    add(ep, all.back()->a, EPOLLIN, static_cast<uint64_t>(i));
    put(all.back()->b, all.back()->a, "r");
  }
  std::map<uint64_t, int> seen;
  for (int i = 0; i < n; i++) {
    epoll_event e[3];
    int k = epoll_wait(ep, e, 3, 0);
    if (k != 3) say("got %d", k);
    for (int j = 0; j < k; j++) seen[e[j].data.u64]++;
  }
  // Equal shares would be 3. That none starves is the rule; the exact turn is nobody's promise.
  int least = 1000;
  for (int i = 0; i < n; i++) least = std::min(least, seen[static_cast<uint64_t>(i)]);
  say("each seen at least twice: %s", least >= 2 ? "yes" : "no");
  for (auto* p : all) delete p;
  events("all closed", ep);
  close(ep);
}

void change_while_waiting(duo&) {
  pair_of p, q;
  int ep = epoll_create1(0);
  add(ep, p.a, EPOLLIN, 1);
  auto during = [&](const char* what, auto f) {
    std::thread t([&] {
      nap_us(10000);
      f();
    });
    events(what, ep, 2000);
    t.join();
  };
  during("MOD to OUT", [&] { add(ep, p.a, EPOLLOUT, 11, EPOLL_CTL_MOD); });
  add(ep, p.a, EPOLLIN, 1, EPOLL_CTL_MOD);
  send_all(q.b, "q", 1), wait_unread(q.a, 1);
  during("ADD of a ready one", [&] { add(ep, q.a, EPOLLIN, 2); });
  take(q.a, 1);
  std::thread t([&] {
    nap_us(10000);
    epoll_ctl(ep, EPOLL_CTL_DEL, q.a, nullptr);
    send_all(q.b, "x", 1);
    nap_us(10000);
    send_all(p.b, "y", 1);
  });
  events("DEL, then data on it, then on the other", ep, 2000);
  t.join();
  close(ep);
}

volatile sig_atomic_t hits;
void on_signal(int) { hits = hits + 1; }

void wait_forms(duo&) {
  pair_of p;
  int ep = epoll_create1(EPOLL_CLOEXEC);
  ask("close-on-exec", fcntl(ep, F_GETFD) & FD_CLOEXEC);
  SHOW(epoll_create(0));
  SHOW(epoll_create1(0x12345));
  add(ep, p.a, EPOLLIN, 1);
  epoll_event e[4];
  long t = now_ms();
  SHOW(epoll_wait(ep, e, 4, 30));
  ask("waited", now_ms() - t >= 29);
  timespec ts{0, 30000000};
  t = now_ms();
  SHOW(epoll_pwait2(ep, e, 4, &ts, nullptr));
  ask("waited", now_ms() - t >= 29);
  ts = {0, 2000000000};
  SHOW(epoll_pwait2(ep, e, 4, &ts, nullptr));
  ts = {0, 0};
  SHOW(epoll_pwait2(ep, e, 4, &ts, nullptr));
  struct sigaction a {}, old {};
  a.sa_handler = on_signal;
  sigaction(SIGUSR2, &a, &old);
  sigset_t blocked, open, was;
  sigemptyset(&blocked), sigaddset(&blocked, SIGUSR2);
  sigemptyset(&open);
  pthread_sigmask(SIG_BLOCK, &blocked, &was);
  hits = 0;
  pthread_kill(pthread_self(), SIGUSR2);
  SHOW(epoll_wait(ep, e, 4, 10));
  say("handler ran %d times", static_cast<int>(hits));
  SHOW(epoll_pwait(ep, e, 4, 2000, &open));
  say("handler ran %d times", static_cast<int>(hits));
  pthread_kill(pthread_self(), SIGUSR2);
  put(p.b, p.a, "x");
  long n = epoll_pwait(ep, e, 4, 2000, &blocked);
  say("ready and a blocked signal: %s, handler %d", res(n).c_str(), static_cast<int>(hits));
  pthread_sigmask(SIG_SETMASK, &was, nullptr);
  say("handler ran %d times", static_cast<int>(hits));
  sigaction(SIGUSR2, &old, nullptr);
  SHOW(epoll_wait(p.a, e, 4, 0));
  SHOW(epoll_wait(ep, e, 4, -1));
  close(ep);
  SHOW(epoll_wait(ep, e, 4, 0));
}

// An event loop server over many connections on B, one client after the other on A.
void echo_server(duo& d) {
  constexpr int clients = 10;
  int l = -1;
  long port = d.b([&](int) {
    l = listen_on();
    return port_of(l);
  });
  bool right = true;
  d.both(
      [&](int) {
        int fds[clients];
        for (int& fd : fds) fd = connect_to(static_cast<uint16_t>(port));
        for (int round = 0; round < 80; round++)
          for (int i = 0; i < clients; i++) {
            char out[64], in[64];
            int n = snprintf(out, sizeof out, "%d/%d", round, i);
            right &= send_all(fds[i], out, static_cast<size_t>(n)) && recv_upto(fds[i], in, static_cast<size_t>(n)) == static_cast<size_t>(n);
            right &= memcmp(in, out, static_cast<size_t>(n)) == 0;
          }
        for (int fd : fds) close(fd);
      },
      [&](int) {
        int ep = epoll_create1(0), open = clients;
        nonblock(l);
        add(ep, l, EPOLLIN, static_cast<uint64_t>(l));
        while (open) {
          epoll_event e[4];
          int n = epoll_wait(ep, e, 4, 5000);
          if (n <= 0) break;
          for (int i = 0; i < n; i++) {
            int fd = static_cast<int>(e[i].data.u64);
            if (fd == l) {
              int c = accept4(l, nullptr, nullptr, SOCK_NONBLOCK);
              if (c >= 0) add(ep, c, EPOLLIN | EPOLLET | EPOLLRDHUP, static_cast<uint64_t>(c));
              continue;
            }
            char b[16];
            ssize_t r;
            while ((r = recv(fd, b, sizeof b, 0)) > 0) send_all(fd, b, static_cast<size_t>(r));
            if (r == 0) close(fd), open--;
          }
        }
        close(l), close(ep);
        say("open at the end: %d", open);
      });
  d.a([&](int) { ask("echo right", right); });
}

}  // namespace

int main(int argc, char** argv) {
  return run_all(argc, argv,
                 {{"level", level}, {"edge", edge}, {"edge_out", edge_out}, {"oneshot", oneshot}, {"hangups", hangups}, {"two_sets", two_sets},
                  {"dups", dups}, {"close_and_reuse", close_and_reuse}, {"mixed", mixed}, {"fairness", fairness},
                  {"change_while_waiting", change_while_waiting}, {"wait_forms", wait_forms},
                  {"echo_server", echo_server, in_threads | in_procs}});
}
