#include <gtest/gtest.h>

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <map>
#include <string>

#include "base/alloc.hpp"
#include "base/clock.hpp"
#include "base/config.hpp"
#include "base/log.hpp"
#include "base/raw_syscall.hpp"
#include "base/siphash.hpp"

using namespace icepath;

namespace {

template <class F>
std::string stderr_of(F f) {
  int p[2];
  EXPECT_EQ(::pipe(p), 0);
  const int keep = ::dup(2);
  ::dup2(p[1], 2);
  f();
  ::dup2(keep, 2);
  ::close(keep);
  ::close(p[1]);
  std::string s(65536, '\0');
  const ssize_t n = ::read(p[0], s.data(), s.size());
  ::close(p[0]);
  s.resize(n > 0 ? static_cast<size_t>(n) : 0);
  return s;
}

std::map<std::string, std::string> vars;
const char* env(const char* n) {
  const auto i = vars.find(n);
  return i == vars.end() ? nullptr : i->second.c_str();
}

}  // namespace

TEST(siphash, reference_vectors) {  // the paper's appendix A, and the authors' vectors
  uint8_t in[64];
  for (unsigned i = 0; i < 64; ++i) in[i] = static_cast<uint8_t>(i);
  uint64_t key[2];
  std::memcpy(key, in, 16);
  EXPECT_EQ(siphash(key, in, 0), 0x726fdb47dd0e0e31ull);
  EXPECT_EQ(siphash(key, in, 1), 0x74f839c593dc67fdull);
  EXPECT_EQ(siphash(key, in, 8), 0x93f5f5799a932462ull);
  EXPECT_EQ(siphash(key, in, 15), 0xa129ca6149be45e5ull);
}

TEST(clock, moves_forward_and_cycles_agree_with_it) {
  const nsec a = clock_now();
  const uint64_t c = cycles();
  while (clock_now() - a < 5 * msec_ns) cpu_relax();
  const nsec b = clock_now();
  const auto n = static_cast<double>(cycles_to_ns(cycles() - c));
  EXPECT_NEAR(n / static_cast<double>(b - a), 1.0, 0.2);
  EXPECT_NEAR(static_cast<double>(cycles_to_ns(ns_to_cycles(sec_ns))), 1e9, 1e3);
}

TEST(raw_syscall, answers_like_the_kernel_and_leaves_errno) {
  errno = 77;
  EXPECT_EQ(raw_syscall(SYS_getpid), ::getpid());
  EXPECT_EQ(raw_syscall(SYS_close, -1), -EBADF);
  EXPECT_EQ(errno, 77);
}

TEST(log, formats_like_printf) {
  char a[200], b[200];
#define SAME(...)                                                \
  do {                                                           \
    EXPECT_EQ(format(a, sizeof a, __VA_ARGS__), static_cast<size_t>(snprintf(b, sizeof b, __VA_ARGS__))); \
    EXPECT_STREQ(a, b);                                          \
  } while (0)
  SAME("plain %% text");
  SAME("%d %u %x %c", -5, 7u, 0xbeefu, 'q');
  SAME("%ld %lu %lld %llu %zu", -1L, ~0UL, -9223372036854775807LL - 1, ~0ULL, size_t{12});
  SAME("[%5d][%-5d][%05d][%8s][%-8s|", 42, 42, -42, "ab", "ab");
  SAME("%.3s %.*s", "abcdef", 2, "xyz");
  SAME("%hu", static_cast<unsigned short>(9));
#undef SAME
  EXPECT_EQ(format(a, 4, "%s", "abcdef"), 3u);
  EXPECT_STREQ(a, "abc");
}

TEST(log, one_line_by_level_and_errno_is_kept) {
  log_threshold = static_cast<int>(log_level::warn);
  errno = 5;
  EXPECT_EQ(stderr_of([] { log_warn("disk %d", 3); }), "icepath: disk 3\n");
  EXPECT_EQ(stderr_of([] { log_info("quiet"); }), "");
  EXPECT_EQ(errno, 5);
  EXPECT_EQ(stderr_of([] { log_error("%s", std::string(2000, 'x').c_str()); }).size(), 512u);
}

