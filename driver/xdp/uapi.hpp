// AF_XDP as the kernel speaks it, where the build machine's linux/if_xdp.h may be older than the kernel it runs on: flags and structs of
// Linux 6.6 and 6.8 under names of our own. Constants only.
#pragma once
#include <linux/if_xdp.h>

#include "base/types.hpp"

namespace icepath {

constexpr uint16_t XSK_BIND_USE_SG = 1 << 4;               // 6.6: packets of several descriptors
constexpr uint32_t XSK_UMEM_TX_METADATA_LEN = 1 << 2;      // 6.8, flag of XDP_UMEM_REG
constexpr uint32_t XSK_DESC_CONTD = 1 << 0;                // desc.options: the packet goes on in the next descriptor
constexpr uint32_t XSK_DESC_TX_METADATA = 1 << 1;          // desc.options: metadata in front of the data
constexpr uint64_t XSK_TXMD_CHECKSUM = 1 << 1;             // metadata.flags
constexpr int XSK_SO_PREFER_BUSY_POLL = 69, XSK_SO_BUSY_POLL_BUDGET = 70;

struct xsk_umem_reg {                  // 6.8's; the last field was padding before
  uint64_t addr, len;
  uint32_t chunk_size, headroom, flags, tx_metadata_len;
};
static_assert(sizeof(xsk_umem_reg) == 32);

struct xsk_tx_metadata {               // the bytes in front of a packet, in the headroom of its first frame
  uint64_t flags;
  uint16_t csum_start, csum_offset;    // from the start of the packet; from csum_start
  uint32_t unused;
  uint64_t launch_time;
};
static_assert(sizeof(xsk_tx_metadata) == 24 && offsetof(xsk_tx_metadata, csum_start) == 8);

}  // namespace icepath
