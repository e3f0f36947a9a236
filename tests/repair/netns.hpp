// Two network namespaces joined by a veth pair, made by the test and gone with it (they have no names). A is where the moved sockets live, B is the
// kernel peer. "Steering" is an nftables rule in A that keeps a flow's segments from the kernel, while a packet socket sees them all; a tun device
// takes held segments back to the kernel.
#pragma once
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace icepath::ktest {

[[noreturn]] inline void skip(const char* why) {
  std::printf("skipped: %s\n", why);
  std::exit(77);
}
[[noreturn]] inline void die(const char* what) {
  std::printf("FAILED: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}
__attribute__((format(printf, 1, 2))) inline int sh(const char* fmt, ...) {
  char b[1024];
  va_list ap;
  va_start(ap, fmt);
  std::vsnprintf(b, sizeof b, fmt, ap);
  va_end(ap);
  return std::system(b);
}

struct world {
  int ns_a = -1, ns_b = -1, pkt = -1, tun = -1;
  pid_t holder = -1;

  void enter(int ns) { if (::setns(ns, CLONE_NEWNET)) die("setns"); }

  static void no_offload(const char* ifname) {   // the packet socket must see finished segments
    const int fd = ::socket(AF_INET, SOCK_DGRAM, 0);
    for (const uint32_t cmd : {ETHTOOL_STXCSUM, ETHTOOL_SGSO, ETHTOOL_STSO, ETHTOOL_SGRO}) {
      ethtool_value v{cmd, 0};
      ifreq r{};
      std::strcpy(r.ifr_name, ifname);
      r.ifr_data = reinterpret_cast<char*>(&v);
      ::ioctl(fd, SIOCETHTOOL, &r);
    }
    ::close(fd);
  }

  void make() {
    if (::geteuid() != 0) skip("needs root");
    if (std::system("command -v ip nft nsenter >/dev/null 2>&1")) skip("ip, nft or nsenter is missing");
    if (::unshare(CLONE_NEWNET)) skip("no network namespaces");
    ns_a = ::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    int ready[2];
    if (::pipe(ready)) die("pipe");
    holder = ::fork();
    if (holder == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::unshare(CLONE_NEWNET)) _exit(1);
      (void)!::write(ready[1], "x", 1);
      for (;;) ::pause();
    }
    char c;
    if (::read(ready[0], &c, 1) != 1) die("second namespace");
    const std::string p = "/proc/" + std::to_string(holder) + "/ns/net";
    ns_b = ::open(p.c_str(), O_RDONLY | O_CLOEXEC);
    if (sh("ip link add v0 address 02:00:00:00:00:01 type veth peer name v1 address 02:00:00:00:00:02 netns %d", holder)) skip("no veth");
    sh("ip link set lo up; ip addr add 10.0.0.1/24 dev v0; ip link set v0 up");
    sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 2>/dev/null");
    sh("nsenter -t %d -n sh -c 'ip link set lo up; ip addr add 10.0.0.2/24 dev v1; ip link set v1 up'", holder);
    no_offload("v0");
    enter(ns_b);
    no_offload("v1");
    enter(ns_a);
    if (sh("nft 'table ip t { set held { type inet_service . inet_service; }; "
           "chain pre { type filter hook prerouting priority -300; iifname v0 tcp dport . tcp sport @held drop; }; }'"))
      skip("no nftables");
    tun = ::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    ifreq r{};
    std::strcpy(r.ifr_name, "t0");
    r.ifr_flags = IFF_TUN | IFF_NO_PI;
    if (tun < 0 || ::ioctl(tun, TUNSETIFF, &r)) skip("no tun device");
    sh("ip link set t0 up; sysctl -qw net.ipv4.conf.t0.rp_filter=0 2>/dev/null");
    pkt = ::socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, htons(ETH_P_IP));
    const int one = 1, big = 64 << 20;
    sockaddr_ll l{};
    l.sll_family = AF_PACKET;
    l.sll_protocol = htons(ETH_P_IP);
    l.sll_ifindex = static_cast<int>(index_of("v0"));
    if (pkt < 0 || ::bind(pkt, reinterpret_cast<sockaddr*>(&l), sizeof l)) die("packet socket");
    if (::setsockopt(pkt, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one)) skip("no PACKET_IGNORE_OUTGOING");
    ::setsockopt(pkt, SOL_SOCKET, SO_RCVBUFFORCE, &big, sizeof big);
    sh("ping -c 1 -W 2 10.0.0.2 >/dev/null 2>&1");
  }
  static unsigned index_of(const char* name) {
    const int fd = ::socket(AF_INET, SOCK_DGRAM, 0);
    ifreq r{};
    std::strcpy(r.ifr_name, name);
    ::ioctl(fd, SIOCGIFINDEX, &r);
    ::close(fd);
    return static_cast<unsigned>(r.ifr_ifindex);
  }
  void unmake() { if (holder > 0) ::kill(holder, SIGKILL), ::waitpid(holder, nullptr, 0); }

  void hold(uint16_t ours, uint16_t theirs) { if (sh("nft add element ip t held '{ %u . %u }'", ours, theirs)) die("nft add"); }
  void unhold(uint16_t ours, uint16_t theirs) { if (sh("nft delete element ip t held '{ %u . %u }'", ours, theirs)) die("nft delete"); }

  // A counter of /proc/net/snmp or netstat in this thread's namespace.
  static uint64_t counter(const char* file, const char* group, const char* name) {
    FILE* f = std::fopen(file, "r");
    char head[8192], val[8192];
    uint64_t v = 0;
    while (f && std::fgets(head, sizeof head, f) && std::fgets(val, sizeof val, f)) {
      if (std::strncmp(head, group, std::strlen(group))) continue;
      char *s1, *s2, *h = strtok_r(head, " \n", &s1), *x = strtok_r(val, " \n", &s2);
      for (; h && x; h = strtok_r(nullptr, " \n", &s1), x = strtok_r(nullptr, " \n", &s2))
        if (!std::strcmp(h, name)) v = std::strtoull(x, nullptr, 10);
    }
    if (f) std::fclose(f);
    return v;
  }
  uint64_t resets() {   // of both namespaces
    uint64_t v = 0;
    for (const int ns : {ns_b, ns_a}) {
      enter(ns);
      v += counter("/proc/thread-self/net/snmp", "Tcp:", "OutRsts");   // EstabResets counts every disconnect
      for (const char* n : {"TCPAbortOnData", "TCPAbortOnClose", "TCPAbortOnMemory", "TCPAbortOnTimeout", "TCPAbortOnLinger", "TCPAbortFailed"})
        v += counter("/proc/thread-self/net/netstat", "TcpExt:", n);
    }
    return v;
  }
};

}  // namespace icepath::ktest
