// The privileged half of the xdp port: program, maps, attachment, AF_XDP sockets. A C ABI, because two sides speak it: the plugin
// libicepath-xdp.so (the only file that links libbpf; plugin.cpp), which a process with the capabilities opens by itself (iface.cpp), and the broker,
// which links the same code and hands sockets to processes that have none. The unprivileged half (UMEM, rings, bind, data) is xsk.hpp and
// needs nothing of this but a socket.
//
// Needs CAP_NET_ADMIN and CAP_BPF (attach, maps), CAP_NET_RAW (socket). Everything is attached by a bpf_link and held by descriptors only: when the
// process is gone, by whatever, so are program, maps and flows, and the traffic is the kernel's. Never call from a thread in another network
// namespace than the interface's. Not thread-safe where not said; set-up and flow changes only, never per packet.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

enum : uint32_t { icepath_xdp_abi = 1 };
enum icepath_xdp_mode : uint32_t { icepath_xdp_auto, icepath_xdp_generic, icepath_xdp_native };

struct icepath_xdp_handle;             // an attached program; the plugin's own

struct icepath_xdp_info {
  uint32_t ifindex, mtu;
  uint32_t queues;                     // receive queues, at least 1, at most XDP_MAX_QUEUES
  uint32_t mode;                       // generic or native, as attached
  uint32_t frags;                      // the program takes packets of several buffers
  uint32_t software;                   // a device without hardware (veth, tun, ...): generic mode is the faster there
  uint32_t partial_csum;               // its frames may come with a TCP checksum that was left to an offload: only the pseudo header is summed
  uint8_t mac[6];
  char ifname[16], driver[32];
};

// Addresses and ports in network order, as a received packet has them: saddr and sport are the peer's.
struct icepath_xdp_flow { uint32_t saddr, daddr; uint16_t sport, dport; };
struct icepath_xdp_stats { uint64_t redirected, no_flow, no_socket, stale, other; };   // shared.h says what of

// Every function but close returns 0 (or a value >= 0) or -errno.
struct icepath_xdp_plugin {
  uint32_t abi, size;
  // Loads and attaches. `why` gets one line of text on failure. EBUSY: another program is there. ENODEV: no such interface.
  int (*open)(const char* ifname, uint32_t mode, icepath_xdp_handle** h, icepath_xdp_info* info, char* why, size_t why_size);
  void (*close)(icepath_xdp_handle* h);          // detaches
  void (*forget)(icepath_xdp_handle* h);         // in a child of fork: drops the child's copies, the parent's go on
  int (*socket)(icepath_xdp_handle* h);          // a new AF_XDP socket
  // A slot nobody has; flows that lead there are the new owner's only. Any thread.
  int (*slot_take)(icepath_xdp_handle* h, uint32_t* slot, uint32_t* generation);
  int (*slot_release)(icepath_xdp_handle* h, uint32_t slot, uint32_t generation);   // its flows pass to the kernel now. ESTALE: not the owner
  int (*slot_set)(icepath_xdp_handle* h, uint32_t slot, uint32_t queue, int xsk);   // xsk bound to that queue; -1: none
  int (*flow_add)(icepath_xdp_handle* h, const icepath_xdp_flow* f, uint32_t slot, uint32_t generation);   // EEXIST: somebody has it. Any thread
  int (*flow_del)(icepath_xdp_handle* h, const icepath_xdp_flow* f, uint32_t slot, uint32_t generation);   // ENOENT: not that owner's. Any thread
  int (*counts)(icepath_xdp_handle* h, icepath_xdp_stats* s);
  int (*fds)(const icepath_xdp_handle* h, int* to, int room);   // the descriptors it holds, so that the program cannot close them unseen. Number of them
};

// The one symbol of the plugin. Static.
const icepath_xdp_plugin* icepath_xdp_plugin_get();
typedef const icepath_xdp_plugin* (*icepath_xdp_plugin_get_fn)();

}  // extern "C"
