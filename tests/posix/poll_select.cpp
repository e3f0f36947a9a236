// poll, ppoll, select and pselect over fast and kernel descriptors.
#include <sys/eventfd.h>

#include <algorithm>

#include "common.hpp"

namespace {

std::string masks(const std::vector<pollfd>& f) {
  std::string s;
  for (const pollfd& p : f) s += " " + mask_text(static_cast<uint16_t>(p.revents), true);
  return s;
}
void look(const char* when, std::vector<pollfd> f, int ms = 0) {
  long r = poll(f.data(), f.size(), ms);
  say("%s: %s:%s", when, res(r).c_str(), masks(f).c_str());
}
void put(int from, int to, const char* text) {
  send_all(from, text, strlen(text));
  wait_unread(to, static_cast<int>(strlen(text)));
}

void poll_basic(duo&) {
  pair_of p;
  int pp[2];
  if (pipe(pp)) give_up("pipe");
  int closed = dup(0);
  close(closed);
  std::vector<pollfd> f = {{p.a, POLLIN, 0}, {p.b, POLLOUT, 0}, {pp[0], POLLIN, 0}, {-1, POLLIN, 0}, {-5, POLLIN, 9}, {p.a, 0, 0}};
  look("idle", f);
  put(p.b, p.a, "x");
  look("data", f);
  (void)!write(pp[1], "x", 1);
  look("and pipe", f);
  f.push_back({closed, POLLIN, 0});
  look("closed fd", f);
  f.push_back({99999, POLLIN, 0});
  look("never opened", f);
  look("all negative", {{-1, POLLIN, 0}, {-2, POLLIN, 0}}, 10);
  look("nothing", {}, 10);
  look("same fd twice", {{p.a, POLLIN, 0}, {p.a, POLLIN | POLLOUT, 0}});
  look("rdnorm", {{p.a, POLLRDNORM | POLLWRNORM, 0}});
  close(pp[0]), close(pp[1]);
  long t = now_ms();
  std::string r(1, 0);
  recv_upto(p.a, r.data(), 1);
  look("timeout", {{p.a, POLLIN, 0}, {p.b, POLLIN, 0}}, 30);
  ask("waited", now_ms() - t >= 29);
}

void poll_sleeps(duo&) {
  pair_of p, q;
  int ev = eventfd(0, 0);
  auto during = [&](const char* what, auto act) {
    std::thread t([&] {
      nap_us(10000);
      act();
    });
    look(what, {{p.a, POLLIN | POLLRDHUP, 0}, {q.a, POLLIN | POLLRDHUP, 0}, {ev, POLLIN, 0}}, 5000);
    t.join();
  };
  char c;
  uint64_t one = 1;
  during("tcp wakes", [&] { send_all(p.b, "x", 1); });
  recv_upto(p.a, &c, 1);
  during("eventfd wakes", [&] { (void)!write(ev, &one, 8); });
  (void)!read(ev, &one, 8);
  during("other tcp wakes", [&] { send_all(q.b, "x", 1); });
  recv_upto(q.a, &c, 1);
  during("end wakes", [&] { q.close_b(); });
  close(ev);
}

void listeners(duo&) {
  int l = listen_on();
  look("idle listener", {{l, POLLIN | POLLOUT, 0}});
  int c = connect_to(port_of(l));
  wait_event(l, POLLIN);
  look("connection waiting", {{l, POLLIN | POLLOUT, 0}, {c, POLLIN | POLLOUT, 0}});
  int s = accept(l, nullptr, nullptr);
  look("accepted", {{l, POLLIN | POLLOUT, 0}, {s, POLLIN | POLLOUT, 0}});
  warm_up(c, s);
  close(c), close(s), close(l);
}

std::string set_text(const fd_set& s, std::initializer_list<int> fds) {
  std::string t;
  for (int fd : fds) t += FD_ISSET(fd, &s) ? "1" : "0";
  return t;
}
void sel(const char* when, int a, int b, int other, bool use_pselect, long ms) {
  fd_set r, w, e;
  r = w = e = fd_set{};
  FD_SET(a, &r), FD_SET(b, &r), FD_SET(other, &r), FD_SET(b, &w), FD_SET(a, &e);
  int n = std::max(std::max(a, b), other) + 1;
  long k;
  if (use_pselect) {
    timespec ts{ms / 1000, ms % 1000 * 1000000};
    k = pselect(n, &r, &w, &e, &ts, nullptr);
    if (ts.tv_sec != ms / 1000 || ts.tv_nsec != ms % 1000 * 1000000) say("pselect changed its timeout");
  } else {
    timeval tv{ms / 1000, ms % 1000 * 1000};
    k = select(n, &r, &w, &e, &tv);
  }
  say("%s: %s read %s write %s except %s", when, res(k).c_str(), set_text(r, {a, b, other}).c_str(), set_text(w, {a, b}).c_str(),
      set_text(e, {a, b}).c_str());
}

void select_basic(duo&) {
  for (bool ps : {false, true}) {
    say(ps ? "pselect" : "select");
    pair_of p;
    int pp[2];
    if (pipe(pp)) give_up("pipe");
    sel("idle", p.a, p.b, pp[0], ps, 0);
    put(p.b, p.a, "x");
    sel("data", p.a, p.b, pp[0], ps, 0);
    (void)!write(pp[1], "x", 1);
    sel("and pipe", p.a, p.b, pp[0], ps, 1000);
    shutdown(p.a, SHUT_WR);
    wait_hangup(p.b);
    sel("end", p.a, p.b, pp[0], ps, 0);
    close(pp[1]), close(pp[0]);
  }
  pair_of p;
  fd_set r;
  r = fd_set{};
  FD_SET(p.a, &r);
  timeval tv{0, 30000};
  SHOW(select(p.a + 1, &r, nullptr, nullptr, &tv));
  ask("no time left", tv.tv_sec == 0 && tv.tv_usec == 0);
  int gone = dup(p.a);
  close(gone);
  r = fd_set{};
  FD_SET(gone, &r);
  tv = {0, 0};
  SHOW(select(gone + 1, &r, nullptr, nullptr, &tv));
  SHOW(select(-1, nullptr, nullptr, nullptr, &tv));
  tv = {-1, 0};
  SHOW(select(0, nullptr, nullptr, nullptr, &tv));
  tv = {0, 10000};
  SHOW(select(0, nullptr, nullptr, nullptr, &tv));
  std::thread t([&] {
    nap_us(10000);
    send_all(p.b, "w", 1);
  });
  r = fd_set{};
  FD_SET(p.a, &r);
  SHOW(select(p.a + 1, &r, nullptr, nullptr, nullptr));
  t.join();
}

volatile sig_atomic_t hits;
void on_signal(int) { hits = hits + 1; }

void signal_masks(duo&) {
  pair_of p;
  struct sigaction a {}, old {};
  a.sa_handler = on_signal;
  sigaction(SIGUSR2, &a, &old);
  sigset_t blocked, open, was;
  sigemptyset(&blocked), sigaddset(&blocked, SIGUSR2), sigemptyset(&open);
  pthread_sigmask(SIG_BLOCK, &blocked, &was);
  hits = 0;
  pollfd f{p.a, POLLIN, 0};
  timespec ts{2, 0};
  pthread_kill(pthread_self(), SIGUSR2);
  SHOW(poll(&f, 1, 10));
  SHOW(ppoll(&f, 1, &ts, &open));
  say("handler %d", static_cast<int>(hits));
  pthread_kill(pthread_self(), SIGUSR2);
  fd_set r;
  r = fd_set{};
  FD_SET(p.a, &r);
  SHOW(pselect(p.a + 1, &r, nullptr, nullptr, &ts, &open));
  say("handler %d", static_cast<int>(hits));
  ts = {0, 20000000};
  SHOW(ppoll(&f, 1, &ts, nullptr));
  ts = {0, -1};
  SHOW(ppoll(&f, 1, &ts, nullptr));
  pthread_sigmask(SIG_SETMASK, &was, nullptr);
  sigaction(SIGUSR2, &old, nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  return run_all(argc, argv,
                 {{"poll_basic", poll_basic}, {"poll_sleeps", poll_sleeps}, {"listeners", listeners}, {"select_basic", select_basic},
                  {"signal_masks", signal_masks}});
}
