// CUBIC (RFC 9438). State per socket in ca_priv; times in seconds. Owner: the stack.
#include <cmath>
#include "tcp/tcp_internal.hpp"

namespace icepath {

namespace {

constexpr double cubic_c = 0.4, cubic_beta = 0.7, cubic_alpha = 3 * (1 - cubic_beta) / (1 + cubic_beta);   // sections 4.1, 4.3, 4.6

struct cubic {
  double w_max, k, w_est, cwnd_epoch, origin;
  nsec epoch_start;       // 0: no epoch
  nsec last_sent;         // for epochs that pause while the application is idle
  uint32_t cwnd_prior;
  uint32_t min_rtt_us;
  uint32_t ack_left;      // fraction of a segment earned, scaled by 2^16
  bool est_full;          // w_est has reached cwnd_prior: alpha becomes 1
};
static_assert(sizeof(cubic) <= tcp_ca_priv_size);
cubic* priv(tcp_sock* sk) { return reinterpret_cast<cubic*>(sk->ca_priv); }

uint32_t cubic_ssthresh(tcp_sock* sk) {
  cubic* ca = priv(sk);
  ca->epoch_start = 0;
  const double cwnd = sk->snd_cwnd;
  // Section 4.7, fast convergence: give way to newcomers.
  ca->w_max = cwnd < ca->w_max ? cwnd * (1 + cubic_beta) / 2 : cwnd;
  ca->cwnd_prior = sk->snd_cwnd;
  const uint32_t t = static_cast<uint32_t>(cwnd * cubic_beta);
  return t > 2 ? t : 2;
}

void cubic_cong_avoid(tcp_sock* sk, uint32_t, uint32_t acked) {
  if (!tcp_is_cwnd_limited(sk)) return;
  if (tcp_in_slow_start(sk)) {
    acked = tcp_slow_start(sk, acked);
    if (!acked) return;
  }
  cubic* ca = priv(sk);
  const double cwnd = sk->snd_cwnd;
  const nsec now = tcp_now(sk);
  if (!ca->epoch_start) {   // section 4.2
    ca->epoch_start = now;
    ca->w_est = cwnd;
    ca->est_full = false;
    ca->cwnd_epoch = cwnd;
    if (ca->w_max <= cwnd) {
      ca->k = 0;
      ca->origin = cwnd;
    } else {
      ca->k = std::cbrt((ca->w_max - cwnd) / cubic_c);
      ca->origin = ca->w_max;
    }
    ca->ack_left = 0;
  }
  const double rtt = (ca->min_rtt_us ? ca->min_rtt_us : sk->srtt_us >> 3) * 1e-6;
  const double t = static_cast<double>(now - ca->epoch_start) * 1e-9 + rtt;
  const double d = t - ca->k;
  double target = cubic_c * d * d * d + ca->origin;   // W_cubic(t + RTT)
  if (target < cwnd) target = cwnd;
  if (target > 1.5 * cwnd) target = 1.5 * cwnd;
  // Section 4.3: never slower than Reno would be.
  if (ca->w_est >= ca->cwnd_prior) ca->est_full = true;
  ca->w_est += (ca->est_full ? 1.0 : cubic_alpha) * acked / cwnd;
  double inc = (target - cwnd) / cwnd * acked;
  if (ca->w_est > cwnd && ca->w_est - cwnd > inc) inc = ca->w_est - cwnd;
  if (inc > acked / 2.0 + 1) inc = acked / 2.0 + 1;
  ca->ack_left += static_cast<uint32_t>(inc * 65536);
  const uint32_t whole = ca->ack_left >> 16;
  ca->ack_left &= 0xffff;
  sk->snd_cwnd += whole;
  if (sk->snd_cwnd > sk->snd_cwnd_clamp) sk->snd_cwnd = sk->snd_cwnd_clamp;
}

uint32_t cubic_undo(tcp_sock* sk) { return sk->snd_cwnd > sk->prior_cwnd ? sk->snd_cwnd : sk->prior_cwnd; }

void cubic_set_state(tcp_sock* sk, uint8_t s) {
  if (s == TCP_CA_Loss) {   // section 4.8
    priv(sk)->epoch_start = 0;
  }
}

// Section 5.8: an application pause does not count as time in the epoch.
void cubic_event(tcp_sock* sk, bool) {
  cubic* ca = priv(sk);
  if (ca->epoch_start && sk->lsndtime && tcp_now(sk) > sk->lsndtime) {
    ca->epoch_start += tcp_now(sk) - sk->lsndtime;
    if (ca->epoch_start > tcp_now(sk)) ca->epoch_start = tcp_now(sk);
  }
}

void cubic_acked(tcp_sock* sk, uint32_t, int64_t rtt_us) {
  cubic* ca = priv(sk);
  if (rtt_us > 0 && (!ca->min_rtt_us || rtt_us < ca->min_rtt_us)) ca->min_rtt_us = static_cast<uint32_t>(rtt_us);
}

}  // namespace

const tcp_congestion_ops tcp_cubic = {"cubic", nullptr, cubic_ssthresh, cubic_cong_avoid, cubic_undo, cubic_set_state, cubic_event, cubic_acked};

}  // namespace icepath
