// File descriptors of our own inside somebody else's program. Any thread; the kernel serialises.
#pragma once
#include <fcntl.h>
#include <sys/resource.h>

#include "base/raw_syscall.hpp"

namespace icepath {

// Moves fd up, out of the low numbers that programs count, compare and hand to select(); close-on-exec. Takes fd over and
// returns the new number, or fd itself when there is no room above. Not higher than that: the kernel copies its table of descriptors up to the
// highest one at every fork.
inline int fd_move_high(int fd) {
  if (fd < 0) return fd;
  rlimit l;
  const rlim_t limit = ::getrlimit(RLIMIT_NOFILE, &l) == 0 ? l.rlim_cur : 1024;
  const rlim_t least = limit > 700 ? 600 : limit * 9 / 10;
  if (static_cast<rlim_t>(fd) >= least) return fd;
  const long high = raw_syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, static_cast<long>(least));
  if (high < 0) return fd;
  (void)raw_syscall(SYS_close, fd);
  return static_cast<int>(high);
}

}  // namespace icepath
