#include <gtest/gtest.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>

#include "base/usercopy.hpp"

using namespace icepath;

namespace {

struct guarded {  // one readable page between two that are not
  static constexpr size_t page = 4096;
  uint8_t* base;
  guarded() {
    base = static_cast<uint8_t*>(::mmap(nullptr, 3 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_EQ(::mprotect(mid(), page, PROT_READ | PROT_WRITE), 0);
    std::memset(mid(), 'x', page);
  }
  ~guarded() { ::munmap(base, 3 * page); }
  uint8_t* mid() { return base + page; }
};

struct usercopy : testing::Test {
  static void SetUpTestSuite() { ASSERT_TRUE(usercopy_install().ok()); }
};

sigjmp_buf back;
volatile int seen;

}  // namespace

TEST_F(usercopy, copies_every_length_and_nothing_beyond) {
  std::string from(5000, '\0'), to;
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<char>(i * 31 + 7);
  for (size_t n = 0; n < 4200; n += n < 1100 ? 1 : 97) {
    for (size_t off : {0, 1, 7}) {
      to.assign(5000, '!');
      ASSERT_EQ(copy_to_user(to.data() + off, from.data() + 3, n), 0u);
      ASSERT_EQ(to.compare(off, n, from, 3, n), 0) << n;
      ASSERT_EQ(to.substr(off + n), std::string(5000 - off - n, '!')) << n;
      ASSERT_EQ(to.substr(0, off), std::string(off, '!'));
    }
  }
}

TEST_F(usercopy, T05_bad_pointers_of_any_length_are_reported) {
  char buf[9000];
  guarded g;
  for (size_t n = 1; n < 9000; n += n < 300 ? 1 : 211) {
    EXPECT_EQ(copy_from_user(buf, nullptr, n), n);
    EXPECT_EQ(copy_to_user(nullptr, buf, n), n);
    EXPECT_EQ(copy_from_user(buf, reinterpret_cast<void*>(0xdead000000000000ull), n), n);  // not canonical
  }
}

TEST_F(usercopy, T05_a_word_at_a_bad_pointer_is_reported) {
  int good = -7;
  EXPECT_EQ(load_from_user(&good), int64_t{0xfffffff9});
  EXPECT_EQ(load_from_user(nullptr), -1);
  EXPECT_EQ(load_from_user(reinterpret_cast<int*>(0xdead000000000000ull)), -1);  // not canonical
  EXPECT_EQ(load_from_user(&good), int64_t{0xfffffff9});
}

TEST_F(usercopy, T05_fault_in_the_middle_is_reported_and_exact_when_long) {
  static uint8_t buf[8192];
  guarded g;
  for (size_t n = 2; n < 5000; n += n < 300 ? 1 : 131) {
    for (size_t good : {size_t{1}, n / 2, n - 1}) {
      if (good == 0 || good >= n || good > guarded::page) continue;
      const size_t left = copy_from_user(buf, g.mid() + guarded::page - good, n);
      EXPECT_GE(left, n - good);
      EXPECT_LE(left, n);
      const size_t wleft = copy_to_user(g.mid() + guarded::page - good, buf, n);
      EXPECT_GE(wleft, n - good);
      EXPECT_LE(wleft, n);
    }
  }
  EXPECT_EQ(copy_from_user(buf, g.mid(), 5000), 5000 - guarded::page);
}

TEST_F(usercopy, T05_read_only_memory_and_vanished_file_pages) {
  char buf[64] = "abc";
  static const char constant[64] = "constant";
  EXPECT_EQ(copy_to_user(const_cast<char*>(constant), buf, 8), 8u);
  char name[] = "/tmp/icepath-usercopy-XXXXXX";
  const int fd = ::mkstemp(name);
  ASSERT_GE(fd, 0);
  ::unlink(name);
  ASSERT_EQ(::ftruncate(fd, 4096), 0);
  void* m = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ASSERT_NE(m, MAP_FAILED);
  ASSERT_EQ(::ftruncate(fd, 0), 0);
  EXPECT_EQ(copy_from_user(buf, m, 20), 20u);  // SIGBUS
  ::munmap(m, 4096);
  ::close(fd);
}

TEST_F(usercopy, other_faults_reach_the_programs_own_handler_with_their_facts) {
  struct sigaction mine = {}, old = {};
  mine.sa_flags = SA_SIGINFO;
  mine.sa_sigaction = [](int sig, siginfo_t* i, void*) {
    seen = sig == SIGSEGV && i->si_addr == reinterpret_cast<void*>(16) ? 1 : 2;
    siglongjmp(back, 1);
  };
  ASSERT_TRUE(usercopy_get_next(SIGSEGV, &old));
  ASSERT_TRUE(usercopy_set_next(SIGSEGV, &mine));
  for (int round = 0; round < 3; ++round) {  // the mask is right again each time
    seen = 0;
    if (!sigsetjmp(back, 1)) {
      volatile int* volatile p = reinterpret_cast<int*>(16);
      *p = 1;
    }
    EXPECT_EQ(seen, 1);
    char b[4];
    EXPECT_EQ(copy_from_user(b, nullptr, 4), 4u);
    EXPECT_EQ(seen, 1);
  }
  usercopy_set_next(SIGSEGV, &old);
  EXPECT_FALSE(usercopy_set_next(SIGUSR1, &mine));
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_F(usercopy, without_a_handler_the_process_still_dies_of_the_signal) {
  for (int how = 0; how < 2; ++how) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      struct sigaction dfl = {};
      dfl.sa_handler = SIG_DFL;
      usercopy_set_next(SIGSEGV, &dfl);
      if (how) ::raise(SIGSEGV);
      else {
        volatile int* volatile p = reinterpret_cast<int*>(16);
        *p = 1;
      }
      ::_exit(0);
    }
    int st = 0;
    ASSERT_EQ(::waitpid(pid, &st, 0), pid);
    EXPECT_TRUE(WIFSIGNALED(st) && WTERMSIG(st) == SIGSEGV);
  }
}
#endif
