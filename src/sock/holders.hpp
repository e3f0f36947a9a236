// Who holds a connection that has not been promoted: a fork child, and whoever is passed a descriptor (SCM_RIGHTS), has the same kernel socket. While
// several processes hold it, it stays in the kernel; the last one may promote it, if everybody's bytes are counted.
//
// One table for all processes of the user (a file in the runtime directory, mapped), an entry per shared connection, found by the kernel's number of the
// socket (SO_COOKIE). An entry has a place for each holder and the byte counts from before it was made; a holder that closes its last descriptor adds what
// it moved and leaves. One that dies without a word is dropped when the kernel says that it is gone, if it moved nothing, or ended in order.
//
// What always holds: doubt keeps the connection in the kernel. A place that was reserved and never taken, bytes that nobody counted, a holder in another
// pid namespace, a full table, a lock whose holder was killed: each of these means "never promoted", and nothing worse. What stands in the table is the word
// of processes of the same user; it decides only when a connection may be promoted.
//
// Any thread. `share`, base and used of a socket are set at fork, at passing and at receiving; promotion (under socket::publishing or the owner word) ends it.
#pragma once
#include "sock/socket.hpp"

namespace icepath {

// Before a fork: a place for the child. False: no room.
bool holders_before_fork(socket* s);
void holders_fork_child(socket* s);               // takes the place
bool holders_before_pass(socket* s);              // a place for whoever receives the descriptor. False: no room
void holders_pass_failed(socket* s);              // it was not sent
// A descriptor was received; s is new and stands for it. False: nothing is known of it, others may hold it.
bool holders_received(socket* s, int fd);
void holders_spoil(int fd);                       // received in a way that cannot be counted
void holders_release(socket* s);                  // the last descriptor of this process is closed
void holders_uncounted(socket* s);                // from now on bytes are moved that nobody counts (exec)
void holders_end(socket* s);                      // this process ends, or is replaced by a program that does not have s
// Is this process the only one? Then s is not shared any more and its byte counts are those of the connection. Sets socket::never when it cannot come to be.
bool holders_alone(socket* s);
void holders_note_use(socket* s);                 // before a data call, while shared
void holders_fork_forget();                       // in a fork child, before holders_fork_child

}  // namespace icepath
