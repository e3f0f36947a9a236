// The library's beginning and end in a process. The constructor runs in the main thread, before the program's own constructors in
// most cases: what was called earlier went straight to libc. Stages: (1) libc's functions, (2) the reasons to stay out (a setuid
// program), (3) the socket layer, (4) fork and exit handlers. A stage that fails leaves the program on the kernel path with one line on stderr, or ends it
// with status 1 when ICEPATH_REQUIRE=1 asks for that.
#include <pthread.h>
#include <sys/auxv.h>
#include <cstdlib>
#include <cstring>
#include "base/usercopy.hpp"
#include "export.hpp"
#include "sock/init.hpp"

namespace icepath {
namespace {

bool set(const char* name) {
  const char* const v = getenv(name);
  return v && *v && std::strcmp(v, "0") != 0;
}

void say(const char* a, const char* b, const char* c) {
  const iovec v[] = {{const_cast<char*>("icepath: "), 9}, {const_cast<char*>(a), std::strlen(a)}, {const_cast<char*>(b), std::strlen(b)},
                     {const_cast<char*>(c), std::strlen(c)}, {const_cast<char*>("\n"), 1}};
  (void)!next::writev(2, v, 5);
}

std::atomic<bool> ended{false};
bool want_stats = false;

void fork_prepare() { sock_fork_prepare(); }
void fork_parent() { sock_fork_parent(); }
void fork_child() {
  icepath_in_vfork = 0;
  ended.store(false, std::memory_order_relaxed);
  sock_fork_child();
}

[[gnu::constructor]] void library_init() {
  const kept_errno e;
  next::resolve_all();
  const bool secure = getauxval(AT_SECURE) != 0;       // then the environment is not the program's to trust
  if (!secure && sock_init()) {
    (void)usercopy_install(next::sigaction.p.load(std::memory_order_relaxed));   // without it a bad pointer crashes, no more
    want_stats = set("ICEPATH_STATS");
    pthread_atfork(fork_prepare, fork_parent, fork_child);
    at_quick_exit(process_ends);
    e.restore();
    return;
  }
  const char* const why = secure ? "this program runs with raised privileges" : sock_init_failure();
  if (!secure && set("ICEPATH_REQUIRE")) {
    say("the fast path cannot be set up: ", why, " (ICEPATH_REQUIRE is set)");
    next::_exit(1);
  }
  if (!secure) say("the fast path cannot be set up: ", why, "; sockets stay with the kernel");
  e.restore();
}

[[gnu::destructor]] void library_end() { process_ends(); }

}  // namespace

void process_ends() {
  if (!active() || ended.exchange(true, std::memory_order_relaxed)) return;
  const kept_errno e;
  sock_exit();
  if (want_stats) sock_print_stats();
  e.restore();
}

}  // namespace icepath
