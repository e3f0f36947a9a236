// A lock-free stack of chains of indices: the depot behind the per-stack caches of frames and of skb metadata.
//
// Items are the numbers 0..max-1. A chain is a few items linked through link_[]; its first item, the leader, also
// carries the chain's length and the next leader. One CAS moves a whole chain, so a cache of 128 pays for one.
//
// | may run together | push  | pop   |     Every thread, also a signal handler that interrupts one of them: nobody waits.
// | push             |  yes  |  yes  |     Links live in private memory, never inside the items: a peer process that
// | pop              |  yes  |  yes  |     scribbles over its DMA buffers cannot change them.
//
// head_ holds a 32-bit tag beside the leader, raised by every change, so that a chain popped and pushed again between
// the load and the CAS of another pop is noticed (ABA). The CAS of push (release) is the partner of the CAS of pop (acquire).
#pragma once
#include <sys/mman.h>

#include <atomic>

#include "base/types.hpp"

namespace icepath {

class chain_stack {
 public:
  result<bool> init(uint32_t max) {
    max_ = max;
    bytes_ = size_t{max} * sizeof(node);
    void* m = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED) return result<bool>::error(ENOMEM);
    nodes_ = static_cast<node*>(m);  // zero pages are valid lock-free atomics
    head_.store(0, std::memory_order_relaxed);
    return true;
  }
  void destroy() {
    if (nodes_) ::munmap(nodes_, bytes_);
    nodes_ = nullptr;
  }

  // n > 0 items become one chain.
  void push(const uint32_t* idx, uint32_t n) {
    for (uint32_t i = 0; i + 1 < n; ++i) nodes_[idx[i]].link.store(idx[i + 1] + 1, std::memory_order_relaxed);
    nodes_[idx[n - 1]].link.store(0, std::memory_order_relaxed);
    push_chain(idx[0], n);
  }
  // first, first+1, … first+n-1, in chains of at most `per`.
  void push_range(uint32_t first, uint32_t n, uint32_t per) {
    while (n) {
      const uint32_t k = n < per ? n : per;
      n -= k;  // from the end, so that the lowest numbers are on top
      const uint32_t f = first + n;
      for (uint32_t i = 0; i < k; ++i) nodes_[f + i].link.store(i + 1 < k ? f + i + 2 : 0, std::memory_order_relaxed);
      push_chain(f, k);
    }
  }
  // Up to n items, from as many chains as it takes. The rest of a chain that is too long goes back.
  uint32_t pop(uint32_t* idx, uint32_t n) {
    uint32_t got = 0;
    while (got < n) {
      uint64_t h = head_.load(std::memory_order_acquire);
      uint32_t leader;
      do {
        leader = static_cast<uint32_t>(h);
        if (!leader) return got;
        const uint32_t nx = nodes_[leader - 1].next.load(std::memory_order_relaxed);  // stale when we lost: the tag tells
        if (head_.compare_exchange_weak(h, tagged(h, nx), std::memory_order_acquire, std::memory_order_acquire)) break;
      } while (true);
      const uint32_t len = nodes_[leader - 1].len.load(std::memory_order_relaxed);
      uint32_t cur = leader, taken = 0;
      while (cur && got < n) {
        idx[got++] = cur - 1;
        ++taken;
        cur = nodes_[cur - 1].link.load(std::memory_order_relaxed);
      }
      if (cur) push_chain(cur - 1, len - taken);
    }
    return got;
  }

 private:
  struct node {
    std::atomic<uint32_t> link, next, len;  // link, next: item + 1, 0 ends
  };
  static uint64_t tagged(uint64_t old, uint32_t leader) { return (((old >> 32) + 1) << 32) | leader; }
  void push_chain(uint32_t leader, uint32_t n) {
    nodes_[leader].len.store(n, std::memory_order_relaxed);
    uint64_t h = head_.load(std::memory_order_relaxed);
    do nodes_[leader].next.store(static_cast<uint32_t>(h), std::memory_order_relaxed);
    while (!head_.compare_exchange_weak(h, tagged(h, leader + 1), std::memory_order_release, std::memory_order_relaxed));
  }

  node* nodes_ = nullptr;
  size_t bytes_ = 0;
  uint32_t max_ = 0;
  alignas(64) std::atomic<uint64_t> head_{0};
};

}  // namespace icepath
