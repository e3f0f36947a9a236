// Packet memory. One region per process (a shared file of the runtime directory, see region.hpp) is cut into
// 4 KiB frames. Every frame has a reference count in private memory; a frame is free when it drops to zero.
// frame_pool: process-wide, lock-free (chains of frames, see chain_stack.hpp). frame_cache: one per stack,
// only under that stack's owner word; the hot path touches only the cache (LIFO, so that frames stay warm).
// Bounded: alloc returns nullptr when the region is exhausted; callers turn that into ENOBUFS or a closed window.
#pragma once
#include <atomic>
#include "base/types.hpp"

namespace icepath {

constexpr size_t frame_shift = 12, frame_size = size_t{1} << frame_shift;
constexpr size_t skb_headroom = 192;   // room for every header below TCP payload, plus a cache line of colouring

class frame_pool {
 public:
  // base: frame-aligned start of the memory; frames are handed out from [base, base + nr * frame_size).
  // grow: called when more frames are needed, makes [first, first+n) usable (fallocate); returns frames granted.
  result<bool> init(uint8_t* base, uint32_t max_frames, uint32_t (*grow)(void* ctx, uint32_t first, uint32_t n), void* ctx);
  void destroy();
  uint32_t take(uint32_t* idx, uint32_t n);          // up to n free frames (refcount 0); any thread
  void give(const uint32_t* idx, uint32_t n);        // back; any thread
  // Grows to n frames now and never beyond: for a device that must know all of the memory at once. Returns how many frames there are from here on
  // ([0, that)): more than n when there were more already, fewer when there is no memory. Any thread.
  uint32_t bound(uint32_t n);
  uint8_t* addr(uint32_t idx) const { return base_ + (size_t{idx} << frame_shift); }
  uint32_t index(const void* p) const { return static_cast<uint32_t>((static_cast<const uint8_t*>(p) - base_) >> frame_shift); }
  bool contains(const void* p) const { const auto o = static_cast<const uint8_t*>(p) - base_; return o >= 0 && static_cast<size_t>(o) < (size_t{max_} << frame_shift); }
  std::atomic<uint32_t>& ref(uint32_t idx) { return refs_[idx]; }
  uint32_t in_use() const;                           // frames out of the pool, those in caches included
  uint32_t limit() const;                            // frames it may grow to
  bool pressure() const { return in_use() > limit() / 4 * 3; }   // receivers stop growing their windows (the kernel's tcp_mem)

 private:
  uint8_t* base_ = nullptr;
  uint32_t max_ = 0;
  std::atomic<uint32_t>* refs_ = nullptr;
  struct impl;
  impl* impl_ = nullptr;
};

class frame_cache {
 public:
  void init(frame_pool* p) { pool_ = p; n_ = 0; }
  void drain();                                      // everything back to the pool
  uint8_t* alloc() {                                 // refcount 1, or nullptr
    if (ICEPATH_UNLIKELY(n_ == 0) && !refill()) return nullptr;
    const uint32_t i = idx_[--n_];
    pool_->ref(i).store(1, std::memory_order_relaxed);
    return pool_->addr(i);
  }
  // One more reference; any address inside the frame. Only a holder of a reference may call it, so a count of 1 is
  // ours alone and no other thread can change it: a plain store does.
  void get(uint8_t* in_frame) {
    std::atomic<uint32_t>& r = pool_->ref(pool_->index(in_frame));
    if (r.load(std::memory_order_relaxed) == 1) r.store(2, std::memory_order_relaxed);
    else r.fetch_add(1, std::memory_order_relaxed);
  }
  // One less; frees at zero. acquire: sees what the other holders did before their release in fetch_sub.
  void put(uint8_t* in_frame) {
    const uint32_t i = pool_->index(in_frame);
    std::atomic<uint32_t>& r = pool_->ref(i);
    if (r.load(std::memory_order_acquire) != 1 && r.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    r.store(0, std::memory_order_relaxed);
    if (ICEPATH_UNLIKELY(n_ == cap)) spill();
    idx_[n_++] = i;
  }
  bool shared(const uint8_t* in_frame) const { return pool_->ref(pool_->index(in_frame)).load(std::memory_order_acquire) > 1; }
  frame_pool* pool() const { return pool_; }

 private:
  static constexpr uint32_t cap = 512, batch = 128;
  bool refill();
  void spill();
  frame_pool* pool_ = nullptr;
  uint32_t n_ = 0;
  uint32_t idx_[cap];
};

}  // namespace icepath
