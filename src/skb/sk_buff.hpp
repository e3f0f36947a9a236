// sk_buff: a packet, or a piece of a TCP stream. The metadata is private memory of one stack (skb_pool, a
// free list under the stack's owner word); the bytes are in frames (frame.hpp), shared by clones through the
// frames' reference counts.
//
// Linear part: one frame, [head, head + frame_size): headroom | data .. tail | tailroom. Headers are pushed into
// the headroom, so the same frame is retransmitted. Further bytes are in at most 17 fragments (T11j).
// len = bytes in all, data_len = bytes in fragments, headlen = len - data_len.
//
// Ownership is said by every function that takes an skb. `destructor` runs when an skb that is charged to a socket is
// freed (Tx completion): it is where truesize accounting, TSQ and transmit timestamps hook in (T16, T32).
#pragma once
#include <atomic>

#include "base/list.hpp"
#include "base/types.hpp"
#include "skb/frame.hpp"

namespace icepath {

struct net_device;
struct tcp_sock;

constexpr unsigned max_skb_frags = 17;

struct skb_frag {
  uint8_t* addr;   // inside one frame of our region
  uint32_t len;    // addr + len does not leave the frame
};

enum class ip_sum : uint8_t { none, unnecessary, complete, partial };  // kernel's CHECKSUM_*

// Control block while TCP owns the skb.
struct tcp_skb_cb {
  uint32_t seq, end_seq;     // end_seq includes SYN and FIN
  uint32_t ack_seq;          // receive side
  uint16_t tcp_gso_segs, tcp_gso_size;
  uint8_t tcp_flags;         // wire flags
  uint8_t sacked;            // TCPCB_*
  uint8_t eor : 1, txstamp_ack : 1, has_rxtstamp : 1, is_app_limited : 1;
  uint32_t tx_in_flight;     // rate sample: packets in flight when sent
  uint64_t delivered;        // rate sample
  nsec first_tx_mstamp, delivered_mstamp;
};

struct sk_buff {
  sk_buff* next;             // queue linkage; nullptr when on no queue
  sk_buff* prev;
  tcp_sock* sk;              // charged socket or nullptr
  void (*destructor)(sk_buff*);
  net_device* dev;
  uint8_t* head;             // start of the linear frame, nullptr when there is none
  uint8_t* data;
  uint32_t len, data_len;
  uint32_t truesize;         // memory charged: frames in whole, and metadata
  uint16_t nr_frags;
  uint16_t mac_header, network_header, transport_header;  // offsets from head
  uint16_t gso_size, gso_segs;                            // gso_size 0: one segment
  uint16_t csum_start, csum_offset;                       // with ip_sum::partial: from head; within
  ip_sum ip_summed;
  uint8_t priority;          // TC_PRIO_*: picks the pfifo_fast band
  uint8_t xmit_more : 1, vlan_present : 1, nonlinear_hdr : 1;
  uint8_t no_tail : 1;       // bytes after our tail in the linear frame belong to another skb (skb_split, clone): no tailroom
  uint16_t vlan_tci, queue_mapping;
  uint32_t mark, hash;
  nsec tstamp;               // departure time (send), arrival time (receive)
  tcp_skb_cb cb;
  sk_buff* clone_of;         // the skb this was cloned from, or nullptr. Its storage outlives us, its contents perhaps not
  uint32_t meta_ref;         // 1 for the skb itself and 1 for every living clone; atomic_ref, any thread (see skb_fclone_busy)
  skb_frag frags[max_skb_frags];

