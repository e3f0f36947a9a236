// Is a connection's state one that can be? Everything that is used as a length, a shift or a position is bounded here. Pure.
#include "tcp/repair_state.hpp"
#include "tcp/tcp_internal.hpp"

namespace icepath {

int tcp_repair_check(const tcp_repair_state& s) {
  if (!s.tuple.saddr.is_v4() || !s.tuple.daddr.is_v4()) return -EAFNOSUPPORT;
  if (!s.tuple.sport || !s.tuple.dport) return -EINVAL;
  if (!repair_can_move(s.state)) return -EINVAL;
  if (s.sndq.len > repair_queue_max || s.rcvq.len > repair_queue_max) return -EMSGSIZE;
  if ((s.sndq.len && !s.sndq.data) || (s.rcvq.len && !s.rcvq.data)) return -EINVAL;
  if (before(s.snd_nxt, s.snd_una) || before(s.write_seq, s.snd_nxt)) return -EINVAL;
  const uint32_t our_fin = repair_fin_queued(s.state) && s.state != TCP_FIN_WAIT2 ? 1 : 0, their_fin = repair_fin_received(s.state) ? 1 : 0;
  if (s.write_seq - s.snd_una != s.sndq.len + our_fin) return -EINVAL;
  if (s.rcv_nxt - s.copied_seq != s.rcvq.len + their_fin) return -EINVAL;
  if (s.snd_wscale > tcp_max_wscale || s.rcv_wscale > tcp_max_wscale) return -EINVAL;
  if (!s.wscale_ok && (s.snd_wscale || s.rcv_wscale)) return -EINVAL;
  if (s.snd_wnd > 65535u << s.snd_wscale || s.max_window < s.snd_wnd || s.max_window > 65535u << tcp_max_wscale) return -EINVAL;
  if (s.rcv_wnd > 65535u << tcp_max_wscale) return -EINVAL;
  if (after(s.rcv_wup, s.rcv_nxt) || s.rcv_nxt - s.rcv_wup > 1u << 30) return -EINVAL;
  if (after(s.snd_wl1, s.rcv_nxt + s.rcv_wnd)) return -EINVAL;
  if (s.mss_clamp < tcp_min_mss || s.advmss < tcp_min_mss) return -EINVAL;
  if (s.urg > REPAIR_URG_READ) return -EINVAL;
  if (s.urg == REPAIR_URG_NOTYET ? before(s.urg_seq, s.copied_seq) : s.urg && !between(s.urg_seq, s.copied_seq, s.rcv_nxt)) return -EINVAL;
  if (s.urg_mode && !between(s.snd_up, s.snd_una, s.write_seq)) return -EINVAL;
  bool ended = false;
  for (const char c : s.congestion) ended = ended || !c;
  if (!ended) return -EINVAL;
  if (s.ts_usec && s.tstamp_ok) return -EOPNOTSUPP;   // our clock of timestamps ticks in milliseconds
  return 0;
}

}  // namespace icepath
