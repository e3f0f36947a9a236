// Packet headers as they are on the wire. Every field is in network order and of a type that swaps when read, every struct has
// alignment 1, so that any address in a packet will do. Pure layouts; bounds are the business of who casts.
#pragma once
#include "base/types.hpp"

namespace icepath {

// Ethernet II (IEEE 802.3) and the 802.1Q tag.
struct [[gnu::packed]] eth_hdr {
  uint8_t dst[6], src[6];
  be16 type;
};
struct [[gnu::packed]] vlan_hdr {
  be16 tci, type;   // priority 3, DEI 1, VLAN id 12
};
constexpr uint16_t eth_p_ip = 0x0800, eth_p_arp = 0x0806, eth_p_8021q = 0x8100, eth_p_ipv6 = 0x86dd;
static_assert(sizeof(eth_hdr) == 14 && offsetof(eth_hdr, type) == 12 && sizeof(vlan_hdr) == 4);

// RFC 791 section 3.1.
struct [[gnu::packed]] ipv4_hdr {
  uint8_t ver_ihl, tos;
  be16 tot_len, id, frag_off;
  uint8_t ttl, protocol;
  be16 check;
  be32 saddr, daddr;
  unsigned version() const { return ver_ihl >> 4; }
  unsigned header_len() const { return (ver_ihl & 15u) * 4; }
};
constexpr uint16_t ip_df = 0x4000, ip_mf = 0x2000, ip_offset = 0x1fff;
static_assert(sizeof(ipv4_hdr) == 20 && offsetof(ipv4_hdr, ttl) == 8 && offsetof(ipv4_hdr, check) == 10 && offsetof(ipv4_hdr, daddr) == 16);

// RFC 8200 section 3.
struct [[gnu::packed]] ipv6_hdr {
  be32 ver_tc_flow;
  be16 payload_len;
  uint8_t nexthdr, hop_limit;
  uint8_t saddr[16], daddr[16];
  unsigned version() const { return ver_tc_flow >> 28; }
  unsigned traffic_class() const { return ver_tc_flow >> 20 & 0xff; }
  unsigned flow_label() const { return ver_tc_flow & 0xfffff; }
};
static_assert(sizeof(ipv6_hdr) == 40 && offsetof(ipv6_hdr, nexthdr) == 6 && offsetof(ipv6_hdr, daddr) == 24);

// RFC 9293 section 3.1.
struct [[gnu::packed]] tcp_wire_hdr {
  be16 source, dest;
  be32 seq, ack_seq;
  uint8_t off_res;     // data offset 4, reserved 3, AE
  uint8_t flags;
  be16 window, check, urg_ptr;
  unsigned header_len() const { return (off_res >> 4) * 4u; }
};
static_assert(sizeof(tcp_wire_hdr) == 20 && offsetof(tcp_wire_hdr, flags) == 13 && offsetof(tcp_wire_hdr, check) == 16);

// RFC 768.
struct [[gnu::packed]] udp_hdr {
  be16 source, dest, len, check;
};
static_assert(sizeof(udp_hdr) == 8 && offsetof(udp_hdr, check) == 6);

// RFC 792, RFC 4443: type, code and checksum are the same in both.
struct [[gnu::packed]] icmp_hdr {
  uint8_t type, code;
  be16 check;
  be32 rest;           // id and sequence; or unused and next-hop MTU (RFC 1191); or MTU (ICMPv6)
};
constexpr uint8_t icmp_dest_unreach = 3, icmp_echo = 8, icmp_echoreply = 0, icmp_frag_needed = 4, icmpv6_packet_too_big = 2;
static_assert(sizeof(icmp_hdr) == 8 && offsetof(icmp_hdr, rest) == 4);

constexpr uint8_t ipproto_icmp = 1, ipproto_tcp = 6, ipproto_udp = 17, ipproto_icmpv6 = 58;

}  // namespace icepath
