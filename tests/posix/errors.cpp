// What wrong arguments answer: bad fds, not sockets, not connected, bad pointers, bad lengths, bad vectors.
#include <sys/mman.h>

#include "common.hpp"

namespace {

char buf[256];

void every_call(int fd) {
  iovec v{buf, 4};
  msghdr m{};
  m.msg_iov = &v, m.msg_iovlen = 1;
  mmsghdr mm{};
  mm.msg_hdr = m;
  sockaddr_in s = loopback(1);
  socklen_t l = sizeof s;
  int one = 1;
  SHOW(send(fd, buf, 4, MSG_DONTWAIT));
  SHOW(sendto(fd, buf, 4, MSG_DONTWAIT, nullptr, 0));
  SHOW(sendmsg(fd, &m, MSG_DONTWAIT));
  SHOW(sendmmsg(fd, &mm, 1, MSG_DONTWAIT));
  SHOW(recv(fd, buf, 4, MSG_DONTWAIT));
  SHOW(recvfrom(fd, buf, 4, MSG_DONTWAIT, nullptr, nullptr));
  SHOW(recvmsg(fd, &m, MSG_DONTWAIT));
  SHOW(recvmmsg(fd, &mm, 1, MSG_DONTWAIT, nullptr));
  SHOW(shutdown(fd, SHUT_RDWR));
  SHOW(listen(fd, -5) == 0 ? 0 : -1);
  SHOW(getsockname(fd, sa(s), &l) == 0 ? 0 : -1);
  l = sizeof s;
  SHOW(getpeername(fd, sa(s), &l) == 0 ? 0 : -1);
  SHOW(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one));
  l = sizeof one;
  SHOW(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, &l));
}

void every_file_call(int fd) {
  iovec v{buf, 4};
  int n = 0;
  SHOW(read(fd, buf, 4));
  SHOW(write(fd, buf, 4));
  SHOW(readv(fd, &v, 1));
  SHOW(writev(fd, &v, 1));
  SHOW(ioctl(fd, FIONREAD, &n));
  SHOW(fcntl(fd, F_GETFL) >= 0 ? 0 : -1);
  SHOW(fcntl(fd, F_GETFD) >= 0 ? 0 : -1);
  SHOW(dup(fd) >= 0 ? 0 : -1);
  SHOW(close(fd));
}

void bad_fds(duo&) {
  for (int fd : {-1, -2, 99999, 1 << 30, INT32_MAX, INT32_MIN}) {
    say("fd %d", fd);
    every_call(fd);
    every_file_call(fd);
    sockaddr_in s = loopback(1);
    SHOW(connect(fd, sa(s), sizeof s));
    SHOW(bind(fd, sa(s), sizeof s));
    SHOW(accept(fd, nullptr, nullptr));
    SHOW(accept4(fd, nullptr, nullptr, SOCK_NONBLOCK));
  }
}

void closed_fd(duo&) {
  pair_of p;
  int was = p.a;
  p.close_a();
  every_call(was);
  every_file_call(was);
}

void not_sockets(duo&) {
  int fds[2];
  if (pipe(fds)) give_up("pipe");
  say("pipe");
  every_call(fds[0]);
  sockaddr_in s = loopback(1);
  SHOW(connect(fds[0], sa(s), sizeof s));
  SHOW(bind(fds[0], sa(s), sizeof s));
  SHOW(accept(fds[0], nullptr, nullptr));
  close(fds[0]), close(fds[1]);
  int f = open("/dev/null", O_RDWR);
  say("/dev/null");
  every_call(f);
  close(f);
}

