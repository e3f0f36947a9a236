#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "wire/checksum.hpp"
#include "wire/headers.hpp"
#include "wire/tcp_options.hpp"

using namespace icepath;

namespace {
// RFC 1071 section 4.1, word by word: the slow, obvious one.
uint16_t plain(const std::vector<uint8_t>& b) {
  uint32_t s = 0;
  for (size_t i = 0; i < b.size(); i += 2) s += static_cast<uint32_t>(b[i] << 8 | (i + 1 < b.size() ? b[i + 1] : 0));
  while (s >> 16) s = (s & 0xffff) + (s >> 16);
  return static_cast<uint16_t>(~s);
}
std::vector<uint8_t> noise(std::mt19937& rng, size_t n) {
  std::vector<uint8_t> v(n);
  for (auto& x : v) x = static_cast<uint8_t>(rng());
  return v;
}
}  // namespace

TEST(checksum, agrees_with_rfc1071_for_every_length_and_alignment) {
  std::mt19937 rng(1);
  for (size_t n = 0; n < 700; ++n) {
    auto v = noise(rng, n + 3);
    if (n % 5 == 0) std::fill(v.begin(), v.end(), 0xff);
    for (size_t off = 0; off < 3; ++off) {
      const std::vector<uint8_t> part(v.begin() + static_cast<long>(off), v.begin() + static_cast<long>(off + n));
      EXPECT_EQ(__builtin_bswap16(csum_fold(csum_partial(v.data() + off, n))), plain(part)) << n;
    }
  }
}

TEST(checksum, pieces_at_odd_offsets_are_swapped) {
  std::mt19937 rng(2);
  for (int round = 0; round < 500; ++round) {
    const auto v = noise(rng, 1 + rng() % 300);
    const size_t cut = rng() % (v.size() + 1);
    csum s = csum_partial(v.data(), cut);
    const csum t = csum_partial(v.data() + cut, v.size() - cut);
    s = csum_add(s, cut & 1 ? csum_odd(t) : t);
    EXPECT_EQ(csum_fold(s), csum_fold(csum_partial(v.data(), v.size())));
  }
}

TEST(checksum, incremental_update_agrees_with_a_new_sum) {  // RFC 1624
  std::mt19937 rng(3);
  for (int round = 0; round < 2000; ++round) {
    auto v = noise(rng, 40);
    const uint16_t before = csum_fold(csum_partial(v.data(), 40));
    uint16_t from, to = static_cast<uint16_t>(rng());
    std::memcpy(&from, &v[8], 2);
    std::memcpy(&v[8], &to, 2);
    const uint16_t mid = csum_fold(csum_partial(v.data(), 40));
    EXPECT_EQ(csum_update16(before, from, to), mid);
    uint32_t f32, t32 = rng();
    std::memcpy(&f32, &v[12], 4);
    std::memcpy(&v[12], &t32, 4);
    EXPECT_EQ(csum_update32(mid, f32, t32), csum_fold(csum_partial(v.data(), 40)));
  }
  EXPECT_EQ(csum_update16(__builtin_bswap16(0xdd2f), __builtin_bswap16(0x5555), __builtin_bswap16(0x3285)), 0);  // RFC 1624 section 4
}

TEST(checksum, pseudo_headers) {
  uint8_t v4[12] = {192, 0, 2, 1, 198, 51, 100, 7, 0, 6, 0x12, 0x34};
  be32 s, d;
  s = 0xc0000201;
  d = 0xc6336407;
  EXPECT_EQ(csum_fold(csum_pseudo_v4(s, d, 6, 0x1234)), csum_fold(csum_partial(v4, 12)));
  std::vector<uint8_t> v6(40);
  for (size_t i = 0; i < 32; ++i) v6[i] = static_cast<uint8_t>(i * 9 + 200);
  v6[33] = 1, v6[34] = 2, v6[35] = 3, v6[39] = 17;
  EXPECT_EQ(csum_fold(csum_pseudo_v6(v6.data(), v6.data() + 16, 17, 0x010203)), csum_fold(csum_partial(v6.data(), 40)));
}

TEST(checksum, ipv4_header_from_the_textbook) {
  const uint8_t h[20] = {0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7};
  EXPECT_EQ(csum_fold(csum_partial(h, 20)), 0);
  ipv4_hdr ip;
  std::memcpy(&ip, h, 20);
  EXPECT_EQ(ip.version(), 4u);
  EXPECT_EQ(ip.header_len(), 20u);
  EXPECT_EQ(ip.tot_len, 0x73);
  EXPECT_EQ(ip.saddr, 0xc0a80001u);
}

TEST(tcp_options, a_syn_as_the_kernel_writes_it) {
  const uint8_t b[] = {2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 1, 3, 3, 7};
  tcp_options o;
  ASSERT_TRUE(tcp_options_parse(b, sizeof b, o));
  EXPECT_TRUE(o.has_mss && o.sack_permitted && o.has_timestamp && o.has_wscale);
  EXPECT_EQ(o.mss, 1460);
  EXPECT_EQ(o.wscale, 7);
  EXPECT_EQ(o.tsval, 9u);
  uint8_t out[40];
  ASSERT_EQ(tcp_options_build(o, out, sizeof out), sizeof b);
  EXPECT_EQ(std::memcmp(out, b, sizeof b), 0);
}

