// fork, exec, fd passing, exit and sudden death in the presence of live connections.
#include <spawn.h>

#include "common.hpp"

extern char** environ;

namespace {

bool round_trips(int a, int b, int n) {
  for (int i = 0; i < n; i++) {
    char c = static_cast<char>(i), r = 0;
    if (!send_all(a, &c, 1) || recv_upto(b, &r, 1) != 1 || r != c) return false;
    if (!send_all(b, &c, 1) || recv_upto(a, &r, 1) != 1 || r != c) return false;
  }
  return true;
}

void idle_child(duo&) {
  pair_of p;
  for (bool hard : {true, false}) {
    pid_t pid = fork();
    if (pid == 0) {
      if (hard) _exit(7);
      exit(8);
    }
    ask("traffic while the child lives", round_trips(p.a, p.b, 200));
    reap(pid, "child");
    ask("traffic after the child", round_trips(p.a, p.b, 200));
  }
  say("poll %s", mask_text(poll_now(p.a)).c_str());
}

// The child takes one end over.
void child_uses(duo&) {
  pair_of p;
  send_all(p.a, "early", 5);
  wait_unread(p.b, 5);
  pid_t pid = fork();
  if (pid == 0) {
    p.close_a();
    char b[64];
    size_t n = 0;
    bool ok = recv_upto(p.b, b, 5) == 5 && memcmp(b, "early", 5) == 0;
    while (ok && recv_upto(p.b, b, 1) == 1 && send_all(p.b, b, 1)) n++;
    exit(ok && n == 300 ? 0 : 1);
  }
  p.close_b();
  bool ok = true;
  for (int i = 0; i < 300; i++) {
    char c = static_cast<char>(i), r = 0;
    ok &= send_all(p.a, &c, 1) && recv_upto(p.a, &r, 1) == 1 && r == c;
  }
  ask("echo by the child", ok);
  shutdown(p.a, SHUT_WR);
  reap(pid, "child");
  show_recv("end", p.a, 1);
}

// The child waits for an inherited connection before it reads it: whoever waits for it uses it.
void child_waits(duo&) {
  for (const char* how : {"poll", "select", "epoll", "new epoll", "FIONREAD"}) {
    pair_of p;
    int ep = epoll_create1(0);
    epoll_event ev{EPOLLIN, {.u64 = 7}};
    if (!strcmp(how, "epoll") && epoll_ctl(ep, EPOLL_CTL_ADD, p.b, &ev)) give_up("epoll_ctl");
    if (!round_trips(p.a, p.b, 100)) give_up("round trips");
    pid_t pid = fork();
    if (pid == 0) {
      p.close_a();
      int ready = 0;
      if (!strcmp(how, "poll")) {
        pollfd f{p.b, POLLIN, 0};
        ready = poll(&f, 1, 10000);
      } else if (!strcmp(how, "select")) {
        fd_set r;
        FD_ZERO(&r);
        FD_SET(p.b, &r);
        timeval tv{10, 0};
        ready = select(p.b + 1, &r, nullptr, nullptr, &tv);
      } else if (!strcmp(how, "FIONREAD")) {
        for (int i = 0; i < 10000 && !ready; i++) ioctl(p.b, FIONREAD, &ready), nap_us(1000);
        ready = ready == 3;
      } else {
        if (!strcmp(how, "new epoll")) ep = epoll_create1(0), epoll_ctl(ep, EPOLL_CTL_ADD, p.b, &ev);
        ready = epoll_wait(ep, &ev, 1, 10000);
        if (ev.data.u64 != 7) ready = -7;
      }
      char b[4] = {};
      bool ok = ready == 1 && recv_upto(p.b, b, 3) == 3 && !memcmp(b, "ask", 3) && send_all(p.b, "answer", 6);
      exit(ok ? 0 : 1);
    }
    p.close_b();
    nap_us(30000);
    send_all(p.a, "ask", 3);
    std::string s(16, 0);
    s.resize(recv_upto(p.a, s.data(), s.size()));
    say("%s: %s", how, s.c_str());
    reap(pid, "child");
    close(ep);
  }
}

// Becomes a daemon with a connection that it uses already.
void daemon_waits(duo&) {
  int ep = epoll_create1(0);
  pair_of p;
  pid_t pid = fork();
  if (pid == 0) {
    p.close_a();
    epoll_event ev{EPOLLIN, {.u64 = 7}};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, p.b, &ev)) give_up("epoll_ctl");
    for (int i = 0; i < 100; i++) {
      char c;
      if (epoll_wait(ep, &ev, 1, 10000) != 1 || recv(p.b, &c, 1, 0) != 1 || !send_all(p.b, &c, 1)) _exit(1);
    }
    pid_t second = fork();
    if (second) exit(second < 0);
    char b[4] = {};
    bool ok = epoll_wait(ep, &ev, 1, 10000) == 1 && ev.data.u64 == 7 && recv_upto(p.b, b, 3) == 3 && send_all(p.b, "answer", 6);
    exit(ok ? 0 : 1);
  }
  p.close_b();
  bool ok = true;
  for (int i = 0; i < 100; i++) {
    char c = static_cast<char>(i), r = 0;
    ok &= send_all(p.a, &c, 1) && recv_upto(p.a, &r, 1) == 1 && r == c;
  }
  ask("echo", ok);
  reap(pid, "first child");
  send_all(p.a, "ask", 3);
  std::string s(16, 0);
  s.resize(recv_upto(p.a, s.data(), s.size()));
  say("daemon: %s", s.c_str());
  close(ep);
}

