// Two network namespaces joined by a veth pair, and ports on its ends, for the tests and the benchmark of the xdp port. Everything is made by
// the program itself and removed by its parent process, also when it was killed. Needs root, network namespaces, AF_XDP and iproute2; can_run()
// says what is missing.
#pragma once
#include <string>

#include "net/net.hpp"
#include "skb/region.hpp"
#include "xdp/xdp_port.hpp"

namespace xdptest {
using namespace icepath;

std::string can_run();                       // empty, or the reason why not
int run_and_clean_up(int (*body)());         // in a child; the namespaces and the runtime directory of this program are gone afterwards

bool sh(const std::string& command);         // exit status 0
std::string output_of(const std::string& command);

struct wire {                                // ends: 0 and 1; 10.9.0.1 and 10.9.0.2
  std::string ns[2], dev[2] = {"xdp-a", "xdp-b"};
  uint8_t mac[2][6];
  explicit wire(unsigned queues = 1, unsigned mtu = 1500);
  ~wire();
  wire(const wire&) = delete;
  std::string in(int end) const { return "ip netns exec " + ns[end] + " "; }
  void enter(int end) const;                 // the calling thread
  std::string link(int end) const;           // `ip link show` of that end
};
void leave();                                // back to the namespace this program began in

struct end {                                 // a stack's worth of things on one end of the wire
  region own;
  net n;
  mib stats;
  xdp_iface* iface = nullptr;
  xdp_port* port = nullptr;
  char why[256] = "";
  int err = 0;
  int no;
  const wire& w;
  end(const wire& on, int which, xdp_mode mode, const xdp_port_options& o = small(), bool with_port = true);
  ~end();
  end(const end&) = delete;
  static xdp_port_options small() { xdp_port_options o; o.frames = 4096; return o; }
  bool ok() const { return err == 0; }
  net_device& dev() { return *xdp_port_dev(port); }
  bool open_port(const xdp_port_options& o);
  void close_port();
  icepath_xdp_stats counts();
  // The flow between port 1000 on end 0 and port 2000 on end 1, seen from here.
  four_tuple flow(uint16_t port0 = 1000, uint16_t port1 = 2000) const;
  // A TCP segment to the other end: linear headers, the payload behind them or in fragments of `piece` bytes.
  sk_buff* frame(uint32_t payload, uint32_t tag, uint32_t piece = 0, uint16_t port0 = 1000, uint16_t port1 = 2000);
  void finish_sum(sk_buff* s);               // computes the whole checksum, as a sender without offload does
  bool send(sk_buff* s, uint16_t q = 0, bool more = false) { return dev().start_xmit(s, q, more) == xmit::ok; }
  int receive(sk_buff** v, int n, unsigned msec = 2000);   // polls until there is something
  uint32_t held() { return n.skbs.frames.drain(), own.frames.in_use(); }   // frames outside the pool; the cache is emptied first
};
bool check_frame(const sk_buff* s, uint32_t payload, uint32_t tag);
void turn_around(sk_buff* s);                // addresses and ports swapped: an echo
constexpr uint32_t frame_headers = 14 + 20 + 32;

}  // namespace xdptest
