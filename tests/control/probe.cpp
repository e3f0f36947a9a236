// The mirror, to be asked by a test: one command a line on standard input, one answer a line. It runs in the namespace that the test has made.
// Commands: step | route SADDR DADDR [MARK OIF] | neigh IFINDEX ADDR | resolve IFINDEX ADDR | confirm SADDR DADDR IFINDEX | pmtu SADDR DADDR |
// count | gens | netns | cost | policy KEY=VALUE...
#include <arpa/inet.h>
#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>

#include "base/clock.hpp"
#include "control/mirror.hpp"
#include "control/neigh.hpp"
#include "control/policy.hpp"
#include "control/route.hpp"

using namespace icepath;
using address = icepath::inet_addr;   // <arpa/inet.h> has a function of that name

namespace {

control* c;
neigh_fds fds;
nsec next_step = 0;

bool parse(const std::string& s, address& a) {
  uint8_t v4[4];
  if (s == "-") return a = address{}, true;
  if (inet_pton(AF_INET, s.c_str(), v4) == 1) {
    a = address::v4(0);
    std::memcpy(a.b + 12, v4, 4);
    return true;
  }
  return inet_pton(AF_INET6, s.c_str(), a.b) == 1;
}

std::string text(const address& a) {
  char b[64] = "";
  if (a.is_v4()) inet_ntop(AF_INET, a.b + 12, b, sizeof b);
  else inet_ntop(AF_INET6, a.b, b, sizeof b);
  return b;
}

// What the helper thread does: wait for the descriptor, step. Until nothing has come for `quiet` ms.
void settle(int quiet) {
  std::string what;
  for (int i = 0; i < 200; ++i) {
    pollfd p{control_fd(c), POLLIN, 0};
    const bool due = next_step <= clock_now();
    if (!due && ::poll(&p, 1, quiet) == 0) break;
    const control_changes ch = control_step(c, clock_now(), &next_step);
    if (ch.links) what += " links";
    if (ch.addrs) what += " addrs";
    if (ch.routes) what += " routes";
    if (ch.rules) what += " rules";
    if (ch.neighs) what += " neighs";
    if (ch.policy) what += " policy";
  }
  std::cout << "changed" << what << "\n";
}

void route(std::istream& in) {
  std::string s, d;
  route_query q{};
  in >> s >> d;
  if (!parse(s, q.saddr) || !parse(d, q.daddr)) return void(std::cout << "bad address\n");
  in >> q.mark >> q.oif;
  const route_answer a = control_route(control_view(c), q);
  if (a.verdict == route_verdict::unknown) std::cout << "unknown " << a.reason << "\n";
  else if (a.verdict == route_verdict::error) std::cout << "error " << a.err << "\n";
  else
    std::cout << "ok " << a.ifindex << ' ' << (a.local ? "local" : a.has_gw ? text(a.next_hop) : "link") << ' ' << a.mtu << ' ' << text(a.src)
              << "\n";
}

void neigh(std::istream& in) {
  static const char* names[] = {"usable", "stale", "incomplete", "failed", "none", "unknown"};
  uint32_t ifindex = 0;
  std::string s;
  address a{};
  in >> ifindex >> s;
  parse(s, a);
  const neigh_answer n = control_neigh(control_view(c), ifindex, a);
  std::printf("%s %02x:%02x:%02x:%02x:%02x:%02x\n", names[static_cast<int>(n.verdict)], n.mac[0], n.mac[1], n.mac[2], n.mac[3], n.mac[4], n.mac[5]);
  std::fflush(stdout);
}

void policy(std::istream& in) {
  policy_flow f{};
  std::string word;
  while (in >> word) {
    const size_t eq = word.find('=');
    const std::string k = word.substr(0, eq), v = eq == std::string::npos ? "" : word.substr(eq + 1);
    if (k == "if") f.ifindex = static_cast<uint32_t>(std::stoul(v));
    else if (k == "s") parse(v, f.tuple.saddr);
    else if (k == "d") parse(v, f.tuple.daddr);
    else if (k == "sport") f.tuple.sport = static_cast<uint16_t>(std::stoul(v));
    else if (k == "dport") f.tuple.dport = static_cast<uint16_t>(std::stoul(v));
    else if (k == "uid") f.uid = static_cast<uint32_t>(std::stoul(v));
    else if (k == "mark") f.mark = static_cast<uint32_t>(std::stoul(v));
    else if (k == "bound") f.bound_ifindex = static_cast<uint32_t>(std::stoul(v));
    else if (k == "cgroup") f.cgroup = std::stoull(v);
    else if (k == "netns") f.netns_cookie = std::stoull(v);
  }
  const char* why = control_policy_check(control_view(c), f);
  std::cout << (why ? std::string("kernel ") + why : "ok") << "\n";
}

// Microseconds of: a step with its look at what has no notification, a route, the tables' part of the policy check, all of it. For people to read.
void cost() {
  const control_tables& t = control_view(c);
  route_query q{};
  policy_flow f{};
  parse("10.0.0.1", q.saddr);
  parse("10.0.0.2", q.daddr);
  f.tuple = four_tuple{q.saddr, q.daddr, 40000, 7000};
  f.ifindex = control_route(t, q).ifindex;
  const auto each = [](int n, auto work) {
    const nsec begin = clock_now();
    for (int i = 0; i < n; ++i) work(i);
    return static_cast<double>(clock_now() - begin) / n / 1000;
  };
  nsec ahead = clock_now();
  const double look = each(100, [&](int) { control_step(c, ahead += 2 * sec_ns, &next_step); });
  const double route = each(10000, [&](int) { (void)control_route(t, q); });
  const double tables = each(10000, [&](int) { (void)control_policy_tables(t, f); });
  const double all = each(1000, [&](int) { (void)control_policy_check(t, f); });
  std::printf("look %.1f route %.2f tables %.2f check %.1f\n", look, route, tables, all);
  std::fflush(stdout);
  next_step = 0;
}

}  // namespace

