// See wire_port.hpp.
#include "stack/wire_port.hpp"

#include <dlfcn.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "base/clock.hpp"
#include "base/config.hpp"
#include "base/libc.hpp"
#include "base/log.hpp"
#include "base/no_cancel.hpp"
#include "control/neigh.hpp"
#include "control/plugin.hpp"
#include "control/policy.hpp"
#include "control/route.hpp"
#include "stack/helper.hpp"
#include "stack/process.hpp"
#include "stack/stack.hpp"
#include "xdp/xdp_port.hpp"

namespace icepath {

const char* const wire_local_reason = "the peer is on this host";
const char* const wire_opening_reason = "the port is being opened";

namespace {

enum : uint32_t { untried, ready, refused };
std::atomic<uint32_t> state{untried};
std::atomic<bool> asked{false};
std::atomic<uint32_t> opening{0};
struct guard {
  guard() { while (opening.exchange(1, std::memory_order_acquire)) sched_yield(); }
  ~guard() { opening.store(0, std::memory_order_release); }
};

xdp_iface* iface = nullptr;
xdp_port* port = nullptr;
stack* owner = nullptr;
const control_plugin* plugin = nullptr;
control* mirror = nullptr;
neigh_fds asking;
wire_changes unseen{};          // by wire_find's own steps, for the next wire_step

const control_plugin* load_control(char* why, size_t n) {
  char path[4096];
  Dl_info in;
  const char* slash = dladdr(reinterpret_cast<const void*>(&load_control), &in) && in.dli_fname ? std::strrchr(in.dli_fname, '/') : nullptr;
  std::snprintf(path, sizeof path, "%.*s%slibicepath-control.so", slash ? static_cast<int>(slash - in.dli_fname) : 0, slash ? in.dli_fname : "", slash ? "/" : "");
  void* dl = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  using get_fn = const control_plugin* (*)();
  const auto get = dl ? reinterpret_cast<get_fn>(dlsym(dl, "icepath_control_plugin_get")) : nullptr;
  const control_plugin* p = get ? get() : nullptr;
  if (p && p->abi == control_plugin_abi && p->size >= sizeof(control_plugin)) return p;
  std::snprintf(why, n, "%s", dl ? "libicepath-control.so is of another version" : "libicepath-control.so is missing (it needs libmnl0)");
  return nullptr;
}

void each_fd(void (*f)(int)) {
  int v[64];
  const auto all = [&](int n) { for (int i = 0; i < n; ++i) f(v[i]); };
  all(plugin->fds(mirror, v, 64));
  all(xdp_iface_fds(*iface, v, 64));
  all(xdp_port_fds(port, v, 64));
  for (const int fd : {asking.rt, asking.udp4, asking.udp6})
    if (fd >= 0) f(fd);
}

// All or nothing. False: why.
bool open_port(char* why, size_t n) {
  const config& c = config_get();
  int err = 0;
  if (!(plugin = load_control(why, n))) return false;
  mirror = plugin->open(&err);
  if (!mirror) { std::snprintf(why, n, "netlink: %s", strerrordesc_np(err)); return false; }
  if (control_neigh_open(asking) != 0) { std::snprintf(why, n, "netlink: no socket for neighbours"); return false; }
  const auto i = xdp_iface_open(c.xdp_ifname, xdp_mode::automatic, why, n);
  if (!i.ok()) {
    if (!*why) std::snprintf(why, n, "%s", strerrordesc_np(i.err()));
    return false;
  }
  iface = *i;
  owner = stack_of_thread();
  if (!owner || !stack_enter(owner)) { std::snprintf(why, n, "no stack left"); return false; }
  xdp_port_options o;
  const auto p = xdp_port_create(*process_region(), owner->net, owner->no, *iface, o, why, n);
  if (p.ok()) {
    port = *p;
    err = stack_add_wire(owner, xdp_port_dev(port), xdp_port_wake_fd(port));
    if (err) std::snprintf(why, n, "%s", strerrordesc_np(-err));
  } else {
    if (!*why) std::snprintf(why, n, "%s", strerrordesc_np(p.err()));
    err = -p.err();
  }
  stack_leave(owner);
  if (err == 0) each_fd(process_fd_add_internal);
  return err == 0;
}

void close_all() {
  if (port) {
    if (stack_enter(owner)) { xdp_port_destroy(port); stack_leave(owner); }
    port = nullptr;
  }
  if (iface) xdp_iface_close(iface);
  iface = nullptr;
  if (mirror) plugin->close(mirror);
  mirror = nullptr;
  control_neigh_close(asking);
}

void open_once() {
  const no_cancel whole;
  char why[200] = "";
  const bool ok = open_port(why, sizeof why);
  if (!ok) {
    log_error("xdp:%s cannot be used: %s", config_get().xdp_ifname, why);
    close_all();
  }
  state.store(ok ? ready : refused, std::memory_order_release);
  if (ok) helper_watch_wire(plugin->fd(mirror));
}

// Opening takes some hundred milliseconds (the program is verified, the frames are pinned): the helper thread does it, nobody waits.
bool start() {
  const uint32_t v = state.load(std::memory_order_acquire);
  if (ICEPATH_LIKELY(v == ready)) return true;
  if (v == untried && !asked.exchange(true)) helper_wire_due(0);
  return false;
}

uint32_t int_option(int fd, int name) {
  uint32_t v = 0;
  socklen_t len = sizeof v;
  return real::getsockopt(fd, SOL_SOCKET, name, &v, &len) == 0 ? v : 0;
}

// Holding `opening`: the tables as the kernel has them now.
void step(nsec now, nsec* next) {
  const control_changes ch = plugin->step(mirror, now, next);
  unseen.routes |= ch.links || ch.addrs || ch.routes || ch.rules;
  unseen.policy |= ch.policy;
  unseen.neighs |= ch.neighs;
}

}  // namespace

bool wire_configured() { return config_get().xdp_ifname[0] != '\0'; }

const char* wire_find(const four_tuple& t, int fd, wire_route* r, bool* again) {
  *again = false;
  if (!start()) {
    *again = state.load(std::memory_order_relaxed) != refused;
    return *again ? wire_opening_reason : "the port cannot be used";
  }
  const no_cancel whole;
  const guard g;
  nsec next;
  step(clock_now(), &next);
  const control_tables& tables = *plugin->view(mirror);
  const uint32_t mark = int_option(fd, SO_MARK);
  const route_answer a = control_route(tables, {t.saddr, t.daddr, mark, int_option(fd, SO_BINDTOIFINDEX), 0});
  if (a.verdict == route_verdict::unknown) return a.reason;
  if (a.verdict != route_verdict::ok) return "no route";
  if (a.local) return wire_local_reason;
  if (a.ifindex != iface->info.ifindex) return "another interface";
  policy_flow f{};
  f.ifindex = a.ifindex;
  f.uid = static_cast<uint32_t>(::geteuid());
  f.mark = mark;
  f.bound_ifindex = int_option(fd, SO_BINDTOIFINDEX);
  f.tuple = t;
  socklen_t len = sizeof f.netns_cookie;
  if (real::getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &f.netns_cookie, &len) != 0) f.netns_cookie = 0;
  if (const char* why = control_policy_check(tables, f)) return why;
  const neigh_answer nb = control_neigh(tables, a.ifindex, a.next_hop);
  if (nb.verdict != neigh_verdict::usable && nb.verdict != neigh_verdict::stale) {
    *again = true;
    return "the next hop is not resolved";
  }
  if (nb.verdict == neigh_verdict::stale) (void)control_resolve(asking, a.ifindex, a.next_hop);
  r->st = owner;
  r->dev = xdp_port_dev(port);
  r->next_hop = a.next_hop;
  std::memcpy(r->mac, nb.mac, 6);
  r->ifindex = a.ifindex;
  r->mtu = a.mtu;
  r->bulk_stays = iface->info.software && !(r->dev->features & NETIF_F_TSO);
  return nullptr;
}

