// Opening and closing, and what is refused (RFC 9293 3.10.7, RFC 5961, RFC 7323).
#include "tcp_fixture.hpp"

namespace icepath {

constexpr uint8_t SYN = TCPHDR_SYN, ACK = TCPHDR_ACK, FIN = TCPHDR_FIN, RST = TCPHDR_RST, PSH = TCPHDR_PSH;

TEST(syn_sent, syn_ack_establishes_and_is_acknowledged) {
  tcp_fixture f;
  f.make();
  ASSERT_EQ(tcp_connect(f.n, f.sk, f.t), 0);
  f.iss = f.tx[0].th().seq;
  EXPECT_EQ(f.flags(0), SYN);
  f.segment(0, 1, SYN | ACK, "", 60000, f.syn_opts());
  EXPECT_EQ(f.sk->state, TCP_ESTABLISHED);
  ASSERT_EQ(f.tx.size(), 2u);
  EXPECT_EQ(f.flags(1), ACK);
  EXPECT_EQ(f.ack(1), 1u);
  EXPECT_EQ(f.ev().state, 1);
  EXPECT_TRUE(f.sk->sack_ok);
}
TEST(syn_sent, rst_refuses) {
  tcp_fixture f;
  f.make();
  tcp_connect(f.n, f.sk, f.t);
  f.iss = f.tx[0].th().seq;
  f.segment(0, 1, RST | ACK);
  EXPECT_EQ(f.sk->state, TCP_CLOSE);
  EXPECT_EQ(f.sk->err, ECONNREFUSED);
}
TEST(syn_sent, rst_without_ack_is_ignored) {
  tcp_fixture f;
  f.make();
  tcp_connect(f.n, f.sk, f.t);
  f.segment(0, 0, RST);
  EXPECT_EQ(f.sk->state, TCP_SYN_SENT);
}
TEST(syn_sent, ack_of_nothing_gets_rst) {
  tcp_fixture f;
  f.make();
  tcp_connect(f.n, f.sk, f.t);
  f.iss = f.tx[0].th().seq;
  f.tx.clear();
  f.segment(0, 77, SYN | ACK, "", 60000, f.syn_opts());
  EXPECT_EQ(f.sk->state, TCP_SYN_SENT);
  ASSERT_EQ(f.tx.size(), 1u);
  EXPECT_EQ(f.flags(0), RST);
  EXPECT_EQ(f.seq(0), 77u);
}
TEST(syn_sent, syn_is_repeated_with_backoff_and_given_up) {
  tcp_fixture f;
  f.make();
  f.sk->params.syn_retries = 2;
  tcp_connect(f.n, f.sk, f.t);
  f.advance(1100 * msec_ns);
  EXPECT_EQ(f.tx.size(), 2u);
  f.advance(1800 * msec_ns);
  EXPECT_EQ(f.tx.size(), 2u);   // the second wait is twice as long (RFC 6298 5.5)
  f.advance(400 * msec_ns);
  EXPECT_EQ(f.tx.size(), 3u);
  f.advance(10 * sec_ns);
  EXPECT_EQ(f.sk->state, TCP_CLOSE);
  EXPECT_EQ(f.sk->err, ETIMEDOUT);
}
TEST(syn_sent, syn_opens_simultaneously) {
  tcp_fixture f;
  f.make();
  tcp_connect(f.n, f.sk, f.t);
  f.iss = f.tx[0].th().seq;
  f.segment(0, 0, SYN, "", 60000, f.syn_opts());
  EXPECT_EQ(f.sk->state, TCP_SYN_RECV);
  ASSERT_EQ(f.tx.size(), 2u);
  EXPECT_EQ(f.flags(1), SYN | ACK);
  EXPECT_EQ(f.seq(1), 0u);
  f.segment(0, 1, SYN | ACK, "", 60000, f.syn_opts());
  EXPECT_EQ(f.sk->state, TCP_ESTABLISHED);
}
TEST(syn_sent, T11f_send_waits_for_the_connection) {
  tcp_fixture f;
  f.make();
  tcp_connect(f.n, f.sk, f.t);
  EXPECT_EQ(f.send("x"), -EAGAIN);
}
TEST(expect, first_syn_opens_this_very_socket) {
  tcp_fixture f;
  f.make();
  ASSERT_EQ(tcp_expect(f.n, f.sk, f.t), 0);
  f.segment(0, 0, SYN, "", 60000, f.syn_opts());
  ASSERT_EQ(f.tx.size(), 1u);
  EXPECT_EQ(f.flags(0), SYN | ACK);
  f.iss = f.tx[0].th().seq;
  f.segment(1, 1, ACK, "hi");
  EXPECT_EQ(f.sk->state, TCP_ESTABLISHED);
  EXPECT_EQ(f.recv(), "hi");
}
TEST(syn_recv, repeated_syn_gets_syn_ack_again) {
  tcp_fixture f;
  f.make();
  tcp_expect(f.n, f.sk, f.t);
  f.segment(0, 0, SYN, "", 60000, f.syn_opts());
  f.segment(0, 0, SYN, "", 60000, f.syn_opts());
  ASSERT_EQ(f.tx.size(), 2u);
  EXPECT_EQ(f.flags(1), SYN | ACK);
}
TEST(listen, accept_queue_is_bounded_and_syn_queue_limited) {
  tcp_fixture f;
  tcp_sock* l = tcp_sk_alloc(f.n, f.ops(), nullptr);
  tcp_set_dst(f.n, l, f.h.route());
  ASSERT_EQ(tcp_listen(f.n, l, f.t.saddr, f.t.sport, 1), 0);
  for (int i = 0; i < 12; ++i) {
    f.t.dport = static_cast<uint16_t>(3000 + i);
    f.segment(0, 0, SYN, "", 60000, f.syn_opts());
  }
  EXPECT_EQ(l->syn_qlen, 8u);
  EXPECT_EQ(f.count(&mib::TcpExtListenDrops), 4u);
  for (int i = 0; i < 4; ++i) {
    f.t.dport = static_cast<uint16_t>(3000 + i);
    f.iss = f.tx[static_cast<size_t>(i)].th().seq;
    f.segment(1, 1, ACK);
  }
  EXPECT_EQ(l->accept_qlen, 2u);   // backlog 1 admits two, as in Linux
  EXPECT_EQ(l->syn_qlen, 6u);
  EXPECT_NE(tcp_accept(f.n, l), nullptr);
  EXPECT_NE(tcp_accept(f.n, l), nullptr);
  EXPECT_EQ(tcp_accept(f.n, l), nullptr);
  tcp_close(f.n, l);
}
TEST(closed, segment_without_socket_gets_rst) {
  tcp_fixture f;
  f.make();
  tcp_set_dst(f.n, f.sk, nullptr);
  f.segment(0, 5, ACK, "x");   // no route to answer by either: dropped, not crashed
  EXPECT_EQ(f.count(&mib::TcpOutRsts), 1u);
}
TEST(established, paws_drops_old_timestamp) {
  tcp_fixture f;
  f.ts = true;
  f.establish();
  f.segment(1, 1, ACK | PSH, "a", 60000, f.timestamp(200, 0));
  EXPECT_EQ(f.recv(), "a");
  f.segment(2, 1, ACK | PSH, "b", 60000, f.timestamp(150, 0));
  EXPECT_EQ(tcp_inq(f.sk), 0u);
  EXPECT_EQ(f.count(&mib::TcpExtPAWSEstab), 1u);
}
TEST(established, rst_in_window_is_challenged_and_exact_rst_resets) {
  tcp_fixture f;
  f.establish();
  f.segment(5, 1, RST | ACK);   // RFC 5961 3.2
  EXPECT_EQ(f.sk->state, TCP_ESTABLISHED);
  ASSERT_EQ(f.tx.size(), 1u);
  EXPECT_EQ(f.flags(0), ACK);
  f.segment(1, 1, RST | ACK);
  EXPECT_EQ(f.sk->state, TCP_CLOSE);
  EXPECT_EQ(f.sk->err, ECONNRESET);
}
TEST(established, syn_is_challenged) {
  tcp_fixture f;
  f.establish();
  f.segment(1, 1, SYN);
  EXPECT_EQ(f.sk->state, TCP_ESTABLISHED);
  EXPECT_EQ(f.count(&mib::TcpExtTCPChallengeACK), 1u);
}
TEST(established, ack_of_unsent_data_is_challenged_and_dropped) {
  tcp_fixture f;
  f.establish();
  f.segment(1, 1000, ACK, "evil");
  EXPECT_EQ(tcp_inq(f.sk), 0u);
  EXPECT_EQ(f.count(&mib::TcpExtTCPChallengeACK), 1u);
}
TEST(established, T33_corrupt_segment_is_dropped) {
  tcp_fixture f;
  f.establish();
  f.corrupt_next = true;
  f.segment(1, 1, ACK, "good");
  EXPECT_EQ(tcp_inq(f.sk), 0u);
  EXPECT_EQ(f.count(&mib::TcpInCsumErrors), 1u);
  f.segment(1, 1, ACK, "good");
  EXPECT_EQ(f.recv(), "good");
}
TEST(close, orderly_close_both_ways_and_time_wait) {
  tcp_fixture f;
  f.establish();
  tcp_shutdown_write(f.n, f.sk);
  ASSERT_EQ(f.tx.size(), 1u);
  EXPECT_EQ(f.flags(0) & FIN, FIN);
  EXPECT_EQ(f.sk->state, TCP_FIN_WAIT1);
  f.segment(1, 2, ACK);
  EXPECT_EQ(f.sk->state, TCP_FIN_WAIT2);
  f.segment(1, 2, ACK | PSH, "last words");
  EXPECT_EQ(f.recv(), "last words");
  f.segment(11, 2, ACK | FIN);
  EXPECT_EQ(f.sk->state, TCP_CLOSE);
  ssize_t rc;
  f.recv(10, 0, &rc);
  EXPECT_EQ(rc, 0);
  EXPECT_EQ(f.n.tcp->tw_count, 1u);
  f.tx.clear();
  f.segment(11, 2, ACK | FIN);   // our last ACK was lost
  ASSERT_EQ(f.tx.size(), 1u);
  EXPECT_EQ(f.ack(0), 12u);
  f.advance(61 * sec_ns);
  EXPECT_EQ(f.n.tcp->tw_count, 0u);
}
TEST(close, passive_close_ends_in_closed) {
  tcp_fixture f;
  f.establish();
  f.segment(1, 1, ACK | FIN);
  EXPECT_EQ(f.sk->state, TCP_CLOSE_WAIT);
  ssize_t rc;
  f.recv(10, 0, &rc);
  EXPECT_EQ(rc, 0);
  tcp_close(f.n, f.sk);
  f.segment(2, 2, ACK);
  EXPECT_TRUE(f.sk->freed);
}
TEST(close, unread_data_resets) {
  tcp_fixture f;
  f.establish();
  f.segment(1, 1, ACK | PSH, "unread");
  f.tx.clear();
  tcp_close(f.n, f.sk);
  ASSERT_EQ(f.tx.size(), 1u);
  EXPECT_EQ(f.flags(0) & RST, RST);
  EXPECT_TRUE(f.sk->freed);
}
TEST(close, orphan_in_fin_wait2_times_out) {
  tcp_fixture f;
  f.establish();
  tcp_close(f.n, f.sk);
  f.segment(1, 2, ACK);
  EXPECT_FALSE(f.sk->freed);
  f.advance(61 * sec_ns);
  EXPECT_TRUE(f.sk->freed);
}
TEST(close, T11i_send_after_shutdown_is_epipe_but_pending_error_wins) {
  tcp_fixture f;
  f.establish();
  tcp_shutdown_write(f.n, f.sk);
  EXPECT_EQ(f.send("x"), -EPIPE);
  f.segment(1, 2, RST | ACK);
  EXPECT_EQ(f.send("x"), -ECONNRESET);
  EXPECT_EQ(f.send("x"), -EPIPE);
}
TEST(keepalive, probes_then_gives_up) {
  tcp_fixture f;
  f.establish();
  int v = 10;
  tcp_setsockopt(f.n, f.sk, 6, TCP_KEEPIDLE, &v, 4);
  v = 1;
  tcp_setsockopt(f.n, f.sk, 6, TCP_KEEPINTVL, &v, 4);
  v = 3;
  tcp_setsockopt(f.n, f.sk, 6, TCP_KEEPCNT, &v, 4);
  v = 1;
  tcp_setsockopt(f.n, f.sk, SOL_SOCKET, SO_KEEPALIVE, &v, 4);
  f.advance(9 * sec_ns);
  EXPECT_EQ(f.tx.size(), 0u);
  f.advance(1200 * msec_ns);
  ASSERT_EQ(f.tx.size(), 1u);
  EXPECT_EQ(f.seq(0), 0u);   // one below what the peer acknowledged
  f.advance(5 * sec_ns);
  EXPECT_EQ(f.sk->state, TCP_CLOSE);
  EXPECT_EQ(f.sk->err, ETIMEDOUT);
}

}  // namespace icepath
