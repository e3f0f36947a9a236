// A program that sets a seccomp filter itself, with a connection that is worth promoting before: the filter kills the process at every call that the
// program does not make itself. Each case runs in a child process, which must go on, do the rest of its work and end as on the kernel. The other end
// waits a little before it answers: a thread that is not the program's, if there is one, meets the filter meanwhile.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cstddef>

#include "common.hpp"

namespace {

enum class way { prctl, seccomp, tsync, raw_prctl };

// Only these, and the end of the process. 0, or -1 with errno.
long only(way w, std::initializer_list<long> calls) {
  std::vector<sock_filter> f;
  f.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)));
  auto allow = [&](long nr) {
    f.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(nr), 0, 1));
    f.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  };
  for (long nr : calls) allow(nr);
  allow(SYS_write);   // say()
  allow(SYS_exit_group);
  f.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
  sock_fprog p{static_cast<unsigned short>(f.size()), f.data()};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) give_up("PR_SET_NO_NEW_PRIVS");
  switch (w) {
    case way::prctl: return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p);
    case way::raw_prctl: return syscall(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p, 0, 0);
    case way::seccomp: return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &p);
    case way::tsync: return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &p);
  }
  return -1;
}

const char* name_of(way w) {
  return w == way::prctl ? "prctl" : w == way::raw_prctl ? "syscall(prctl)" : w == way::seccomp ? "seccomp" : "seccomp with TSYNC";
}

// The other end: answers each message of 16 bytes with 16 bytes, a little later, until the end.
void answer(int fd) {
  char b[16];
  while (recv_upto(fd, b, sizeof b) == sizeof b) {
    nap_us(20000);
    if (!send_all(fd, b, sizeof b)) break;
  }
}

// inside: in the child, with a promoted connection; sets the filter and does the rest. `greeting` is sent to it and not read when it begins.
template <class F>
void sandbox(const char* what, way w, const char* greeting, F inside) {
  say("== %s, by %s", what, name_of(w));
  int l = listen_on();
  pid_t pid = fork();
  if (pid < 0) give_up("fork");
  if (pid == 0) {
    int fd = connect_to(port_of(l));
    close(l);
    warm_up_ask(fd);
    if (!wait_unread(fd, static_cast<int>(strlen(greeting)))) give_up("greeting");
    inside(fd);
    _exit(7);
  }
  int fd = accept(l, nullptr, nullptr);
  if (fd < 0) give_up("accept");
  warm_up_answer(fd);
  send_all(fd, greeting, strlen(greeting));
  answer(fd);
  close(fd);
  close(l);
  reap(pid, "child");
}

constexpr char message[] = "sixteen letters.";

void with_read_and_write(way w) {
  sandbox("read and write", w, "", [&](int fd) {
    say("filter: %s", res(only(w, {SYS_read})).c_str());
    char b[17] = {};
    for (int i = 0; i < 5; i++) {
      long sent = write(fd, message, 16), got = read(fd, b, 16);
      say("sent %s, got %s \"%s\"", res(sent).c_str(), res(got).c_str(), b);
    }
  });
}

void with_poll(way w) {
  sandbox("sendto, recvfrom and poll", w, "", [&](int fd) {
    nonblock(fd);
    say("filter: %s", res(only(w, {SYS_sendto, SYS_recvfrom, SYS_poll, SYS_close})).c_str());
    char b[17] = {};
    for (int i = 0; i < 3; i++) {
      SHOW(send(fd, message, 16, MSG_NOSIGNAL));
      SHOW(recv(fd, b, 16, 0));
      pollfd p{fd, POLLIN, 0};
      int n = poll(&p, 1, 5000);
      say("poll %d: %s", n, mask_text(static_cast<uint32_t>(p.revents), true).c_str());
      SHOW(recv(fd, b, 16, 0));
    }
    SHOW(close(fd));
  });
}

