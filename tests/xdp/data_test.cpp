// The xdp port's data path over veth: echo of all sizes in both modes, checksums, frames of several buffers, full rings, sleeping, frame accounting.
#include <gtest/gtest.h>
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "base/clock.hpp"
#include "net/gso.hpp"
#include "net/qdisc.hpp"
#include "wire/checksum.hpp"
#include "xdp_env.hpp"

namespace {
using namespace xdptest;

// linux/virtio_net.h is no C++.
struct virtio_net_hdr { uint8_t flags, gso_type; uint16_t hdr_len, gso_size, csum_start, csum_offset; };
static_assert(sizeof(virtio_net_hdr) == 10);
constexpr uint8_t VIRTIO_NET_HDR_F_NEEDS_CSUM = 1, VIRTIO_NET_HDR_GSO_TCPV4 = 1;

struct XdpData : testing::TestWithParam<xdp_mode> {
  wire w;
  sk_buff* v[64];
  void up(end& a, end& b) {
    ASSERT_TRUE(a.ok()) << a.why;
    ASSERT_TRUE(b.ok()) << b.why;
    ASSERT_TRUE(xdp_flow_add(*a.iface, a.flow()));
    ASSERT_TRUE(xdp_flow_add(*b.iface, b.flow()));
  }
  // a sends, b turns it around, a gets it back.
  void echo(end& a, end& b, uint32_t payload, uint32_t tag, uint32_t piece) {
    sk_buff* s = a.frame(payload, tag, piece);
    ASSERT_NE(s, nullptr);
    if (!(a.dev().features & NETIF_F_IP_CSUM)) a.finish_sum(s);
    ASSERT_TRUE(a.send(s));
    ASSERT_EQ(b.receive(v, 64), 1) << payload;
    EXPECT_TRUE(check_frame(v[0], payload, tag));
    turn_around(v[0]);
    ASSERT_TRUE(b.send(v[0]));
    ASSERT_EQ(a.receive(v, 64), 1) << payload;
    EXPECT_TRUE(check_frame(v[0], payload, tag));
    a.n.skbs.free(v[0]);
  }
  void settle(end& e) {   // completions
    for (int i = 0; i < 1000 && e.dev().clean_tx(64) >= 0 && !e.dev().arm(); ++i) e.n.now = clock_now();
  }
};

TEST_P(XdpData, EchoOfAllSizes) {
  end a(w, 0, GetParam()), b(w, 1, GetParam());
  up(a, b);
  if (HasFatalFailure()) return;
  uint32_t tag = 1;
  for (uint32_t payload : {0u, 1u, 64u, 700u, 1447u, 1448u}) echo(a, b, payload, tag++, 0);
}

TEST_P(XdpData, EchoOfFragments) {
  xdp_port_options o = end::small();
  o.tx_sg = true;
  end a(w, 0, GetParam(), o), b(w, 1, GetParam(), o);
  up(a, b);
  if (HasFatalFailure()) return;
  ASSERT_TRUE(a.dev().features & NETIF_F_SG);
  uint32_t tag = 1;
  for (uint32_t piece : {64u, 100u, 1448u}) echo(a, b, piece == 64 ? 17 * 64 : 1448, tag++, piece);
}

TEST_P(XdpData, JumboPackets) {
  wire big(1, 9000);
  end a(big, 0, GetParam()), b(big, 1, GetParam());
  up(a, b);
  if (HasFatalFailure()) return;
  EXPECT_EQ(a.dev().mtu, 9000u);
  ASSERT_TRUE(a.dev().features & NETIF_F_SG);
  echo(a, b, 9000 - 52, 1, 4096);
  echo(a, b, 3000, 2, 0);
}

// What the kernel would refuse, and never complete, is not given to it.
TEST_P(XdpData, ImpossiblePacketsAreDroppedAndCounted) {
  end a(w, 0, GetParam()), b(w, 1, GetParam());
  up(a, b);
  if (HasFatalFailure()) return;
  ASSERT_FALSE(a.dev().features & NETIF_F_SG);
  ASSERT_TRUE(a.send(a.frame(1449, 1, 0)));       // larger than the MTU
  ASSERT_TRUE(a.send(a.frame(100, 2, 50)));       // fragments, without NETIF_F_SG
  echo(a, b, 100, 3, 0);
  settle(a);
  EXPECT_EQ(a.dev().tx_dropped, 2u);
  EXPECT_EQ(a.n.skbs.allocated(), 0);
}

TEST_P(XdpData, NoFrameIsLost) {
  for (bool sg : {false, true}) {
    xdp_port_options o = end::small();
    o.tx_sg = sg;
    end a(w, 0, GetParam(), o), b(w, 1, GetParam());
    up(a, b);
    if (HasFatalFailure()) return;
    settle(a);
    settle(b);
    const uint32_t a0 = a.held(), b0 = b.held();
    EXPECT_LE(a0, 4096u);
    uint64_t got = 0, sent = 0;
    while (sent < 50000) {
      for (int i = 0; i < 32; ++i) {
        sk_buff* s = a.frame(64 + (sent & 1023), static_cast<uint32_t>(sent), sg && (sent & 1) ? 512 : 0);
        ASSERT_NE(s, nullptr);
        if (!(a.dev().features & NETIF_F_IP_CSUM)) a.finish_sum(s);
        ASSERT_TRUE(a.send(s, 0, i < 31));
        ++sent;
      }
      for (int have = 0; have < 32;) {
        const int k = b.receive(v, 64);
        ASSERT_GT(k, 0) << "after " << got;
        for (int i = 0; i < k; ++i) {
          EXPECT_TRUE(check_frame(v[i], 64 + (got & 1023), static_cast<uint32_t>(got)));
          ++got;
          b.n.skbs.free(v[i]);
        }
        have += k;
      }
      a.dev().clean_tx(64);
    }
    settle(a);
    settle(b);
    EXPECT_EQ(got, sent);
    EXPECT_EQ(a.dev().tx_packets, sent);
    EXPECT_EQ(b.dev().rx_packets, sent);
    EXPECT_EQ(a.n.skbs.allocated(), 0);
    EXPECT_EQ(b.n.skbs.allocated(), 0);
    EXPECT_EQ(a.held(), a0);
    EXPECT_NEAR(b.held(), b0, 64);   // the fill ring is topped up in batches
    a.close_port();
    b.close_port();
    EXPECT_EQ(a.held(), 0u);
    EXPECT_EQ(b.held(), 0u);
  }
}

TEST_P(XdpData, FullRingStopsTheQueueAndWakesIt) {
  xdp_port_options o = end::small();
  o.ring_size = 64;
  o.fill = 64;
  end a(w, 0, GetParam(), o), b(w, 1, GetParam());
  up(a, b);
  if (HasFatalFailure()) return;
  ASSERT_TRUE(dev_attach_qdisc(a.dev(), 0));
  unsigned sent = 0;
  sk_buff* s;
  for (;; ++sent) {
    s = a.frame(10, sent, 0);
    if (a.dev().start_xmit(s, 0, true) != xmit::ok) break;
  }
  EXPECT_EQ(sent, 64u);
  EXPECT_TRUE(netif_xmit_frozen_or_stopped(a.dev().txq[0]));
  EXPECT_EQ(a.dev().tx_busy, 1u);
  s->dev = &a.dev();
  EXPECT_EQ(dev_queue_xmit(a.n, s), 0);   // waits in the qdisc
  EXPECT_FALSE(a.dev().arm());
  unsigned got = 0;
  while (got < sent + 1) {
    a.n.now = clock_now();
    a.dev().clean_tx(64);
    const int k = b.receive(v, 64, 1000);
    ASSERT_GT(k, 0) << got;
    for (int i = 0; i < k; ++i) {
      EXPECT_TRUE(check_frame(v[i], 10, got++));
      b.n.skbs.free(v[i]);
    }
  }
  EXPECT_FALSE(netif_xmit_frozen_or_stopped(a.dev().txq[0]));
  settle(a);
  dev_detach_qdisc(a.n, a.dev(), 0);
}

TEST_P(XdpData, ReceiverWithoutRoomDropsAndGoesOn) {
  xdp_port_options o = end::small();
  o.ring_size = 64;
  o.fill = 32;
  end a(w, 0, GetParam()), b(w, 1, GetParam(), o);
  up(a, b);
  if (HasFatalFailure()) return;
  for (unsigned i = 0; i < 200; ++i) ASSERT_TRUE(a.send(a.frame(10, i, 0), 0, i % 8 != 7));
  settle(a);
  const nsec until = clock_now() + sec_ns;   // native mode: the receiving softirq may still be at it
  while (xdp_port_statistics(b.port).fill_empty + xdp_port_statistics(b.port).rx_dropped < 168 && clock_now() < until) {}
  unsigned got = 0;
  for (int k; (k = b.receive(v, 64, 50)) > 0; got += static_cast<unsigned>(k))
    for (int i = 0; i < k; ++i) b.n.skbs.free(v[i]);
  EXPECT_GE(got, 32u);
  EXPECT_LT(got, 200u);
  const xsk_statistics st = xdp_port_statistics(b.port);
  EXPECT_GT(st.fill_empty + st.rx_dropped, 0u);
  echo(a, b, 100, 7, 0);
}

TEST_P(XdpData, SleepsAndIsWoken) {
  end a(w, 0, GetParam()), b(w, 1, GetParam());
  up(a, b);
  if (HasFatalFailure()) return;
  b.n.now = clock_now();
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(b.dev().arm());
    pollfd f{xdp_port_wake_fd(b.port), POLLIN, 0};
    EXPECT_EQ(::poll(&f, 1, 0), 0);
    ASSERT_TRUE(a.send(a.frame(64, 1, 0)));
    EXPECT_EQ(::poll(&f, 1, 2000), 1);
    EXPECT_FALSE(b.dev().arm());
    b.dev().disarm();
    ASSERT_EQ(b.receive(v, 64), 1);
    b.n.skbs.free(v[0]);
  }
  settle(a);
  EXPECT_TRUE(a.dev().arm());
}