  uint32_t headlen() const { return len - data_len; }
  uint8_t* tail() const { return data + headlen(); }
  uint32_t headroom() const { return static_cast<uint32_t>(data - head); }
  uint32_t tailroom() const { return data_len || no_tail || !head ? 0 : static_cast<uint32_t>(head + frame_size - tail()); }
  uint8_t* mac() const { return head + mac_header; }
  uint8_t* network() const { return head + network_header; }
  uint8_t* transport() const { return head + transport_header; }
  bool is_gso() const { return gso_size != 0; }
};

static_assert(sizeof(sk_buff) <= 512);
constexpr size_t sk_buff_stride = 512;   // whole cache lines
constexpr uint32_t skb_truesize_base = sk_buff_stride, skb_truesize_frame = frame_size;

// Is a clone of this skb still somewhere below us (qdisc, ring)? The question of TSQ and of retransmission (T17). Any thread.
inline bool skb_fclone_busy(const sk_buff* s) {
  return std::atomic_ref<uint32_t>(const_cast<uint32_t&>(s->meta_ref)).load(std::memory_order_acquire) > 1;
}

// Metadata of all pools come from one process-wide depot, so an skb may be freed into another stack's pool than it came from
// (a qdisc run by another thread), and a pool that is destroyed leaves nobody with a dangling skb.
class skb_pool {
 public:
  void init(frame_pool* frames);
  void destroy();
  frame_cache frames;
  sk_buff* alloc(uint32_t headroom = skb_headroom);   // linear frame, no data; nullptr when out of memory
  sk_buff* alloc_empty();                             // no frame at all (receive path attaches frames)
  sk_buff* clone(sk_buff* skb);                       // shares every frame; sk and destructor are not inherited
  sk_buff* copy(const sk_buff* skb);                  // own linear+frag frames, private to write headers
  void free(sk_buff* skb);                            // runs destructor, drops frames
  int32_t allocated() const { return allocated_; }    // got minus freed here: the sum over all pools is the leak check

 private:
  sk_buff* get();
  bool refill();
  bool release(sk_buff* skb);
  void spill(uint32_t keep);
  sk_buff* free_ = nullptr;      // LIFO through next
  uint32_t nr_free_ = 0;
  int32_t allocated_ = 0;
};

// Linear part. put/push return the start of the new bytes and assert room in debug builds.
inline uint8_t* skb_put(sk_buff* s, uint32_t n) { uint8_t* p = s->tail(); s->len += n; return p; }
inline uint8_t* skb_push(sk_buff* s, uint32_t n) { s->data -= n; s->len += n; return s->data; }
inline uint8_t* skb_pull(sk_buff* s, uint32_t n) { s->data += n; s->len -= n; return s->data; }  // n <= headlen
inline void skb_reset_mac(sk_buff* s) { s->mac_header = static_cast<uint16_t>(s->data - s->head); }
inline void skb_reset_network(sk_buff* s) { s->network_header = static_cast<uint16_t>(s->data - s->head); }
inline void skb_reset_transport(sk_buff* s) { s->transport_header = static_cast<uint16_t>(s->data - s->head); }

bool skb_pull_any(skb_pool& p, sk_buff* s, uint32_t n);           // drop n leading bytes, across fragments; frees emptied frames
void skb_trim(skb_pool& p, sk_buff* s, uint32_t len);             // keep the first len bytes
sk_buff* skb_split(skb_pool& p, sk_buff* s, uint32_t len);        // s keeps len bytes, the new skb has the rest; nullptr: no memory, s unchanged
void skb_copy_bits(const sk_buff* s, uint32_t off, void* to, uint32_t n);   // off + n <= len
bool skb_pull_head(skb_pool& p, sk_buff* s, uint32_t n);          // make the first n bytes linear (n <= frame_size - headroom)

struct sk_buff_head {         // FIFO of skbs; under the owner word of whoever holds it
  sk_buff* first = nullptr;
  sk_buff* last = nullptr;
  uint32_t qlen = 0;
  bool empty() const { return first == nullptr; }
  void push_back(sk_buff* s) { s->next = nullptr; s->prev = last; (last ? last->next : first) = s; last = s; ++qlen; }
  void push_front(sk_buff* s) { s->prev = nullptr; s->next = first; (first ? first->prev : last) = s; first = s; ++qlen; }
  void insert_after(sk_buff* at, sk_buff* s) { s->prev = at; s->next = at->next; (at->next ? at->next->prev : last) = s; at->next = s; ++qlen; }
  void insert_before(sk_buff* at, sk_buff* s) { s->next = at; s->prev = at->prev; (at->prev ? at->prev->next : first) = s; at->prev = s; ++qlen; }
  void unlink(sk_buff* s) { (s->prev ? s->prev->next : first) = s->next; (s->next ? s->next->prev : last) = s->prev; s->next = s->prev = nullptr; --qlen; }
  sk_buff* pop_front() { sk_buff* s = first; if (s) unlink(s); return s; }
  void purge(skb_pool& p) { while (sk_buff* s = pop_front()) p.free(s); }
};

}  // namespace icepath
