// A program as the library meets it: run with LD_PRELOAD over the counting socket layer, once per lane.
#include "host.hpp"
#include <aio.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <string>
#include <vector>

namespace {

std::string home(const char* symbol) {
  Dl_info i{};
  void* const p = dlsym(RTLD_DEFAULT, symbol);
  return p && dladdr(p, &i) ? i.dli_fname : "";
}

volatile sig_atomic_t pipes;
void on_pipe(int) { pipes = pipes + 1; }

struct broken : pair_of_sockets {      // a's peer has reset the connection
  broken() {
    signal(SIGPIPE, on_pipe);
    const linger l{1, 0};
    setsockopt(b, SOL_SOCKET, SO_LINGER, &l, sizeof l);
    close(b);
    char c;
    (void)!recv(a, &c, 1, 0);
    pipes = 0;
  }
};

TEST(preload, our_symbols_come_first) {
  for (const char* s : {"read", "__read_chk", "send", "poll", "epoll_wait", "close", "vfork", "syscall", "fcntl64"})
    EXPECT_NE(std::string::npos, home(s).find("libicepath")) << s << " is in " << home(s);
}

TEST(preload, allocator_is_the_hosts_own) {
  for (const char* s : {"malloc", "free", "calloc", "realloc", "posix_memalign", "aligned_alloc"})
    EXPECT_NE(std::string::npos, home(s).find("libc.so")) << s << " is in " << home(s);
  for (const char* s : {"_Znwm", "_Znam", "_ZdlPv", "_ZdaPv", "_ZnwmSt11align_val_t", "__cxa_throw", "__gxx_personality_v0"})
    EXPECT_NE(std::string::npos, home(s).find("libstdc++.so")) << s << " is in " << home(s);
}

TEST(preload, data_calls_reach_the_socket_layer_once) {
  pair_of_sockets p;
  char buf[64] = "0123456789";
  iovec v[2] = {{buf, 4}, {buf + 4, 6}};
  msghdr h{};
  h.msg_iov = v;
  h.msg_iovlen = 2;
  const int before = count(sends);
  EXPECT_EQ(10, send(p.a, buf, 10, 0));
  EXPECT_EQ(10, write(p.a, buf, 10));
  EXPECT_EQ(10, writev(p.a, v, 2));
  EXPECT_EQ(10, sendmsg(p.a, &h, 0));
  EXPECT_EQ(10, sendto(p.a, buf, 10, 0, nullptr, 0));
  EXPECT_EQ(10, pwritev2(p.a, v, 2, -1, 0));
  EXPECT_EQ(10, syscall(SYS_write, p.a, buf, 10));
  EXPECT_EQ(7, count(sends) - before);

  const int before_recv = count(recvs);
  errno = 77;
  EXPECT_EQ(10, recv(p.b, buf, 10, MSG_WAITALL));
  EXPECT_EQ(77, errno);
  EXPECT_EQ(10, read(p.b, buf, 10));
  EXPECT_EQ(10, readv(p.b, v, 2));
  h.msg_flags = -1;
  EXPECT_EQ(10, recvmsg(p.b, &h, 0));
  EXPECT_EQ(0, h.msg_flags);
  EXPECT_EQ(v, h.msg_iov);
  EXPECT_EQ(10, recvfrom(p.b, buf, 10, 0, nullptr, nullptr));
  EXPECT_EQ(10, preadv2(p.b, v, 2, -1, 0));
  EXPECT_EQ(10, syscall(SYS_read, p.b, buf, 10));
  EXPECT_EQ(7, count(recvs) - before_recv);
  EXPECT_EQ(0, memcmp(buf, "0123456789", 10));
  EXPECT_EQ(77, errno);
}

TEST(preload, positioned_io_on_a_socket_is_espipe) {
  pair_of_sockets p;
  char c = 0;
  iovec v{&c, 1};
  EXPECT_EQ(-1, pread(p.a, &c, 1, 0));
  EXPECT_EQ(ESPIPE, errno);
  EXPECT_EQ(-1, pwrite(p.a, &c, 1, 0));
  EXPECT_EQ(ESPIPE, errno);
  EXPECT_EQ(-1, preadv2(p.a, &v, 1, 0, 0));
  EXPECT_EQ(ESPIPE, errno);
}

TEST(preload, reading_nothing_does_not_wait) {
  pair_of_sockets p;
  char c;
  iovec v{&c, 0};
  EXPECT_EQ(0, read(p.a, &c, 0));
  EXPECT_EQ(0, readv(p.a, &v, 1));
  EXPECT_EQ(-1, readv(p.a, &v, -1));
  EXPECT_EQ(EINVAL, errno);
}

TEST(preload, many_messages_in_one_call) {
  pair_of_sockets p;
  char buf[3][4] = {"abc", "def", "ghi"}, in[3][3];
  iovec v[3], w[3];
  mmsghdr m[3]{}, n[3]{};
  for (int i = 0; i < 3; ++i) {
    v[i] = {buf[i], 3};
    w[i] = {in[i], 3};
    m[i].msg_hdr.msg_iov = &v[i];
    n[i].msg_hdr.msg_iov = &w[i];
    m[i].msg_hdr.msg_iovlen = n[i].msg_hdr.msg_iovlen = 1;
  }
  EXPECT_EQ(3, sendmmsg(p.a, m, 3, 0));
  EXPECT_EQ(3u, m[2].msg_len);
  timespec t{5, 0};
  EXPECT_EQ(3, recvmmsg(p.b, n, 3, MSG_WAITFORONE, &t));
  EXPECT_EQ(0, memcmp(in, "abcdefghi", 9));
  EXPECT_EQ(-1, recvmmsg(p.b, n, 3, MSG_DONTWAIT, nullptr));
  EXPECT_EQ(EAGAIN, errno);
}

TEST(preload, sigpipe_comes_exactly_once) {
  broken p;
  char c = 0;
  iovec v{&c, 1};
  msghdr h{};
  h.msg_iov = &v;
  h.msg_iovlen = 1;
  mmsghdr mm{h, 0};
  const int in = memfd_create("f", 0);
  EXPECT_EQ(1, write(in, &c, 1));
  off_t at = 0;
  const auto broke = [&](ssize_t r) { return r == -1 && errno == EPIPE; };
  EXPECT_TRUE(broke(send(p.a, &c, 1, 0))); EXPECT_EQ(1, pipes);
  EXPECT_TRUE(broke(write(p.a, &c, 1))); EXPECT_EQ(2, pipes);
  EXPECT_TRUE(broke(writev(p.a, &v, 1))); EXPECT_EQ(3, pipes);
  EXPECT_TRUE(broke(sendmsg(p.a, &h, 0))); EXPECT_EQ(4, pipes);
  EXPECT_TRUE(broke(sendto(p.a, &c, 1, 0, nullptr, 0))); EXPECT_EQ(5, pipes);
  EXPECT_TRUE(broke(sendmmsg(p.a, &mm, 1, 0))); EXPECT_EQ(6, pipes);
  EXPECT_TRUE(broke(sendfile(p.a, in, &at, 1))); EXPECT_EQ(7, pipes);
  EXPECT_TRUE(broke(send(p.a, &c, 1, MSG_NOSIGNAL)));
  EXPECT_TRUE(broke(sendmsg(p.a, &h, MSG_NOSIGNAL)));
  EXPECT_TRUE(broke(sendmmsg(p.a, &mm, 1, MSG_NOSIGNAL)));
  EXPECT_EQ(7, pipes);
  close(in);
}

// ---- cancellation: the unwinder must pass through the wrapper and the socket layer

struct blocked {
  pair_of_sockets p;
  int ep = epoll_create1(0);
  int how;
};
void* block(void* arg) {
  blocked& b = *static_cast<blocked*>(arg);
  char c;
  iovec v{&c, 1};
  msghdr h{};
  h.msg_iov = &v;
  h.msg_iovlen = 1;
  mmsghdr mm{h, 0};
  pollfd f{b.p.b, POLLIN, 0};
  fd_set s;
  FD_ZERO(&s);
  FD_SET(b.p.b, &s);
  epoll_event e{EPOLLIN, {}};
  epoll_ctl(b.ep, EPOLL_CTL_ADD, b.p.b, &e);
  switch (b.how) {
    case 0: recv(b.p.b, &c, 1, 0); break;
    case 1: (void)!read(b.p.b, &c, 1); break;
    case 2: recvmsg(b.p.b, &h, 0); break;
    case 3: accept(b.p.listener, nullptr, nullptr); break;
    case 4: poll(&f, 1, -1); break;
    case 5: ppoll(&f, 1, nullptr, nullptr); break;
    case 6: select(b.p.b + 1, &s, nullptr, nullptr, nullptr); break;
    case 7: epoll_wait(b.ep, &e, 1, -1); break;
    case 8: recvmmsg(b.p.b, &mm, 1, 0, nullptr); break;
    case 9: (void)!readv(b.p.b, &v, 1); break;
    case 10: recvfrom(b.p.b, &c, 1, 0, nullptr, nullptr); break;
    case 11: accept4(b.p.listener, nullptr, nullptr, 0); break;
    case 12: pselect(b.p.b + 1, &s, nullptr, nullptr, nullptr, nullptr); break;
  }
  return nullptr;
}
class cancelled : public testing::TestWithParam<int> {};
TEST_P(cancelled, blocked_call_unwinds) {
  blocked b;
  b.how = GetParam();
  pthread_t t;
  ASSERT_EQ(0, pthread_create(&t, nullptr, block, &b));
  usleep(20000);
  ASSERT_EQ(0, pthread_cancel(t));
  void* r;
  ASSERT_EQ(0, pthread_join(t, &r));
  EXPECT_EQ(PTHREAD_CANCELED, r);
  close(b.ep);
}
INSTANTIATE_TEST_SUITE_P(preload, cancelled, testing::Range(0, 13));

// ---- waiting

TEST(preload, foreign_sets_stay_with_libc) {
  int pipefd[2];
  ASSERT_EQ(0, pipe(pipefd));
  const int before = count(muxes);
  pollfd f{pipefd[0], POLLIN, 0};
  EXPECT_EQ(0, poll(&f, 1, 0));
  EXPECT_EQ(-1, poll(nullptr, ~0u, 0));
  EXPECT_EQ(EINVAL, errno);
  fd_set s;
  FD_ZERO(&s);
  FD_SET(pipefd[0], &s);
  timeval tv{0, 1000};
  EXPECT_EQ(0, select(pipefd[0] + 1, &s, nullptr, nullptr, &tv));
  EXPECT_EQ(before, count(muxes));
  close(pipefd[0]);
  close(pipefd[1]);
}

TEST(preload, sets_with_ours_go_to_the_socket_layer) {
  pair_of_sockets p;
  std::vector<pollfd> many(100, pollfd{-1, POLLIN, 0});
  many[99] = {p.b, POLLIN | POLLOUT, 0};
  const int before = count(muxes);
  EXPECT_EQ(1, poll(many.data(), many.size(), 1000));
  EXPECT_EQ(POLLOUT, many[99].revents);
  fd_set s;
  FD_ZERO(&s);
  FD_SET(p.b, &s);
  timeval tv{0, 30000};
  EXPECT_EQ(0, select(p.b + 1, &s, nullptr, nullptr, &tv));
  EXPECT_EQ(0, tv.tv_sec + tv.tv_usec);
  FD_SET(p.b, &s);
  tv = {1000, 0};
  EXPECT_EQ(1, select(p.b + 1, nullptr, &s, nullptr, &tv));
  EXPECT_GE(tv.tv_sec, 990);
  EXPECT_LE(tv.tv_sec, 999);
  tv = {0, -1};
  EXPECT_EQ(-1, select(p.b + 1, nullptr, &s, nullptr, &tv));
  EXPECT_EQ(EINVAL, errno);
  const timespec bad{0, 1000000000};
  EXPECT_EQ(-1, ppoll(many.data(), many.size(), &bad, nullptr));
  EXPECT_EQ(EINVAL, errno);
  const int ep = epoll_create1(EPOLL_CLOEXEC);
  epoll_event e{EPOLLOUT, {.fd = p.b}};
  EXPECT_EQ(0, epoll_ctl(ep, EPOLL_CTL_ADD, p.b, &e));
  EXPECT_EQ(-1, epoll_ctl(ep, EPOLL_CTL_ADD, p.b, &e));
  EXPECT_EQ(EEXIST, errno);
  EXPECT_EQ(1, epoll_wait(ep, &e, 1, 0));
  EXPECT_EQ(1, syscall(SYS_epoll_pwait, ep, &e, 1, 0, nullptr, 8));
  close(ep);
  EXPECT_EQ(before + 5, count(muxes));
}

// ---- files and stdio

TEST(preload, sendfile_moves_what_it_sent) {
  pair_of_sockets p;
  const int in = memfd_create("f", 0);
  std::string data(300000, 0), got;
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 31 >> 3);
  ASSERT_EQ(static_cast<ssize_t>(data.size()), write(in, data.data(), data.size()));
  fcntl(p.a, F_SETFL, O_NONBLOCK);
  off_t at = 1000;
  char buf[65536];
  const auto drain = [&] {
    for (ssize_t r; (r = recv(p.b, buf, sizeof buf, MSG_DONTWAIT)) > 0;) got.append(buf, r);
  };
  while (at < static_cast<off_t>(data.size())) {
    const off_t before = at;
    const ssize_t r = sendfile(p.a, in, &at, 1 << 20);
    if (r < 0) { EXPECT_EQ(EAGAIN, errno); EXPECT_EQ(before, at); }
    else EXPECT_EQ(before + r, at);
    usleep(1000);
    drain();
  }
  for (int i = 0; i < 100 && got.size() < data.size() - 1000; ++i) { usleep(1000); drain(); }
  EXPECT_EQ(data.substr(1000), got);
  EXPECT_EQ(0, sendfile(p.a, in, &at, 10));                      // end of file
  lseek(in, 5, SEEK_SET);
  EXPECT_EQ(7, sendfile(p.a, in, nullptr, 7));
  EXPECT_EQ(12, lseek(in, 0, SEEK_CUR));
  EXPECT_EQ(-1, sendfile(p.a, -1, nullptr, 7));
  EXPECT_EQ(EBADF, errno);
  at = -1;
  EXPECT_EQ(-1, sendfile(p.a, in, &at, 7));
  EXPECT_EQ(EINVAL, errno);
  close(in);
}

