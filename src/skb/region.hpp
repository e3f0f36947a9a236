// The process's shared region and the runtime directory it lives in.
//
// Runtime directory: /dev/shm/icepath-UID ($ICEPATH_RUNTIME_DIR/icepath when that is set), one sub-directory per network namespace (its inode number);
// mode 0700, owned by us, no symlink: anything else is refused with a clear error and the process stays on the kernel path.
// In it: `p<slot>.mem` (region of the process in that slot), `p<slot>.<stack>.wake` (FIFOs), `rendezvous` (src/sock/rendezvous.hpp).
// A slot is held by an OFD write lock on its .mem file: a dead process loses it at once, whatever killed it; whoever finds
// an unlocked file may reuse the slot. cookie = random per process incarnation, so that a reused slot is never mistaken.
//
// Layout of a region: header (magic, version, sizes, pid, cookie, start time, executable name, control mailbox, counters)
// | socket table for `icepath ss` | e810 functions | ring area | frames. Pages are allocated with fallocate before first use: a
// full /dev/shm is ENOSPC here, never SIGBUS later.
//
// Peers map a region read-write (the device model writes into posted buffers); after mapping, only `region_peer` bounds are
// used, never lengths from the header.
#pragma once
#include <atomic>
#include "base/types.hpp"
#include "net/mib.hpp"
#include "skb/frame.hpp"

namespace icepath {

constexpr uint32_t region_magic = 0x49434550, region_version = 2;
constexpr uint32_t max_processes = 1024, max_stacks = 64, max_sock_rows = 16384;
constexpr uint64_t region_max_bytes = 4ull << 30;       // address space; memory is used as it is touched
constexpr uint32_t region_max_frames = (2ull << 30) >> frame_shift;
constexpr uint64_t region_function_stride = 64 << 10;   // driver/e810 lays out the inside, one per stack
constexpr uint64_t region_ring_bytes = 256ull << 20;    // ring area, of address space

// One row per tracked TCP socket of the process, for `icepath ss`. Single writer (the process, under a per-row seq), readers elsewhere.
struct sock_row {
  std::atomic<uint32_t> seq;         // odd: being written; 0: never used
  uint8_t used, state /* TCP_* */, path /* 0 kernel 1 fast */, tx_lane, rx_lane, ca /* 0 reno 1 cubic */;
  uint16_t stack_no, family, sport, dport;
  int32_t fd;
  inet_addr saddr, daddr;
  char reason[48];                   // why it is where it is
  uint32_t rcvq, sndq, retrans, srtt_us, rttvar_us, cwnd, ssthresh, mss;
  uint64_t tx_bytes, rx_bytes, fast_tx_bytes, fast_rx_bytes;
};
static_assert(sizeof(sock_row) <= 192);

// Commands from outside (`icepath off|on PID`) and from fork children. Writer: CAS seq_req claim; the helper thread answers.
struct control_mailbox {
  std::atomic<uint32_t> lock;        // 0 free, else pid of the requester
  std::atomic<uint32_t> req, done;   // request number; done == req when answered
  uint32_t cmd;                      // control_cmd
  uint64_t arg;
  int32_t status;                    // 0 or -errno
  uint32_t count;                    // sockets concerned
  // `icepath off` writes `off` before it looks at `attended`; the process raises `attended` before it looks at `off` (promote.cpp): either the
  // command finds a helper to ask, or there is nothing on the fast path yet and nothing will get there. All seq_cst.
  std::atomic<uint32_t> off;         // the operator wants every connection in the kernel
  std::atomic<uint32_t> attended;    // the helper thread answers this mailbox
};
enum class control_cmd : uint32_t { none, off, on, demote_sock, refresh };

struct region_header {
  uint32_t magic, version, header_bytes;
  std::atomic<uint32_t> ready;       // 1 when everything below is in place
  uint64_t cookie;
  int32_t pid;
  uint32_t slot;
  uint64_t start_ns;                 // CLOCK_MONOTONIC at set-up
  uint64_t bytes;                    // mapped size
  uint64_t rows_off, functions_off, function_stride, rings_off, frames_off;
  uint32_t nr_frames, nr_stacks_hint;
  char comm[32], exe[128], ports[64];
  control_mailbox control;
  std::atomic<uint32_t> fast_now, kernel_now;          // gauges
  std::atomic<uint64_t> fast_total, kernel_total, kernel_tx_bytes, kernel_rx_bytes;
  alignas(64) mib stats[max_stacks];
};

// The layout is the same in every region of this version, so a peer's offsets are these constants and never read from its header
// (which repeats them for the tools, and region_open_peer refuses a region where they differ).
constexpr uint64_t region_align(uint64_t v, uint64_t a = 4096) { return (v + a - 1) & ~(a - 1); }
constexpr uint64_t region_rows_off = region_align(sizeof(region_header));
constexpr uint64_t region_functions_off = region_align(region_rows_off + max_sock_rows * sizeof(sock_row));
constexpr uint64_t region_rings_off = region_align(region_functions_off + max_stacks * region_function_stride);
constexpr uint64_t region_frames_off = region_align(region_rings_off + region_ring_bytes, 2 << 20);
static_assert(region_frames_off + (uint64_t{region_max_frames} << frame_shift) <= region_max_bytes);

struct region {                      // our own; does not move while it is in use
  uint8_t* base = nullptr;
  uint64_t bytes = 0;
  int fd = -1, dir_fd = -1;
  uint32_t slot = 0;
  uint64_t cookie = 0;
  struct ring_area* ring_map = nullptr;           // which pages of the ring area are taken; private memory
  frame_pool frames;
  region_header* hdr = nullptr;
  sock_row* rows = nullptr;
  uint8_t* function(uint16_t stack_no) const { return base + region_functions_off + uint64_t{stack_no} * region_function_stride; }
  uint8_t* alloc_ring(size_t bytes);              // 4 KiB aligned, zeroed, from the ring area; any thread; nullptr: none left
  void free_ring(uint8_t* p, size_t bytes);
};

result<bool> region_create(region& r);            // opens the directory, takes a slot, lays out. Error: errno
void region_destroy(region& r);                   // unlinks, unmaps
void region_forget(region& r);                    // child of fork: lets go of the parent's region, which stays untouched
unsigned region_reclaim_dead();                   // removes what dead processes left in the directory; how many
const char* runtime_dir_path();                   // of this process's network namespace; static buffer, made on first use

struct region_peer {                 // somebody's region, mapped (maybe our own)
  uint8_t* base = nullptr;
  uint64_t bytes = 0;                // bounds for every access
  uint32_t slot = 0;
  uint64_t cookie = 0;
  const region_header* hdr() const { return reinterpret_cast<const region_header*>(base); }
  uint8_t* function(uint16_t stack_no) const { return base + region_functions_off + uint64_t{stack_no} * region_function_stride; }  // stack_no < max_stacks
  bool contains(uint64_t off, uint64_t n) const { return off <= bytes && n <= bytes - off; }
};
// Maps the region in `slot` if its cookie matches (cookie 0: any). read_only for the tools. ESRCH: nobody there or dead.
result<region_peer> region_open_peer(uint32_t slot, uint64_t cookie, bool read_only);
void region_close_peer(region_peer& p);
bool region_alive(uint32_t slot, uint64_t cookie);   // by the OFD lock; four system calls. cookie 0: any

}  // namespace icepath