bool wire_neigh(const inet_addr& next_hop, uint8_t mac[6]) {
  if (state.load(std::memory_order_acquire) != ready) return false;
  const neigh_answer nb = control_neigh(*plugin->view(mirror), iface->info.ifindex, next_hop);
  std::memcpy(mac, nb.mac, 6);
  return nb.verdict == neigh_verdict::usable || nb.verdict == neigh_verdict::stale;
}

int wire_flow_add(const four_tuple& t) {
  const auto r = xdp_flow_add(*iface, t);
  return r.ok() ? 0 : -r.err();
}

int wire_flow_del(const four_tuple& t) {
  const auto r = xdp_flow_del(*iface, t);
  return r.ok() ? 0 : -r.err();
}

int wire_control_fd() { return state.load(std::memory_order_acquire) == ready ? plugin->fd(mirror) : -1; }

wire_changes wire_step(nsec now, nsec* next) {
  *next = ~nsec{0};
  if (state.load(std::memory_order_relaxed) == untried && asked.load(std::memory_order_relaxed)) open_once();
  if (state.load(std::memory_order_relaxed) != ready) return {};
  const guard g;
  step(now, next);
  const wire_changes c = unseen;
  unseen = {};
  return c;
}

void wire_forget() {
  if (state.load(std::memory_order_relaxed) == ready) {
    xdp_port_forget(port);
    xdp_iface_forget(iface);
    plugin->forget(mirror);
    control_neigh_close(asking);
  }
  port = nullptr;
  iface = nullptr;
  mirror = nullptr;
  owner = nullptr;
  unseen = {};
  asked.store(false, std::memory_order_relaxed);
  opening.store(0, std::memory_order_relaxed);
  state.store(untried, std::memory_order_relaxed);
}

}  // namespace icepath
