// The runtime directory: who may use it, and which process holds which slot. Set-up paths only; any thread (the kernel's file
// operations are the serialisation, a lost race is noticed and repeated).
//
// A slot is held by an OFD write lock. A file whose lock is free belonged to a process that is gone. It is never written again, since
// others may still have it mapped: it is unlinked, under the lock, and a new one is made in its place. Whoever locked a file
// checks that the name still leads to it: between open and lock somebody may have cleared it away.
#include "skb/region_dir.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/fd.hpp"
#include "base/log.hpp"

namespace icepath {

namespace {

char dir_path[192];
std::atomic<int> dir_path_state{0};   // 0 not made, 1 being made, 2 ready; release by the maker
std::atomic<int> dir_fd{-1};

void close_fd(int fd) { (void)raw_syscall(SYS_close, fd); }

// One directory on the way: made when missing, ours alone, no symlink. fd or -errno, with the reason logged.
int private_dir(const char* path) {
  const long made = raw_syscall(SYS_mkdirat, AT_FDCWD, path, 0700);
  if (made == 0) (void)raw_syscall(SYS_fchmodat, AT_FDCWD, path, 0700);   // whatever the umask was
  if (made < 0 && made != -EEXIST) {
    log_error("no fast path: cannot make %s: %s", path, strerrordesc_np(static_cast<int>(-made)));
    return static_cast<int>(made);
  }
  const long fd = raw_syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  if (fd < 0) {
    log_error("no fast path: %s is not a directory of ours: %s", path, strerrordesc_np(static_cast<int>(-fd)));
    return static_cast<int>(fd);
  }
  struct stat st;
  const bool known = ::fstat(static_cast<int>(fd), &st) == 0;
  if (!known || st.st_uid != ::geteuid() || (st.st_mode & 0077)) {
    log_error("no fast path: %s must belong to uid %u with mode 0700 (it has uid %u, mode %u%u%u)", path, ::geteuid(), known ? st.st_uid : 0,
              st.st_mode >> 6 & 7, st.st_mode >> 3 & 7, st.st_mode & 7);
    close_fd(static_cast<int>(fd));
    return -EPERM;
  }
  return static_cast<int>(fd);
}

// The network namespace's name: its inode, or where /proc is not mounted the kernel's cookie of it. false: unknown, and then
// two processes could believe to share a loopback that they do not share.
bool net_namespace(char* to, size_t room) {
  struct stat st;
  if (::stat("/proc/self/ns/net", &st) == 0) return format(to, room, "net-%lu", static_cast<unsigned long>(st.st_ino)) > 0;
  const long s = raw_syscall(SYS_socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (s < 0) return false;
  uint64_t cookie = 0;
  socklen_t n = sizeof cookie;
  constexpr int so_netns_cookie = 71;
  const long r = raw_syscall(SYS_getsockopt, s, SOL_SOCKET, so_netns_cookie, &cookie, &n);
  close_fd(static_cast<int>(s));
  return r == 0 && format(to, room, "netns-cookie-%lx", static_cast<unsigned long>(cookie)) > 0;
}

// The same for every process of the user, whatever its environment: a service and a shell must find each other. ICEPATH_RUNTIME_DIR is
// for those who want a group of their own.
void base_path(char* to, size_t room) {
  const char* x = ::secure_getenv("ICEPATH_RUNTIME_DIR");
  if (x && *x == '/' && std::strlen(x) < room - 16) format(to, room, "%s/icepath", x);
  else format(to, room, "/dev/shm/icepath-%u", ::geteuid());
}

bool is_slot_file(const char* name, uint32_t& slot, bool& region_file) {
  if (*name++ != 'p' || *name < '0' || *name > '9') return false;
  slot = 0;
  for (; *name >= '0' && *name <= '9'; ++name) {
    slot = slot * 10 + static_cast<uint32_t>(*name - '0');
    if (slot >= max_processes) return false;
  }
  region_file = !std::strcmp(name, ".mem");
  return *name == '.';
}

// Every name of a slot's file in the directory. The names are read first and acted on afterwards, in rounds, since unlinking moves them.
template <class F>
void each_slot_file(int dir, F f) {
  const long d = raw_syscall(SYS_openat, dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (d < 0) return;
  alignas(8) char buf[4096];
  long n;
  while ((n = raw_syscall(SYS_getdents64, d, buf, sizeof buf)) > 0)
    for (long at = 0; at < n;) {
      const auto* e = reinterpret_cast<const dirent64*>(buf + at);
      at += e->d_reclen;
      uint32_t slot;
      bool region_file;
      if (is_slot_file(e->d_name, slot, region_file)) f(e->d_name, slot, region_file);
    }
  close_fd(static_cast<int>(d));
}

bool try_lock(int fd) {
  struct flock l = {};
  l.l_type = F_WRLCK;
  l.l_whence = SEEK_SET;
  return raw_syscall(SYS_fcntl, fd, F_OFD_SETLK, &l) == 0;
}

bool name_leads_to(int dir, uint32_t slot, int fd) {
  char name[32];
  format(name, sizeof name, "p%u.mem", slot);
  struct stat a, b;
  return ::fstat(fd, &a) == 0 && ::fstatat(dir, name, &b, AT_SYMLINK_NOFOLLOW) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

}  // namespace

const char* runtime_dir_path() {
  int s = dir_path_state.load(std::memory_order_acquire);
  if (s == 0 && dir_path_state.compare_exchange_strong(s, 1, std::memory_order_acq_rel)) {
    char base[128], ns[48];
    base_path(base, sizeof base);
    if (net_namespace(ns, sizeof ns)) format(dir_path, sizeof dir_path, "%s/%s", base, ns);
    else dir_path[0] = '\0';   // region_create refuses
    dir_path_state.store(2, std::memory_order_release);
  }
  while (dir_path_state.load(std::memory_order_acquire) != 2) {
  }
  return dir_path;
}

result<int> runtime_dir_fd() {
  int fd = dir_fd.load(std::memory_order_acquire);
  if (fd >= 0) return fd;
  const char* path = runtime_dir_path();
  if (!*path) return result<int>::error(ENOTSUP);
  char parent[192];
  format(parent, sizeof parent, "%.*s", static_cast<int>(std::strrchr(path, '/') - path), path);
  fd = private_dir(parent);
  if (fd < 0) return result<int>::error(-fd);
  close_fd(fd);
  fd = private_dir(path);
  if (fd < 0) return result<int>::error(-fd);
  fd = fd_move_high(fd);
  int none = -1;
  if (!dir_fd.compare_exchange_strong(none, fd, std::memory_order_acq_rel)) {  // another thread was first
    close_fd(fd);
    fd = none;
  }
  return fd;
}

void runtime_dir_forget() {
  const int fd = dir_fd.exchange(-1, std::memory_order_acq_rel);
  if (fd >= 0) close_fd(fd);
}

int region_open_file(int dir, uint32_t slot, int flags) {
  char name[32];
  format(name, sizeof name, "p%u.mem", slot);
  return static_cast<int>(raw_syscall(SYS_openat, dir, name, flags | O_NOFOLLOW | O_CLOEXEC, 0600));
}

bool region_file_locked(int fd) {
  struct flock l = {};
  l.l_type = F_WRLCK;
  l.l_whence = SEEK_SET;
  return raw_syscall(SYS_fcntl, fd, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
}

void region_unlink_slot(int dir, uint32_t slot) {
  each_slot_file(dir, [&](const char* name, uint32_t s, bool region_file) {
    if (s == slot && !region_file) (void)raw_syscall(SYS_unlinkat, dir, name, 0);
  });
  char name[32];
  format(name, sizeof name, "p%u.mem", slot);
  (void)raw_syscall(SYS_unlinkat, dir, name, 0);  // last: until then nobody else can take the slot
}

result<int> region_take_slot(int dir, uint32_t& slot) {
  int last = ENOSPC;
  for (slot = 0; slot < max_processes; ++slot) {
    for (int tries = 0; tries < 8; ++tries) {
      const int fd = region_open_file(dir, slot, O_RDWR | O_CREAT);
      if (fd < 0) {
        last = -fd;
        break;
      }
      if (!try_lock(fd)) {
        close_fd(fd);
        break;  // somebody's
      }
      struct stat st;
      const bool there = name_leads_to(dir, slot, fd) && ::fstat(fd, &st) == 0;
      if (there && st.st_size == 0) return fd_move_high(fd);  // the lock belongs to the description and moves with it
      if (there) region_unlink_slot(dir, slot);  // a dead process's
      close_fd(fd);
    }
    if (last == EMFILE || last == ENFILE || last == EACCES) break;
  }
  return result<int>::error(last);
}

unsigned region_reclaim_dead() {
  const auto dir = runtime_dir_fd();
  if (!dir.ok()) return 0;
  uint8_t present[max_processes / 8] = {};
  each_slot_file(*dir, [&](const char*, uint32_t slot, bool region_file) {
    if (region_file) present[slot / 8] |= static_cast<uint8_t>(1 << slot % 8);
  });
  unsigned n = 0;
  for (uint32_t slot = 0; slot < max_processes; ++slot) {
    if (!(present[slot / 8] >> slot % 8 & 1)) continue;
    const int fd = region_open_file(*dir, slot, O_RDWR);
    if (fd < 0) continue;
    struct stat st;
    if (try_lock(fd) && name_leads_to(*dir, slot, fd) && ::fstat(fd, &st) == 0 && st.st_size != 0) {
      region_unlink_slot(*dir, slot);
      ++n;
    }
    close_fd(fd);
  }
  return n;
}

}  // namespace icepath
