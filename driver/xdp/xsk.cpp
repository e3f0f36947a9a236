// See xsk.hpp. Set-up runs under one lock of the process (sockets are made at start-up and when stacks are made, never on the data path).
#include "xdp/xsk.hpp"

#include <linux/capability.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "base/log.hpp"
#include "base/raw_syscall.hpp"

#ifndef SOL_XDP
#define SOL_XDP 283
#endif

namespace icepath {
namespace {

constexpr unsigned max_umems = 8, max_sockets = 128;   // regions of a process (1; tests have more), sockets of a process

struct shared_umem : xsk_umem {
  unsigned users = 0;
  int fds[max_sockets];              // bound sockets; any of them can be named when another one joins
};
shared_umem umems[max_umems];
std::atomic<uint32_t> lock_word{0};

struct setup_lock {
  setup_lock() { while (lock_word.exchange(1, std::memory_order_acquire)) sched_yield(); }
  ~setup_lock() { lock_word.store(0, std::memory_order_release); }
};

long set_opt(int fd, int name, const void* v, size_t n) { return raw_syscall(SYS_setsockopt, fd, SOL_XDP, name, v, n); }

bool may_lock_memory() {
  __user_cap_header_struct h{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct d[2]{};
  return raw_syscall(SYS_capget, &h, d) == 0 && (d[CAP_IPC_LOCK / 32].effective & 1u << CAP_IPC_LOCK % 32);
}

// Frames that RLIMIT_MEMLOCK leaves, after its soft limit was raised as far as it goes.
uint32_t frames_lockable(uint32_t want) {
  rlimit l{};
  if (may_lock_memory() || ::getrlimit(RLIMIT_MEMLOCK, &l) != 0) return want;
  const rlim_t need = rlim_t{want} << frame_shift;
  if (l.rlim_cur < need && l.rlim_cur < l.rlim_max) {
    l.rlim_cur = l.rlim_max < need ? l.rlim_max : need;
    if (::setrlimit(RLIMIT_MEMLOCK, &l) != 0) (void)::getrlimit(RLIMIT_MEMLOCK, &l);
  }
  return l.rlim_cur >= need ? want : static_cast<uint32_t>(l.rlim_cur >> frame_shift);
}

int register_umem(shared_umem& u, int fd, region& own, const xsk_config& c, char* why, size_t size) {
  const uint32_t lockable = frames_lockable(c.frames);
  if (lockable < 1024) {
    format(why, size, "RLIMIT_MEMLOCK allows %u packet frames, at least 1024 are needed", lockable);
    return ENOBUFS;
  }
  u.pool = &own.frames;
  u.base = own.frames.addr(0);
  u.nr_frames = own.frames.bound(lockable);
  if (u.nr_frames < 1024) {
    format(why, size, "no room for packet frames (%u)", u.nr_frames);
    return ENOSPC;
  }
  xsk_umem_reg r{};
  r.addr = reinterpret_cast<uintptr_t>(u.base);
  r.len = uint64_t{u.nr_frames} << frame_shift;
  r.chunk_size = frame_size;
  if (c.tx_metadata) r.flags = XSK_UMEM_TX_METADATA_LEN, r.tx_metadata_len = sizeof(xsk_tx_metadata);
  u.tx_metadata_len = r.tx_metadata_len;
  long e = set_opt(fd, XDP_UMEM_REG, &r, sizeof r);
  if (e == -EINVAL && c.tx_metadata) {   // Linux before 6.8
    r.flags = 0;
    r.tx_metadata_len = u.tx_metadata_len = 0;
    e = set_opt(fd, XDP_UMEM_REG, &r, sizeof r);
  }
  if (e < 0)
    format(why, size, "registering %u frames: %s%s", u.nr_frames, strerrordesc_np(static_cast<int>(-e)),
           e == -ENOBUFS || e == -ENOMEM ? " (RLIMIT_MEMLOCK, as other sockets of this user have left it)" : "");
  return static_cast<int>(-e);
}

shared_umem* umem_of(const frame_pool* p) {
  for (shared_umem& u : umems)
    if (u.pool == p) return &u;
  return nullptr;
}

void umem_leave(const xsk& x) {
  for (shared_umem& u : umems) {
    if (x.umem != &u) continue;
    for (int& f : u.fds)
      if (f == x.fd) f = -1;
    if (--u.users == 0) u.pool = nullptr;
  }
}

int map_ring(xsk_ring& r, int fd, const xdp_ring_offset& o, uint32_t entries, size_t entry, uint64_t pgoff) {
  r.map_len = o.desc + entries * entry;
  const long m = raw_syscall(SYS_mmap, nullptr, r.map_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, static_cast<long>(pgoff));
  if (m < 0 && m > -4096) return static_cast<int>(-m);
  (void)::madvise(reinterpret_cast<void*>(m), r.map_len, MADV_DONTFORK);   // a mapping holds the socket: a child must not keep it alive
  auto* b = reinterpret_cast<uint8_t*>(m);
  r.map = b;
  r.producer = reinterpret_cast<uint32_t*>(b + o.producer);
  r.consumer = reinterpret_cast<uint32_t*>(b + o.consumer);
  r.flags = reinterpret_cast<uint32_t*>(b + o.flags);
  r.desc = b + o.desc;
  r.size = entries;
  r.mask = entries - 1;
  return 0;
}

void unmap_all(xsk& x) {
  for (xsk_ring* r : {&x.fill, &x.comp, &x.rx, &x.tx}) {
    if (r->map) (void)raw_syscall(SYS_munmap, r->map, r->map_len);
    *r = {};
  }
}

}  // namespace

result<bool> xsk_open(xsk& x, int fd, region& own, const xsk_config& c, char* why, size_t size) {
  using res = result<bool>;
  const setup_lock hold;
  x = {};
  x.fd = fd;
  x.ifindex = c.ifindex;
  x.queue = c.queue;
  const auto fail = [&](int e, const char* what) {
    if (what) format(why, size, "%s: %s", what, strerrordesc_np(e));
    if (x.umem) umem_leave(x);
    unmap_all(x);
    (void)raw_syscall(SYS_close, fd);
    x = {};
    return res::error(e);
  };
  if (!c.ring_size || (c.ring_size & (c.ring_size - 1))) return fail(EINVAL, "size of the rings");
  shared_umem* u = umem_of(&own.frames);
  if (!u) {
    u = umem_of(nullptr);
    if (!u) return fail(ENOSPC, "UMEM");
    if (const int e = register_umem(*u, fd, own, c, why, size)) {
      u->pool = nullptr;
      return fail(e, nullptr);
    }
    u->users = 0;
    for (int& f : u->fds) f = -1;
  } else if (u->users == max_sockets) {
    return fail(EMFILE, "sockets");
  }
  ++u->users;
  x.umem = u;
  const struct { int opt; const char* name; } sizes[] = {
      {XDP_UMEM_FILL_RING, "fill ring"}, {XDP_UMEM_COMPLETION_RING, "completion ring"}, {XDP_RX_RING, "rx ring"}, {XDP_TX_RING, "tx ring"}};
  for (const auto& s : sizes)
    if (const long e = set_opt(fd, s.opt, &c.ring_size, sizeof c.ring_size); e < 0) return fail(static_cast<int>(-e), s.name);
  xdp_mmap_offsets off{};
  socklen_t len = sizeof off;
  if (const long e = raw_syscall(SYS_getsockopt, fd, SOL_XDP, XDP_MMAP_OFFSETS, &off, &len); e < 0) return fail(static_cast<int>(-e), "ring offsets");
  if (len != sizeof off) return fail(EPROTO, "ring offsets");   // Linux before 5.4
  int e = map_ring(x.fill, fd, off.fr, c.ring_size, sizeof(uint64_t), XDP_UMEM_PGOFF_FILL_RING);
  if (!e) e = map_ring(x.comp, fd, off.cr, c.ring_size, sizeof(uint64_t), XDP_UMEM_PGOFF_COMPLETION_RING);
  if (!e) e = map_ring(x.rx, fd, off.rx, c.ring_size, sizeof(xdp_desc), XDP_PGOFF_RX_RING);
  if (!e) e = map_ring(x.tx, fd, off.tx, c.ring_size, sizeof(xdp_desc), XDP_PGOFF_TX_RING);
  return e ? fail(e, "mapping rings") : res(true);
}

result<bool> xsk_bind(xsk& x, const xsk_config& c, char* why, size_t size) {
  using res = result<bool>;
  const setup_lock hold;
  shared_umem* u = umem_of(x.umem->pool);
  sockaddr_xdp a{};
  a.sxdp_family = AF_XDP;
  a.sxdp_ifindex = c.ifindex;
  a.sxdp_queue_id = c.queue;
  int other = -1;
  for (int f : u->fds)
    if (f >= 0) other = f;
  const auto try_bind = [&](uint16_t flags) {
    a.sxdp_flags = flags;
    return static_cast<int>(-raw_syscall(SYS_bind, x.fd, &a, sizeof a));
  };
  int e;
  if (other >= 0) {   // mode and packet form are those of the first
    a.sxdp_shared_umem_fd = static_cast<uint32_t>(other);
    e = try_bind(XDP_SHARED_UMEM);
  } else {
    const auto flags = static_cast<uint16_t>(XDP_USE_NEED_WAKEUP | (c.sg ? XSK_BIND_USE_SG : 0));
    e = EOPNOTSUPP;
    if (c.copy != xsk_copy::copy) e = try_bind(flags | XDP_ZEROCOPY);
    if (e && c.copy != xsk_copy::zero_copy && e != EBUSY) e = try_bind(flags | XDP_COPY);
  }
  if (e) {
    format(why, size, "queue %u: %s%s", c.queue, strerrordesc_np(e), e == EBUSY ? " (another socket is bound to it)" : "");
    return res::error(e);
  }
  xdp_options o{};
  socklen_t len = sizeof o;
  if (raw_syscall(SYS_getsockopt, x.fd, SOL_XDP, XDP_OPTIONS, &o, &len) == 0) x.zero_copy = o.flags & XDP_OPTIONS_ZEROCOPY;
  x.sg = c.sg;
  if (c.busy_poll) {
    const int on = 1, usec = 20, budget = 64;
    x.busy_poll = raw_syscall(SYS_setsockopt, x.fd, SOL_SOCKET, XSK_SO_PREFER_BUSY_POLL, &on, sizeof on) == 0 &&
                  raw_syscall(SYS_setsockopt, x.fd, SOL_SOCKET, SO_BUSY_POLL, &usec, sizeof usec) == 0 &&
                  raw_syscall(SYS_setsockopt, x.fd, SOL_SOCKET, XSK_SO_BUSY_POLL_BUDGET, &budget, sizeof budget) == 0;
  }
  for (int& f : u->fds) {
    if (f >= 0) continue;
    f = x.fd;
    break;
  }
  return true;
}

void xsk_close(xsk& x) {
  if (x.fd < 0) return;
  const setup_lock hold;
  umem_leave(x);
  unmap_all(x);
  (void)raw_syscall(SYS_close, x.fd);
  x = {};
}

void xsk_forget(xsk& x) {
  if (x.fd < 0) return;
  lock_word.store(0, std::memory_order_relaxed);   // its holder may be a thread of the parent
  umem_leave(x);
  (void)raw_syscall(SYS_close, x.fd);
  x = {};
}

int xsk_kick_tx(const xsk& x) {
  // The kernel sends a bounded number in one call and says EAGAIN when there are more.
  for (unsigned again = 0;; ++again) {
    const long r = raw_syscall(SYS_sendto, x.fd, nullptr, 0, MSG_DONTWAIT, nullptr, 0);
    if (r >= 0) return 0;
    if (r != -EAGAIN || again == 128) return static_cast<int>(-r);
  }
}

void xsk_kick_rx(const xsk& x) { (void)raw_syscall(SYS_recvfrom, x.fd, nullptr, 0, MSG_DONTWAIT, nullptr, nullptr); }

xsk_statistics xsk_read_statistics(const xsk& x) {
  xdp_statistics s{};
  socklen_t len = sizeof s;
  if (raw_syscall(SYS_getsockopt, x.fd, SOL_XDP, XDP_STATISTICS, &s, &len) < 0) return {};
  return {s.rx_dropped, s.rx_invalid_descs, s.tx_invalid_descs, s.rx_ring_full, s.rx_fill_ring_empty_descs, s.tx_ring_empty_descs};
}

}  // namespace icepath