// Parent and child write to the same connection in turn; the end comes when both have closed.
void both_use(duo&) {
  pair_of p;
  int turn[2];
  if (pipe(turn)) give_up("pipe");
  pid_t pid = fork();
  if (pid == 0) {
    char c;
    close(p.b);
    if (read(turn[0], &c, 1) != 1) exit(1);
    bool ok = send_all(p.a, "child ", 6);
    p.b = -1;
    exit(ok ? 0 : 1);
  }
  send_all(p.a, "parent ", 7);
  (void)!write(turn[1], "x", 1);
  reap(pid, "child");
  send_all(p.a, "parent again", 12);
  p.close_a();
  std::string s(64, 0);
  s.resize(recv_upto(p.b, s.data(), s.size()));
  say("received %s", s.c_str());
  close(turn[0]), close(turn[1]);
}

void parent_closes(duo&) {
  pair_of p;
  pid_t pid = fork();
  if (pid == 0) {
    close(std::exchange(p.b, -1));
    nap_us(20000);
    exit(send_all(p.a, "from the child", 14) ? 0 : 1);
  }
  p.close_a();
  nap_us(5000);
  say("poll %s", mask_text(poll_now(p.b)).c_str());
  std::string s(64, 0);
  s.resize(recv_upto(p.b, s.data(), s.size()));
  say("received %s", s.c_str());
  reap(pid, "child");
}

// A server that forks for every connection.
void fork_server(duo& d) {
  constexpr int clients = 6;
  int l = -1;
  long port = d.b([&](int) {
    l = listen_on();
    return port_of(l);
  });
  bool ok = true;
  d.both(
      [&](int) {
        for (int i = 0; i < clients; i++) {
          int fd = connect_to(static_cast<uint16_t>(port));
          warm_up_ask(fd);
          std::vector<uint8_t> v(100000), w(100000);
          stream_fill(v.data(), 0, v.size(), static_cast<uint32_t>(i));
          std::thread t([&] {
            send_all(fd, v.data(), v.size());
            shutdown(fd, SHUT_WR);
          });
          ok &= recv_upto(fd, w.data(), w.size()) == w.size() && v == w;
          char c;
          ok &= recv(fd, &c, 1, 0) == 0;
          t.join();
          close(fd);
        }
      },
      [&](int) {
        int bad = 0;
        for (int i = 0; i < clients; i++) {
          int c = accept(l, nullptr, nullptr);
          pid_t pid = fork();
          if (pid == 0) {
            close(l);
            char b[5000];
            for (ssize_t r; (r = read(c, b, sizeof b)) > 0;)
              if (!send_all(c, b, static_cast<size_t>(r))) exit(1);
            exit(0);
          }
          close(c);
          int st;
          waitpid(pid, &st, 0);
          bad += st != 0;
        }
        say("children that failed: %d", bad);
        close(l);
      });
  d.a([&](int) { ask("all echoed", ok); });
}

[[gnu::noinline]] pid_t vfork_true(int a, int b) {
  pid_t pid = vfork();
  if (pid == 0) {
    close(a), close(b);
    execl("/bin/true", "true", nullptr);
    _exit(9);
  }
  return pid;
}