TEST(preload, stdio_takes_the_socket_out_of_our_hands) {
  pair_of_sockets p;
  const int fd = dup(p.a), before = count(demotes);
  errno = 77;
  FILE* const f = fdopen(fd, "w");
  EXPECT_EQ(77, errno);
  EXPECT_EQ(before + 1, count(demotes));
  fputs("hello", f);
  fclose(f);
  char buf[16];
  EXPECT_EQ(5, recv(p.b, buf, sizeof buf, 0));
  const int null = open("/dev/null", O_RDONLY);
  EXPECT_EQ(fd, null) << "the number is free again";
  const int r = count(recvs);
  EXPECT_EQ(0, read(null, buf, 1));
  EXPECT_EQ(r, count(recvs)) << "a file was taken for the socket that had its number";
  close(null);
  EXPECT_EQ(3, dprintf(p.a, "%d", 123));
  EXPECT_EQ(3, recv(p.b, buf, sizeof buf, 0));
}

TEST(preload, passing_a_descriptor_demotes_it) {
  pair_of_sockets p;
  int u[2];
  ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, u));
  alignas(cmsghdr) char room[CMSG_SPACE(sizeof(int))];
  char c = 0;
  iovec v{&c, 1};
  msghdr h{nullptr, 0, &v, 1, room, sizeof room, 0};
  cmsghdr* const cm = CMSG_FIRSTHDR(&h);
  *cm = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
  memcpy(CMSG_DATA(cm), &p.a, sizeof(int));
  const int before = count(demotes);
  EXPECT_EQ(1, sendmsg(u[0], &h, 0));
  EXPECT_EQ(before + 1, count(demotes));
  close(u[0]);
  close(u[1]);
}

