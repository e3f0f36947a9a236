// Copies between our memory and the application's, where a bad pointer must give EFAULT and not a crash (T05).
// Fast path: plain memcpy between two stores to a thread-local recovery record; a SIGSEGV/SIGBUS handler that icepath chains
// in front of the program's own jumps out when the fault is inside such a copy, and passes every other fault on unchanged.
#pragma once
#include "base/types.hpp"

namespace icepath {

size_t copy_from_user(void* to, const void* from, size_t n);   // bytes NOT copied, as in the kernel: 0 is success
size_t copy_to_user(void* to, const void* from, size_t n);

}  // namespace icepath
