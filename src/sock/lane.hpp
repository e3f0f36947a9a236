// Two lanes under one connection (DESIGN sections 3 and 8): the kernel's TCP connection, and a connection of icepath's own TCP over the local port.
// Each direction is on one of them; it changes at a byte boundary that both ends know exactly.
//
// Promotion. When both libraries have published the connection (rendezvous.hpp), one opens the fast connection. Then each end, for its own sending
// direction, writes a *fast header* {magic, row, N} as the first 16 bytes of the fast stream: "N bytes went by the kernel, the rest
// comes here". The receiver reads the kernel lane until it has had N bytes, then the fast stream.
// Demotion, one-sided at any time: the sender writes a *kernel header* {magic, flags, F} as the next 16 bytes of the kernel lane: "F bytes of
// the fast stream count, what follows comes here". F may be less than what the receiver already has (the sender moved bytes that were sent but not
// acknowledged): the receiver then skips the surplus in the kernel lane. A receiver that wants its incoming direction back asks by a TCP option (lane_opt).
// While rx is `fast`, the next bytes of the kernel lane can only be a kernel header or the end of the connection; the helper thread watches for either.
// Kernel end of stream without header: the peer died. What it had sent and we have is delivered; then end of stream if that was all, else ECONNRESET.
//
// Everything here runs under the owner word of lane::st. Socket calls take the plain kernel path while socket::fast is false; setting
// it (lane_commit) requires that no plain call is in flight, so from then on every byte passes through this file.
#pragma once
#include "sock/socket.hpp"
#include "stack/stack.hpp"
#include "tcp/tcp.hpp"

