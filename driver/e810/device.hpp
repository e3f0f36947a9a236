// The software E810: what the hardware behind an ice Tx ring would do, run inline on the doorbell by whoever holds the queue's run word.
// It trusts nobody: not the driver that wrote the Tx descriptors (a bad one is a malicious-driver event: counted, the queue stops
// until it is reset), not the peer that posted the Rx descriptors (a bad one makes the peer `bad`: the port detaches it).
//
// Lossless: with too few posted buffers the queue pauses, as under link flow control; its descriptors stay pending. Nothing is dropped but
// frames whose destination address is not the peer's. One queue per peer, so a paused peer blocks nobody else.
#pragma once
#include "driver/e810/function.hpp"
#include "driver/ice/ring.hpp"

namespace icepath {

enum class mdd : uint8_t {
  none, bad_dtype, reserved_bits, ctx_without_data, zero_length, address, too_many_bufs, too_short, too_long, no_eop, rs_without_eop,
  cmd_mismatch, header_offsets, tso_mss, tso_len, tso_header, tso_needs_l4, bad_headers
};

struct e810_txq {
  ice_tx_ring ring;                            // first member: the doorbell finds the queue by it
  std::atomic<uint32_t> run{0};                // 1: somebody is inside start_xmit or the device
  // Wiring; set before the first doorbell.
  e810_function* peer_fn = nullptr;
  e810_slot* slot = nullptr;                   // ours in the peer's function
  uint32_t slot_no = 0;
  uint8_t* peer_base = nullptr;                // mapped region of the receiver
  uint64_t peer_lo = 0, peer_hi = 0;           // where its packet frames may lie: [lo, hi)
  ice_32b_rx_flex_desc* rx = nullptr;
  uint32_t rx_features = 0;
  uint64_t word_ready = 0;                     // what slot->word is while we may use it
  uint8_t peer_mac[6] = {};
  int wake_fd = -1;
  uint8_t* bounce = nullptr;                   // e810_bounce_bytes, only for a receiver that lacks offloads
  // The device's own state.
  alignas(64) uint32_t head = 0;
  uint32_t rx_next = 0, rx_known = 0;          // [rx_next, rx_known): posted buffers whose addresses are checked and in rx_addr
  uint32_t seg_done = 0;                       // payload bytes of the TSO frame at head that were sent before a pause
  std::atomic<uint32_t> paused{0};             // read by clean_tx and arm
  std::atomic<bool> peer_bad{false};           // relaxed: set inside, looked at by the owner later
  std::atomic<mdd> mdd_reason{mdd::none};      // not none: stopped until e810_txq_reset; relaxed, as above
  int peer = -1;                               // the port's number for it
  uint64_t stat_mdd = 0, stat_paused = 0, stat_wakes = 0, stat_filtered = 0;
  uint64_t rx_addr[ice_rx_count];
  bool mdd_seen() const { return mdd_reason.load(std::memory_order_relaxed) != mdd::none; }
  bool peer_bad_seen() const { return peer_bad.load(std::memory_order_relaxed); }
};

constexpr uint32_t e810_max_tso = 65536 + ICE_TSO_MAX_HDR;   // whole TSO frame
constexpr size_t e810_bounce_bytes = e810_max_tso;
constexpr uint32_t e810_max_pkt_bufs = 64;
static_assert(e810_max_tso <= ice_max_rx_chain * ice_rx_buf_len);

void e810_doorbell(ice_tx_ring* r);            // the tail write
void e810_device_run(e810_txq& q);             // holder of `run` only
bool e810_can_resume(const e810_txq& q);       // a paused queue got buffers; cheap, any thread of the sender
void e810_txq_reset(e810_txq& q);              // after an MDD event or for closing: the ring is empty and may be used again

inline bool e810_try_run(e810_txq& q) {        // acquire; partner: e810_end_run
  uint32_t idle = 0;
  return q.run.compare_exchange_strong(idle, 1, std::memory_order_acquire, std::memory_order_relaxed);
}
inline void e810_end_run(e810_txq& q) { q.run.store(0, std::memory_order_release); }

// parse.cpp: one packet as the device reads it.
struct e810_buf { const uint8_t* addr; uint32_t len; };
struct e810_packet {
  uint32_t ndesc = 0, nbuf = 0, total = 0, eop = 0, cmd = 0, l2tag1 = 0;
  uint32_t maclen = 0, iplen = 0, l4len = 0, mss = 0;      // mss 0: no TSO
  bool rs = false, tag = false;
  uint32_t hdr_len() const { return maclen + iplen + l4len; }
  e810_buf buf[e810_max_pkt_bufs];
};
mdd e810_parse(const e810_txq& q, uint32_t head, uint32_t tail, e810_packet& p);

// segment.cpp: the offloads in software, for receivers that do not take whole frames or unchecked sums.
enum class segment_result : uint8_t { done, more_buffers, bad_headers };
segment_result e810_segment(e810_txq& q, const e810_packet& p);
// device.cpp: one frame into posted buffers. false: not enough of them, nothing was written.
struct e810_rx_meta { uint32_t status, rxdid, mss, segs, l2tag1; };
bool e810_rx_put(e810_txq& q, const e810_buf* piece, uint32_t pieces, uint32_t total, const e810_rx_meta& m);

}  // namespace icepath
