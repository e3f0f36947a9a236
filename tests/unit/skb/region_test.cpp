#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "skb/region.hpp"

using namespace icepath;

namespace {

// A runtime directory of the test's own; made before anything asks for it.
struct own_dir {
  std::string path;
  own_dir() {
    if (std::getenv("ICEPATH_TEST_SMALL_SHM")) return;
    char t[] = "/tmp/icepath-region-XXXXXX";
    path = ::mkdtemp(t);
    ::setenv("ICEPATH_RUNTIME_DIR", path.c_str(), 1);
  }
  ~own_dir() { if (!path.empty()) (void)!std::system(("rm -rf " + path).c_str()); }
} dir;

std::string file_of(uint32_t slot) { return std::string(runtime_dir_path()) + "/p" + std::to_string(slot) + ".mem"; }

int in_child(const std::function<int()>& f) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(f());
  int st = 0;
  ::waitpid(pid, &st, 0);
  return WIFEXITED(st) ? WEXITSTATUS(st) : 1000 + WTERMSIG(st);
}

}  // namespace

TEST(region, directory_is_private_and_named_for_the_network_namespace) {
  region r;
  ASSERT_TRUE(region_create(r).ok());
  struct stat st, ns;
  ASSERT_EQ(::stat(runtime_dir_path(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0700u);
  ASSERT_EQ(::stat("/proc/self/ns/net", &ns), 0);
  EXPECT_NE(std::string(runtime_dir_path()).find(std::to_string(ns.st_ino)), std::string::npos);
  EXPECT_GE(r.fd, 100);
  EXPECT_EQ(::fcntl(r.fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  EXPECT_EQ(::fcntl(r.dir_fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  region_destroy(r);
  EXPECT_EQ(::access(file_of(0).c_str(), F_OK), -1);
}

TEST(region, a_peer_sees_it_by_slot_and_cookie_and_only_while_it_lives) {
  region r;
  ASSERT_TRUE(region_create(r).ok());
  EXPECT_TRUE(region_alive(r.slot, r.cookie));
  EXPECT_FALSE(region_alive(r.slot, r.cookie + 1));
  EXPECT_FALSE(region_alive(r.slot + 1, 0));
  EXPECT_FALSE(region_alive(max_processes, 0));
  auto p = region_open_peer(r.slot, r.cookie, false);
  ASSERT_TRUE(p.ok());
  EXPECT_EQ((*p).hdr()->pid, ::getpid());
  region_peer peer = *p;
  peer.base[region_functions_off] = 42;
  EXPECT_EQ(*r.function(0), 42);
  region_close_peer(peer);
  EXPECT_EQ(region_open_peer(r.slot, r.cookie ^ 1, false).err(), ESRCH);
  EXPECT_EQ(region_open_peer(r.slot + 7, 0, false).err(), ESRCH);
  const uint64_t old = r.cookie;
  region_destroy(r);
  EXPECT_FALSE(region_alive(0, old));
  EXPECT_EQ(region_open_peer(0, old, true).err(), ESRCH);
}

TEST(region, slots_differ_and_a_killed_process_loses_its_slot_at_once) {
  region r;
  ASSERT_TRUE(region_create(r).ok());
  int p[2];
  ASSERT_EQ(::pipe(p), 0);
  const pid_t pid = ::fork();
  if (pid == 0) {
    region_forget(r);
    region mine;
    uint64_t facts[2] = {~0ull, 0};
    if (region_create(mine).ok()) facts[0] = mine.slot, facts[1] = mine.cookie;
    (void)!::write(p[1], facts, sizeof facts);
    ::pause();
    ::_exit(0);
  }
  uint64_t facts[2];
  ASSERT_EQ(::read(p[0], facts, sizeof facts), static_cast<ssize_t>(sizeof facts));
  const auto slot = static_cast<uint32_t>(facts[0]);
  EXPECT_NE(slot, r.slot);
  EXPECT_TRUE(region_alive(slot, facts[1]));
  auto peer = region_open_peer(slot, facts[1], false);
  ASSERT_TRUE(peer.ok());
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  EXPECT_FALSE(region_alive(slot, facts[1]));
  EXPECT_EQ(region_open_peer(slot, facts[1], false).err(), ESRCH);
  EXPECT_EQ(region_reclaim_dead(), 1u);
  EXPECT_EQ(::access(file_of(slot).c_str(), F_OK), -1);
  region_peer q = *peer;
  q.base[region_functions_off] = 1;  // what we have mapped stays, nothing faults
  region_close_peer(q);
  EXPECT_TRUE(region_alive(r.slot, r.cookie));
  region_destroy(r);
}

TEST(region, child_that_forgets_leaves_the_parent_untouched) {
  region r;
  ASSERT_TRUE(region_create(r).ok());
  EXPECT_EQ(in_child([&] {
    region_forget(r);
    return r.fd == -1 && r.base == nullptr ? 0 : 1;
  }), 0);
  EXPECT_TRUE(region_alive(r.slot, r.cookie));
  uint32_t idx;
  EXPECT_EQ(r.frames.take(&idx, 1), 1u);
  region_destroy(r);
}

TEST(region, frames_are_backed_as_they_are_needed) {
  region r;
  ASSERT_TRUE(region_create(r).ok());
  struct stat a, b;
  ASSERT_EQ(::fstat(r.fd, &a), 0);
  EXPECT_LT(a.st_blocks * 512, 10 << 20);
  frame_cache c;
  c.init(&r.frames);
  std::vector<uint8_t*> v;
  for (int i = 0; i < 3000; ++i) {
    uint8_t* f = c.alloc();
    ASSERT_NE(f, nullptr);
    f[0] = f[4095] = 1;
    v.push_back(f);
  }
  ASSERT_EQ(::fstat(r.fd, &b), 0);
  EXPECT_GE(b.st_blocks - a.st_blocks, 3000 * 8);
  for (auto* f : v) c.put(f);
  c.drain();
  EXPECT_EQ(r.frames.in_use(), 0u);
  region_destroy(r);
}

TEST(region, rings_are_aligned_zeroed_apart_and_reusable_from_any_thread) {
  region r;
  ASSERT_TRUE(region_create(r).ok());
  std::atomic<int> bad{0};
  auto work = [&](unsigned seed) {
    std::vector<std::pair<uint8_t*, size_t>> mine;
    for (int i = 0; i < 300; ++i) {
      seed = seed * 1103515245 + 12345;
      const size_t n = 1 + (seed >> 8) % (i % 50 == 0 ? 700000 : 40000);
      uint8_t* p = r.alloc_ring(n);
      if (!p) { ++bad; continue; }
      if (reinterpret_cast<uintptr_t>(p) % 4096) ++bad;
      for (size_t k = 0; k < n; k += 512) bad += p[k] != 0;
      for (size_t k = 0; k < n; k += 512) p[k] = static_cast<uint8_t>(seed | 1);
      mine.emplace_back(p, n);
      if (mine.size() > 8) {
        r.free_ring(mine[0].first, mine[0].second);
        mine.erase(mine.begin());
      }
    }
    for (auto& m : mine) r.free_ring(m.first, m.second);
  };
  std::vector<std::thread> t;
  for (unsigned i = 0; i < 3; ++i) t.emplace_back(work, i + 1);
  for (auto& x : t) x.join();
  EXPECT_EQ(bad, 0);
  uint8_t* all = r.alloc_ring(region_ring_bytes / 2);   // everything came back
  EXPECT_NE(all, nullptr);
  EXPECT_EQ(r.alloc_ring(region_ring_bytes), nullptr);
  EXPECT_EQ(r.alloc_ring(0), nullptr);
  region_destroy(r);
}

TEST(region, a_header_that_lies_is_refused) {
  region r;
  ASSERT_TRUE(region_create(r).ok());
  const auto lie = [&](auto& field, auto value) {
    const auto old = field;
    field = static_cast<std::remove_reference_t<decltype(field)>>(value);
    auto p = region_open_peer(r.slot, r.cookie, true);
    EXPECT_FALSE(p.ok());
    if (p.ok()) {
      region_peer q = *p;
      region_close_peer(q);
    }
    field = old;
  };
  region_header& h = *r.hdr;
  lie(h.magic, 1);
  lie(h.version, region_version + 1);
  lie(h.header_bytes, 64);
  lie(h.bytes, h.bytes * 2);
  lie(h.rows_off, h.bytes - 8);
  lie(h.functions_off, ~0ull);
  lie(h.function_stride, 0);
  lie(h.rings_off, 0);
  lie(h.frames_off, h.bytes);
  lie(h.nr_frames, 0xffffffffu);
  lie(h.slot, 5);
  lie(h.cookie, 0);
  h.ready = 0;
  EXPECT_EQ(region_open_peer(r.slot, 0, true).err(), ESRCH);
  h.ready = 1;
  auto p = region_open_peer(r.slot, 0, true);
  ASSERT_TRUE(p.ok());
  region_peer q = *p;
  region_close_peer(q);
  region_destroy(r);
}

TEST(region, files_that_are_no_regions_are_refused) {
  for (const off_t size : {off_t{0}, off_t{1}, off_t{4096}, static_cast<off_t>(region_frames_off) + 1, static_cast<off_t>(region_max_bytes) + 4096}) {
    const int fd = ::open(file_of(9).c_str(), O_RDWR | O_CREAT, 0600);
    ASSERT_GE(fd, 0);
    ASSERT_EQ(::ftruncate(fd, size), 0);
    struct flock l = {};
    l.l_type = F_WRLCK;
    ASSERT_EQ(::fcntl(fd, F_OFD_SETLK, &l), 0);
    EXPECT_FALSE(region_open_peer(9, 0, true).ok()) << size;
    ::close(fd);
  }
  ::unlink(file_of(9).c_str());
  ASSERT_EQ(::symlink("/etc/passwd", file_of(9).c_str()), 0);
  EXPECT_FALSE(region_open_peer(9, 0, true).ok());
  EXPECT_FALSE(region_alive(9, 0));
  ::unlink(file_of(9).c_str());
}

TEST(region, a_file_size_limit_is_an_error_and_not_a_signal) {
  EXPECT_EQ(in_child([] {
    rlimit l{1 << 20, 1 << 20};
    ::setrlimit(RLIMIT_FSIZE, &l);
    region r;
    const auto e = region_create(r);
    return e.ok() ? 1 : e.err() == EFBIG ? 0 : 2;
  }), 0);
}

TEST(region, an_address_space_limit_gives_a_smaller_region) {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_EQ(in_child([] {
    rlimit l{1ull << 30, 1ull << 30};
    ::setrlimit(RLIMIT_AS, &l);
    region r;
    if (!region_create(r).ok()) return 1;
    const int ok = r.hdr->nr_frames >= 2048 ? 0 : 2;
    region_destroy(r);
    return ok;
  }), 0);
#endif
}

TEST(region, a_directory_others_can_enter_is_refused) {
  ASSERT_EQ(::chmod(runtime_dir_path(), 0755), 0);
  EXPECT_EQ(in_child([] {
    region nothing;
    region_forget(nothing);  // the directory is opened and checked anew
    region r;
    return region_create(r).err() == EPERM ? 0 : 1;
  }), 0);
  ASSERT_EQ(::chmod(runtime_dir_path(), 0700), 0);
}

TEST(region, full_file_system_is_a_clean_error) {
  const char* small = std::getenv("ICEPATH_TEST_SMALL_SHM");  // a directory on a tmpfs of a few MiB
  if (!small) {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount a small tmpfs";
    const std::string at = dir.path + "/small";
    ::mkdir(at.c_str(), 0700);
    if (std::system(("mount -t tmpfs -o size=16m,mode=700 none " + at + " 2>/dev/null").c_str())) GTEST_SKIP() << "cannot mount a small tmpfs";
    char exe[256] = {};
    ASSERT_GT(::readlink("/proc/self/exe", exe, sizeof exe - 1), 0);
    EXPECT_EQ(std::system(("ICEPATH_TEST_SMALL_SHM=" + at + " " + exe + " --gtest_filter=region.full_file_system_is_a_clean_error >/dev/null 2>&1").c_str()), 0);
    (void)!std::system(("umount " + at).c_str());
    return;
  }
  // The second run of the test, with the small directory.
  ::setenv("ICEPATH_RUNTIME_DIR", small, 1);
  region r;
  ASSERT_TRUE(region_create(r).ok());
  frame_cache c;
  c.init(&r.frames);
  unsigned n = 0;
  while (uint8_t* f = c.alloc()) {
    f[0] = 1;
    ++n;
  }
  EXPECT_GT(n, 100u);
  EXPECT_LT(n, 4096u);
  EXPECT_EQ(r.alloc_ring(8 << 20), nullptr);
  EXPECT_EQ(in_child([&] {
    region_forget(r);
    region second;
    return region_create(second).err() == ENOSPC ? 0 : 1;
  }), 0);
  region_destroy(r);
}