// ---- bad addresses

TEST(preload, bad_addresses_are_efault) {
  pair_of_sockets p;
  char* const bad = static_cast<char*>(mmap(nullptr, 1 << 16, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  const auto efault = [](ssize_t r) { return r == -1 && errno == EFAULT; };
  EXPECT_TRUE(efault(readv(p.a, reinterpret_cast<iovec*>(bad), 2)));
  EXPECT_TRUE(efault(writev(p.a, reinterpret_cast<iovec*>(bad), 20)));
  EXPECT_TRUE(efault(sendmsg(p.a, reinterpret_cast<msghdr*>(bad), 0)));
  EXPECT_TRUE(efault(recvmsg(p.a, reinterpret_cast<msghdr*>(bad), 0)));
  EXPECT_TRUE(efault(sendmmsg(p.a, reinterpret_cast<mmsghdr*>(bad), 1, 0)));
  EXPECT_TRUE(efault(recvmmsg(p.a, reinterpret_cast<mmsghdr*>(bad), 1, 0, nullptr)));
  EXPECT_TRUE(efault(poll(reinterpret_cast<pollfd*>(bad), 1, 0)));
  EXPECT_TRUE(efault(select(p.a + 1, reinterpret_cast<fd_set*>(bad), nullptr, nullptr, nullptr)));
  pollfd f{p.a, POLLIN, 0};
  EXPECT_TRUE(efault(ppoll(&f, 1, reinterpret_cast<timespec*>(bad), nullptr)));
  int u[2];
  ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, u));
  EXPECT_TRUE(efault(sendmsg(u[0], reinterpret_cast<msghdr*>(bad), 0)));
  close(u[0]);
  close(u[1]);
  munmap(bad, 1 << 16);
}

volatile sig_atomic_t faults;
sigjmp_buf back;
void on_fault(int) { faults = faults + 1; siglongjmp(back, 1); }

TEST(preload, programs_own_fault_handler_works) {
  char* const bad = static_cast<char*>(mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  EXPECT_EQ(SIG_DFL, signal(SIGSEGV, on_fault));
  struct sigaction now{};
  EXPECT_EQ(0, sigaction(SIGSEGV, nullptr, &now));
  EXPECT_EQ(on_fault, now.sa_handler);
  if (sigsetjmp(back, 1) == 0) *static_cast<volatile char*>(bad) = 1;
  EXPECT_EQ(1, faults);
  pair_of_sockets p;
  EXPECT_EQ(-1, sendmsg(p.a, reinterpret_cast<msghdr*>(bad), 0));
  EXPECT_EQ(EFAULT, errno);
  EXPECT_EQ(1, faults) << "a fault of ours reached the program";
  EXPECT_EQ(on_fault, signal(SIGSEGV, SIG_DFL));
  munmap(bad, 4096);
}

}  // namespace
