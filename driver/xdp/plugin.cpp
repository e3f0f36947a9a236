// libicepath-xdp.so: see plugin.hpp. Loads the embedded program with libbpf, attaches it by a bpf_link, keeps five descriptors (the link and the
// maps: flows, slots, sockets, counters) on high numbers and lets libbpf's own go. Flows whose slot was released stay in the map until
// somebody takes them over or the handle ends; they lead nowhere.
#include "xdp/plugin.hpp"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <fcntl.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/fd.hpp"
#include "xdp/shared.h"
#include "xdp_prog.h"   // generated: xdp_prog_object[], xdp_prog_object_len

using icepath::fd_move_high;
using icepath::raw_syscall;   // the host's close() refuses descriptors that are ours

static_assert(sizeof(icepath_xdp_flow) == sizeof(xdp_flow4) && sizeof(icepath_xdp_stats) == sizeof(xdp_counts));

struct icepath_xdp_handle {
  uint32_t ifindex;
  int link, flows, slots, xsks, counts;
  std::atomic<uint32_t> generation[XDP_MAX_SLOTS];   // of the slot's owner; 0: free
  std::atomic<uint32_t> last_generation;
};

namespace {

int set_why(char* why, size_t size, int err, const char* fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  if (why && size) std::vsnprintf(why, size, fmt, ap);
  va_end(ap);
  return -err;
}

int quiet(enum libbpf_print_level, const char*, va_list) { return 0; }

// Devices that are software all the way: no DMA, nothing gained by native mode.
constexpr const char* software_drivers[] = {"veth", "tun", "tap", "bridge", "dummy", "netkit", "loopback", "ifb"};
// Of those and of paravirtual ones: senders on the other side may leave checksums to an offload that never happens.
constexpr const char* partial_drivers[] = {"veth", "tun", "tap", "bridge", "netkit", "virtio_net"};

template <size_t N>
bool one_of(const char* s, const char* const (&list)[N]) {
  for (const char* l : list)
    if (std::strcmp(s, l) == 0) return true;
  return false;
}

int look(const char* ifname, icepath_xdp_info& in, char* why, size_t size) {
  if (std::strlen(ifname) >= IFNAMSIZ || !*ifname) return set_why(why, size, ENODEV, "'%.32s' is no interface name", ifname);
  const int s = static_cast<int>(raw_syscall(SYS_socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (s < 0) return set_why(why, size, -s, "socket: %s", strerrordesc_np(-s));
  ifreq r{};
  std::memcpy(r.ifr_name, ifname, std::strlen(ifname) + 1);
  std::memcpy(in.ifname, r.ifr_name, sizeof in.ifname);
  const auto ask = [&](unsigned long what) { return ::ioctl(s, what, &r) == 0; };
  int err = 0;
  if (!ask(SIOCGIFINDEX)) {
    err = errno;
  } else {
    in.ifindex = static_cast<uint32_t>(r.ifr_ifindex);
    if (ask(SIOCGIFMTU)) in.mtu = static_cast<uint32_t>(r.ifr_mtu);
    if (ask(SIOCGIFHWADDR)) std::memcpy(in.mac, r.ifr_hwaddr.sa_data, 6);
    ethtool_drvinfo drv{};
    drv.cmd = ETHTOOL_GDRVINFO;
    r.ifr_data = reinterpret_cast<char*>(&drv);
    if (ask(SIOCETHTOOL)) std::snprintf(in.driver, sizeof in.driver, "%.31s", drv.driver);
    ethtool_channels ch{};
    ch.cmd = ETHTOOL_GCHANNELS;
    r.ifr_data = reinterpret_cast<char*>(&ch);
    in.queues = ask(SIOCETHTOOL) ? ch.combined_count + ch.rx_count : 1;
    if (in.queues == 0) in.queues = 1;
    if (in.queues > XDP_MAX_QUEUES) in.queues = XDP_MAX_QUEUES;
  }
  (void)raw_syscall(SYS_close, s);
  if (err) return set_why(why, size, err, "%s: %s", ifname, strerrordesc_np(err));
  in.software = one_of(in.driver, software_drivers);
  in.partial_csum = one_of(in.driver, partial_drivers);
  return 0;
}

int keep(int fd) {   // a second descriptor on a high number; libbpf closes its own
  const int d = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  return d < 0 ? -errno : fd_move_high(d);
}

void close_all(icepath_xdp_handle& h) {
  for (int* fd : {&h.link, &h.flows, &h.slots, &h.xsks, &h.counts}) {
    if (*fd >= 0) (void)raw_syscall(SYS_close, *fd);
    *fd = -1;
  }
}

// One attempt. 0, or -errno with the step that failed.
int load_and_attach(icepath_xdp_handle& h, uint32_t mode, bool frags, const char** step) {
  *step = "the program was refused";
  bpf_object* o = bpf_object__open_mem(xdp_prog_object, xdp_prog_object_len, nullptr);
  if (!o) return -errno;
  int err = 0;
  bpf_program* p = bpf_object__find_program_by_name(o, XDP_NAME_PROG);
  if (!p) err = -ENOENT;
  if (!err && !frags) err = bpf_program__set_flags(p, bpf_program__flags(p) & ~static_cast<uint32_t>(BPF_F_XDP_HAS_FRAGS));
  if (!err) err = bpf_object__load(o);
  if (!err) {
    const struct { const char* name; int* to; } maps[] = {
        {XDP_NAME_FLOWS4, &h.flows}, {XDP_NAME_SLOTS, &h.slots}, {XDP_NAME_XSKS, &h.xsks}, {XDP_NAME_COUNTS, &h.counts}};
    for (const auto& m : maps) {
      const int fd = bpf_object__find_map_fd_by_name(o, m.name);
      *m.to = fd < 0 ? fd : keep(fd);
      if (*m.to < 0) err = *m.to;
    }
  }
  if (!err) {
    *step = "attaching failed";
    const uint32_t how = mode == icepath_xdp_generic ? XDP_FLAGS_SKB_MODE : XDP_FLAGS_DRV_MODE;
    LIBBPF_OPTS(bpf_link_create_opts, opts, .flags = how);
    const int fd = bpf_link_create(bpf_program__fd(p), static_cast<int>(h.ifindex), BPF_XDP, &opts);
    if (fd < 0) err = fd;
    else h.link = fd_move_high(fd);
  }
  bpf_object__close(o);
  if (err) close_all(h);
  return err;
}

// `auto`: native on hardware, where the port then tries zero-copy; generic on software devices and where there is no native mode.
int open_iface(const char* ifname, uint32_t mode, icepath_xdp_handle** out, icepath_xdp_info* info, char* why, size_t size) {
  if (why && size) *why = '\0';
  if (!ifname || !out || !info || mode > icepath_xdp_native) return set_why(why, size, EINVAL, "bad arguments");
  *info = {};
  int err = look(ifname, *info, why, size);
  if (err) return err;
  void* mem = std::calloc(1, sizeof(icepath_xdp_handle));
  if (!mem) return set_why(why, size, ENOMEM, "no memory");
  auto* h = static_cast<icepath_xdp_handle*>(mem);
  h->ifindex = info->ifindex;
  h->link = h->flows = h->slots = h->xsks = h->counts = -1;
  libbpf_set_print(quiet);
  const bool try_native = mode == icepath_xdp_native || (mode == icepath_xdp_auto && !info->software);
  const bool try_generic = mode == icepath_xdp_generic || mode == icepath_xdp_auto;
  const char* step = "";
  err = -EOPNOTSUPP;
  for (uint32_t m : {icepath_xdp_native, icepath_xdp_generic}) {
    if (m == icepath_xdp_native ? !try_native : !try_generic) continue;
    for (bool frags : {true, false}) {   // kernels and drivers that know no packets of several buffers refuse the flag
      err = load_and_attach(*h, m, frags, &step);
      if (!err) {
        info->mode = m;
        info->frags = frags;
        *out = h;
        return 0;
      }
      if (err == -EBUSY || err == -EEXIST || err == -EPERM || err == -ENODEV) break;
    }
    if (err == -EBUSY || err == -EEXIST || err == -EPERM) break;
  }
  std::free(mem);
  if (err == -EBUSY || err == -EEXIST)
    return set_why(why, size, EBUSY, "%s: another XDP program is attached (`ip link show dev %s` names it); without icepathd one process can use it",
                   ifname, ifname);
  if (err == -EPERM) return set_why(why, size, EPERM, "%s: not permitted; CAP_NET_ADMIN, CAP_BPF and CAP_NET_RAW are needed", ifname);
  return set_why(why, size, -err, "%s: %s: %s", ifname, step, strerrordesc_np(-err));
}

void close_iface(icepath_xdp_handle* h) {
  if (!h) return;
  // The link's last descriptor detaches, but a child of fork may hold another.
  if (h->link >= 0) (void)bpf_link_detach(h->link);
  close_all(*h);
  std::free(h);
}

void forget_iface(icepath_xdp_handle* h) {
  if (!h) return;
  close_all(*h);
  std::free(h);
}

int make_socket(icepath_xdp_handle*) {
  const long s = raw_syscall(SYS_socket, AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
  return s < 0 ? static_cast<int>(s) : fd_move_high(static_cast<int>(s));
}

bool owns(const icepath_xdp_handle* h, uint32_t slot, uint32_t generation) {
  return slot < XDP_MAX_SLOTS && generation && h->generation[slot].load(std::memory_order_acquire) == generation;
}

int slot_take(icepath_xdp_handle* h, uint32_t* slot, uint32_t* generation) {
  for (uint32_t s = 0; s < XDP_MAX_SLOTS; ++s) {
    uint32_t g, none = 0;
    do g = h->last_generation.fetch_add(1, std::memory_order_relaxed) + 1;
    while (g == 0);
    if (!h->generation[s].compare_exchange_strong(none, g, std::memory_order_acq_rel)) continue;
    const int err = bpf_map_update_elem(h->slots, &s, &g, BPF_ANY);
    if (err) {
      h->generation[s].store(0, std::memory_order_release);
      return err;
    }
    *slot = s;
    *generation = g;
    return 0;
  }
  return -ENOSPC;
}

int slot_set(icepath_xdp_handle* h, uint32_t slot, uint32_t queue, int xsk) {
  if (slot >= XDP_MAX_SLOTS || queue >= XDP_MAX_QUEUES) return -EINVAL;
  const uint32_t key = slot * XDP_MAX_QUEUES + queue;
  if (xsk >= 0) return bpf_map_update_elem(h->xsks, &key, &xsk, BPF_ANY);
  const int err = bpf_map_delete_elem(h->xsks, &key);
  return err == -ENOENT ? 0 : err;
}

int slot_release(icepath_xdp_handle* h, uint32_t slot, uint32_t generation) {
  if (!owns(h, slot, generation)) return -ESTALE;
  const uint32_t none = 0;
  const int err = bpf_map_update_elem(h->slots, &slot, &none, BPF_ANY);
  for (uint32_t q = 0; q < XDP_MAX_QUEUES; ++q) (void)slot_set(h, slot, q, -1);
  h->generation[slot].store(0, std::memory_order_release);
  return err;
}

int flow_add(icepath_xdp_handle* h, const icepath_xdp_flow* f, uint32_t slot, uint32_t generation) {
  if (!owns(h, slot, generation)) return -ESTALE;
  const xdp_flow_to to = {slot, generation};
  int err = bpf_map_update_elem(h->flows, f, &to, BPF_NOEXIST);
  if (err != -EEXIST) return err;
  xdp_flow_to had;   // left by an owner who is gone: ours now
  if (bpf_map_lookup_elem(h->flows, f, &had) == 0 && owns(h, had.slot, had.generation)) return -EEXIST;
  return bpf_map_update_elem(h->flows, f, &to, BPF_ANY);
}

int flow_del(icepath_xdp_handle* h, const icepath_xdp_flow* f, uint32_t slot, uint32_t generation) {
  xdp_flow_to had;
  const int err = bpf_map_lookup_elem(h->flows, f, &had);
  if (err) return err;
  return had.slot == slot && had.generation == generation ? bpf_map_delete_elem(h->flows, f) : -ENOENT;
}

int read_counts(icepath_xdp_handle* h, icepath_xdp_stats* s) {
  const int cpus = libbpf_num_possible_cpus();
  if (cpus <= 0) return cpus;
  auto* v = static_cast<icepath_xdp_stats*>(std::calloc(static_cast<size_t>(cpus), sizeof *s));
  if (!v) return -ENOMEM;
  const uint32_t zero = 0;
  const int err = bpf_map_lookup_elem(h->counts, &zero, v);
  *s = {};
  for (int i = 0; !err && i < cpus; ++i) {
    s->redirected += v[i].redirected;
    s->no_flow += v[i].no_flow;
    s->no_socket += v[i].no_socket;
    s->stale += v[i].stale;
    s->other += v[i].other;
  }
  std::free(v);
  return err;
}

int list_fds(const icepath_xdp_handle* h, int* to, int room) {
  int n = 0;
  for (const int fd : {h->link, h->flows, h->slots, h->xsks, h->counts})
    if (fd >= 0 && n < room) to[n++] = fd;
  return n;
}

constexpr icepath_xdp_plugin plugin = {icepath_xdp_abi, sizeof(icepath_xdp_plugin), open_iface, close_iface, forget_iface, make_socket,
                                       slot_take, slot_release, slot_set, flow_add, flow_del, read_counts, list_fds};

}  // namespace

extern "C" __attribute__((visibility("default"))) const icepath_xdp_plugin* icepath_xdp_plugin_get() { return &plugin; }
