// The two rings of an ice queue pair and what the driver does with them (TXPATH T28-T33).
//
// Who may run together (one ring):
//                    start_xmit  doorbell/device  clean_tx  clean_rx  reset/free
//   start_xmit           no            no            yes       yes        no
//   doorbell/device      no            no            yes       yes        no
//   clean_tx             yes           yes           no        yes        no
// start_xmit, the device behind the doorbell and reset exclude each other by the queue's `run` word, which is tried and never waited
// for; clean_tx, clean_rx and reset run under the stack's owner word.
//
// Tx ring. next_to_use: written by start_xmit only. next_to_clean: written by clean_tx (release), read by the space check (acquire):
// a slot seen as clean has its tx_buf free. next_to_watch of a packet's first tx_buf: stored with release after every descriptor and the
// tx_buf of the packet; read by clean_tx with acquire; 0 means "no packet". It holds the index of the EOP descriptor, plus one.
// DD: the device stores DESC_DONE in the EOP descriptor (release) when it no longer needs the buffers; clean_tx loads with acquire.
//
// Rx ring. The driver writes pkt_addr and zeroes the status quadword, then publishes `tail` (release); the device loads tail (acquire)
// and may use the descriptors before it. The device writes the descriptors of a frame from the last to the first; the first one's status
// quadword is stored with release when all is in place, so a frame is visible as a whole or not at all, also
// when its writer is killed. The driver loads that quadword with acquire. The driver never believes the ring about addresses: rx_buf is private.
#pragma once
#include <atomic>
#include "driver/ice/descriptors.hpp"
#include "net/bql.hpp"
#include "net/net.hpp"

