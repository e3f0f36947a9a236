// TCP options: reading those of a received segment and writing ours (RFC 9293 3.2, RFC 7323, RFC 2018, RFC 6994).
// Pure, apart from clearing the pending DSACK once it is written. A malformed option ends the parse and is otherwise ignored.
#include "tcp/tcp_internal.hpp"
#include "wire/tcp_options.hpp"

namespace icepath {

namespace {
uint8_t* put32(uint8_t* p, uint32_t v) {
  v = __builtin_bswap32(v);
  std::memcpy(p, &v, 4);
  return p + 4;
}
uint8_t* put_lane(uint8_t* p, uint8_t v) {
  p = put32(p, 0x01010100u | TCPOPT_EXP);
  return put32(p, 0x05000000u | (uint32_t{tcp_exid_lane} << 8) | v);
}
uint8_t* put_ts(const tcp_sock* sk, uint8_t* p) {
  p = put32(p, 0x0101080a);
  p = put32(p, tcp_ts_now(sk));
  return put32(p, sk->ts_recent);
}
}  // namespace

// SYN-only options count only on a SYN, SACK blocks only elsewhere.
void tcp_parse_options(const tcp_hdr* th, tcp_options_received& o) {
  tcp_options w;
  (void)tcp_options_parse(reinterpret_cast<const uint8_t*>(th + 1), th->doff() - sizeof(tcp_hdr), w);
  if (th->flags & TCPHDR_SYN) {
    if (w.has_mss) o.mss_clamp = w.mss;
    o.wscale_ok = w.has_wscale;
    o.snd_wscale = w.wscale;
    o.sack_ok = w.sack_permitted;
  } else {
    o.num_sacks = w.nr_sacks;
    for (unsigned i = 0; i < w.nr_sacks; ++i) o.sacks[i] = {w.sacks[i].start, w.sacks[i].end};
  }
  o.saw_tstamp = w.has_timestamp;
  o.rcv_tsval = w.tsval;
  o.rcv_tsecr = w.tsecr;
  if (w.has_exp && w.exp_id == tcp_exid_lane && w.exp_len == 1) o.lane = w.exp[0];
}

// SYN: what we offer. SYN-ACK: what both have (the tcp_sock already holds the outcome).
unsigned tcp_syn_options(const tcp_sock* sk, bool synack, uint8_t* buf) {
  uint8_t* p = buf;
  const bool ts = synack ? sk->tstamp_ok : sk->params.timestamps;
  const bool sack = synack ? sk->sack_ok : sk->params.sack;
  const bool ws = synack ? sk->wscale_ok : sk->params.window_scaling;
  p = put32(p, 0x02040000u | sk->advmss);
  if (ts) {
    p = put32(p, sack ? 0x0402080au : 0x0101080au);
    p = put32(p, tcp_ts_now(sk));
    p = put32(p, sk->ts_recent);
  } else if (sack) {
    p = put32(p, 0x01010402u);
  }
  if (ws) p = put32(p, 0x01030300u | sk->rcv_wscale);
  if (sk->lane_opt_tx) p = put_lane(p, sk->lane_opt_tx);
  return static_cast<unsigned>(p - buf);
}

unsigned tcp_established_options(tcp_sock* sk, const sk_buff*, uint8_t* buf) {
  uint8_t* p = buf;
  if (sk->tstamp_ok) p = put_ts(sk, p);
  if (ICEPATH_UNLIKELY(sk->lane_opt_tx)) p = put_lane(p, sk->lane_opt_tx);
  const unsigned blocks = sk->num_sacks + (sk->dsack_pending ? 1u : 0u);
  if (ICEPATH_UNLIKELY(blocks)) {
    const unsigned room = (40 - static_cast<unsigned>(p - buf) - 4) / 8;
    const unsigned n = blocks < room ? blocks : room;
    if (n) {
      p = put32(p, 0x01010500u | (2 + 8 * n));
      unsigned done = 0;
      if (sk->dsack_pending) {   // RFC 2883: the duplicate comes first
        p = put32(p, sk->duplicate_sack.start_seq);
        p = put32(p, sk->duplicate_sack.end_seq);
        ++done;
        sk->dsack_pending = false;
      }
      for (unsigned i = 0; done < n; ++i, ++done) {
        p = put32(p, sk->selective_acks[i].start_seq);
        p = put32(p, sk->selective_acks[i].end_seq);
      }
    }
  }
  return static_cast<unsigned>(p - buf);
}

unsigned tcp_established_options_len(const tcp_sock* sk) {
  unsigned len = 0;
  if (sk->lane_opt_tx) len += 8;
  const unsigned blocks = sk->num_sacks + (sk->dsack_pending ? 1u : 0u);
  if (blocks) {
    const unsigned room = (40 - (sk->tcp_header_len - 20u) - len - 4) / 8;
    len += 4 + 8 * (blocks < room ? blocks : room);
  }
  return len;
}

}  // namespace icepath
