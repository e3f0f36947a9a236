// Connections of the kernel moved to a tcp_sock and back, with a kernel peer over veth, every byte checked and no RST on either side.
//   kernel_repair_test [name ...]      77: cannot run here. load_long, 500 moves each way, only when it is named
#include <arpa/inet.h>
#include <linux/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include "base/clock.hpp"
#include "netns.hpp"
#include "repair_rig.hpp"

namespace icepath::ktest {
namespace {

// ---- idle: a byte each way in each home; the port, the name, readiness and the options are what they were
void idle(rig& g, bool accepted) {
  g.open(accepted);
  const int one = 1, tos = 0x10, keep = 77;
  ::setsockopt(g.fd, IPPROTO_TCP, TCP_NODELAY, &one, 4);
  ::setsockopt(g.fd, SOL_SOCKET, SO_KEEPALIVE, &one, 4);
  ::setsockopt(g.fd, IPPROTO_TCP, TCP_KEEPIDLE, &keep, 4);
  ::setsockopt(g.fd, IPPROTO_IP, IP_TOS, &tos, 4);
  const int before_snd = g.opt(SOL_SOCKET, SO_SNDBUF), before_rcv = g.opt(SOL_SOCKET, SO_RCVBUF);
  const int ep = ::epoll_create1(EPOLL_CLOEXEC);
  epoll_event ev{EPOLLIN | EPOLLRDHUP, {}};
  ::epoll_ctl(ep, EPOLL_CTL_ADD, g.fd, &ev);
  g.exchange(1, 1);
  for (int round = 0; round < 3; ++round) {
    g.take();
    check(::epoll_wait(ep, &ev, 1, 0) == 0, "a parked socket is quiet in epoll");
    const int third = ::socket(AF_INET, SOCK_STREAM, 0);
    if (!accepted) {
      const sockaddr_in a = g.local();
      check(::bind(third, reinterpret_cast<const sockaddr*>(&a), sizeof a) < 0 && errno == EADDRINUSE, "the port stays taken");
    }
    ::close(third);
    sockaddr_in peer{};
    socklen_t len = sizeof peer;
    check(::getpeername(g.fd, reinterpret_cast<sockaddr*>(&peer), &len) == 0 && ntohs(peer.sin_port) == g.t.dport, "getpeername");
    check(::send(g.fd, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0, "a parked socket takes no data");
    g.exchange(1, 1);
    g.give();
    check(g.opt(SOL_SOCKET, SO_ERROR) == 0, "no error left behind");
    check(g.opt(IPPROTO_TCP, TCP_NODELAY) == 1 && g.opt(SOL_SOCKET, SO_KEEPALIVE) == 1 && g.opt(IPPROTO_TCP, TCP_KEEPIDLE) == 77, "options stay");
    check(g.opt(IPPROTO_IP, IP_TOS) == 0x10, "IP options stay");
    check(g.opt(SOL_SOCKET, SO_SNDBUF) >= before_snd && g.opt(SOL_SOCKET, SO_RCVBUF) >= before_rcv, "buffers stay, and may grow");
    check(g.opt(SOL_SOCKET, 72) == 0, "and are not locked (SO_BUF_LOCK)");
    g.exchange(1, 1);
  }
  check(::epoll_wait(ep, &ev, 1, 0) == 0, "quiet");
  (void)!::write(g.peer, "!", 1);
  check(::epoll_wait(ep, &ev, 1, 2000) == 1 && (ev.events & EPOLLIN) && !(ev.events & (EPOLLERR | EPOLLHUP)), "the epoll registration lives");
  char c;
  check(::recv(g.fd, &c, 1, 0) == 1 && c == '!', "the byte");
  ::close(ep);
  g.close();
}

// ---- data in the queues when the move begins: unread here, unread there, unacknowledged because the peer is deaf for a while
void queues(rig& g) {
  g.open(true);
  for (int round = 0; round < 6; ++round) {
    g.peer_write(20000);
    g.wait_unread(20000);
    g.our_write(300000);   // more than the peer's window takes: unsent data too
    g.take();
    g.our_write(50000);
    g.run(20 * msec_ns, false);
    g.give();
    g.drain();
  }
  g.close();
}

// Kernel to state to kernel, without a tcp_sock between.
void round_trip(rig& g) {
  g.open(true);
  for (int round = 0; round < 10; ++round) {
    g.peer_write(5000);
    g.our_write(200000);
    g.take_only();
    g.give_only();
    g.run(5 * msec_ns, true);
  }
  g.drain();
  g.close();
}

void load(rig& g, int rounds) {
  g.open(false);
  g.flood = true;
  for (int i = 0; i < rounds; ++i) {
    g.run((1 + i % 7) * msec_ns, true);
    g.take();
    g.run((1 + i % 5) * msec_ns, true);
    g.give();
  }
  g.flood = false;
  g.drain();
  std::printf("  %d moves each way, %.1f MB sent, %.1f MB received\n", rounds, static_cast<double>(g.sent) * 1e-6, static_cast<double>(g.got) * 1e-6);
  g.close();
}

void zero_window(rig& g) {
  g.open(true);
  const int small = 4096;
  ::setsockopt(g.peer, SOL_SOCKET, SO_RCVBUF, &small, 4);
  g.our_write(400000);
  g.run(20 * msec_ns, false);
  for (int i = 0; i < 4; ++i) {
    g.take();
    g.run(10 * msec_ns, false);
    g.give();
    g.run(10 * msec_ns, false);
  }
  g.drain();
  // and the other way: we do not read
  g.peer_write(8 << 20);
  g.run_peer_only(30 * msec_ns);
  for (int i = 0; i < 4; ++i) {
    g.take();
    g.run_peer_only(10 * msec_ns);
    g.give();
    g.run_peer_only(10 * msec_ns);
  }
  g.drain();
  g.close();
}

// The peer has closed its direction: CLOSE-WAIT moves, and so does what is unread in front of the FIN.
void close_wait(rig& g) {
  g.open(true);
  g.peer_write(7000);
  g.run_peer_only(5 * msec_ns);
  ::shutdown(g.peer, SHUT_WR);
  g.run_peer_only(10 * msec_ns);
  check(g.kernel_state() == 8, "CLOSE-WAIT");
  for (int i = 0; i < 3; ++i) {
    g.take();
    check(g.sk->state == 8, "CLOSE-WAIT is carried");
    g.our_write(3000);
    g.run(10 * msec_ns, true);
    g.give();
    check(g.kernel_state() == 8, "CLOSE-WAIT is given back");
    g.our_write(3000);
    g.run(10 * msec_ns, true);
  }
  g.drain();
  check(g.at_eof(), "end of stream after the data");
  g.close();
}

// We have closed ours: FIN-WAIT-1 with the FIN not acknowledged, FIN-WAIT-2, data still coming.
void fin_wait(rig& g, bool acked) {
  g.open(true);
  if (!acked) {   // the FIN stands behind data that the peer has no room for
    const int small = 4096;
    ::setsockopt(g.peer, SOL_SOCKET, SO_RCVBUF, &small, 4);
    g.our_write(200000);
  } else {
    g.our_write(1000);
  }
  g.target = g.sent;
  ::shutdown(g.fd, SHUT_WR);
  g.run((acked ? 100 : 20) * msec_ns, acked);   // the acknowledgment may be delayed
  check(g.kernel_state() == (acked ? 5 : 4), acked ? "FIN-WAIT-2" : "FIN-WAIT-1");
  for (int i = 0; i < 3; ++i) {
    g.take();
    check(g.sk->state == 4 || g.sk->state == 5, "FIN-WAIT is carried");
    g.peer_write(3000);
    g.run(20 * msec_ns, acked);
    g.give();
    g.peer_write(3000);
    g.run(20 * msec_ns, acked);
  }
  g.drain();
  check(g.peer_eof(), "the peer sees the end");
  g.run(300 * msec_ns, true);
  check(g.kernel_state() == 5, "FIN-WAIT-2 at last");
  g.close();
}

void refused(rig& g) {
  tcp_repair_state s;
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  check(kernel_repair_prepare(listener, s).err == -ENOTCONN, "an unconnected socket");
  ::close(listener);
  check(kernel_repair_prepare(-1, s).err == -EBADF, "no socket");
  g.open(true);
  (void)!::send(g.peer, "u", 1, MSG_OOB);
  g.run_peer_only(10 * msec_ns);
  check(kernel_repair_prepare(g.fd, s).ok(), "prepare");
  const repair_result r = kernel_take_over(g.fd, s);
  check(r.err == -EBUSY && !r.moved, "urgent data: not now");
  char c;
  check(::recv(g.fd, &c, 1, MSG_OOB) == 1 && c == 'u', "and nothing is changed");
  g.exchange(0, 0);
  s.state = 1;
  s.urg = REPAIR_URG_VALID;
  check(kernel_give_back(g.fd, s).err == -EOPNOTSUPP, "urgent data cannot be given");
  s.release();
  g.close();
}

}  // namespace
}  // namespace icepath::ktest

int main(int argc, char** argv) {
  using namespace icepath::ktest;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  world w;
  w.make();
  struct test { const char* name; void (*fn)(rig&); };
  const test tests[] = {{"idle_accepted", [](rig& g) { idle(g, true); }}, {"idle_connected", [](rig& g) { idle(g, false); }}, {"refused", refused},
                        {"round_trip", round_trip}, {"queues", queues}, {"zero_window", zero_window}, {"close_wait", close_wait},
                        {"fin_wait1", [](rig& g) { fin_wait(g, false); }}, {"fin_wait2", [](rig& g) { fin_wait(g, true); }},
                        {"load", [](rig& g) { load(g, 40); }}, {"load_long", [](rig& g) { load(g, 500); }}};
  int bad = 0;
  for (const test& t : tests) {
    bool wanted = argc < 2 && std::strcmp(t.name, "load_long");
    for (int i = 1; i < argc; ++i) wanted = wanted || !std::strcmp(argv[i], t.name);
    if (!wanted) continue;
    rig g(w);
    const uint64_t rst = w.resets();
    failures = 0;
    t.fn(g);
    const uint64_t now = w.resets();
    if (now != rst) ++failures, std::printf("  %llu resets or aborts\n", static_cast<unsigned long long>(now - rst));
    std::printf("%s %s\n", failures ? "FAILED" : "ok", t.name);
    bad += failures != 0;
  }
  w.unmake();
  return bad ? 1 : 0;
}
