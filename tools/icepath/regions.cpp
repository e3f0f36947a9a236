// Reading other processes' regions (src/skb/region.hpp). The owner writes while we read, and may be anything: offsets and sizes
// from a header are checked against the mapping, rows are copied under their seqlock, strings are cut and made printable.
#include <arpa/inet.h>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <iterator>
#include "cli.hpp"

namespace icepath::cli {

void complain(const char* fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  fputs("icepath: ", stderr);
  vfprintf(stderr, fmt, ap);
  fputc('\n', stderr);
  va_end(ap);
}

std::string printable(const char* s, size_t max) {
  std::string out;
  for (size_t i = 0; i < max && s[i]; ++i) out += s[i] >= 0x20 && s[i] < 0x7f ? s[i] : '?';
  return out;
}

std::string address(uint16_t family, const inet_addr& a) {
  char buf[INET6_ADDRSTRLEN] = "?";
  if (a.is_v4()) inet_ntop(AF_INET, a.b + 12, buf, sizeof buf);
  else if (family == AF_INET && a == inet_addr{}) return "0.0.0.0";
  else inet_ntop(AF_INET6, a.b, buf, sizeof buf);
  return buf;
}

const char* state_name(uint8_t s) {   // TCP_ESTABLISHED is 1, in the order of <netinet/tcp.h>; the names are ss(8)'s
  static constexpr const char* names[] = {"-",        "ESTAB",    "SYN-SENT",   "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2",
                                          "TIME-WAIT", "UNCONN",   "CLOSE-WAIT", "LAST-ACK", "LISTEN",     "CLOSING"};
  return s < std::size(names) ? names[s] : "?";
}

void for_each_process(bool read_only, const std::function<bool(const process&)>& fn) {
  for (uint32_t slot = 0; slot < max_processes; ++slot) {
    auto opened = region_open_peer(slot, 0, read_only);
    if (!opened) continue;
    process p;
    p.peer = *opened;
    const region_header* h = p.peer.hdr();
    bool go_on = true;
    if (p.peer.bytes >= sizeof *h && h->magic == region_magic && h->version == region_version &&
        h->ready.load(std::memory_order_acquire) == 1 && h->pid > 0) {
      p.pid = h->pid;
      p.start_ns = h->start_ns;
      p.comm = printable(h->comm, sizeof h->comm);
      p.exe = printable(h->exe, sizeof h->exe);
      p.ports = printable(h->ports, sizeof h->ports);
      go_on = fn(p);
    }
    region_close_peer(p.peer);
    if (!go_on) return;
  }
}

std::vector<row> read_rows(const process& p) {
  std::vector<row> rows;
  const uint64_t off = p.peer.hdr()->rows_off, need = uint64_t{max_sock_rows} * sizeof(sock_row);
  static_assert(sizeof(sock_row) % 8 == 0 && alignof(sock_row) <= 8);
  if (off % 8 || off > p.peer.bytes || p.peer.bytes - off < need) return rows;
  using word [[gnu::may_alias]] = uint64_t;
  const sock_row* table = reinterpret_cast<const sock_row*>(p.peer.base + off);
  for (uint32_t i = 0; i < max_sock_rows; ++i) {
    const sock_row& shared = table[i];
    uint64_t words[sizeof(sock_row) / 8] = {};
    bool consistent = false;
    for (int tries = 0; tries < 100 && !consistent; ++tries) {   // bounded: a writer that died stays odd for ever
      const uint32_t before = shared.seq.load(std::memory_order_acquire);
      if (before == 0) break;
      if (before & 1) continue;
      const word* from = reinterpret_cast<const word*>(&shared);
      for (size_t w = 0; w < sizeof words / 8; ++w) words[w] = __atomic_load_n(from + w, __ATOMIC_RELAXED);
      std::atomic_thread_fence(std::memory_order_acquire);      // the copy is before the second look
      consistent = shared.seq.load(std::memory_order_relaxed) == before;
    }
    if (!consistent) continue;
    sock_row c;
    std::memcpy(static_cast<void*>(&c), words, sizeof c);
    if (!c.used) continue;
    rows.push_back(row{c.state, c.path, c.tx_lane, c.rx_lane, c.ca, c.family, c.sport, c.dport, c.stack_no, c.fd, c.saddr, c.daddr,
                       printable(c.reason, sizeof c.reason), c.rcvq, c.sndq, c.retrans, c.srtt_us, c.rttvar_us, c.cwnd, c.ssthresh,
                       c.mss, c.tx_bytes, c.rx_bytes, c.fast_tx_bytes, c.fast_rx_bytes});
  }
  return rows;
}

}  // namespace icepath::cli
