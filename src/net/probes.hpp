// USDT probes of the transmit path (T27), with the kernel's tracepoint names: net_dev_queue, net_dev_start_xmit, net_dev_xmit
// of provider `icepath`. They cost a no-op each, and nothing at all when <sys/sdt.h> is missing at build time.
#pragma once
#include "net/net_device.hpp"

#ifdef ICEPATH_HAVE_SDT
#include <sys/sdt.h>
#endif

namespace icepath {

inline void probe_net_dev_queue([[maybe_unused]] const net_device& dev, [[maybe_unused]] const sk_buff* skb) {
#ifdef ICEPATH_HAVE_SDT
  DTRACE_PROBE3(icepath, net_dev_queue, dev.name, skb, skb->len);
#endif
}
inline void probe_net_dev_start_xmit([[maybe_unused]] const net_device& dev, [[maybe_unused]] const sk_buff* skb,
                                     [[maybe_unused]] uint16_t txq) {
#ifdef ICEPATH_HAVE_SDT
  DTRACE_PROBE4(icepath, net_dev_start_xmit, dev.name, skb, skb->len, txq);
#endif
}
// skb may be gone already: only its address and its former length are given.
inline void probe_net_dev_xmit([[maybe_unused]] const net_device& dev, [[maybe_unused]] const void* skb, [[maybe_unused]] uint32_t len,
                               [[maybe_unused]] xmit rc) {
#ifdef ICEPATH_HAVE_SDT
  DTRACE_PROBE4(icepath, net_dev_xmit, dev.name, skb, len, static_cast<int>(rc));
#endif
}

}  // namespace icepath
