// What the xdp port's program does to an interface: attached and gone again, also after kill -9 and beside a forked child; its flows to the sockets
// and everything else to the kernel; slots, generations, queues, counters; no BPF library without an xdp port.
#include <gtest/gtest.h>
#include <linux/bpf.h>
#include <signal.h>
#include <sys/socket.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "base/clock.hpp"
#include "wire/checksum.hpp"
#include "xdp_env.hpp"

namespace {
using namespace xdptest;

sockaddr_in addr(const char* ip, uint16_t port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(port);
  a.sin_addr.s_addr = ::inet_addr(ip);
  return a;
}

bool maps_library(const char* name) {
  FILE* f = std::fopen("/proc/self/maps", "r");
  char line[4096];
  bool found = false;
  while (f && std::fgets(line, sizeof line, f)) found |= std::strstr(line, name) != nullptr;
  if (f) std::fclose(f);
  return found;
}

// How many BPF programs or maps of this machine have a name that begins with icepath_, asked of the kernel.
int bpf_objects() {
  int n = 0;
  for (const bool prog : {true, false}) {
    bpf_attr a{};
    for (;;) {
      if (::syscall(SYS_bpf, prog ? BPF_PROG_GET_NEXT_ID : BPF_MAP_GET_NEXT_ID, &a, sizeof a) != 0) break;
      const uint32_t id = a.next_id;
      bpf_attr g{};
      g.prog_id = id;   // map_id is in the same place
      const int fd = static_cast<int>(::syscall(SYS_bpf, prog ? BPF_PROG_GET_FD_BY_ID : BPF_MAP_GET_FD_BY_ID, &g, sizeof g));
      if (fd >= 0) {
        bpf_prog_info pi{};
        bpf_map_info mi{};
        bpf_attr i{};
        i.info.bpf_fd = static_cast<uint32_t>(fd);
        i.info.info_len = prog ? sizeof pi : sizeof mi;
        i.info.info = prog ? reinterpret_cast<uintptr_t>(&pi) : reinterpret_cast<uintptr_t>(&mi);
        if (::syscall(SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &i, sizeof i) == 0) n += std::strncmp(prog ? pi.name : mi.name, "icepath_", 8) == 0;
        ::close(fd);
      }
      a = {};
      a.start_id = id;
    }
  }
  return n;
}
bool attached(const wire& w, int e) { return w.link(e).find("xdp") != std::string::npos && w.link(e).find("prog/xdp") != std::string::npos; }
template <class F>
bool soon(F f) {   // the kernel frees program and maps a little later
  for (int i = 0; i < 500; ++i) {
    if (f()) return true;
    ::usleep(10000);
  }
  return false;
}

// A kernel TCP connection from end 0 (port0) to end 1 (2000). [0]: the client's socket, [1]: the server's.
struct kernel_pair {
  int fd[2] = {-1, -1};
  kernel_pair(const wire& w, uint16_t port0, uint16_t port1 = 2000) {
    const int on = 1;
    w.enter(1);
    const int l = ::socket(AF_INET, SOCK_STREAM, 0);
    ::setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in a = addr("10.9.0.2", port1);
    if (::bind(l, reinterpret_cast<sockaddr*>(&a), sizeof a) == 0) ::listen(l, 5);
    w.enter(0);
    fd[0] = ::socket(AF_INET, SOCK_STREAM, 0);
    ::setsockopt(fd[0], SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in c = addr("10.9.0.1", port0);
    timeval t{2, 0};
    ::setsockopt(fd[0], SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
    if (::bind(fd[0], reinterpret_cast<sockaddr*>(&c), sizeof c) == 0 && ::connect(fd[0], reinterpret_cast<sockaddr*>(&a), sizeof a) == 0)
      fd[1] = ::accept(l, nullptr, nullptr);
    ::close(l);
    leave();
  }
  ~kernel_pair() {
    for (int f : fd)
      if (f >= 0) ::close(f);
  }
  bool carries(int msec = 2000) {   // a byte from end 0 arrives
    pollfd p{fd[1], POLLIN, 0};
    char c = 'x';
    return fd[1] >= 0 && ::send(fd[0], &c, 1, MSG_NOSIGNAL) == 1 && ::poll(&p, 1, msec) == 1 && ::recv(fd[1], &c, 1, 0) == 1;
  }
};

// ARP (when the neighbour is not known yet) and ICMP.
bool ping(const wire& w) {
  sh("ip -n " + w.ns[0] + " neigh flush all");
  w.enter(0);
  const int s = ::socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
  leave();
  uint8_t m[16] = {8, 0, 0, 0, 0x12, 0x34, 0, 1};
  const uint16_t sum = csum_fold(csum_partial(m, sizeof m));
  std::memcpy(m + 2, &sum, 2);
  sockaddr_in to = addr("10.9.0.2", 0);
  bool ok = ::sendto(s, m, sizeof m, 0, reinterpret_cast<sockaddr*>(&to), sizeof to) == static_cast<ssize_t>(sizeof m);
  pollfd p{s, POLLIN, 0};
  uint8_t r[128];
  ok = ok && ::poll(&p, 1, 2000) == 1 && ::recv(s, r, sizeof r, 0) == 36 && r[20] == 0 && r[24] == 0x12;
  ::close(s);
  return ok;
}
bool udp(const wire& w) {
  w.enter(1);
  const int s = ::socket(AF_INET, SOCK_DGRAM, 0);
  sockaddr_in a = addr("10.9.0.2", 2000);
  bool ok = ::bind(s, reinterpret_cast<sockaddr*>(&a), sizeof a) == 0;
  w.enter(0);
  const int c = ::socket(AF_INET, SOCK_DGRAM, 0);
  sockaddr_in from = addr("10.9.0.1", 1000);
  ok = ok && ::bind(c, reinterpret_cast<sockaddr*>(&from), sizeof from) == 0 &&
       ::sendto(c, "u", 1, 0, reinterpret_cast<sockaddr*>(&a), sizeof a) == 1;
  leave();
  pollfd p{s, POLLIN, 0};
  ok = ok && ::poll(&p, 1, 2000) == 1;
  ::close(s);
  ::close(c);
  return ok;
}

TEST(XdpSteer, NoLibraryBeforeTheFirstInterface) {   // first: nothing has been opened yet
  EXPECT_FALSE(maps_library("libbpf"));
  char why[256];
  const auto r = xdp_iface_open("xdp-none", xdp_mode::automatic, why, sizeof why, "/nonexistent/libicepath-xdp.so");
  EXPECT_EQ(r.err(), ENOENT);
  EXPECT_NE(std::string(why).find("/nonexistent"), std::string::npos) << why;
  EXPECT_FALSE(maps_library("libbpf"));
}

TEST(XdpSteer, AttachesAndDetaches) {
  wire w;
  ASSERT_EQ(bpf_objects(), 0) << "something else of ours runs on this machine";
  {
    end e(w, 1, xdp_mode::automatic);
    ASSERT_TRUE(e.ok()) << e.why;
    EXPECT_TRUE(maps_library("libbpf"));
    EXPECT_EQ(e.iface->info.mode, icepath_xdp_generic);   // veth: the faster one
    EXPECT_STREQ(e.iface->info.driver, "veth");
    EXPECT_TRUE(attached(w, 1)) << w.link(1);
    EXPECT_EQ(bpf_objects(), 5);
    EXPECT_TRUE(ping(w));
  }
  EXPECT_FALSE(attached(w, 1)) << w.link(1);
  EXPECT_TRUE(soon([] { return bpf_objects() == 0; }));
  EXPECT_TRUE(ping(w));
}

TEST(XdpSteer, TheSecondProgramIsToldWhy) {
  wire w;
  end first(w, 1, xdp_mode::generic);
  ASSERT_TRUE(first.ok()) << first.why;
  for (xdp_mode m : {xdp_mode::generic, xdp_mode::native, xdp_mode::automatic}) {
    end second(w, 1, m);
    EXPECT_EQ(second.err, EBUSY);
    EXPECT_NE(std::string(second.why).find("another XDP program"), std::string::npos) << second.why;
  }
  w.enter(1);
  char why[256];
  EXPECT_EQ(xdp_iface_open("xdp-none", xdp_mode::generic, why, sizeof why, XDP_PLUGIN).err(), ENODEV);
  EXPECT_EQ(xdp_iface_open("a-name-that-is-too-long", xdp_mode::generic, why, sizeof why, XDP_PLUGIN).err(), ENODEV);
  leave();
  xdp_port_options bad = end::small();
  bad.ring_size = 100;
  first.close_port();
  EXPECT_FALSE(first.open_port(bad));
  EXPECT_EQ(first.err, EINVAL);
}

TEST(XdpSteer, NothingIsLeftAfterAKill) {
  wire w;
  for (xdp_mode m : {xdp_mode::generic, xdp_mode::native}) {
    int ready[2];
    ASSERT_EQ(::pipe(ready), 0);
    const pid_t pid = ::fork();
    if (pid == 0) {
      end e(w, 1, m);
      const bool ok = e.ok() && xdp_flow_add(*e.iface, e.flow()).ok();
      const char c = ok ? 'y' : 'n';
      (void)!::write(ready[1], &c, 1);
      for (;;) ::pause();
    }
    char c = 0;
    ASSERT_EQ(::read(ready[0], &c, 1), 1);
    EXPECT_EQ(c, 'y');
    EXPECT_TRUE(attached(w, 1));
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    ::close(ready[0]);
    ::close(ready[1]);
    EXPECT_TRUE(soon([&] { return !attached(w, 1) && bpf_objects() == 0; })) << w.link(1);
    EXPECT_TRUE(ping(w));
    kernel_pair k(w, static_cast<uint16_t>(1000 + static_cast<int>(m)));
    EXPECT_TRUE(k.carries());
  }
}

TEST(XdpSteer, AForkedChildKeepsNothingAlive) {
  wire w;
  int out[2], hold[2];
  ASSERT_EQ(::pipe(out), 0);
  ASSERT_EQ(::pipe(hold), 0);
  const pid_t pid = ::fork();
  if (pid == 0) {
    end e(w, 1, xdp_mode::generic);
    const pid_t child = ::fork();
    if (child == 0) {   // as the library does in a child of fork
      xdp_port_forget(e.port);
      xdp_iface_forget(e.iface);
      char c = e.ok() ? 'y' : 'n';
      (void)!::write(out[1], &c, 1);
      ::close(hold[1]);
      (void)!::read(hold[0], &c, 1);   // until the test lets go
      ::_exit(0);
    }
    for (;;) ::pause();
  }
  ::close(hold[0]);
  char c = 0;
  ASSERT_EQ(::read(out[0], &c, 1), 1);
  EXPECT_EQ(c, 'y');
  EXPECT_TRUE(attached(w, 1));
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  EXPECT_TRUE(soon([&] { return !attached(w, 1) && bpf_objects() == 0; })) << w.link(1);
  ::close(hold[1]);
  ::close(out[0]);
  ::close(out[1]);
}

struct XdpPass : testing::TestWithParam<xdp_mode> {
  wire w;
  sk_buff* v[64];
};

TEST_P(XdpPass, FlowsAreRedirectedAndEverythingElsePasses) {
  end a(w, 0, GetParam()), b(w, 1, GetParam());
  ASSERT_TRUE(a.ok() && b.ok()) << a.why << b.why;
  ASSERT_TRUE(xdp_flow_add(*b.iface, b.flow()));
  EXPECT_EQ(xdp_flow_add(*b.iface, b.flow()).err(), EEXIST);
  EXPECT_EQ(xdp_flow_add(*b.iface, four_tuple{{}, {}, 1, 2}).err(), EAFNOSUPPORT);
  EXPECT_TRUE(ping(w));
  EXPECT_TRUE(udp(w));              // the flow's ports, of another protocol
  kernel_pair other(w, 1001);       // the flow's addresses and one of its ports
  EXPECT_TRUE(other.carries());
  icepath_xdp_stats c = b.counts();
  EXPECT_EQ(c.redirected, 0u);
  EXPECT_GT(c.no_flow, 2u);
  EXPECT_GE(c.other, 3u);            // ARP, ICMP, UDP
  EXPECT_EQ(c.stale + c.no_socket, 0u);
  ASSERT_TRUE(a.send(a.frame(10, 1)));
  ASSERT_EQ(b.receive(v, 64), 1);
  b.n.skbs.free(v[0]);
  EXPECT_EQ(b.counts().redirected, 1u);
  sk_buff* fragment = a.frame(10, 1);      // not the program's to understand: passes, to be reassembled by the kernel
  fragment->network()[6] = 0x20;
  ASSERT_TRUE(a.send(fragment));
  EXPECT_TRUE(soon([&] { return b.counts().other > c.other; }));
  ASSERT_TRUE(xdp_flow_del(*b.iface, b.flow()));
  EXPECT_EQ(xdp_flow_del(*b.iface, b.flow()).err(), ENOENT);
  c = b.counts();
  ASSERT_TRUE(a.send(a.frame(10, 1)));
  EXPECT_TRUE(soon([&] { return b.counts().no_flow > c.no_flow; }));
  EXPECT_EQ(b.receive(v, 64, 50), 0);
}

TEST_P(XdpPass, AnEmptySlotPassesAndAStaleFlowToo) {
  end b(w, 1, GetParam(), end::small(), false);
  ASSERT_TRUE(b.ok()) << b.why;
  kernel_pair k(w, 1000);
  ASSERT_TRUE(xdp_flow_add(*b.iface, b.flow()));
  EXPECT_TRUE(k.carries());                         // nobody is there: the kernel's
  const icepath_xdp_stats c = b.counts();
  EXPECT_GT(c.no_socket, 0u);
  EXPECT_EQ(c.redirected, 0u);
  ASSERT_TRUE(b.open_port(end::small())) << b.why;
  EXPECT_FALSE(k.carries(200));                     // ours now
  EXPECT_GE(b.receive(v, 64), 1);
  b.close_port();
  EXPECT_TRUE(soon([&] { char t; return ::recv(k.fd[1], &t, 1, MSG_DONTWAIT) == 1; }));   // resent by the other side, and passed again
  // Another owner of the slot: the old flow does not lead to him, and he can take it over.
  uint32_t slot = 0, generation = 0;
  auto& i = *b.iface;
  ASSERT_EQ(i.ops->slot_release(i.handle, i.slot, i.generation), 0);
  EXPECT_EQ(i.ops->slot_release(i.handle, i.slot, i.generation), -ESTALE);
  EXPECT_EQ(xdp_flow_add(i, b.flow(7, 7)).err(), ESTALE);
  ASSERT_EQ(i.ops->slot_take(i.handle, &slot, &generation), 0);
  EXPECT_EQ(slot, i.slot);
  EXPECT_NE(generation, i.generation);
  EXPECT_EQ(xdp_flow_add(i, b.flow(7, 7)).err(), ESTALE);
  i.slot = slot, i.generation = generation;
  ASSERT_TRUE(b.open_port(end::small())) << b.why;
  const uint64_t stale = b.counts().stale;
  EXPECT_TRUE(k.carries());
  EXPECT_GT(b.counts().stale, stale);
  EXPECT_EQ(xdp_flow_del(i, b.flow()).err(), ENOENT);   // not his
  ASSERT_TRUE(xdp_flow_add(i, b.flow()));
  EXPECT_FALSE(k.carries(200));
  const int n = b.receive(v, 64);
  EXPECT_GE(n, 1);
  for (int j = 0; j < n; ++j) b.n.skbs.free(v[j]);
}

TEST_P(XdpPass, OneSocketForEachQueue) {
  wire four(4);
  end a(four, 0, GetParam()), b(four, 1, GetParam());
  ASSERT_TRUE(a.ok() && b.ok()) << a.why << b.why;
  ASSERT_EQ(b.iface->info.queues, 4u);
  ASSERT_EQ(a.dev().num_tx_queues, 4);
  ASSERT_TRUE(xdp_flow_add(*b.iface, b.flow()));
  // veth: the transmit queue is the other side's receive queue; in generic mode the kernel gives one less.
  const bool exact = GetParam() == xdp_mode::native;
  const auto comes_in = [exact](int q) { return exact || q == 0 ? q : q - 1; };
  for (uint16_t q = 0; q < 4; ++q) {
    ASSERT_TRUE(a.send(a.frame(10, q), q));
    ASSERT_EQ(b.receive(v, 64), 1) << q;
    EXPECT_EQ(v[0]->queue_mapping, comes_in(q));
    b.n.skbs.free(v[0]);
  }
  pollfd f{xdp_port_wake_fd(b.port), POLLIN, 0};
  ASSERT_TRUE(b.dev().arm());
  EXPECT_EQ(::poll(&f, 1, 0), 0);
  ASSERT_TRUE(a.send(a.frame(10, 3), 3));
  EXPECT_EQ(::poll(&f, 1, 2000), 1);
  ASSERT_EQ(b.receive(v, 64), 1);
  b.n.skbs.free(v[0]);
  b.close_port();
  xdp_port_options one = end::small();
  one.nr_queues = 1;
  ASSERT_TRUE(b.open_port(one)) << b.why;
  const uint64_t before = b.counts().no_socket;
  ASSERT_TRUE(a.send(a.frame(10, 1), 2));   // a queue that has no socket: the kernel's
  EXPECT_TRUE(soon([&] { return b.counts().no_socket > before; }));
  EXPECT_EQ(b.receive(v, 64, 50), 0);
  ASSERT_TRUE(a.send(a.frame(10, 1), 0));
  ASSERT_EQ(b.receive(v, 64), 1);
  b.n.skbs.free(v[0]);
  // The second stack's port gets the others; a third finds none.
  char why[256];
  net n2;
  n2.now = clock_now();
  n2.skbs.init(&b.own.frames);
  four.enter(1);
  const auto second = xdp_port_create(b.own, n2, 1, *b.iface, end::small(), why, sizeof why);
  EXPECT_TRUE(second.ok()) << why;
  EXPECT_EQ(xdp_port_create(b.own, n2, 2, *b.iface, end::small(), why, sizeof why).err(), EBUSY);
  leave();
  if (second.ok()) {
    EXPECT_EQ(xdp_port_dev(*second)->num_tx_queues, 3);
    ASSERT_TRUE(a.send(a.frame(10, 9), 2));
    int k = 0;
    EXPECT_TRUE(soon([&] { return (k = xdp_port_dev(*second)->rx_burst(v, 64)) > 0; }));
    for (int i = 0; i < k; ++i) n2.skbs.free(v[i]);
    xdp_port_destroy(*second);
  }
  n2.skbs.destroy();
}

INSTANTIATE_TEST_SUITE_P(Modes, XdpPass, testing::Values(xdp_mode::generic, xdp_mode::native),
                         [](const auto& i) { return i.param == xdp_mode::generic ? "generic" : "native"; });

int run() { return RUN_ALL_TESTS(); }

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (const std::string why = can_run(); !why.empty()) {
    std::printf("skipped: %s\n", why.c_str());
    return 77;
  }
  return run_and_clean_up(run);
}
