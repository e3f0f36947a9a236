// See rows.hpp. The row index free list is ours; the rows themselves are in the region.
#include "sock/rows.hpp"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>

#include "base/config.hpp"
#include "base/log.hpp"
#include "base/libc.hpp"
#include "sock/lane.hpp"
#include "sock/pool.hpp"
#include "stack/helper.hpp"
#include "stack/process.hpp"
#include "tcp/tcp_sock.hpp"

namespace icepath {
namespace {

std::atomic<uint32_t> lock{0};
uint32_t next_row = 0, nfree = 0;
uint16_t free_rows[max_sock_rows];
static_assert(max_sock_rows <= 65536);
std::atomic<uint64_t> connections{0}, fast_total{0};

sock_row* row_of(uint32_t row) { return row < max_sock_rows && process_ready() ? &process_region()->rows[row] : nullptr; }

void fill(socket* s, void*) {
  sock_row* r = row_of(s->row);
  const int fd = s->fd.load(std::memory_order_relaxed);
  if (!r || fd < 0 || s->state == sock_state::fresh) return;
  sock_row v{};
  tcp_info ti{};
  socklen_t len = sizeof ti;
  if (real::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &ti, &len) != 0) return;
  sockaddr_storage a{};
  four_tuple t{};
  len = sizeof a;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&a), &len) == 0) sock_address(a, &t.saddr, &t.sport);
  len = sizeof a;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&a), &len) == 0) sock_address(a, &t.daddr, &t.dport);
  int q = 0;
  uint64_t fast_tx = 0, fast_rx = 0;
  bool fast = false;
  v.rcvq = real::ioctl(fd, SIOCINQ, &q) == 0 ? static_cast<uint32_t>(q) : 0;
  v.sndq = real::ioctl(fd, SIOCOUTQ, &q) == 0 ? static_cast<uint32_t>(q) : 0;
  stack* st = s->st;
  if (st && s->fast.load(std::memory_order_acquire) && stack_enter(st)) {
    lane* l = s->ln;
    if (l && l->sk && s->fast.load(std::memory_order_relaxed)) {
      fast = l->tx == tx_lane::fast || l->rx == rx_lane::fast;
      v.tx_lane = l->tx == tx_lane::fast;
      v.rx_lane = static_cast<uint8_t>(l->rx);
      fast_tx = l->f_tx;
      fast_rx = l->f_rx;
      if (fast) {
        tcp_get_info(st->net, l->sk, &ti);
        v.rcvq += tcp_inq(l->sk);
        v.sndq += tcp_outq(l->sk);
      }
    }
    v.stack_no = st->no;
    stack_leave(st);
  }
  v.used = 1;
  v.path = fast;
  v.state = ti.tcpi_state;
  v.family = s->family;
  v.sport = t.sport;
  v.dport = t.dport;
  v.saddr = t.saddr;
  v.daddr = t.daddr;
  v.fd = fd;
  v.retrans = ti.tcpi_total_retrans;
  v.srtt_us = ti.tcpi_rtt;
  v.rttvar_us = ti.tcpi_rttvar;
  v.cwnd = ti.tcpi_snd_cwnd;
  v.ssthresh = ti.tcpi_snd_ssthresh;
  v.mss = ti.tcpi_snd_mss;
  v.tx_bytes = s->k_tx.load(std::memory_order_relaxed) + s->past_fast_tx + fast_tx;
  v.rx_bytes = s->k_rx.load(std::memory_order_relaxed) + s->past_fast_rx + fast_rx;
  v.fast_rx_bytes = fast_rx;
  std::snprintf(v.reason, sizeof v.reason, "%s", s->reason);
  const uint32_t seq = r->seq.load(std::memory_order_relaxed);
  r->seq.store(seq + 1, std::memory_order_relaxed);  // odd: readers look again
  std::atomic_thread_fence(std::memory_order_release);
  const uint64_t keep = r->fast_tx_bytes;
  v.fast_tx_bytes = keep;
  std::memcpy(reinterpret_cast<char*>(r) + sizeof r->seq, reinterpret_cast<char*>(&v) + sizeof v.seq, sizeof v - sizeof v.seq);
  r->seq.store(seq + 2, std::memory_order_release);
}

