// Bringing a call's arguments inside: the iovec array and the message header belong to the program and may lie at a bad address, so
// they are copied once (EFAULT, never a crash) and checked by the kernel's rules; the buffers they name stay the program's and are copied
// by the socket layer. Runs in the calling thread, on its stack; holds nothing afterwards.
#pragma once
#include <alloca.h>
#include <limits.h>
#include "base/usercopy.hpp"
#include "export.hpp"

namespace icepath {

constexpr size_t max_rw_count = 0x7ffff000;   // the kernel's MAX_RW_COUNT: no transfer is longer

// Copies n iovecs. 0, or -EFAULT, or -EINVAL for a length beyond SSIZE_MAX; lengths past max_rw_count in all are cut as the kernel does.
inline int import_iov(iovec* to, const iovec* from, size_t n, size_t* total) {
  if (n && copy_from_user(to, from, n * sizeof(iovec))) return -EFAULT;
  size_t sum = 0;
  for (size_t i = 0; i < n; ++i) {
    if (static_cast<ssize_t>(to[i].iov_len) < 0) return -EINVAL;
    if (to[i].iov_len > max_rw_count - sum) to[i].iov_len = max_rw_count - sum;
    sum += to[i].iov_len;
  }
  *total = sum;
  return 0;
}

// Room for an iovec array of the caller's length, in the caller's frame: short ones in place, long ones by alloca (16 KiB at most).
constexpr size_t few_iov = 8;
#define ICEPATH_IOV_ROOM(name, n)      \
  iovec name##_few[few_iov];           \
  iovec* const name = (n) <= few_iov ? name##_few : static_cast<iovec*>(alloca((n) * sizeof(iovec)))

}  // namespace icepath
