#include <gtest/gtest.h>

#include <random>
#include <string>

#include "pool_fixture.hpp"
#include "skb/csum.hpp"

using namespace icepath;
using icepath::test::pool_fixture;

namespace {

struct skb_test : testing::Test {
  pool_fixture f;
  skb_pool& p = f.skbs;
  std::mt19937 rng{42};

  void append(sk_buff* s, std::string_view b) { std::memcpy(skb_put(s, static_cast<uint32_t>(b.size())), b.data(), b.size()); }
  void add_frag(sk_buff* s, std::string_view b, uint32_t at = 0) {
    uint8_t* fr = p.frames.alloc();
    std::memcpy(fr + at, b.data(), b.size());
    s->frags[s->nr_frags++] = {fr + at, static_cast<uint32_t>(b.size())};
    s->len += static_cast<uint32_t>(b.size());
    s->data_len += static_cast<uint32_t>(b.size());
    s->truesize += skb_truesize_frame;
  }
  std::string bytes(const sk_buff* s) {
    std::string r(s->len, '\0');
    skb_copy_bits(s, 0, r.data(), s->len);
    return r;
  }
  std::string noise(size_t n) {
    std::string r(n, '\0');
    for (auto& c : r) c = static_cast<char>(rng());
    return r;
  }
  // Every length agrees with every other, and truesize counts what is really held.
  void valid(const sk_buff* s) {
    uint32_t d = 0, frames = s->head ? 1 : 0;
    for (unsigned i = 0; i < s->nr_frags; ++i) {
      EXPECT_GT(s->frags[i].len, 0u);
      EXPECT_EQ(f.frames.index(s->frags[i].addr), f.frames.index(s->frags[i].addr + s->frags[i].len - 1));
      EXPECT_GT(f.frames.ref(f.frames.index(s->frags[i].addr)), 0u);
      d += s->frags[i].len;
      ++frames;
    }
    EXPECT_EQ(d, s->data_len);
    EXPECT_GE(s->len, s->data_len);
    EXPECT_EQ(s->truesize, skb_truesize_base + frames * skb_truesize_frame);
    if (s->head) {
      EXPECT_GE(s->data, s->head);
      EXPECT_LE(s->tail(), s->head + frame_size);
    }
  }
  void TearDown() override {
    EXPECT_EQ(p.allocated(), 0);
    p.destroy();
    EXPECT_EQ(f.frames.in_use(), 0u);
    p.init(&f.frames);
  }
  sk_buff* random_skb(std::string& model) {
    sk_buff* s = p.alloc();
    const auto lin = noise(rng() % 1500);
    append(s, lin);
    model = lin;
    for (unsigned n = rng() % (max_skb_frags + 1); n; --n) {
      const auto b = noise(1 + rng() % 3000);
      add_frag(s, b, static_cast<uint32_t>(rng() % 1000));
      model += b;
    }
    return s;
  }
};

int destroyed;
void count_destructor(sk_buff*) { ++destroyed; }

}  // namespace

TEST_F(skb_test, alloc_gives_at_least_the_asked_headroom_in_different_cache_sets) {
  sk_buff* v[16];
  unsigned sets = 0;
  for (auto& s : v) {
    s = p.alloc(100);
    ASSERT_NE(s, nullptr);
    EXPECT_GE(s->headroom(), 100u);
    EXPECT_EQ(s->len, 0u);
    EXPECT_EQ(s->tailroom(), frame_size - s->headroom());
    sets |= 1u << (s->headroom() >> 6);
    valid(s);
  }
  EXPECT_GE(__builtin_popcount(sets), 8);
  for (auto* s : v) p.free(s);
}

TEST_F(skb_test, T16_destructor_runs_once_and_not_for_a_clone) {
  destroyed = 0;
  sk_buff* s = p.alloc();
  append(s, "hello");
  s->destructor = count_destructor;
  sk_buff* c = p.clone(s);
  EXPECT_EQ(c->destructor, nullptr);
  p.free(c);
  EXPECT_EQ(destroyed, 0);
  p.free(s);
  EXPECT_EQ(destroyed, 1);
}

TEST_F(skb_test, T17_original_is_busy_while_a_clone_lives) {
  sk_buff* s = p.alloc();
  EXPECT_FALSE(skb_fclone_busy(s));
  sk_buff* a = p.clone(s);
  sk_buff* b = p.clone(s);
  EXPECT_EQ(a->clone_of, s);
  p.free(a);
  EXPECT_TRUE(skb_fclone_busy(s));
  p.free(b);
  EXPECT_FALSE(skb_fclone_busy(s));
  p.free(s);
}

TEST_F(skb_test, original_freed_first_is_not_reused_while_its_clone_lives) {
  sk_buff* s = p.alloc();
  append(s, "payload");
  sk_buff* c = p.clone(s);
  sk_buff* cc = p.clone(c);
  p.free(s);
  sk_buff* other[8];
  for (auto& o : other) {
    o = p.alloc();
    EXPECT_NE(o, s);
  }
  EXPECT_EQ(bytes(c), "payload");
  p.free(c);
  EXPECT_EQ(bytes(cc), "payload");
  p.free(cc);
  for (auto* o : other) p.free(o);
}

