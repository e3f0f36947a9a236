// The kernel's side of a move: a kernel TCP socket to a tcp_repair_state and back, by TCP_REPAIR, on the same fd. Only raw system calls on the
// fd it is given, so it serves a process for itself and a broker for others. Needs CAP_NET_ADMIN in the network namespace; giving back a
// connection whose peer has sent its FIN needs CAP_NET_RAW too, and may wait for that segment, 50 ms at most. Nobody else may be using the fd:
// a thread blocked in recv on it gets EPIPE, an edge-triggered epoll set may report EPOLLERR | EPOLLHUP once. Any thread.
//
// A connection that is ours leaves the kernel socket PARKED: established on the same 4-tuple, in repair mode, with empty queues and a socket
// filter that drops everything. So the port and the 4-tuple stay taken, getpeername and ss tell the truth, no epoll set sees a hang-up, a
// program's own send or recv fails instead of doing harm, and a segment that comes by although it should not gets no answer, in particular no
// RST. Closing it is silent.
//
// Take over:  prepare (may be refused; nothing has happened)  ->  steering rule on  ->  take_over  ->  tcp_import
// Give back:  tcp_export  ->  give_back (segments are still held)  ->  steering rule off, held frames to the kernel  ->  give_back_finish
//
// Every call returns 0 or -errno and names the step that failed. The state is never lost: after a failed take_over it is either as before (the
// socket goes on) or, when `moved` is set, in s, and give_back may be tried; a failed give_back may be tried again.
#pragma once
#include "tcp/repair_state.hpp"

namespace icepath {

struct repair_result {
  int err = 0;                    // 0 or -errno
  const char* step = "";          // what failed
  bool moved = false;             // take_over: the connection is in s and no longer in the kernel, even if err is set
  size_t left = 0;                // give_back_finish: bytes at the end of sndq that the kernel had no room for: to be sent later, then the FIN
  nsec barrier = 0;               // take_over: how long kernel_settle took
  bool ok() const { return err == 0; }
};

// A barrier: when it returns 0, every softirq that was running when it was called has ended, so a segment that passed an XDP program before a
// rule is either in its socket or waits in a queue of the kernel's (backlog, GRO), and then meets the filter. By running on every CPU once;
// where that proves nothing (a cpuset, PREEMPT_RT), by membarrier.
int kernel_settle();

// May this socket be moved at all, and its options into s. -EAFNOSUPPORT, -EPROTONOSUPPORT (not plain TCP), -EOPNOTSUPP (ULP), -ENOTCONN
// (state), -EBUSY (the program has a socket filter).
repair_result kernel_repair_prepare(int fd, tcp_repair_state& s);
// After prepare. -EBUSY: urgent data or an error is pending, another moment will do. -EOPNOTSUPP: microsecond timestamps. -EPERM.
repair_result kernel_take_over(int fd, tcp_repair_state& s);
// -EOPNOTSUPP: urgent data, which the kernel cannot be given.
repair_result kernel_give_back(int fd, const tcp_repair_state& s);
repair_result kernel_give_back_finish(int fd, const tcp_repair_state& s);

}  // namespace icepath
