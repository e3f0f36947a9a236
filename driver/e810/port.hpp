// The inside of a local port: shared by local_port.cpp (net_device, data path) and attach.cpp (peers come and go). Everything here belongs to
// the stack: its owner word is held, except start_xmit, which may run in another thread (device.hpp, `run`).
#pragma once
#include "driver/e810/device.hpp"
#include "driver/e810/local_port.hpp"

namespace icepath {

struct local_map {                  // a peer process's region, mapped once per port
  region_peer rp{};
  unsigned refs = 0;
};

struct local_peer {
  bool used = false;
  peer_stack id{};
  int map = -1;                     // index into maps; -1: our own process
  e810_function* fn = nullptr;
  int wake_fd = -1;
  int tx = -1, rx = -1;             // queues: our txq towards it; our slot that it claimed
  bool tx_ready = false;
};

struct e810_rxq {                   // one receive queue: the ring behind a claimed slot of our own function
  ice_rx_ring ring;
  e810_slot* slot = nullptr;
  uint64_t word = 0;                // identity of the claimant, state ready
  int peer = -1;
  bool bad = false;                 // its writer wrote nonsense: not read any more, freed when the writer has let go
  bool closing = false;             // no more comes: free it when it is empty
};

constexpr size_t e810_rx_ring_bytes = ice_rx_count * sizeof(ice_32b_rx_flex_desc), e810_tx_ring_bytes = ice_tx_count * sizeof(ice_tx_desc);
constexpr unsigned e810_poll_all = 4;   // up to so many peers every ring is looked at; beyond, only those whose active bit is set

struct local_port final : net_device {
  region* own = nullptr;
  uint16_t stack_no = 0;
  e810_function* fn = nullptr;
  int fifo = -1;
  uint32_t attention_seen = 0, arm_seq = 0;
  unsigned nr_rx = 0, nr_tx = 0, rx_turn = 0;
  uint8_t rx_list[e810_max_peers] = {};           // slots that have a ring
  uint64_t rx_pending = 0, rx_starving = 0;       // slots to look at again; slots whose ring could not be filled
  std::atomic<uint64_t> tx_work{0};               // queues with packets outstanding; set by start_xmit after them, cleared by clean_tx
  netdev_queue queues[e810_max_peers];
  std::atomic<e810_txq*> tx[e810_max_peers] = {}; // ready queues; release by attach, acquire by start_xmit
  e810_txq* tx_all[e810_max_peers] = {};          // pending ones too
  uint64_t folded[e810_max_peers][8] = {};
  e810_rxq* rx[e810_max_peers] = {};
  local_peer peers[e810_max_peers];
  local_map maps[e810_max_peers];

  xmit start_xmit(sk_buff* skb, uint16_t txq, bool more) override;
  int clean_tx(int budget) override;
  int rx_burst(sk_buff** skbs, int budget) override;
  bool arm() override;
  void disarm() override;

  bool pending() const;                           // anything a poll would find
  void fold(unsigned q);                          // per-queue counters into the stack's
  void refill(unsigned slot);
  int poll_ring(unsigned slot, sk_buff** skbs, int budget);
};

// attach.cpp
void e810_process_attention(local_port& p);
void e810_ring_attention(local_peer& peer);       // tell the peer that a word changed
void e810_rx_free(local_port& p, unsigned slot);  // ring and frames back, slot free
void e810_peer_bad(local_port& p, int peer);      // it wrote nonsense: event, both queues closed
void e810_mac(uint32_t process, uint16_t stack, uint64_t cookie, uint8_t mac[6]);
void* e810_map_private(size_t bytes);
void e810_unmap_private(void* m, size_t bytes);

}  // namespace icepath
