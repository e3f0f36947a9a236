// Export and import of a tcp_sock (T11g): what the simulation does not show by itself.
#include <sys/epoll.h>

#include "tcp/repair.hpp"
#include "tcp_fixture.hpp"

namespace icepath {

constexpr uint8_t ACK = TCPHDR_ACK, FIN = TCPHDR_FIN, PSH = TCPHDR_PSH, URG = TCPHDR_URG;

struct moving : tcp_fixture {
  tcp_repair_state s;
  ~moving() { s.release(); }
  // The connection in a new socket, after `gap` in no socket.
  void move(nsec gap = 0) {
    ASSERT_EQ(tcp_export(n, sk, s), 0);
    EXPECT_EQ(tcp_repair_check(s), 0);
    tcp_sk_free(n, sk);
    advance(gap);
    make();
    ASSERT_EQ(tcp_import(n, sk, s), 0);
  }
};

TEST(repair, T11g_what_was_sent_is_sent_again_and_the_rest_waits_for_the_window) {
  moving f;
  f.establish(3000);
  f.send(std::string(5000, 'x'));
  const uint32_t in_flight = f.sk->snd_nxt - f.sk->snd_una;
  ASSERT_EQ(in_flight, 2920u);   // the window takes two segments of the five thousand bytes
  f.tx.clear();
  f.move();
  EXPECT_EQ(f.tx.size(), 0u);
  EXPECT_EQ(f.sk->snd_nxt - f.sk->snd_una, in_flight);
  f.advance(f.sk->rto + msec_ns);
  ASSERT_EQ(f.tx.size(), 1u);
  EXPECT_EQ(f.seq(0), 1u);
  EXPECT_EQ(f.tx[0].payload(), 1460u);
  f.tx.clear();
  f.segment(1, 2921, ACK, "", 60000);   // the window of congestion is small after a timeout: one segment, then the rest
  f.segment(1, 4381, ACK, "", 60000);
  uint32_t rest = 0;
  for (const packet& p : f.tx) rest += p.payload();
  EXPECT_EQ(rest, 2080u);
}
TEST(repair, T11g_the_timer_goes_on_across_many_moves) {
  moving f;
  f.establish();
  f.send("lost");
  const nsec rto = f.sk->rto;
  f.tx.clear();
  for (nsec t = 0; t < 2 * rto && f.tx.empty(); t += 10 * msec_ns) f.move(10 * msec_ns), f.advance(1);
  EXPECT_GE(f.tx.size(), 1u);
}
TEST(repair, T11g_unread_data_and_its_acknowledgment_are_carried) {
  moving f;
  f.establish();
  f.segment(1, 1, ACK | PSH, "hello ");
  f.recv(2);
  f.tx.clear();
  f.move();
  EXPECT_EQ(f.recv(), "llo ");
  f.segment(7, 1, ACK | PSH, "world");
  EXPECT_EQ(f.recv(), "world");
}
TEST(repair, T11g_timestamps_never_go_back) {
  moving f;
  f.ts = true;
  f.establish();
  for (int i = 0; i < 10; ++i) {
    const uint32_t before_ts = tcp_ts_now(f.sk);
    f.s.ts_recent_valid = true;
    f.move(i % 3 ? 0 : 7 * msec_ns);
    EXPECT_GE(static_cast<int32_t>(tcp_ts_now(f.sk) - before_ts), i % 3 ? 0 : 7);
  }
  // A kernel does not tell ts_recent: whatever the peer's clock says is taken, also with the high bit set.
  ASSERT_EQ(tcp_export(f.n, f.sk, f.s), 0);
  tcp_sk_free(f.n, f.sk);
  f.s.ts_recent_valid = false;
  f.make();
  ASSERT_EQ(tcp_import(f.n, f.sk, f.s), 0);
  f.peer_tsval = 0xf0000000u;
  f.segment(1, 1, ACK | PSH, "late clock");
  EXPECT_EQ(f.recv(), "late clock");
  EXPECT_EQ(f.sk->ts_recent, 0xf0000000u);
}
TEST(repair, T11g_urgent_data_both_ways) {
  moving f;
  f.establish();
  f.segment(1, 1, ACK | PSH | URG, "abC", 60000, "", 3);
  f.send("xyz", MSG_OOB);
  EXPECT_FALSE(tcp_export_ready(f.sk));
  f.tx.clear();
  f.move();
  EXPECT_NE(tcp_poll(f.sk) & EPOLLPRI, 0u);
  EXPECT_EQ(f.recv(), "ab");
  EXPECT_EQ(f.recv(1, MSG_OOB), "C");
  f.advance(f.sk->rto + msec_ns);
  ASSERT_GE(f.tx.size(), 1u);
  EXPECT_EQ(f.flags(f.tx.size() - 1) & URG, URG);
}
TEST(repair, T11g_out_of_order_data_is_dropped_and_sent_again) {
  moving f;
  f.establish();
  f.segment(4, 1, ACK | PSH, "def");
  EXPECT_FALSE(tcp_export_ready(f.sk));
  f.move();
  f.segment(1, 1, ACK | PSH, "abc");
  EXPECT_EQ(f.recv(), "abc");
  f.segment(4, 1, ACK | PSH, "def");
  EXPECT_EQ(f.recv(), "def");
}
TEST(repair, T11g_half_closed_states) {
  moving f;
  f.establish();
  f.segment(1, 1, ACK | PSH | FIN, "bye");
  f.move();
  EXPECT_EQ(f.sk->state, TCP_CLOSE_WAIT);
  EXPECT_EQ(f.recv(), "bye");
  ssize_t rc = -1;
  f.recv(10, 0, &rc);
  EXPECT_EQ(rc, 0);
  f.move();
  tcp_shutdown_write(f.n, f.sk);
  f.tx.clear();
  f.move();
  EXPECT_EQ(f.sk->state, TCP_LAST_ACK);
  EXPECT_EQ(f.send("no"), -EPIPE);
  f.advance(f.sk->rto + msec_ns);
  ASSERT_GE(f.tx.size(), 1u);
  EXPECT_EQ(f.flags(0) & FIN, FIN);   // the FIN is sent again
  f.segment(5, 2, ACK);
  EXPECT_EQ(f.sk->state, TCP_CLOSE);
}
TEST(repair, T11g_zero_window_is_probed) {
  moving f;
  f.establish();
  f.segment(1, 1, ACK, "", 0);
  f.send("waits");
  f.tx.clear();
  f.move();
  EXPECT_EQ(f.sk->icsk_pending, ICSK_TIME_PROBE0);
  f.advance(2 * f.sk->rto);
  ASSERT_GE(f.tx.size(), 1u);
  EXPECT_EQ(f.tx[0].payload(), 0u);
  f.segment(1, 1, ACK, "", 60000);
  EXPECT_EQ(f.tx.back().payload(), 5u);
}
TEST(repair, T11g_frozen_says_nothing_and_thaws) {
  moving f;
  f.establish();
  f.send("data");
  f.tx.clear();
  ASSERT_EQ(tcp_export(f.n, f.sk, f.s), 0);
  f.advance(30 * sec_ns);
  EXPECT_EQ(f.tx.size(), 0u);
  ASSERT_EQ(tcp_thaw(f.n, f.sk), 0);
  f.advance(2 * sec_ns);
  ASSERT_GE(f.tx.size(), 2u);
  f.segment(1, 5, ACK);
  EXPECT_EQ(tcp_outq(f.sk), 0u);
}
TEST(repair, T11g_a_failed_import_leaves_nothing) {
  moving f;
  f.establish();
  f.send("data");
  ASSERT_EQ(tcp_export(f.n, f.sk, f.s), 0);
  tcp_sock* old = f.sk;
  f.make();
  f.s.write_seq += 1;
  EXPECT_EQ(tcp_import(f.n, f.sk, f.s), -EINVAL);
  f.s.write_seq -= 1;
  EXPECT_EQ(f.sk->state, TCP_CLOSE);
  EXPECT_FALSE(f.sk->hashed);
  ASSERT_EQ(tcp_thaw(f.n, old), 0);
  EXPECT_EQ(tcp_import(f.n, f.sk, f.s), -EADDRINUSE);
  tcp_sk_free(f.n, old);
  EXPECT_EQ(tcp_import(f.n, f.sk, f.s), 0);
  EXPECT_EQ(tcp_import(f.n, f.sk, f.s), -EISCONN);
}
TEST(repair, T11g_states_that_cannot_be_are_refused) {
  moving f;
  f.establish();
  f.send("data");
  f.segment(1, 1, ACK | PSH, "unread");
  ASSERT_EQ(tcp_export(f.n, f.sk, f.s), 0);
  ASSERT_EQ(tcp_repair_check(f.s), 0);
  struct row { const char* what; void (*spoil)(tcp_repair_state&); int err; };
  const row rows[] = {
      {"ipv6", [](tcp_repair_state& s) { s.tuple.saddr.b[0] = 0x20; }, -EAFNOSUPPORT},
      {"port 0", [](tcp_repair_state& s) { s.tuple.dport = 0; }, -EINVAL},
      {"listen", [](tcp_repair_state& s) { s.state = TCP_LISTEN; }, -EINVAL},
      {"state 200", [](tcp_repair_state& s) { s.state = 200; }, -EINVAL},
      {"FIN without a number", [](tcp_repair_state& s) { s.state = TCP_FIN_WAIT1; }, -EINVAL},
      {"send queue too long", [](tcp_repair_state& s) { s.sndq.len = repair_queue_max + 1; }, -EMSGSIZE},
      {"send queue shorter than its numbers", [](tcp_repair_state& s) { --s.sndq.len; }, -EINVAL},
      {"receive queue longer than its numbers", [](tcp_repair_state& s) { ++s.rcvq.len; }, -EINVAL},
      {"no bytes", [](tcp_repair_state& s) { s.rcvq.data = nullptr; }, -EINVAL},
      {"snd_nxt behind snd_una", [](tcp_repair_state& s) { s.snd_nxt = s.snd_una - 1; }, -EINVAL},
      {"snd_nxt beyond write_seq", [](tcp_repair_state& s) { s.snd_nxt = s.write_seq + 1; }, -EINVAL},
      {"scale 15", [](tcp_repair_state& s) { s.snd_wscale = 15; }, -EINVAL},
      {"scale without the option", [](tcp_repair_state& s) { s.wscale_ok = false, s.rcv_wscale = 3; }, -EINVAL},
      {"window over its scale", [](tcp_repair_state& s) { s.snd_wnd = s.max_window = 1u << 30; }, -EINVAL},
      {"max_window below snd_wnd", [](tcp_repair_state& s) { s.max_window = s.snd_wnd - 1; }, -EINVAL},
      {"rcv_wup beyond rcv_nxt", [](tcp_repair_state& s) { s.rcv_wup = s.rcv_nxt + 1; }, -EINVAL},
      {"mss 0", [](tcp_repair_state& s) { s.mss_clamp = 0; }, -EINVAL},
      {"urgent outside", [](tcp_repair_state& s) { s.urg = REPAIR_URG_VALID, s.urg_seq = s.rcv_nxt + 1000; }, -EINVAL},
      {"congestion without an end", [](tcp_repair_state& s) { std::memset(s.congestion, 'x', sizeof s.congestion); }, -EINVAL},
      {"microseconds", [](tcp_repair_state& s) { s.tstamp_ok = s.ts_usec = true; }, -EOPNOTSUPP},
  };
  for (const row& r : rows) {
    tcp_repair_state bad = f.s;
    r.spoil(bad);
    EXPECT_EQ(tcp_repair_check(bad), r.err) << r.what;
  }
}

}  // namespace icepath
