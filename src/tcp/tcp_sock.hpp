// The TCP socket, its smaller cousin in TIME-WAIT, and the table that holds both. Owner: the stack, under its owner word; no field is
// touched from outside it, except that the socket layer reads state, err, snd_una, snd_nxt, write_seq, copied_seq, rcv_nxt.
// Field names are the kernel's. Always: snd_una <= snd_nxt <= write_seq, copied_seq <= rcv_nxt (modulo 2^32); every byte of
// [snd_una, write_seq) is in tcp_rtx_queue followed by sk_write_queue (FIN and SYN take one number each).
#pragma once
#include "ip/ip.hpp"
#include "net/net.hpp"
#include "tcp/tcp.hpp"

namespace icepath {

enum tcp_state : uint8_t {   // the kernel's numbers, as in TCP_INFO
  TCP_ESTABLISHED = 1, TCP_SYN_SENT, TCP_SYN_RECV, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_TIME_WAIT, TCP_CLOSE, TCP_CLOSE_WAIT,
  TCP_LAST_ACK, TCP_LISTEN, TCP_CLOSING
};
constexpr uint32_t tcpf(uint8_t state) { return 1u << state; }

enum tcp_ca_state : uint8_t { TCP_CA_Open, TCP_CA_Disorder, TCP_CA_CWR, TCP_CA_Recovery, TCP_CA_Loss };
enum : uint8_t { RCV_SHUTDOWN = 1, SEND_SHUTDOWN = 2, SHUTDOWN_MASK = 3 };
enum : uint8_t { TCPCB_SACKED_ACKED = 1, TCPCB_SACKED_RETRANS = 2, TCPCB_LOST = 4, TCPCB_EVER_RETRANS = 0x80 };
enum : uint8_t { TCP_NAGLE_OFF = 1, TCP_NAGLE_CORK = 2, TCP_NAGLE_PUSH = 4 };
enum : uint8_t { ACK_SCHED = 1, ACK_TIMER = 2, ACK_PUSHED = 4, ACK_PUSHED2 = 8, ACK_NOW = 16 };
enum : uint8_t { ICSK_TIME_NONE, ICSK_TIME_RETRANS, ICSK_TIME_LOSS_PROBE, ICSK_TIME_PROBE0 };
constexpr uint16_t TCP_URG_VALID = 0x100, TCP_URG_NOTYET = 0x200, TCP_URG_READ = 0x400;

// Defaults are RFC's and Linux's; the socket layer may change sk->params before the connection is opened.
struct tcp_params {
  nsec rto_init = sec_ns, rto_min = 200 * msec_ns, rto_max = 120 * sec_ns;   // RFC 6298
  nsec delack_min = 40 * msec_ns, delack_max = 200 * msec_ns;               // RFC 1122 4.2.3.2
  nsec timewait_len = 60 * sec_ns, fin_timeout = 60 * sec_ns;               // timewait_len 0: no TIME-WAIT at all
  uint32_t init_cwnd = 10;                                                  // RFC 6928
  uint32_t sndbuf = 87380, sndbuf_max = 4u << 20;
  uint32_t rcvbuf = 131072, rcvbuf_max = 6u << 20;
  uint32_t tsq_limit_min = 1u << 20;                                        // bytes below the socket before TSQ throttles
  uint16_t max_reordering = 300;
  uint8_t syn_linear_timeouts = 0;                                          // of the SYN, before the exponential ones (tcp_syn_linear_timeouts)
  uint8_t syn_retries = 6, synack_retries = 5, retries2 = 15, orphan_retries = 8, reordering = 3;
  bool timestamps = true, sack = true, window_scaling = true, moderate_rcvbuf = true, autocorking = true, early_retrans = true, dsack = true;
};

struct tcp_congestion_ops;
constexpr unsigned tcp_ca_priv_size = 104;

struct tcp_sack_seq { uint32_t start_seq, end_seq; };

// A wheel timer with a lazy deadline: moving the deadline later, or clearing it, leaves the wheel alone (timer.cpp).
struct tcp_timer {
  timer t;
  nsec deadline = 0;                // 0: not pending
  bool pending() const { return deadline != 0; }
};

struct sock_common {
  list_node hash_node;
  four_tuple tuple{};
  uint64_t hash = 0;
  net* nt = nullptr;
  uint8_t state = TCP_CLOSE;
  bool is_tw = false;
};

struct tcp_timewait_sock : sock_common {
  list_node free_node;
  timer tm;
  uint32_t tw_rcv_nxt = 0, tw_snd_nxt = 0, tw_rcv_wnd = 0, tw_ts_recent = 0, tw_ts_offset = 0;
  nsec tw_ts_recent_stamp = 0, tw_last_oow_ack = 0, tw_len = 0;
  dst_entry* dst = nullptr;
  bool tw_tstamp_ok = false;
  uint8_t tw_tos = 0;
};

struct tcp_sock : sock_common {
  // Who it belongs to.
  const tcp_ops* ops = nullptr;
  void* owner = nullptr;
  dst_entry* dst = nullptr;
  bool dst_pinned = false;          // set by tcp_set_dst: not looked up again
  uint8_t lane_opt_tx = 0, lane_opt_rx = 0;
  uint8_t sk_shutdown = 0;
  bool dead = false;                // no owner any more (tcp_close)
  bool freed = false;               // returned to the pool once wmem_skbs is zero
  bool hashed = false;
  bool fin_owed = false;            // tcp_send_fin found no memory; the keepalive timer tries again
  int err = 0, err_soft = 0;        // positive errno

