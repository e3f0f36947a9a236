// The XDP program: exact TCP flows to AF_XDP sockets, everything else to the kernel. Runs in the receiving softirq for every packet of the interface,
// so it does nothing for those that are not ours but parse three headers and look once into a hash map. shared.h has the maps' meaning.
// Anything it does not understand (VLAN tags, IPv6, fragments, IP in IP) passes. IP options are skipped; the stack checks them.
// Only the first buffer of a packet is looked at; headers that are not in it pass.
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "shared.h"

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, XDP_MAX_FLOWS);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct xdp_flow4);
  __type(value, struct xdp_flow_to);
} icepath_flows4 SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, XDP_MAX_SLOTS);
  __type(key, __u32);
  __type(value, __u32);
} icepath_slots SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_XSKMAP);
  __uint(max_entries, XDP_MAX_SLOTS * XDP_MAX_QUEUES);
  __type(key, __u32);
  __type(value, __u32);
} icepath_xsks SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct xdp_counts);
} icepath_counts SEC(".maps");

struct eth_header {
  __u8 to[6], from[6];
  __u16 type;
};
struct ip_header {
  __u8 version_ihl, tos;
  __u16 tot_len, id, frag_off;
  __u8 ttl, protocol;
  __u16 check;
  __u32 saddr, daddr;
};
struct tcp_header {
  __u16 sport, dport;
  __u32 seq, ack;
  __u16 flags, window, check, urgent;
};

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NET16(v) ((__u16)((v) << 8 | (v) >> 8))
#else
#define NET16(v) ((__u16)(v))
#endif

SEC("xdp.frags")
int icepath_xdp(struct xdp_md *ctx) {
  void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
  __u32 zero = 0;
  struct xdp_counts *n = bpf_map_lookup_elem(&icepath_counts, &zero);
  if (!n) return XDP_PASS;

  struct eth_header *eth = data;
  struct ip_header *ip = (void *)(eth + 1);
  if ((void *)(ip + 1) > end) goto other;
  if (eth->type != NET16(0x0800) || ip->version_ihl >> 4 != 4 || ip->protocol != 6) goto other;
  if (ip->frag_off & NET16(0x3fff)) goto other;   // more fragments, or an offset
  __u32 ihl = (ip->version_ihl & 15) * 4u;
  if (ihl < sizeof *ip) goto other;
  struct tcp_header *tcp = (void *)ip + ihl;
  if ((void *)(tcp + 1) > end) goto other;

  struct xdp_flow4 key = {ip->saddr, ip->daddr, tcp->sport, tcp->dport};
  struct xdp_flow_to *to = bpf_map_lookup_elem(&icepath_flows4, &key);
  if (!to) {
    ++n->no_flow;
    return XDP_PASS;
  }
  __u32 slot = to->slot, queue = ctx->rx_queue_index;
  __u32 *generation = bpf_map_lookup_elem(&icepath_slots, &slot);
  if (!generation || *generation != to->generation || *generation == 0) {
    ++n->stale;
    return XDP_PASS;
  }
  if (queue < XDP_MAX_QUEUES) {
    int verdict = bpf_redirect_map(&icepath_xsks, slot * XDP_MAX_QUEUES + queue, XDP_PASS);
    if (verdict == XDP_REDIRECT) {
      ++n->redirected;
      return verdict;
    }
  }
  ++n->no_socket;
  return XDP_PASS;

other:
  ++n->other;
  return XDP_PASS;
}

char _license[] SEC("license") = "Apache-2.0";
