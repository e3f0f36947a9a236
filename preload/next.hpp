// next::read is the read that our read stands in front of: the next definition in the dynamic linker's search order, libc's unless another
// preloaded library is there. Each is a function pointer that begins at its own resolver, so a call is one indirect jump, needs no
// set-up, and works before our constructor has run. Two threads may resolve at once: they store the same value.
// A name that the libc of this machine does not have falls back to the raw system call when it is one, else to ENOSYS.
#pragma once
#include <dlfcn.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <ctime>
#include <type_traits>
#include "base/raw_syscall.hpp"

struct aiocb;
struct aiocb64;

namespace icepath {

template <size_t N>
struct symbol_name {
  char text[N];
  constexpr symbol_name(const char (&s)[N]) { std::copy(s, s + N, text); }
};

// A system call in libc's convention, without libc.
inline long system_call(long nr, const long (&w)[7]) {
  const long r = raw_syscall6(nr, w[0], w[1], w[2], w[3], w[4], w[5]);
  if (r < 0 && r > -4096) { errno = static_cast<int>(-r); return -1; }
  return r;
}

// Where dlsym looks. AddressSanitizer's runtime is behind us when we are built with it, and is passed by: asan.cpp says why.
inline void* next_scope() {
#ifdef __SANITIZE_ADDRESS__
  static constinit std::atomic<void*> libc{nullptr};
  void* h = libc.load(std::memory_order_relaxed);
  if (!h && (h = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD))) libc.store(h, std::memory_order_relaxed);   // in any thread the same
  return h ? h : RTLD_NEXT;
#else
  return RTLD_NEXT;
#endif
}

template <symbol_name Name, long Nr, class Sig>
struct next_fn;

template <symbol_name Name, long Nr, class R, class... A>
struct next_fn<Name, Nr, R(A...)> {
  using fn = R (*)(A...);
  std::atomic<fn> p{&first};
  R operator()(A... a) const { return p.load(std::memory_order_relaxed)(a...); }

  static constinit next_fn self;
  static void resolve() {
    void* const s = dlsym(next_scope(), Name.text);
    fn f = nullptr;
    __builtin_memcpy(&f, &s, sizeof f);
    self.p.store(f ? f : &absent, std::memory_order_relaxed);
  }

 private:
  static R first(A... a) {
    resolve();
    return self(a...);
  }
  template <class T>
  static long word(T v) {
    if constexpr (std::is_pointer_v<T>) return reinterpret_cast<long>(v);
    else if constexpr (std::is_integral_v<T>) return static_cast<long>(v);
    else return 0;
  }
  static R absent(A... a) {
    if constexpr (Nr >= 0 && sizeof...(A) <= 6) {
      const long w[7] = {word(a)...};
      return (R)system_call(Nr, w);
    } else {
      (..., (void)a);
      errno = ENOSYS;
      if constexpr (!std::is_void_v<R>) return (R)-1;
    }
  }
};
template <symbol_name Name, long Nr, class R, class... A>
constinit next_fn<Name, Nr, R(A...)> next_fn<Name, Nr, R(A...)>::self{};

}  // namespace icepath

namespace icepath::next {

using sighandler = void (*)(int);
constexpr long no_nr = -1;
#define ICEPATH_NEXT(name, nr, ...) inline constexpr auto& name = next_fn<#name, nr, __VA_ARGS__>::self
#include "next_list.hpp"
#undef ICEPATH_NEXT

void resolve_all();

}  // namespace icepath::next
