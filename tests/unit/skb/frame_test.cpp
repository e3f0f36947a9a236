#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "pool_fixture.hpp"

using namespace icepath;
using icepath::test::pool_fixture;

TEST(frame_pool, hands_out_every_frame_once_and_then_refuses) {
  pool_fixture f;
  std::set<uint32_t> seen;
  uint32_t idx[100], n;
  while ((n = f.frames.take(idx, 100)) != 0)
    for (uint32_t i = 0; i < n; ++i) {
      EXPECT_LT(idx[i], f.nr);
      EXPECT_TRUE(seen.insert(idx[i]).second) << idx[i];
    }
  EXPECT_EQ(seen.size(), f.nr);
  EXPECT_EQ(f.frames.in_use(), f.nr);
  std::vector<uint32_t> all(seen.begin(), seen.end());
  f.frames.give(all.data(), f.nr);
  EXPECT_EQ(f.frames.in_use(), 0u);
  uint32_t again = 0;
  while ((n = f.frames.take(idx, 100)) != 0) again += n;
  EXPECT_EQ(again, f.nr);
}

TEST(frame_pool, memory_that_grow_refuses_is_never_handed_out_and_comes_when_it_is_there) {
  pool_fixture f(100);
  uint32_t idx[64], n, total = 0;
  while ((n = f.frames.take(idx, 64)) != 0) {
    total += n;
    for (uint32_t i = 0; i < n; ++i) EXPECT_LT(idx[i], 100u);
  }
  EXPECT_EQ(total, 100u);
  f.grow_limit = f.nr;
  for (int tries = 0; tries < 1000 && total < f.nr; ++tries) total += f.frames.take(idx, 64);
  EXPECT_EQ(total, f.nr);
}

TEST(frame_pool, a_refused_grow_is_not_asked_again_for_every_allocation) {
  pool_fixture f(0);
  uint32_t i;
  for (int k = 0; k < 640; ++k) EXPECT_EQ(f.frames.take(&i, 1), 0u);
  EXPECT_LE(f.grow_calls, 11u);
  EXPECT_GE(f.grow_calls, 5u);
}

TEST(frame_cache, last_put_frees_and_the_warm_frame_comes_back_first) {
  pool_fixture f;
  frame_cache c;
  c.init(&f.frames);
  uint8_t* a = c.alloc();
  ASSERT_NE(a, nullptr);
  c.get(a + 17);
  c.get(a + 4095);
  c.put(a);
  c.put(a + 1);
  EXPECT_EQ(f.frames.ref(f.frames.index(a)), 1u);
  uint8_t* b = c.alloc();
  EXPECT_NE(b, a);
  c.put(a + 2);
  EXPECT_EQ(f.frames.ref(f.frames.index(a)), 0u);
  EXPECT_EQ(c.alloc(), a);
  c.put(a);
  c.put(b);
  c.drain();
  EXPECT_EQ(f.frames.in_use(), 0u);
}

TEST(frame_cache, overflow_goes_to_the_pool) {
  pool_fixture f;
  frame_cache a, b;
  a.init(&f.frames);
  b.init(&f.frames);
  std::vector<uint8_t*> v;
  while (uint8_t* p = a.alloc()) v.push_back(p);
  EXPECT_EQ(v.size(), f.nr);
  EXPECT_EQ(b.alloc(), nullptr);
  for (uint8_t* p : v) a.put(p);
  EXPECT_NE(b.alloc(), nullptr);
  EXPECT_LT(f.frames.in_use(), 1024u);
}

TEST(frame_pool, bound_grows_at_once_and_never_beyond) {
  pool_fixture f;
  uint32_t idx[64];
  EXPECT_EQ(f.frames.limit(), f.nr);
  ASSERT_EQ(f.frames.take(idx, 64), 64u);   // grown by one step, 1024 frames
  EXPECT_EQ(f.frames.bound(2000), 2000u);
  EXPECT_EQ(f.frames.limit(), 2000u);
  const unsigned calls = f.grow_calls;
  uint32_t got = 64;
  for (uint32_t k; (k = f.frames.take(idx, 64)) > 0; got += k)
    for (uint32_t i = 0; i < k; ++i) EXPECT_LT(idx[i], 2000u);
  EXPECT_EQ(got, 2000u);
  EXPECT_EQ(f.grow_calls, calls);
  EXPECT_TRUE(f.frames.pressure());
  EXPECT_EQ(f.frames.bound(100), 2000u);    // they are out already
  EXPECT_EQ(f.frames.bound(f.nr), 2000u);   // and it does not go up again
}

TEST(frame_pool, bound_without_memory_is_what_there_is) {
  pool_fixture f(1500);
  EXPECT_EQ(f.frames.bound(3000), 1500u);
  f.grow_limit = f.nr;
  uint32_t idx[64], got = 0;
  for (uint32_t k, tries = 0; (k = f.frames.take(idx, 64)) > 0 || ++tries < 200; got += k) {}
  EXPECT_EQ(got, 1500u);
}
