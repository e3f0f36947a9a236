// Sending and receiving on an established connection (T09-T16, T33).
#include <sys/epoll.h>

#include "base/usercopy.hpp"
#include "tcp_fixture.hpp"

namespace icepath {

constexpr uint8_t ACK = TCPHDR_ACK, FIN = TCPHDR_FIN, PSH = TCPHDR_PSH, URG = TCPHDR_URG;
static std::string text(size_t n, char first = 'a') {
  std::string s(n, 0);
  for (size_t i = 0; i < n; ++i) s[i] = static_cast<char>(first + i % 23);
  return s;
}

TEST(send, T16_segment_carries_data_psh_and_ack) {
  tcp_fixture f;
  f.establish();
  EXPECT_EQ(f.send("hello"), 5);
  ASSERT_EQ(f.tx.size(), 1u);
  EXPECT_EQ(f.flags(0), ACK | PSH);
  EXPECT_EQ(f.seq(0), 1u);
  EXPECT_EQ(f.tx[0].payload(), 5u);
  EXPECT_EQ(tcp_outq(f.sk), 5u);
  f.segment(1, 6, ACK);
  EXPECT_EQ(tcp_outq(f.sk), 0u);
  EXPECT_EQ(f.sk->wmem_queued, 0u);
}
TEST(send, T15_minshall_nagle_holds_the_second_small_segment) {
  tcp_fixture f;
  f.establish();
  f.send("one");
  f.send("two");
  f.send("three");
  EXPECT_EQ(f.tx.size(), 1u);
  f.segment(1, 4, ACK);
  ASSERT_EQ(f.tx.size(), 2u);
  EXPECT_EQ(f.tx[1].payload(), 8u);
}
TEST(send, T15_nodelay_sends_at_once) {
  tcp_fixture f;
  f.establish();
  int on = 1;
  tcp_setsockopt(f.n, f.sk, 6, TCP_NODELAY, &on, 4);
  f.send("one");
  f.send("two");
  EXPECT_EQ(f.tx.size(), 2u);
}
TEST(send, T11m_more_corks_until_the_last_piece) {
  tcp_fixture f;
  f.establish();
  f.send("head", MSG_MORE);
  EXPECT_EQ(f.tx.size(), 0u);
  f.send("body");
  ASSERT_EQ(f.tx.size(), 1u);
  EXPECT_EQ(f.tx[0].payload(), 8u);
}
TEST(send, T13_cork_holds_and_uncork_releases) {
  tcp_fixture f;
  f.establish();
  int v = 1;
  tcp_setsockopt(f.n, f.sk, 6, TCP_CORK, &v, 4);
  f.send("abc");
  EXPECT_EQ(f.tx.size(), 0u);
  v = 0;
  tcp_setsockopt(f.n, f.sk, 6, TCP_CORK, &v, 4);
  EXPECT_EQ(f.tx.size(), 1u);
}
TEST(send, T13_autocork_while_earlier_data_is_in_the_ring) {
  tcp_fixture f;
  f.establish();
  int on = 1;
  tcp_setsockopt(f.n, f.sk, 6, TCP_NODELAY, &on, 4);
  f.h.dev.hold = true;
  f.send("first");
  f.send("second");
  f.send("third");
  EXPECT_LE(f.tx.size(), 2u);
  EXPECT_GE(f.count(&mib::TcpExtTCPAutoCorking), 1u);
  f.h.dev.clean_tx(0);
  tcp_tsq_run(f.n);
  uint32_t sum = 0;
  for (const packet& p : f.tx) sum += p.payload();
  EXPECT_EQ(sum, 16u);
}
TEST(send, T11h_T15_tso_is_sized_by_device_and_window) {
  tcp_fixture f;
  f.establish(60000);
  f.send(text(100000));
  ASSERT_GE(f.tx.size(), 1u);
  uint32_t sum = 0;
  for (const packet& p : f.tx) sum += p.payload();
  EXPECT_LE(sum, 10u * 1460);   // the initial window (RFC 6928)
  EXPECT_EQ(f.tx[0].gso_size, 1460u);
}
TEST(send, T16_never_beyond_the_peers_window) {
  tcp_fixture f;
  f.establish(3000);
  f.send(text(10000));
  uint32_t end = 0;
  for (size_t i = 0; i < f.tx.size(); ++i) end = std::max(end, f.seq(i) + f.tx[i].payload());
  EXPECT_LE(end, 3001u);
}
TEST(send, T14_zero_window_is_probed_and_opens) {
  tcp_fixture f;
  f.establish(1000);
  f.send(text(3000));
  f.segment(1, 1001, ACK, "", 0);
  const size_t sent = f.tx.size();
  f.advance(300 * msec_ns);
  ASSERT_EQ(f.tx.size(), sent + 1);
  EXPECT_EQ(f.seq(sent), 1000u);      // a probe below the window
  EXPECT_EQ(f.tx[sent].payload(), 0u);
  f.advance(600 * msec_ns);
  EXPECT_EQ(f.tx.size(), sent + 2);   // backed off
  f.segment(1, 1001, ACK, "", 5000);
  EXPECT_EQ(f.seq(sent + 2), 1001u);
  EXPECT_GT(f.tx[sent + 2].payload(), 0u);
}
TEST(send, T11n_full_buffer_is_eagain_and_write_space_follows) {
  tcp_fixture f;
  f.establish();
  int v = 10000;
  tcp_setsockopt(f.n, f.sk, SOL_SOCKET, SO_SNDBUF, &v, 4);
  const std::string s = text(200000);
  const ssize_t k = f.send(s);
  EXPECT_GT(k, 0);
  EXPECT_LT(k, 200000);
  EXPECT_EQ(f.send(s), -EAGAIN);
  EXPECT_EQ(f.ev().space, 1);   // the connection's own
  EXPECT_EQ(tcp_poll(f.sk) & EPOLLOUT, 0u);
  for (int i = 0; i < 20 && f.ev().space == 1; ++i) f.segment(1, f.sk->snd_nxt - f.iss, ACK);
  EXPECT_EQ(f.ev().space, 2);
  EXPECT_NE(tcp_poll(f.sk) & EPOLLOUT, 0u);
}
TEST(send, T05_fault_gives_the_bytes_before_it) {
  tcp_fixture f;
  f.establish();
  ASSERT_TRUE(usercopy_install().ok());
  char good[100] = {};
  iovec v[2] = {{good, 100}, {nullptr, 100}};
  void* bad = ::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  v[1].iov_base = bad;
  user_msg m{v, 2, 0, 200};
  EXPECT_EQ(tcp_sendmsg(f.n, f.sk, m, 0), 100);
  iovec w{bad, 100};
  user_msg m2{&w, 1, 0, 100};
  EXPECT_EQ(tcp_sendmsg(f.n, f.sk, m2, 0), -EFAULT);
  EXPECT_TRUE(f.sk->sk_write_queue.empty());   // T11o
  ::munmap(bad, 4096);
}
TEST(send, T11m_urgent_byte_sets_the_pointer) {
  tcp_fixture f;
  f.establish();
  f.send("xyz", MSG_OOB);
  ASSERT_EQ(f.tx.size(), 1u);
  EXPECT_EQ(f.flags(0) & URG, URG);
  EXPECT_EQ(uint16_t{f.tx[0].th().urg_ptr}, 3);
}
TEST(send, T16_lane_option_only_when_asked) {
  tcp_fixture f;
  f.establish();
  f.send("a");
  EXPECT_EQ(f.tx[0].th().doff(), 20u);
  f.sk->lane_opt_tx = 2;
  tcp_send_ack(f.n, f.sk);
  EXPECT_EQ(f.tx[1].th().doff(), 28u);
  f.segment(1, 2, ACK, "", 60000, std::string("\x01\x01\x01\xfe\x05\x49\x50\x03", 8));
  EXPECT_EQ(f.sk->lane_opt_rx, 3);
  EXPECT_EQ(f.ev().lane, 1);
}
TEST(send, peek_send_queue_covers_sent_and_unsent) {
  tcp_fixture f;
  f.establish(3000);
  const std::string s = text(20000);
  f.send(s);
  std::string b(20000, 0);
  EXPECT_EQ(tcp_peek_send_queue(f.n, f.sk, 0, reinterpret_cast<uint8_t*>(b.data()), 20000), 20000u);
  EXPECT_EQ(b, s);
  EXPECT_EQ(tcp_peek_send_queue(f.n, f.sk, 1234, reinterpret_cast<uint8_t*>(b.data()), 10), 10u);
  EXPECT_EQ(b.substr(0, 10), s.substr(1234, 10));
}
TEST(retransmit, rto_resends_the_head_and_backs_off) {
  tcp_fixture f;
  f.establish();
  f.send("data");
  f.advance(600 * msec_ns);
  ASSERT_GE(f.tx.size(), 2u);
  EXPECT_EQ(f.seq(1), 1u);
  EXPECT_EQ(f.tx[1].payload(), 4u);
  const nsec rto = f.sk->rto;
  f.advance(2 * sec_ns);
  EXPECT_GT(f.sk->rto, rto);   // RFC 6298 (5.5)
  f.segment(1, 5, ACK);
  EXPECT_EQ(f.sk->packets_out, 0u);
  EXPECT_EQ(f.sk->ca_state, TCP_CA_Open);
}
TEST(retransmit, never_while_the_clone_is_in_the_ring) {
  tcp_fixture f;
  f.establish();
  f.h.dev.hold = true;
  f.send("data");
  f.advance(3 * sec_ns);
  EXPECT_EQ(f.tx.size(), 1u);
  f.h.dev.clean_tx(0);
  f.h.dev.hold = false;
  f.advance(3 * sec_ns);
  EXPECT_GE(f.tx.size(), 2u);
}
TEST(retransmit, T15_sack_starts_fast_recovery_of_the_hole_only) {
  tcp_fixture f(1500, NETIF_F_IP_CSUM);
  f.establish();
  f.send(text(7300));
  ASSERT_EQ(f.tx.size(), 5u);
  f.segment(1, 1, ACK, "", 60000, f.sack(1461, 2921));
  f.segment(1, 1, ACK, "", 60000, f.sack(1461, 4381));
  EXPECT_EQ(f.tx.size(), 5u);
  f.segment(1, 1, ACK, "", 60000, f.sack(1461, 5841));
  ASSERT_EQ(f.tx.size(), 6u);
  EXPECT_EQ(f.seq(5), 1u);
  EXPECT_EQ(f.tx[5].payload(), 1460u);
  EXPECT_EQ(f.sk->ca_state, TCP_CA_Recovery);
  EXPECT_EQ(f.sk->sacked_out, 3u);
  f.segment(1, 7301, ACK);
  EXPECT_EQ(f.sk->ca_state, TCP_CA_Open);
  EXPECT_LT(f.sk->snd_cwnd, 10u);
}
TEST(retransmit, tail_loss_probe_comes_before_the_rto) {
  tcp_fixture f(1500, NETIF_F_IP_CSUM);
  f.establish();
  f.send(text(2920));
  ASSERT_EQ(f.tx.size(), 2u);
  f.advance(60 * msec_ns);   // 2 * SRTT + 2 ms, far below the RTO of more than 200 ms
  EXPECT_EQ(f.count(&mib::TcpExtTCPLossProbes), 1u);
  EXPECT_EQ(f.seq(2), 1461u);
}
TEST(receive, reorders_and_reports_sack) {
  tcp_fixture f;
  f.establish();
  f.segment(6, 1, ACK, "world");
  EXPECT_EQ(tcp_inq(f.sk), 0u);
  ASSERT_EQ(f.tx.size(), 1u);
  EXPECT_EQ(f.ack(0), 1u);
  EXPECT_EQ(f.tx[0].th().doff(), 32u);   // NOP NOP SACK with one block
  f.segment(1, 1, ACK, "hello");
  EXPECT_EQ(f.recv(), "helloworld");
  EXPECT_EQ(f.sk->rmem_alloc, 0u);
}
TEST(receive, overlap_is_taken_once_and_reported_as_dsack) {
  tcp_fixture f;
  f.establish();
  f.segment(1, 1, ACK, "abcd");
  f.tx.clear();
  f.segment(3, 1, ACK, "cdef");
  EXPECT_EQ(f.recv(), "abcdef");
  ASSERT_GE(f.tx.size(), 1u);
  EXPECT_EQ(f.tx[0].th().doff(), 32u);
}
TEST(receive, small_messages_share_a_frame) {
  tcp_fixture f;
  f.establish();
  for (uint32_t i = 0; i < 30; ++i) f.segment(1 + i * 64, 1, ACK | PSH, text(64));
  EXPECT_EQ(f.sk->sk_receive_queue.qlen, 1u);
  EXPECT_EQ(tcp_inq(f.sk), 30u * 64);
  EXPECT_EQ(f.recv().size(), 30u * 64);
}
TEST(receive, delayed_ack_waits_and_second_segment_does_not) {
  tcp_fixture f;
  f.establish();
  f.sk->ack.quick = 0;
  f.sk->ack.ato = 40 * msec_ns;
  f.segment(1, 1, ACK, text(1460));
  f.sk->ack.quick = 0;
  f.tx.clear();
  f.segment(1461, 1, ACK, text(100));
  f.sk->ack.quick = 0;
  const size_t at_once = f.tx.size();
  f.advance(300 * msec_ns);
  EXPECT_GE(f.tx.size(), at_once);
  EXPECT_GE(f.tx.size(), 1u);
  EXPECT_EQ(f.ack(f.tx.size() - 1), 1561u);
}
TEST(receive, window_closes_with_a_slow_reader_and_never_shrinks) {
  tcp_fixture f;
  f.establish();
  uint32_t seq = 1, edge = 0;
  for (int i = 0; i < 200; ++i) {
    const uint32_t w = tcp_receive_window(f.sk);
    if (w < 1460) break;
    f.segment(seq, 1, ACK, text(1460));
    seq += 1460;
    const uint32_t e = f.sk->rcv_wup + f.sk->rcv_wnd;
    if (edge) { EXPECT_FALSE(before(e, edge)); }
    edge = e;
  }
  EXPECT_LT(tcp_receive_window(f.sk), 20000u);
  EXPECT_LE(f.sk->rmem_alloc, f.sk->params.rcvbuf_max);
  std::string all;
  for (int i = 0; i < 200 && tcp_inq(f.sk); ++i) all += f.recv(8192);
  EXPECT_EQ(all.size(), seq - 1);
  EXPECT_GT(tcp_receive_window(f.sk), 20000u);   // and the peer was told
  EXPECT_EQ(f.ack(f.tx.size() - 1), seq);
}
TEST(receive, T33_peek_trunc_and_oob) {
  tcp_fixture f;
  f.establish();
  f.segment(1, 1, ACK | PSH, "abcdef");
  EXPECT_EQ(f.recv(3, MSG_PEEK), "abc");
  EXPECT_EQ(f.recv(3), "abc");
  EXPECT_EQ(tcp_recvmsg(f.n, f.sk, nullptr, 2, MSG_TRUNC), 2);
  EXPECT_EQ(f.recv(), "f");
  f.segment(7, 1, ACK | PSH | URG, "xyZ", 60000, "", 3);
  EXPECT_NE(tcp_poll(f.sk) & EPOLLPRI, 0u);
  EXPECT_EQ(f.recv(), "xy");
  EXPECT_EQ(f.recv(1, MSG_OOB), "Z");
  ssize_t rc;
  f.recv(10, 0, &rc);
  EXPECT_EQ(rc, -EAGAIN);
}
TEST(receive, fin_after_data_reads_to_the_end) {
  tcp_fixture f;
  f.establish();
  f.segment(1, 1, ACK | PSH | FIN, "end");
  EXPECT_EQ(tcp_inq(f.sk), 3u);
  EXPECT_EQ(f.recv(), "end");
  ssize_t rc;
  f.recv(10, 0, &rc);
  EXPECT_EQ(rc, 0);
  EXPECT_NE(tcp_poll(f.sk) & EPOLLRDHUP, 0u);
}
TEST(info, T16_tells_what_happened) {
  tcp_fixture f;
  f.establish();
  f.send("12345");
  f.n.now += 20 * msec_ns;
  f.segment(1, 6, ACK, "abc");
  ::tcp_info i;
  tcp_get_info(f.n, f.sk, &i);
  EXPECT_EQ(i.tcpi_state, TCP_ESTABLISHED);
  EXPECT_EQ(i.tcpi_bytes_acked, 6u);   // the SYN counts, as in Linux
  EXPECT_EQ(i.tcpi_bytes_sent, 5u);
  EXPECT_EQ(i.tcpi_bytes_received, 3u);
  EXPECT_NEAR(i.tcpi_rtt, 11250, 3000);
  EXPECT_EQ(i.tcpi_snd_mss, 1460u);
  uint32_t len = 8;
  char small[8];
  EXPECT_EQ(tcp_getsockopt(f.n, f.sk, 6, TCP_INFO, small, &len), 0);
  EXPECT_EQ(len, 8u);
}
TEST(rtt, a_clock_that_went_back_measures_nothing) {
  tcp_fixture f;
  f.establish();
  const uint32_t before = f.sk->srtt_us;
  f.send("12345");
  f.n.now -= 2 * usec_ns;
  f.segment(1, 6, ACK, "");
  EXPECT_LE(f.sk->srtt_us, before);
  EXPECT_LT(f.sk->rto, 2 * sec_ns);
}
TEST(cubic, window_grows_concave_towards_w_max) {
  tcp_fixture f;
  f.establish();
  f.sk->snd_cwnd = 100;
  f.sk->is_cwnd_limited = true;
  f.sk->snd_ssthresh = tcp_cubic.ssthresh(f.sk);
  EXPECT_EQ(f.sk->snd_ssthresh, 70u);   // RFC 9438 4.6: beta 0.7
  f.sk->snd_cwnd = 70;
  uint32_t at[3];
  for (uint32_t& w : at) {
    for (int i = 0; i < 14; ++i) {
      f.n.now += 100 * msec_ns;
      tcp_cubic.cong_avoid(f.sk, 0, f.sk->snd_cwnd);
    }
    w = f.sk->snd_cwnd;
  }
  EXPECT_GT(at[0] - 70, at[1] - at[0]);
  EXPECT_NEAR(at[2], 100, 6);
}
TEST(reno, one_segment_per_window) {
  tcp_fixture f;
  f.establish();
  tcp_ca_assign(f.sk, &tcp_reno);
  f.sk->snd_cwnd = 20;
  f.sk->snd_ssthresh = 10;
  f.sk->is_cwnd_limited = true;
  for (int i = 0; i < 20; ++i) tcp_reno.cong_avoid(f.sk, 0, 1);
  EXPECT_EQ(f.sk->snd_cwnd, 21u);
}

TEST(send, T16_narrower_path_is_cut_anew) {
  tcp_fixture f(9000);
  f.establish();
  f.sk->mss_cache = 3000;
  f.sk->dst->mtu = 1500;
  f.sk->mss_clamp = 3000;
  f.send(text(2900));            // refused by IP as too large
  EXPECT_EQ(f.tx.size(), 0u);
  f.advance(sec_ns);
  ASSERT_GE(f.tx.size(), 1u);
  for (const packet& p : f.tx) EXPECT_LE(p.gso_size ? p.gso_size : p.payload(), 1460u);
}
TEST(retransmit, T15_newreno_without_sack) {
  tcp_fixture f(1500, NETIF_F_IP_CSUM);
  f.make();
  f.sk->params.sack = false;
  tcp_connect(f.n, f.sk, f.t);
  f.iss = f.tx[0].th().seq;
  f.segment(0, 1, TCPHDR_SYN | ACK, "", 60000, f.syn_opts());
  f.tx.clear();
  f.segment(1, 1, ACK);          // the first segment after the SYN counts as a window update
  f.send(text(7300));
  for (int i = 0; i < 2; ++i) f.segment(1, 1, ACK);
  EXPECT_EQ(f.tx.size(), 5u);
  f.segment(1, 1, ACK);          // the third duplicate (RFC 5681 3.2)
  ASSERT_EQ(f.tx.size(), 6u);
  EXPECT_EQ(f.seq(5), 1u);
  f.segment(1, 2921, ACK);       // partial: the next hole goes at once (RFC 6582)
  ASSERT_EQ(f.tx.size(), 7u);
  EXPECT_EQ(f.seq(6), 2921u);
}
TEST(retransmit, limited_transmit_sends_new_data_on_duplicates) {
  tcp_fixture f(1500, NETIF_F_IP_CSUM);
  f.establish();
  f.send(text(30000));
  ASSERT_EQ(f.tx.size(), 10u);
  f.segment(1, 1, ACK, "", 60000, f.sack(1461, 2921));   // RFC 3042
  ASSERT_EQ(f.tx.size(), 11u);
  EXPECT_EQ(f.seq(10), 14601u);
}
TEST(retransmit, timestamps_undo_a_spurious_timeout) {
  tcp_fixture f(1500, NETIF_F_IP_CSUM);
  f.ts = true;
  f.establish();
  f.send(text(4000));
  const uint32_t before_ms = static_cast<uint32_t>(f.n.now / msec_ns) + f.sk->tsoffset, cwnd = f.sk->snd_cwnd;
  f.advance(800 * msec_ns);
  EXPECT_EQ(f.sk->ca_state, TCP_CA_Loss);
  f.segment(1, 1449, ACK, "", 60000, f.timestamp(101, before_ms));   // it answers the original (RFC 3522)
  EXPECT_EQ(f.sk->ca_state, TCP_CA_Open);
  EXPECT_GE(f.sk->snd_cwnd, cwnd);
}
TEST(send, no_memory_is_reported_and_nothing_is_lost) {
  tcp_fixture f;
  f.establish();
  std::vector<sk_buff*> hog;
  while (sk_buff* s = f.n.skbs.alloc()) hog.push_back(s);
  EXPECT_EQ(f.send("x"), -ENOBUFS);
  EXPECT_TRUE(f.sk->sk_write_queue.empty());
  for (sk_buff* s : hog) f.n.skbs.free(s);
  EXPECT_EQ(f.send("x"), 1);
  EXPECT_EQ(f.tx.size(), 1u);
}
TEST(close, fin_waits_for_memory) {
  tcp_fixture f;
  f.establish();
  std::vector<sk_buff*> hog;
  while (sk_buff* s = f.n.skbs.alloc()) hog.push_back(s);
  tcp_shutdown_write(f.n, f.sk);
  EXPECT_EQ(f.tx.size(), 0u);
  for (sk_buff* s : hog) f.n.skbs.free(s);
  f.advance(2 * sec_ns);
  ASSERT_GE(f.tx.size(), 1u);
  EXPECT_EQ(f.flags(0) & FIN, FIN);
}

}  // namespace icepath