// The sets stay what they are: level, edge and oneshot items, and a set inside a set.
void with_epoll(way w) {
  sandbox("epoll", w, "", [&](int fd) {
    int in = epoll_create1(0), out = epoll_create1(0), p[2];
    if (pipe(p) < 0) give_up("pipe");
    epoll_event e{EPOLLIN | EPOLLONESHOT, {.u64 = 1}};
    epoll_ctl(in, EPOLL_CTL_ADD, fd, &e);
    e = {EPOLLIN, {.u64 = 2}};
    epoll_ctl(in, EPOLL_CTL_ADD, p[0], &e);
    e = {EPOLLIN, {.u64 = 3}};
    epoll_ctl(out, EPOLL_CTL_ADD, in, &e);
    auto look = [&](const char* name, int set, int ms) {
      epoll_event got[4] = {};
      int n = epoll_wait(set, got, 4, ms);
      say("%s: %s", name, res(n).c_str());
      for (int i = 0; i < n; i++) say("  %lu %s", static_cast<unsigned long>(got[i].data.u64), mask_text(got[i].events).c_str());
    };
    for (int i = 0; i < 50; i++) {   // long enough asked in vain
      epoll_event none[1];
      epoll_wait(in, none, 1, 0);
    }
    say("filter: %s", res(only(w, {SYS_read, SYS_close, SYS_epoll_ctl,
#ifdef SYS_epoll_wait
                                   SYS_epoll_wait,
#else
                                   SYS_epoll_pwait,
#endif
                                  })).c_str());
    char b[17] = {};
    for (int i = 0; i < 3; i++) {
      SHOW(write(fd, message, 16));
      look("outer", out, 5000);
      look("inner", in, 5000);
      SHOW(read(fd, b, 16));
      e = {EPOLLIN | EPOLLONESHOT, {.u64 = 10}};
      SHOW(epoll_ctl(in, EPOLL_CTL_MOD, fd, &e));
    }
    SHOW(write(p[1], "x", 1));
    look("inner", in, 5000);
    e = {EPOLLIN | EPOLLOUT | static_cast<uint32_t>(EPOLLET), {.u64 = 11}};
    SHOW(epoll_ctl(out, EPOLL_CTL_ADD, fd, &e));
    look("outer", out, 0);
    look("outer", out, 0);
    SHOW(epoll_ctl(in, EPOLL_CTL_DEL, fd, nullptr));
    SHOW(close(out));
    SHOW(close(in));
  });
}

// What has come and was not read, all of it or a part, is read afterwards.
void with_unread(way w) {
  sandbox("unread bytes", w, "what was said before the filter", [&](int fd) {
    show_recv("before", fd, 9);
    say("filter: %s", res(only(w, {SYS_recvfrom})).c_str());
    char b[32] = {};
    long got = recv(fd, b, 31, 0);
    say("after: %s \"%s\"", res(got).c_str(), b);
    say("sent: %s", res(write(fd, message, 16)).c_str());
    got = recv(fd, b, 16, MSG_WAITALL);
    say("answer: %s", res(got).c_str());
  });
}

// Another thread of the program, in a call of its own on the same connection.
void with_threads(way w) {
  sandbox("a second thread", w, "", [&](int fd) {
    int p[2], never[2];
    if (pipe(p) < 0 || pipe(never) < 0) give_up("pipe");
    std::thread other([&] {
      char c;
      if (read(p[0], &c, 1) != 1) give_up("token");
      char b[17] = {};
      long sent = write(fd, message, 16), got = read(fd, b, 16);
      say("the other thread: sent %s, got %s", res(sent).c_str(), res(got).c_str());
      _exit(6);
    });
    nap_us(5000);
    say("filter: %s", res(only(w, {SYS_read})).c_str());
    char b[17] = {};
    long sent = write(fd, message, 16), got = read(fd, b, 16);
    say("this thread: sent %s, got %s", res(sent).c_str(), res(got).c_str());
    if (write(p[1], "x", 1) != 1) _exit(5);
    SHOW(read(never[0], b, 1));   // until the other thread ends the process
  });
}

// A connection made under the filter, which allows what connecting needs.
void with_new_connection(way w) {
  sandbox("a connection made later", w, "", [&](int fd) {
    int l = listen_on(), port = port_of(l);
    say("filter: %s", res(only(w, {SYS_socket, SYS_connect, SYS_accept, SYS_sendto, SYS_recvfrom, SYS_clock_nanosleep, SYS_nanosleep, SYS_close})).c_str());
    int a = connect_to(static_cast<uint16_t>(port)), b = accept(l, nullptr, nullptr);
    warm_up(a, b);
    char c[16];
    SHOW(send(b, message, 16, 0));
    SHOW(recv(a, c, 16, 0));
    SHOW(close(a));
    SHOW(recv(b, c, 16, 0));
    SHOW(send(fd, message, 16, 0));
    SHOW(recv(fd, c, 16, MSG_WAITALL));
    SHOW(close(fd));
  });
}

// Questions about the filter that set none: the connection goes on as it is.
void questions() {
  sandbox("questions", way::prctl, "", [&](int fd) {
    SHOW(prctl(PR_GET_SECCOMP));
    SHOW(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, nullptr));
    SHOW(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, nullptr));
    SHOW(syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 1, nullptr));
    char b[16];
    SHOW(write(fd, message, 16));
    SHOW(recv(fd, b, 16, MSG_WAITALL));
  });
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<test_case> cases;
  auto each = [&](const char* name, void (*body)(way)) {
    cases.push_back({name, [=](duo&) {
                       for (way w : {way::prctl, way::raw_prctl, way::seccomp, way::tsync}) body(w);
                     }});
  };
  each("read_write", with_read_and_write);
  each("poll", with_poll);
  each("epoll", with_epoll);
  each("unread", with_unread);
  each("threads", with_threads);
  each("later", with_new_connection);
  cases.push_back({"questions", [](duo&) { questions(); }});
  return run_all(argc, argv, cases);
}
