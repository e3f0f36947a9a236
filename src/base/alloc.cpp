// See alloc.hpp.
#include "base/alloc.hpp"

#include <dlfcn.h>
#include <stdlib.h>

#include <atomic>

#include "base/clock.hpp"

namespace icepath {

namespace {

struct ops {
  void* (*alloc)(size_t);
  void* (*calloc)(size_t, size_t);
  void* (*aligned)(size_t, size_t);
  void (*free)(void*);
};

void* libc_aligned(size_t n, size_t align) {
  void* p = nullptr;
  return ::posix_memalign(&p, align < sizeof(void*) ? sizeof(void*) : align, n) ? nullptr : p;
}

ops mi;
constexpr ops libc{::malloc, ::calloc, libc_aligned, ::free};
std::atomic<const ops*> chosen{nullptr};  // release by the one that chose, acquire by users
std::atomic<bool> choosing{false};

const ops* choose() {
  void* h = ::dlopen("libmimalloc.so.2", RTLD_NOW | RTLD_LOCAL);
  if (!h) return &libc;
  mi.alloc = reinterpret_cast<void* (*)(size_t)>(::dlsym(h, "mi_malloc"));
  mi.calloc = reinterpret_cast<void* (*)(size_t, size_t)>(::dlsym(h, "mi_calloc"));
  mi.aligned = reinterpret_cast<void* (*)(size_t, size_t)>(::dlsym(h, "mi_malloc_aligned"));
  mi.free = reinterpret_cast<void (*)(void*)>(::dlsym(h, "mi_free"));
  if (mi.alloc && mi.calloc && mi.aligned && mi.free) return &mi;
  ::dlclose(h);
  return &libc;
}

const ops& use() {
  const ops* o = chosen.load(std::memory_order_acquire);
  if (ICEPATH_LIKELY(o != nullptr)) return *o;
  if (!choosing.exchange(true, std::memory_order_acq_rel)) {
    o = choose();
    chosen.store(o, std::memory_order_release);
    return *o;
  }
  while (!(o = chosen.load(std::memory_order_acquire))) cpu_relax();  // set-up: another thread opens the library
  return *o;
}

}  // namespace

bool mem_init() { return &use() == &mi; }
void* mem_alloc(size_t n) { return use().alloc(n); }
void* mem_zalloc(size_t n) { return use().calloc(1, n); }
void* mem_aligned(size_t n, size_t align) { return use().aligned(n, align); }
void mem_free(void* p) {
  if (p) use().free(p);
}

}  // namespace icepath
