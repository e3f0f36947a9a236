// Descriptors of the Intel Ethernet Controller E810, as the datasheet's LAN engine chapter lays them out (tables "Transmit Data
// Descriptor", "Transmit Context Descriptor", "Receive Descriptor Read Format (32 byte)" and "Flexible Receive Descriptor
// Write-Back (32 byte), NIC profile"); field names are the datasheet's. Pure layout: no state, any thread. All fields are little endian,
// and so are we; the asserts below fail on a host that is not.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>

namespace icepath {

static_assert(std::endian::native == std::endian::little);

// --- Transmit data descriptor, 16 bytes -----------------------------------------------------------------------------
struct ice_tx_desc {
  uint64_t buf_addr;               // address as the device sees it: offset in the region of the ring's owner
  uint64_t cmd_type_offset_bsz;    // DTYPE 3:0, CMD 15:4, OFFSET 33:16, TX_BUF_SZ 47:34, L2TAG1 63:48; write-back: DTYPE = DESC_DONE
};
static_assert(sizeof(ice_tx_desc) == 16 && offsetof(ice_tx_desc, cmd_type_offset_bsz) == 8);

// --- Transmit context descriptor, 16 bytes --------------------------------------------------------------------------
struct ice_tx_ctx_desc {
  uint32_t tunneling_params;
  uint16_t l2tag2;
  uint16_t rsvd;
  uint64_t type_cmd_tso_mss;       // DTYPE 3:0, CMD 10:4, reserved 29:11, TSO_LEN 47:30, reserved 49:48, MSS 63:50
};
static_assert(sizeof(ice_tx_ctx_desc) == 16 && offsetof(ice_tx_ctx_desc, l2tag2) == 4);
static_assert(offsetof(ice_tx_ctx_desc, type_cmd_tso_mss) == 8);

struct bit_field {
  unsigned shift, width;
  constexpr uint64_t max() const { return (uint64_t{1} << width) - 1; }
  constexpr uint64_t mask() const { return max() << shift; }
  constexpr uint64_t put(uint64_t v) const { return (v & max()) << shift; }
  constexpr uint32_t get(uint64_t q) const { return static_cast<uint32_t>((q >> shift) & max()); }
};

constexpr bit_field TXD_QW1_DTYPE{0, 4}, TXD_QW1_CMD{4, 12}, TXD_QW1_OFFSET{16, 18}, TXD_QW1_TX_BUF_SZ{34, 14}, TXD_QW1_L2TAG1{48, 16};
static_assert((TXD_QW1_DTYPE.mask() ^ TXD_QW1_CMD.mask() ^ TXD_QW1_OFFSET.mask() ^ TXD_QW1_TX_BUF_SZ.mask() ^ TXD_QW1_L2TAG1.mask()) ==
              ~uint64_t{0}, "the fields tile the quadword");
constexpr bit_field TXD_OFFSET_MACLEN{0, 7}, TXD_OFFSET_IPLEN{7, 7}, TXD_OFFSET_L4_LEN{14, 4};  // 2-, 4- and 4-byte units
static_assert((TXD_OFFSET_MACLEN.mask() ^ TXD_OFFSET_IPLEN.mask() ^ TXD_OFFSET_L4_LEN.mask()) == TXD_QW1_OFFSET.max());
constexpr bit_field TXD_CTX_QW1_CMD{4, 7}, TXD_CTX_QW1_TSO_LEN{30, 18}, TXD_CTX_QW1_MSS{50, 14};
constexpr uint64_t TXD_CTX_QW1_RSVD =
    ~(TXD_QW1_DTYPE.mask() | TXD_CTX_QW1_CMD.mask() | TXD_CTX_QW1_TSO_LEN.mask() | TXD_CTX_QW1_MSS.mask());
static_assert(TXD_CTX_QW1_RSVD == 0x000300003ffff800ull);

enum : uint32_t { ICE_TX_DESC_DTYPE_DATA = 0x0, ICE_TX_DESC_DTYPE_CTX = 0x1, ICE_TX_DESC_DTYPE_DESC_DONE = 0xf };
enum : uint32_t {  // CMD of a data descriptor
  ICE_TX_DESC_CMD_EOP = 0x001, ICE_TX_DESC_CMD_RS = 0x002, ICE_TX_DESC_CMD_RSVD = 0x004, ICE_TX_DESC_CMD_IL2TAG1 = 0x008,
  ICE_TX_DESC_CMD_DUMMY = 0x010, ICE_TX_DESC_CMD_IIPT_IPV6 = 0x020, ICE_TX_DESC_CMD_IIPT_IPV4 = 0x040,
  ICE_TX_DESC_CMD_IIPT_IPV4_CSUM = 0x060, ICE_TX_DESC_CMD_RSVD2 = 0x080, ICE_TX_DESC_CMD_L4T_EOFT_TCP = 0x100,
  ICE_TX_DESC_CMD_L4T_EOFT_SCTP = 0x200, ICE_TX_DESC_CMD_L4T_EOFT_UDP = 0x300, ICE_TX_DESC_CMD_RE = 0x400, ICE_TX_DESC_CMD_RSVD3 = 0x800
};
constexpr uint32_t ICE_TX_DESC_CMD_IIPT = 0x060, ICE_TX_DESC_CMD_L4T = 0x300;
enum : uint32_t {  // CMD of a context descriptor
  ICE_TX_CTX_DESC_TSO = 0x01, ICE_TX_CTX_DESC_TSYN = 0x02, ICE_TX_CTX_DESC_IL2TAG2 = 0x04, ICE_TX_CTX_DESC_IL2TAG2_IL2H = 0x08,
  ICE_TX_CTX_DESC_SWTCH_UPLINK = 0x10, ICE_TX_CTX_DESC_SWTCH_LOCAL = 0x20, ICE_TX_CTX_DESC_RESERVED = 0x40
};

// Limits of the device (datasheet, "Transmit Segmentation Offload" and "Malicious Driver Detection").
constexpr uint32_t ICE_MIN_TX_LEN = 17;                  // shorter frames are refused
constexpr uint32_t ICE_MAX_FRAME = 9728;                 // one frame on the wire, without CRC
constexpr uint32_t ICE_MAX_BUF_TXD = 8;                  // buffers per frame, or per segment of a TSO frame
constexpr uint32_t ICE_MAX_DATA_PER_TXD = 16 * 1024 - 1, ICE_MAX_DATA_PER_TXD_ALIGNED = 12 * 1024;
constexpr uint32_t ICE_TXD_CTX_MIN_MSS = 64, ICE_TXD_CTX_MAX_MSS = 9668;
constexpr uint32_t ICE_TSO_MAX_HDR = 512, ICE_TSO_HDR_BUFS = 3;
static_assert(ICE_MAX_DATA_PER_TXD == TXD_QW1_TX_BUF_SZ.max() && ICE_TXD_CTX_MAX_MSS <= TXD_CTX_QW1_MSS.max());

constexpr uint64_t build_ctob(uint32_t cmd, uint32_t offset, uint32_t size, uint32_t l2tag1) {
  return TXD_QW1_DTYPE.put(ICE_TX_DESC_DTYPE_DATA) | TXD_QW1_CMD.put(cmd) | TXD_QW1_OFFSET.put(offset) | TXD_QW1_TX_BUF_SZ.put(size) |
         TXD_QW1_L2TAG1.put(l2tag1);
}

// --- Receive descriptor, 32 bytes -----------------------------------------------------------------------------------
struct ice_32b_rx_read {           // what the driver posts
  uint64_t pkt_addr;
  uint64_t hdr_addr;               // 0; it covers the DD bit of the write-back, so posting clears DD
  uint64_t rsvd1, rsvd2;
};
struct ice_32b_rx_flex_wb {        // what the device writes back
  uint8_t rxdid;
  uint8_t mir_id_umb_cast;
  uint16_t ptype_flex_flags0;      // PTYPE 9:0
  uint16_t pkt_len;                // 13:0
  uint16_t hdr_len_sph_flex_flags1;
  uint16_t status_error0;
  uint16_t l2tag1;
  uint16_t flex_meta0, flex_meta1;
  uint16_t status_error1;
  uint8_t flex_flags2, time_stamp_low;
  uint16_t l2tag2_1st, l2tag2_2nd;
  uint16_t flex_meta2, flex_meta3, flex_meta4, flex_meta5;
};
union ice_32b_rx_flex_desc {
  ice_32b_rx_read read;
  ice_32b_rx_flex_wb wb;
  uint64_t qw[4];                  // whole quadwords: qw[1] carries DD and is stored last, with release
};
static_assert(sizeof(ice_32b_rx_flex_desc) == 32 && sizeof(ice_32b_rx_flex_wb) == 32);
static_assert(offsetof(ice_32b_rx_flex_wb, ptype_flex_flags0) == 2 && offsetof(ice_32b_rx_flex_wb, pkt_len) == 4);
static_assert(offsetof(ice_32b_rx_flex_wb, status_error0) == 8 && offsetof(ice_32b_rx_read, hdr_addr) == 8);
static_assert(offsetof(ice_32b_rx_flex_wb, flex_meta0) == 12 && offsetof(ice_32b_rx_flex_wb, flex_meta1) == 14);
static_assert(offsetof(ice_32b_rx_flex_wb, status_error1) == 16 && offsetof(ice_32b_rx_flex_wb, flex_meta2) == 24);

constexpr bit_field RXD_QW0_RXDID{0, 6}, RXD_QW0_PKT_LEN{32, 14};
constexpr bit_field RXD_QW1_STATUS{0, 16}, RXD_QW1_L2TAG1{16, 16}, RXD_QW1_META0{32, 16}, RXD_QW1_META1{48, 16};
enum : uint32_t {  // status_error0
  ICE_RX_FLEX_DESC_STATUS0_DD = 1u << 0, ICE_RX_FLEX_DESC_STATUS0_EOF = 1u << 1, ICE_RX_FLEX_DESC_STATUS0_L3L4P = 1u << 3,
  ICE_RX_FLEX_DESC_STATUS0_XSUM_IPE = 1u << 4, ICE_RX_FLEX_DESC_STATUS0_XSUM_L4E = 1u << 5, ICE_RX_FLEX_DESC_STATUS0_LPBK = 1u << 8,
  ICE_RX_FLEX_DESC_STATUS0_RXE = 1u << 10, ICE_RX_FLEX_DESC_STATUS0_L2TAG1P = 1u << 13
};
constexpr uint32_t ICE_RXDID_FLEX_NIC = 2;    // profile of an ordinary frame
constexpr uint32_t ICE_RXDID_LRO_PASS = 62;   // a programmable profile: flex_meta0 = MSS, flex_meta1 = segments of a TSO frame that passed whole

}  // namespace icepath
