// What the socket layer may ask of TCP. All calls are made under the owner word of the stack that owns `n`,
// with n.now set. Nothing here blocks, sleeps, allocates from the heap on the data path or touches errno: waiting and
// waking are the socket layer's (src/sock), which TCP tells through tcp_sock::ops.
#pragma once
#include <sys/socket.h>
#include <sys/uio.h>
#include "base/types.hpp"
#include "net/net.hpp"

struct tcp_info;

namespace icepath {

struct tcp_sock;
struct dst_entry;

// Upcalls. Called inside TCP processing, under the owner word: they may set flags and wake, not call back into TCP.
struct tcp_ops {
  void (*data_ready)(tcp_sock*);    // in-order data or FIN was queued
  void (*write_space)(tcp_sock*);   // send space returned after it had run out
  void (*state_change)(tcp_sock*);  // established, closed, reset: sk->state, sk->err tell
  void (*lane_option)(tcp_sock*, uint8_t);  // a new lane option value arrived (sk->lane_opt_rx); may be null
};

struct user_msg {        // T03: bytes in user memory. Faults while copying are reported, not fatal (base/usercopy.hpp)
  const iovec* iov;
  size_t iovcnt;
  size_t iov_off;        // offset in iov[0]
  size_t count;          // bytes left
};

tcp_table* tcp_table_create(uint32_t max_socks);     // type-stable pool of tcp_sock and hash tables
void tcp_table_destroy(net& n);

tcp_sock* tcp_sk_alloc(net& n, const tcp_ops* ops, void* owner);   // closed socket; nullptr: out of memory (ENOBUFS)
void tcp_sk_free(net& n, tcp_sock* sk);              // in any state: no segment is sent, timers stop, queues are freed

// Active open on a complete 4-tuple (port already chosen). 0, or -EADDRINUSE, -ENOBUFS, -EHOSTUNREACH.
int tcp_connect(net& n, tcp_sock* sk, const four_tuple& t);
// Passive open of exactly one connection (RFC 9293 3.10.7.2 LISTEN with a fully specified foreign socket): the
// first acceptable SYN moves this very socket to SYN-RECEIVED. Simultaneous open works between two active opens.
int tcp_expect(net& n, tcp_sock* sk, const four_tuple& t);
// Passive open with accept queue: children are made by TCP and handed out by tcp_accept (native admission).
int tcp_listen(net& n, tcp_sock* sk, const inet_addr& addr, uint16_t port, int backlog);
tcp_sock* tcp_accept(net& n, tcp_sock* listener);    // nullptr when the queue is empty

// T10-T16. Bytes taken (>= 1), or -EAGAIN (no space), -EPIPE, -EFAULT, -ECONNRESET ... flags: MSG_MORE, MSG_EOR, MSG_OOB.
// Advances m by what was taken. A fault after some bytes returns the bytes.
ssize_t tcp_sendmsg(net& n, tcp_sock* sk, user_msg& m, int flags);
// Bytes copied, 0 at end of stream, -EAGAIN, or the socket's pending error (then cleared). MSG_PEEK, MSG_TRUNC, MSG_OOB.
// At most `max` bytes. m may be null with MSG_TRUNC.
ssize_t tcp_recvmsg(net& n, tcp_sock* sk, user_msg* m, size_t max, int flags);
uint32_t tcp_inq(const tcp_sock* sk);                // in-order bytes not yet read (SIOCINQ)
uint32_t tcp_outq(const tcp_sock* sk);               // bytes not yet acknowledged (SIOCOUTQ)
uint32_t tcp_outq_nsd(const tcp_sock* sk);           // bytes not yet sent (SIOCOUTQNSD)
uint32_t tcp_poll(const tcp_sock* sk);               // EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI
// Copies [una + off, una + off + len) of the send stream, sent or not, for a hand-back. Bytes copied.
size_t tcp_peek_send_queue(net& n, const tcp_sock* sk, uint32_t off, uint8_t* to, size_t len);

void tcp_shutdown_write(net& n, tcp_sock* sk);       // queues FIN after the data
void tcp_close(net& n, tcp_sock* sk);                // orphan: TCP finishes and frees it by itself (TIME-WAIT included)
void tcp_abort(net& n, tcp_sock* sk);                // RST, then CLOSED; the owner still frees it
void tcp_send_ack(net& n, tcp_sock* sk);             // now, carrying a window update and any lane option

int tcp_setsockopt(net& n, tcp_sock* sk, int level, int name, const void* val, uint32_t len);  // 0 or -errno; -ENOPROTOOPT when not TCP's
int tcp_getsockopt(net& n, const tcp_sock* sk, int level, int name, void* val, uint32_t* len);
void tcp_get_info(const net& n, const tcp_sock* sk, ::tcp_info* out);   // T15/T16 bookkeeping, kernel field meanings

void tcp_set_dst(net& n, tcp_sock* sk, dst_entry* d);  // the route to use; takes the reference. Before tcp_connect/tcp_expect
void tcp_tsq_run(net& n);                            // after clean_tx: sockets that waited for room below send on

void tcp_v4_rcv(net& n, sk_buff* skb);               // from ip_local_deliver; consumes skb (data at the TCP header)

}  // namespace icepath
