// Resolution of libc's functions: all at once in the library's constructor, so that no later call (in a signal handler, in a
// vfork child) has to enter the dynamic linker; each by itself when it is called before that.
#include "next.hpp"

namespace icepath {

void next::resolve_all() {
#define ICEPATH_NEXT(name, nr, ...) next_fn<#name, nr, __VA_ARGS__>::resolve()
#include "next_list.hpp"
#undef ICEPATH_NEXT
}

}  // namespace icepath
