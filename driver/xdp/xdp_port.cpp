// The xdp port as a net_device: receive, sleeping, creation, the end. See xdp_port.hpp; port.hpp says who runs what.
#include "xdp/xdp_port.hpp"

#include <sys/epoll.h>
#include <sys/mman.h>

#include <cstdio>
#include <new>

#include "base/fd.hpp"
#include "base/log.hpp"
#include "base/raw_syscall.hpp"
#include "xdp/port.hpp"

namespace icepath {
namespace {

constexpr nsec tx_patience = 2 * msec_ns;   // how long a sleeper waits awake for completions

void* map_private(size_t bytes) {
  const long m = raw_syscall(SYS_mmap, nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return m < 0 && m > -4096 ? nullptr : reinterpret_cast<void*>(m);
}

size_t posted_bytes(uint32_t frames) { return (size_t{frames} + 63) / 64 * 8; }
size_t entry_bytes(uint32_t ring) { return size_t{ring} * sizeof(xdp_tx_entry); }

// Takes the queue's bit; false: another port of this process has it.
bool take_queue(xdp_iface& i, uint32_t q) {
  const uint64_t bit = uint64_t{1} << q;
  return !(i.queues_taken.fetch_or(bit, std::memory_order_acq_rel) & bit);
}
void give_queue(xdp_iface& i, uint32_t q) { i.queues_taken.fetch_and(~(uint64_t{1} << q), std::memory_order_acq_rel); }

int open_queue(xdp_port& p, xdp_queue& q, uint32_t no, const xdp_port_options& o, char* why, size_t size) {
  const icepath_xdp_info& in = p.iface->info;
  const int fd = p.iface->ops->socket(p.iface->handle);
  if (fd < 0) {
    format(why, size, "AF_XDP socket: %s", strerrordesc_np(-fd));
    return -fd;
  }
  xsk_config c;
  c.ifindex = in.ifindex;
  c.queue = no;
  c.ring_size = o.ring_size;
  c.frames = o.frames;
  c.copy = in.mode == icepath_xdp_generic ? xsk_copy::copy : o.copy;
  c.sg = in.frags;
  c.tx_metadata = o.tx_csum && !o.tx_sg && in.mtu <= xdp_linear_mtu;
  c.busy_poll = o.busy_poll;
  auto r = xsk_open(q.x, fd, *p.own, c, why, size);
  if (!r) return r.err();
  q.posted = static_cast<uint64_t*>(map_private(posted_bytes(q.x.umem->nr_frames)));
  q.entry = static_cast<xdp_tx_entry*>(map_private(entry_bytes(o.ring_size)));
  if (!q.posted || !q.entry) {
    format(why, size, "no memory");
    return ENOMEM;
  }
  p.refill(q);
  if (q.nr_posted == 0) {
    format(why, size, "no packet frames left");
    return ENOBUFS;
  }
  // A queue whose socket was just closed is busy until a kernel worker has run.
  const unsigned patience = p.iface->queues_closed.load(std::memory_order_relaxed) & uint64_t{1} << no ? 100 : 2;
  for (unsigned tries = 0;; ++tries) {
    r = xsk_bind(q.x, c, why, size);
    if (r.err() != EBUSY || tries == patience) break;
    ::usleep(5000);
  }
  if (!r) return r.err();
  const int e = p.iface->ops->slot_set(p.iface->handle, p.iface->slot, no, q.x.fd);
  if (e < 0) format(why, size, "socket map: %s", strerrordesc_np(-e));
  return e < 0 ? -e : 0;
}

// Every frame of the queue goes back to the pool, but those a driver may still write to. What waits in the rx ring is in the posted set, too.
void close_queue(xdp_port& p, xdp_queue& q) {
  if (q.x.fd < 0) return;
  (void)p.iface->ops->slot_set(p.iface->handle, p.iface->slot, q.x.queue, -1);
  const uint32_t no = q.x.queue, size = q.x.tx.size, nr = q.x.umem ? q.x.umem->nr_frames : 0;
  const frame_pool& pool = p.own->frames;
  const bool zero_copy = q.x.zero_copy;
  xsk_close(q.x);
  if (q.posted && !zero_copy)
    for (uint32_t w = 0; w < (nr + 63) / 64; ++w)
      for (uint64_t b = q.posted[w]; b; b &= b - 1) p.owner->skbs.frames.put(pool.addr(w * 64 + static_cast<uint32_t>(__builtin_ctzll(b))));
  if (q.entry) {
    for (uint32_t i = q.done.load(std::memory_order_relaxed); i != q.sent.load(std::memory_order_relaxed); ++i)
      if (sk_buff* s = q.entry[i & (size - 1)].skb) {
        ++p.tx_dropped;
        p.owner->skbs.free(s);
      }
    (void)raw_syscall(SYS_munmap, q.entry, entry_bytes(size));
  }
  if (q.posted) (void)raw_syscall(SYS_munmap, q.posted, posted_bytes(nr));
  p.iface->queues_closed.fetch_or(uint64_t{1} << no, std::memory_order_relaxed);
  give_queue(*p.iface, no);
}

int make_epoll(xdp_port& p) {
  const long e = raw_syscall(SYS_epoll_create1, EPOLL_CLOEXEC);
  if (e < 0) return static_cast<int>(-e);
  p.epoll = fd_move_high(static_cast<int>(e));
  for (unsigned i = 0; i < p.nr; ++i) {
    epoll_event ev{};
    ev.events = EPOLLIN;
    const long r = raw_syscall(SYS_epoll_ctl, p.epoll, EPOLL_CTL_ADD, p.queue[i].x.fd, &ev);
    if (r < 0) return static_cast<int>(-r);
  }
  return 0;
}

}  // namespace

int xdp_port::rx_burst(sk_buff** skbs, int budget) {
  int n = 0;
  for (unsigned k = 0; k < nr && n < budget; ++k) {
    const unsigned i = nr == 1 ? 0 : (rx_turn + k) % nr;
    xdp_queue& q = queue[i];
    if (!xdp_rx_pending(q)) {
      if (ICEPATH_UNLIKELY(q.x.busy_poll)) xsk_kick_rx(q.x);
      if (ICEPATH_UNLIKELY(q.starving)) refill(q);
      continue;
    }
    n += xdp_clean_rx(*this, i, skbs + n, budget - n);
    if (q.nr_posted < fill_want - fill_want / 8) refill(q);
  }
  if (nr > 1) ++rx_turn;
  return n;
}

// Receiving needs nothing from us: the fd is readable while the ring is not empty. Completions wake nobody, so a sleeper waits for those that
// are due soon; a device that has stopped sending does not keep it awake.
bool xdp_port::arm() {
  for (unsigned i = 0; i < nr; ++i) {
    xdp_queue& q = queue[i];
    if (ICEPATH_UNLIKELY(q.starving)) refill(q);
    if (xdp_rx_pending(q)) return false;
    const uint32_t done = q.done.load(std::memory_order_relaxed), sent = q.sent.load(std::memory_order_acquire);
    if (done == sent) continue;
    if (q.x.comp.load_producer() != q.x.comp.cons || q.entry[done & q.x.tx.mask].finished) return false;
    if (owner->now - q.progress < tx_patience) return false;
  }
  return true;
}

result<xdp_port*> xdp_port_create(region& own, net& n, uint16_t stack_no, xdp_iface& iface, const xdp_port_options& o, char* why, size_t why_size) {
  using res = result<xdp_port*>;
  if (why_size) *why = '\0';
  if (!o.ring_size || (o.ring_size & (o.ring_size - 1)) || o.ring_size < 64 || o.fill > o.ring_size || o.fill < 32) {
    format(why, why_size, "ring_size must be a power of two of at least 64, fill between 32 and ring_size");
    return res::error(EINVAL);
  }
  void* mem = map_private(sizeof(xdp_port));
  if (!mem) return res::error(ENOMEM);
  auto* p = new (mem) xdp_port;
  p->own = &own;
  p->owner = &n;
  p->iface = &iface;
  p->stack_no = stack_no;
  p->fill_want = o.fill;
  p->partial_csum = iface.info.partial_csum;
  int err = EBUSY;
  format(why, why_size, "%s: every receive queue has a socket", iface.info.ifname);
  // An odd start for each stack, so that several stacks that ask for one queue each get different ones at once.
  for (uint32_t k = 0; k < iface.info.queues && p->nr < o.nr_queues && p->nr < xdp_port_max_queues; ++k) {
    const uint32_t no = (stack_no + k) % iface.info.queues;
    if (!take_queue(iface, no)) continue;
    xdp_queue& q = p->queue[p->nr];
    err = open_queue(*p, q, no, o, why, why_size);
    if (!err) {
      ++p->nr;
      continue;
    }
    if (q.x.fd >= 0) close_queue(*p, q);
    else give_queue(iface, no);
    q.posted = nullptr;
    q.entry = nullptr;
    q.nr_posted = 0;
    if (err != EBUSY) break;   // somebody else's socket is on that queue: the next
  }
  if (p->nr > 1) {
    const int e = make_epoll(*p);
    if (e) err = e;
    if (e) format(why, why_size, "epoll: %s", strerrordesc_np(e));
  }
  if (p->nr == 0 || (p->nr > 1 && p->epoll < 0) || (err && err != EBUSY)) {
    xdp_port_destroy(p);
    return res::error(err);
  }
  const xdp_queue& first = p->queue[0];
  p->tx_csum = o.tx_csum && first.x.umem->tx_metadata_len && !first.x.zero_copy;
  p->name = iface.info.ifname;
  p->tx_sg = first.x.sg && !first.x.umem->tx_metadata_len && (o.tx_sg || iface.info.mtu > xdp_linear_mtu);
  p->mtu = p->tx_sg || iface.info.mtu < xdp_linear_mtu ? iface.info.mtu : xdp_linear_mtu;
  if (p->tx_sg) p->features |= NETIF_F_SG;
  if (p->tx_csum) p->features |= NETIF_F_IP_CSUM;
  std::memcpy(p->dev_addr, iface.info.mac, 6);
  p->num_tx_queues = static_cast<uint16_t>(p->nr);
  p->txq = p->queues;
  p->up = true;
  if (why_size) *why = '\0';
  return p;
}

void xdp_port_destroy(xdp_port* p) {
  if (!p) return;
  p->up = false;
  for (unsigned i = 0; i < p->nr; ++i) {
    // The kernel reads frames of the tx ring only inside our calls in copy mode; a driver may still be at it.
    for (unsigned k = 0; p->queue[i].x.zero_copy && k < 1000 && p->queue[i].done.load() != p->queue[i].sent.load(); ++k)
      if (p->clean_tx(64) == 0) ::usleep(50);
    close_queue(*p, p->queue[i]);
  }
  if (p->epoll >= 0) (void)raw_syscall(SYS_close, p->epoll);
  (void)raw_syscall(SYS_munmap, p, sizeof(xdp_port));
}

void xdp_port_forget(xdp_port* p) {
  if (!p) return;
  for (unsigned i = 0; i < p->nr; ++i) xsk_forget(p->queue[i].x);
  if (p->epoll >= 0) (void)raw_syscall(SYS_close, p->epoll);
  (void)raw_syscall(SYS_munmap, p, sizeof(xdp_port));
}

net_device* xdp_port_dev(xdp_port* p) { return p; }
int xdp_port_wake_fd(const xdp_port* p) { return p->epoll >= 0 ? p->epoll : p->queue[0].x.fd; }
int xdp_port_fds(const xdp_port* p, int* to, int room) {
  int n = 0;
  for (unsigned i = 0; i < p->nr && n < room; ++i) to[n++] = p->queue[i].x.fd;
  if (p->epoll >= 0 && n < room) to[n++] = p->epoll;
  return n;
}
xdp_iface& xdp_port_iface(xdp_port* p) { return *p->iface; }
bool xdp_port_zero_copy(const xdp_port* p) { return p->queue[0].x.zero_copy; }

xsk_statistics xdp_port_statistics(const xdp_port* p) {
  xsk_statistics t{};
  for (unsigned i = 0; i < p->nr; ++i) {
    const xsk_statistics s = xsk_read_statistics(p->queue[i].x);
    t.rx_dropped += s.rx_dropped;
    t.rx_invalid += s.rx_invalid;
    t.tx_invalid += s.tx_invalid;
    t.rx_ring_full += s.rx_ring_full;
    t.fill_empty += s.fill_empty;
    t.tx_empty += s.tx_empty;
  }
  return t;
}

}  // namespace icepath
