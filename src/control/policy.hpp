// Policy parity (DESIGN section 9): may packets of this connection pass by the kernel's path? What the kernel asks at connection time it has asked,
// because every connection is born there. What it asks of each packet has one row here. Unknown means kernel.
//
// | authority        | what icepath does                                                                        | told of changes by  | needs |
// |------------------|------------------------------------------------------------------------------------------|---------------------|-------|
// | nftables,        | evaluates each base chain of ip, ip6, inet and netdev that a packet of this connection   | NFNLGRP_NFTABLES    | N     |
// | iptables-nft     | meets, both directions (policy_nft.hpp). A rule that provably cannot match is passed     |                     |       |
// |                  | over; one that accepts and does nothing else is honoured; anything else that may be      |                     |       |
// |                  | reached, and a policy of drop: kernel                                                    |                     |       |
// | legacy iptables  | a table registered in this namespace (/proc/net/ip_tables_names, ip6_tables_names):      | a look each second  | root  |
// |                  | kernel. ebtables and bridge chains matter on bridge ports only, which are the kernel's   |                     |       |
// | conntrack, NAT   | nothing tracked in the namespace: ok. Else the connection is looked up (ctnetlink):      | asked at each check | N     |
// |                  | tracked, or not to be asked: kernel                                                      |                     |       |
// | cgroup BPF       | a program on INET_INGRESS, INET_EGRESS, SOCK_OPS or GETSOCKOPT that is effective for the | asked at each check | N     |
// |                  | socket's cgroup, ancestors included (systemd's IPAddressDeny is one): kernel. The kernel |                     |       |
// |                  | itself asked those on sock_create, bind, connect and setsockopt                          |                     |       |
// | tc               | a filter at clsact, ingress or the root qdisc, a shared block, or a qdisc other than     | RTNLGRP_TC          | -     |
// |                  | noqueue, mq, pfifo_fast, pfifo, bfifo, fq, fq_codel, codel: kernel                       |                     |       |
// | tcx              | a program on TCX_INGRESS or TCX_EGRESS of the interface: kernel                          | a look each second  | N     |
// | XFRM (IPsec)     | a policy whose selector may match, in or out, or a default that blocks: kernel. Policies | XFRMNLGRP_POLICY    | N     |
// |                  | of a single socket (IP_XFRM_POLICY) cannot be read: the library keeps a socket that sets |                     |       |
// |                  | one                                                                                      |                     |       |
// | VRF, bridge,     | an interface with a master: kernel                                                       | RTNLGRP_LINK        | -     |
// | bond             |                                                                                          |                     |       |
// | tunnels, virtual | an interface of a kind other than hardware and veth: kernel. A route with an             | RTNLGRP_LINK, ROUTE | -     |
// | links            | encapsulation: kernel (route.hpp)                                                        |                     |       |
// | SO_BINDTODEVICE  | another interface than the flow's: kernel                                                | the library sees it | -     |
// | SO_MARK, ip rule | any rule but the three plain ones: kernel; without such a rule a mark routes nothing     | RTNLGRP_*_RULE      | -     |
// | rp_filter        | strict or loose, it passes what arrives where the route to the peer leaves: a route that | RTNLGRP_*_ROUTE     | -     |
// |                  | leaves elsewhere: kernel                                                                 |                     |       |
// | LSM              | SELinux or Smack active (they label and check packets): kernel. Landlock, AppArmor,      | a look each second  | -     |
// |                  | TOMOYO and Yama ask at calls, which the kernel sees. A BPF LSM program on                |                     |       |
// |                  | socket_sock_rcv_skb cannot be seen without CAP_SYS_ADMIN and is not looked for           |                     |       |
// | network          | the socket's (SO_NETNS_COOKIE) is another than the mirror's: kernel                      | at promotion        | -     |
// | namespace        |                                                                                          |                     |       |
// | XDP of others    | the port's business: the xdp port does not attach beside a program that is not its own   |                     |       |
//
// N: CAP_NET_ADMIN in the namespace; without it the row is unknown, so a program without it lets the broker check. root: file mode 0440.
// Measured (2 vCPU, Linux 6.18, three links): a look each second 0.11 ms; control_policy_tables 2 us, with 500 nftables rules 80 us; all of
// control_policy_check 0.15 ms, most of it the cgroup.
//
// policy_generation (tables.hpp) changes with any row that is watched; the owner then asks control_policy_tables for each of his flows again. A
// cgroup program comes without a word: he asks control_policy_cgroup each second, once for each cgroup that his flows are of.
#pragma once
#include "control/tables.hpp"

namespace icepath {

struct policy_flow {
  uint32_t ifindex, uid, mark, bound_ifindex;   // bound_ifindex: SO_BINDTODEVICE, 0 without
  four_tuple tuple;                             // of our end
  uint64_t cgroup;                              // id of the socket's cgroup (INET_DIAG_CGROUP_ID), fixed when it was made; 0: the caller's own
  uint64_t netns_cookie;                        // SO_NETNS_COOKIE of the socket; 0: not to be compared
  uint8_t tos;
};

// nullptr: nothing stands in the way. Otherwise the reason, a static string. Reads the tables without locks; then, if nothing was found there, asks
// the kernel about this connection (conntrack, cgroup): system calls, not for the data path. Any thread.
const char* control_policy_check(const control_tables& t, const policy_flow& f);
// The part that reads only tables.
const char* control_policy_tables(const control_tables& t, const policy_flow& f);
// The parts that ask the kernel, in the namespace of the calling thread.
const char* control_policy_cgroup(uint64_t cgroup);
const char* control_policy_conntrack(const four_tuple& t);

enum policy_tc : uint32_t { tc_filter = 1, tc_qdisc = 2, tc_block = 4, tc_tcx = 8, tc_tcx_unknown = 16 };
enum policy_host : uint32_t { host_ip_tables = 1, host_ip6_tables = 2, host_tables_unknown = 4, host_lsm = 8, host_lsm_unknown = 16 };

}  // namespace icepath
