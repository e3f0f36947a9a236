// See xdp_env.hpp.
#include "xdp_env.hpp"

#include <fcntl.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/clock.hpp"
#include "net/gso.hpp"
#include "wire/checksum.hpp"

namespace xdptest {
namespace {

int home_ns = -1;
pid_t base_pid = 0;        // of the process that cleans up: part of every name
unsigned made = 0;

std::string prefix() { return "xdp-" + std::to_string(base_pid); }
std::string runtime() { return "/dev/shm/" + prefix(); }

void put16(uint8_t* p, unsigned v) { p[0] = static_cast<uint8_t>(v >> 8), p[1] = static_cast<uint8_t>(v); }

}  // namespace

bool sh(const std::string& c) {
  const int r = std::system(("{ " + c + "; } >/dev/null 2>&1").c_str());
  return WIFEXITED(r) && WEXITSTATUS(r) == 0;
}

std::string output_of(const std::string& c) {
  std::string out;
  if (FILE* f = ::popen(("{ " + c + "; } 2>&1").c_str(), "r")) {
    char b[4096];
    for (size_t n; (n = std::fread(b, 1, sizeof b, f)) > 0;) out.append(b, n);
    ::pclose(f);
  }
  return out;
}

std::string can_run() {
  if (::geteuid() != 0) return "needs root";
  const int s = ::socket(AF_XDP, SOCK_RAW, 0);
  if (s < 0) return std::string("no AF_XDP sockets: ") + std::strerror(errno);
  ::close(s);
  if (!sh("ip -V")) return "no ip command (iproute2)";
  const std::string probe = "xdp-" + std::to_string(::getpid()) + "-probe";
  const bool ns = sh("ip netns add " + probe), veth = ns && sh("ip -n " + probe + " link add xdp-a type veth peer name xdp-b");
  sh("ip netns del " + probe);
  return !ns ? "network namespaces cannot be made" : !veth ? "veth devices cannot be made" : "";
}

int run_and_clean_up(int (*body)()) {
  base_pid = ::getpid();
  ::setenv("ICEPATH_RUNTIME_DIR", runtime().c_str(), 1);
  sh("mkdir -m 700 " + runtime());
  home_ns = ::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    std::exit(body());
  }
  int st = 0;
  while (::waitpid(pid, &st, 0) < 0 && errno == EINTR) {}
  sh("for n in $(ip netns list | awk '{print $1}' | grep '^" + prefix() + "-'); do ip netns del $n; done");
  sh("rm -rf " + runtime());
  if (WIFSIGNALED(st)) std::fprintf(stderr, "ended by signal %d\n", WTERMSIG(st));
  return WIFEXITED(st) ? WEXITSTATUS(st) : 1;
}

wire::wire(unsigned queues, unsigned mtu) {
  leave();
  ++made;
  const std::string q = " numrxqueues " + std::to_string(queues) + " numtxqueues " + std::to_string(queues);
  for (int i = 0; i < 2; ++i) {
    ns[i] = prefix() + "-" + std::to_string(made) + (i ? "b" : "a");
    sh("ip netns add " + ns[i]);
  }
  sh("ip -n " + ns[0] + " link add " + dev[0] + q + " type veth peer name " + dev[1] + q + " netns " + ns[1]);
  for (int i = 0; i < 2; ++i) {
    const std::string ip = "ip -n " + ns[i];
    sh(in(i) + "sysctl -w net.ipv6.conf.all.disable_ipv6=1");
    sh(ip + " link set lo up; " + ip + " link set " + dev[i] + " mtu " + std::to_string(mtu) + "; " + ip + " link set " + dev[i] + " up; " + ip + " addr add 10.9.0." + std::to_string(i + 1) + "/24 dev " + dev[i]);
    enter(i);
    const int s = ::socket(AF_INET, SOCK_DGRAM, 0);
    ifreq r{};
    std::strcpy(r.ifr_name, dev[i].c_str());
    if (::ioctl(s, SIOCGIFHWADDR, &r) != 0) std::perror("veth"), std::abort();
    std::memcpy(mac[i], r.ifr_hwaddr.sa_data, 6);
    ::close(s);
    leave();
  }
}

wire::~wire() {
  leave();
  for (auto& n : ns) sh("ip netns del " + n);
}

void wire::enter(int e) const {
  const int fd = ::open(("/var/run/netns/" + ns[e]).c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 || ::setns(fd, CLONE_NEWNET) != 0) std::perror("setns"), std::abort();
  ::close(fd);
}

void leave() {
  if (home_ns >= 0 && ::setns(home_ns, CLONE_NEWNET) != 0) std::perror("setns"), std::abort();
}

std::string wire::link(int e) const { return output_of("ip -n " + ns[e] + " link show dev " + dev[e]); }

end::end(const wire& on, int which, xdp_mode mode, const xdp_port_options& o, bool with_port) : no(which), w(on) {
  if (const auto r = region_create(own); !r) {
    err = r.err();
    std::snprintf(why, sizeof why, "region: %s", std::strerror(err));
    return;
  }
  n.now = clock_now();
  n.skbs.init(&own.frames);
  n.stats = &stats;
  w.enter(no);
  const auto i = xdp_iface_open(w.dev[no].c_str(), mode, why, sizeof why, XDP_PLUGIN);
  if (i) iface = *i;
  else err = i.err();
  if (iface && with_port) open_port(o);
  leave();
}