TEST_F(skb_test, only_the_original_appends_to_a_shared_frame) {
  sk_buff* s = p.alloc();
  append(s, "abc");
  sk_buff* c = p.clone(s);
  EXPECT_EQ(c->tailroom(), 0u);
  append(s, "def");
  EXPECT_EQ(bytes(c), "abc");
  EXPECT_EQ(bytes(s), "abcdef");
  p.free(c);
  p.free(s);
}

TEST_F(skb_test, copy_is_private) {
  std::string m;
  sk_buff* s = random_skb(m);
  sk_buff* c = p.copy(s);
  ASSERT_NE(c, nullptr);
  valid(c);
  EXPECT_EQ(bytes(c), m);
  for (unsigned i = 0; i < s->nr_frags; ++i) std::memset(s->frags[i].addr, 0, s->frags[i].len);
  std::memset(s->data, 0, s->headlen());
  EXPECT_EQ(bytes(c), m);
  p.free(s);
  p.free(c);
}

TEST_F(skb_test, split_trim_pull_agree_with_a_string) {
  for (int round = 0; round < 2000; ++round) {
    std::string m;
    sk_buff* s = random_skb(m);
    sk_buff* c = round % 3 == 0 ? p.clone(s) : nullptr;
    const std::string whole = m;
    for (int step = 0; step < 4; ++step) {
      const auto n = static_cast<uint32_t>(rng() % (m.size() + 1));
      switch (rng() % 4) {
        case 0:
          ASSERT_TRUE(skb_pull_any(p, s, n));
          m.erase(0, n);
          break;
        case 1:
          skb_trim(p, s, n);
          m.resize(n);
          break;
        case 2: {
          sk_buff* r = skb_split(p, s, n);
          ASSERT_NE(r, nullptr);
          valid(r);
          EXPECT_GE(r->headroom(), skb_headroom);
          EXPECT_TRUE(bytes(r) == m.substr(n));
          m.resize(n);
          if (s->tailroom() >= 5) {  // what s gains must not show up in r
            const auto before_put = bytes(r);
            append(s, "XXXXX");
            m += "XXXXX";
            EXPECT_TRUE(bytes(r) == before_put);
          }
          p.free(r);
          break;
        }
        default: {
          const uint32_t k = n < 1000 ? n : 1000;
          if (skb_pull_head(p, s, k)) EXPECT_GE(s->headlen(), k);
          else EXPECT_GT(s->headroom() + k, frame_size);
        }
      }
      valid(s);
      ASSERT_TRUE(bytes(s) == m);
    }
    if (c) {
      EXPECT_TRUE(bytes(c) == whole);
      p.free(c);
    }
    p.free(s);
  }
}

TEST_F(skb_test, checksum_over_fragments_of_odd_lengths_is_that_of_the_bytes) {
  for (int round = 0; round < 300; ++round) {
    std::string m;
    sk_buff* s = random_skb(m);
    const auto off = static_cast<uint32_t>(rng() % (m.size() + 1)), n = static_cast<uint32_t>(rng() % (m.size() - off + 1));
    EXPECT_EQ(csum_fold(skb_checksum(s, off, n, 7)), csum_fold(csum_partial(m.data() + off, n, 7)));
    p.free(s);
  }
}

TEST_F(skb_test, pull_more_than_there_is_changes_nothing) {
  sk_buff* s = p.alloc();
  append(s, "abc");
  EXPECT_FALSE(skb_pull_any(p, s, 4));
  EXPECT_FALSE(skb_pull_head(p, s, 4));
  EXPECT_EQ(bytes(s), "abc");
  p.free(s);
}

TEST_F(skb_test, pull_head_of_a_received_skb_without_linear_part) {
  sk_buff* s = p.alloc_empty();
  const auto b = noise(4000);
  add_frag(s, b);
  EXPECT_EQ(s->tailroom(), 0u);
  ASSERT_TRUE(skb_pull_head(p, s, 54));
  valid(s);
  EXPECT_EQ(std::string(reinterpret_cast<char*>(s->data), 54), b.substr(0, 54));
  EXPECT_EQ(bytes(s), b);
  p.free(s);
}

TEST(skb_pool, exhausted_frames_give_nullptr_and_leak_nothing) {
  pool_fixture f(130);
  sk_buff* v[200];
  unsigned n = 0;
  while (n < 200 && (v[n] = f.skbs.alloc())) ++n;
  EXPECT_EQ(n, 130u);
  EXPECT_EQ(f.skbs.copy(v[0]), nullptr);
  EXPECT_EQ(skb_split(f.skbs, v[0], 0), nullptr);
  EXPECT_EQ(f.skbs.allocated(), 130);
  while (n) f.skbs.free(v[--n]);
  EXPECT_EQ(f.skbs.allocated(), 0);
}
