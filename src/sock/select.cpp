// select, pselect: turned into the poll set of the same call and back.
// Runs in the calling thread. The kernel's rules: n is cut at its own table size, so bits of numbers above any open descriptor are
// ignored; fds at and above FD_SETSIZE are read when n says so; a closed descriptor in a set is EBADF. Sets are written only on success.
#include <fcntl.h>
#include <sys/mman.h>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include "base/clock.hpp"
#include "base/raw_syscall.hpp"
#include "base/usercopy.hpp"
#include "sock/epoll.hpp"
#include "sock/poll_set.hpp"
#include "stack/stack.hpp"

namespace icepath {
namespace {

constexpr short in_bits = POLLIN | POLLRDNORM | POLLRDBAND, out_bits = POLLOUT | POLLWRNORM | POLLWRBAND;
constexpr short in_set = in_bits | POLLHUP | POLLERR | POLLNVAL, out_set = out_bits | POLLERR | POLLNVAL, ex_set = POLLPRI | POLLNVAL;
constexpr int word_bits = 64;
constexpr int nobody = INT_MIN;         // poll ignores it; and it is the complement of no descriptor

int kernel_select(int n, fd_set* r, fd_set* w, fd_set* e, nsec timeout, const sigset_t* mask) {
  const timespec ts = to_timespec(timeout);
  const int rc = real::pselect(n, r, w, e, timeout == ~nsec{0} ? nullptr : &ts, mask);
  return rc < 0 ? -errno : rc;
}

uint64_t word_of(const fd_set* s, int at, bool& bad) {
  uint64_t v = 0;
  if (s && copy_from_user(&v, reinterpret_cast<const uint64_t*>(s) + at, sizeof v)) bad = true;
  return v;
}

// Would the kernel itself call a descriptor of these sets bad? It knows its table size; asked with copies and no wait.
bool kernel_says_bad(int n, const fd_set* const set[3]) {
  const size_t bytes = static_cast<size_t>((n + word_bits - 1) / word_bits) * 8;
  const size_t room = bytes < sizeof(fd_set) ? sizeof(fd_set) : bytes;
  void* const m = mmap(nullptr, 3 * room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (m == MAP_FAILED) return true;
  fd_set* own[3] = {};
  for (int i = 0; i < 3; ++i) {
    if (!set[i]) continue;
    own[i] = reinterpret_cast<fd_set*>(static_cast<char*>(m) + static_cast<size_t>(i) * room);
    copy_from_user(own[i], set[i], bytes);
  }
  const bool bad = kernel_select(n, own[0], own[1], own[2], 0, nullptr) == -EBADF;
  munmap(m, 3 * room);
  return bad;
}

// -EBADF, 1: entries were dropped that the kernel would not have read, 0: all is open.
int drop_closed(poll_set& p, int n, const fd_set* const sets[3]) {
  int dropped = 0;
  for (unsigned i = 0; i < p.n; ++i) {
    if (!(p.fds[i].revents & POLLNVAL)) continue;
    if (!dropped && kernel_says_bad(n, sets)) return -EBADF;
    p.fds[i].fd = nobody;
    dropped = 1;
  }
  for (unsigned i = 0; dropped && i < p.n; ++i) p.fds[i].revents = 0;
  return dropped;
}

// The size of the kernel's descriptor table, to which it cuts n: what lies behind may not even belong to the sets.
int kernel_table_size() {
  char buf[2048];
  const int fd = static_cast<int>(raw_syscall(SYS_openat, AT_FDCWD, "/proc/self/status", O_RDONLY | O_CLOEXEC));
  if (fd < 0) return FD_SETSIZE;
  const long got = raw_syscall(SYS_read, fd, buf, sizeof buf - 1);
  real::close(fd);
  buf[got > 0 ? got : 0] = 0;
  const char* const at = std::strstr(buf, "FDSize:");
  const int size = at ? std::atoi(at + 7) : 0;
  return size > 0 ? size : FD_SETSIZE;
}

}  // namespace

int mux_select(int n, fd_set* r, fd_set* w, fd_set* e, nsec timeout, const sigset_t* mask) {
  if (n <= 0 || fdtable_limit == 0) return kernel_select(n, r, w, e, timeout, mask);
  int top = n > fdtable_size ? fdtable_size : n, words = (top + word_bits - 1) / word_bits;
  const fd_set* const sets[3] = {r, w, e};
  size_t count = 0, nfast = 0;
  bool bad = false;
  const auto bits_at = [&](int i, uint64_t v[3]) {
    for (int k = 0; k < 3; ++k) v[k] = word_of(sets[k], i, bad);
    const int left = top - i * word_bits;
    uint64_t any = v[0] | v[1] | v[2];
    if (left < word_bits) any &= (uint64_t{1} << left) - 1;
    return any;
  };
  uint64_t v[3];
  const auto count_all = [&] {
    count = nfast = 0;
    for (int i = 0; i < words && !bad; ++i)
      for (uint64_t any = bits_at(i, v); any && !bad; any &= any - 1) {
        ++count;
        nfast += poll_concerns(fd_lookup(i * word_bits + __builtin_ctzll(any)));
      }
  };
  count_all();
  if (nfast && n > FD_SETSIZE && !bad) {                // programs pass getdtablesize() with sets of FD_SETSIZE bits
    const int size = kernel_table_size();
    if (size < top) top = size;
    words = (top + word_bits - 1) / word_bits;
    count_all();
  }
  if (nfast == 0 || bad) return kernel_select(n, r, w, e, timeout, mask);

  pollfd small[poll_small + poll_max_wake];
  poll_fast small_fast[poll_small];
  poll_memory mem;
  mem.fds = small;
  mem.fast = small_fast;
  if (count > poll_small && !mem.get(count, nfast)) return -ENOMEM;
  poll_set p{mem.fds, 0, mem.fast, 0, mask};
  for (int i = 0; i < words; ++i)
    for (uint64_t any = bits_at(i, v); any && p.n < count; any &= any - 1) {
      const int b = __builtin_ctzll(any), fd = i * word_bits + b;
      const short events = static_cast<short>(((v[0] >> b & 1) ? in_bits : 0) | ((v[1] >> b & 1) ? out_bits : 0) | ((v[2] >> b & 1) ? POLLPRI : 0));
      file* const f = fd_lookup(fd);
      if (p.nfast < nfast && poll_concerns(f)) p.fast[p.nfast++] = {as_socket(f), as_epoll(f), p.n, events, 0, nullptr, -1};
      mem.fds[p.n++] = {fd, events, 0};
    }

  // The numbers are needed again when the entry is not asked of the kernel: poll_set keeps them as complements.
  const nsec no_wait = 0;
  int total = 0;
  const nsec began = timeout && timeout != ~nsec{0} ? clock_now() : 0;
  for (nsec left = timeout;;) {
    const int ready = poll_set_wait(p, left);
    if (ready < 0) { mem.put(); return ready; }
    if (const int r2 = drop_closed(p, n, sets)) {       // a closed descriptor, or one beyond what the kernel reads at all
      if (r2 < 0) { mem.put(); return r2; }
      continue;
    }
    total = 0;
    for (unsigned i = 0; i < p.n; ++i) {
      const short ev = mem.fds[i].revents;
      if (!ev) continue;
      const int fd = mem.fds[i].fd < 0 ? ~mem.fds[i].fd : mem.fds[i].fd;
      const int at = fd / word_bits;
      const uint64_t bit = uint64_t{1} << fd % word_bits;
      total += ((ev & in_set) && (word_of(r, at, bad) & bit)) + ((ev & out_set) && (word_of(w, at, bad) & bit)) +
               ((ev & ex_set) && (word_of(e, at, bad) & bit));
    }
    if (total || !ready || left == no_wait) break;
    // Ready for what nobody asked (POLLHUP of a descriptor that stands in the write set only): it would end every poll at once, so look
    // again a little later.
    const timespec pause{0, 1000000};
    if (real::ppoll(nullptr, 0, &pause, mask) < 0) { mem.put(); return -errno; }
    if (timeout != ~nsec{0}) {
      const nsec now = clock_now();
      if (now - began >= timeout) { total = 0; break; }
      left = timeout - (now - began);
    }
    for (unsigned i = 0; i < p.n; ++i) mem.fds[i].revents = 0;
  }

  // Results: cleared words first, then the bits that are ready.
  fd_set* const out[3] = {r, w, e};
  const short which[3] = {in_set, out_set, ex_set};
  for (int k = 0; k < 3; ++k) {
    if (!out[k]) continue;
    uint64_t* const base = reinterpret_cast<uint64_t*>(out[k]);
    unsigned i = 0;
    for (int at = 0; at < words; ++at) {
      const uint64_t asked = word_of(out[k], at, bad);
      uint64_t res = 0;
      for (; i < p.n; ++i) {
        const int fd = mem.fds[i].fd == nobody ? -1 : mem.fds[i].fd < 0 ? ~mem.fds[i].fd : mem.fds[i].fd;
        if (fd >= 0 && fd / word_bits > at) break;
        if (fd >= 0 && (mem.fds[i].revents & which[k])) res |= uint64_t{1} << fd % word_bits;
      }
      res &= asked;
      if (copy_to_user(base + at, &res, sizeof res)) { mem.put(); return -EFAULT; }
    }
  }
  mem.put();
  return total;
}

}  // namespace icepath
