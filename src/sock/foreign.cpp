// See foreign.hpp.
#include "sock/foreign.hpp"

#include <netinet/in.h>
#include <sys/socket.h>

#include "base/raw_syscall.hpp"
#include "skb/sk_buff.hpp"
#include "wire/checksum.hpp"

namespace icepath {
namespace {

constexpr size_t longest = 65535;   // of an IPv4 packet; the loopback device takes that many
alignas(8) uint8_t packet[longest];
long raw = -1;
bool kept = false;

bool open_raw() {
  if (raw < 0) raw = raw_syscall(SYS_socket, AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
  return raw >= 0;
}

void close_raw() {
  if (raw >= 0) raw_syscall(SYS_close, raw);
  raw = -1;
}

}  // namespace

void foreign_begin() { kept = true; }

void foreign_end() {
  kept = false;
  close_raw();
}

void foreign_segment(net&, const sk_buff* skb) {
  // The header has been checked (ip_rcv), and what is behind the packet's end cut off; skb begins at the TCP header.
  const uint8_t* ip = skb->network();
  const size_t ihl = (ip[0] & 15) * 4u, len = ihl + skb->len;
  if (len > longest || skb->len < 20) return;
  std::memcpy(packet, ip, ihl);
  skb_copy_bits(skb, 0, packet + ihl, skb->len);
  // It may have come over a device that leaves the checksum to hardware, or as one of several segments' worth.
  be32 src, dst;
  std::memcpy(&src, packet + 12, 4);
  std::memcpy(&dst, packet + 16, 4);
  uint16_t sum = 0;
  std::memcpy(packet + ihl + 16, &sum, 2);
  sum = csum_fold(csum_partial(packet + ihl, skb->len, csum_pseudo_v4(src, dst, IPPROTO_TCP, skb->len)));
  std::memcpy(packet + ihl + 16, &sum, 2);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_addr.s_addr = dst.raw;
  if (!open_raw()) return;
  (void)raw_syscall(SYS_sendto, raw, packet, len, MSG_DONTWAIT | MSG_NOSIGNAL, &to, sizeof to);
  if (!kept) close_raw();
}

}  // namespace icepath
