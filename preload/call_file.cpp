// Transfers between files and sockets (sendfile, splice) and the asynchronous calls.
//
// sendfile on a connection that is still with the kernel is the kernel's own. Onto the fast lane the file is read into a bounded
// buffer and sent from there, with the kernel's return values: bytes that entered the socket, and the offset (or the file's position)
// moved by exactly those. What cannot be done so (a source without a position) and splice demote the connection; so do the aio
// calls, because glibc's own threads carry them out with system calls we do not see.
#include <aio.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <bit>
#include "import.hpp"

using namespace icepath;

namespace {

using icepath::socket;

// Transfer buffers: a few large ones that are touched only when used, found by one CAS. A thread that is cancelled in
// the middle of a transfer keeps its buffer; when all are gone the small one in the frame serves.
class transfer_buffer {
 public:
  transfer_buffer() {
    uint32_t free = free_.load(std::memory_order_relaxed);
    while (free) {
      const uint32_t bit = free & -free;
      // acquire: after the release of the former user
      if (free_.compare_exchange_weak(free, free & ~bit, std::memory_order_acquire)) { bit_ = bit; return; }
    }
  }
  ~transfer_buffer() { if (bit_) free_.fetch_or(bit_, std::memory_order_release); }
  transfer_buffer(const transfer_buffer&) = delete;
  transfer_buffer& operator=(const transfer_buffer&) = delete;
  char* data() { return bit_ ? pool_[std::countr_zero(bit_)] : small_; }
  size_t size() const { return bit_ ? sizeof pool_[0] : sizeof small_; }

 private:
  static constexpr unsigned count = 16;
  static constinit inline std::atomic<uint32_t> free_{(1u << count) - 1};
  alignas(4096) static constinit inline char pool_[count][128 * 1024]{};
  uint32_t bit_ = 0;
  char small_[4096];
};

// From in at `at` to the fast lane; returns bytes sent or -errno when none were.
ssize_t copy_to_lane(socket* s, int out, int in, off_t at, size_t count, bool* raise) {
  struct stat st;
  const bool regular = fstat(in, &st) == 0 && S_ISREG(st.st_mode);
  if (regular) count = at >= st.st_size ? 0 : std::min<size_t>(count, st.st_size - at);
  transfer_buffer b;
  size_t sent = 0;
  while (sent < count) {
    const ssize_t got = pread(in, b.data(), std::min(b.size(), count - sent), at + sent);
    if (got < 0) return sent ? static_cast<ssize_t>(sent) : -errno;
    if (got == 0) break;
    const bool more = regular && sent + got < count;
    const iovec v{b.data(), static_cast<size_t>(got)};
    sock_msg m{&v, 1, more ? MSG_MORE : 0, nullptr, nullptr, 0, nullptr, nullptr};
    const ssize_t r = sock_sendmsg(s, out, m);
    if (r < 0) {
      *raise = r == -EPIPE;
      return sent ? static_cast<ssize_t>(sent) : r;
    }
    sent += r;
    if (r < got) break;
  }
  return sent;
}

ssize_t sendfile_to(socket* s, int out, int in, off_t* offset, size_t count) {
  const kept_errno e;
  if (ours(in)) {
    const int d = demote_for(in, "sendfile source");
    if (d < 0) return e.finish(d);
  }
  if (sock_plain_tx_begin(s, out)) {                   // still the kernel's connection
    ssize_t r = next::sendfile(out, in, offset, count);
    if (r < 0) r = -errno;
    sock_plain_tx_end(s, r, count);
    return e.finish(r);
  }
  off_t at = 0;
  if (offset && copy_from_user(&at, offset, sizeof at)) return e.finish(-EFAULT);
  const off_t here = lseek(in, 0, SEEK_CUR);
  const int flags = next::fcntl(in, F_GETFL, 0);
  // What is wrong with the arguments, or has no position to read at, is the kernel's to answer.
  if (here < 0 || at < 0 || flags < 0 || (flags & O_ACCMODE) == O_WRONLY) {
    const int d = demote_for(out, "sendfile from a stream");
    if (d < 0) return e.finish(d);
    return next::sendfile(out, in, offset, count);
  }
  if (!offset) at = here;
  bool raise = false;
  const ssize_t r = copy_to_lane(s, out, in, at, std::min(count, max_rw_count), &raise);
  if (raise) e.finish_send(-EPIPE, 0);
  if (r > 0) {
    at += r;
    if (!offset) lseek(in, at, SEEK_SET);
    else if (copy_to_user(offset, &at, sizeof at)) return e.finish(-EFAULT);
  }
  return e.finish(r == -EPIPE_RAISED ? -EPIPE : r);
}

int demote_both(int a, int b, const char* reason) {
  const int r = demote_for(a, reason);
  return r < 0 ? r : demote_for(b, reason);
}

}  // namespace

ICEPATH_EXPORT ssize_t sendfile(int out, int in, off_t* offset, size_t count) noexcept {
  auto* const s = ours(out);
  if (ICEPATH_LIKELY(!s)) {
    if (ICEPATH_UNLIKELY(ours(in) != nullptr)) {
      const kept_errno e;
      const int d = demote_for(in, "sendfile source");
      if (d < 0) return e.finish(d);
    }
    return next::sendfile(out, in, offset, count);
  }
  return sendfile_to(s, out, in, offset, count);
}
ICEPATH_EXPORT ssize_t sendfile64(int, int, off64_t*, size_t) noexcept ICEPATH_ALIAS(sendfile);

ICEPATH_EXPORT ssize_t splice(int in, off64_t* in_at, int out, off64_t* out_at, size_t n, unsigned flags) {
  if (ICEPATH_UNLIKELY(ours(in) || ours(out))) {
    const kept_errno e;
    const int d = demote_both(in, out, "splice");
    if (d < 0) return e.finish(d);
    e.restore();
  }
  return next::splice(in, in_at, out, out_at, n, flags);
}

// The control block may lie at a bad address; libc would crash on it too, so it is read as libc reads it.
ICEPATH_EXPORT int aio_read(aiocb* cb) noexcept {
  unwatch(cb->aio_fildes, "aio");
  return next::aio_read(cb);
}
ICEPATH_EXPORT int aio_read64(aiocb64*) noexcept ICEPATH_ALIAS(aio_read);

ICEPATH_EXPORT int aio_write(aiocb* cb) noexcept {
  unwatch(cb->aio_fildes, "aio");
  return next::aio_write(cb);
}
ICEPATH_EXPORT int aio_write64(aiocb64*) noexcept ICEPATH_ALIAS(aio_write);

ICEPATH_EXPORT int lio_listio(int mode, aiocb* const* list, int n, sigevent* ev) noexcept {
  for (int i = 0; i < n; ++i)
    if (list[i]) unwatch(list[i]->aio_fildes, "aio");
  return next::lio_listio(mode, list, n, ev);
}
ICEPATH_EXPORT int lio_listio64(int, aiocb64* const*, int, sigevent*) noexcept ICEPATH_ALIAS(lio_listio);
