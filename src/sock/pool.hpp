// Socket objects and the fd table's slots. Cold path; socket objects are type-stable (socket.hpp).
#pragma once
#include "sock/socket.hpp"

namespace icepath {

bool fdtable_start();                       // idempotent
void fdtable_stop();                        // for good: from now on no descriptor is ours, every call is libc's
socket* socket_alloc();                     // kind tcp, no fd; nullptr: out of memory
void socket_release(socket* s);             // back to the pool; no fd, no lane, no items any more
void fd_install(int fd, file* f);           // ++nr_fds
file* fd_remove(int fd);                    // what was there, or nullptr; --nr_fds
void sockets_for_each(void (*fn)(socket*, void*), void* ctx);   // live ones; serialised with alloc and release
void sockets_forget_locks();                // in a fork child

}  // namespace icepath
