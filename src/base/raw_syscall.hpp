// System calls that go to the kernel and nowhere else: libc's wrappers have the names that preload/ interposes, `syscall`
// among them. Any thread, any signal handler; errno is not touched. Returns the kernel's value: negative is -errno.
#pragma once
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>

namespace icepath {

inline long raw_syscall6(long nr, long a, long b, long c, long d, long e, long f) {
#if defined(__x86_64__)
  long ret;
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  asm volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
  return ret;
#elif defined(__aarch64__)
  register long x8 asm("x8") = nr;
  register long x0 asm("x0") = a;
  register long x1 asm("x1") = b;
  register long x2 asm("x2") = c;
  register long x3 asm("x3") = d;
  register long x4 asm("x4") = e;
  register long x5 asm("x5") = f;
  asm volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
#else
  const int saved = errno;
  const long r = ::syscall(nr, a, b, c, d, e, f);
  const long ret = r == -1 ? -errno : r;
  errno = saved;
  return ret;
#endif
}

template <class T>
long raw_arg(T v) { return static_cast<long>(v); }
template <class T>
long raw_arg(T* v) { return reinterpret_cast<long>(v); }
inline long raw_arg(std::nullptr_t) { return 0; }

template <class... A>
long raw_syscall(long nr, A... args) {
  static_assert(sizeof...(A) <= 6);
  const long v[6] = {raw_arg(args)...};  // the missing ones are 0
  return raw_syscall6(nr, v[0], v[1], v[2], v[3], v[4], v[5]);
}

}  // namespace icepath