void vfork_and_spawn(duo&) {
  pair_of p;
  fcntl(p.b, F_SETFD, FD_CLOEXEC);
  for (int i = 0; i < 5; i++) {
    pid_t pid = vfork_true(p.a, p.b);
    reap(pid, "vfork");
    ask("traffic", round_trips(p.a, p.b, 100));
    char* argv[] = {const_cast<char*>("true"), nullptr};
    if (posix_spawn(&pid, "/bin/true", nullptr, nullptr, argv, environ)) give_up("posix_spawn");
    reap(pid, "posix_spawn");
    ask("traffic", round_trips(p.a, p.b, 100));
  }
  say("system: %d", system("exit 3") >> 8);
  FILE* f = popen("echo through a pipe", "r");
  char line[64] = "";
  if (f && fgets(line, sizeof line, f)) say("popen: %s", line);
  if (f) pclose(f);
  ask("traffic", round_trips(p.a, p.b, 100));
}

// exec with an inherited connection: /bin/cat talks over it as its standard input and output.
void exec_cat(duo&) {
  for (bool plain : {true, false}) {
    pair_of p;
    pid_t pid = fork();
    if (pid == 0) {
      if (plain) unsetenv("LD_PRELOAD");
      dup2(p.b, 0), dup2(p.b, 1);
      close(p.a), close(p.b);
      execl("/bin/cat", "cat", nullptr);
      _exit(9);
    }
    p.close_b();
    bool ok = true;
    for (int i = 0; i < 100; i++) {
      char c = static_cast<char>('a' + i % 26), r = 0;
      ok &= send_all(p.a, &c, 1) && recv_upto(p.a, &r, 1) == 1 && r == c;
    }
    ask("cat echoes", ok);
    shutdown(p.a, SHUT_WR);
    show_recv("end", p.a, 1);
    reap(pid, "cat");
  }
}

// exec of this program itself, without fork between the promotion and the exec.
int echo_on(int fd) {
  size_t n = 0;
  char c;
  while (recv_upto(fd, &c, 1) == 1 && send_all(fd, &c, 1)) n++;
  return n == 200 ? 0 : 1;
}
void exec_self(duo&) {
  int l = listen_on();
  for (bool plain : {true, false}) {
    uint16_t port = port_of(l);
    pid_t pid = fork();
    if (pid == 0) {
      close(l);
      int fd = connect_to(port);
      warm_up_answer(fd);
      if (plain) unsetenv("LD_PRELOAD");
      std::string n = std::to_string(fd);
      execl("/proc/self/exe", "process", "--echo-on", n.c_str(), nullptr);
      _exit(9);
    }
    int fd = accept(l, nullptr, nullptr);
    warm_up_ask(fd);
    bool ok = true;
    for (int i = 0; i < 200; i++) {
      char c = static_cast<char>(i), r = 0;
      ok &= send_all(fd, &c, 1) && recv_upto(fd, &r, 1) == 1 && r == c;
    }
    ask("the new program echoes", ok);
    shutdown(fd, SHUT_WR);
    reap(pid, "new program");
    close(fd);
  }
  close(l);
}

void cloexec(duo&) {
  pair_of p;
  pid_t pid = fork();
  if (pid == 0) {
    fcntl(p.a, F_SETFD, FD_CLOEXEC), fcntl(p.b, F_SETFD, FD_CLOEXEC);
    execl("/bin/sleep", "sleep", "0.05", nullptr);
    _exit(9);
  }
  p.close_a();
  show_recv("the end comes although the child still runs", p.b, 1);
  reap(pid, "sleep");
}

// A live connection goes to a process that was there before it.
void scm_rights(duo&) {
  int us[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, us)) give_up("socketpair");
  pid_t pid = fork();
  if (pid == 0) {
    close(us[0]);
    int fd = take_fd(us[1]);
    char b[8];
    if (fd < 0 || recv_upto(fd, b, 4) != 4 || memcmp(b, "held", 4)) exit(2);
    exit(echo_on(fd));
  }
  close(us[1]);
  pair_of p;
  send_all(p.a, "held", 4);
  wait_unread(p.b, 4);
  if (pass_fd(us[0], p.b) != 1) give_up("pass");
  p.close_b();
  bool ok = true;
  for (int i = 0; i < 200; i++) {
    char c = static_cast<char>(i), r = 0;
    ok &= send_all(p.a, &c, 1) && recv_upto(p.a, &r, 1) == 1 && r == c;
  }
  ask("echo by the receiver", ok);
  shutdown(p.a, SHUT_WR);
  reap(pid, "receiver");
  close(us[0]);
}

