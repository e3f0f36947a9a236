// The process's own region: made, laid out, grown, given up. See region.hpp.
//
// What is backed by memory at once: header, socket rows and functions (about 7 MiB). Rings are backed when they are allocated, frames
// 4 MiB at a time through frame_pool's grow. Every page is allocated with fallocate before it is touched, so a full
// file system is ENOSPC in one of these three places and nothing else.
#include "skb/region.hpp"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <unistd.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "base/clock.hpp"
#include "base/config.hpp"
#include "base/quiet_signals.hpp"
#include "base/raw_syscall.hpp"
#include "skb/region_dir.hpp"

namespace icepath {

// Bit set: the page is taken. A ring of up to 64 pages lies inside one word and is taken with one CAS; larger ones take whole
// words. Lock-free, since a signal handler may promote a connection in the middle of another promotion. acquire/release: the page's
// last user is done before the next one begins.
struct ring_area {
  static constexpr uint32_t words = region_ring_bytes / 4096 / 64;
  std::atomic<uint64_t> map[words];
};

namespace {

bool back(int fd, uint64_t off, uint64_t n) {
  quiet_signals quiet;   // RLIMIT_FSIZE may have come down
  long r;
  do r = raw_syscall(SYS_fallocate, fd, 0, static_cast<long>(off), static_cast<long>(n));
  while (r == -EINTR);
  quiet.result(r);
  return r == 0;
}

uint32_t grow_frames(void* ctx, uint32_t first, uint32_t n) {
  const auto* r = static_cast<region*>(ctx);
  const uint64_t off = region_frames_off + (uint64_t{first} << frame_shift), bytes = uint64_t{n} << frame_shift;
  if (!back(r->fd, off, bytes)) {   // perhaps a smaller piece still fits
    const uint32_t half = n / 2;
    return half ? grow_frames(ctx, first, half) : 0;
  }
#ifdef MADV_POPULATE_WRITE
  (void)::madvise(r->base + off, bytes, MADV_POPULATE_WRITE);   // one call instead of a fault per frame; may be refused
#endif
  return n;
}

// How many frames the limits of this process allow.
uint32_t frames_allowed() {
  rlimit l;
  uint64_t room = region_max_bytes;
  if (::getrlimit(RLIMIT_FSIZE, &l) == 0 && l.rlim_cur != RLIM_INFINITY && l.rlim_cur < room) room = l.rlim_cur;
  if (room <= region_frames_off) return 0;
  uint64_t n = (room - region_frames_off) >> frame_shift;
  // Never more than an eighth of the machine, about what the kernel allows all of TCP.
  const uint64_t share = static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)) / 8 >> frame_shift;
  if (share > 4096 && share < n) n = share;
  return n < region_max_frames ? static_cast<uint32_t>(n) : region_max_frames;
}

void read_file(const char* path, char* to, size_t room) {
  const long fd = raw_syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return;
  const long n = raw_syscall(SYS_read, fd, to, room - 1);
  (void)raw_syscall(SYS_close, fd);
  to[n > 0 ? n : 0] = '\0';
  if (char* nl = std::strchr(to, '\n')) *nl = '\0';
}

void fill_header(region& r, uint32_t nr_frames) {
  region_header* h = r.hdr;
  h->magic = region_magic;
  h->version = region_version;
  h->header_bytes = sizeof(region_header);
  h->cookie = r.cookie;
  h->pid = static_cast<int32_t>(raw_syscall(SYS_getpid));
  h->slot = r.slot;
  h->start_ns = clock_now();
  h->bytes = r.bytes;
  h->rows_off = region_rows_off;
  h->functions_off = region_functions_off;
  h->function_stride = region_function_stride;
  h->rings_off = region_rings_off;
  h->frames_off = region_frames_off;
  h->nr_frames = nr_frames;
  read_file("/proc/self/comm", h->comm, sizeof h->comm);
  if (!h->comm[0]) (void)raw_syscall(SYS_prctl, PR_GET_NAME, h->comm);
  const long n = raw_syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", h->exe, sizeof h->exe - 1);
  h->exe[n > 0 ? n : 0] = '\0';
  std::memcpy(h->ports, config_get().ports, sizeof h->ports);
}

void drop(region& r) {
  r.frames.destroy();
  if (r.ring_map) ::munmap(static_cast<void*>(r.ring_map), sizeof(ring_area));
  if (r.base) ::munmap(r.base, r.bytes);
  if (r.fd >= 0) (void)raw_syscall(SYS_close, r.fd);   // and with it, as nobody else holds it, the lock
  r.ring_map = nullptr;
  r.base = nullptr;
  r.hdr = nullptr;
  r.rows = nullptr;
  r.bytes = 0;
  r.fd = r.dir_fd = -1;
}