TEST(config, defaults_when_nothing_is_said) {
  vars.clear();
  config c;
  EXPECT_EQ(stderr_of([&] { c = config_parse(env); }), "");
  EXPECT_TRUE(c.port_local);
  EXPECT_FALSE(c.require || c.stats);
  EXPECT_EQ(c.spin_usec, -1);
  EXPECT_EQ(c.promote, promote_rule::lazy);
}

TEST(config, takes_every_accepted_value) {
  vars = {{"ICEPATH_PORTS", "none"}, {"ICEPATH_REQUIRE", "1"}, {"ICEPATH_STATS", "1"}, {"ICEPATH_LOG", "debug"}, {"ICEPATH_SPIN_USEC", "0"}, {"ICEPATH_PROMOTE", "eager"}, {"ICEPATH_BULK", "fast"}};
  config c = config_parse(env);
  EXPECT_FALSE(c.port_local);
  EXPECT_TRUE(c.bulk_fast);
  EXPECT_TRUE(c.require && c.stats);
  EXPECT_EQ(c.log, 3);
  EXPECT_EQ(c.spin_usec, 0);
  EXPECT_EQ(c.promote, promote_rule::eager);
  vars = {{"ICEPATH_SPIN_USEC", "1000000"}, {"ICEPATH_PROMOTE", "never"}};
  c = config_parse(env);
  EXPECT_EQ(c.spin_usec, 1000000);
  EXPECT_EQ(c.promote, promote_rule::never);
}

TEST(config, ports_are_a_list_with_at_most_one_interface) {
  const auto ports = [](const char* v) {
    vars = {{"ICEPATH_PORTS", v}};
    config c;
    const bool said = !stderr_of([&] { c = config_parse(env); }).empty();
    return std::string(c.port_local ? "local " : "") + c.xdp_ifname + (said ? " !" : "");
  };
  EXPECT_EQ(ports("local"), "local ");
  EXPECT_EQ(ports("xdp:eth0"), "eth0");
  EXPECT_EQ(ports("local,xdp:eth0"), "local eth0");
  EXPECT_EQ(ports("xdp:enp0s31f6np1d2,local"), "local enp0s31f6np1d2");
  for (const char* bad : {"xdp", "xdp:", "xdp:a,xdp:b", "none,local", "local,", ",local", "xdp:sixteen_letters_", "xdp:eth0,none", "local xdp:eth0"})
    EXPECT_EQ(ports(bad), "local  !") << bad;
}

TEST(config, bad_value_names_variable_and_choices_once_and_keeps_the_default) {
  const char* names[] = {"ICEPATH_PORTS", "ICEPATH_REQUIRE", "ICEPATH_STATS", "ICEPATH_LOG", "ICEPATH_SPIN_USEC", "ICEPATH_PROMOTE", "ICEPATH_BULK"};
  for (const char* n : names)
    for (const char* bad : {"bogus", "-1", "1000001", "99999999999999999999", "1x", " 1"}) {
      vars = {{n, bad}};
      config c;
      const std::string said = stderr_of([&] { c = config_parse(env); });
      EXPECT_NE(said.find(n), std::string::npos) << bad;
      EXPECT_NE(said.find(bad), std::string::npos);
      EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1);
      EXPECT_TRUE(c.port_local && !c.bulk_fast && !c.require && !c.stats && c.spin_usec == -1 && c.promote == promote_rule::lazy);
    }
}

TEST(alloc, host_allocator_is_not_changed) {
  void* (*const m)(size_t) = ::malloc;
  void* before = ::malloc(100);
  mem_init();
  void* ours = mem_alloc(100);
  ASSERT_NE(ours, nullptr);
  EXPECT_EQ(m, static_cast<void* (*)(size_t)>(::malloc));
  char* after = new char[100];
  delete[] after;
  ::free(before);
  mem_free(ours);
  auto* z = static_cast<char*>(mem_zalloc(1000));
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(z[i], 0);
  mem_free(z);
  void* al = mem_aligned(100, 4096);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(al) % 4096, 0u);
  mem_free(al);
  mem_free(nullptr);
}
