// The ends of a connection: half close, shutdown, reset, and what both sides may still do.
#include "common.hpp"

namespace {

volatile sig_atomic_t pipes;
void on_pipe(int) { pipes = pipes + 1; }

void look(const char* when, int fd) {
  say("%s: poll %s", when, mask_text(poll_now(fd), true).c_str());
}

void half_close_a(duo& d) {
  d.connect();
  d.a([](int fd) {
    send_all(fd, "last words", 10);
    SHOW(shutdown(fd, SHUT_WR));
    SHOW(send(fd, "x", 1, MSG_NOSIGNAL));
  });
  d.b([](int fd) {
    wait_hangup(fd);
    look("before reading", fd);
    show_recv("recv", fd, 20);
    show_recv("recv", fd, 20);
    look("after the end", fd);
    SHOW(send(fd, "still here", 10, 0));
  });
  d.a([](int fd) {
    wait_unread(fd, 10);
    show_recv("recv after own shutdown", fd, 20);
    look("A", fd);
  });
  d.b([](int fd) { SHOW(shutdown(fd, SHUT_WR)); });
  d.a([](int fd) {
    until([fd] { return poll_now(fd) & POLLHUP; });
    look("both closed", fd);
    show_recv("recv", fd, 5);
    SHOW(shutdown(fd, SHUT_RDWR));
  });
  d.b([](int fd) {
    until([fd] { return poll_now(fd) & POLLHUP; });
    look("B, both closed", fd);
    SHOW(shutdown(fd, SHUT_RDWR));
    SHOW(send(fd, "x", 1, MSG_NOSIGNAL));
  });
  d.close_both();
}

void half_close_b(duo& d) {
  d.connect();
  d.b([](int fd) { SHOW(shutdown(fd, SHUT_WR)); });
  d.a([](int fd) {
    wait_hangup(fd);
    look("A", fd);
    show_recv("recv", fd, 20);
    std::vector<char> big(100000, 'q');
    ask("sent", send_all(fd, big.data(), big.size()));
    SHOW(close(fd));
  });
  d.fd_a = -1;
  d.b([](int fd) {
    std::vector<char> big(100001);
    say("received %zu", recv_upto(fd, big.data(), big.size()));
    look("B", fd);
  });
  d.close_b();
}

void shutdown_read(duo& d) {
  d.connect();
  d.a([](int fd) {
    SHOW(shutdown(fd, SHUT_RD));
    look("A", fd);
    show_recv("recv", fd, 5);
  });
  d.b([](int fd) {
    look("B", fd);
    SHOW(send(fd, "into the deaf", 13, MSG_NOSIGNAL));
  });
  d.a([](int fd) {
    until([fd] { return unread(fd) > 0; }, 20);
    show_recv("recv", fd, 20, MSG_DONTWAIT);
    show_recv("recv", fd, 20, MSG_DONTWAIT);
    SHOW(send(fd, "writing works", 13, 0));
  });
  d.b([](int fd) { show_recv("recv", fd, 20); });
  d.close_both();
}

void shutdown_both_ways(duo& d) {
  d.connect();
  d.a([](int fd) {
    SHOW(shutdown(fd, SHUT_RDWR));
    SHOW(send(fd, "x", 1, MSG_NOSIGNAL));
    show_recv("recv", fd, 5);
  });
  d.b([](int fd) {
    wait_hangup(fd);
    show_recv("recv", fd, 5);
    look("B", fd);
  });
  d.b([](int fd) { SHOW(shutdown(fd, SHUT_WR)); });
  d.a([](int fd) {
    until([fd] { return poll_now(fd) & POLLHUP; });
    look("A", fd);
    sockaddr_in s{};
    socklen_t l = sizeof s;
    until([&] { return getpeername(fd, sa(s), &l) < 0; }, 1000);
    SHOW(getpeername(fd, sa(s), &l));
  });
  d.close_both();
}

void sigpipe(duo& d) {
  d.connect();
  d.a([](int fd) {
    struct sigaction act {}, old {};
    act.sa_handler = on_pipe;
    sigaction(SIGPIPE, &act, &old);
    shutdown(fd, SHUT_WR);
    pipes = 0;
    SHOW(send(fd, "x", 1, 0));
    say("SIGPIPE: %d", static_cast<int>(pipes));
    SHOW(send(fd, "x", 1, MSG_NOSIGNAL));
    say("SIGPIPE: %d", static_cast<int>(pipes));
    SHOW(write(fd, "x", 1));
    say("SIGPIPE: %d", static_cast<int>(pipes));
    iovec v{const_cast<char*>("x"), 1};
    SHOW(writev(fd, &v, 1));
    say("SIGPIPE: %d", static_cast<int>(pipes));
    SHOW(send(fd, "", 0, 0));
    say("SIGPIPE: %d", static_cast<int>(pipes));
    sigaction(SIGPIPE, &old, nullptr);
  });
  d.close_both();
}

void sigpipe_kills(duo&) {
  for (int how : {0, 1}) {
    pid_t pid = fork();
    if (pid == 0) {
      signal(SIGPIPE, SIG_DFL);
      pair_of p;
      shutdown(p.a, SHUT_WR);
      if (how == 0) send(p.a, "x", 1, MSG_NOSIGNAL);
      else (void)!write(p.a, "x", 1);
      exit(0);
    }
    reap(pid, how ? "write" : "send with MSG_NOSIGNAL");
  }
}

// The peer is gone for good: the first send may still go out, then RST comes back.
void write_to_closed(duo& d) {
  d.connect();
  d.close_b();
  d.a([](int fd) {
    wait_hangup(fd);
    look("A", fd);
    SHOW(send(fd, "into nothing", 12, MSG_NOSIGNAL));
    until([fd] { return poll_now(fd) & (POLLERR | POLLHUP); });
    look("after RST", fd);
    SHOW(send(fd, "x", 1, MSG_NOSIGNAL));
    SHOW(send(fd, "x", 1, MSG_NOSIGNAL));
    show_recv("recv", fd, 5);
    say("SO_ERROR %s", err_name(get_opt(fd, SOL_SOCKET, SO_ERROR)));
  });
  d.close_a();
}

// close with unread data says RST, not FIN.
void close_unread(duo& d) {
  d.connect();
  d.a([](int fd) { send_all(fd, "never read", 10); });
  d.b([](int fd) {
    wait_unread(fd, 10);
    send_all(fd, "tail", 4);
  });
  d.a([](int fd) { wait_unread(fd, 4); });
  d.close_b();
  d.a([](int fd) {
    wait_hangup(fd);
    look("A", fd);
    show_recv("recv", fd, 20);
    show_recv("recv", fd, 20);
    show_recv("recv", fd, 20);
    SHOW(send(fd, "x", 1, MSG_NOSIGNAL));
  });
  d.close_a();
}

void linger_zero(duo& d) {
  d.connect();
  d.b([](int fd) {
    linger l{1, 0};
    SHOW(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l));
  });
  d.close_b();
  d.a([](int fd) {
    wait_hangup(fd);
    look("A", fd);
    say("SO_ERROR %s", err_name(get_opt(fd, SOL_SOCKET, SO_ERROR)));
    say("SO_ERROR again %s", err_name(get_opt(fd, SOL_SOCKET, SO_ERROR)));
    look("A", fd);
    show_recv("recv", fd, 5);
    SHOW(send(fd, "x", 1, MSG_NOSIGNAL));
  });
  d.close_a();
}

