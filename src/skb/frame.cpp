// Frames: the process-wide pool and the per-stack cache in front of it. See frame.hpp and chain_stack.hpp.
//
// Growth: frames above grown are not backed by memory yet. A thread that finds the depot empty claims the next range with
// one CAS and asks the owner of the memory (grow) to back it. A range that could not be backed is given back, or kept
// in `holes` when somebody claimed beyond it meanwhile. After a refusal the next attempts are spaced out, so that a full
// /dev/shm costs one system call in 64 allocations and not one in each.
#include "skb/frame.hpp"

#include <sys/mman.h>

#include <new>

#include "skb/chain_stack.hpp"

namespace icepath {

namespace {
constexpr uint32_t grow_chunk = (4u << 20) >> frame_shift;
constexpr uint32_t chain_len = 128;
constexpr uint32_t nr_holes = 32;
constexpr uint32_t retry_after = 64;
}  // namespace

struct frame_pool::impl {
  chain_stack depot;
  uint32_t (*grow)(void*, uint32_t, uint32_t) = nullptr;
  void* ctx = nullptr;
  std::atomic<uint32_t> max{0};                  // lowered by bound(): release through `grown`, acquire in more()
  alignas(64) std::atomic<uint32_t> grown{0};    // frames [0, grown) were claimed: a ticket, data follow the depot
  std::atomic<uint32_t> refused{0};              // attempts to skip before asking again
  std::atomic<uint64_t> holes[nr_holes] = {};    // first << 32 | n; acq_rel exchange hands a range from one thread to another
  alignas(64) std::atomic<int64_t> out{0};       // frames outside the depot; statistics, relaxed

  bool back(uint32_t first, uint32_t n) {
    uint32_t got = grow ? grow(ctx, first, n) : n;
    if (got > n) got = n;
    if (got) depot.push_range(first, got, chain_len);
    if (got == n) return true;
    refused.store(retry_after, std::memory_order_relaxed);
    uint32_t end = first + n;
    if (!grown.compare_exchange_strong(end, first + got, std::memory_order_relaxed)) {
      const uint64_t hole = (uint64_t{first + got} << 32) | (n - got);
      for (auto& h : holes) {
        uint64_t empty = 0;
        if (h.compare_exchange_strong(empty, hole, std::memory_order_acq_rel)) break;
      }  // no slot free: these frames are lost, the pool is a little smaller
    }
    return got != 0;
  }
  bool more() {
    uint32_t r = refused.load(std::memory_order_relaxed);
    if (r) {
      refused.store(r - 1, std::memory_order_relaxed);
      return false;
    }
    for (auto& h : holes) {
      if (!h.load(std::memory_order_relaxed)) continue;
      const uint64_t v = h.exchange(0, std::memory_order_acq_rel);
      if (v) return back(static_cast<uint32_t>(v >> 32), static_cast<uint32_t>(v));
    }
    uint32_t g = grown.load(std::memory_order_acquire), n;   // partner: bound()
    do {
      const uint32_t m = max.load(std::memory_order_relaxed);
      if (g >= m) return false;
      n = m - g < grow_chunk ? m - g : grow_chunk;
    } while (!grown.compare_exchange_weak(g, g + n, std::memory_order_acq_rel, std::memory_order_acquire));
    return back(g, n);
  }
  uint32_t bound(uint32_t n) {
    uint32_t g = grown.load(std::memory_order_acquire), m;
    do {
      const uint32_t now = max.load(std::memory_order_relaxed);
      m = n < now ? n : now;
      if (m < g) m = g;
      max.store(m, std::memory_order_relaxed);
    } while (!grown.compare_exchange_weak(g, m, std::memory_order_acq_rel, std::memory_order_acquire));   // all at once: nobody claims beyond
    if (m > g) (void)back(g, m - g);
    for (uint32_t had = grown.load(std::memory_order_acquire); had < max.load(std::memory_order_relaxed); had = grown.load(std::memory_order_acquire))
      max.store(had, std::memory_order_relaxed);
    return max.load(std::memory_order_relaxed);
  }
};

// The bookkeeping comes from mmap: the library must not lean on the host program's allocator.
result<bool> frame_pool::init(uint8_t* base, uint32_t max_frames, uint32_t (*grow)(void*, uint32_t, uint32_t), void* ctx) {
  if (!max_frames || (reinterpret_cast<uintptr_t>(base) & (frame_size - 1))) return result<bool>::error(EINVAL);
  const auto anon = [](size_t n) {
    void* p = ::mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
  };
  void* i = anon(sizeof(impl));
  void* r = anon(size_t{max_frames} * sizeof(std::atomic<uint32_t>));
  if (i) impl_ = new (i) impl;
  refs_ = static_cast<std::atomic<uint32_t>*>(r);
  base_ = base;
  max_ = max_frames;
  if (!i || !r || !impl_->depot.init(max_frames)) {
    destroy();
    return result<bool>::error(ENOMEM);
  }
  impl_->grow = grow;
  impl_->ctx = ctx;
  impl_->max.store(max_frames, std::memory_order_relaxed);
  return true;
}

void frame_pool::destroy() {
  if (impl_) {
    impl_->depot.destroy();
    ::munmap(static_cast<void*>(impl_), sizeof(impl));
  }
  if (refs_) ::munmap(static_cast<void*>(refs_), size_t{max_} * sizeof(std::atomic<uint32_t>));
  impl_ = nullptr;
  refs_ = nullptr;
  base_ = nullptr;
  max_ = 0;
}

uint32_t frame_pool::take(uint32_t* idx, uint32_t n) {
  uint32_t got = impl_->depot.pop(idx, n);
  while (ICEPATH_UNLIKELY(got == 0) && impl_->more()) got = impl_->depot.pop(idx, n);
  if (got) impl_->out.fetch_add(got, std::memory_order_relaxed);
  return got;
}

void frame_pool::give(const uint32_t* idx, uint32_t n) {
  if (!n) return;
  impl_->out.fetch_sub(n, std::memory_order_relaxed);
  impl_->depot.push(idx, n);
}

uint32_t frame_pool::bound(uint32_t n) { return impl_->bound(n); }
uint32_t frame_pool::limit() const { return impl_ ? impl_->max.load(std::memory_order_relaxed) : 0; }

uint32_t frame_pool::in_use() const {
  const int64_t o = impl_ ? impl_->out.load(std::memory_order_relaxed) : 0;
  return o > 0 ? static_cast<uint32_t>(o) : 0;
}

bool frame_cache::refill() {
  n_ = pool_->take(idx_, batch);
  for (uint32_t i = 0; i < n_ / 2; ++i) {  // the pool gives warm or low frames first; we take from the end
    const uint32_t t = idx_[i];
    idx_[i] = idx_[n_ - 1 - i];
    idx_[n_ - 1 - i] = t;
  }
  return n_ != 0;
}

void frame_cache::spill() {  // the coldest leave, the warm ones stay
  pool_->give(idx_, batch);
  n_ -= batch;
  std::memmove(idx_, idx_ + batch, n_ * sizeof(idx_[0]));
}

void frame_cache::drain() {
  while (n_) {
    const uint32_t k = n_ < batch ? n_ : batch;
    pool_->give(idx_ + n_ - k, k);
    n_ -= k;
  }
}

}  // namespace icepath
