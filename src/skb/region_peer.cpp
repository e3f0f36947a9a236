// Somebody else's region. It may be of another version, half made, dead, or written by a process that means harm: everything is
// checked before it is mapped for use, against constants of our own, and nothing of its header is believed afterwards. Any thread.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/raw_syscall.hpp"
#include "skb/region.hpp"
#include "skb/region_dir.hpp"

namespace icepath {

namespace {

void close_fd(int fd) { (void)raw_syscall(SYS_close, fd); }

bool header_is_valid(const region_header* h, uint64_t bytes, uint32_t slot, uint64_t cookie) {
  return h->ready.load(std::memory_order_acquire) == 1 &&  // partner: the release in region_create
         h->magic == region_magic && h->version == region_version && h->header_bytes == sizeof(region_header) && h->bytes == bytes &&
         h->slot == slot && h->cookie != 0 && (cookie == 0 || h->cookie == cookie) && h->rows_off == region_rows_off &&
         h->functions_off == region_functions_off && h->function_stride == region_function_stride && h->rings_off == region_rings_off &&
         h->frames_off == region_frames_off && h->nr_frames == (bytes - region_frames_off) >> frame_shift;
}

}  // namespace

result<region_peer> region_open_peer(uint32_t slot, uint64_t cookie, bool read_only) {
  using res = result<region_peer>;
  if (slot >= max_processes) return res::error(EINVAL);
  const auto dir = runtime_dir_fd();
  if (!dir.ok()) return res::error(dir.err());
  const int fd = region_open_file(*dir, slot, read_only ? O_RDONLY : O_RDWR);
  if (fd < 0) return res::error(fd == -ENOENT ? ESRCH : -fd);
  struct stat st;
  int e = 0;
  void* m = MAP_FAILED;
  uint64_t bytes = 0;
  if (::fstat(fd, &st)) e = EIO;
  else if (!S_ISREG(st.st_mode) || st.st_uid != ::geteuid()) e = EPERM;
  else if (!region_file_locked(fd)) e = ESRCH;
  else {
    bytes = static_cast<uint64_t>(st.st_size);
    // Not laid out yet looks like nobody there. The header is inside, so reading it cannot fault.
    if (bytes <= region_frames_off || bytes > region_max_bytes || bytes % 4096) e = bytes == 0 ? ESRCH : EPROTO;
    else if ((m = ::mmap(nullptr, bytes, read_only ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0)) == MAP_FAILED) e = ENOMEM;
  }
  close_fd(fd);
  if (e) return res::error(e);
  const auto* h = static_cast<const region_header*>(m);
  if (!header_is_valid(h, bytes, slot, cookie)) {
    // An incarnation that is not meant, or one that is just coming or going, is nobody; anything else is not a region of ours.
    const bool gone = h->ready.load(std::memory_order_acquire) != 1 || (cookie && h->cookie != cookie);
    ::munmap(m, bytes);
    return res::error(gone ? ESRCH : EPROTO);
  }
  region_peer p;
  p.base = static_cast<uint8_t*>(m);
  p.bytes = bytes;
  p.slot = slot;
  p.cookie = h->cookie;
  return p;
}

void region_close_peer(region_peer& p) {
  if (p.base) ::munmap(p.base, p.bytes);
  p = region_peer{};
}

bool region_alive(uint32_t slot, uint64_t cookie) {
  if (slot >= max_processes) return false;
  const auto dir = runtime_dir_fd();
  if (!dir.ok()) return false;
  const int fd = region_open_file(*dir, slot, O_RDONLY);
  if (fd < 0) return false;
  bool alive = region_file_locked(fd);
  uint64_t c = 0;
  if (alive && cookie) alive = raw_syscall(SYS_pread64, fd, &c, sizeof c, static_cast<long>(offsetof(region_header, cookie))) == sizeof c && c == cookie;
  close_fd(fd);
  return alive;
}

}  // namespace icepath
