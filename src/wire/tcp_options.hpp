// TCP options: raw bytes on one side, a validated representation on the other (RFC 9293 3.1, 7323, 2018, 6994). Pure.
//
// parse never reads beyond n and accepts what RFC 9293 (MUST-6, MUST-7) demands: unknown kinds are skipped by their length, a
// length that is impossible ends the parsing and what came before it stays valid. A known kind of a wrong length is ignored.
// build writes a multiple of four bytes in the order the kernel uses, or nothing when it would not fit into 40.
#pragma once
#include "base/types.hpp"

namespace icepath {

constexpr size_t tcp_max_options = 40;
constexpr unsigned tcp_max_sack_blocks = 4;
constexpr uint8_t tcp_max_window_shift = 14;   // RFC 7323 section 2.3

struct tcp_sack_block {
  uint32_t start, end;
};

struct tcp_options {
  bool has_mss = false, has_wscale = false, sack_permitted = false, has_timestamp = false;
  uint16_t mss = 0;
  uint8_t wscale = 0;                // at most 14
  uint32_t tsval = 0, tsecr = 0;
  uint8_t nr_sacks = 0;
  tcp_sack_block sacks[tcp_max_sack_blocks] = {};
  const uint8_t* exp = nullptr;      // kind 254 (RFC 6994): the bytes after the ExID, inside the parsed text
  uint8_t exp_len = 0;
  uint16_t exp_id = 0;
  bool has_exp = false;
};

// false: the text is malformed somewhere; what was understood up to there is in o.
bool tcp_options_parse(const uint8_t* p, size_t n, tcp_options& o);
// Bytes written to `to`, a multiple of 4 and at most min(room, 40); 0 when there is nothing to say or not enough room.
size_t tcp_options_build(const tcp_options& o, uint8_t* to, size_t room);

}  // namespace icepath
