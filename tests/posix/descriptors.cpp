// dup in all its forms, close of one of several, and what a number means after it was reused.
#include <linux/close_range.h>

#include "common.hpp"

namespace {

void trip(const char* what, int a, int b) {
  char c = 't', r = 0;
  bool ok = send_all(a, &c, 1) && recv_upto(b, &r, 1) == 1 && send_all(b, &c, 1) && recv_upto(a, &r, 1) == 1;
  ask(what, ok);
}

void dup_forms(duo&) {
  pair_of p;
  int d1 = dup(p.a), d2 = fcntl(p.a, F_DUPFD, 100), d3 = fcntl(p.a, F_DUPFD_CLOEXEC, 100), d4 = dup3(p.a, 200, O_CLOEXEC), d5 = dup2(p.a, 201);
  say("F_DUPFD %s, F_DUPFD_CLOEXEC %s, dup3 %d, dup2 %d", d2 >= 100 ? "yes" : "no", d3 >= 100 && d3 != d2 ? "yes" : "no", d4, d5);
  for (int d : {d1, d2, d3, d4, d5}) {
    say("close-on-exec %d", fcntl(d, F_GETFD));
    trip("by the dup", d, p.b);
  }
  nonblock(d1);
  ask("status flags are shared", fcntl(d5, F_GETFL) & O_NONBLOCK);
  nonblock(p.a, false);
  SHOW(dup2(p.a, p.a) == p.a ? 0 : -1);
  SHOW(dup3(p.a, p.a, 0));
  SHOW(dup2(99999, 5));
  SHOW(dup2(p.a, -1));
  SHOW(dup3(p.a, 210, 0x1234));
  SHOW(fcntl(p.a, F_DUPFD, -1));
  p.close_a();
  for (int d : {d1, d2, d3, d4}) {
    close(d);
    trip("still open", d5, p.b);
  }
  send_all(d5, "bye", 3);
  SHOW(close(d5));
  show_recv("recv", p.b, 10);
  show_recv("recv", p.b, 10);
}

void dup2_over(duo&) {
  pair_of p, q;
  int was = p.a;
  SHOW(dup2(q.a, p.a) == was ? 0 : -1);
  show_recv("the old peer sees the end", p.b, 10);
  trip("the number is the other connection", was, q.b);
  q.close_a();
  trip("also alone", was, q.b);
  int pp[2];
  if (pipe(pp)) give_up("pipe");
  SHOW(dup2(pp[1], was) == was ? 0 : -1);
  show_recv("end", q.b, 10);
  SHOW(send(was, "x", 1, 0));
  SHOW(write(was, "x", 1));
  pair_of r;
  int over = dup2(r.a, pp[0]);
  trip("a connection over a pipe", over, r.b);
  close(pp[0]), close(pp[1]);
  trip("the first number", r.a, r.b);
}

void ranges(duo&) {
  pair_of p;
  for (unsigned i = 0; i < 4; i++) dup2(p.a, static_cast<int>(300 + i));
  p.close_a();
  SHOW(close_range(301, 302, 0));
  SHOW(fcntl(301, F_GETFD));
  trip("by the first", 300, p.b);
  trip("by the last", 303, p.b);
  SHOW(close_range(300, 303, CLOSE_RANGE_CLOEXEC));
  SHOW(fcntl(300, F_GETFD));
  trip("after cloexec", 300, p.b);
  SHOW(close_range(303, 300, 0));
  SHOW(close_range(300, 400, 0x100));
  SHOW(close_range(300, ~0u, 0));
  show_recv("end", p.b, 10);
  pair_of q;
  trip("new ones", q.a, q.b);
}

// Numbers are reused at once, with something else behind them each time.
void reuse(duo&) {
  bool ok = true;
  for (int i = 0; i < 60; i++) {
    pair_of p(i % 10 == 0);
    char c = static_cast<char>(i), r = 0;
    ok &= send_all(p.a, &c, 1) && recv_upto(p.b, &r, 1) == 1 && r == c;
    int hole = open("/dev/null", O_RDWR);  // where the listener was
    int was = p.a;
    p.close_a();
    int f = open("/dev/null", O_RDWR);
    ok &= f == was && write(f, "xyz", 3) == 3 && read(f, &r, 1) == 0;
    close(f), close(hole);
    ok &= recv(p.b, &r, 1, 0) == 0;
  }
  ask("always the right thing behind the number", ok);
}

void stdio(duo&) {
  pair_of p;
  SHOW(dprintf(p.a, "number %d\n", 42));
  wait_unread(p.b, 10);
  show_recv("recv", p.b, 20);
  int d = dup(p.a);
  FILE* f = fdopen(d, "r+");
  send_all(p.b, "a line\nanother\n", 15);
  char line[64];
  if (fgets(line, sizeof line, f)) say("fgets: %s", line);
  if (fgets(line, sizeof line, f)) say("fgets: %s", line);
  fprintf(f, "by stdio");
  fflush(f);
  wait_unread(p.b, 8);
  show_recv("recv", p.b, 20);
  trip("and directly", p.a, p.b);
  fclose(f);
  trip("after fclose of the dup", p.a, p.b);
}

}  // namespace

int main(int argc, char** argv) {
  return run_all(argc, argv, {{"dup_forms", dup_forms}, {"dup2_over", dup2_over}, {"ranges", ranges}, {"reuse", reuse}, {"stdio", stdio}});
}
