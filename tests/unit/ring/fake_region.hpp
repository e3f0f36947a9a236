// Regions for the ring tests: shared anonymous memory with the real layout, no files but the wake FIFOs in a temporary directory. Made before a
// fork, so that both processes see all of them; which processes live is a shared table, set by the test.
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "driver/e810/local_port.hpp"
#include "driver/e810/port.hpp"
#include "net/net.hpp"

namespace ringtest {
using namespace icepath;

constexpr uint32_t fake_slots = 80;

struct fake_table {
  std::atomic<uint32_t> alive[fake_slots];
  uint64_t cookie[fake_slots];
};
extern fake_table* table;
extern uint8_t* fake_base[fake_slots];
extern uint64_t fake_bytes[fake_slots];
extern std::string fake_dir;
extern int rings_out;                     // ring-area pieces of this process that are not free

void fake_init();                         // once, before any fork
void fake_make(uint32_t slot, uint32_t nr_frames);       // shared memory of a process
void fake_open(region& r, uint32_t slot, uint32_t nr_frames);   // in the process that owns it
void fake_close(region& r);

struct host {                             // one stack on one region
  region* r;
  net n;
  mib stats;
  local_port* port = nullptr;
  uint16_t no;
  host(region& reg, uint16_t stack_no);
  ~host();
  peer_stack id() const { return {r->slot, no, r->cookie}; }
  net_device& dev() { return *local_port_dev(port); }
  // A frame with addresses and `payload` bytes of the pattern `tag`; ether type 0x88b5 (local experimental).
  sk_buff* frame(const uint8_t dst[6], uint32_t payload, uint32_t tag);
  uint32_t held();                        // frames not free, whatever holds them
};
// Polls both until a can send to b.
bool join(host& a, host& b, uint16_t* txq, uint8_t mac[6]);
bool check_frame(const sk_buff* skb, uint32_t payload, uint32_t tag);
}  // namespace ringtest
