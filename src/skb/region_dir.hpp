// Inside of src/skb only: the runtime directory and the files in it. See region.hpp.
#pragma once
#include "base/types.hpp"
#include "skb/region.hpp"

namespace icepath {

result<int> runtime_dir_fd();                   // opened, made and checked on first use; belongs to this module
void runtime_dir_forget();                      // closes it; opened again when needed
int region_open_file(int dir, uint32_t slot, int flags);   // close-on-exec fd or -errno
bool region_file_locked(int fd);                // some other open file description holds the write lock
result<int> region_take_slot(int dir, uint32_t& slot);     // a new, empty, locked file on a high fd
void region_unlink_slot(int dir, uint32_t slot);           // the file and the FIFOs beside it

}  // namespace icepath