void recv_after_reset(duo& d) {
  d.connect();
  d.b([](int fd) {
    linger l{1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
  });
  d.close_b();
  d.a([](int fd) {
    wait_hangup(fd);
    show_recv("recv", fd, 5);
    show_recv("recv", fd, 5);
    SHOW(send(fd, "x", 1, MSG_NOSIGNAL));
    SHOW(shutdown(fd, SHUT_RDWR));
    sockaddr_in s{};
    socklen_t n = sizeof s;
    SHOW(getpeername(fd, sa(s), &n));
    SHOW(getsockname(fd, sa(s), &n));
  });
  d.close_a();
}

void write_after_reset(duo& d) {
  d.connect();
  d.b([](int fd) {
    linger l{1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
  });
  d.close_b();
  d.a([](int fd) {
    wait_hangup(fd);
    SHOW(send(fd, "x", 1, MSG_NOSIGNAL));
    SHOW(send(fd, "x", 1, MSG_NOSIGNAL));
    show_recv("recv", fd, 5);
  });
  d.close_a();
}

// A reset while the peer sleeps in recv.
void reset_wakes(duo& d) {
  d.connect();
  d.both(
      [](int fd) {
        nap_us(10000);
        linger l{1, 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
        close(fd);
      },
      [](int fd) { show_recv("recv", fd, 5); });
  d.fd_a = -1;
  d.close_b();
}

// SO_LINGER with a time: close waits until the peer has taken everything.
void linger_time(duo& d) {
  d.connect();
  d.both(
      [](int fd) {
        linger l{1, 5};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
        std::vector<char> big(3000000, 'l');
        ask("sent", send_all(fd, big.data(), big.size()));
        SHOW(close(fd));
      },
      [](int fd) {
        std::vector<char> big(3000001);
        nap_us(5000);
        size_t n = recv_upto(fd, big.data(), big.size());
        (void)n;
      });
  d.fd_a = -1;
  d.close_b();
}

// Everything given to send before close arrives, then a clean end.
void close_after_send(duo& d) {
  d.connect();
  constexpr size_t n = 2000000;
  if (d.self()) {
    d.a([](int fd) {
      std::vector<uint8_t> v(60000);
      stream_fill(v.data(), 0, v.size(), 3);
      ask("sent", send_all(fd, v.data(), v.size()));
    });
    d.close_a();
    d.b([](int fd) {
      std::vector<uint8_t> v(60001);
      size_t got = recv_upto(fd, v.data(), v.size());
      say("received %zu", got);
      ask("right", stream_check(v.data(), 0, got, 3));
    });
  } else {
    d.both(
        [](int fd) {
          std::vector<uint8_t> v(n);
          stream_fill(v.data(), 0, n, 3);
          send_all(fd, v.data(), n);
          close(fd);
        },
        [](int fd) {
          std::vector<uint8_t> v(n + 1);
          size_t got = recv_upto(fd, v.data(), v.size());
          say("received %zu", got);
          ask("right", stream_check(v.data(), 0, got, 3));
          show_recv("then", fd, 1);
        });
    d.fd_a = -1;
  }
  d.close_both();
}

}  // namespace

int main(int argc, char** argv) {
  return run_all(argc, argv,
                 {{"half_close_a", half_close_a, everywhere},
                  {"half_close_b", half_close_b, in_threads | in_procs},
                  {"shutdown_read", shutdown_read, everywhere},
                  {"shutdown_both_ways", shutdown_both_ways, everywhere},
                  {"sigpipe", sigpipe, everywhere},
                  {"sigpipe_kills", sigpipe_kills},
                  {"write_to_closed", write_to_closed, everywhere},
                  {"close_unread", close_unread, everywhere},
                  {"linger_zero", linger_zero, everywhere},
                  {"recv_after_reset", recv_after_reset, everywhere},
                  {"write_after_reset", write_after_reset, everywhere},
                  {"reset_wakes", reset_wakes, in_threads | in_procs},
                  {"linger_time", linger_time, in_threads | in_procs},
                  {"close_after_send", close_after_send, everywhere}});
}