TEST_P(XdpData, ChecksumsLeftOutAreTakenWrongOnesAreNot) {
  xdp_port_options plain = end::small();
  plain.tx_csum = false;
  end a(w, 0, GetParam(), plain), b(w, 1, GetParam());
  up(a, b);
  if (HasFatalFailure()) return;
  EXPECT_FALSE(a.dev().features & NETIF_F_IP_CSUM);
  const auto arrives_as = [&](sk_buff* s) {
    EXPECT_TRUE(a.send(s));
    const int k = b.receive(v, 64);
    if (k != 1) return ip_sum::complete;
    const ip_sum is = v[0]->ip_summed;
    b.n.skbs.free(v[0]);
    return is;
  };
  EXPECT_EQ(arrives_as(a.frame(100, 1, 0)), ip_sum::unnecessary);   // the sum of the pseudo header only
  sk_buff* whole = a.frame(100, 1, 0);
  a.finish_sum(whole);
  EXPECT_EQ(arrives_as(whole), ip_sum::none);   // TCP checks it
  sk_buff* wrong = a.frame(100, 1, 0);
  wrong->transport()[16] ^= 1;
  EXPECT_EQ(arrives_as(wrong), ip_sum::none);
}

// The kernel's own TCP is content with the checksum that Tx metadata ask for: to a port nobody listens on, the segment is answered by an RST.
TEST_P(XdpData, ChecksumOffloadSatisfiesTheKernel) {
  end a(w, 0, GetParam());
  ASSERT_TRUE(a.ok()) << a.why;
  ASSERT_TRUE(xdp_flow_add(*a.iface, a.flow()));
  if (!(a.dev().features & NETIF_F_IP_CSUM)) GTEST_SKIP() << "this kernel has no Tx metadata";
  sh("ip -n " + w.ns[1] + " neigh replace 10.9.0.1 lladdr " + [&] {
    char t[18];
    std::snprintf(t, sizeof t, "%02x:%02x:%02x:%02x:%02x:%02x", w.mac[0][0], w.mac[0][1], w.mac[0][2], w.mac[0][3], w.mac[0][4], w.mac[0][5]);
    return std::string(t);
  }() + " dev " + w.dev[1]);
  ASSERT_TRUE(a.send(a.frame(333, 5)));
  ASSERT_EQ(a.receive(v, 64), 1);
  EXPECT_TRUE(v[0]->data[47] & 0x04) << "no RST";
  a.n.skbs.free(v[0]);
  sk_buff* s = a.frame(333, 5);
  s->ip_summed = ip_sum::none;   // the same bytes without the request: a wrong checksum
  ASSERT_TRUE(a.send(s));
  EXPECT_EQ(a.receive(v, 64, 200), 0);
}

