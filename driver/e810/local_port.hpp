// The `local` port of one stack: an ice ring driver on a software E810 (DESIGN section 2). What the socket and start-up code
// sees of it; everything else goes through net_device.
//
// Shared layout. The process's region (skb/region.hpp) holds for every stack one `e810_function`: a doorbell word, and
// `max_peers` attach slots. A peer stack that wants to send to us claims a slot; we answer by putting an Rx queue (descriptors in our
// region, buffers from our frame pool) behind it. The peer's device model, inline on its own doorbell, then writes into
// that queue. One queue pair per pair of stacks: single producer, single consumer.
// Link-layer address of a stack: 02:1c:<process slot, 2 bytes>:<stack, 1 byte>:<salt, 1 byte>; the switch is by this address.
//
// Every word read from a peer's region is validated (index, bounds, generation) and never trusted for a memory access
// outside the mapping; a peer that writes nonsense is detached with an event (RingMddEvents), never crashes us.
#pragma once
#include "net/net.hpp"
#include "skb/region.hpp"

namespace icepath {

struct local_port;

// Makes the port of stack number `stack_no` of this process. Opens the wake FIFO. nullptr + errno on failure.
result<local_port*> local_port_create(region& own, net& n, uint16_t stack_no);
void local_port_destroy(local_port* p);
net_device* local_port_dev(local_port* p);
int local_port_wake_fd(local_port* p);                    // readable while a wake-up is pending (own FIFO, read end)
bool local_port_drain_wake(local_port* p);                // after it was readable. True: it was
bool local_port_armed(const local_port* p);                // arm() holds: no peer has written since
void local_port_wake_self(local_port* p);                 // any thread, signal-safe: make a sleeper of this stack return
bool local_port_has_attention(const local_port* p);       // cheap: a peer attached or detached since the last poll
const uint8_t* local_port_mac(const local_port* p);

struct peer_stack { uint32_t process_slot; uint16_t stack_no; uint64_t process_cookie; };   // as published in the rendezvous

// Queue towards a peer stack (may be our own). Idempotent.
enum class attach { ready, pending, failed };
attach local_port_attach(local_port* p, const peer_stack& peer, uint16_t* txq, uint8_t mac[6]);
// The peer process is known dead, or the last connection to it is gone: free its queues both ways. Frames return to the pool.
void local_port_detach(local_port* p, const peer_stack& peer);
unsigned local_port_peers(const local_port* p);
// The peer's region as mapped for its queue, also after its death; nullptr when not attached (any more). Read nothing unchecked.
const region_peer* local_port_peer_region(const local_port* p, const peer_stack& peer);
// Set by start-up code before the first port is made; may stay null. init: transmit queue `txq` became usable (it may have been used for
// another peer before). fini: it is about to go; what waits in its qdisc has nowhere to go.
extern void (*local_port_queue_init)(net& n, net_device& dev, uint16_t txq);
extern void (*local_port_queue_fini)(net& n, net_device& dev, uint16_t txq);

}  // namespace icepath
