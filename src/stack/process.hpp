// The accelerated process: its region, its stacks, its helper thread. One object, made on the first TCP socket, remade in a fork child.
// Start-up code: the only place that names both a stack and a driver.
//
// process_ready() is the one question everybody asks; false means: kernel path, with process_why() as the reason.
#pragma once
#include "base/types.hpp"
#include "skb/region.hpp"
#include "stack/stack.hpp"

namespace icepath {

struct helper_event;                   // see helper.hpp

bool process_start();                  // idempotent, any thread; makes region and runtime directory. False: no fast path
bool process_ready();
const char* process_why();             // static string when not ready
region* process_region();              // valid while process_ready()
void process_stop();                   // at exit: takes the region's names away; the memory lives as long as the process and its peers
void process_forget();                 // in a fork child: drop the parent's region and stacks without touching them
bool process_fd_is_internal(int fd);   // one of ours; the host must not close it
void process_fd_add_internal(int fd);
void process_fd_del_internal(int fd);
int process_move_high(int fd);         // moves fd to a high number, CLOEXEC; returns the new fd (or the old one)

// Counters of the calling thread's stack, or a process-wide spare when it has none.
mib& process_mib(stack* s);

}  // namespace icepath
