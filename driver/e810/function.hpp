// What one stack of a process shows to its peers: its function of the software E810, in its region (local_port.hpp).
//
// Owner: the stack whose region it lies in (the receiver); every peer maps it. Who writes what:
//   word        peer: free -> claimed, claimed|ready|revoked -> closing (CAS). Owner: claimed -> ready, ready -> revoked (CAS), any -> free.
//               The whole identity of the claimant is in the word, so a claim is made by one CAS and is never half there.
//   rx_*        owner, before ready (release); peer reads after it saw ready (acquire)
//   tail        owner (release); the peer's device (acquire)
//   tx_paused   peer's device sets it when it lacks buffers, then looks at tail again; the owner publishes tail, then looks at it. A full
//               fence between on both sides: one of the two sees the other
//   active      peer sets its slot's bit after DD, only when it finds it clear; the owner clears it by exchange before it looks at the rings
//   armed       owner: a new non-zero number when it is going to sleep, 0 when it is awake. Peer: after DD and a full fence, non-zero
//               means write the owner's FIFO, then clear that very number. FIFO first: a peer killed in between has woken us
//   attention   anybody adds 1 after a change of a word; the owner scans its slots when it moved
// Everything a peer reads here is checked against the layout constants before it is used as an index or an offset.
#pragma once
#include <atomic>
#include "driver/ice/descriptors.hpp"
#include "skb/region.hpp"

namespace icepath {

constexpr unsigned e810_max_peers = 64;                  // per stack; a connection to one more peer stays in the kernel
constexpr uint32_t e810_magic = 0x45383130, e810_version = 1;

enum class slot_state : uint8_t { free, claimed, ready, revoked, closing };

// word: state 3:0, stack 9:4, process slot 19:10, cookie 63:20 (its low 44 bits).
struct slot_word {
  static constexpr uint64_t cookie_mask = (uint64_t{1} << 44) - 1;
  static uint64_t make(slot_state s, uint32_t process, uint16_t stack, uint64_t cookie) {
    return static_cast<uint64_t>(s) | (uint64_t{stack} & 63) << 4 | (uint64_t{process} & 1023) << 10 | (cookie & cookie_mask) << 20;
  }
  static slot_state state(uint64_t w) { return static_cast<slot_state>(w & 15); }
  static uint16_t stack(uint64_t w) { return static_cast<uint16_t>(w >> 4 & 63); }
  static uint32_t process(uint64_t w) { return static_cast<uint32_t>(w >> 10 & 1023); }
  static uint64_t cookie(uint64_t w) { return w >> 20; }
  static uint64_t with(uint64_t w, slot_state s) { return (w & ~uint64_t{15}) | static_cast<uint64_t>(s); }
};
static_assert(max_processes <= 1024 && max_stacks <= 64);

struct e810_slot {
  alignas(64) std::atomic<uint64_t> word;
  std::atomic<uint64_t> rx_desc_off;                     // from the start of the owner's region
  std::atomic<uint32_t> rx_count, rx_features;           // NETIF_F_RXCSUM, NETIF_F_LRO_PASS
  alignas(64) std::atomic<uint32_t> tail;
  alignas(64) std::atomic<uint32_t> tx_paused;
};
static_assert(sizeof(e810_slot) == 192);

struct e810_function {
  std::atomic<uint32_t> magic;                           // e810_magic while the port exists
  uint32_t version;
  std::atomic<uint32_t> check_peers;                     // a peer found no free slot: the owner looks for dead ones
  alignas(64) std::atomic<uint32_t> armed;
  alignas(64) std::atomic<uint32_t> attention;
  alignas(64) std::atomic<uint64_t> active;
  e810_slot slots[e810_max_peers];
};
static_assert(sizeof(e810_function) <= region_function_stride);
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);

// Wakes the owner of `fn` if it sleeps or is about to. The caller has published its change and executed full_fence(). true: written.
bool e810_wake(e810_function& fn, int fifo_fd);

}  // namespace icepath