void not_connected(duo&) {
  say("new socket");
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  SHOW(send(fd, buf, 4, 0));
  SHOW(recv(fd, buf, 4, 0));
  SHOW(read(fd, buf, 4));
  SHOW(write(fd, buf, 4));
  SHOW(shutdown(fd, SHUT_RD));
  SHOW(shutdown(fd, SHUT_WR));
  sockaddr_in s{};
  socklen_t l = sizeof s;
  SHOW(getpeername(fd, sa(s), &l));
  SHOW(accept(fd, nullptr, nullptr));
  say("poll %s", mask_text(poll_now(fd), true).c_str());
  close(fd);
  say("listening socket");
  int ls = listen_on();
  nonblock(ls);
  SHOW(send(ls, buf, 4, 0));
  SHOW(recv(ls, buf, 4, 0));
  SHOW(read(ls, buf, 4));
  SHOW(write(ls, buf, 4));
  l = sizeof s;
  SHOW(getpeername(ls, sa(s), &l));
  SHOW(accept(ls, nullptr, nullptr));
  s = loopback(port_of(ls));
  SHOW(connect(ls, sa(s), sizeof s));
  say("poll %s", mask_text(poll_now(ls), true).c_str());
  SHOW(shutdown(ls, SHUT_RD));
  close(ls);
}

void connected_again(duo&) {
  pair_of p;
  sockaddr_in s = loopback(port_of(p.b));
  SHOW(connect(p.a, sa(s), sizeof s));
  SHOW(connect(p.b, sa(s), sizeof s));
  SHOW(listen(p.a, 5));
  SHOW(bind(p.a, sa(s), sizeof s));
  SHOW(accept(p.a, nullptr, nullptr));
  warm_up(p.a, p.b);
}

