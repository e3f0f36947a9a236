// The writer of the tables: rtnetlink subscriptions and dumps, and the watchers of policy.hpp. One object for one network namespace, that of the
// thread that opened it. Every function here: the control thread only (stack/helper.cpp, or the broker's loop).
//
// A notification only says which table is old; the table is dumped anew (IPv4 routes that go with a link or an address are not announced at all). A
// lost notification (ENOBUFS) makes all of them old. A table that changes all the time is dumped at most a tenth of the time.
// Fails to: an unknown table, never a wrong one.
#pragma once
#include "control/tables.hpp"

namespace icepath {

struct control;
struct control_changes { bool links, addrs, routes, rules, neighs, policy; };

control* control_open(int* err);                          // all tables read; nullptr and *err (positive errno) when there is no netlink or memory
void control_close(control* c);
const control_tables& control_view(const control* c);
int control_fd(const control* c);                         // an epoll descriptor: readable means control_step
// Reads what has come. *next: when to come again though nothing comes; now and *next are of clock_now(). It is at most a second away, for what has no
// notification. A process without promoted flows need not come back for it: it sleeps on, and steps before it promotes again.
control_changes control_step(control* c, nsec now, nsec* next);
int control_fds(const control* c, int* to, int room);     // every descriptor it holds; how many
void control_forget(control* c);                          // in a fork child: closes our copies of the descriptors, frees nothing of the parent's

}  // namespace icepath
