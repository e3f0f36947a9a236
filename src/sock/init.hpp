// Set-up and end of the socket layer, as preload/init.cpp and preload/call_fd.cpp drive it. sock_init runs once, in the library's
// constructor, before the program's main; nothing here may fail visibly to the program.
#pragma once

namespace icepath {

bool sock_init();                   // fd table, process, stacks; false: the fast path cannot be set up, all stays with the kernel
const char* sock_init_failure();    // after false: static text saying why
void sock_print_stats();            // ICEPATH_STATS=1: one line on stderr

// The library's own descriptors (memory, wake-up, rings): the program must neither close nor replace them.
bool sock_fd_is_internal(int fd);

}  // namespace icepath