bool end::open_port(const xdp_port_options& o) {
  w.enter(no);
  const auto p = xdp_port_create(own, n, 0, *iface, o, why, sizeof why);
  leave();
  if (p) {
    port = *p;
    n.dev = xdp_port_dev(port);
  } else {
    err = p.err();
  }
  return port != nullptr;
}

void end::close_port() {
  xdp_port_destroy(port);
  port = nullptr;
}

end::~end() {
  close_port();
  xdp_iface_close(iface);
  if (own.base) {
    n.skbs.destroy();
    region_destroy(own);
  }
}

icepath_xdp_stats end::counts() {
  const auto c = xdp_iface_counts(*iface);
  return c.ok() ? *c : icepath_xdp_stats{};
}

four_tuple end::flow(uint16_t port0, uint16_t port1) const {
  const four_tuple t{inet_addr::v4(0x0a090001), inet_addr::v4(0x0a090002), port0, port1};
  return no == 0 ? t : t.reversed();
}

sk_buff* end::frame(uint32_t payload, uint32_t tag, uint32_t piece, uint16_t port0, uint16_t port1) {
  sk_buff* s = n.skbs.alloc();
  if (!s) return nullptr;
  uint8_t* p = skb_put(s, frame_headers);
  std::memset(p, 0, frame_headers);
  std::memcpy(p, w.mac[!no], 6);
  std::memcpy(p + 6, w.mac[no], 6);
  put16(p + 12, 0x0800);
  uint8_t *ip = p + 14, *tcp = ip + 20;
  ip[0] = 0x45, ip[6] = 0x40, ip[8] = 64, ip[9] = 6;
  put16(ip + 2, 52 + payload);
  put16(ip + 4, tag);
  const uint8_t a[2][4] = {{10, 9, 0, 1}, {10, 9, 0, 2}};
  std::memcpy(ip + 12, a[no], 4);
  std::memcpy(ip + 16, a[!no], 4);
  put16(ip + 10, 0);
  const uint16_t c = csum_fold(csum_partial(ip, 20));
  std::memcpy(ip + 10, &c, 2);
  put16(tcp, no == 0 ? port0 : port1);
  put16(tcp + 2, no == 0 ? port1 : port0);
  std::memcpy(tcp + 4, &tag, 4);
  tcp[12] = 8 << 4, tcp[13] = 0x18;
  std::memset(tcp + 20, 1, 12);
  put16(tcp + 16, pseudo_header_sum(ip, 6, 32 + payload));
  skb_reset_mac(s);
  s->network_header = static_cast<uint16_t>(s->mac_header + 14);
  s->transport_header = s->csum_start = static_cast<uint16_t>(s->mac_header + 34);
  s->csum_offset = 16;
  s->ip_summed = ip_sum::partial;
  for (uint32_t at = 0; at < payload;) {
    uint32_t k = payload - at;
    uint8_t* to;
    if (piece) {
      if (k > piece) k = piece;
      to = n.skbs.frames.alloc();
      s->frags[s->nr_frags++] = {to, k};
      s->len += k;
      s->data_len += k;
    } else {
      to = skb_put(s, k);
    }
    for (uint32_t i = 0; i < k; ++i) to[i] = static_cast<uint8_t>((at + i) * 7 + tag);
    at += k;
  }
  return s;
}

void end::finish_sum(sk_buff* s) { (void)skb_checksum_help(s); }

int end::receive(sk_buff** v, int budget, unsigned msec) {
  const nsec until = clock_now() + msec * msec_ns;
  do {
    n.now = clock_now();
    const int k = dev().rx_burst(v, budget);
    if (k) return k;
    dev().clean_tx(64);
  } while (clock_now() < until);
  return 0;
}

bool check_frame(const sk_buff* s, uint32_t payload, uint32_t tag) {
  if (s->len != frame_headers + payload) return false;
  uint8_t b[4096];
  for (uint32_t at = 0; at < payload;) {
    const uint32_t k = payload - at < sizeof b ? payload - at : sizeof b;
    skb_copy_bits(s, frame_headers + at, b, k);
    for (uint32_t i = 0; i < k; ++i)
      if (b[i] != static_cast<uint8_t>((at + i) * 7 + tag)) return false;
    at += k;
  }
  return true;
}

void turn_around(sk_buff* s) {
  uint8_t* p = s->data;
  uint8_t t[12];
  std::memcpy(t, p, 6);
  std::memcpy(p, p + 6, 6);
  std::memcpy(p + 6, t, 6);
  std::memcpy(t, p + 26, 4);
  std::memcpy(p + 26, p + 30, 4);
  std::memcpy(p + 30, t, 4);
  std::memcpy(t, p + 34, 2);
  std::memcpy(p + 34, p + 36, 2);
  std::memcpy(p + 36, t, 2);
}

}  // namespace xdptest
