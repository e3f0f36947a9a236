// Making connections: refused, in progress, twice, to oneself, from a full backlog, accepted in all forms.
#include "common.hpp"

namespace {

uint16_t free_port() {
  int l = listen_on();
  uint16_t p = port_of(l);
  close(l);
  return p;
}

void refused(duo&) {
  sockaddr_in s = loopback(free_port());
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  SHOW(connect(fd, sa(s), sizeof s));
  say("SO_ERROR %s", err_name(get_opt(fd, SOL_SOCKET, SO_ERROR)));
  say("poll %s", mask_text(poll_now(fd)).c_str());
  char c;
  SHOW(recv(fd, &c, 1, MSG_DONTWAIT));
  SHOW(send(fd, "x", 1, MSG_NOSIGNAL));
  // The socket can be used again.
  int l = listen_on();
  s = loopback(port_of(l));
  SHOW(connect(fd, sa(s), sizeof s));
  int b = accept(l, nullptr, nullptr);
  warm_up(fd, b);
  close(fd), close(b), close(l);
}

void refused_nonblocking(duo&) {
  sockaddr_in s = loopback(free_port());
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  SHOW(connect(fd, sa(s), sizeof s));
  until([&] { return poll_now(fd) & POLLERR; });
  say("poll %s", mask_text(poll_now(fd)).c_str());
  say("SO_ERROR %s", err_name(get_opt(fd, SOL_SOCKET, SO_ERROR)));
  say("SO_ERROR %s", err_name(get_opt(fd, SOL_SOCKET, SO_ERROR)));
  close(fd);
}

void in_progress(duo&) {
  int l = listen_on();
  sockaddr_in s = loopback(port_of(l));
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  int ep = epoll_create1(0);
  epoll_event e{EPOLLOUT | EPOLLET, {}};
  epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
  SHOW(connect(fd, sa(s), sizeof s));
  wait_event(fd, POLLOUT);
  int n = epoll_wait(ep, &e, 1, 1000);
  say("epoll %d, writable %s", n, e.events & EPOLLOUT ? "yes" : "no");
  say("SO_ERROR %s", err_name(get_opt(fd, SOL_SOCKET, SO_ERROR)));
  SHOW(connect(fd, sa(s), sizeof s));
  SHOW(connect(fd, sa(s), sizeof s));
  int b = accept(l, nullptr, nullptr);
  warm_up(fd, b);
  close(fd), close(b), close(l), close(ep);
}

void twice(duo&) {
  pair_of p;
  sockaddr_in s = loopback(1);
  SHOW(connect(p.a, sa(s), sizeof s));
  s.sin_family = AF_UNSPEC;
  SHOW(connect(p.a, sa(s), sizeof s));
  char c;
  SHOW(recv(p.b, &c, 1, 0));
  SHOW(send(p.a, "x", 1, MSG_NOSIGNAL));
}

// A socket bound to a port and connected to that port is connected to itself.
void to_self(duo&) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in s = loopback(0);
  bind(fd, sa(s), sizeof s);
  s = loopback(port_of(fd));
  SHOW(connect(fd, sa(s), sizeof s));
  set_opt(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  bool ok = true;
  for (int i = 0; i < 200; i++) {
    char c = static_cast<char>(i), r = 0;
    ok &= send_all(fd, &c, 1) && recv_upto(fd, &r, 1) == 1 && r == c;
  }
  ask("hears itself", ok);
  shutdown(fd, SHUT_WR);
  show_recv("end", fd, 1);
  close(fd);
}

void accept_forms(duo&) {
  int l = listen_on();
  nonblock(l);
  SHOW(accept(l, nullptr, nullptr));
  SHOW(accept4(l, nullptr, nullptr, 0x1234));
  for (int flags : {0, int{SOCK_NONBLOCK}, int{SOCK_CLOEXEC}, int{SOCK_NONBLOCK | SOCK_CLOEXEC}}) {
    int c = connect_to(port_of(l));
    wait_event(l, POLLIN);
    sockaddr_in from{};
    socklen_t len = sizeof from;
    int b = accept4(l, sa(from), &len, flags);
    say("nonblocking %d, close-on-exec %d, length %u, peer right %s", (fcntl(b, F_GETFL) & O_NONBLOCK) != 0, fcntl(b, F_GETFD), len,
        ntohs(from.sin_port) == port_of(c) ? "yes" : "no");
    warm_up(c, b);
    close(c), close(b);
  }
  int c = connect_to(port_of(l));
  wait_event(l, POLLIN);
  set_opt(l, IPPROTO_TCP, TCP_NODELAY, 1);
  int b = accept(l, nullptr, nullptr);
  say("accepted: TCP_NODELAY %d, SO_ACCEPTCONN %d, listener %d", get_opt(b, IPPROTO_TCP, TCP_NODELAY), get_opt(b, SOL_SOCKET, SO_ACCEPTCONN),
      get_opt(l, SOL_SOCKET, SO_ACCEPTCONN));
  close(c), close(b), close(l);
}

// Data and even the end may be there before accept.
void early_data(duo&) {
  int l = listen_on();
  int c = connect_to(port_of(l));
  send_all(c, "before accept", 13);
  int c2 = connect_to(port_of(l));
  send_all(c2, "and gone", 8);
  close(c2);
  nap_us(2000);
  int b = accept(l, nullptr, nullptr), b2 = accept(l, nullptr, nullptr);
  show_recv("recv", b, 20);
  warm_up(c, b);
  show_recv("recv", b2, 20);
  show_recv("recv", b2, 20);
  close(b), close(b2), close(c), close(l);
}

void full_backlog(duo&) {
  int l = listen_on(1);
  sockaddr_in s = loopback(port_of(l));
  int fds[4], now = 0;
  for (int& fd : fds) {
    fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect(fd, sa(s), sizeof s);
    now += until([&] { return poll_now(fd, POLLOUT) & POLLOUT; }, 30);
  }
  say("connected without accept: %d", now);
  int b = accept(l, nullptr, nullptr);
  nonblock(fds[0], false);
  warm_up(fds[0], b);
  close(b);
  for (int fd : fds) close(fd);
  close(l);
}

void closed_listener(duo&) {
  int l = listen_on();
  int c = connect_to(port_of(l)), c2 = connect_to(port_of(l));
  int b = accept(l, nullptr, nullptr);
  close(l);
  warm_up(c, b);
  wait_hangup(c2);
  char x;
  SHOW(recv(c2, &x, 1, 0));
  close(c), close(c2), close(b);
}

void many(duo& d) {
  int l = -1;
  long port = d.b([&](int) {
    l = listen_on(128);
    return port_of(l);
  });
  int good = 0;
  d.both(
      [&](int) {
        for (int i = 0; i < 300; i++) {
          int fd = connect_to(static_cast<uint16_t>(port));
          char c = static_cast<char>(i), r = 0;
          good += send_all(fd, &c, 1) && recv_upto(fd, &r, 1) == 1 && r == c;
          close(fd);
        }
      },
      [&](int) {
        for (int i = 0; i < 300; i++) {
          int fd = accept(l, nullptr, nullptr);
          char c;
          if (recv_upto(fd, &c, 1) == 1) send_all(fd, &c, 1);
          close(fd);
        }
        close(l);
      });
  d.a([&](int) { say("good %d", good); });
}

}  // namespace

int main(int argc, char** argv) {
  return run_all(argc, argv,
                 {{"refused", refused}, {"refused_nonblocking", refused_nonblocking}, {"in_progress", in_progress}, {"twice", twice},
                  {"to_self", to_self}, {"accept_forms", accept_forms}, {"early_data", early_data}, {"full_backlog", full_backlog},
                  {"closed_listener", closed_listener}, {"many", many, in_threads | in_procs}});
}
