// Connections that several processes hold, one after the other or at once: fork per connection, hand-over by SCM_RIGHTS, children that only keep a copy.
// Every byte of both directions is checked by its position, whoever moved it.
#include <thread>

#include "common.hpp"

namespace {

constexpr uint32_t seed_up = 5, seed_down = 6;
constexpr size_t piece = 100;

// Position in both streams: each piece goes up and another comes down.
struct wire {
  int a = -1, b = -1;
  uint64_t pos = 0;
  wire() {
    int l = listen_on();
    a = connect_to(port_of(l));
    b = accept(l, nullptr, nullptr);
    if (b < 0) give_up("accept");
    close(l);
  }
  wire(const wire&) = delete;
  wire& operator=(const wire&) = delete;
  ~wire() { close(a), close(b); }
};

bool put(int fd, uint64_t pos, uint32_t seed) {
  uint8_t v[piece];
  stream_fill(v, pos, piece, seed);
  return send_all(fd, v, piece);
}
bool take(int fd, uint64_t pos, uint32_t seed) {
  uint8_t v[piece];
  return recv_upto(fd, v, piece) == piece && stream_check(v, pos, piece, seed);
}

// One end each: n pieces up, n down.
bool ask_pieces(int fd, uint64_t* pos, int n) {
  bool ok = true;
  for (; n && ok; --n, *pos += piece) ok = put(fd, *pos, seed_up) && take(fd, *pos, seed_down);
  return ok;
}
bool answer_pieces(int fd, uint64_t* pos, int n) {
  bool ok = true;
  for (; n && ok; --n, *pos += piece) ok = take(fd, *pos, seed_up) && put(fd, *pos, seed_down);
  return ok;
}
// Both ends here.
bool here(wire& w, int n) {
  bool ok = true;
  for (; n && ok; --n, w.pos += piece)
    ok = put(w.a, w.pos, seed_up) && take(w.b, w.pos, seed_up) && put(w.b, w.pos, seed_down) && take(w.a, w.pos, seed_down);
  return ok;
}
void finish(wire& w, pid_t pid, const char* who) {
  shutdown(w.a, SHUT_WR);
  show_recv("end", w.a, 1);
  reap(pid, who);
}
// A child's end of the story: it answers n pieces, sees the end and exits.
[[noreturn]] void serve(wire& w, int n, bool orderly = true) {
  close(w.a);
  bool ok = answer_pieces(w.b, &w.pos, n);
  char c;
  ok = ok && recv(w.b, &c, 1, 0) == 0;
  if (orderly) exit(ok ? 0 : 1);
  _exit(ok ? 0 : 1);
}
int make_pair(int us[2]) {
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, us)) give_up("socketpair");
  return 0;
}

// The parent accepts and closes, the child serves.
void fork_per_connection(duo&) {
  for (int i = 0; i < 4; i++) {
    wire w;
    pid_t pid = fork();
    if (pid == 0) serve(w, 3000, i & 1);
    close(std::exchange(w.b, -1));
    ask("served", ask_pieces(w.a, &w.pos, 3000));
    finish(w, pid, "child");
  }
}

// A few bytes by the parent before the fork, a few after it while the child waits, then the child alone.
void parent_greets(duo&) {
  for (int before : {0, 3, 40}) {
    for (int after : {0, 2, 40}) {
      wire w;
      bool ok = here(w, before);
      int go[2];
      if (pipe(go)) give_up("pipe");
      pid_t pid = fork();
      if (pid == 0) {
        char c;
        close(go[1]);
        if (read(go[0], &c, 1) != 1) _exit(3);
        w.pos += static_cast<uint64_t>(after) * piece;
        serve(w, 2000);
      }
      close(go[0]);
      ok &= here(w, after);
      close(std::exchange(w.b, -1));
      if (write(go[1], "g", 1) != 1) give_up("write");
      ok &= ask_pieces(w.a, &w.pos, 2000);
      ask("every byte in its place", ok);
      finish(w, pid, "child");
      close(go[1]);
    }
  }
}