int lay_out(region& r) {
  uint32_t nr = frames_allowed();
  if (nr < 256) return EFBIG;
  for (;; nr /= 2) {  // an address space limit may want less
    r.bytes = region_frames_off + (uint64_t{nr} << frame_shift);
    void* m = ::mmap(nullptr, r.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, r.fd, 0);
    if (m != MAP_FAILED) {
      r.base = static_cast<uint8_t*>(m);
      break;
    }
    if (nr < 4096) return ENOMEM;
  }
  const long t = raw_syscall(SYS_ftruncate, r.fd, static_cast<long>(r.bytes));
  if (t < 0) return static_cast<int>(-t);
  if (!back(r.fd, 0, region_rings_off)) return ENOSPC;
  (void)::madvise(r.base + region_frames_off, r.bytes - region_frames_off, MADV_HUGEPAGE);
  void* bits = ::mmap(nullptr, sizeof(ring_area), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (bits == MAP_FAILED) return ENOMEM;
  r.ring_map = static_cast<ring_area*>(bits);
  r.hdr = reinterpret_cast<region_header*>(r.base);
  r.rows = reinterpret_cast<sock_row*>(r.base + region_rows_off);
  const auto ok = r.frames.init(r.base + region_frames_off, nr, grow_frames, &r);
  if (!ok.ok()) return ok.err();
  do {
    if (raw_syscall(SYS_getrandom, &r.cookie, sizeof r.cookie, 0) != sizeof r.cookie)
      r.cookie = hash_mix(clock_now() ^ cycles() << 20 ^ static_cast<uint64_t>(raw_syscall(SYS_getpid)) << 44);
  } while (r.cookie == 0);
  fill_header(r, nr);
  r.hdr->ready.store(1, std::memory_order_release);  // partner: the acquire in region_open_peer
  return 0;
}

}  // namespace

result<bool> region_create(region& r) {
  const auto dir = runtime_dir_fd();
  if (!dir.ok()) return result<bool>::error(dir.err());
  (void)region_reclaim_dead();
  const auto fd = region_take_slot(*dir, r.slot);
  if (!fd.ok()) return result<bool>::error(fd.err());
  r.fd = *fd;
  r.dir_fd = *dir;
  const int e = lay_out(r);
  if (e) {
    region_unlink_slot(*dir, r.slot);
    drop(r);
    return result<bool>::error(e);
  }
  return true;
}

void region_destroy(region& r) {
  if (r.fd < 0) return;
  if (r.hdr) r.hdr->ready.store(0, std::memory_order_release);
  region_unlink_slot(r.dir_fd, r.slot);
  drop(r);
}

void region_forget(region& r) {
  drop(r);
  runtime_dir_forget();
}

uint8_t* region::alloc_ring(size_t n) {
  const auto pages = static_cast<uint32_t>((n + 4095) / 4096);
  if (!pages || n > region_ring_bytes) return nullptr;
  uint32_t first = ~0u;
  if (pages <= 64) {
    const uint64_t run = pages == 64 ? ~uint64_t{0} : (uint64_t{1} << pages) - 1;
    for (uint32_t w = 0; w < ring_area::words && first == ~0u; ++w) {
      uint64_t have = ring_map->map[w].load(std::memory_order_relaxed);
      for (unsigned bit = 0; bit + pages <= 64;) {
        const uint64_t hit = have & (run << bit);
        if (hit) {
          bit = 64 - static_cast<unsigned>(__builtin_clzll(hit));  // behind the last page that is taken
        } else if (ring_map->map[w].compare_exchange_weak(have, have | run << bit, std::memory_order_acquire, std::memory_order_relaxed)) {
          first = w * 64 + bit;
          break;
        }
      }
    }
  } else {
    const uint32_t need = (pages + 63) / 64;
    for (uint32_t w = 0; w + need <= ring_area::words && first == ~0u;) {
      uint32_t got = 0;
      uint64_t none = 0;
      while (got < need && ring_map->map[w + got].compare_exchange_strong(none, ~uint64_t{0}, std::memory_order_acquire, std::memory_order_relaxed)) ++got;
      if (got == need) {
        first = w * 64;
      } else {
        for (uint32_t i = 0; i < got; ++i) ring_map->map[w + i].store(0, std::memory_order_release);
        w += got + 1;
      }
    }
  }
  if (first == ~0u) return nullptr;
  const uint64_t off = region_rings_off + uint64_t{first} * 4096;
  if (!back(fd, off, uint64_t{pages} * 4096)) {
    free_ring(base + off, n);
    return nullptr;
  }
  std::memset(base + off, 0, size_t{pages} * 4096);
  return base + off;
}

void region::free_ring(uint8_t* p, size_t n) {
  if (!p) return;
  const auto pages = static_cast<uint32_t>((n + 4095) / 4096);
  const auto first = static_cast<uint32_t>((static_cast<uint64_t>(p - base) - region_rings_off) / 4096);
  if (pages <= 64) {
    const uint64_t run = pages == 64 ? ~uint64_t{0} : (uint64_t{1} << pages) - 1;
    ring_map->map[first / 64].fetch_and(~(run << first % 64), std::memory_order_release);
  } else {
    for (uint32_t i = 0; i < (pages + 63) / 64; ++i) ring_map->map[first / 64 + i].store(0, std::memory_order_release);
  }
}

}  // namespace icepath