void clear(sock_row* r) {
  const uint32_t seq = r->seq.load(std::memory_order_relaxed);
  r->seq.store(seq + 1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  std::memset(reinterpret_cast<char*>(r) + sizeof r->seq, 0, sizeof *r - sizeof r->seq);
  r->seq.store(seq + 2, std::memory_order_release);
}

}  // namespace

uint32_t row_alloc() {
  while (lock.exchange(1, std::memory_order_acquire)) __builtin_ia32_pause();
  uint32_t row = ~0u;
  if (nfree) row = free_rows[--nfree];
  else if (next_row < max_sock_rows) row = next_row++;
  lock.store(0, std::memory_order_release);
  return row;
}

void row_free(uint32_t row) {
  if (row >= max_sock_rows) return;
  if (sock_row* r = row_of(row); r && r->used) clear(r);
  while (lock.exchange(1, std::memory_order_acquire)) __builtin_ia32_pause();
  free_rows[nfree++] = static_cast<uint16_t>(row);
  lock.store(0, std::memory_order_release);
}

void row_promoted(socket* s) {
  region* r = process_region();
  fast_total.fetch_add(1, std::memory_order_relaxed);
  r->hdr->fast_now.fetch_add(1, std::memory_order_relaxed);
  r->hdr->fast_total.fetch_add(1, std::memory_order_relaxed);
  row_sent(s, 0);
}

void row_demoted(socket*) { process_region()->hdr->fast_now.fetch_sub(1, std::memory_order_relaxed); }

void row_sent(socket* s, uint64_t n) {
  if (sock_row* r = row_of(s->row)) __atomic_store_n(&r->fast_tx_bytes, n, __ATOMIC_RELEASE);
}

bool row_peer_sent(const lane* l, uint64_t* bytes) {
  if (l->peer_row >= max_sock_rows) return false;
  return stack_peer_row_sent(l->st, l->peer, l->peer_row, bytes);
}

void rows_refresh() {
  if (process_ready()) sockets_for_each(fill, nullptr);
}

void rows_forget() {
  lock.store(0);
  connections.store(0);
  fast_total.store(0);
}

void rows_count_connection() {
  connections.fetch_add(1, std::memory_order_relaxed);
  if (!process_ready()) return;
  process_region()->hdr->kernel_total.fetch_add(1, std::memory_order_relaxed);
  helper_start();  // answers `icepath ss`, `off` and `on` from the first connection on
}

void row_listening(socket* s) {
  if (process_ready() && !process_region()->hdr->control.attended.load(std::memory_order_relaxed)) fill(s, nullptr);
}

void print_stats_line() {
  mib sum{};
  if (process_ready()) {
    const region_header* h = process_region()->hdr;
    for (unsigned i = 0; i < max_stacks; ++i) {
      auto* from = reinterpret_cast<const std::atomic<uint64_t>*>(&h->stats[i]);
      auto* to = reinterpret_cast<std::atomic<uint64_t>*>(&sum);
      for (unsigned k = 0; k < mib_count; ++k) mib_add(to[k], from[k].load(std::memory_order_relaxed));
    }
  }
  const uint64_t fast = fast_total.load(), all = connections.load();
  log_last_line(
      "pid=%d fast=%llu kernel=%llu tx_bytes=%llu rx_bytes=%llu segments=%llu retransmits=%llu demoted=%llu rx_segments=%llu doorbells=%llu wakes=%llu sleeps=%llu",
      static_cast<int>(getpid()), static_cast<unsigned long long>(fast), static_cast<unsigned long long>(all > fast ? all - fast : 0),
      static_cast<unsigned long long>(sum.TxBytes.load()), static_cast<unsigned long long>(sum.RxBytes.load()),
      static_cast<unsigned long long>(sum.TcpOutSegs.load()), static_cast<unsigned long long>(sum.TcpRetransSegs.load()),
      static_cast<unsigned long long>(sum.SockDemoted.load()), static_cast<unsigned long long>(sum.TcpInSegs.load()),
      static_cast<unsigned long long>(sum.RingDoorbells.load()), static_cast<unsigned long long>(sum.RingWakes.load()),
      static_cast<unsigned long long>(sum.StackSleeps.load()));
}

}  // namespace icepath