int main() {
  int err = 0;
  c = control_open(&err);
  if (!c) {
    std::cout << "open " << err << "\n";
    return 1;
  }
  std::cout << "ready\n" << std::flush;
  if (control_neigh_open(fds) < 0) return 1;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream in(line);
    std::string cmd;
    in >> cmd;
    const control_tables& t = control_view(c);
    if (cmd == "step") settle(30);
    else if (cmd == "route") route(in);
    else if (cmd == "neigh") neigh(in);
    else if (cmd == "policy") policy(in);
    else if (cmd == "count")
      std::cout << t.links.count(t.links.generation()) << ' ' << t.addrs.count(t.addrs.generation()) << ' '
                << t.routes.count(t.routes.generation()) << ' ' << t.rules.count(t.rules.generation()) << ' '
                << t.neighs.count(t.neighs.generation()) << "\n";
    else if (cmd == "gens")
      std::cout << t.links.generation() << ' ' << t.addrs.generation() << ' ' << t.routes.generation() << ' ' << t.rules.generation() << ' '
                << t.neighs.generation() << ' ' << t.policy_generation.load() << "\n";
    else if (cmd == "pmtu") {
      std::string s, d;
      address a{}, b{};
      in >> s >> d;
      std::cout << (parse(s, a) && parse(d, b) ? control_pmtu(a, b, 0) : -EINVAL) << "\n";
    } else if (cmd == "cost") cost();
    else if (cmd == "resolve" || cmd == "confirm") {
      uint32_t ifindex = 0;
      std::string s, d;
      address a{}, b{};
      int e = 0;
      if (cmd == "resolve") {
        in >> ifindex >> d;
        e = parse(d, b) ? control_resolve(fds, ifindex, b) : -EINVAL;
      } else {
        in >> s >> d >> ifindex;
        e = parse(s, a) && parse(d, b) ? control_confirm(fds, a, b, ifindex) : -EINVAL;
      }
      std::cout << e << "\n";
    } else if (cmd == "netns") std::cout << t.netns_cookie.load() << "\n";
    else std::cout << "what?\n";
    std::cout << std::flush;
  }
  control_neigh_close(fds);
  control_close(c);
}