  // Hot: receive.
  uint32_t pred_flags = 0;          // header prediction: word 3 of the expected header, host order
  uint32_t rcv_nxt = 0, copied_seq = 0, rcv_wup = 0, rcv_wnd = 0;
  uint32_t snd_una = 0, snd_nxt = 0, snd_wnd = 0, snd_wl1 = 0, write_seq = 0, pushed_seq = 0, snd_sml = 0;
  uint32_t max_window = 0, window_clamp = 0, rcv_ssthresh = 0;
  uint8_t snd_wscale = 0, rcv_wscale = 0;
  bool tstamp_ok = false, sack_ok = false, wscale_ok = false;
  uint16_t tcp_header_len = 20;     // with the options every segment carries
  uint16_t mss_cache = 536, advmss = 1460, user_mss = 0, mss_clamp = 536;
  uint16_t gso_segs_max = 1;

  // Timestamps of the segment being processed, and PAWS state (RFC 7323).
  bool saw_tstamp = false;
  uint32_t rcv_tsval = 0, rcv_tsecr = 0, ts_recent = 0, tsoffset = 0;
  nsec ts_recent_stamp = 0;

  // Queues and memory.
  sk_buff_head tcp_rtx_queue, sk_write_queue, sk_receive_queue, out_of_order_queue;
  uint32_t wmem_queued = 0, wmem_alloc = 0, wmem_skbs = 0, rmem_alloc = 0;
  uint32_t sndbuf = 87380, rcvbuf = 131072;
  bool sndbuf_locked = false, rcvbuf_locked = false;
  bool sock_nospace = false;        // the socket layer met EAGAIN: write_space is owed
  bool tsq_throttled = false, tsq_queued = false, mtu_reduced = false;
  uint16_t scaling_ratio = 128;     // payload per truesize, of 256
  uint8_t* frag_page = nullptr;     // last send fragment's frame, shared with the next small send
  uint32_t frag_off = 0;
  list_node tsq_node;

  // Delayed ACK.
  struct {
    uint8_t pending = 0, quick = 0, pingpong = 0, retry = 0;
    nsec ato = 0, lrcvtime = 0;
    uint16_t last_seg_size = 0, rcv_mss = 536;
  } ack;
  uint32_t compressed = 0;

  // Round trip (RFC 6298), microseconds; srtt_us is scaled by 8, mdev and rttvar by 4.
  uint32_t srtt_us = 0, mdev_us = 0, mdev_max_us = 0, rttvar_us = 0, rtt_seq = 0, rtt_min_us = ~0u;
  nsec rtt_min_stamp = 0;
  nsec rto = sec_ns;
  uint8_t backoff = 0, retransmits = 0, probes_out = 0, syn_retries = 0, icsk_pending = 0;
  nsec rto_stamp = 0, retrans_stamp = 0, probes_tstamp = 0, lsndtime = 0, rcv_tstamp = 0;

  // Congestion (RFC 5681, 6675, 6937, 9438).
  const tcp_congestion_ops* ca_ops = nullptr;
  uint8_t ca_state = TCP_CA_Open;
  bool is_cwnd_limited = false, prr_fast_rexmit = false, is_app_limited_flag = false, tlp_retrans = false, frto = false, undo_ok = false;
  uint16_t reordering = 3;
  uint32_t snd_cwnd = 10, snd_cwnd_cnt = 0, snd_cwnd_clamp = ~0u, snd_ssthresh = 0x7fffffff, prior_cwnd = 0, prior_ssthresh = 0, cwnd_usage_seq = 0;
  uint32_t max_packets_out = 0, snd_cwnd_used = 0, prr_delivered = 0, prr_out = 0;
  nsec snd_cwnd_stamp = 0;
  uint32_t packets_out = 0, retrans_out = 0, sacked_out = 0, lost_out = 0;
  uint32_t high_seq = 0, undo_marker = 0, tlp_high_seq = 0;
  int32_t undo_retrans = 0;
  sk_buff* retransmit_skb_hint = nullptr;
  sk_buff* highest_sack = nullptr;  // last SACKed skb of the rtx queue, nullptr: none
  alignas(8) uint8_t ca_priv[tcp_ca_priv_size] = {};