// To oneself: the same connection under a new number.
void scm_rights_self(duo&) {
  int us[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, us)) give_up("socketpair");
  pair_of p;
  if (pass_fd(us[0], p.b) != 1) give_up("pass");
  int fd = take_fd(us[1]);
  p.close_b();
  ask("traffic", round_trips(p.a, fd, 100));
  close(fd);
  show_recv("end", p.a, 1);
  close(us[0]), close(us[1]);
}

// Megabytes in the buffers at exit arrive, then a clean end.
void exit_with_data(duo&) {
  constexpr size_t total = 6000000;
  int l = listen_on();
  uint16_t port = port_of(l);
  for (int how = 0; how < 4; how++) {
    pid_t pid = fork();
    if (pid == 0) {
      close(l);
      int fd = connect_to(port);
      warm_up_answer(fd);
      std::vector<uint8_t> v(total);
      stream_fill(v.data(), 0, total, 8);
      bool ok = send_all(fd, v.data(), total);
      if (how == 1) close(fd);
      if (how == 2) shutdown(fd, SHUT_WR);
      if (how == 3) exit(ok ? 0 : 1);
      _exit(ok ? 0 : 1);
    }
    int fd = accept(l, nullptr, nullptr);
    warm_up_ask(fd);
    nap_us(10000);
    std::vector<uint8_t> v(total + 1);
    size_t n = recv_upto(fd, v.data(), 1000000);
    nap_us(20000);
    ssize_t last = -9;
    while (n <= total && (last = recv(fd, v.data() + n, v.size() - n, 0)) > 0) n += static_cast<size_t>(last);
    say("received %zu, last %s, right %s", n, res(last).c_str(), stream_check(v.data(), 0, std::min(n, total), 8) ? "yes" : "no");
    reap(pid, "child");
    close(fd);
  }
  close(l);
}

// SIGKILL: the peer sees the end at once.
void killed(duo&) {
  int l = listen_on();
  uint16_t port = port_of(l);
  for (int how = 0; how < 3; how++) {
    pid_t pid = fork();
    if (pid == 0) {
      close(l);
      int fd = connect_to(port);
      warm_up_answer(fd);
      if (how == 0) pause();
      char c[4096] = {};
      for (;;) {
        if (how == 1) (void)!send(fd, c, sizeof c, 0);
        else if (recv(fd, c, sizeof c, 0) <= 0) _exit(1);
      }
    }
    int fd = accept(l, nullptr, nullptr);
    warm_up_ask(fd);
    char b[65536] = {};
    if (how == 1) recv_upto(fd, b, sizeof b);
    if (how == 2) send_all(fd, b, sizeof b);
    long t = now_ms();
    kill(pid, SIGKILL);
    ssize_t r = -1;
    while ((r = recv(fd, b, sizeof b, 0)) > 0) {}
    ask("end of file or reset", r == 0 || errno == ECONNRESET);
    ask("promptly", now_ms() - t < 1000);
    until([&] { return send(fd, "x", 1, MSG_NOSIGNAL) < 0; });
    r = send(fd, "x", 1, MSG_NOSIGNAL);
    say("send: %s", r < 0 && (errno == EPIPE || errno == ECONNRESET) ? "refused" : res(r).c_str());
    close(fd);
    reap(pid, "child");
  }
  close(l);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && !strcmp(argv[1], "--echo-on")) return echo_on(atoi(argv[2]));
  return run_all(argc, argv,
                 {{"idle_child", idle_child}, {"child_uses", child_uses}, {"child_waits", child_waits}, {"daemon_waits", daemon_waits},
                  {"both_use", both_use}, {"parent_closes", parent_closes},
                  {"fork_server", fork_server, in_threads | in_procs}, {"vfork_and_spawn", vfork_and_spawn}, {"exec_cat", exec_cat},
                  {"exec_self", exec_self}, {"cloexec", cloexec}, {"scm_rights", scm_rights}, {"scm_rights_self", scm_rights_self},
                  {"exit_with_data", exit_with_data}, {"killed", killed}});
}
