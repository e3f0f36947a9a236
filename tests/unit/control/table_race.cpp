// A table of the mirror (control/tables.hpp) with one writer and two readers: what a reader finds valid is one generation, whole. And publication
// without a change makes no generation; what is published as unknown is.
#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "control/tables.hpp"

namespace icepath {
namespace {

struct row {
  uint64_t generation, number;
};
using table = mirror_table<row, 64>;

TEST(mirror_table, a_valid_read_is_one_generation) {
  auto t = std::make_unique<table>();
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> valid{0}, torn{0};
  const auto read = [&] {
    while (!stop.load(std::memory_order_relaxed)) {
      const uint32_t g = t->generation();
      if (!t->known(g)) continue;
      const uint32_t n = t->count(g);
      bool same = true;
      uint64_t first = 0;
      for (uint32_t i = 0; i < n; ++i) {
        const row r = t->at(g, i);
        if (i == 0) first = r.generation;
        same = same && r.generation == first && r.number == i;
      }
      same = same && (n == 0 || n == first % 64 + 1);
      if (!t->valid(g)) continue;
      valid.fetch_add(1, std::memory_order_relaxed);
      if (!same) torn.fetch_add(1, std::memory_order_relaxed);
    }
  };
  std::thread a(read), b(read);
  std::vector<row> rows(64);
  uint64_t k = 1;
  for (; k < 20000 || (valid.load() < 100 && k < 5000000); ++k) {
    const auto n = static_cast<uint32_t>(k % 64 + 1);
    for (uint32_t i = 0; i < n; ++i) rows[i] = row{k, i};
    ASSERT_TRUE(t->publish(rows.data(), n, true));
    if (k % 64 == 0) std::this_thread::yield();
  }
  stop = true;
  a.join();
  b.join();
  EXPECT_EQ(torn.load(), 0u);
  EXPECT_GE(valid.load(), 100u);
}

TEST(mirror_table, a_generation_only_with_a_change) {
  auto t = std::make_unique<table>();
  const row r[2] = {{1, 2}, {3, 4}};
  EXPECT_FALSE(t->known(t->generation()));
  EXPECT_TRUE(t->publish(r, 0, true));   // read, and empty: that is known
  const uint32_t g = t->generation();
  EXPECT_TRUE(t->known(g));
  EXPECT_EQ(t->count(g), 0u);
  EXPECT_FALSE(t->publish(r, 0, true));
  EXPECT_EQ(t->generation(), g);
  EXPECT_TRUE(t->publish(r, 2, true));
  EXPECT_FALSE(t->publish(r, 2, true));
  EXPECT_FALSE(t->valid(g));
  EXPECT_EQ(t->at(t->generation(), 1).number, 4u);
  EXPECT_TRUE(t->publish(r, 2, false));
  EXPECT_FALSE(t->known(t->generation()));
  EXPECT_EQ(t->count(t->generation()), 0u);
  EXPECT_FALSE(t->publish(r, 1, false));
}

TEST(mirror_table, a_count_that_cannot_be_is_bounded) {
  auto t = std::make_unique<table>();
  const row r{1, 2};
  t->publish(&r, 1, true);
  t->side[t->generation() & 1].count = ~uint64_t{0};   // a writer in another process that lies
  EXPECT_EQ(t->count(t->generation()), 64u);
}

TEST(mirror_table, generations_go_round_without_zero) {
  auto t = std::make_unique<table>();
  row r{1, 1};
  t->publish(&r, 1, true);
  t->gen = ~0u;
  r.number = 7;
  EXPECT_TRUE(t->publish(&r, 1, true));
  const uint32_t g = t->generation();
  EXPECT_NE(g, 0u);
  EXPECT_EQ(t->at(g, 0).number, 7u);
}

}  // namespace
}  // namespace icepath
