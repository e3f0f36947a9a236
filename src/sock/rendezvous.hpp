// Where two accelerated processes find out that they hold the two ends of one kernel connection: a hash table in the file `rendezvous`
// of the runtime directory, shared by all processes of this user in this network namespace.
//
// An entry is written by one process (its owner) and read by others. `owner` (the process's cookie) is claimed by CAS from 0;
// fields are written before `valid` is set (release) and read between two looks at owner/valid. Both ends of a connection hash to the
// same bucket (the hash ignores direction); a bucket is never probed beyond itself: a full one refuses, and the connection stays with the kernel.
// Entries of dead processes are found by region_alive and taken over. Publish, then look: of two ends at least one sees the other.
#pragma once
#include "base/types.hpp"
#include "stack/stack.hpp"

namespace icepath {

bool rendezvous_start();                                           // maps the table; false: errno-less failure, kernel path
void rendezvous_forget();                                          // in a fork child
// Token > 0, or 0 when the bucket is full.
uint32_t rendezvous_publish(const four_tuple& t, const stack_id& self);
void rendezvous_withdraw(uint32_t token);
bool rendezvous_find(const four_tuple& mine, stack_id* peer);      // who published the other end

}  // namespace icepath
