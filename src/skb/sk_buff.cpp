// skb_pool: metadata of packets. A free list per stack (under its owner word) in front of a process-wide depot.
//
// The depot is one reserved range of address space cut into sk_buffs, made accessible in steps as it is needed; bounded:
// get() fails when it is used up. Storage of an skb is given back when the skb and all its clones are freed (meta_ref), so
// clone_of never points at a reused one, although a clone may be freed by another thread than its original.
#include "skb/sk_buff.hpp"

#include <sys/mman.h>

#include <cstddef>

#include "skb/chain_stack.hpp"

namespace icepath {

namespace {

constexpr uint32_t depot_max = 1u << 20, depot_step = 1u << 10;
constexpr uint32_t cache_max = 1024, cache_batch = 128;

struct skb_depot {
  chain_stack stack;
  uint8_t* base = nullptr;
  std::atomic<uint32_t> grown{0};

  sk_buff* at(uint32_t i) const { return reinterpret_cast<sk_buff*>(base + size_t{i} * sk_buff_stride); }
  uint32_t index(const sk_buff* s) const {
    return static_cast<uint32_t>((reinterpret_cast<const uint8_t*>(s) - base) / sk_buff_stride);
  }
  bool init() {
    void* m = ::mmap(nullptr, size_t{depot_max} * sk_buff_stride, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED) return false;
    base = static_cast<uint8_t*>(m);
    return stack.init(depot_max).ok();
  }
  uint32_t take(uint32_t* idx, uint32_t n) {
    for (;;) {
      const uint32_t got = stack.pop(idx, n);
      if (got) return got;
      uint32_t g = grown.load(std::memory_order_relaxed);
      do
        if (g >= depot_max) return 0;
      while (!grown.compare_exchange_weak(g, g + depot_step, std::memory_order_relaxed));
      if (::mprotect(at(g), size_t{depot_step} * sk_buff_stride, PROT_READ | PROT_WRITE)) return 0;
      stack.push_range(g, depot_step, cache_batch);
    }
  }
};

// Made on first use and never unmade: skbs of any stack may live in it. The three states let a loser of the race wait
// for the few system calls of the winner; this happens at set-up, not on the data path.
std::atomic<uint32_t> depot_state{0};  // 0 none, 1 being made, 2 ready, 3 no memory; release by the maker, acquire by readers
skb_depot the_depot;

bool depot_ready() {
  uint32_t s = depot_state.load(std::memory_order_acquire);
  if (ICEPATH_LIKELY(s == 2)) return true;
  if (s == 0 && depot_state.compare_exchange_strong(s, 1, std::memory_order_acq_rel))
    depot_state.store(the_depot.init() ? 2 : 3, std::memory_order_release);
  while ((s = depot_state.load(std::memory_order_acquire)) == 1) {
  }
  return s == 2;
}

std::atomic_ref<uint32_t> meta_ref(sk_buff* s) { return std::atomic_ref<uint32_t>(s->meta_ref); }

// Drops one reference on the storage; true when it was the last.
bool meta_put(sk_buff* s) {
  if (meta_ref(s).load(std::memory_order_acquire) == 1) return true;
  return meta_ref(s).fetch_sub(1, std::memory_order_acq_rel) == 1;
}

}  // namespace

void skb_pool::init(frame_pool* fp) {
  frames.init(fp);
  free_ = nullptr;
  nr_free_ = 0;
  allocated_ = 0;
  (void)depot_ready();
}

void skb_pool::destroy() {
  spill(0);
  if (frames.pool()) frames.drain();
}

bool skb_pool::refill() {
  uint32_t idx[cache_batch];
  const uint32_t n = depot_ready() ? the_depot.take(idx, cache_batch) : 0;
  for (uint32_t i = n; i-- > 0;) {
    sk_buff* s = the_depot.at(idx[i]);
    s->next = free_;
    free_ = s;
  }
  nr_free_ += n;
  return n != 0;
}

void skb_pool::spill(uint32_t keep) {
  while (nr_free_ > keep) {
    uint32_t idx[cache_batch], n = 0;
    while (n < cache_batch && nr_free_ > keep) {
      idx[n++] = the_depot.index(free_);
      free_ = free_->next;
      --nr_free_;
    }
    the_depot.stack.push(idx, n);
  }
}

sk_buff* skb_pool::get() {
  if (ICEPATH_UNLIKELY(!free_) && !refill()) return nullptr;
  sk_buff* s = free_;
  free_ = s->next;
  --nr_free_;
  ++allocated_;
  std::memset(static_cast<void*>(s), 0, offsetof(sk_buff, frags));
  s->meta_ref = 1;
  s->truesize = skb_truesize_base;
  return s;
}

// Back to the free list; false: a clone is alive and will do it.
bool skb_pool::release(sk_buff* s) {
  if (!meta_put(s)) return false;
  s->next = free_;
  free_ = s;
  if (ICEPATH_UNLIKELY(++nr_free_ > cache_max)) spill(cache_max / 2);
  return true;
}

// The data of frame i start (i % 8) cache lines behind the asked headroom: frames are 4 KiB apart, and without this
// every packet's header would fall into the same set of the L1 cache.
sk_buff* skb_pool::alloc(uint32_t headroom) {
  sk_buff* s = get();
  if (ICEPATH_UNLIKELY(!s)) return nullptr;
  uint8_t* f = frames.alloc();
  if (ICEPATH_UNLIKELY(!f)) {
    --allocated_;
    release(s);
    return nullptr;
  }
  const uint32_t colour = (frames.pool()->index(f) & 7) << 6;
  s->head = f;
  s->data = f + headroom + (headroom + colour <= frame_size / 2 ? colour : 0);
  s->truesize += skb_truesize_frame;
  return s;
}

sk_buff* skb_pool::alloc_empty() { return get(); }

sk_buff* skb_pool::clone(sk_buff* o) {
  sk_buff* s = get();
  if (ICEPATH_UNLIKELY(!s)) return nullptr;
  std::memcpy(static_cast<void*>(s), static_cast<const void*>(o), offsetof(sk_buff, frags) + o->nr_frags * sizeof(skb_frag));
  s->next = s->prev = nullptr;
  s->sk = nullptr;
  s->destructor = nullptr;
  s->clone_of = o;
  s->meta_ref = 1;
  s->no_tail = 1;  // the original appends
  // Only the holder of o may clone it, so 1 means that no clone of it lives that could change the count.
  if (meta_ref(o).load(std::memory_order_acquire) == 1) meta_ref(o).store(2, std::memory_order_relaxed);
  else meta_ref(o).fetch_add(1, std::memory_order_relaxed);
  if (o->head) frames.get(o->head);
  for (unsigned i = 0; i < o->nr_frags; ++i) frames.get(o->frags[i].addr);
  return s;
}

sk_buff* skb_pool::copy(const sk_buff* o) {
  sk_buff* s = get();
  if (ICEPATH_UNLIKELY(!s)) return nullptr;
  std::memcpy(static_cast<void*>(s), static_cast<const void*>(o), offsetof(sk_buff, frags));
  s->next = s->prev = nullptr;
  s->sk = nullptr;
  s->destructor = nullptr;
  s->clone_of = nullptr;
  s->meta_ref = 1;
  s->no_tail = 0;
  s->head = s->data = nullptr;
  s->nr_frags = 0;
  s->len = s->data_len = 0;
  s->truesize = skb_truesize_base;
  if (o->head) {
    uint8_t* f = frames.alloc();
    if (!f) return free(s), nullptr;
    s->head = f;
    s->data = f + o->headroom();
    std::memcpy(f, o->head, o->headroom() + o->headlen());  // headers already pulled stay reachable by their offsets
    s->len = o->headlen();
    s->truesize += skb_truesize_frame;
  }
  for (unsigned i = 0; i < o->nr_frags; ++i) {
    uint8_t* f = frames.alloc();
    if (!f) return free(s), nullptr;
    std::memcpy(f, o->frags[i].addr, o->frags[i].len);
    s->frags[s->nr_frags++] = {f, o->frags[i].len};
    s->len += o->frags[i].len;
    s->data_len += o->frags[i].len;
    s->truesize += skb_truesize_frame;
  }
  return s;
}

void skb_pool::free(sk_buff* s) {
  if (s->destructor) {
    s->destructor(s);
    s->destructor = nullptr;
  }
  if (s->head) frames.put(s->head);
  for (unsigned i = 0; i < s->nr_frags; ++i) frames.put(s->frags[i].addr);
  --allocated_;
  // A clone holds its original's storage, which holds that of its own original, if it is a clone too.
  for (sk_buff* o; s; s = o) {
    o = s->clone_of;
    if (!release(s)) return;
  }
}

}  // namespace icepath
