// A program with an error that only an instrumented libicepath.so can see: it has freed what it hands to sigaction, which the library reads itself.
// The kernel and a plain library do not notice. Run by asan_live.py.
#include <csignal>
#include <cstdlib>
#include <cstdio>

int main() {
  auto* volatile a = static_cast<struct sigaction*>(std::calloc(1, sizeof(struct sigaction)));
  std::free(a);
  sigaction(SIGSEGV, a, nullptr);
  std::puts("not seen");
  return 0;
}
