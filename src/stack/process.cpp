// See process.hpp. State changes (start, stop, forget) are serialised by `starting`; readers look at `state` only.
#include "stack/process.hpp"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include "base/fd.hpp"
#include "base/log.hpp"
#include "base/no_cancel.hpp"
#include "base/libc.hpp"
#include "skb/region_dir.hpp"
#include "stack/helper.hpp"

namespace icepath {
namespace {

enum : uint32_t { fresh, up, failed };
std::atomic<uint32_t> state{fresh};
std::atomic<uint32_t> starting{0};
region own;
int why_errno = 0;
uint32_t inherited_off = 0;   // `icepath off` holds for children too
std::atomic<bool> stopped{false};
constexpr int max_internal = 256;
std::atomic<int> internal[max_internal];   // fd + 1
std::atomic<int> nr_internal{0};

}  // namespace

bool process_start() {
  if (ICEPATH_LIKELY(state.load(std::memory_order_acquire) != fresh)) return process_ready();
  const no_cancel whole;
  while (starting.exchange(1, std::memory_order_acquire)) sched_yield();
  if (state.load(std::memory_order_relaxed) == fresh) {
    auto r = region_create(own);
    if (r.ok()) {
      if (own.fd >= 0) process_fd_add_internal(own.fd);
      if (own.dir_fd >= 0) process_fd_add_internal(own.dir_fd);
      own.hdr->control.off.store(inherited_off, std::memory_order_relaxed);
      state.store(up, std::memory_order_release);
    } else {
      why_errno = r.err();
      log_error("no fast path: shared memory in %s: %s", runtime_dir_path(), strerrordesc_np(why_errno));
      state.store(failed, std::memory_order_release);
    }
  }
  starting.store(0, std::memory_order_release);
  return process_ready();
}

bool process_ready() { return state.load(std::memory_order_acquire) == up; }
const char* process_why() { return state.load(std::memory_order_acquire) == failed ? "no shared memory" : "not started"; }
region* process_region() { return &own; }

void process_stop() {
  if (!process_ready() || stopped.exchange(true)) return;
  own.hdr->ready.store(0, std::memory_order_release);
  region_unlink_slot(own.dir_fd, own.slot);  // other threads may still be running: the memory stays until the process ends
}

void process_forget() {
  helper_forget();
  stacks_forget();
  if (state.load() == up) {
    inherited_off = own.hdr->control.off.load(std::memory_order_relaxed);
    region_forget(own);
  }
  for (auto& i : internal) i.store(0, std::memory_order_relaxed);
  nr_internal.store(0);
  state.store(fresh);
  starting.store(0);
  stopped.store(false);
}

bool process_fd_is_internal(int fd) {
  const int n = nr_internal.load(std::memory_order_acquire);
  for (int i = 0; i < n; ++i)
    if (internal[i].load(std::memory_order_relaxed) == fd + 1) return true;
  return false;
}

void process_fd_add_internal(int fd) {
  for (int i = 0; i < max_internal; ++i) {
    int zero = 0;
    if (internal[i].compare_exchange_strong(zero, fd + 1)) {
      int n = nr_internal.load();
      while (n < i + 1 && !nr_internal.compare_exchange_weak(n, i + 1)) {}
      return;
    }
  }
}

void process_fd_del_internal(int fd) {
  for (auto& i : internal) {
    int v = fd + 1;
    if (i.compare_exchange_strong(v, 0)) return;
  }
}

int process_move_high(int fd) {
  const no_cancel whole;
  return fd_move_high(fd);
}

mib& process_mib(stack* s) { return process_region()->hdr->stats[s ? s->no : max_stacks - 1]; }

}  // namespace icepath
