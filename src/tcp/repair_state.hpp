// A TCP connection at rest: what is carried when it moves between a kernel socket and a tcp_sock (DESIGN sections 3 and 8). Plain data, no
// pointers but the two queues; whoever holds the struct owns their memory. Pure; any thread.
// Sequence numbers count FIN where it was sent or received: snd_una <= snd_nxt <= write_seq, copied_seq <= rcv_nxt. sndq holds the bytes
// of [snd_una, write_seq), rcvq those of [copied_seq, rcv_nxt), in both cases without the FIN. Data received out of order is not carried:
// the peer sends it again (RFC 2018 section 8 allows it).
// A state that came from another process is checked by tcp_repair_check before anything else looks at it.
#pragma once
#include <sys/mman.h>
#include "base/raw_syscall.hpp"
#include "base/types.hpp"

namespace icepath {

// Bytes of a queue: anonymous memory of its own, so that neither the host's allocator nor ours is asked while a connection is between two homes.
struct repair_bytes {
  uint8_t* data = nullptr;
  size_t len = 0, cap = 0;
  bool reserve(size_t n) {           // at least n bytes; what is there stays. false: no memory, nothing changed
    if (n <= cap) return true;
    const size_t want = (n + 4095) & ~size_t{4095};
    const long p = data ? raw_syscall(SYS_mremap, data, cap, want, MREMAP_MAYMOVE, 0)
                        : raw_syscall(SYS_mmap, nullptr, want, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p < 0 && p > -4096) return false;
    data = reinterpret_cast<uint8_t*>(p);
    cap = want;
    return true;
  }
  void release() {
    if (data) raw_syscall(SYS_munmap, data, cap);
    *this = {};
  }
};

constexpr size_t repair_queue_max = size_t{1} << 27;   // bytes of one queue; a window cannot be larger than 2^30
enum : uint8_t { REPAIR_URG_NONE, REPAIR_URG_NOTYET, REPAIR_URG_VALID, REPAIR_URG_READ };

struct tcp_repair_state {
  four_tuple tuple{};                // ours first; IPv4 is v4-mapped
  uint8_t state = 0;                 // tcp_state: ESTABLISHED, CLOSE_WAIT, FIN_WAIT1, FIN_WAIT2, LAST_ACK or CLOSING
  bool rcv_shutdown = false;         // the application said SHUT_RD itself
  uint32_t snd_una = 0, snd_nxt = 0, write_seq = 0, rcv_nxt = 0, copied_seq = 0;
  uint32_t snd_wl1 = 0, snd_wnd = 0, max_window = 0, rcv_wnd = 0, rcv_wup = 0;   // TCP_REPAIR_WINDOW
  uint16_t mss_clamp = 536, advmss = 1460, rcv_mss = 536;
  uint8_t snd_wscale = 0, rcv_wscale = 0;
  bool wscale_ok = false, sack_ok = false, tstamp_ok = false;
  bool ts_usec = false;              // timestamps tick in microseconds, not milliseconds (route feature tcp_usec_ts)
  bool ts_recent_valid = false;      // the kernel does not tell its ts_recent
  uint32_t ts_val = 0, ts_recent = 0;
  nsec ts_clock = 0;                 // ts_val was the value at this time of CLOCK_MONOTONIC

  // Measured; carried as far as the other side can take it. Microseconds.
  uint32_t srtt_us = 0, rttvar_us = 0, rto_us = 0, min_rtt_us = ~0u, rcv_rtt_us = 0;   // srtt, rttvar: not scaled
  uint32_t snd_cwnd = 10, snd_ssthresh = 0x7fffffff, rcv_ssthresh = 0, rcv_space = 0, pmtu = 0, reordering = 3;
  uint32_t timer_left_us = ~0u;      // until the retransmission (or probe) timer, at ts_clock; ~0: none, or not known. Many moves must not starve it
  uint32_t idle_us = 0;              // since something was received, at ts_clock: keepalive
  uint8_t backoff = 0;
  uint64_t bytes_acked = 0, bytes_received = 0, bytes_sent = 0, bytes_retrans = 0;
  uint32_t segs_in = 0, segs_out = 0, data_segs_in = 0, data_segs_out = 0, total_retrans = 0, delivered = 0;

  // Options that TCP itself acts on.
  uint32_t sndbuf = 0, rcvbuf = 0;   // as getsockopt tells; 0: default
  uint8_t buf_lock = 0;              // SO_BUF_LOCK: 1 sndbuf, 2 rcvbuf was set by the application
  bool nodelay = false, cork = false, keepopen = false, oobinline = false, reuseaddr = false, linger_on = false;
  uint8_t tos = 0, ttl = 64, priority = 0;
  uint32_t linger_s = 0, mark = 0, user_timeout_ms = 0, notsent_lowat = 0;
  int32_t rcvlowat = 1;
  uint32_t keepidle_s = 0, keepintvl_s = 0, keepcnt = 0;
  char congestion[16] = {};

  // Urgent data (RFC 6093). Only between two tcp_socks: the kernel's repair mode knows none.
  uint8_t urg = REPAIR_URG_NONE, urg_byte = 0;
  bool urg_mode = false;
  uint32_t urg_seq = 0, snd_up = 0;

  repair_bytes rcvq, sndq;
  void release() { rcvq.release(); sndq.release(); }
};

inline bool repair_fin_queued(uint8_t state) { return state == 4 || state == 5 || state == 9 || state == 11; }   // FIN-WAIT-1/2, LAST-ACK, CLOSING
inline bool repair_fin_received(uint8_t state) { return state == 8 || state == 9 || state == 11; }               // CLOSE-WAIT, LAST-ACK, CLOSING
inline bool repair_can_move(uint8_t state) { return state == 1 || repair_fin_queued(state) || repair_fin_received(state); }

// 0, or -EINVAL (cannot be true), -EAFNOSUPPORT, -EOPNOTSUPP (true, but not ours to carry), -EMSGSIZE (a queue is too long).
int tcp_repair_check(const tcp_repair_state& s);

}  // namespace icepath