namespace icepath {

enum class lane_phase : uint8_t {
  idle,        // not published
  published,   // waiting for the other end
  attaching,   // we found it; the ring is being set up
  opening,     // handshake on the ring; socket::fast is set, both directions still kernel
  open,        // fast connection established
  closing,     // last fd closed; what is queued is still being delivered (orphan)
};

// Bits of the lane option. DEMOTE: move your sending direction to the kernel lane. KERNEL: my kernel header is in the kernel lane, look. CLOSED:
// my program has closed, whoever writes to me writes to nobody. The others: handback.cpp.
enum : uint8_t { LANE_OPT_DEMOTE = 1, LANE_OPT_RETURN = 2, LANE_OPT_FROZEN = 4, LANE_OPT_RETURNED = 8, LANE_OPT_CANNOT = 16, LANE_OPT_KERNEL = 32,
                LANE_OPT_CLOSED = 64 };
enum class lane_back : uint8_t { none, asked, returned };             // our receive direction goes home
enum class lane_held : uint8_t { none, freezing, frozen, writing };   // our sending direction waits while the peer's goes home

struct fast_header { uint32_t magic, row; uint64_t n; };
struct kernel_header { uint32_t magic, flags; uint64_t f; };
static_assert(sizeof(fast_header) == 16 && sizeof(kernel_header) == 16);
// kernel_header::flags of an end that has closed, not only shut its sending direction: nothing it is sent will be read. The low bits are those of
// the count of fast bytes that had reached it.
constexpr uint32_t header_closed = 0x80000000u;
constexpr uint32_t fast_magic = 0x31504349, kernel_magic = 0x314b4349;

struct lane {
  list_node work;            // on stack::lane_work
  list_node member;          // on the stack's list of lanes
  socket* s = nullptr;
  stack* st = nullptr;
  tcp_sock* sk = nullptr;    // while opening, open, closing
  int fd = -1;               // kernel lane
  uint32_t gen = 0;          // raised when the object is reused
  uint32_t no = 0;           // index in the pool
  four_tuple t{};
  stack_id peer{};
  uint32_t token = 0, peer_row = ~0u;
  lane_phase phase = lane_phase::idle;
  tx_lane tx = tx_lane::kernel;
  rx_lane rx = rx_lane::kernel;
  bool bulk_stays = false, bulk = false;   // wire: large transfers are the kernel's; this one has become one
  uint32_t calls = 0;        // wire: data calls since bulk was looked at, and the bytes then
  uint64_t counted = 0;
  bool wire = false;         // no second lane: the connection itself has moved (takeover.hpp)
  int reuse_addr = 0;        // wire: SO_REUSEADDR, which the kernel's socket does not keep while it is parked
  bool want_kernel = false;  // demote and stay there (rare call, `icepath off`)
  bool watched = false, peer_gone = false, rd_shut = false, kernel_event = false, rx_hdr_seen = false, fatal = false;
  bool hand_back = false;    // asked for before the fast connection was open
  bool peer_died = false;    // its process has ended
  bool tx_late = false;      // our fast header is not written yet: the program found the send buffer full, and nobody has read since
  bool tx_wanted = false;    // our kernel header waits until the fast header is acknowledged
  bool reset_told = false;   // the program has had the kernel lane's ECONNRESET
  bool closing = false;      // the last fd closed while it was opening
  bool fin_wanted = false;   // shutdown(SHUT_WR): the kernel lane is shut when our bytes are in it
  bool peer_closed = false;  // our direction goes to nobody: the kernel lane answers what is written (RST, then EPIPE)
  bool we_closed = false;    // our program has closed, and nobody else has the connection: the kernel header says so
  bool moved = false;        // what was not acknowledged has been moved to the kernel lane
  lane_back back = lane_back::none;
  lane_held held = lane_held::none;
  uint8_t opt_seen = 0;      // every option bit the peer has sent
  uint8_t* spool = nullptr;  // taken from both lanes, not yet returned
  size_t spool_len = 0, spool_cap = 0;
  uint8_t* tail = nullptr;   // goes into the kernel lane before anything else of ours
  size_t tail_len = 0, tail_off = 0;
  uint8_t out[16] = {}, out_len = 0, out_off = 0;   // kernel header being written
  uint8_t in[16] = {}, in_len = 0;                  // kernel header being read
  uint64_t behind = 0;       // fast bytes that came while the kernel lane was still read: watchers have been told of so many
  uint64_t rx_n = 0;         // kernel bytes before the fast stream
  uint64_t rx_f = ~0ull;     // fast bytes before the kernel lane goes on; ~0 unknown
  uint64_t k_skip = 0;       // surplus bytes of the kernel lane to drop
  uint64_t rd_end = ~0ull, k_rd_end = ~0ull;   // rd_shut: fast and kernel bytes that are still read; later ones are dropped
  uint32_t k_lowat = 0;      // SO_RCVLOWAT the kernel lane has now, 0: the program's
  uint64_t f_tx = 0, f_rx = 0;
  int pending_err = 0;       // positive errno, reported once after the last fast byte
  nsec since = 0;
  uint32_t rfs_thread = 0, rfs_hits = 0;   // T08: a thread without this stack that uses the connection, and how often in a row
  timer tm;                  // opening: gives up; closing: looks again
};

inline lane* lane_of_timer(timer* t) { return reinterpret_cast<lane*>(reinterpret_cast<char*>(t) - __builtin_offsetof(lane, tm)); }

// ---- promotion (promote.cpp)
void promote_step(socket* s, int fd);                // before a plain data call
bool promote_poll(socket* s);                        // published or attaching: give the stack a look. True: socket::fast is set now
void lane_open_failed(lane* l, const char* why, bool again = false);   // opening -> idle, where it always was. again: it may be tried later
void lane_unpublish(socket* s, const char* why);     // a connection that still waits for its other end does so no longer
void lane_unmap(lane* l);                            // out of the map by tuple
void promote_forget();                               // in a fork child
tcp_sock* promote_syn(net& n, const four_tuple& t);  // a SYN for which TCP has no socket

// ---- state machine (lane.cpp)
lane* lane_alloc(socket* s, stack* st, int fd);
void lane_free(lane* l);
void lanes_forget();                                 // in a fork child
lane* lane_by_key(uint64_t key);
void lane_fd_gone(file* f, int fd);                  // fd is about to close, other descriptors of f remain
void lane_rebase(lane* l, int fd);                   // the kernel lane goes by this number from now on
inline uint64_t lane_key(const lane* l) { return (uint64_t{l->gen & 0x3fffffff} << 32) | l->no; }
bool lane_commit(lane* l);                           // socket::fast := true, or false: a plain call is in flight
void lane_start_tx(lane* l);                         // our direction goes by the fast connection from now on, when that was put off
void lane_note(lane* l);                             // from upcalls: run lane_advance at the end of the poll round
void lane_advance(lane* l);
void lane_run_work(stack* st);
void lane_peer_died(lane* l);                        // its process has ended. The kernel lane may be open still, in a fork child of it
void lane_kernel_input(lane* l);                     // the kernel lane has something while rx is fast
extern const tcp_ops lane_tcp_ops;

// ---- data (lane_data.cpp): never block. Bytes, 0 (end of stream), -errno; -EAGAIN: wait for readiness; -ENOBUFS, -ENOMEM: no frames left, try again soon
ssize_t lane_send(lane* l, user_msg& m, int flags);
ssize_t lane_recv(lane* l, user_msg* m, size_t max, int flags);
bool lane_at_mark(const lane* l);                    // the next byte is the kernel lane's, and behind the urgent mark
void lane_settle(lane* l);                           // receive direction: on to the next lane when this one has given all
void lane_publish(lane* l);                          // readiness for sock_poll; after everything that may change it
uint64_t lane_unread(const lane* l);                 // payload bytes in the fast receive queue
size_t lane_outq(const lane* l);

// ---- demotion (demote.cpp)
void lane_demote(lane* l, const char* why);          // both directions, soft: the process still reads what is queued
bool lane_tx_to_kernel(lane* l);                     // our direction: false while the kernel header cannot be written
uint32_t lane_header_flags(const lane* l);           // of a kernel header of ours
void lane_peer_closed(lane* l, bool lost);           // the peer's program has closed. lost: not all we sent had reached it
void lane_tell_kernel(lane* l);                      // the peer should look at its kernel lane now
bool lane_header_acked(const lane* l);               // the peer's TCP has our fast header: a kernel header cannot overtake it
void lane_steer(lane* l);                            // T08: after a call by a thread whose stack this is not
void lane_finish_if_done(lane* l);                   // both directions kernel, all acknowledged: the fast connection goes
bool lane_close(lane* l, bool last_chance);          // last fd closes. True: lane is finished, close the fd. False: orphan, fd was dup'd

// ---- hand-back (handback.cpp)
void lane_handback(lane* l, const char* why);        // both directions; afterwards the raw descriptor gives what is unread. May free the lane
// More than this is left to the ring before a direction ends: bytes that wait in the kernel's send queue are lost when the peer's kernel lane answers RST.
constexpr size_t lane_move_most = 64 * 1024;
void lane_handback_step(lane* l);                    // from lane_advance
bool lane_flush_tail(lane* l);                       // false: the kernel lane has no room
bool lane_moving(const lane* l);                     // some of this is under way
bool lane_move(lane* l);                             // our direction, with what is not acknowledged. True: it goes by the kernel lane now
bool lane_shut_write(lane* l);                       // true: the caller shuts the kernel lane; false: it is done later
bool lane_may_give_up(const lane* l);                // lane_open_failed is safe: the peer cannot have opened its end
bool sock_give_prefix(socket* s);                    // to the fork child that asked
void sock_take_prefix(socket* s, uint32_t slot, uint32_t serial);
ssize_t sock_read_prefix(socket* s, const iovec* iov, size_t iovcnt, int flags);   // -EAGAIN: there is none
void lanes_exit(stack* st, bool go_on = false);       // go_on: the process does not end, their descriptors are closed
void lanes_for_each(stack* st, void (*fn)(lane*));   // inside

}  // namespace icepath
