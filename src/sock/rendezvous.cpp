// See rendezvous.hpp.
#include "sock/rendezvous.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>

#include "base/libc.hpp"
#include "base/quiet_signals.hpp"
#include "skb/region.hpp"
#include "stack/process.hpp"

namespace icepath {
namespace {

struct entry {
  std::atomic<uint64_t> owner;       // 0 free, else the cookie of the process that holds it
  std::atomic<uint32_t> valid;       // 1 when the fields below are complete
  uint32_t slot;
  four_tuple t;
  uint16_t stack_no;
  uint8_t pad[10];
};
static_assert(sizeof(entry) == 64);

constexpr uint32_t buckets = 8192, ways = 16, entries = buckets * ways;
constexpr size_t table_bytes = size_t{entries} * sizeof(entry);

std::atomic<entry*> table{nullptr};
std::atomic<uint32_t> opening{0};

uint32_t bucket_of(const four_tuple& t) {
  // The same for both directions.
  const uint64_t a = hash_of(t), b = hash_of(t.reversed());
  return static_cast<uint32_t>(hash_mix(a ^ b ^ (a + b)) % buckets);
}

bool room_for_table(int fd) {
  quiet_signals quiet;
  const long r = raw_syscall(SYS_fallocate, fd, 0, 0, static_cast<long>(table_bytes));
  quiet.result(r);
  return r == 0;
}

}  // namespace

bool rendezvous_start() {
  if (table.load(std::memory_order_acquire)) return true;
  while (opening.exchange(1, std::memory_order_acquire)) sched_yield();
  bool ok = table.load() != nullptr;
  if (!ok) {
    char path[256];
    std::snprintf(path, sizeof path, "%s/rendezvous", runtime_dir_path());
    const int fd = ::open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    struct stat st{};
    if (fd >= 0 && ::fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == ::geteuid() && room_for_table(fd)) {
      void* m = ::mmap(nullptr, table_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      if (m != MAP_FAILED) {
        table.store(static_cast<entry*>(m), std::memory_order_release);
        ok = true;
      }
    }
    if (fd >= 0) real::close(fd);
  }
  opening.store(0, std::memory_order_release);
  return ok;
}

void rendezvous_forget() {
  if (entry* e = table.exchange(nullptr)) ::munmap(static_cast<void*>(e), table_bytes);
  opening.store(0);
}

uint32_t rendezvous_publish(const four_tuple& t, const stack_id& self) {
  entry* tab = table.load(std::memory_order_acquire);
  if (!tab) return 0;
  const uint32_t first = bucket_of(t) * ways;
  for (int pass = 0; pass < 2; ++pass) {
    for (uint32_t i = first; i < first + ways; ++i) {
      entry& e = tab[i];
      uint64_t o = e.owner.load(std::memory_order_relaxed);
      if (o != 0 && (pass == 0 || o == self.process_cookie || region_alive(e.slot % max_processes, o))) continue;
      if (!e.owner.compare_exchange_strong(o, self.process_cookie, std::memory_order_acq_rel)) continue;
      e.valid.store(0, std::memory_order_release);
      e.slot = self.process_slot;
      e.t = t;
      e.stack_no = self.stack_no;
      e.valid.store(1, std::memory_order_seq_cst);  // partner: rendezvous_find; publish-then-look on both sides
      return i + 1;
    }
  }
  return 0;
}

void rendezvous_withdraw(uint32_t token) {
  entry* tab = table.load(std::memory_order_acquire);
  if (!tab || token == 0 || token > entries) return;
  tab[token - 1].valid.store(0, std::memory_order_relaxed);
  tab[token - 1].owner.store(0, std::memory_order_release);
}

bool rendezvous_find(const four_tuple& mine, stack_id* peer) {
  entry* tab = table.load(std::memory_order_acquire);
  if (!tab) return false;
  const four_tuple want = mine.reversed();
  const uint32_t first = bucket_of(mine) * ways;
  for (uint32_t i = first; i < first + ways; ++i) {
    entry& e = tab[i];
    const uint64_t o = e.owner.load(std::memory_order_acquire);
    if (o == 0 || e.valid.load(std::memory_order_seq_cst) != 1) continue;
    four_tuple t;
    std::memcpy(&t, &e.t, sizeof t);
    stack_id id{e.slot, e.stack_no, o};
    std::atomic_thread_fence(std::memory_order_acquire);
    if (e.owner.load(std::memory_order_relaxed) != o || e.valid.load(std::memory_order_relaxed) != 1 || !(t == want)) continue;
    if (id.process_slot >= max_processes || id.stack_no >= max_stacks) continue;
    *peer = id;
    return true;
  }
  return false;
}

}  // namespace icepath