TEST(tcp_options, what_is_built_is_parsed_back) {
  std::mt19937 rng(4);
  for (int round = 0; round < 5000; ++round) {
    tcp_options o, back;
    uint8_t exp[8];
    for (auto& x : exp) x = static_cast<uint8_t>(rng());
    if (rng() % 2) o.has_mss = true, o.mss = static_cast<uint16_t>(1 + rng() % 65535);
    if (rng() % 2) o.has_wscale = true, o.wscale = static_cast<uint8_t>(rng() % 15);
    o.sack_permitted = rng() % 2;
    if (rng() % 2) o.has_timestamp = true, o.tsval = rng(), o.tsecr = rng();
    o.nr_sacks = static_cast<uint8_t>(rng() % 5);
    for (auto& s : o.sacks) s = {static_cast<uint32_t>(rng()), static_cast<uint32_t>(rng())};
    if (rng() % 3 == 0) o.has_exp = true, o.exp_id = static_cast<uint16_t>(rng()), o.exp = exp, o.exp_len = static_cast<uint8_t>(rng() % 9);
    uint8_t out[41];
    out[40] = 0x5a;
    const size_t n = tcp_options_build(o, out, 40);
    ASSERT_EQ(out[40], 0x5a);
    ASSERT_EQ(n % 4, 0u);
    if (!n) continue;
    ASSERT_TRUE(tcp_options_parse(out, n, back));
    EXPECT_EQ(back.has_mss, o.has_mss);
    EXPECT_EQ(back.mss, o.mss);
    EXPECT_EQ(back.has_wscale, o.has_wscale);
    EXPECT_EQ(back.wscale, o.wscale);
    EXPECT_EQ(back.sack_permitted, o.sack_permitted);
    EXPECT_EQ(back.has_timestamp, o.has_timestamp);
    EXPECT_EQ(back.tsval, o.tsval);
    EXPECT_EQ(back.tsecr, o.tsecr);
    ASSERT_EQ(back.nr_sacks, o.nr_sacks);
    for (unsigned i = 0; i < o.nr_sacks; ++i) EXPECT_TRUE(back.sacks[i].start == o.sacks[i].start && back.sacks[i].end == o.sacks[i].end);
    ASSERT_EQ(back.has_exp, o.has_exp);
    if (o.has_exp) {
      EXPECT_EQ(back.exp_id, o.exp_id);
      ASSERT_EQ(back.exp_len, o.exp_len);
      EXPECT_EQ(std::memcmp(back.exp, exp, o.exp_len), 0);
    }
    EXPECT_EQ(tcp_options_build(o, out, n - 1), 0u);  // no half options
  }
}

TEST(tcp_options, every_truncation_is_seen_and_what_came_before_stays) {
  const uint8_t b[] = {2, 4, 5, 0xb4, 1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0};
  for (size_t n = 0; n < sizeof b; ++n) {
    const std::vector<uint8_t> cut(b, b + n);  // exactly n bytes: reading one more is an error of ASan
    tcp_options o;
    const bool ok = tcp_options_parse(cut.data(), n, o);
    EXPECT_EQ(ok, n == 0 || (n >= 4 && n <= 6)) << n;
    EXPECT_EQ(o.has_mss, n >= 4);
    EXPECT_FALSE(o.has_timestamp);
  }
}

TEST(tcp_options, nonsense_lengths_are_ignored_or_end_the_parsing) {
  tcp_options o;
  const uint8_t zero[] = {2, 0, 5, 0xb4}, one[] = {99, 1, 0, 0}, wrong_mss[] = {2, 3, 5, 1}, mss0[] = {2, 4, 0, 0}, shift[] = {3, 3, 200, 0};
  const uint8_t sack9[] = {5, 9, 1, 2, 3, 4, 5, 6, 7, 0}, unknown[] = {77, 6, 1, 2, 3, 4, 4, 2}, after_eol[] = {0, 2, 4, 5};
  EXPECT_FALSE(tcp_options_parse(zero, 4, o));
  EXPECT_FALSE(tcp_options_parse(one, 4, o));
  EXPECT_TRUE(tcp_options_parse(wrong_mss, 4, o));
  EXPECT_FALSE(o.has_mss);
  EXPECT_TRUE(tcp_options_parse(mss0, 4, o));
  EXPECT_FALSE(o.has_mss);
  EXPECT_TRUE(tcp_options_parse(shift, 4, o));
  EXPECT_EQ(o.wscale, 14);  // RFC 7323 section 2.3
  EXPECT_TRUE(tcp_options_parse(sack9, sizeof sack9, o));
  EXPECT_EQ(o.nr_sacks, 0);
  EXPECT_TRUE(tcp_options_parse(unknown, sizeof unknown, o));
  EXPECT_TRUE(o.sack_permitted);  // RFC 9293 MUST-6: the unknown one is skipped
  EXPECT_TRUE(tcp_options_parse(after_eol, 4, o));
}

TEST(tcp_options, random_bytes_never_read_outside) {
  std::mt19937 rng(5);
  for (int round = 0; round < 100000; ++round) {
    auto v = noise(rng, rng() % 41);
    for (auto& x : v)
      if (rng() % 2) x = static_cast<uint8_t>(rng() % 12);
    v.shrink_to_fit();
    tcp_options o;
    (void)tcp_options_parse(v.data(), v.size(), o);
    EXPECT_LE(o.nr_sacks, 4);
    EXPECT_LE(o.wscale, 14);
    if (o.has_exp) {
      EXPECT_TRUE(o.exp >= v.data() && o.exp + o.exp_len <= v.data() + v.size());
    }
  }
}
