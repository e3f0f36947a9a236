// Memory for everything that is not a packet: sockets, tables, lanes. Served by mimalloc, opened privately (dlopen, RTLD_LOCAL),
// so that the host program's malloc, free and operator new stay what they were; by libc's malloc when mimalloc is not
// installed. Set-up and control paths only, never the data path. Any thread, but not from a signal handler.
//
// The choice is made once, on the first call, and holds for the life of the process: what one allocator gave the other
// never gets. All return nullptr when there is no memory.
#pragma once
#include <cstddef>

namespace icepath {

bool mem_init();                              // true: mimalloc. Called by itself, or earlier to choose the moment
void* mem_alloc(size_t n);
void* mem_zalloc(size_t n);                   // zeroed
void* mem_aligned(size_t n, size_t align);    // align: a power of two
void mem_free(void* p);                       // from any of the three, or nullptr

}  // namespace icepath
