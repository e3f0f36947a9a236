// Only in a library that is built with -Db_sanitize=address: what it needs to live in programs that are not. Used as
//     LD_PRELOAD=PATH/libicepath.so:libasan.so.8 PROGRAM
// in this order. Ours comes first, so that a program's calls meet our symbols as in any build, and next:: goes on to libc
// (next.hpp). The runtime gives the allocator, memcpy and its like, and knows of threads; its own read, send or getsockname,
// which touch the program's pointers where the kernel answers EFAULT, are never reached. Two kinds of false report end here:
//  - Frames that never returned: a cancelled thread is unwound through us, a vfork child leaves by exec on its parent's stack.
//    Their red zones would stay in the shadow. -finstrument-functions in this directory calls the hook below at the begin of
//    each function, when nothing below the stack pointer is anybody's; what else lies in the range loses red zones, gets none.
//  - Options that a scrubbed environment loses, hence the defaults here; ASAN_OPTIONS and UBSAN_OPTIONS go before them.
// Async-signal-safe: no state.
#include <sanitizer/asan_interface.h>
#include <sys/socket.h>
#include <cstdint>
#include "export.hpp"
#include "next.hpp"

using namespace icepath;
using words = long[7];

// Called while there is no shadow yet, or to change it.
#define ICEPATH_BARE [[gnu::no_instrument_function, gnu::no_sanitize("address", "undefined")]]

// Leaks: what a program leaves at its end is not ours to judge. Signals: the handlers are ours and the program's (base/usercopy.hpp). The alternate
// stack: a thread that ends after a cancellation would set it up on stale red zones. The rest is what programs may do, and we did not write them.
ICEPATH_EXPORT const char* __asan_default_options();
ICEPATH_BARE const char* __asan_default_options() {
  return "verify_asan_link_order=0:detect_leaks=0:handle_segv=0:handle_sigbus=0:handle_sigfpe=0:handle_sigill=0:handle_abort=0:use_sigaltstack=0:"
         "abort_on_error=1:detect_stack_use_after_return=0:protect_shadow_gap=0:alloc_dealloc_mismatch=0:allocator_may_return_null=1";
}
ICEPATH_EXPORT const char* __ubsan_default_options();
ICEPATH_BARE const char* __ubsan_default_options() { return "halt_on_error=1:print_stacktrace=1:abort_on_error=1:handle_segv=0:handle_sigbus=0"; }

// Passed through in calls.txt, so not ours; but here the runtime's would come before libc's.
ICEPATH_EXPORT int getsockname(int fd, sockaddr* a, socklen_t* n) noexcept {
  return static_cast<int>(system_call(SYS_getsockname, words{fd, reinterpret_cast<long>(a), reinterpret_cast<long>(n)}));
}
ICEPATH_EXPORT int getpeername(int fd, sockaddr* a, socklen_t* n) noexcept {
  return static_cast<int>(system_call(SYS_getpeername, words{fd, reinterpret_cast<long>(a), reinterpret_cast<long>(n)}));
}

extern "C" {
ICEPATH_BARE void __cyg_profile_func_enter(void*, void*) {
  constexpr uintptr_t deepest = 64 << 10;   // more than any chain of ours uses
  __asan_unpoison_memory_region(static_cast<char*>(__builtin_frame_address(0)) - deepest, deepest);
}
ICEPATH_BARE void __cyg_profile_func_exit(void*, void*) {}
}
