// What all congestion controls share: slow start, additive increase, validation of the window (RFC 5681, RFC 2861/7661), the choice by name.
#include <cstring>
#include "tcp/tcp_internal.hpp"

namespace icepath {

// RFC 5681 3.1, with appropriate byte counting in segments (RFC 3465). Returns what is left for congestion avoidance.
uint32_t tcp_slow_start(tcp_sock* sk, uint32_t acked) {
  uint32_t w = sk->snd_cwnd + acked;
  if (w > sk->snd_ssthresh) w = sk->snd_ssthresh;
  acked -= w - sk->snd_cwnd;
  sk->snd_cwnd = w < sk->snd_cwnd_clamp ? w : sk->snd_cwnd_clamp;
  return acked;
}

// cwnd grows by one for every w acknowledged.
void tcp_cong_avoid_ai(tcp_sock* sk, uint32_t w, uint32_t acked) {
  if (w == 0) w = 1;
  if (sk->snd_cwnd_cnt >= w) {
    sk->snd_cwnd_cnt = 0;
    ++sk->snd_cwnd;
  }
  sk->snd_cwnd_cnt += acked;
  if (sk->snd_cwnd_cnt >= w) {
    const uint32_t d = sk->snd_cwnd_cnt / w;
    sk->snd_cwnd_cnt -= d * w;
    sk->snd_cwnd += d;
  }
  if (sk->snd_cwnd > sk->snd_cwnd_clamp) sk->snd_cwnd = sk->snd_cwnd_clamp;
}

void tcp_init_cwnd(tcp_sock* sk) {
  if (sk->ca_state == TCP_CA_Open && sk->total_retrans > 1) sk->snd_cwnd = 1;   // RFC 5681 3.1: the SYN was lost
  else sk->snd_cwnd = sk->params.init_cwnd;
  sk->snd_cwnd_stamp = tcp_now(sk);
}

// RFC 5681 4.1: after an idle time the window decays to the restart window.
void tcp_cwnd_restart(tcp_sock* sk, nsec delta) {
  const uint32_t restart = sk->params.init_cwnd < sk->snd_cwnd ? sk->params.init_cwnd : sk->snd_cwnd;
  uint32_t w = sk->snd_cwnd;
  const uint32_t keep = (w >> 1) + (w >> 2);
  if (sk->snd_ssthresh < tcp_infinite_ssthresh && sk->snd_ssthresh < keep) sk->snd_ssthresh = keep;
  while (delta > sk->rto && w > restart) {
    delta -= sk->rto;
    w >>= 1;
  }
  sk->snd_cwnd = w > restart ? w : restart;
  sk->snd_cwnd_stamp = tcp_now(sk);
  sk->snd_cwnd_used = 0;
}

// Remembers how much of the window the application really used; unused window does not grow.
void tcp_cwnd_validate(tcp_sock* sk, bool limited) {
  if (!before(sk->snd_una, sk->cwnd_usage_seq) || limited || (!sk->is_cwnd_limited && sk->packets_out > sk->max_packets_out)) {
    sk->is_cwnd_limited = limited;
    sk->max_packets_out = sk->packets_out;
    sk->cwnd_usage_seq = sk->snd_nxt;
  }
  if (tcp_is_cwnd_limited(sk)) {
    sk->snd_cwnd_used = 0;
    sk->snd_cwnd_stamp = tcp_now(sk);
  } else if (sk->packets_out > sk->snd_cwnd_used) {
    sk->snd_cwnd_used = sk->packets_out;
  }
}

const tcp_congestion_ops* tcp_ca_find(const char* name, size_t len) {
  for (const tcp_congestion_ops* c : {&tcp_cubic, &tcp_reno})
    if (std::strlen(c->name) == len && std::memcmp(c->name, name, len) == 0) return c;
  return nullptr;
}

void tcp_ca_assign(tcp_sock* sk, const tcp_congestion_ops* ca) {
  sk->ca_ops = ca;
  std::memset(sk->ca_priv, 0, sizeof sk->ca_priv);
  if (ca->init) ca->init(sk);
}

}  // namespace icepath
