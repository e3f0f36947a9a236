// See holders.hpp.
#include "sock/holders.hpp"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "base/clock.hpp"
#include "base/libc.hpp"
#include "base/no_cancel.hpp"
#include "base/quiet_signals.hpp"
#include "base/sig_gate.hpp"
#include "skb/region_dir.hpp"
#include "stack/process.hpp"

namespace icepath {
namespace {

enum : uint32_t {
  place_free,
  place_fork,      // reserved for a fork child that has not run yet
  place_pass,      // reserved for whoever receives the descriptor
  place_unused,    // held; no byte moved by this holder
  place_used,      // held; what it moved is known when it leaves in order
  place_ended,     // its process ends in order: tx and rx are final as soon as it is gone
};

struct place {
  std::atomic<uint32_t> state;
  uint32_t pid;
  uint64_t pid_ns;             // 0: unknown
  uint64_t tx, rx;
};

constexpr unsigned places = 5, ways = 16;
constexpr uint32_t entries = 4096;

struct alignas(64) entry {
  std::atomic<uint64_t> cookie;   // 0: free
  std::atomic<uint32_t> lock;
  uint32_t spoilt;                // bytes were moved that nobody counted
  uint64_t tx, rx;                // moved before it was shared, and by holders that have left
  place holder[places];
};
static_assert(sizeof(entry) == 192);
constexpr size_t table_bytes = sizeof(entry) * entries;

std::atomic<entry*> table{nullptr};
std::atomic<uint32_t> opening{0}, making{0};
std::atomic<uint64_t> own_ns{0};
constexpr int so_cookie = 57;
constexpr nsec look_pause = 10 * msec_ns;

entry* map_table() {
  if (entry* t = table.load(std::memory_order_acquire)) return t;
  if (!process_ready()) return nullptr;
  const no_cancel whole;
  while (opening.exchange(1, std::memory_order_acquire)) sched_yield();
  if (!table.load(std::memory_order_relaxed)) {
    char path[256];
    std::snprintf(path, sizeof path, "%s/holders", runtime_dir_path());
    const int fd = ::open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    struct stat st{};
    quiet_signals quiet;
    long r = -1;
    if (fd >= 0 && ::fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == ::geteuid())
      quiet.result(r = raw_syscall(SYS_fallocate, fd, 0, 0, static_cast<long>(table_bytes)));
    if (r == 0) {
      void* m = ::mmap(nullptr, table_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      if (m != MAP_FAILED) table.store(static_cast<entry*>(m), std::memory_order_release);
    }
    if (fd >= 0) real::close(fd);
  }
  opening.store(0, std::memory_order_release);
  return table.load(std::memory_order_acquire);
}

uint64_t pid_ns() {
  uint64_t n = own_ns.load(std::memory_order_relaxed);
  if (n == 0) {
    struct stat st{};
    if (::stat("/proc/self/ns/pid", &st) == 0) own_ns.store(n = st.st_ino, std::memory_order_relaxed);
  }
  return n;
}

uint64_t cookie_of(int fd) {
  uint64_t c = 0;
  socklen_t len = sizeof c;
  return real::getsockopt(fd, SOL_SOCKET, so_cookie, &c, &len) == 0 ? c : 0;
}

// One entry, for a moment. Not had within a few milliseconds: its holder may have been killed. No handler of the program runs meanwhile.
class entry_guard {
 public:
  explicit entry_guard(entry* e) : e_(e) {
    const nsec end = clock_now() + 20 * msec_ns;
    while (e_->lock.exchange(1, std::memory_order_acquire)) {
      if (clock_now() > end) { e_ = nullptr; return; }
      sched_yield();
    }
  }
  ~entry_guard() { if (e_) e_->lock.store(0, std::memory_order_release); }
  entry_guard(const entry_guard&) = delete;
  explicit operator bool() const { return e_ != nullptr; }

 private:
  closed_gate no_handlers_;
  entry* e_;
};

// Certainly gone. A pid that somebody else has by now counts as alive.
bool gone(const place& p) { return p.pid_ns != 0 && p.pid_ns == pid_ns() && ::kill(static_cast<pid_t>(p.pid), 0) != 0 && errno == ESRCH; }

// Inside the guard: drops holders that are gone. Whether somebody besides `mine` is left (places: none is mine).
bool others(entry* e, unsigned mine) {
  bool some = false;
  for (unsigned i = 0; i < places; ++i) {
    place& p = e->holder[i];
    const uint32_t st = p.state.load(std::memory_order_acquire);   // partner: holders_note_use
    if (i == mine || st == place_free) continue;
    if (st == place_fork || st == place_pass || !gone(p)) { some = true; continue; }
    if (st == place_used) e->spoilt = 1;
    if (st == place_ended) { e->tx += p.tx; e->rx += p.rx; }
    p.state.store(place_free, std::memory_order_relaxed);
  }
  return some;
}

entry* find(uint64_t cookie) {
  entry* const t = map_table();
  if (!t || cookie == 0) return nullptr;
  const uint64_t first = cookie * 0x9e3779b97f4a7c15ull >> 40;
  for (unsigned i = 0; i < ways; ++i) {
    entry* const e = &t[(first + i) % entries];
    if (e->cookie.load(std::memory_order_acquire) == cookie) return e;
  }
  return nullptr;
}

// A free entry for that cookie, or one whose holders are all gone.
entry* make(uint64_t cookie) {
  entry* const t = map_table();
  if (!t || cookie == 0) return nullptr;
  const uint64_t first = cookie * 0x9e3779b97f4a7c15ull >> 40;
  for (int pass = 0; pass < 2; ++pass)
    for (unsigned i = 0; i < ways; ++i) {
      entry* const e = &t[(first + i) % entries];
      uint64_t was = e->cookie.load(std::memory_order_relaxed);
      if (was != 0) {
        if (pass == 0) continue;
        const entry_guard g(e);
        if (!g || others(e, places)) continue;
      }
      if (!e->cookie.compare_exchange_strong(was, cookie)) continue;
      e->spoilt = 0;
      e->tx = e->rx = 0;
      for (auto& p : e->holder) p.state.store(place_free, std::memory_order_relaxed);
      return e;
    }
  return nullptr;
}

int take_place(entry* e, uint32_t state) {
  for (unsigned i = 0; i < places; ++i) {
    if (e->holder[i].state.load(std::memory_order_relaxed) != place_free) continue;
    e->holder[i].pid = static_cast<uint32_t>(::getpid());
    e->holder[i].pid_ns = pid_ns();
    e->holder[i].tx = e->holder[i].rx = 0;
    e->holder[i].state.store(state, std::memory_order_release);
    return static_cast<int>(i);
  }
  return -1;
}

entry* entry_of(const socket* s) {
  entry* const t = table.load(std::memory_order_acquire);
  const uint32_t no = s->share.load(std::memory_order_acquire);
  return t && no && no <= entries && t[no - 1].cookie.load(std::memory_order_relaxed) == s->share_cookie ? &t[no - 1] : nullptr;
}

void set_share(socket* s, entry* e, unsigned mine, uint64_t cookie) {
  s->share_place = static_cast<uint8_t>(mine);
  s->share_cookie = cookie;
  s->share_used.store(false, std::memory_order_relaxed);
  s->share_look = 0;
  s->share.store(static_cast<uint32_t>(e - table.load(std::memory_order_relaxed)) + 1, std::memory_order_release);
}

void publish_counts(entry* e, const socket* s) {
  e->holder[s->share_place].tx = s->k_tx.load(std::memory_order_relaxed) - s->share_tx;
  e->holder[s->share_place].rx = s->k_rx.load(std::memory_order_relaxed) - s->share_rx;
}

// s in an entry of its own, as its only holder.
entry* make_for(socket* s) {
  const uint64_t cookie = cookie_of(s->fd.load(std::memory_order_relaxed));
  if (find(cookie)) return nullptr;   // left behind by somebody: not to be trusted
  entry* const e = make(cookie);
  if (!e) return nullptr;
  const entry_guard g(e);
  if (!g) return nullptr;
  // What is under way in other threads counts as moved later: base and entry agree.
  e->tx = s->share_tx = s->k_tx.load(std::memory_order_seq_cst);
  e->rx = s->share_rx = s->k_rx.load(std::memory_order_seq_cst);
  const int mine = take_place(e, place_used);
  if (mine < 0) return nullptr;
  set_share(s, e, static_cast<unsigned>(mine), cookie);
  s->share_used.store(true, std::memory_order_relaxed);
  return e;
}

// The entry of s; made when there is none.
entry* shared(socket* s) {
  if (entry* e = entry_of(s)) return e;
  const closed_gate no_handlers;
  while (making.exchange(1, std::memory_order_acquire)) sched_yield();   // a fork and a passing at once
  entry* const e = entry_of(s) ? entry_of(s) : make_for(s);
  making.store(0, std::memory_order_release);
  return e;
}

bool reserve(socket* s, uint32_t state, uint8_t* which) {
  entry* const e = shared(s);
  if (!e) return false;
  const entry_guard g(e);
  if (!g) return false;
  others(e, places);   // places of the dead
  const int i = take_place(e, state);
  if (i < 0) return false;
  *which = static_cast<uint8_t>(i);
  return true;
}

}  // namespace

bool holders_before_fork(socket* s) { return reserve(s, place_fork, &s->share_child); }

void holders_fork_forget() {
  opening.store(0);
  making.store(0);
  own_ns.store(0);
}

void holders_fork_child(socket* s) {
  entry* const e = entry_of(s);
  if (!e) { s->never.store(true); return; }
  place& p = e->holder[s->share_child];
  p.pid = static_cast<uint32_t>(::getpid());
  p.pid_ns = pid_ns();
  s->share_place = s->share_child;
  s->k_tx.store(0);
  s->k_rx.store(0);
  s->share_tx = s->share_rx = 0;
  s->share_used.store(false);
  s->share_look = 0;
  p.state.store(place_unused, std::memory_order_release);
}

bool holders_before_pass(socket* s) {
  uint8_t which;
  return reserve(s, place_pass, &which);
}

void holders_pass_failed(socket* s) {
  entry* const e = entry_of(s);
  if (!e) return;
  const entry_guard g(e);
  if (!g) return;
  for (auto& p : e->holder)
    if (p.state.load(std::memory_order_relaxed) == place_pass) { p.state.store(place_free, std::memory_order_relaxed); return; }
}

bool holders_received(socket* s, int fd) {
  const uint64_t cookie = cookie_of(fd);
  entry* const e = find(cookie);
  if (!e) return false;
  const entry_guard g(e);
  if (!g || e->cookie.load(std::memory_order_relaxed) != cookie) return false;
  for (unsigned i = 0; i < places; ++i) {
    place& p = e->holder[i];
    if (p.state.load(std::memory_order_relaxed) != place_pass) continue;
    p.pid = static_cast<uint32_t>(::getpid());
    p.pid_ns = pid_ns();
    s->share_tx = s->share_rx = 0;
    set_share(s, e, i, cookie);
    p.state.store(place_unused, std::memory_order_release);
    return true;
  }
  return false;
}

void holders_spoil(int fd) {
  entry* const e = find(cookie_of(fd));
  if (!e) return;
  const entry_guard g(e);
  e->spoilt = 1;   // a word that is only ever raised: also without the guard
}

void holders_note_use(socket* s) {
  if (ICEPATH_LIKELY(s->share_used.load(std::memory_order_relaxed))) return;
  if (entry* e = entry_of(s)) e->holder[s->share_place].state.store(place_used, std::memory_order_seq_cst);
  s->share_used.store(true, std::memory_order_relaxed);
}

void holders_release(socket* s) {
  entry* const e = entry_of(s);
  s->share.store(0, std::memory_order_relaxed);
  if (!e) return;
  const entry_guard g(e);
  if (!g) return;
  place& p = e->holder[s->share_place];
  // Calls that are under way in other threads come too late to be counted.
  if (s->rx_calls.load() || s->tx_calls.load() || (s->share_used.load() && s->never.load())) e->spoilt = 1;
  publish_counts(e, s);
  e->tx += p.tx;
  e->rx += p.rx;
  p.state.store(place_free, std::memory_order_release);
  for (const auto& o : e->holder)
    if (o.state.load(std::memory_order_relaxed) != place_free) return;
  e->cookie.store(0, std::memory_order_release);
}

void holders_uncounted(socket* s) {
  if (entry* e = entry_of(s)) {
    const entry_guard g(e);
    e->spoilt = 1;
  }
}

void holders_end(socket* s) {
  entry* const e = entry_of(s);
  if (!e) return;
  if (s->share_used.load()) {
    if (s->rx_calls.load() || s->tx_calls.load()) return;
    publish_counts(e, s);
    e->holder[s->share_place].state.store(place_ended, std::memory_order_release);
    s->share_used.store(false);   // a data call after this is not counted: it makes the place `used` again
  }
}

bool holders_alone(socket* s) {
  if (ICEPATH_LIKELY(s->share.load(std::memory_order_acquire) == 0)) return true;
  if (s->never.load(std::memory_order_relaxed)) return false;
  entry* const e = entry_of(s);
  if (!e) { s->never.store(true); return false; }
  // Nobody is asked for who is still there by his own word, but for once in a while.
  const nsec now = clock_now();
  if (now < s->share_look) return false;
  s->share_look = now + look_pause;
  const entry_guard g(e);
  if (!g) return false;
  if (entry_of(s) != e) return s->share.load(std::memory_order_acquire) == 0;   // another thread has seen to it
  const bool some = others(e, s->share_place);
  if (e->spoilt) {
    s->reason = "another process had it too";
    s->never.store(true);
    return false;
  }
  if (some) return false;
  s->k_tx.fetch_add(e->tx - s->share_tx);
  s->k_rx.fetch_add(e->rx - s->share_rx);
  e->holder[s->share_place].state.store(place_free, std::memory_order_relaxed);
  e->cookie.store(0, std::memory_order_release);
  s->share.store(0, std::memory_order_release);
  return true;
}

}  // namespace icepath
