// What the files of src/tcp say to each other. Nothing outside this directory and its tests includes it.
#pragma once
#include <sys/socket.h>
#include "tcp/segment.hpp"
#include "tcp/tcp_sock.hpp"

namespace icepath {

constexpr uint32_t tcp_min_mss = 48, tcp_min_snd_mss = 88, tcp_max_window = 65535, tcp_max_wscale = 14;
constexpr uint32_t tcp_infinite_ssthresh = 0x7fffffff;
constexpr nsec tcp_ato_min = 40 * msec_ns, tcp_paws_24days = 24ull * 24 * 3600 * sec_ns, tcp_resource_probe = 500 * msec_ns;
constexpr uint32_t tcp_min_sndbuf = 4608, tcp_min_rcvbuf = 2304;
constexpr unsigned tcp_max_quickacks = 16;

// ---- small accessors
inline tcp_sock* tcp_sk(sock_common* c) { return static_cast<tcp_sock*>(c); }
inline nsec tcp_now(const tcp_sock* sk) { return sk->nt->now; }
inline uint32_t tcp_ts_now(const tcp_sock* sk) { return static_cast<uint32_t>(sk->nt->now / msec_ns) + sk->tsoffset; }
inline uint32_t tcp_skb_pcount(const sk_buff* s) { return s->cb.tcp_gso_segs; }
inline uint32_t tcp_skb_mss(const sk_buff* s) { return s->cb.tcp_gso_size; }
inline uint32_t tcp_left_out(const tcp_sock* sk) { return sk->sacked_out + sk->lost_out; }
inline uint32_t tcp_packets_in_flight(const tcp_sock* sk) {
  const int32_t f = static_cast<int32_t>(sk->packets_out - tcp_left_out(sk) + sk->retrans_out);
  return f < 0 ? 0 : static_cast<uint32_t>(f);
}
inline uint32_t tcp_wnd_end(const tcp_sock* sk) { return sk->snd_una + sk->snd_wnd; }
inline bool tcp_in_slow_start(const tcp_sock* sk) { return sk->snd_cwnd < sk->snd_ssthresh; }
inline bool tcp_in_initial_slowstart(const tcp_sock* sk) { return sk->snd_ssthresh >= tcp_infinite_ssthresh; }
inline uint32_t tcp_receive_window(const tcp_sock* sk) {
  const int32_t w = static_cast<int32_t>(sk->rcv_wup + sk->rcv_wnd - sk->rcv_nxt);
  return w < 0 ? 0 : static_cast<uint32_t>(w);
}
inline bool tcp_is_cwnd_limited(const tcp_sock* sk) {
  if (sk->is_cwnd_limited) return true;
  return tcp_in_slow_start(sk) && sk->snd_cwnd < 2 * sk->max_packets_out;
}
inline uint32_t tcp_win_from_space(const tcp_sock* sk, int64_t space) {
  return space <= 0 ? 0 : static_cast<uint32_t>((static_cast<uint64_t>(space) * sk->scaling_ratio) >> 8);
}
inline uint32_t tcp_space_from_win(const tcp_sock* sk, uint32_t win) { return static_cast<uint32_t>((uint64_t{win} << 8) / sk->scaling_ratio); }
inline uint32_t tcp_space(const tcp_sock* sk) { return tcp_win_from_space(sk, int64_t{sk->rcvbuf} - sk->rmem_alloc); }
inline uint32_t tcp_full_space(const tcp_sock* sk) { return tcp_win_from_space(sk, sk->rcvbuf); }
inline int64_t sk_stream_wspace(const tcp_sock* sk) { return int64_t{sk->sndbuf} - sk->wmem_queued; }
inline uint32_t tcp_notsent(const tcp_sock* sk) { return sk->write_seq - sk->snd_nxt; }
inline bool sk_stream_memory_free(const tcp_sock* sk) { return sk->wmem_queued < sk->sndbuf && tcp_notsent(sk) < sk->notsent_lowat; }
inline bool sk_stream_is_writeable(const tcp_sock* sk) {
  return sk_stream_wspace(sk) >= static_cast<int64_t>(sk->wmem_queued >> 1) && tcp_notsent(sk) < sk->notsent_lowat;
}
inline bool tcp_skb_is_last(const sk_buff* s) { return s->next == nullptr; }
inline sk_buff* tcp_send_head(const tcp_sock* sk) { return sk->sk_write_queue.first; }
inline bool tcp_in_state(const tcp_sock* sk, uint32_t mask) { return (tcpf(sk->state) & mask) != 0; }
inline void tcp_stat(const tcp_sock* sk, std::atomic<uint64_t> mib::*f, uint64_t v = 1) { if (sk->nt->stats) mib_add(sk->nt->stats->*f, v); }
inline void net_stat(net& n, std::atomic<uint64_t> mib::*f, uint64_t v = 1) { if (n.stats) mib_add(n.stats->*f, v); }
inline uint8_t tcp_default_ttl() { return 64; }

// ---- segment.cpp
bool tcp_checksum_ok(const sk_buff* skb, const four_tuple& t);
void tcp_fill_checksum(sk_buff* skb, const four_tuple& t);

// ---- tcp_table.cpp
sock_common* tcp_lookup(net& n, const four_tuple& t);
tcp_sock* tcp_lookup_listener(net& n, const inet_addr& addr, uint16_t port);
bool tcp_hash(net& n, sock_common* c);         // false: the 4-tuple is taken
void tcp_hash_listener(net& n, tcp_sock* sk);
void tcp_unhash(sock_common* c);
tcp_timewait_sock* tcp_tw_alloc(net& n);
void tcp_tw_free(net& n, tcp_timewait_sock* tw);
void tcp_sk_put_back(net& n, tcp_sock* sk);
uint32_t tcp_secure_seq(net& n, const four_tuple& t);       // RFC 6528
uint32_t tcp_secure_ts_off(net& n, const four_tuple& t);

// ---- options.cpp
unsigned tcp_syn_options(const tcp_sock* sk, bool synack, uint8_t* buf);
unsigned tcp_established_options(tcp_sock* sk, const sk_buff* skb, uint8_t* buf);
unsigned tcp_established_options_len(const tcp_sock* sk);   // for the MSS: all but what every segment has anyway

// ---- input.cpp, input_state.cpp
void tcp_rcv_established(net& n, tcp_sock* sk, sk_buff* skb, tcp_hdr* th);
void tcp_rcv_state_process(net& n, tcp_sock* sk, sk_buff* skb, tcp_hdr* th);   // consumes skb
void tcp_rcv_synsent(net& n, tcp_sock* sk, sk_buff* skb, tcp_hdr* th);
void tcp_rcv_syn_recv_open(net& n, tcp_sock* sk, const sk_buff* skb, const tcp_hdr* th, const tcp_options_received& o);  // SYN of a passive open
bool tcp_validate_incoming(net& n, tcp_sock* sk, sk_buff* skb, const tcp_hdr* th, bool syn_inerr);
bool tcp_fast_parse_options(tcp_sock* sk, const tcp_hdr* th, tcp_options_received& o);
void tcp_take_lane_option(tcp_sock* sk, uint8_t v);
void tcp_fast_path_on(tcp_sock* sk);
void tcp_fast_path_check(tcp_sock* sk);
void tcp_urg(net& n, tcp_sock* sk, sk_buff* skb, const tcp_hdr* th);
void tcp_reset(net& n, tcp_sock* sk);
void tcp_fin(net& n, tcp_sock* sk);
void tcp_data_snd_check(net& n, tcp_sock* sk);
void tcp_ack_snd_check(net& n, tcp_sock* sk);
void tcp_finish_connect(net& n, tcp_sock* sk);
void tcp_init_transfer(net& n, tcp_sock* sk);
bool tcp_oow_rate_limited(net& n, nsec* last);
void tcp_send_challenge_ack(net& n, tcp_sock* sk);
void tcp_mss_from_syn(tcp_sock* sk, const tcp_options_received& o);

// ---- input_ack.cpp
enum : uint32_t {
  FLAG_DATA = 1, FLAG_WIN_UPDATE = 2, FLAG_DATA_ACKED = 4, FLAG_RETRANS_DATA_ACKED = 8, FLAG_SYN_ACKED = 16, FLAG_DATA_SACKED = 32,
  FLAG_ECE = 64, FLAG_LOST_RETRANS = 128, FLAG_SLOWPATH = 256, FLAG_ORIG_SACK_ACKED = 512, FLAG_SND_UNA_ADVANCED = 1024,
  FLAG_DSACKING_ACK = 2048, FLAG_SACK_RENEGING = 4096, FLAG_UPDATE_TS_RECENT = 8192, FLAG_SET_XMIT_TIMER = 1u << 14, FLAG_DSACK_TLP = 1u << 15,
  FLAG_ACKED = FLAG_DATA_ACKED | FLAG_SYN_ACKED, FLAG_NOT_DUP = FLAG_DATA | FLAG_WIN_UPDATE | FLAG_ACKED,
  FLAG_FORWARD_PROGRESS = FLAG_ACKED | FLAG_DATA_SACKED
};
// 1: acceptable; 0: old, ignored; -1: acknowledges what was never sent (an answer has been sent)
int tcp_ack(net& n, tcp_sock* sk, const sk_buff* skb, const tcp_hdr* th, const tcp_options_received* o, uint32_t flag);
void tcp_rtt_estimator(tcp_sock* sk, int64_t mrtt_us);
void tcp_set_rto(tcp_sock* sk);
void tcp_replace_ts_recent(tcp_sock* sk, uint32_t seq);
void tcp_rearm_rto(tcp_sock* sk);
void tcp_sndbuf_expand(tcp_sock* sk);
void tcp_check_space(tcp_sock* sk);
void tcp_unlink_rtx(net& n, tcp_sock* sk, sk_buff* skb);

// ---- sack.cpp
struct tcp_sacktag_state { int64_t sack_rtt_us = -1; uint32_t reord = 0; bool have_reord = false; };
uint32_t tcp_sacktag_write_queue(net& n, tcp_sock* sk, const sk_buff* skb, const tcp_options_received& o, uint32_t prior_snd_una, tcp_sacktag_state& st);
void tcp_rate_skb_delivered(tcp_sock* sk, const sk_buff* skb);
void tcp_sack_new_ofo_skb(tcp_sock* sk, uint32_t seq, uint32_t end_seq);
void tcp_sack_remove(tcp_sock* sk);
void tcp_dsack_set(tcp_sock* sk, uint32_t seq, uint32_t end_seq);
void tcp_sack_rebuild(tcp_sock* sk);

// ---- recovery.cpp
void tcp_fastretrans_alert(net& n, tcp_sock* sk, uint32_t prior_snd_una, uint32_t num_dupack, uint32_t& flag, int& rexmit, uint32_t newly_acked_sacked);
void tcp_enter_loss(tcp_sock* sk);
void tcp_enter_cwr(tcp_sock* sk);
void tcp_try_keep_open(tcp_sock* sk);
void tcp_cong_control(tcp_sock* sk, uint32_t ack, uint32_t acked_sacked, uint32_t flag);
void tcp_mark_skb_lost(tcp_sock* sk, sk_buff* skb);
void tcp_check_sack_reordering(tcp_sock* sk, uint32_t low_seq);
void tcp_set_ca_state(tcp_sock* sk, uint8_t s);
void tcp_process_tlp_ack(tcp_sock* sk, uint32_t ack, uint32_t flag);
bool tcp_try_undo_loss(tcp_sock* sk, bool frto_undo);

// ---- ofo.cpp
void tcp_data_queue(net& n, tcp_sock* sk, sk_buff* skb);   // consumes skb: data at the payload, cb set
bool tcp_queue_rcv(net& n, tcp_sock* sk, sk_buff* skb);    // in order; true: eaten (freed)
void tcp_event_data_recv(net& n, tcp_sock* sk, const sk_buff* skb);
void tcp_data_ready(tcp_sock* sk);
bool tcp_try_rmem(net& n, tcp_sock* sk, const sk_buff* skb, bool in_order);

// ---- output.cpp, retransmit.cpp
int tcp_transmit_skb(net& n, tcp_sock* sk, sk_buff* skb, bool clone_it);
bool tcp_write_xmit(net& n, tcp_sock* sk, uint32_t mss_now, uint8_t nonagle, int push_one);   // true: nothing in flight and something waits
void tcp_push_pending_frames(net& n, tcp_sock* sk);
void tcp_push_pending(net& n, tcp_sock* sk, uint32_t mss_now, uint8_t nonagle);
void tcp_push_one(net& n, tcp_sock* sk, uint32_t mss_now);
void tcp_set_skb_tso_segs(sk_buff* skb, uint32_t mss_now);
bool tcp_fragment(net& n, tcp_sock* sk, sk_buff_head& q, sk_buff* skb, uint32_t len, uint32_t mss_now);
void tcp_adjust_pcount(tcp_sock* sk, const sk_buff* skb, int decr);
uint32_t tcp_current_mss(tcp_sock* sk);
uint32_t tcp_send_mss(tcp_sock* sk, uint32_t* size_goal, int flags);
void tcp_sync_mss(tcp_sock* sk, uint32_t pmtu);
bool tcp_route(net& n, tcp_sock* sk);          // makes sure dst is usable
sk_buff* tcp_stream_alloc_skb(net& n, tcp_sock* sk);
void tcp_queue_skb(tcp_sock* sk, sk_buff* skb);
void tcp_free_tx_skb(net& n, tcp_sock* sk, sk_buff* skb);
int tcp_send_syn(net& n, tcp_sock* sk, uint8_t flags);
void tcp_send_fin(net& n, tcp_sock* sk);
void tcp_send_active_reset(net& n, tcp_sock* sk);
void tcp_send_reset(net& n, const four_tuple& t, const tcp_hdr* th, uint32_t seg_len, dst_entry* dst);   // t from our side
void tcp_send_tw_ack(net& n, tcp_timewait_sock* tw);
void tcp_send_delayed_ack(net& n, tcp_sock* sk);
int tcp_write_wakeup(net& n, tcp_sock* sk);
void tcp_send_probe0(net& n, tcp_sock* sk);
void tcp_send_window_probe(net& n, tcp_sock* sk);
int tcp_retransmit_skb(net& n, tcp_sock* sk, sk_buff* skb, uint32_t segs);
void tcp_xmit_retransmit_queue(net& n, tcp_sock* sk);
bool tcp_schedule_loss_probe(net& n, tcp_sock* sk);
void tcp_send_loss_probe(net& n, tcp_sock* sk);
void tcp_chrono_set(tcp_sock* sk, uint8_t type);
bool skb_still_in_host_queue(const sk_buff* skb);
void tcp_wfree(sk_buff* skb);

// ---- window.cpp
uint32_t tcp_select_window(tcp_sock* sk);      // scaled down, what goes into the header
uint32_t tcp_select_window_raw(tcp_sock* sk);  // RFC 1122 4.2.3.3
void tcp_select_initial_window(tcp_sock* sk);
void tcp_rcv_space_adjust(net& n, tcp_sock* sk);
void tcp_cleanup_rbuf(net& n, tcp_sock* sk, int copied);
void tcp_grow_window(tcp_sock* sk, const sk_buff* skb);
void tcp_clamp_window(tcp_sock* sk);
void tcp_measure_rcv_mss(tcp_sock* sk, const sk_buff* skb);
void tcp_rcv_rtt_measure_ts(tcp_sock* sk, const sk_buff* skb);
void tcp_rcv_rtt_measure(tcp_sock* sk);
void tcp_enter_quickack_mode(tcp_sock* sk, unsigned max);
bool tcp_in_quickack_mode(const tcp_sock* sk);

// ---- timer.cpp: the only file that arms timers
void tcp_init_xmit_timers(tcp_sock* sk);
void tcp_clear_xmit_timers(tcp_sock* sk);
void tcp_reset_xmit_timer(tcp_sock* sk, uint8_t what, nsec when);
void tcp_clear_retrans_timer(tcp_sock* sk);
void tcp_set_delack_timer(tcp_sock* sk, nsec deadline);
void tcp_clear_delack_timer(tcp_sock* sk);
void tcp_reset_keepalive_timer(tcp_sock* sk, nsec after);
void tcp_set_keepalive(tcp_sock* sk, bool on);
void tcp_start_timewait_timer(net& n, tcp_timewait_sock* tw);
void tcp_check_probe_timer(tcp_sock* sk);
nsec tcp_probe0_when(const tcp_sock* sk);
void tcp_arm_tsq(net& n);
inline nsec tcp_keepalive_time(const tcp_sock* sk) { return sk->keepalive_time ? sk->keepalive_time : 7200 * sec_ns; }
inline nsec tcp_keepalive_intvl(const tcp_sock* sk) { return sk->keepalive_intvl ? sk->keepalive_intvl : 75 * sec_ns; }
inline unsigned tcp_keepalive_probes(const tcp_sock* sk) { return sk->keepalive_probes ? sk->keepalive_probes : 9; }
inline nsec tcp_fin_time(const tcp_sock* sk) {
  const nsec t = sk->linger2 ? sk->linger2 : sk->params.fin_timeout, min = (sk->rto << 2) - (sk->rto >> 1);
  return t < min ? min : t;
}

// ---- minisocks.cpp, close.cpp
void tcp_listen_rcv(net& n, tcp_sock* listener, sk_buff* skb, tcp_hdr* th, const four_tuple& t);  // consumes skb
bool tcp_child_established(net& n, tcp_sock* child);      // ACK of our SYN-ACK: false when the accept queue is full (stay in SYN-RECV)
void tcp_timewait_rcv(net& n, tcp_timewait_sock* tw, sk_buff* skb, tcp_hdr* th, const four_tuple& t);
void tcp_time_wait(net& n, tcp_sock* sk);
void tcp_done(net& n, tcp_sock* sk);           // to CLOSED: timers off, out of the table; frees an orphan
void tcp_done_err(net& n, tcp_sock* sk, int err);
void tcp_set_state(tcp_sock* sk, uint8_t state);
void tcp_state_change(tcp_sock* sk);
void tcp_write_queue_purge(net& n, tcp_sock* sk);
void tcp_write_err(net& n, tcp_sock* sk);
void tcp_close_listener(net& n, tcp_sock* sk);
void tcp_listener_forget(tcp_sock* child);

// ---- cong.cpp
struct tcp_congestion_ops {
  const char* name;
  void (*init)(tcp_sock*);
  uint32_t (*ssthresh)(tcp_sock*);
  void (*cong_avoid)(tcp_sock*, uint32_t ack, uint32_t acked);
  uint32_t (*undo_cwnd)(tcp_sock*);
  void (*set_state)(tcp_sock*, uint8_t new_state);
  void (*cwnd_event)(tcp_sock*, bool tx_start);
  void (*pkts_acked)(tcp_sock*, uint32_t acked, int64_t rtt_us);
};
extern const tcp_congestion_ops tcp_reno, tcp_cubic;
const tcp_congestion_ops* tcp_ca_find(const char* name, size_t len);
void tcp_ca_assign(tcp_sock* sk, const tcp_congestion_ops* ca);
uint32_t tcp_slow_start(tcp_sock* sk, uint32_t acked);
void tcp_cong_avoid_ai(tcp_sock* sk, uint32_t w, uint32_t acked);
void tcp_cwnd_restart(tcp_sock* sk, nsec delta);
void tcp_cwnd_validate(tcp_sock* sk, bool cwnd_limited);
void tcp_init_cwnd(tcp_sock* sk);

}  // namespace icepath
