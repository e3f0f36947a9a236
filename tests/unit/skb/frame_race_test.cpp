// Frames and skbs that wander between threads. Meant for ThreadSanitizer; without it still checks that nothing is lost,
// doubled or handed to two holders.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "pool_fixture.hpp"

using namespace icepath;
using icepath::test::pool_fixture;

TEST(frame_race, threads_never_hold_the_same_frame) {
  pool_fixture f;
  std::vector<std::atomic<int>> owner(f.nr);
  std::atomic<int> bad{0};
  auto work = [&](int me) {
    uint32_t idx[70];
    for (int i = 0; i < 20000; ++i) {
      const uint32_t n = f.frames.take(idx, 1 + static_cast<uint32_t>(i * 7 + me) % 70);
      for (uint32_t k = 0; k < n; ++k) bad += owner[idx[k]].exchange(me, std::memory_order_relaxed) != 0;
      for (uint32_t k = 0; k < n; ++k) bad += owner[idx[k]].exchange(0, std::memory_order_relaxed) != me;
      f.frames.give(idx, n);
    }
  };
  std::vector<std::thread> t;
  for (int i = 1; i <= 4; ++i) t.emplace_back(work, i);
  for (auto& x : t) x.join();
  EXPECT_EQ(bad, 0);
  EXPECT_EQ(f.frames.in_use(), 0u);
}

TEST(skb_race, a_clone_freed_by_another_thread_leaves_nothing_behind) {
  pool_fixture f;
  std::atomic<sk_buff*> slot{nullptr};
  std::atomic<bool> end{false};
  skb_pool other;
  other.init(&f.frames);
  std::thread t([&] {
    for (;;) {
      const bool last = end.load(std::memory_order_acquire);
      if (sk_buff* c = slot.exchange(nullptr, std::memory_order_acq_rel)) other.free(c);
      else if (last) break;
    }
  });
  for (int i = 0; i < 100000; ++i) {
    sk_buff* s = f.skbs.alloc();
    ASSERT_NE(s, nullptr);
    skb_put(s, 8)[0] = static_cast<uint8_t>(i);
    sk_buff* c = f.skbs.clone(s);
    ASSERT_NE(c, nullptr);
    if (sk_buff* old = slot.exchange(c, std::memory_order_acq_rel)) f.skbs.free(old);
    (void)skb_fclone_busy(s);
    f.skbs.free(s);  // before, after or while the clone goes
  }
  end.store(true, std::memory_order_release);
  t.join();
  EXPECT_EQ(f.skbs.allocated() + other.allocated(), 0);
  other.destroy();
  f.skbs.destroy();
  EXPECT_EQ(f.frames.in_use(), 0u);
  f.skbs.init(&f.frames);
}