// The child keeps its copy for a while and leaves without having used it; or after having used it, in order or killed; or becomes another program.
void child_leaves(duo&) {
  for (const char* how : {"_exit", "exit", "killed", "used, _exit", "used, exit", "used, killed", "closes", "used, closes", "execs", "execs, close on exec"}) {
    wire w;
    bool ok = here(w, 5);
    int go[2];
    if (pipe(go)) give_up("pipe");
    pid_t pid = fork();
    if (pid == 0) {
      close(go[1]);
      close(w.a);
      if (strstr(how, "used") && !answer_pieces(w.b, &w.pos, 20)) _exit(4);
      char c;
      if (strstr(how, "closes")) close(w.b);
      if (strstr(how, "close on exec")) fcntl(w.b, F_SETFD, FD_CLOEXEC);
      if (strstr(how, "execs")) execl("/bin/cat", "cat", nullptr);   // its standard input ends at once
      if (read(go[0], &c, 1) < 0) _exit(3);
      if (strstr(how, "killed")) raise(SIGKILL);
      if (strstr(how, "_exit")) _exit(0);
      exit(0);
    }
    close(go[0]);
    if (strstr(how, "used")) ok &= ask_pieces(w.a, &w.pos, 20);
    ok &= here(w, 200);
    close(go[1]);
    say("%s", how);
    reap(pid, "child");
    ok &= here(w, 1000);
    nap_us(15000);
    ok &= here(w, 1000);
    ask("every byte in its place", ok);
    say("poll %s", mask_text(poll_now(w.a)).c_str());
  }
}

// Parent, child and grandchild serve in turn; each closes when it has handed over.
void chain(duo&) {
  wire w;
  bool ok = here(w, 7);
  pid_t pid = fork();
  if (pid == 0) {
    close(std::exchange(w.a, -1));
    ok = answer_pieces(w.b, &w.pos, 9);
    pid_t next = fork();
    if (next == 0) {
      ok = answer_pieces(w.b, &w.pos, 2000);
      char c;
      exit(ok && recv(w.b, &c, 1, 0) == 0 ? 0 : 1);
    }
    close(w.b);
    int st = -1;
    waitpid(next, &st, 0);
    exit(ok && st == 0 ? 0 : 1);
  }
  close(std::exchange(w.b, -1));
  ask("every byte in its place", ok && ask_pieces(w.a, &w.pos, 2009));
  finish(w, pid, "child");
}

// Both keep it and take turns, piece by piece.
void turns(duo&) {
  wire w;
  int down[2], up[2];
  if (pipe(down) || pipe(up)) give_up("pipe");
  pid_t pid = fork();
  if (pid == 0) {
    close(w.a), close(down[1]), close(up[0]);
    bool ok = true;
    uint64_t at;
    while (read(down[0], &at, sizeof at) == sizeof at) {
      ok &= answer_pieces(w.b, &at, 5);
      if (write(up[1], &at, sizeof at) != sizeof at) _exit(5);
    }
    exit(ok ? 0 : 1);
  }
  close(down[0]), close(up[1]);
  bool ok = true;
  for (int i = 0; i < 50; i++) {
    ok &= here(w, 5);
    if (write(down[1], &w.pos, sizeof w.pos) != sizeof w.pos) give_up("write");
    ok &= ask_pieces(w.a, &w.pos, 5);
    uint64_t at = 0;
    ok &= read(up[0], &at, sizeof at) == sizeof at && at == w.pos;
  }
  ask("every byte in its place", ok);
  close(down[1]), close(up[0]);
  reap(pid, "child");
}

// Two threads fork at the same time, each for a connection of its own; each child has a copy of both.
void two_forks(duo&) {
  bool good = true;
  for (int round = 0; round < 10; round++) {
    wire w[2];
    bool ok[2] = {};
    int status[2] = {-1, -1};
    auto one = [&](int i) {
      pid_t pid = fork();
      if (pid == 0) {
        close(w[1 - i].a), close(w[1 - i].b);
        close(w[i].a);
        bool fine = answer_pieces(w[i].b, &w[i].pos, 300);
        _exit(fine ? 0 : 1);
      }
      ok[i] = ask_pieces(w[i].a, &w[i].pos, 300);
      waitpid(pid, &status[i], 0);
    };
    std::thread t(one, 0);
    one(1);
    t.join();
    good &= ok[0] && ok[1] && status[0] == 0 && status[1] == 0;
    good &= here(w[0], 300) && here(w[1], 300);
  }
  ask("every byte in its place", good);
}