namespace icepath {

constexpr uint32_t ice_tx_count = 512, ice_rx_count = 256, ice_rx_buf_len = frame_size, ice_rx_batch = 16;
constexpr uint32_t ice_desc_needed = max_skb_frags + 1 + 4 + 1;     // a full skb, the 4-descriptor gap, a context descriptor
constexpr uint32_t ice_tx_wake_threshold = ice_desc_needed * 2;
constexpr uint32_t ice_max_rx_chain = max_skb_frags + 1;
static_assert((ice_tx_count & (ice_tx_count - 1)) == 0 && (ice_rx_count & (ice_rx_count - 1)) == 0);
static_assert(ice_rx_count > ice_rx_batch + ice_max_rx_chain + 1, "refilling in batches can never starve the longest frame");

struct ice_tx_buf {
  sk_buff* skb = nullptr;
  std::atomic<uint32_t> next_to_watch{0};
  uint32_t bytecount = 0;
  uint32_t gso_segs = 0;
};

struct ice_tx_ring {
  // Set at creation, read by everybody.
  ice_tx_desc* desc = nullptr;
  uint8_t* dma_base = nullptr;                     // device address 0
  uint64_t dma_lo = 0, dma_hi = 0;                 // device addresses that may hold packets: [lo, hi)
  net_device* dev = nullptr;
  uint16_t q_index = 0;
  void (*doorbell)(ice_tx_ring*) = nullptr;        // the tail register: descriptors before next_to_use belong to the device
  // start_xmit's side.
  alignas(64) uint32_t next_to_use = 0;
  std::atomic<uint32_t> published{0};              // copy of next_to_use for the cleaner's wake decision; relaxed
  uint64_t stat_desc = 0, stat_doorbells = 0, stat_busy = 0, stat_linearize = 0, stat_bql_stops = 0;
  std::atomic<sk_buff*> to_free{nullptr};          // dropped by start_xmit, freed by clean_tx (which owns the pool); pushed by CAS
  // clean_tx's side.
  alignas(64) std::atomic<uint32_t> next_to_clean{0};
  alignas(64) struct dql dql;
  ice_tx_buf tx_buf[ice_tx_count];
};

inline uint32_t ice_desc_unused(const ice_tx_ring& r) {
  const uint32_t ntc = r.next_to_clean.load(std::memory_order_acquire), ntu = r.next_to_use;
  return ((ntc > ntu) ? 0 : ice_tx_count) + ntc - ntu - 1;
}

// The same for the cleaner, which does not own next_to_use: it reads the count start_xmit published with the last packet.
inline uint32_t ice_tx_unused_by_cleaner(const ice_tx_ring& r) {
  const uint32_t ntc = r.next_to_clean.load(std::memory_order_relaxed), ntu = r.published.load(std::memory_order_relaxed);
  return ((ntc > ntu) ? 0 : ice_tx_count) + ntc - ntu - 1;
}

void ice_tx_ring_init(ice_tx_ring& r);                                // empty; desc, dma_* and dev are set by the caller
xmit ice_start_xmit(ice_tx_ring& r, sk_buff* skb, bool more);         // T28. Ownership as net_device::start_xmit
int ice_clean_tx_irq(ice_tx_ring& r, skb_pool& pool, nsec now, int budget);   // T32. Packets freed; wakes a stopped queue that has room
void ice_clean_tx_ring(ice_tx_ring& r, skb_pool& pool);               // everything back, done or not; nobody else inside

// tx.cpp and offload.cpp
struct ice_tx_offload_params {
  uint32_t cd_qw1_cmd = 0, cd_tso_len = 0, cd_mss = 0, cd_l2tag2 = 0;   // context descriptor, written when cd_qw1_cmd != 0
  uint32_t td_cmd = 0, td_offset = 0, td_l2tag1 = 0;
  uint32_t header_len = 0, gso_segs = 1;
};
uint32_t ice_xmit_desc_count(const sk_buff* skb);
bool ice_chk_linearize(const sk_buff* skb, uint32_t count);           // true: more than 8 buffers in a frame or in an MSS window
bool ice_linearize(frame_pool& frames, sk_buff* skb);                 // as few frames as possible; false: no memory, skb unchanged
bool ice_tx_offload(sk_buff* skb, ice_tx_offload_params& off);        // VLAN, TSO, checksum; false: the frame cannot be sent
bool ice_skb_checksum_help(sk_buff* skb);                             // fills in the checksum in software; false: no such place

struct ice_rx_ring {
  ice_32b_rx_flex_desc* desc = nullptr;            // shared
  std::atomic<uint32_t>* tail = nullptr;           // shared, written by us
  uint8_t* dma_base = nullptr;                     // device address 0: our region
  net_device* dev = nullptr;
  uint16_t q_index = 0;
  uint32_t next_to_use = 0, next_to_clean = 0;     // [next_to_clean, next_to_use) is posted; one slot stays empty
  uint64_t stat_desc = 0, stat_nobuf = 0;
  uint8_t* rx_buf[ice_rx_count] = {};
};

inline uint32_t ice_rx_unused(const ice_rx_ring& r) { return (r.next_to_clean - r.next_to_use - 1) & (ice_rx_count - 1); }
inline bool ice_rx_pending(const ice_rx_ring& r) {
  return std::atomic_ref<uint64_t>(r.desc[r.next_to_clean].qw[1]).load(std::memory_order_acquire) & ICE_RX_FLEX_DESC_STATUS0_DD;
}
bool ice_alloc_rx_bufs(ice_rx_ring& r, frame_cache& frames);          // posts all it can; true when anything was posted (tail moved)
// T33. Frames to skbs; the caller owns them. -1: the device wrote nonsense and the ring must not be used any more.
int ice_clean_rx_irq(ice_rx_ring& r, skb_pool& pool, nsec now, sk_buff** skbs, int budget);
void ice_clean_rx_ring(ice_rx_ring& r, frame_cache& frames);          // every posted frame back

// A full fence between two threads that each store one word and then load the other's. ThreadSanitizer has no fences.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define ICEPATH_TSAN 1
#endif
#endif
inline void full_fence() {
#if (defined(__SANITIZE_THREAD__) || defined(ICEPATH_TSAN)) && defined(__x86_64__)
  __asm__ __volatile__("lock; orl $0,(%%rsp)" ::: "memory", "cc");
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

}  // namespace icepath
