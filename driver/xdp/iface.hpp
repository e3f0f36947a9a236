// An interface that this process shares with the kernel by AF_XDP: the opened plugin, its handle, the process's slot. One object for each interface
// and process, made before its ports and closed after them. Any thread; set-up and flow changes only.
//
// The plugin is opened by dlopen, from the directory this library lies in, on the first interface: a process without an xdp port maps no BPF library.
#pragma once
#include <atomic>

#include "base/types.hpp"
#include "xdp/plugin.hpp"

namespace icepath {

struct xdp_iface {
  const icepath_xdp_plugin* ops = nullptr;   // the plugin's, or the broker's stand-in
  icepath_xdp_handle* handle = nullptr;
  icepath_xdp_info info{};
  uint32_t slot = 0, generation = 0;         // this process's
  std::atomic<uint64_t> queues_closed{0};    // receive queues that had a socket of ours: the kernel frees them a little after the close
  std::atomic<uint64_t> queues_taken{0};     // receive queues with a socket of ours. acq_rel: a queue's last user is done with it
};

enum class xdp_mode : uint8_t { automatic, generic, native };
// plugin_path nullptr: beside this library. `why` gets one line of text when it fails (errno in the result).
result<xdp_iface*> xdp_iface_open(const char* ifname, xdp_mode mode, char* why, size_t why_size, const char* plugin_path = nullptr);
void xdp_iface_close(xdp_iface* i);          // after its ports; program, maps and flows go, the traffic is the kernel's
void xdp_iface_forget(xdp_iface* i);         // in a child of fork

// The connection as we see it (saddr, sport: ours). Its packets come to this process from here on, or no more. EAFNOSUPPORT: not IPv4.
// EEXIST: somebody else has it.
result<bool> xdp_flow_add(xdp_iface& i, const four_tuple& ours);
result<bool> xdp_flow_del(xdp_iface& i, const four_tuple& ours);
result<icepath_xdp_stats> xdp_iface_counts(xdp_iface& i);
int xdp_iface_fds(const xdp_iface& i, int* to, int room);   // those of the plugin; how many

}  // namespace icepath
