// The TCP header on the wire (RFC 9293 section 3.1) and the parsed options of one segment.
#pragma once
#include "base/types.hpp"

namespace icepath {

struct tcp_hdr {
  be16 source, dest;
  be32 seq, ack_seq;
  uint8_t doff_res;      // data offset in the high nibble
  uint8_t flags;
  be16 window, check, urg_ptr;
  uint32_t doff() const { return (doff_res >> 4) * 4u; }
};
static_assert(sizeof(tcp_hdr) == 20 && alignof(tcp_hdr) == 1 && offsetof(tcp_hdr, check) == 16);

enum : uint8_t { TCPHDR_FIN = 1, TCPHDR_SYN = 2, TCPHDR_RST = 4, TCPHDR_PSH = 8, TCPHDR_ACK = 16, TCPHDR_URG = 32, TCPHDR_ECE = 64, TCPHDR_CWR = 128 };
constexpr uint8_t TCPOPT_EXP = 254;
constexpr uint16_t tcp_exid_lane = 0x4950;   // "IP": ExID of the lane option (RFC 6994)

struct tcp_options_received {
  uint16_t mss_clamp = 0;
  uint8_t snd_wscale = 0, lane = 0, num_sacks = 0;
  bool saw_tstamp = false, sack_ok = false, wscale_ok = false;
  uint32_t rcv_tsval = 0, rcv_tsecr = 0;
  struct { uint32_t start_seq, end_seq; } sacks[4];
};
// Reads the options after `th`; a malformed option ends the parse, as in the kernel. SYN-only options are ignored without SYN.
void tcp_parse_options(const tcp_hdr* th, tcp_options_received& o);

}  // namespace icepath
