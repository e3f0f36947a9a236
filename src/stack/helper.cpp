// See helper.hpp. Owner of everything here: the helper thread, except the flags the unpark uses.
#include "stack/helper.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "base/no_cancel.hpp"
#include "base/raw_syscall.hpp"
#include "base/libc.hpp"
#include "stack/process.hpp"
#include "stack/stack.hpp"

namespace icepath {
namespace {

constexpr uint64_t key_event = ~0ull, key_ctl = ~0ull - 1, key_wire = ~0ull - 2, key_peer = 1ull << 63, key_stack = 1ull << 62;  // + slot, + stack number

std::atomic<uint32_t> started{0};
std::atomic<bool> parked{false}, stopping{false};
int ep = -1, ev = -1, ctl = -1;
pthread_t thread;
thread_local bool is_helper __attribute__((tls_model("initial-exec"))) = false;
helper_handlers on{};
struct peer_process { std::atomic<uint64_t> cookie{0}; std::atomic<int> pidfd{-1}; };
std::atomic<uint32_t> peers_top{0};  // slots from there on were never used
peer_process peers[max_processes];   // by slot; set by whoever meets the peer first, cleared here
std::atomic<nsec> awake_at{0};          // the helper is awake then at the latest
std::atomic<uint32_t> returns{0};       // threads that came back from a sleep
std::atomic<uint32_t> expected{0};      // timers handed over (helper_expect)
std::atomic<nsec> wire_at{~nsec{0}};    // the host's tables are looked at then
constexpr unsigned most_quiet = 2;      // a busy process is looked at every helper_silence << 2

void drop(peer_process& p) {
  const int fd = p.pidfd.exchange(-1, std::memory_order_acq_rel);
  if (fd < 0) return;
  process_fd_del_internal(fd);
  real::close(fd);   // and with it out of ep
}

void control() {
  control_mailbox& m = process_region()->hdr->control;
  const uint32_t req = m.req.load(std::memory_order_acquire);  // partner: the requester's store after writing cmd
  if (req == m.done.load(std::memory_order_relaxed)) return;
  uint32_t count = 0;
  m.status = on.control ? on.control(m.cmd, m.arg, &count) : -ENOSYS;
  m.count = count;
  m.done.store(req, std::memory_order_release);
}

// One look at every stack. Returns whether somebody might stop attending without telling us, the next timer that is ours, and whether a stack had been left
// alone.
bool attend(nsec* next_timer, bool* silent) {
  bool busy = false;
  const nsec now = clock_now();
  for (uint16_t i = 0; i < max_stacks; ++i) {
    stack* s = stack_by_no(i);
    if (!s) break;
    if (s->sockets.load(std::memory_order_relaxed) == 0) continue;
    if (s->expect_at.load(std::memory_order_relaxed) <= now) {
      s->expect_at.store(~nsec{0}, std::memory_order_relaxed);
      stack_poll(s);
      *silent = true;
    }
    if (const nsec due = s->expect_at.load(std::memory_order_relaxed); due < *next_timer) *next_timer = due;
    const bool ours = s->helper_armed.load(std::memory_order_acquire);
    if (ours) {
      const nsec t = s->armed.load(std::memory_order_acquire) ? stack_next_timer(s) : 0;
      if (t > now) {  // still asleep, and we are the one it wakes
        if (t < *next_timer) *next_timer = t;
        continue;
      }
      stack_poll(s);
    } else if (s->armed.load(std::memory_order_acquire)) {
      continue;  // a sleeper attends: events and timers are its business
    } else if (now - s->last_poll.load(std::memory_order_relaxed) < helper_silence) {
      busy = true;
      continue;
    } else {
      stack_poll(s);
      *silent = true;
    }
    bool ok = false;
    nsec t = ~nsec{0};
    for (int k = 0; k < 8 && !(ok = stack_arm(s, &t, true)); ++k) stack_poll(s);
    if (!ok) { busy = true; continue; }
    if (t < *next_timer) *next_timer = t;
  }
  return busy;
}

void* run(void*) {
  is_helper = true;
  pthread_setname_np(pthread_self(), "icepath");
  bool unparked = false;
  unsigned quiet = 0;
  uint32_t seen = 0;
  epoll_event e[64];
  for (;;) {
    nsec next = ~nsec{0};
    bool silent = false;
    const uint32_t timers = expected.load(std::memory_order_seq_cst), back = returns.load(std::memory_order_seq_cst);
    const bool busy = attend(&next, &silent);
    // All attended: not before somebody who slept on a stack has returned, or polls one that we attend, is there anything to do; he may stay away
    // (helper_unpark). One who has just returned is given the silence. In a process whose threads sleep and return all the time we do not park, which
    // saves them the waking of us, and look less often as long as no stack was left alone: each look takes a processor from somebody.
    const bool active = back != seen;
    seen = back;
    quiet = silent || unparked ? 0 : quiet < most_quiet ? quiet + 1 : quiet;
    if (!busy && !unparked && !active) {
      quiet = 0;
      parked.store(true, std::memory_order_seq_cst);  // partner: helper_unpark
      next = ~nsec{0};
      if (attend(&next, &silent)) parked.store(false);
    }
    unparked = false;
    const nsec now = clock_now();
    if (ICEPATH_UNLIKELY(wire_at.load(std::memory_order_relaxed) <= now)) wire_at.store(on.wire ? on.wire(now) : ~nsec{0}, std::memory_order_relaxed);
    if (const nsec w = wire_at.load(std::memory_order_relaxed); w < next) next = w;
    int timeout = parked.load(std::memory_order_relaxed) ? -1 : static_cast<int>((helper_silence << quiet) / msec_ns);
    if (next != ~nsec{0}) {
      const int ms = next <= now ? 0 : static_cast<int>(((next - now) + msec_ns - 1) / msec_ns > 60000 ? 60000 : ((next - now) + msec_ns - 1) / msec_ns);
      if (timeout < 0 || ms < timeout) timeout = ms;
    }
    awake_at.store(timeout < 0 ? ~nsec{0} : now + static_cast<nsec>(timeout) * msec_ns, std::memory_order_seq_cst);
    if (expected.load(std::memory_order_seq_cst) != timers) timeout = 0;   // partner: helper_expect, which we may have overlooked
    const int k = real::epoll_wait(ep, e, 64, timeout);
    parked.store(false, std::memory_order_relaxed);
    awake_at.store(0, std::memory_order_relaxed);
    if (stopping.load(std::memory_order_acquire)) return nullptr;
    for (int i = 0; i < k; ++i) {
      if (e[i].data.u64 == key_event) {
        uint64_t v;
        if (::read(ev, &v, sizeof v) < 0) {}
        unparked = true;
      } else if (e[i].data.u64 == key_ctl) {
        char b[64];
        while (::read(ctl, b, sizeof b) > 0) {}
        control();
      } else if (e[i].data.u64 == key_wire) {
        wire_at.store(0, std::memory_order_relaxed);
      } else if (e[i].data.u64 >= key_peer) {
        const uint32_t slot = static_cast<uint32_t>(e[i].data.u64 - key_peer);
        const uint64_t cookie = peers[slot].cookie.load(std::memory_order_acquire);
        drop(peers[slot]);
        // A pid can lie, or be of another namespace: the lock of its region decides.
        if (!region_alive(slot, cookie) && on.peer_died) on.peer_died(slot, cookie);
      } else if (e[i].data.u64 >= key_stack) {
        if (stack* s = stack_by_no(static_cast<uint16_t>(e[i].data.u64 - key_stack)); s && stack_woke_helper(s)) stack_poll(s);
      } else if (on.lane_event) {
        on.lane_event(e[i].data.u64, e[i].events);
      }
    }
  }
}

int open_ctl() {
  char path[256];
  std::snprintf(path, sizeof path, "%s/p%u.ctl", runtime_dir_path(), process_region()->slot);
  ::unlink(path);
  if (::mkfifo(path, 0600) != 0) return -1;
  return ::open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

int internal(int fd) {
  if (fd < 0) return fd;
  fd = process_move_high(fd);
  process_fd_add_internal(fd);
  return fd;
}

void wake_helper() {
  const uint64_t one = 1;
  raw_syscall(SYS_write, ev, &one, sizeof one);
}

}  // namespace

bool stack_is_helper_thread() { return is_helper; }

bool helper_start() {
  uint32_t v = started.load(std::memory_order_acquire);
  if (ICEPATH_LIKELY(v == 2)) return true;
  if (v == 3) return false;
  v = 0;
  if (!started.compare_exchange_strong(v, 1)) {
    while ((v = started.load(std::memory_order_acquire)) == 1) sched_yield();
    return v == 2;
  }
  ep = internal(real::epoll_create1(EPOLL_CLOEXEC));
  ev = internal(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  ctl = internal(open_ctl());
  epoll_event e{};
  e.events = EPOLLIN;
  e.data.u64 = key_event;
  bool ok = ep >= 0 && ev >= 0 && real::epoll_ctl(ep, EPOLL_CTL_ADD, ev, &e) == 0;
  if (ok && ctl >= 0) {
    e.data.u64 = key_ctl;
    real::epoll_ctl(ep, EPOLL_CTL_ADD, ctl, &e);
  }
  if (ok) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_attr_t at;
    pthread_attr_init(&at);
    pthread_attr_setstacksize(&at, 256 * 1024);
    ok = pthread_create(&thread, &at, run, nullptr) == 0;
    pthread_attr_destroy(&at);
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
  }
  if (!ok) log_error("no fast path: the helper thread cannot be started");
  else if (ctl >= 0) process_region()->hdr->control.attended.store(1, std::memory_order_seq_cst);
  started.store(ok ? 2 : 3, std::memory_order_release);
  return ok;
}

void helper_stop() {
  const no_cancel whole;
  uint32_t v = 0;
  if (started.compare_exchange_strong(v, 3) || v == 3) return;   // never started: it will not be
  while ((v = started.load(std::memory_order_acquire)) == 1) sched_yield();
  if (!started.compare_exchange_strong(v, 3)) return;
  // `icepath off` asks nobody from here on; what it has asked is answered by the helper's last round or finds no reader.
  process_region()->hdr->control.attended.store(0, std::memory_order_seq_cst);
  stopping.store(true, std::memory_order_release);
  wake_helper();
  pthread_join(thread, nullptr);
  control();
  if (ctl >= 0) {
    process_fd_del_internal(ctl);
    real::close(ctl);
    ctl = -1;
  }
}

void helper_forget() {
  wire_at.store(~nsec{0});
  started.store(0);
  stopping.store(false);
  parked.store(false);
  // The descriptors are the parent's open files: our copies go, the parent keeps its own.
  for (uint32_t i = 0; i < peers_top.load(); ++i) {   // a page that was not used is not touched
    peer_process& p = peers[i];
    p.cookie.store(0, std::memory_order_relaxed);
    if (const int fd = p.pidfd.exchange(-1); fd >= 0) real::close(fd);
  }
  for (int* fd : {&ep, &ev, &ctl}) {
    if (*fd >= 0) real::close(*fd);
    *fd = -1;
  }
}

void helper_unpark() {
  returns.fetch_add(1, std::memory_order_seq_cst);
  if (!parked.load(std::memory_order_seq_cst)) return;
  if (parked.exchange(false)) wake_helper();
}

void helper_expect(nsec next) {
  if (next == ~nsec{0}) return;
  expected.fetch_add(1, std::memory_order_seq_cst);
  if (awake_at.load(std::memory_order_seq_cst) > next) wake_helper();
}

bool helper_watch_stack(stack* s) {
  if (ICEPATH_LIKELY(s->helper_watches)) return true;
  epoll_event e{};
  e.events = EPOLLIN;
  e.data.u64 = key_stack + s->no;
  if (ep < 0 || real::epoll_ctl(ep, EPOLL_CTL_ADD, stack_wake_fd(s), &e) != 0) return false;
  return s->helper_watches = true;
}

void helper_unwatch_stack(stack* s) {
  helper_unwatch(stack_wake_fd(s));
  s->helper_watches = false;
}

bool helper_watch(int fd, uint64_t key) {
  epoll_event e{};
  e.events = EPOLLIN | EPOLLRDHUP | EPOLLET;
  e.data.u64 = key;
  return real::epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0;
}

void helper_unwatch(int fd) {
  epoll_event e{};
  real::epoll_ctl(ep, EPOLL_CTL_DEL, fd, &e);
}

void helper_watch_peer(uint32_t slot, uint64_t cookie, int pid) {
  if (slot >= max_processes || peers[slot].cookie.load(std::memory_order_acquire) == cookie) return;
  for (uint32_t top = peers_top.load(); top <= slot && !peers_top.compare_exchange_weak(top, slot + 1);) {}
  if (peers[slot].cookie.exchange(cookie, std::memory_order_acq_rel) == cookie) return;
  const no_cancel whole;
  drop(peers[slot]);   // of one that had the slot before
  const long fd = raw_syscall(SYS_pidfd_open, pid, 0);
  if (fd < 0) return;  // not to be seen from here: its kernel lanes tell
  const int high = internal(static_cast<int>(fd));
  peers[slot].pidfd.store(high, std::memory_order_release);
  epoll_event e{};
  e.events = EPOLLIN;
  e.data.u64 = key_peer + slot;
  real::epoll_ctl(ep, EPOLL_CTL_ADD, high, &e);
}

void helper_watch_wire(int fd) {
  if (!helper_start()) return;
  epoll_event e{};
  e.events = EPOLLIN;
  e.data.u64 = key_wire;
  real::epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
}

void helper_wire_due(nsec at) {
  nsec v = wire_at.load(std::memory_order_relaxed);
  while (at < v && !wire_at.compare_exchange_weak(v, at)) {}
  helper_expect(at);
}

void helper_set_handlers(const helper_handlers& h) { on = h; }

}  // namespace icepath
