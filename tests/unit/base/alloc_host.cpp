// A C++ host program without a test framework: its malloc, free, operator new and delete must come from the same objects
// before and after icepath opens its private allocator. Exit status 0 when they do.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>

#include "base/alloc.hpp"

static std::string home(const char* symbol) {
  Dl_info i;
  void* p = dlsym(RTLD_DEFAULT, symbol);
  return p && dladdr(p, &i) ? i.dli_fname : "?";
}

int main() {
  const char* names[] = {"malloc", "free", "calloc", "realloc", "_Znwm", "_ZdlPv"};
  std::string before[6];
  for (int i = 0; i < 6; ++i) before[i] = home(names[i]);
  const bool mi = icepath::mem_init();
  icepath::mem_free(icepath::mem_alloc(100));
  int bad = 0;
  for (int i = 0; i < 6; ++i) {
    const std::string now = home(names[i]);
    if (now != before[i] || now.find("mimalloc") != std::string::npos) ++bad, printf("%s: %s -> %s\n", names[i], before[i].c_str(), now.c_str());
  }
  // The allocator in use, not only the symbol: libc's usable size of 24 bytes is 24, and the block comes back from free.
  void* a = malloc(24);
  free(a);
  void* b = malloc(24);
  if (a != b) ++bad, puts("malloc does not behave as libc's");
  free(b);
  if (!mi) puts("libmimalloc.so.2 is not installed: libc serves us");
  return bad;
}
