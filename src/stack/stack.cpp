// Per-thread stacks: making, owner word, backlog, one poll round, arm and sleep. See stack.hpp.
#include "stack/stack.hpp"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <new>

#include "base/clock.hpp"
#include "base/libc.hpp"
#include "base/no_cancel.hpp"
#include "base/sig_gate.hpp"
#include "base/siphash.hpp"
#include "e810/local_port.hpp"
#include "neigh/neighbour.hpp"
#include "net/qdisc.hpp"
#include "stack/helper.hpp"
#include "stack/process.hpp"
#include "tcp/tcp_sock.hpp"

namespace icepath {
namespace {

constexpr uint32_t contended = 0x80000000u;

std::atomic<stack*> stacks[max_stacks];
std::atomic<uint32_t> making{0};
thread_local stack* mine __attribute__((tls_model("initial-exec"))) = nullptr;
thread_local uint32_t my_tid __attribute__((tls_model("initial-exec"))) = 0;
pthread_key_t exit_key;
bool exit_key_made = false;

uint32_t tid() {
  if (ICEPATH_UNLIKELY(my_tid == 0)) my_tid = static_cast<uint32_t>(::syscall(SYS_gettid));
  return my_tid;
}

// The thread is going: its stack stays with the sockets that live there, for the next thread that needs one.
void thread_gone(void* p) { static_cast<stack*>(p)->in_use.store(false, std::memory_order_release); }

void queue_ready(net& n, net_device& dev, uint16_t txq) {
  (void)n;
  dev_attach_qdisc(dev, txq);
}

stack* make(uint16_t no) {
  region* r = process_region();
  void* mem = ::operator new(sizeof(stack), std::align_val_t{alignof(stack)}, std::nothrow);
  if (!mem) return nullptr;
  auto* s = new (mem) stack;
  s->no = no;
  s->net.now = clock_now();
  s->net.timers.~timer_wheel();
  new (&s->net.timers) timer_wheel(s->net.now);
  s->net.skbs.init(&r->frames);
  s->net.stats = &r->hdr->stats[no];
  s->net.stack = s;
  if (getrandom(s->net.secret, sizeof s->net.secret, GRND_NONBLOCK) != sizeof s->net.secret)
    s->net.secret[0] = s->net.now * 0x9e3779b97f4a7c15ull, s->net.secret[1] = reinterpret_cast<uintptr_t>(s);
  s->net.neigh = neigh_table_create();
  s->net.tcp = tcp_table_create(1u << 16);
  local_port_queue_init = queue_ready;
  auto p = local_port_create(*r, s->net, no);
  if (!s->net.neigh || !s->net.tcp || !p.ok()) {
    if (p.ok()) local_port_destroy(*p);
    if (s->net.tcp) tcp_table_destroy(s->net);
    if (s->net.neigh) neigh_table_destroy(s->net);
    s->~stack();
    ::operator delete(mem, std::align_val_t{alignof(stack)});
    return nullptr;
  }
  s->port = *p;
  s->net.dev = local_port_dev(s->port);
  s->in_use.store(true, std::memory_order_relaxed);
  return s;
}

void futex_wait(std::atomic<uint32_t>* w, uint32_t v) { ::syscall(SYS_futex, w, FUTEX_WAIT_PRIVATE, v, nullptr, nullptr, 0); }
void futex_wake(std::atomic<uint32_t>* w) { ::syscall(SYS_futex, w, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0); }

void run_backlog(stack* s) {
  backlog_item* it = s->backlog.exchange(nullptr, std::memory_order_acquire);  // partner: stack_defer
  backlog_item* fifo = nullptr;
  while (it) { backlog_item* nx = it->next; it->next = fifo; fifo = it; it = nx; }
  while (fifo) {
    backlog_item* nx = fifo->next;
    mib_add(s->net.stats->StackBacklog);
    fifo->fn(s, fifo);
    fifo = nx;
  }
}

// The devices of a stack, one or two.
template <class F>
inline void each_dev(net& n, F f) {
  f(*n.dev);
  if (ICEPATH_UNLIKELY(n.wire != nullptr)) f(*n.wire);
}
bool queues_scheduled(const net& n) { return netif_queues_scheduled(*n.dev) || (n.wire && netif_queues_scheduled(*n.wire)); }
void disarm(net& n) { each_dev(n, [](net_device& d) { d.disarm(); }); }

// Up to 4 bursts from one device. True when something came.
bool receive(net& n, net_device& dev) {
  sk_buff* v[32];
  bool did = false;
  for (unsigned round = 0; round < 4; ++round) {
    const int k = dev.rx_burst(v, 32);
    for (int i = 0; i < k; ++i) {
      if (i + 1 < k) __builtin_prefetch(v[i + 1]->data);
      netif_receive_skb(n, v[i]);
    }
    if (k > 0) did = true;
    if (k < 32) break;
  }
  return did;
}

// Somebody sleeps on s, and we have armed a timer that is due before he returns.
void kick_for_timer(stack* s) {
  if (!s->net.timers.armed() || s->net.timers.next_expiry() >= s->armed_until) return;
  s->armed_until = 0;   // once is enough
  stack_kick(s);
}

}  // namespace

stack* stack_of_thread() {
  if (ICEPATH_LIKELY(mine != nullptr)) return mine;
  if (!process_ready()) return nullptr;
  while (making.exchange(1, std::memory_order_acquire)) sched_yield();
  if (!exit_key_made) exit_key_made = pthread_key_create(&exit_key, thread_gone) == 0;
  stack* got = nullptr;
  for (uint16_t i = 0; i < max_stacks && !got; ++i) {
    stack* s = stacks[i].load(std::memory_order_relaxed);
    if (s) {
      bool expect = false;
      if (s->in_use.compare_exchange_strong(expect, true)) got = s;
    } else {
      got = make(i);
      if (got) stacks[i].store(got, std::memory_order_release);
      break;
    }
  }
  making.store(0, std::memory_order_release);
  if (got) {
    mine = got;
    if (exit_key_made) pthread_setspecific(exit_key, got);
  }
  return got;
}

stack* stack_mine() { return mine; }
uint32_t stack_thread_id() { return tid(); }

stack* stack_by_no(uint16_t no) { return no < max_stacks ? stacks[no].load(std::memory_order_acquire) : nullptr; }

void stacks_forget() {
  for (auto& s : stacks) s.store(nullptr, std::memory_order_relaxed);
  mine = nullptr;
  my_tid = 0;
  making.store(0, std::memory_order_relaxed);
}

bool stack_enter(stack* s) {
  const uint32_t me = tid();
  uint32_t v = 0;
  sig_gate_close();
  if (ICEPATH_LIKELY(s->owner.compare_exchange_strong(v, me, std::memory_order_acquire))) return true;
  if ((v & ~contended) == me) {  // a signal handler over the owner
    sig_gate_open();
    return false;
  }
  s->want.fetch_add(1, std::memory_order_relaxed);
  for (unsigned spin = 0;; ++spin) {
    v = s->owner.load(std::memory_order_relaxed);
    if (v == 0) {
      // After sleeping we cannot know whether others sleep too: take it contended, the leave will wake them.
      if (s->owner.compare_exchange_strong(v, spin < 200 ? me : me | contended, std::memory_order_acquire)) break;
      continue;
    }
    if (spin < 200) { __builtin_ia32_pause(); continue; }
    if (!(v & contended) && !s->owner.compare_exchange_strong(v, v | contended, std::memory_order_relaxed)) continue;
    futex_wait(&s->owner, v | contended);
  }
  s->want.fetch_sub(1, std::memory_order_relaxed);
  return true;
}

bool stack_try_enter(stack* s) {
  uint32_t v = 0;
  sig_gate_close();
  if (ICEPATH_LIKELY(s->owner.load(std::memory_order_relaxed) == 0 && s->owner.compare_exchange_strong(v, tid(), std::memory_order_acquire)))
    return true;
  sig_gate_open();
  return false;
}

void stack_leave(stack* s) {
  for (;;) {
    if (ICEPATH_UNLIKELY(s->backlog.load(std::memory_order_relaxed) != nullptr)) run_backlog(s);
    if (ICEPATH_UNLIKELY(!s->lane_work.empty())) s->lane_work_fn(s);
    if (ICEPATH_UNLIKELY(s->armed.load(std::memory_order_relaxed))) kick_for_timer(s);
    if (s->owner.exchange(0, std::memory_order_seq_cst) & contended) futex_wake(&s->owner);
    // An item pushed after run_backlog by somebody who saw us inside: seq_cst pairs with stack_defer.
    sig_gate_open();
    if (ICEPATH_LIKELY(s->backlog.load(std::memory_order_seq_cst) == nullptr)) return;
    if (!stack_try_enter(s)) return;  // the new owner runs it at its leave
  }
}

void stack_defer(stack* s, backlog_item* it) {
  backlog_item* h = s->backlog.load(std::memory_order_relaxed);
  do it->next = h;
  while (!s->backlog.compare_exchange_weak(h, it, std::memory_order_seq_cst));  // partner: stack_leave
  if (stack_try_enter(s)) stack_leave(s);
}

void stack_take_over(stack* s) {
  if (stack_is_helper_thread() || !s->helper_armed.load(std::memory_order_relaxed)) return;
  s->helper_armed.store(false, std::memory_order_relaxed);
  s->armed.store(false, std::memory_order_relaxed);
  disarm(s->net);
  helper_unpark();
}

bool stack_poll_inside(stack* s) {
  net& n = s->net;
  stack_tick(s);
  s->last_poll.store(n.now, std::memory_order_relaxed);
  bool did = receive(n, *n.dev);
  if (ICEPATH_UNLIKELY(n.wire != nullptr) && receive(n, *n.wire)) did = true;
  if (did && ICEPATH_UNLIKELY(s->helper_armed.load(std::memory_order_relaxed))) stack_take_over(s);
  int cleaned = n.dev->clean_tx(64);
  if (ICEPATH_UNLIKELY(n.wire != nullptr)) cleaned += n.wire->clean_tx(64);
  if (cleaned > 0) { did = true; tcp_tsq_run(n); }
  if (!did || (++s->busy_rounds & 7) == 0) {
    if (n.now >= s->timers_due) {
      if (n.timers.armed() && n.timers.run(n.now) > 0) did = true;
      s->timers_due = n.now + 32 * usec_ns;   // half a tick of the wheel
    }
  }
  each_dev(n, [](net_device& d) { if (netif_queues_scheduled(d)) netif_run_queues(d); });
  if (!s->lane_work.empty()) { s->lane_work_fn(s); did = true; }
  return did;
}

bool stack_receive_inside(stack* s) {
  net& n = s->net;
  sk_buff* v[32];
  const int k = n.dev->rx_burst(v, 32);
  for (int i = 0; i < k; ++i) netif_receive_skb(n, v[i]);
  const int w = ICEPATH_UNLIKELY(n.wire != nullptr) ? n.wire->rx_burst(v, 32) : 0;
  for (int i = 0; i < w; ++i) netif_receive_skb(n, v[i]);
  return k > 0 || w > 0;
}

bool stack_poll(stack* s) {
  if (!stack_try_enter(s)) return false;
  const bool did = stack_poll_inside(s);
  stack_leave(s);
  return did;
}

bool stack_arm(stack* s, nsec* next, bool by_helper) {
  *next = ~nsec{0};
  if (!stack_enter(s)) return false;
  const bool ok = (!by_helper || helper_watch_stack(s)) && s->lane_work.empty() && !queues_scheduled(s->net) && s->net.dev->arm() &&
                  (!s->net.wire || s->net.wire->arm());
  if (s->net.timers.armed()) *next = s->net.timers.next_expiry();
  if (!ok) {
    s->helper_armed.store(false, std::memory_order_relaxed);
    s->armed.store(false, std::memory_order_relaxed);
    disarm(s->net);
  } else {
    // Several may sleep on s: the one who returns first may be the last who runs the timers.
    s->armed_until = *next;
    s->helper_armed.store(by_helper, std::memory_order_relaxed);
    s->armed.store(true, std::memory_order_relaxed);
  }
  stack_leave(s);
  return ok;
}

void stack_abandon(uint64_t mask) {
  for (; mask; mask &= mask - 1)
    if (stack* s = stack_by_no(static_cast<uint16_t>(__builtin_ctzll(mask)))) {
      stack_disarm(s);
      stack_poll(s);
    }
  helper_unpark();
}

void stack_disarm(stack* s, bool woke) {
  if (!stack_enter(s)) return;
  // Still armed and not kicked: nobody has written. (He may be about to: that byte ends the next sleep at once.)
  const bool written = woke || !local_port_armed(s->port) || s->armed_until == 0;
  s->armed.store(false, std::memory_order_relaxed);
  disarm(s->net);
  if (written) {
    s->calm = 0;
    if (local_port_drain_wake(s->port) && s->helper_watches) helper_unwatch_stack(s);   // peers wake this thread: not the helper beside it
  }
  stack_leave(s);
}

bool stack_rest(stack* s) {
  if (!stack_enter(s)) return false;
  nsec next = ~nsec{0};
  // armed_until 0: kicked. A port that is not armed any more: a peer has written, or is about to.
  const auto undisturbed = [s] { return s->armed.load(std::memory_order_relaxed) && s->armed_until != 0 && local_port_armed(s->port); };
  bool ok = undisturbed() && !s->helper_armed.load(std::memory_order_relaxed);
  if (ok) {
    stack_poll_inside(s);
    ok = undisturbed() && s->lane_work.empty() && !queues_scheduled(s->net) && ++s->calm > 2 && helper_watch_stack(s);
  }
  if (ok) {
    if (s->net.timers.armed()) next = s->net.timers.next_expiry();
    s->armed_until = next;
    s->helper_armed.store(true, std::memory_order_seq_cst);   // partner: the helper, which parks and then looks
  }
  stack_leave(s);
  if (ok) helper_expect(next);
  return ok;
}

bool stack_woke_helper(stack* s) {
  if (!stack_enter(s)) return false;
  const bool ours = s->helper_armed.load(std::memory_order_relaxed);
  if (ours) {
    s->armed.store(false, std::memory_order_relaxed);
    disarm(s->net);
  } else {
    helper_unwatch_stack(s);
  }
  if (!s->armed.load(std::memory_order_relaxed)) local_port_drain_wake(s->port);
  stack_leave(s);
  return ours;
}

int stack_wake_fd(const stack* s) { return s->sleep_fd >= 0 ? s->sleep_fd : local_port_wake_fd(s->port); }

int stack_add_wire(stack* s, net_device* dev, int wake_fd) {
  if (s->net.wire) return -EBUSY;
  const no_cancel whole;
  const int ep = process_move_high(real::epoll_create1(EPOLL_CLOEXEC));
  if (ep < 0) return -errno;
  for (const int fd : {local_port_wake_fd(s->port), wake_fd}) {
    epoll_event e{};
    e.events = EPOLLIN;
    if (real::epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0) continue;
    const int err = errno;
    real::close(ep);
    return -err;
  }
  process_fd_add_internal(ep);
  if (s->helper_watches) helper_unwatch_stack(s);   // by the descriptor that it knows
  for (uint16_t q = 0; q < dev->num_tx_queues; ++q) dev_attach_qdisc(*dev, q);
  s->sleep_fd = ep;
  s->net.wire = dev;
  stack_kick(s);   // who sleeps has not looked at the new port
  return 0;
}
void stack_kick(stack* s) { local_port_wake_self(s->port); }

stack_id stack_self(const stack* s) {
  region* r = process_region();
  return {r->slot, s->no, r->cookie};
}

stack_attach stack_attach_peer(stack* s, const stack_id& id, uint16_t* txq, uint8_t mac[6]) {
  const peer_stack p{id.process_slot, id.stack_no, id.process_cookie};
  switch (local_port_attach(s->port, p, txq, mac)) {
    case attach::ready: return stack_attach::ready;
    case attach::pending: return stack_attach::pending;
    default: return stack_attach::failed;
  }
}

void stack_detach_peer(stack* s, const stack_id& id) {
  local_port_detach(s->port, {id.process_slot, id.stack_no, id.process_cookie});
}

int stack_peer_pid(stack* s, const stack_id& id) {
  if (id.process_cookie == process_region()->cookie) return 0;
  const region_peer* p = local_port_peer_region(s->port, {id.process_slot, id.stack_no, id.process_cookie});
  return p ? __atomic_load_n(&p->hdr()->pid, __ATOMIC_RELAXED) : 0;
}

bool stack_peer_row_sent(stack* s, const stack_id& id, uint32_t row, uint64_t* bytes) {
  const region_peer* p = local_port_peer_region(s->port, {id.process_slot, id.stack_no, id.process_cookie});
  if (row >= max_sock_rows) return false;
  if (id.process_cookie == process_region()->cookie) {
    *bytes = __atomic_load_n(&process_region()->rows[row].fast_tx_bytes, __ATOMIC_ACQUIRE);
    return true;
  }
  if (!p) return false;
  const uint64_t off = p->hdr()->rows_off + uint64_t{row} * sizeof(sock_row);
  if (off % alignof(sock_row) || off > p->bytes || p->bytes - off < sizeof(sock_row)) return false;
  *bytes = __atomic_load_n(&reinterpret_cast<const sock_row*>(p->base + off)->fast_tx_bytes, __ATOMIC_ACQUIRE);
  return true;
}

nsec stack_next_timer(stack* s) {
  if (!stack_enter(s)) return ~nsec{0};
  const nsec t = s->net.timers.armed() ? s->net.timers.next_expiry() : ~nsec{0};
  stack_leave(s);
  return t;
}

}  // namespace icepath
