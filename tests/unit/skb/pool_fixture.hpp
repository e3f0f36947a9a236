// A frame pool on ordinary memory, for tests of what lives in frames.
#pragma once
#include <sys/mman.h>

#include <atomic>

#include "skb/sk_buff.hpp"

namespace icepath::test {

struct pool_fixture {
  static constexpr uint32_t nr = 4096;
  uint8_t* mem;
  frame_pool frames;
  skb_pool skbs;
  std::atomic<uint32_t> grow_limit{nr};   // frames the memory is willing to back
  std::atomic<uint32_t> grow_calls{0};

  explicit pool_fixture(uint32_t limit = nr) : grow_limit(limit) {
    mem = static_cast<uint8_t*>(::mmap(nullptr, size_t{nr} << frame_shift, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (!frames.init(mem, nr, grow, this)) __builtin_trap();
    skbs.init(&frames);
  }
  ~pool_fixture() {
    skbs.destroy();
    frames.destroy();
    ::munmap(mem, size_t{nr} << frame_shift);
  }
  static uint32_t grow(void* ctx, uint32_t first, uint32_t n) {
    auto* f = static_cast<pool_fixture*>(ctx);
    ++f->grow_calls;
    const uint32_t lim = f->grow_limit;
    if (first >= lim) return 0;
    return n < lim - first ? n : lim - first;
  }
};

}  // namespace icepath::test