// A front end accepts, reads a little, and hands the connection to a worker that was there before.
void handed_over(duo&) {
  for (int used : {0, 4, 30}) {
    int us[2];
    make_pair(us);
    pid_t pid = fork();
    if (pid == 0) {
      close(us[0]);
      int fd = take_fd(us[1]);
      uint64_t pos = static_cast<uint64_t>(used) * piece;
      bool ok = fd >= 0 && answer_pieces(fd, &pos, 2000);
      char c;
      exit(ok && recv(fd, &c, 1, 0) == 0 ? 0 : 1);
    }
    close(us[1]);
    wire w;
    bool ok = here(w, used);
    if (pass_fd(us[0], w.b) != 1) give_up("pass");
    close(std::exchange(w.b, -1));
    ask("every byte in its place", ok && ask_pieces(w.a, &w.pos, 2000));
    finish(w, pid, "worker");
    close(us[0]);
  }
}

// Sent and never received; not sent at all; looked at before it is received; received twice. The sender goes on.
void handed_in_vain(duo&) {
  for (const char* how : {"never received", "refused", "peeked", "sent twice"}) {
    wire w;
    bool ok = here(w, 3);
    int us[2], got[2] = {-1, -1};
    make_pair(us);
    if (!strcmp(how, "refused")) close(us[1]);
    say("%s: %zd", how, pass_fd(us[0], w.b, MSG_NOSIGNAL));
    if (!strcmp(how, "sent twice")) pass_fd(us[0], w.b);
    if (!strcmp(how, "peeked")) got[0] = take_fd(us[1], MSG_PEEK), got[1] = take_fd(us[1]);
    if (!strcmp(how, "sent twice")) got[0] = take_fd(us[1]), got[1] = take_fd(us[1]);
    ok &= here(w, 100);
    for (int& fd : got)
      if (fd >= 0) {
        std::swap(w.b, fd);
        ok &= here(w, 300);
        std::swap(w.b, fd);
      }
    ok &= here(w, 100);
    ask("every byte in its place", ok);
    for (int fd : got)
      if (fd >= 0) close(fd);
    close(us[0]);
    if (strcmp(how, "refused")) close(us[1]);
    ok &= here(w, 500);
    ask("and afterwards", ok);
  }
}

// A listener that another program opened: what is accepted from it is new, and the acceptor's alone.
int accept_on(int l) {
  int fd = accept(l, nullptr, nullptr);
  uint64_t pos = 0;
  bool ok = fd >= 0 && answer_pieces(fd, &pos, 2000);
  char c;
  return ok && recv(fd, &c, 1, 0) == 0 ? 0 : 1;
}
void inherited_listener(duo&) {
  int l = listen_on();
  pid_t pid = fork();
  if (pid == 0) {
    std::string n = std::to_string(l);
    execl("/proc/self/exe", "holders", "--accept-on", n.c_str(), nullptr);
    _exit(9);
  }
  int fd = connect_to(port_of(l));
  close(l);
  uint64_t pos = 0;
  ask("every byte in its place", ask_pieces(fd, &pos, 2000));
  shutdown(fd, SHUT_WR);
  show_recv("end", fd, 1);
  reap(pid, "new program");
  close(fd);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && !strcmp(argv[1], "--accept-on")) return accept_on(atoi(argv[2]));
  return run_all(argc, argv,
                 {{"fork_per_connection", fork_per_connection}, {"parent_greets", parent_greets}, {"child_leaves", child_leaves}, {"chain", chain},
                  {"turns", turns}, {"two_forks", two_forks}, {"handed_over", handed_over}, {"handed_in_vain", handed_in_vain},
                  {"inherited_listener", inherited_listener}});
}