  // SACK, both ways.
  uint8_t num_sacks = 0;
  bool dsack_pending = false;
  tcp_sack_seq selective_acks[4] = {}, duplicate_sack{};

  // Urgent data (RFC 6093).
  uint32_t snd_up = 0, urg_seq = 0;
  uint16_t urg_data = 0;
  bool urg_mode = false, urginline = false;

  // Options of the socket layer.
  uint8_t nonagle = 0;
  bool keepopen = false, linger_on = false;
  uint8_t keepalive_probes = 0, defer_accept = 0, tos = 0, ttl = 64, priority = 0;
  uint32_t mark = 0, notsent_lowat = ~0u, user_timeout_ms = 0, user_window_clamp = 0;
  int32_t rcvlowat = 1;
  nsec keepalive_time = 0, keepalive_intvl = 0, linger2 = 0;   // 0: default; linger2 ~0: no wait
  nsec linger_ns = 0;
  tcp_params params;

  // Timers (timer.cpp).
  tcp_timer retransmit_timer, delack_timer, keep_timer;

  // RFC 5961 rate limit for answers to invalid segments.
  nsec last_oow_ack_time = 0;

  // Receive buffer autotuning (DRS).
  struct { uint32_t space = 0, seq = 0; nsec time = 0; } rcvq_space;
  struct { uint32_t rtt_us = 0, seq = 0; nsec time = 0; } rcv_rtt_est;
  uint32_t rcv_rtt_last_tsecr = 0;

  // Passive open. A listener's children are real sockets in SYN-RECEIVED, counted and bounded by the listener.
  tcp_sock* listener = nullptr;
  list_node accept_node;            // in listener->syn_queue, then in listener->accept_queue
  list_head syn_queue, accept_queue;
  uint32_t syn_qlen = 0, accept_qlen = 0, backlog = 0;
  bool passive = false, expect = false;

  // What TCP_INFO tells (RFC 4898 names in comments of linux/tcp.h).
  uint64_t bytes_sent = 0, bytes_acked = 0, bytes_received = 0, bytes_retrans = 0;
  uint32_t segs_in = 0, segs_out = 0, data_segs_in = 0, data_segs_out = 0, total_retrans = 0, dsack_dups = 0, reord_seen = 0, rcv_ooopack = 0;
  nsec rack_mstamp = 0;             // send time of the latest delivered segment (RFC 8985 6.2)
  tcp_sack_seq recv_sack_cache[4] = {};
  uint32_t delivered = 0, lost = 0, app_limited = 0, total_rto = 0;
  uint64_t rate_delivered = 0, rate_bytes = 0;
  uint64_t rate_interval_us = 0;
  nsec delivered_mstamp = 0, first_tx_mstamp = 0;
  uint8_t chrono_type = 0;          // 0 none, 1 busy, 2 rwnd limited, 3 sndbuf limited
  nsec chrono_start = 0, chrono_stat[3] = {};
};

struct tcp_table {
  net* n = nullptr;
  uint64_t mask = 0;
  list_head* ehash = nullptr;       // connections and TIME-WAIT
  list_head* lhash = nullptr;       // listeners, by port
  tcp_sock* pool = nullptr;
  tcp_sock** free_socks = nullptr;
  uint32_t max_socks = 0, nfree = 0, ninit = 0;
  tcp_timewait_sock* tws = nullptr;
  uint32_t max_tw = 0, tw_init = 0, tw_count = 0;
  list_head tw_free;
  list_head tsq;                    // sockets with more to send once the ring has room
  timer tsq_timer;                  // safety net: tcp_tsq_run is normally called by the poll loop
  tcp_params params;                // defaults for new sockets
  nsec challenge_stamp = 0;
  uint32_t challenge_count = 0, challenge_limit = 1000;
  uint64_t port_seed = 0;
  // A SYN for which there is neither connection nor listener: a socket prepared by tcp_expect, or nullptr (the SYN is dropped, not reset).
  tcp_sock* (*unmatched_syn)(net& n, const four_tuple& t) = nullptr;
  // A segment from the wire port for which there is nobody here: looked at, not consumed; it is not answered.
  void (*foreign)(net& n, const sk_buff* skb) = nullptr;
};
constexpr uint32_t tcp_lhash_size = 64;

void tcp_set_dst(net& n, tcp_sock* sk, dst_entry* d);   // takes the reference
void tcp_tsq_run(net& n);                               // after clean_tx: sends what waited for room below

}  // namespace icepath