// A page that may be used, followed by one that is not there.
char* two_pages() {
  auto* m = static_cast<char*>(mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (m == MAP_FAILED) give_up("mmap");
  memset(m, 'p', 4096);
  munmap(m + 4096, 4096);
  return m;
}

void bad_send_pointers(duo&) {
  pair_of p;
  char* edge = two_pages() + 4096;
  char* bad = reinterpret_cast<char*>(8);
  char* kernel_half = reinterpret_cast<char*>(0xffff800000001000ul);
  SHOW(send(p.a, bad, 10, 0));
  SHOW(send(p.a, kernel_half, 10, 0));
  SHOW(send(p.a, edge, 1, 0));
  SHOW(send(p.a, bad, 0, 0));
  SHOW(write(p.a, bad, 10));
  iovec v[2] = {{bad, 4}, {buf, 4}};
  SHOW(writev(p.a, v, 2));
  SHOW(writev(p.a, reinterpret_cast<iovec*>(8), 2));
  SHOW(sendmsg(p.a, reinterpret_cast<msghdr*>(8), 0));
  msghdr m{};
  m.msg_iov = reinterpret_cast<iovec*>(8), m.msg_iovlen = 1;
  SHOW(sendmsg(p.a, &m, 0));
  SHOW(sendmmsg(p.a, reinterpret_cast<mmsghdr*>(8), 1, 0));
  say("unread at the peer: %d", unread(p.b));
  SHOW(send(p.a, edge - 5, 5, 0));
  wait_unread(p.b, 5);
  show_recv("recv", p.b, 20);
  warm_up(p.a, p.b);
}

// Part of the bytes can be read and part cannot: an error or a short count, and what was counted arrives.
void crossing_send(duo&) {
  pair_of p;
  char* edge = two_pages() + 4096;
  long total = 0;
  for (size_t good : {1u, 100u, 4000u}) {
    ssize_t r = send(p.a, edge - good, good + 100, 0);
    ask("crossing send gives EFAULT or a short count", (r < 0 && errno == EFAULT) || (r > 0 && static_cast<size_t>(r) <= good));
    if (r > 0) total += r;
  }
  char* from = edge - 4096;
  iovec v[2] = {{from, 64}, {edge, 10}};
  ssize_t r = writev(p.a, v, 2);
  ask("good part then bad part gives EFAULT or the good part", (r < 0 && errno == EFAULT) || (r > 0 && r <= 64));
  if (r > 0) total += r;
  send_all(p.a, "!", 1);
  wait_unread(p.b, static_cast<int>(total) + 1);
  std::string got(16384, 0);
  ssize_t n = recv(p.b, got.data(), got.size(), 0);
  ask("what was counted arrived", n == total + 1 && got[static_cast<size_t>(n) - 1] == '!');
  warm_up(p.a, p.b);
}

void bad_recv_pointers(duo&) {
  pair_of p;
  char* edge = two_pages() + 4096;
  char* bad = reinterpret_cast<char*>(8);
  auto* read_only = static_cast<char*>(mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  SHOW(recv(p.b, bad, 4, MSG_DONTWAIT));
  send_all(p.a, "0123456789", 10);
  wait_unread(p.b, 10);
  SHOW(recv(p.b, bad, 4, 0));
  SHOW(recv(p.b, bad, 0, 0));
  SHOW(recv(p.b, bad, 4, MSG_PEEK));
  SHOW(recv(p.b, read_only, 4, 0));
  SHOW(recv(p.b, edge, 4, 0));
  SHOW(read(p.b, bad, 4));
  iovec v[2] = {{bad, 4}, {buf, 4}};
  SHOW(readv(p.b, v, 2));
  SHOW(readv(p.b, reinterpret_cast<iovec*>(8), 2));
  SHOW(recvmsg(p.b, reinterpret_cast<msghdr*>(8), 0));
  msghdr m{};
  m.msg_iov = reinterpret_cast<iovec*>(8), m.msg_iovlen = 1;
  SHOW(recvmsg(p.b, &m, 0));
  SHOW(recvmmsg(p.b, reinterpret_cast<mmsghdr*>(8), 1, MSG_DONTWAIT, nullptr));
  say("unread after all that: %d", unread(p.b));
  SHOW(recv(p.b, edge - 3, 10, 0));
  say("unread after the crossing recv: %d", unread(p.b));
  show_recv("recv", p.b, 20, MSG_DONTWAIT);
  warm_up(p.a, p.b);
}

void bad_other_pointers(duo&) {
  pair_of p;
  auto* bad = reinterpret_cast<sockaddr*>(8);
  auto* badl = reinterpret_cast<socklen_t*>(8);
  sockaddr_in s{};
  socklen_t l = sizeof s;
  SHOW(getsockname(p.a, bad, &l));
  SHOW(getsockname(p.a, sa(s), badl));
  SHOW(getpeername(p.a, bad, &l));
  int v = 0;
  SHOW(setsockopt(p.a, IPPROTO_TCP, TCP_NODELAY, bad, sizeof v));
  l = sizeof v;
  SHOW(getsockopt(p.a, IPPROTO_TCP, TCP_NODELAY, bad, &l));
  SHOW(getsockopt(p.a, IPPROTO_TCP, TCP_NODELAY, &v, badl));
  SHOW(ioctl(p.a, FIONREAD, bad));
  SHOW(ioctl(p.a, FIONBIO, bad));
  SHOW(epoll_wait(-1, nullptr, 1, 0));
  SHOW(poll(reinterpret_cast<pollfd*>(8), 1, 0));
  int ep = epoll_create1(0);
  SHOW(epoll_ctl(ep, EPOLL_CTL_ADD, p.a, reinterpret_cast<epoll_event*>(8)));
  epoll_event e{EPOLLOUT, {}};
  SHOW(epoll_ctl(ep, EPOLL_CTL_ADD, p.a, &e));
  SHOW(epoll_wait(ep, reinterpret_cast<epoll_event*>(8), 1, 0));
  SHOW(epoll_wait(ep, &e, 0, 0));
  SHOW(epoll_wait(ep, &e, -1, 0));
  close(ep);
  warm_up(p.a, p.b);
}

void lengths(duo&) {
  pair_of p;
  SHOW(send(p.a, nullptr, static_cast<size_t>(-1), MSG_DONTWAIT));
  iovec v[2] = {{buf, static_cast<size_t>(-1)}, {buf, 1}};
  SHOW(writev(p.a, v, 1));
  SHOW(readv(p.b, v, 1));
  SHOW(writev(p.a, v, -1));
  SHOW(readv(p.b, v, -1));
  msghdr m{};
  m.msg_iov = v, m.msg_iovlen = 1;
  SHOW(sendmsg(p.a, &m, MSG_DONTWAIT));
  SHOW(recvmsg(p.b, &m, MSG_DONTWAIT));
  say("unread at the peer: %d", unread(p.b));
  warm_up(p.a, p.b);
}

void many_vectors(duo&) {
  pair_of p;
  static char src[2000], dst[2000];
  for (int i = 0; i < 2000; i++) src[i] = static_cast<char>('a' + i % 26);
  std::vector<iovec> out(1025), in(1025);
  for (size_t i = 0; i < out.size(); i++) {
    out[i] = {src + i, 1};
    in[i] = {dst + i, 1};
  }
  msghdr m{}, n{};
  m.msg_iov = out.data(), n.msg_iov = in.data();
  for (size_t count : {1024u, 1025u}) {
    m.msg_iovlen = n.msg_iovlen = count;
    say("%zu vectors", count);
    memset(dst, 0, sizeof dst);
    ssize_t r = SHOW(sendmsg(p.a, &m, 0));
    if (r > 0) wait_unread(p.b, static_cast<int>(r));
    r = SHOW(recvmsg(p.b, &n, MSG_DONTWAIT));
    if (r > 0) ask("same bytes", memcmp(src, dst, static_cast<size_t>(r)) == 0);
    r = SHOW(writev(p.a, out.data(), static_cast<int>(count)));
    if (r > 0) wait_unread(p.b, static_cast<int>(r));
    memset(dst, 0, sizeof dst);
    if (r > 0 || count > 1024) r = SHOW(readv(p.b, in.data(), static_cast<int>(count)));
    if (r > 0) ask("same bytes", memcmp(src, dst, static_cast<size_t>(r)) == 0);
  }
}

void socket_arguments(duo&) {
  SHOW(socket(-1, SOCK_STREAM, 0));
  SHOW(socket(AF_INET, 77, 0));
  SHOW(socket(AF_INET, SOCK_STREAM, IPPROTO_UDP));
  SHOW(socket(AF_INET, SOCK_STREAM | 0x10000, 0));
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
  ask("nonblocking", fcntl(fd, F_GETFL) & O_NONBLOCK);
  ask("close-on-exec", fcntl(fd, F_GETFD) & FD_CLOEXEC);
  sockaddr_in s = loopback(1);
  SHOW(connect(fd, sa(s), 3));
  SHOW(bind(fd, sa(s), 3));
  s.sin_family = 77;
  SHOW(connect(fd, sa(s), sizeof s));
  SHOW(bind(fd, sa(s), sizeof s));
  SHOW(shutdown(fd, 7));
  close(fd);
  pair_of p;
  SHOW(shutdown(p.a, 7));
  SHOW(shutdown(p.a, -1));
  warm_up(p.a, p.b);
}

}  // namespace

int main(int argc, char** argv) {
  return run_all(argc, argv,
                 {{"bad_fds", bad_fds},
                  {"T04_closed_fd", closed_fd},
                  {"T04_not_sockets", not_sockets},
                  {"T04_not_connected", not_connected},
                  {"T04_connected_again", connected_again},
                  {"T05_bad_send_pointers", bad_send_pointers},
                  {"T05_crossing_send", crossing_send},
                  {"T05_bad_recv_pointers", bad_recv_pointers},
                  {"T05_bad_other_pointers", bad_other_pointers},
                  {"T03_lengths", lengths},
                  {"T03_many_vectors", many_vectors},
                  {"T04_socket_arguments", socket_arguments}});
}
