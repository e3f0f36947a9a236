// Counters of one stack, with the kernel's SNMP names (RFC 4022, RFC 4293, and the kernel's TcpExt). They live in the
// process's shared region so that `icepath stat` reads them from outside; written by the stack's owner only
// (relaxed stores), read by anybody.
#pragma once
#include <atomic>
#include <cstdint>

namespace icepath {

#define ICEPATH_MIB(X) \
  X(IpInReceives) X(IpInHdrErrors) X(IpInAddrErrors) X(IpInDelivers) X(IpOutRequests) X(IpOutDiscards) X(IpOutNoRoutes) \
  X(TcpActiveOpens) X(TcpPassiveOpens) X(TcpAttemptFails) X(TcpEstabResets) X(TcpInSegs) X(TcpOutSegs) X(TcpRetransSegs) \
  X(TcpInErrs) X(TcpOutRsts) X(TcpInCsumErrors) X(TcpExtPAWSEstab) X(TcpExtDelayedACKs) X(TcpExtDelayedACKLost) \
  X(TcpExtTCPHPHits) X(TcpExtTCPPureAcks) X(TcpExtTCPSackRecovery) X(TcpExtTCPRenoRecovery) X(TcpExtTCPFastRetrans) X(TcpExtTCPSlowStartRetrans) \
  X(TcpExtTCPTimeouts) X(TcpExtTCPLossProbes) X(TcpExtTCPDSACKRecv) X(TcpExtTCPOFOQueue) X(TcpExtTCPOFOMerge) X(TcpExtTCPRcvQDrop) \
  X(TcpExtTCPChallengeACK) X(TcpExtTCPSYNChallenge) X(TcpExtTCPAutoCorking) X(TcpExtTCPWinProbe) X(TcpExtTCPKeepAlive) X(TcpExtTCPAbortOnData) \
  X(TcpExtTCPAbortOnTimeout) X(TcpExtTCPAbortFailed) X(TcpExtTCPRcvCoalesce) X(TcpExtTCPSpuriousRTOs) X(TcpExtListenOverflows) X(TcpExtListenDrops) X(TcpExtTCPBacklogDrop) \
  X(TxBytes) X(RxBytes) X(QdiscBypass) X(QdiscEnqueue) X(QdiscRequeue) X(QdiscDrop) X(QdiscMissed) \
  X(RingTxDesc) X(RingDoorbells) X(RingBusy) X(RingBqlStops) X(RingRxDesc) X(RingRxNoBuf) X(RingWakes) X(RingMddEvents) X(RingPaused) X(RingTxLinearize) \
  X(SockPromoted) X(SockDemoted) X(SockPromoteFailed) X(SockLaneDead) X(StackPolls) X(StackSpins) X(StackSleeps) X(StackWakes) X(StackBacklog) \
  X(IpInUnknownProtos) X(IpInDiscards) X(IpInTruncatedPkts) X(IpInCsumErrors) X(IpReasmFails) X(IpOutFragFails)

struct mib {
#define X(n) std::atomic<uint64_t> n{0};
  ICEPATH_MIB(X)
#undef X
};
constexpr const char* mib_names[] = {
#define X(n) #n,
    ICEPATH_MIB(X)
#undef X
};
constexpr unsigned mib_count = sizeof(mib_names) / sizeof(mib_names[0]);
static_assert(sizeof(mib) == mib_count * 8);

// Single writer: a plain add without the lock prefix.
inline void mib_add(std::atomic<uint64_t>& c, uint64_t v = 1) { c.store(c.load(std::memory_order_relaxed) + v, std::memory_order_relaxed); }

}  // namespace icepath
