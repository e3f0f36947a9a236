// No signal is sent here, so no call may come back with EINTR, or before its time: what the library does inside must not be felt outside. Sets are asked in
// vain often enough that icepath opens an io_uring for them, and closed again in different ways; the end of a ring would interrupt the next wait in the
// kernel of the thread that had opened it, some 20 ms later.
#include <linux/futex.h>
#include <sys/eventfd.h>
#include <sys/sem.h>
#include <sys/syscall.h>

#include "common.hpp"

namespace {

constexpr long wait_ms = 120;

// A set with a promoted connection and a pipe, asked in vain.
struct asked_set {
  int ep = epoll_create1(EPOLL_CLOEXEC), p[2];
  explicit asked_set(int fd) {
    if (ep < 0 || pipe2(p, O_CLOEXEC) < 0) give_up("epoll_create1 or pipe2");
    epoll_event e{EPOLLIN, {.u64 = 1}};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) < 0) give_up("EPOLL_CTL_ADD");
    e.data.u64 = 2;
    if (epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &e) < 0) give_up("EPOLL_CTL_ADD");
  }
  asked_set(const asked_set&) = delete;
  asked_set& operator=(const asked_set&) = delete;
  ~asked_set() {
    done();
    close(p[0]), close(p[1]);
  }
  void ask_in_vain() {
    epoll_event e;
    for (int i = 0; i < 80; i++)
      if (int n = epoll_wait(ep, &e, 1, 0)) give_up("the set is not at rest"), (void)n;
  }
  void done() {
    if (ep >= 0) close(std::exchange(ep, -1));
  }
};

// r of a call that lasts wait_ms when nothing disturbs it; early: it did not.
void lasts(const char* what, const std::function<long()>& call) {
  long began = now_ms(), r = call();
  std::string text = res(r);
  say("%s: %s%s", what, text.c_str(), now_ms() - began < wait_ms - 2 ? ", early" : "");
}

struct wait_kind {
  const char* name;
  std::function<long()> call;
};

std::vector<wait_kind> waits(int sock, int listener) {
  timeval tv{0, wait_ms * 1000};
  setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
  setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
  static const timespec ts{0, wait_ms * 1000000};
  return {
    {"epoll_wait", [] {
       int ep = epoll_create1(0);
       epoll_event e;
       int r = epoll_wait(ep, &e, 1, wait_ms), err = errno;
       close(ep);
       errno = err;
       return static_cast<long>(r);
     }},
    {"poll", [] { return static_cast<long>(poll(nullptr, 0, wait_ms)); }},
    {"ppoll", [] {
       timespec t = ts;
       return static_cast<long>(ppoll(nullptr, 0, &t, nullptr));
     }},
    {"select", [] {
       timeval t{0, wait_ms * 1000};
       return static_cast<long>(select(0, nullptr, nullptr, nullptr, &t));
     }},
    {"nanosleep", [] { return static_cast<long>(nanosleep(&ts, nullptr)); }},
    {"recv with SO_RCVTIMEO", [sock] {
       char c;
       return static_cast<long>(recv(sock, &c, 1, 0));
     }},
    {"accept with SO_RCVTIMEO", [listener] { return static_cast<long>(accept(listener, nullptr, nullptr)); }},
    {"sigtimedwait", [] {
       sigset_t s;
       sigemptyset(&s), sigaddset(&s, SIGUSR1);
       return static_cast<long>(sigtimedwait(&s, nullptr, &ts));
     }},
    {"futex", [] {
       static int word = 0;
       return static_cast<long>(syscall(SYS_futex, &word, FUTEX_WAIT, 0, &ts, nullptr, 0));
     }},
    {"semtimedop", [] {
       int id = semget(IPC_PRIVATE, 1, 0600);
       sembuf op{0, -1, 0};
       long r = semtimedop(id, &op, 1, &ts);
       int err = errno;
       semctl(id, 0, IPC_RMID);
       errno = err;
       return r;
     }},
  };
}

// The thread closes its set and waits.
void closed_by_its_thread(duo&) {
  pair_of p, quiet(false);
  int l = listen_on();
  for (const wait_kind& w : waits(quiet.a, l)) {
    asked_set s(p.a);
    s.ask_in_vain();
    s.done();
    lasts(w.name, w.call);
  }
  close(l);
}

