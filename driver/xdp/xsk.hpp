// One AF_XDP socket with its four rings, and the UMEM it reads and writes: the unprivileged half of the xdp port. Needs a socket (from the plugin
// or the broker) and no library: setsockopt, mmap, bind.
//
// UMEM. A process has one for its region: the frames [0, nr) of the frame pool, registered by the first socket and shared by the others
// (XDP_SHARED_UMEM). Registration pins every page, so the pool is grown to `nr` frames first and bounded there: from then on every frame of this
// process lies in the UMEM, stack and port exchange frames without a copy, and memory does not grow any more. Kept until the last
// socket is closed; the pool stays bounded. RLIMIT_MEMLOCK bounds it too, without CAP_IPC_LOCK.
//
// Rings (single producer, single consumer each):
//   fill        we produce: stack's owner       kernel consumes
//   rx          kernel produces                 we consume: stack's owner
//   tx          we produce: start_xmit          kernel consumes (in sendto, whoever calls it)
//   completion  kernel produces                 we consume: stack's owner
// Indices: release by the producer or consumer after its entries, acquire by the other side before it reads them (linux/if_xdp.h).
#pragma once
#include <atomic>

#include "skb/region.hpp"
#include "xdp/uapi.hpp"

namespace icepath {

struct xsk_ring {
  uint32_t *producer = nullptr, *consumer = nullptr, *flags = nullptr;
  void* desc = nullptr;
  uint32_t size = 0, mask = 0;
  uint32_t prod = 0, cons = 0;       // our side's index, and the other side's as last read
  void* map = nullptr;
  size_t map_len = 0;

  uint64_t& addr(uint32_t i) const { return static_cast<uint64_t*>(desc)[i & mask]; }
  xdp_desc& pkt(uint32_t i) const { return static_cast<xdp_desc*>(desc)[i & mask]; }
  uint32_t load_producer() const { return std::atomic_ref<uint32_t>(*producer).load(std::memory_order_acquire); }
  uint32_t load_consumer() const { return std::atomic_ref<uint32_t>(*consumer).load(std::memory_order_acquire); }
  void store_producer(uint32_t v) { std::atomic_ref<uint32_t>(*producer).store(v, std::memory_order_release); }
  void store_consumer(uint32_t v) { std::atomic_ref<uint32_t>(*consumer).store(v, std::memory_order_release); }
  bool need_wakeup() const { return std::atomic_ref<uint32_t>(*flags).load(std::memory_order_relaxed) & XDP_RING_NEED_WAKEUP; }
};

struct xsk_umem {                    // made and kept by xsk.cpp
  frame_pool* pool;
  uint8_t* base;
  uint32_t nr_frames;
  uint32_t tx_metadata_len;          // 0: the kernel knows none
};

struct xsk {
  int fd = -1;
  uint32_t ifindex = 0, queue = 0;
  bool zero_copy = false, sg = false, busy_poll = false;
  const xsk_umem* umem = nullptr;
  xsk_ring fill, comp, rx, tx;
};

enum class xsk_copy : uint8_t { automatic /* zero-copy, else copy */, copy, zero_copy };
struct xsk_config {
  uint32_t ifindex = 0, queue = 0;
  uint32_t ring_size = 2048;         // entries of each ring; a power of two
  uint32_t frames = 16384;           // UMEM, if this socket is the first: 64 MiB
  xsk_copy copy = xsk_copy::copy;
  bool sg = true;                    // packets of several descriptors, both ways
  bool tx_metadata = true;           // UMEM, if this socket is the first. The kernel then refuses every descriptor in the first bytes of a frame
  bool busy_poll = false;            // SO_PREFER_BUSY_POLL: the driver's polling is done by our calls
};

// Takes `fd` over: closed on failure, with one line in `why`. Nothing is in the fill ring yet; xsk_bind starts the socket.
result<bool> xsk_open(xsk& x, int fd, region& own, const xsk_config& c, char* why, size_t why_size);
// EBUSY: the queue has another socket. EOPNOTSUPP: the device lacks what was asked for.
result<bool> xsk_bind(xsk& x, const xsk_config& c, char* why, size_t why_size);
// Unmaps and closes. Copy mode: the kernel is done with every frame afterwards. Zero-copy: the driver may not be.
void xsk_close(xsk& x);
void xsk_forget(xsk& x);             // in a child of fork: the rings are not mapped there

// Tells the kernel to send what is in the tx ring. 0, or the errno of the last call (ENETDOWN, EBUSY, ENOBUFS: later again).
int xsk_kick_tx(const xsk& x);
void xsk_kick_rx(const xsk& x);
struct xsk_statistics { uint64_t rx_dropped, rx_invalid, tx_invalid, rx_ring_full, fill_empty, tx_empty; };
xsk_statistics xsk_read_statistics(const xsk& x);

}  // namespace icepath
