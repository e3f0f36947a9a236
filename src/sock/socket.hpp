// A file icepath watches: a TCP socket (always a real kernel socket on its own fd) or an epoll set (always a real kernel
// epoll on its own fd). Objects are type-stable (never unmapped, reused through a free list), so a stale pointer from a racing close is
// harmless: whoever uses one re-checks fd_lookup(fd) under the lock.
//
// A socket is in the kernel or on the fast lane, each direction by itself (src/sock/lane.hpp):
//   tx: kernel -> fast -> kernel ...   which lane our bytes take
//   rx: kernel -> draining -> fast -> kernel ...   which lane the next unread byte comes from
// While both are `kernel` and no promotion is under way, every call is the plain libc call with its byte count noted.
#pragma once
#include <sys/socket.h>
#include <sys/uio.h>
#include <atomic>
#include "base/list.hpp"
#include "base/types.hpp"

namespace icepath {

struct stack;
struct tcp_sock;
struct epoll_item;

enum class file_kind : uint8_t { none, tcp, epoll };

struct file {
  file_kind kind = file_kind::none;
  std::atomic<int> fd{-1};
  std::atomic<uint32_t> nr_fds{0};      // fd table slots that point here (dup)
  std::atomic<uint32_t> refs{0};        // calls in progress that may block with this object
};

// Called when readiness may have grown; under the owner word of the socket's stack (or from the lane code in the kernel
// phase). Must only note and wake.
struct wait_entry {
  list_node node;
  void (*fn)(wait_entry*, uint32_t mask) = nullptr;
};

enum class tx_lane : uint8_t { kernel, fast };
enum class rx_lane : uint8_t { kernel, draining, fast };
enum class sock_state : uint8_t { fresh, listening, connecting, connected, closed };

struct lane;                            // src/sock/lane.hpp

struct socket : file {
  sock_state state = sock_state::fresh;
  uint16_t family = 0;
  std::atomic<bool> fast{false};        // true from the moment any call must look at the lanes (promotion committed)
  std::atomic<bool> nonblock{false};
  std::atomic<bool> tx_blocked{false};  // the last non-blocking send did not take all: the edge of EPOLLOUT is owed
  std::atomic<bool> soft_block{false};  // blocking plain calls wait where a promotion can interrupt them
  std::atomic<bool> never{false};       // must not be promoted (again); `reason` says why
  std::atomic<uint32_t> rx_calls{0}, tx_calls{0};   // kernel calls in flight: promotion waits for zero
  std::atomic<uint64_t> k_tx{0}, k_rx{0};           // bytes that went by the kernel lane since birth
  std::atomic<bool> publishing{false};  // a thread is about to give it a lane
  std::atomic<uint32_t> ops{0};         // data calls so far, for lazy promotion
  uint64_t bulk_mark = 0;               // bytes when it was last found to be a large transfer (takeover.cpp)
  uint64_t past_fast_tx = 0, past_fast_rx = 0;      // bytes of fast connections that are over; owner word
  uint8_t tries = 0;                    // promotions that came to nothing, since the last one that did not
  nsec retry_at = 0;                    // not tried again before
  const char* reason = "";              // static string: why it is where it is
  stack* st = nullptr;                  // set while a lane exists
  struct lane* ln = nullptr;
  list_head waiters;                    // wait_entry; guarded by wait_lock
  std::atomic<uint32_t> wait_lock{0};
  nsec rcvtimeo = ~nsec{0}, sndtimeo = ~nsec{0};    // ~0: none
  uint32_t rcvlowat = 1;
  uint8_t buf_locked = 0;               // 1: SO_RCVBUF, 2: SO_SNDBUF set by the program
  std::atomic<bool> inherited{false};   // in a fork child: the parent's connection; asked back before the first use
  std::atomic<uint64_t> rd_state{~0ull << 32};      // readiness as last published by the owner: kernel_bits << 32 | ready
  int pending_err = 0;                  // reported once by the next call
  list_head items;                      // epoll_item, one per epoll set it is registered in; guarded by wait_lock
  std::atomic<bool> close_wait{false};  // closed, but held by a blocked call: whoever lets go last finishes it
  std::atomic<bool> shared{false};      // promoted when the process forked: a child may hold it too
  uint32_t serial = 0;                  // of this process, never used twice (within 2^32)
  uint32_t parent_slot = 0, parent_serial = 0;      // fork child: whose it is, and its serial there
  uint64_t parent_cookie = 0;
  std::atomic<uint32_t> share{0};       // other processes hold it too, or did: its entry (holders.hpp); 0: nobody
  uint8_t share_place = 0, share_child = 0;         // ours in the entry; the one that a fork under way has reserved
  std::atomic<bool> share_used{false};  // our place says that we moved bytes
  uint64_t share_cookie = 0, share_tx = 0, share_rx = 0;   // the kernel's number of the socket; k_tx and k_rx when we came to hold it
  nsec share_look = 0;                  // not asked again before
  uint8_t* prefix = nullptr;            // bytes to read before the kernel's (handback.cpp); guarded by prefix_lock
  size_t prefix_off = 0;
  std::atomic<size_t> prefix_len{0};    // 0: none
  std::atomic<uint32_t> prefix_lock{0};
  uint32_t row = ~0u;                   // its sock_row
  list_node member;                     // pool.cpp: on the list of live or free sockets
};

// ---- fd table: flat, lock-free; one load and one branch for an fd that is not ours
constexpr int fdtable_size = 1 << 20;
extern std::atomic<file*>* fdtable;     // fdtable_size slots, or a one-slot dummy before set-up
extern unsigned fdtable_limit;          // 0 before set-up
inline file* fd_lookup(int fd) {
  return ICEPATH_LIKELY(static_cast<unsigned>(fd) < fdtable_limit) ? fdtable[fd].load(std::memory_order_acquire) : nullptr;
}
// fd has been closed, or is another file meanwhile. After fdtable_stop nobody knows: the kernel says it.
inline bool fd_lost(int fd, const file* f) { return fd_lookup(fd) != f && fdtable_limit != 0; }
inline socket* as_socket(file* f) { return f && f->kind == file_kind::tcp ? static_cast<socket*>(f) : nullptr; }

// ---- life. All are called by preload after the kernel has done the call. None fails visibly: what cannot be watched stays the kernel's.
void sock_on_socket(int fd, int domain, int type, int protocol);
void sock_on_accept(file* listener, int fd, int flags);      // fd: the new connection
void sock_on_listen(file* f);
void sock_on_connect(file* f, int fd, int err);              // err: 0, EINPROGRESS, or the failure
void sock_on_accept_unseen(int fd);                          // from a listener that is not watched (passing.cpp)
// SCM_RIGHTS: before fd is sent (false: it must be demoted first), when it was not sent after all, when fd was received.
bool sock_before_pass(int fd);
void sock_pass_failed(int fd);
void sock_on_received(int fd, bool peeked);
// close(fd): takes the slot; when it was the last reference, finishes the lanes first. Returns what close must return, -errno on error.
int sock_close(int fd);
// A call that may block keeps the connection open until it returns, as in Linux: a close meanwhile takes the descriptor only.
// False: fd is not s any more.
bool sock_hold(socket* s, int fd);
void sock_put(socket* s);
void sock_on_dup(int oldfd, int newfd);                      // newfd now refers to oldfd's file; newfd's former file was dropped by sock_before_replace
void sock_before_replace(int newfd);                         // dup2/dup3 onto newfd, close_range: like close, without the kernel close

// ---- data. Return bytes or -errno, exactly as the kernel would.
struct sock_msg {                       // the one internal message view (T03)
  const iovec* iov;
  size_t iovcnt;
  int flags;
  msghdr* hdr;                          // original header for names and control data, or nullptr
  const sockaddr* name;                 // sendto
  socklen_t namelen;
  sockaddr* rname;                      // recvfrom
  socklen_t* rnamelen;
  bool file_call = false;               // the program said read, write, readv or writev: on the kernel lane it stays that, its sandbox may allow no other
};
constexpr int EPIPE_RAISED = 4096 + EPIPE;   // sock_sendmsg: EPIPE for which the kernel has raised SIGPIPE already (kernel lane)
ssize_t sock_sendmsg(socket* s, int fd, sock_msg& m);
ssize_t sock_recvmsg(socket* s, int fd, sock_msg& m);

// Around a transfer the caller makes itself with a kernel call on a socket that is not promoted (sendfile): true: go ahead,
// then end with the bytes that entered the socket of those it wanted to send, or -errno. False: the socket is on the fast lane.
bool sock_plain_tx_begin(socket* s, int fd);
void sock_plain_tx_end(socket* s, ssize_t bytes, size_t wanted);
bool sock_address(const sockaddr_storage& a, inet_addr* addr, uint16_t* port);   // false: not IP

// ---- the rest. Return value or -errno.
int sock_shutdown(socket* s, int fd, int how);
int sock_setsockopt(socket* s, int fd, int level, int name, const void* val, socklen_t len);
int sock_getsockopt(socket* s, int fd, int level, int name, void* val, socklen_t* len);
int sock_ioctl(socket* s, int fd, unsigned long req, void* arg);
void sock_on_setfl(socket* s, int flags);                    // after fcntl(F_SETFL) or FIONBIO succeeded
// A call that has no native form: bring the connection back to its kernel lane completely (both directions), then the caller makes
// the kernel call. 0, or -EAGAIN when it would block and the socket is non-blocking.
int sock_demote(socket* s, const char* reason);

// ---- readiness. Bits that the fast side answers for now (the others are asked of the kernel lane), and their value.
struct readiness { uint32_t ready, kernel_bits; };
readiness sock_poll(socket* s);                              // any thread
void sock_add_waiter(socket* s, wait_entry* w);
void sock_del_waiter(socket* s, wait_entry* w);
// Not an event: lanes have changed, who answers which bit is to be asked again. Given alone or with events that are news.
constexpr uint32_t wake_changed = 1u << 26;
void sock_wake(socket* s, uint32_t mask);                    // runs the waiters

// ---- epoll, poll, select (src/sock/epoll.cpp, poll.cpp, select.cpp)
void epoll_on_create(int epfd);
// A lane of s changed: adjust its registration in every kernel epoll set to the bits the kernel still answers for.
void epoll_sync(socket* s);
// Bytes have come by the fast lane behind unread ones of the kernel lane: an edge of EPOLLIN, although the kernel's answer to it stays the same.
void epoll_edge(socket* s);
void epoll_shut(socket* s);                                  // after shutdown()
void epoll_on_close(int fd, file* f);                        // fd leaves f; Linux removes the registration when the last fd of the open file goes
void epoll_destroy(file* f);

// ---- process
void sock_fork_prepare(); void sock_fork_parent(); void sock_fork_child();
void sock_exit();                                            // unsent data still arrives
void sock_before_sandbox();                                  // seccomp: everything home, nothing new, so that only the program's own calls are left
void sock_before_exec(bool replaces = false);                // replaces: by this process itself, not by a vfork child

}  // namespace icepath