// Another thread closes it, or is the last that uses it.
void closed_by_another(duo&) {
  pair_of p, quiet(false);
  int l = listen_on();
  for (const wait_kind& w : waits(quiet.a, l)) {
    asked_set s(p.a);
    s.ask_in_vain();
    std::thread([&] { s.done(); }).join();
    lasts(w.name, w.call);
  }
  close(l);
}

// Its number is taken for something else.
void replaced(duo&) {
  pair_of p, quiet(false);
  int l = listen_on(), e = eventfd(0, EFD_CLOEXEC);
  for (const wait_kind& w : waits(quiet.a, l)) {
    asked_set s(p.a);
    s.ask_in_vain();
    dup2(e, s.ep);
    lasts(w.name, w.call);
  }
  close(l), close(e);
}

// A set outlives the thread that has asked it; another one asks without waiting.
void outlives(duo&) {
  for (int round = 0; round < 3; round++) {
    pair_of p;
    asked_set s(p.a);
    std::thread([&] { s.ask_in_vain(); }).join();
    s.ask_in_vain();
    if (write(s.p[1], "x", 1) != 1) give_up("write");
    epoll_event e{};
    bool seen = until([&] { return epoll_wait(s.ep, &e, 1, 0) == 1; }, 2000);
    say("pipe of a set whose thread is gone: %s", seen && e.data.u64 == 2 ? "seen" : "not seen");
    char c;
    if (read(s.p[0], &c, 1) != 1) give_up("read");
    s.ask_in_vain();
    lasts("afterwards poll", [] { return static_cast<long>(poll(nullptr, 0, wait_ms)); });
  }
}

// One thread asks while others that never asked, or ask in turn, come and go: every event is seen by whoever asks.
void in_turn(duo&) {
  pair_of p;
  asked_set s(p.a);
  int seen = 0;
  for (int i = 0; i < 20; i++) {
    auto one = [&] {
      s.ask_in_vain();
      if (write(s.p[1], "x", 1) != 1) give_up("write");
      epoll_event e{};
      if (until([&] { return epoll_wait(s.ep, &e, 1, 0) == 1; }, 2000) && e.data.u64 == 2) seen++;
      char c;
      if (read(s.p[0], &c, 1) != 1) give_up("read");
    };
    if (i % 3 == 2) one();
    else std::thread(one).join();
  }
  say("seen %d of 20", seen);
}

int descriptors() {
  int n = 0;
  for (int fd = 0; fd < 4096; fd++) n += fcntl(fd, F_GETFD) >= 0;
  return n;
}

// Sets that come and go leave nothing behind, and a set in a new place tells nothing of an old one.
void many(duo&) {
  pair_of p;
  int before = 0, wrong = 0;
  for (int i = 0; i < 200; i++) {
    asked_set s(p.a);
    if (i % 4 == 3) std::thread([&] { s.ask_in_vain(); }).join();
    else s.ask_in_vain();
    if (write(s.p[1], "x", 1) != 1) give_up("write");
    epoll_event e[2] = {};
    if (!until([&] { return epoll_wait(s.ep, e, 2, 0) == 1; }, 2000) || e[0].data.u64 != 2) wrong++;
    if (i % 5 == 4) std::thread([&] { s.done(); }).join();
    if (i == 20) before = descriptors();
  }
  say("wrong %d, descriptors %s", wrong, descriptors() <= before + 3 ? "steady" : "more and more");
  lasts("poll", [] { return static_cast<long>(poll(nullptr, 0, wait_ms)); });
}

// Two sets at a time in one thread, closed in either order, one of them in a child that does nothing with it.
void beside(duo&) {
  pair_of p;
  for (int order = 0; order < 2; order++) {
    asked_set a(p.a), b(p.a);
    a.ask_in_vain(), b.ask_in_vain();
    (order ? a : b).done();
    lasts("one closed", [] { return static_cast<long>(poll(nullptr, 0, wait_ms)); });
    epoll_event e;
    lasts("the other waits", [&] { return static_cast<long>(epoll_wait((order ? b : a).ep, &e, 1, wait_ms)); });
    if (write((order ? b : a).p[1], "x", 1) != 1) give_up("write");
    ask("the other sees", epoll_wait((order ? b : a).ep, &e, 1, 2000) == 1 && e.data.u64 == 2);
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run_all(argc, argv, {{"own", closed_by_its_thread}, {"another", closed_by_another}, {"replaced", replaced}, {"outlives", outlives},
                              {"in_turn", in_turn}, {"many", many}, {"beside", beside}});
}
