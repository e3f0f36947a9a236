// Reno: RFC 5681. The recovery that goes with it (RFC 6582) is in recovery.cpp.
#include "tcp/tcp_internal.hpp"

namespace icepath {

static uint32_t reno_ssthresh(tcp_sock* sk) { return sk->snd_cwnd >> 1 > 2 ? sk->snd_cwnd >> 1 : 2; }
static uint32_t reno_undo(tcp_sock* sk) { return sk->snd_cwnd > sk->prior_cwnd ? sk->snd_cwnd : sk->prior_cwnd; }
static void reno_cong_avoid(tcp_sock* sk, uint32_t, uint32_t acked) {
  if (!tcp_is_cwnd_limited(sk)) return;
  if (tcp_in_slow_start(sk)) {
    acked = tcp_slow_start(sk, acked);
    if (!acked) return;
  }
  tcp_cong_avoid_ai(sk, sk->snd_cwnd, acked);
}

const tcp_congestion_ops tcp_reno = {"reno", nullptr, reno_ssthresh, reno_cong_avoid, reno_undo, nullptr, nullptr, nullptr};

}  // namespace icepath
