// `icepath doctor [IFNAME] [--peer ADDR:PORT]`: what would be accelerated on this machine, what is missing, and the command that mends it. Looks only:
// attaches nothing, changes nothing. The answers about interfaces and rules are the library's own (src/control), as this process may read them.
// One line each: `ok`, `no` with a line `->` that says what to do, or `--` for what is so by choice. Status 0 when nothing that was asked for is missing: the xdp
// port counts when an interface or a peer is named.
#include <arpa/inet.h>
#include <dirent.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "cli.hpp"
#include "control/mirror.hpp"
#include "control/neigh.hpp"
#include "control/netlink.hpp"
#include "control/policy.hpp"
#include "control/route.hpp"

namespace icepath::cli {
namespace {

bool missing = false, counts = true;   // counts: this part was asked for

void line(const char* mark, const char* fmt, va_list ap) {
  std::printf("%-3s ", mark);
  std::vprintf(fmt, ap);
  std::putchar('\n');
}
[[gnu::format(printf, 1, 2)]] void ok(const char* fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  line("ok", fmt, ap);
  va_end(ap);
}
[[gnu::format(printf, 1, 2)]] void no(const char* fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  line("no", fmt, ap);
  va_end(ap);
  missing = missing || counts;
}
[[gnu::format(printf, 1, 2)]] void note(const char* fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  line("--", fmt, ap);
  va_end(ap);
}
void mend(const char* how) { std::printf("    -> %s\n", how); }

std::string library_dir() {
  char buf[PATH_MAX];
  const ssize_t n = readlink("/proc/self/exe", buf, sizeof buf);
  std::string dir(buf, n > 0 ? static_cast<size_t>(n) : 0);
  dir = dir.substr(0, dir.rfind('/'));
  for (const char* rel : {"/../preload", "/../" ICEPATH_LIBDIR, "/../lib"})
    if (access((dir + rel + "/libicepath.so").c_str(), R_OK) == 0) return dir + rel;
  return {};
}

bool has_file(const std::string& dir, const char* name, const char* fix) {
  if (!dir.empty() && access((dir + "/" + name).c_str(), R_OK) == 0) { ok("%s", name); return true; }
  no("%s is not beside this command", name);
  mend(fix);
  return false;
}

void local_port(const std::string& dir) {
  std::puts("local port: between accelerated processes of one user on this host");
  has_file(dir, "libicepath.so", "meson install -C build");
  const std::string base = runtime_dir_path();
  const std::string parent = base.substr(0, base.rfind('/', base.rfind('/') - 1));
  if (access(base.c_str(), W_OK) == 0 || access(parent.c_str(), W_OK) == 0) {
    ok("shared memory in %s", base.c_str());
  } else {
    no("shared memory: %s cannot be written: %s", parent.c_str(), strerror(errno));
    mend("set ICEPATH_RUNTIME_DIR to a directory of your own on tmpfs");
  }
}

bool capabilities() {
  std::ifstream in("/proc/self/status");
  uint64_t eff = 0;
  for (std::string l; std::getline(in, l);)
    if (l.rfind("CapEff:", 0) == 0) eff = std::strtoull(l.c_str() + 7, nullptr, 16);
  static constexpr struct { int bit; const char* name; const char* what; } need[] = {
      {12, "CAP_NET_ADMIN", "to steer flows, move connections and read the rules"}, {13, "CAP_NET_RAW", "to open AF_XDP sockets"},
      {39, "CAP_BPF", "to load the XDP program"}};
  bool all = true;
  for (const auto& n : need) {
    if (eff >> n.bit & 1) { ok("%s", n.name); continue; }
    no("%s is missing: %s", n.name, n.what);
    all = false;
  }
  if (!all) mend("a service: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_BPF; here: run as root");
  return all;
}

struct xdp_seen { uint32_t mode = 0, id = 0; };
xdp_seen xdp_of(uint32_t ifindex) {
  xdp_seen seen;
  netlink n;
  if (netlink_open(n, NETLINK_ROUTE, false) != 0) return seen;
  char buf[256];
  nlmsghdr* m = mnl_nlmsg_put_header(buf);
  m->nlmsg_type = RTM_GETLINK;
  m->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  auto* i = static_cast<ifinfomsg*>(mnl_nlmsg_put_extra_header(m, sizeof(ifinfomsg)));
  i->ifi_index = static_cast<int>(ifindex);
  netlink_talk(n, m, [](const nlmsghdr* h, void* to) {
    const nlattr* tb[IFLA_XDP + 1] = {};
    const nlattr* x[IFLA_XDP_MAX + 1] = {};
    auto* s = static_cast<xdp_seen*>(to);
    if (h->nlmsg_type == RTM_NEWLINK && netlink_attrs(h, sizeof(ifinfomsg), tb, IFLA_XDP) && tb[IFLA_XDP] && netlink_nested(tb[IFLA_XDP], x, IFLA_XDP_MAX)) {
      if (x[IFLA_XDP_ATTACHED]) s->mode = mnl_attr_get_u8(x[IFLA_XDP_ATTACHED]);
      s->id = attr_u32(x[IFLA_XDP_PROG_ID]);
    }
    return true;
  }, &seen);
  netlink_close(n);
  return seen;
}

void interface(const control_tables& t, const link_row& l, bool named) {
  const std::string name = printable(l.name, sizeof l.name), kind = l.kind[0] ? printable(l.kind, sizeof l.kind) : "hardware or host driver";
  if (!(l.flags & IFF_UP) && !named) { note("%s is down", name.c_str()); return; }
  if (!(l.flags & IFF_UP)) { no("%s is down", name.c_str()); mend(("ip link set " + name + " up").c_str()); return; }
  if (l.type != 1 /* ARPHRD_ETHER */ || (l.kind[0] && kind != "veth")) {
    note("%s (%s): its connections stay with the kernel", name.c_str(), kind.c_str());
    return;
  }
  if (l.master) { note("%s is part of a bridge, bond or VRF: its connections stay with the kernel", name.c_str()); return; }
  const xdp_seen x = xdp_of(l.ifindex);
  if (x.mode) {
    if (!named) { note("%s has an XDP program already (id %u)", name.c_str(), x.id); return; }
    no("%s has an XDP program already (id %u): that of an accelerated process (icepath ss), or of somebody else", name.c_str(), x.id);
    mend("one process for each interface; `ip link show` and `bpftool prog` name the program");
    return;
  }
  const uint32_t g = t.addrs.generation();
  bool v4 = false;
  for (uint32_t i = 0; i < t.addrs.count(g); ++i) {
    const addr_row a = t.addrs.at(g, i);
    v4 = v4 || (a.ifindex == l.ifindex && a.local.is_v4());
  }
  if (!v4) { note("%s has no IPv4 address", name.c_str()); return; }
  ok("%s (%s, MTU %u): ICEPATH_PORTS=local,xdp:%s", name.c_str(), kind.c_str(), l.mtu, name.c_str());
}

bool parse_peer(const std::string& s, inet_addr* a, uint16_t* port) {
  const size_t colon = s.rfind(':');
  if (colon == std::string::npos) return false;
  in_addr in{};
  char* end;
  const unsigned long p = std::strtoul(s.c_str() + colon + 1, &end, 10);
  if (*end || p == 0 || p > 65535 || inet_pton(AF_INET, s.substr(0, colon).c_str(), &in) != 1) return false;
  *a = inet_addr::v4(ntohl(in.s_addr));
  *port = static_cast<uint16_t>(p);
  return true;
}

void way_to(const control_tables& t, const inet_addr& peer, uint16_t port, uint32_t only) {
  const route_answer r = control_route(t, {{}, peer, 0, 0, 0});
  if (r.verdict == route_verdict::unknown) { no("the route: %s", r.reason); return; }
  if (r.verdict != route_verdict::ok) { no("the route: %s", strerror(r.err)); return; }
  if (r.local) { note("that is this host: the local port, when both ends are accelerated"); return; }
  link_row l;
  if (!control_link(t, r.ifindex, l)) { no("the route's interface is gone"); return; }
  const std::string name = printable(l.name, sizeof l.name);
  if (only && r.ifindex != only) { no("the route leaves by %s", name.c_str()); mend(("ICEPATH_PORTS=local,xdp:" + name).c_str()); return; }
  ok("route: by %s, %s, MTU %u", name.c_str(), r.has_gw ? ("gateway " + address(AF_INET, r.next_hop)).c_str() : "on the link", r.mtu);
  const neigh_answer nb = control_neigh(t, r.ifindex, r.next_hop);
  if (nb.verdict == neigh_verdict::usable || nb.verdict == neigh_verdict::stale) ok("next hop resolved");
  else note("the next hop is not resolved now: the kernel does that when it makes the connection");
  policy_flow f{};
  f.ifindex = r.ifindex;
  f.uid = static_cast<uint32_t>(geteuid());
  f.tuple.saddr = r.src;
  f.tuple.sport = 40000;        // any that the kernel would choose
  f.tuple.daddr = peer;
  f.tuple.dport = port;
  if (const char* why = control_policy_check(t, f)) {
    no("the host's rules: %s", why);
    mend("such connections stay with the kernel; libicepath(7) lists what is looked at");
  } else {
    ok("no rule of this host touches its packets");
  }
}

}  // namespace

int doctor(const doctor_options& o) {
  inet_addr peer{};
  uint16_t port = 0;
  if (!o.peer.empty() && !parse_peer(o.peer, &peer, &port)) {
    complain("--peer %s: not an IPv4 address and a port, as in 192.0.2.1:6379", o.peer.c_str());
    return exit_usage;
  }
  const std::string dir = library_dir();
  local_port(dir);
  std::puts("\nxdp port: connections with other hosts");
  counts = !o.ifname.empty() || !o.peer.empty();
  has_file(dir, "libicepath-xdp.so", "build with clang and libbpf-dev");
  has_file(dir, "libicepath-control.so", "meson install -C build");
  capabilities();
  int err = 0;
  icepath::control* c = control_open(&err);
  if (!c) { no("netlink: %s", strerror(err)); return exit_failed; }
  const control_tables& t = control_view(c);
  uint32_t only = 0;
  bool found = false;
  const uint32_t g = t.links.generation();
  for (uint32_t i = 0; i < t.links.count(g); ++i) {
    const link_row l = t.links.at(g, i);
    if (o.ifname.empty() ? (l.flags & IFF_LOOPBACK) != 0 : o.ifname != printable(l.name, sizeof l.name)) continue;
    if (!o.ifname.empty()) only = l.ifindex;
    found = true;
    interface(t, l, !o.ifname.empty());
  }
  if (!found) {
    if (o.ifname.empty()) note("no interface but lo");
    else no("no interface %s", o.ifname.c_str());
  }
  if (!o.peer.empty()) {
    std::printf("\na connection to %s\n", o.peer.c_str());
    way_to(t, peer, port, only);
  }
  control_close(c);
  return missing ? exit_failed : exit_ok;
}

}  // namespace icepath::cli
