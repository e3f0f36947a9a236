// See iface.hpp.
#include "xdp/iface.hpp"

#include <dlfcn.h>

#include <cstdio>
#include <new>

#include "base/alloc.hpp"
#include "base/log.hpp"

namespace icepath {
namespace {

constexpr const char* plugin_name = "libicepath-xdp.so";

// Beside the library (or program) this code is in; the loader's own search when that is not known.
void beside_us(char* path, size_t room) {
  Dl_info in;
  const char* slash = dladdr(reinterpret_cast<const void*>(&beside_us), &in) && in.dli_fname ? std::strrchr(in.dli_fname, '/') : nullptr;
  if (slash) format(path, room, "%.*s/%s", static_cast<int>(slash - in.dli_fname), in.dli_fname, plugin_name);
  else format(path, room, "%s", plugin_name);
}

result<const icepath_xdp_plugin*> load(const char* path, char* why, size_t size) {
  using res = result<const icepath_xdp_plugin*>;
  char own[4096];
  if (!path) beside_us(own, sizeof own), path = own;
  void* dl = dlopen(path, RTLD_NOW | RTLD_LOCAL);   // stays: its functions may be in use to the end
  if (!dl) {
    const char* e = dlerror();
    format(why, size, "%s", e ? e : "dlopen failed");
    return res::error(ENOENT);
  }
  const auto get = reinterpret_cast<icepath_xdp_plugin_get_fn>(dlsym(dl, "icepath_xdp_plugin_get"));
  const icepath_xdp_plugin* p = get ? get() : nullptr;
  if (!p || p->abi != icepath_xdp_abi || p->size < sizeof(icepath_xdp_plugin)) {
    format(why, size, "%s is of another version", path);
    dlclose(dl);
    return res::error(ENOEXEC);
  }
  return p;
}

result<icepath_xdp_flow> key_of(const four_tuple& t) {
  using res = result<icepath_xdp_flow>;
  if (!t.saddr.is_v4() || !t.daddr.is_v4()) return res::error(EAFNOSUPPORT);
  icepath_xdp_flow f{};
  std::memcpy(&f.saddr, t.daddr.b + 12, 4);   // as a packet to us has it
  std::memcpy(&f.daddr, t.saddr.b + 12, 4);
  f.sport = __builtin_bswap16(t.dport);
  f.dport = __builtin_bswap16(t.sport);
  return f;
}

result<bool> done(int err) { return err < 0 ? result<bool>::error(-err) : result<bool>(true); }

}  // namespace

result<xdp_iface*> xdp_iface_open(const char* ifname, xdp_mode mode, char* why, size_t why_size, const char* plugin_path) {
  using res = result<xdp_iface*>;
  if (why_size) *why = '\0';
  const auto ops = load(plugin_path, why, why_size);
  if (!ops) return res::error(ops.err());
  void* mem = mem_zalloc(sizeof(xdp_iface));
  if (!mem) return res::error(ENOMEM);
  auto* i = new (mem) xdp_iface;
  i->ops = *ops;
  const uint32_t m = mode == xdp_mode::generic ? icepath_xdp_generic : mode == xdp_mode::native ? icepath_xdp_native : icepath_xdp_auto;
  int err = i->ops->open(ifname, m, &i->handle, &i->info, why, why_size);
  if (!err) {
    err = i->ops->slot_take(i->handle, &i->slot, &i->generation);
    if (err) {
      i->ops->close(i->handle);
      format(why, why_size, "%s: no free slot", ifname);
    }
  }
  if (err) {
    mem_free(mem);
    return res::error(-err);
  }
  return i;
}

void xdp_iface_close(xdp_iface* i) {
  if (!i) return;
  (void)i->ops->slot_release(i->handle, i->slot, i->generation);
  i->ops->close(i->handle);
  mem_free(i);
}

void xdp_iface_forget(xdp_iface* i) {
  if (!i) return;
  i->ops->forget(i->handle);
  mem_free(i);
}

result<bool> xdp_flow_add(xdp_iface& i, const four_tuple& ours) {
  const auto f = key_of(ours);
  return f ? done(i.ops->flow_add(i.handle, &*f, i.slot, i.generation)) : result<bool>::error(f.err());
}

result<bool> xdp_flow_del(xdp_iface& i, const four_tuple& ours) {
  const auto f = key_of(ours);
  return f ? done(i.ops->flow_del(i.handle, &*f, i.slot, i.generation)) : result<bool>::error(f.err());
}

int xdp_iface_fds(const xdp_iface& i, int* to, int room) { return i.ops->fds(i.handle, to, room); }

result<icepath_xdp_stats> xdp_iface_counts(xdp_iface& i) {
  icepath_xdp_stats s{};
  const int err = i.ops->counts(i.handle, &s);
  return err < 0 ? result<icepath_xdp_stats>::error(-err) : result<icepath_xdp_stats>(s);
}

}  // namespace icepath
