// The connection table of one stack: a type-stable pool of sockets, the hash of 4-tuples (connections and TIME-WAIT), the hash of
// listeners. Owner: the stack. Always: a socket that is `hashed` is findable by its tuple exactly once; storage of a socket is
// never given back to the system while the stack lives, so an skb's `sk` never points at anything but a tcp_sock.
#include <sys/mman.h>
#include <new>
#include "base/siphash.hpp"
#include "ip/ip.hpp"
#include "tcp/tcp_internal.hpp"

namespace icepath {

namespace {
void* reserve(size_t bytes) {
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}
template <class T>
T* reserve_array(size_t n) { return static_cast<T*>(reserve(n * sizeof(T))); }
template <class T>
void release_array(T* p, size_t n) { if (p) ::munmap(p, n * sizeof(T)); }

uint64_t tuple_hash(const net& n, const four_tuple& t) {
  if (ICEPATH_LIKELY(t.daddr.is_v4())) {
    uint64_t a = (uint64_t{t.daddr.to_v4()} << 32) | t.saddr.to_v4();
    const uint64_t p = (uint64_t{t.dport} << 16) | t.sport;
    return hash_mix((a ^ n.secret[0]) + hash_mix(p ^ n.secret[1]));
  }
  return hash_mix(hash_of(t) ^ n.secret[0]);
}
}  // namespace

tcp_table* tcp_table_create(uint32_t max_socks) {
  if (max_socks == 0) return nullptr;
  tcp_table* t = static_cast<tcp_table*>(reserve(sizeof(tcp_table)));
  if (!t) return nullptr;
  new (t) tcp_table();
  uint64_t buckets = 64;
  while (buckets < max_socks * 2ull) buckets <<= 1;
  t->mask = buckets - 1;
  t->max_socks = max_socks;
  t->max_tw = max_socks;
  t->ehash = reserve_array<list_head>(buckets);
  t->lhash = reserve_array<list_head>(tcp_lhash_size);
  t->pool = reserve_array<tcp_sock>(max_socks);
  t->free_socks = reserve_array<tcp_sock*>(max_socks);
  t->tws = reserve_array<tcp_timewait_sock>(t->max_tw);
  if (!t->ehash || !t->lhash || !t->pool || !t->free_socks || !t->tws) return nullptr;
  inet_add_protocol(6, tcp_v4_rcv);
  neigh_error_report = [](net&, neighbour*, sk_buff* skb) { if (skb->sk) skb->sk->err_soft = EHOSTUNREACH; };   // T21: soft, TCP goes on trying
  for (unsigned i = 0; i < tcp_lhash_size; ++i) new (&t->lhash[i]) list_head();
  // Buckets are touched when first used: a zeroed head is an empty one (see bucket()).
  return t;
}

static list_head& bucket(tcp_table* t, uint64_t h) {
  list_head& b = t->ehash[h & t->mask];
  if (ICEPATH_UNLIKELY(!b.next)) new (&b) list_head();
  return b;
}

void tcp_table_destroy(net& n) {
  tcp_table* t = n.tcp;
  if (!t) return;
  for (uint32_t i = 0; i < t->ninit; ++i)
    if (!t->pool[i].freed) tcp_sk_free(n, &t->pool[i]);
  for (uint32_t i = 0; i < t->tw_init; ++i)
    if (!t->tws[i].free_node.linked()) tcp_tw_free(n, &t->tws[i]);
  n.timers.cancel(t->tsq_timer);
  release_array(t->ehash, t->mask + 1);
  release_array(t->lhash, tcp_lhash_size);
  release_array(t->pool, t->max_socks);
  release_array(t->free_socks, t->max_socks);
  release_array(t->tws, t->max_tw);
  n.tcp = nullptr;
  release_array(t, 1);
}

tcp_sock* tcp_sk_alloc(net& n, const tcp_ops* ops, void* owner) {
  tcp_table* t = n.tcp;
  tcp_sock* sk;
  if (t->nfree) sk = t->free_socks[--t->nfree];
  else if (t->ninit < t->max_socks) sk = &t->pool[t->ninit++];
  else return nullptr;
  new (sk) tcp_sock();
  t->n = &n;
  sk->nt = &n;
  sk->ops = ops;
  sk->owner = owner;
  sk->params = t->params;
  sk->sndbuf = sk->params.sndbuf;
  sk->rcvbuf = sk->params.rcvbuf;
  tcp_init_xmit_timers(sk);
  tcp_ca_assign(sk, &tcp_cubic);
  return sk;
}

// The pool slot is reused only when no skb below us points at the socket any more.
void tcp_sk_put_back(net& n, tcp_sock* sk) {
  tcp_table* t = n.tcp;
  if (t) t->free_socks[t->nfree++] = sk;
}

void tcp_sk_free(net& n, tcp_sock* sk) {
  if (sk->freed) return;
  if (sk->state == TCP_LISTEN) tcp_close_listener(n, sk);
  tcp_listener_forget(sk);
  tcp_clear_xmit_timers(sk);
  n.timers.cancel(sk->retransmit_timer.t);
  n.timers.cancel(sk->delack_timer.t);
  n.timers.cancel(sk->keep_timer.t);
  tcp_unhash(sk);
  if (sk->tsq_node.linked()) sk->tsq_node.unlink();
  tcp_write_queue_purge(n, sk);
  sk->sk_receive_queue.purge(n.skbs);
  sk->out_of_order_queue.purge(n.skbs);
  sk->rmem_alloc = 0;
  if (sk->frag_page) n.skbs.frames.put(sk->frag_page);
  sk->frag_page = nullptr;
  if (sk->dst) dst_release(n, sk->dst);
  sk->dst = nullptr;
  sk->state = TCP_CLOSE;
  sk->owner = nullptr;
  sk->ops = nullptr;
  sk->freed = true;
  if (sk->wmem_skbs == 0) tcp_sk_put_back(n, sk);
}

void tcp_set_dst(net& n, tcp_sock* sk, dst_entry* d) {
  if (sk->dst) dst_release(n, sk->dst);
  sk->dst = d;
  sk->dst_pinned = d != nullptr;
}

sock_common* tcp_lookup(net& n, const four_tuple& t) {
  const uint64_t h = tuple_hash(n, t);
  list_head& b = bucket(n.tcp, h);
  for (list_node* p = b.next; p != &b; p = p->next) {
    sock_common* c = list_entry<sock_common, &sock_common::hash_node>(p);
    if (c->hash == h && c->tuple == t) return c;
  }
  return nullptr;
}

bool tcp_hash(net& n, sock_common* c) {
  if (tcp_lookup(n, c->tuple)) return false;
  c->hash = tuple_hash(n, c->tuple);
  bucket(n.tcp, c->hash).push_front(c->hash_node);
  if (!c->is_tw) tcp_sk(c)->hashed = true;
  return true;
}

void tcp_unhash(sock_common* c) {
  if (c->hash_node.linked()) c->hash_node.unlink();
  if (!c->is_tw) tcp_sk(c)->hashed = false;
}

void tcp_hash_listener(net& n, tcp_sock* sk) {
  n.tcp->lhash[sk->tuple.sport % tcp_lhash_size].push_back(sk->hash_node);
  sk->hashed = true;
}

// The bound address wins over the wildcard.
tcp_sock* tcp_lookup_listener(net& n, const inet_addr& addr, uint16_t port) {
  list_head& b = n.tcp->lhash[port % tcp_lhash_size];
  tcp_sock* any = nullptr;
  for (list_node* p = b.next; p != &b; p = p->next) {
    tcp_sock* sk = tcp_sk(list_entry<sock_common, &sock_common::hash_node>(p));
    if (sk->tuple.sport != port) continue;
    if (sk->tuple.saddr == addr) return sk;
    if (sk->tuple.saddr == inet_addr{} || sk->tuple.saddr == inet_addr::v4(0)) any = sk;
  }
  return any;
}

tcp_timewait_sock* tcp_tw_alloc(net& n) {
  tcp_table* t = n.tcp;
  tcp_timewait_sock* tw;
  if (!t->tw_free.empty()) {
    tw = list_entry<tcp_timewait_sock, &tcp_timewait_sock::free_node>(t->tw_free.next);
    tw->free_node.unlink();
  } else if (t->tw_init < t->max_tw) {
    tw = &t->tws[t->tw_init++];
  } else {
    return nullptr;
  }
  new (tw) tcp_timewait_sock();
  tw->is_tw = true;
  tw->nt = &n;
  tw->state = TCP_TIME_WAIT;
  ++t->tw_count;
  return tw;
}

void tcp_tw_free(net& n, tcp_timewait_sock* tw) {
  n.timers.cancel(tw->tm);
  tcp_unhash(tw);
  if (tw->dst) dst_release(n, tw->dst);
  tw->dst = nullptr;
  n.tcp->tw_free.push_front(tw->free_node);
  --n.tcp->tw_count;
}

// RFC 6528: a keyed hash of the connection plus a clock that ticks every 64 ns.
uint32_t tcp_secure_seq(net& n, const four_tuple& t) {
  uint8_t b[36];
  std::memcpy(b, t.saddr.b, 16);
  std::memcpy(b + 16, t.daddr.b, 16);
  std::memcpy(b + 32, &t.sport, 2);
  std::memcpy(b + 34, &t.dport, 2);
  return static_cast<uint32_t>(siphash(n.secret, b, sizeof b)) + static_cast<uint32_t>(n.now >> 6);
}

uint32_t tcp_secure_ts_off(net& n, const four_tuple& t) {
  uint8_t b[32];
  std::memcpy(b, t.saddr.b, 16);
  std::memcpy(b + 16, t.daddr.b, 16);
  return static_cast<uint32_t>(siphash(n.secret, b, sizeof b) >> 32);
}

}  // namespace icepath
