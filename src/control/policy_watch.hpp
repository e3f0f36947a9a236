// Reading of the authorities that policy.hpp lists. Control thread only. Number of rows or -errno, as in dump.hpp; what is not permitted is -EPERM,
// and the table unknown.
#pragma once
#include "control/netlink.hpp"
#include "control/tables.hpp"

namespace icepath {

int dump_nft(netlink& n, nft_row* rows, uint32_t max);
int dump_nft_unwatched(netlink& n);   // no permission to be told of changes: 0 where the kernel has no nftables at all, else -EPERM
int dump_tc(netlink& n, const control_tables& t, tc_row* rows, uint32_t max);
int dump_xfrm(netlink& n, xfrm_row* rows, uint32_t max);
int dump_xfrm_none();                 // no such socket: 0 where the kernel has no XFRM, else -EPERM
int dump_host(host_row* rows);

}  // namespace icepath