// What the kernel of the other side sends when its TCP leaves the cutting to the device: one packet of 60000 bytes. Whole in generic
// mode, as segments in native mode.
TEST_P(XdpData, GsoPacketsComeWhole) {
  end b(w, 1, GetParam());
  ASSERT_TRUE(b.ok()) << b.why;
  ASSERT_TRUE(b.iface->info.frags);
  ASSERT_TRUE(xdp_flow_add(*b.iface, b.flow()));
  end* const e = &b;
  // Built as end 0 would: the same bytes through a packet socket.
  std::string bytes(sizeof(virtio_net_hdr), '\0');
  virtio_net_hdr h{};
  h.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
  h.gso_type = VIRTIO_NET_HDR_GSO_TCPV4;
  h.hdr_len = frame_headers;
  h.gso_size = 1448;
  h.csum_start = 34;
  h.csum_offset = 16;
  std::memcpy(bytes.data(), &h, sizeof h);
  const uint32_t payload = 60000, tag = 3;
  {
    end a(w, 0, xdp_mode::generic, end::small(), false);   // for its addresses
    sk_buff* s = a.frame(0, tag);
    uint8_t* p = s->data;
    p[16] = static_cast<uint8_t>((52 + payload) >> 8), p[17] = static_cast<uint8_t>(52 + payload);
    p[24] = p[25] = 0;
    const uint16_t c = csum_fold(csum_partial(p + 14, 20));
    std::memcpy(p + 24, &c, 2);
    const uint16_t pseudo = pseudo_header_sum(p + 14, 6, 32 + payload);
    p[50] = static_cast<uint8_t>(pseudo >> 8), p[51] = static_cast<uint8_t>(pseudo);
    bytes.append(reinterpret_cast<char*>(p), frame_headers);
    a.n.skbs.free(s);
  }
  for (uint32_t i = 0; i < payload; ++i) bytes += static_cast<char>(i * 7 + tag);
  w.enter(0);
  const int s = ::socket(AF_PACKET, SOCK_RAW, 0);
  const int on = 1;
  EXPECT_EQ(::setsockopt(s, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on), 0);
  sockaddr_ll to{};
  to.sll_family = AF_PACKET;
  to.sll_protocol = htons(0x0800);
  to.sll_ifindex = static_cast<int>(::if_nametoindex(w.dev[0].c_str()));
  EXPECT_EQ(::bind(s, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  const ssize_t out = ::send(s, bytes.data(), bytes.size(), 0);
  EXPECT_EQ(out, static_cast<ssize_t>(bytes.size())) << std::strerror(errno);
  ::close(s);
  leave();
  uint32_t got = 0;
  while (got < payload) {
    const int k = e->receive(v, 64, 1000);
    ASSERT_GT(k, 0);
    for (int i = 0; i < k; ++i) {
      const uint32_t here = v[i]->len - frame_headers;
      if (GetParam() == xdp_mode::native) {   // veth cuts it before it is ours
        EXPECT_EQ(here, std::min(payload - got, 1448u));
        EXPECT_TRUE(check_frame(v[i], here, tag + got * 7));
      } else {
        EXPECT_TRUE(check_frame(v[i], payload, tag));
        EXPECT_EQ(v[i]->gso_size, 1448);
        EXPECT_EQ(v[i]->gso_segs, (payload + 1447) / 1448);
        EXPECT_EQ(v[i]->ip_summed, ip_sum::unnecessary);
      }
      got += here;
      e->n.skbs.free(v[i]);
    }
  }
  EXPECT_EQ(e->n.skbs.allocated(), 0);
}

INSTANTIATE_TEST_SUITE_P(Modes, XdpData, testing::Values(xdp_mode::generic, xdp_mode::native),
                         [](const auto& i) { return i.param == xdp_mode::generic ? "generic" : "native"; });

int run() { return RUN_ALL_TESTS(); }

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (const std::string why = can_run(); !why.empty()) {
    std::printf("skipped: %s\n", why.c_str());
    return 77;
  }
  return run_and_clean_up(run);
}
