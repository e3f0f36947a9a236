// struct tcp_info as the kernel fills it (RFC 4898 meanings). The structure is the kernel's of <linux/tcp.h>, which is longer than
// glibc's: callers with a shorter one use tcp_getsockopt(TCP_INFO), which cuts at their length. Owner: the stack; reads only.
#include <linux/tcp.h>
#include "ip/ip.hpp"
#include "tcp/tcp_internal.hpp"

namespace icepath {

static uint32_t ms_since(nsec now, nsec then) { return then ? static_cast<uint32_t>((now - then) / msec_ns) : 0; }
static uint64_t chrono_us(const tcp_sock* sk, nsec now, unsigned type) {
  nsec v = sk->chrono_stat[type - 1];
  if (sk->chrono_type == type) v += now - sk->chrono_start;
  return v / usec_ns;
}

void tcp_get_info(const net& n, const tcp_sock* sk, ::tcp_info* out) {
  ::tcp_info i;
  std::memset(static_cast<void*>(&i), 0, sizeof i);
  i.tcpi_state = sk->state;
  i.tcpi_rto = static_cast<uint32_t>(sk->rto / usec_ns);
  i.tcpi_snd_mss = sk->mss_cache;
  i.tcpi_advmss = sk->advmss;
  i.tcpi_rcv_mss = sk->ack.rcv_mss;
  i.tcpi_snd_cwnd = sk->snd_cwnd;
  if (sk->state == TCP_LISTEN) {
    i.tcpi_unacked = sk->accept_qlen;
    i.tcpi_sacked = sk->backlog;
    std::memcpy(static_cast<void*>(out), &i, sizeof i);
    return;
  }
  i.tcpi_ca_state = sk->ca_state;
  i.tcpi_retransmits = sk->retransmits;
  i.tcpi_probes = sk->probes_out;
  i.tcpi_backoff = sk->backoff;
  if (sk->tstamp_ok) i.tcpi_options |= TCPI_OPT_TIMESTAMPS;
  if (sk->sack_ok) i.tcpi_options |= TCPI_OPT_SACK;
  if (sk->wscale_ok) {
    i.tcpi_options |= TCPI_OPT_WSCALE;
    i.tcpi_snd_wscale = sk->snd_wscale & 15;
    i.tcpi_rcv_wscale = sk->rcv_wscale & 15;
  }
  i.tcpi_delivery_rate_app_limited = sk->app_limited != 0;
  i.tcpi_ato = static_cast<uint32_t>(sk->ack.ato / usec_ns);
  i.tcpi_unacked = sk->packets_out;
  i.tcpi_sacked = sk->sacked_out;
  i.tcpi_lost = sk->lost_out;
  i.tcpi_retrans = sk->retrans_out;
  i.tcpi_last_data_sent = ms_since(n.now, sk->lsndtime);
  i.tcpi_last_data_recv = ms_since(n.now, sk->ack.lrcvtime);
  i.tcpi_last_ack_recv = ms_since(n.now, sk->rcv_tstamp);
  i.tcpi_pmtu = sk->dst ? sk->dst->mtu : 0;
  i.tcpi_rcv_ssthresh = sk->rcv_ssthresh;
  i.tcpi_rtt = sk->srtt_us >> 3;
  i.tcpi_rttvar = sk->rttvar_us >> 2;
  i.tcpi_snd_ssthresh = sk->snd_ssthresh;
  i.tcpi_reordering = sk->reordering;
  i.tcpi_rcv_rtt = sk->rcv_rtt_est.rtt_us >> 3;
  i.tcpi_rcv_space = sk->rcvq_space.space;
  i.tcpi_total_retrans = sk->total_retrans;
  i.tcpi_pacing_rate = ~0ull;
  i.tcpi_max_pacing_rate = ~0ull;
  i.tcpi_bytes_acked = sk->bytes_acked;
  i.tcpi_bytes_received = sk->bytes_received;
  i.tcpi_segs_out = sk->segs_out;
  i.tcpi_segs_in = sk->segs_in;
  i.tcpi_notsent_bytes = tcp_notsent(sk);
  i.tcpi_min_rtt = sk->rtt_min_us;
  i.tcpi_data_segs_in = sk->data_segs_in;
  i.tcpi_data_segs_out = sk->data_segs_out;
  if (sk->rate_interval_us) i.tcpi_delivery_rate = uint64_t{sk->rate_delivered} * sk->mss_cache * 1000000 / sk->rate_interval_us;
  const uint64_t rwnd = chrono_us(sk, n.now, 2), sndbuf = chrono_us(sk, n.now, 3);
  i.tcpi_rwnd_limited = rwnd;
  i.tcpi_sndbuf_limited = sndbuf;
  i.tcpi_busy_time = chrono_us(sk, n.now, 1) + rwnd + sndbuf;
  i.tcpi_delivered = sk->delivered;
  i.tcpi_bytes_sent = sk->bytes_sent;
  i.tcpi_bytes_retrans = sk->bytes_retrans;
  i.tcpi_dsack_dups = sk->dsack_dups;
  i.tcpi_reord_seen = sk->reord_seen;
  i.tcpi_rcv_ooopack = sk->rcv_ooopack;
  i.tcpi_snd_wnd = sk->snd_wnd;
  std::memcpy(static_cast<void*>(out), &i, sizeof i);
}

uint32_t tcp_info_bytes(const net& n, const tcp_sock* sk, void* to, uint32_t len) {
  ::tcp_info i;
  tcp_get_info(n, sk, &i);
  if (len > sizeof i) len = sizeof i;
  std::memcpy(to, &i, len);
  return len;
}

}  // namespace icepath
