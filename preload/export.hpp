// What every wrapper shares: the export mark, the one question "is this fd ours", and the way results become errno.
//
// One shape: look the fd up (one load), branch, tail call libc when it is not ours; otherwise call the socket layer, which answers bytes or
// -errno, and finish() turns that into libc's convention. errno is written here and nowhere below; it is preserved on success, because the
// socket layer may have made kernel calls of its own on the way.
// noexcept stands exactly where glibc has it (the compiler checks against libc's headers): the others are cancellation points, and
// the unwinder passes through these frames.
#pragma once
#include <cerrno>
#include "base/libc.hpp"
#include "next.hpp"
#include "sock/socket.hpp"

#define ICEPATH_EXPORT extern "C" [[gnu::visibility("default")]]
#define ICEPATH_ALIAS(of) __attribute__((alias(#of), visibility("default")))

namespace icepath {

// Set while this thread runs a vfork child on the parent's memory (vfork.cpp): descriptors then belong to another process, so
// calls that change them touch the kernel only.
extern "C" [[gnu::tls_model("initial-exec"), gnu::visibility("hidden")]] constinit thread_local int icepath_in_vfork;

inline socket* ours(int fd) {
  file* const f = fd_lookup(fd);
  if (ICEPATH_LIKELY(f == nullptr)) return nullptr;
  return as_socket(f);
}
inline bool active() { return fdtable_limit != 0; }

// errno as it was when the wrapper began.
class kept_errno {
 public:
  ssize_t finish(ssize_t r) const {
    if (ICEPATH_UNLIKELY(r < 0)) { errno = static_cast<int>(-r); return -1; }
    errno = saved_;
    return r;
  }
  ssize_t finish_send(ssize_t r, int flags) const;   // as finish, and SIGPIPE by the kernel's rule
  int finish_int(long r) const { return static_cast<int>(finish(r)); }
  void restore() const { errno = saved_; }

 private:
  int saved_ = errno;
};

void before_sandbox();      // a seccomp filter is about to be set
void process_ends();                // exit paths: unsent data leaves, the statistics line is printed; once
int demote_for(int fd, const char* reason);  // fd is about to be used in a way that has no native form: 0, or -EAGAIN. Not ours: 0
void unwatch(int fd, const char* reason);    // from now on the kernel's alone: libc will use and close fd behind our back

}  // namespace icepath
