// See pool.hpp. The table is one lazily touched mapping: 8 MiB of address space, a page per 512 descriptors used.
#include "sock/pool.hpp"

#include <sys/mman.h>

#include <new>

#include "base/alloc.hpp"
#include "sock/rows.hpp"

namespace icepath {
namespace {

constexpr uint32_t chunk = 512, chunks = 4096;
socket* pool[chunks];
uint32_t made = 0;
list_head free_socks, live_socks;
std::atomic<uint32_t> lock{0};
std::atomic<file*> no_slot{nullptr};

void take() { while (lock.exchange(1, std::memory_order_acquire)) __builtin_ia32_pause(); }
void give() { lock.store(0, std::memory_order_release); }

}  // namespace

std::atomic<file*>* fdtable = &no_slot;
unsigned fdtable_limit = 0;

bool fdtable_start() {
  if (fdtable_limit) return true;
  void* m = ::mmap(nullptr, sizeof(std::atomic<file*>) * fdtable_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) return false;
  fdtable = static_cast<std::atomic<file*>*>(m);
  fdtable_limit = fdtable_size;
  return true;
}

void fdtable_stop() { __atomic_store_n(&fdtable_limit, 0u, __ATOMIC_RELEASE); }

socket* socket_alloc() {
  take();
  if (free_socks.empty() && made < chunk * chunks) {   // one at a time: a page that is not needed is not touched
    if (made % chunk == 0) {
      void* m = ::mmap(nullptr, chunk * sizeof(socket), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      pool[made / chunk] = m == MAP_FAILED ? nullptr : static_cast<socket*>(m);
    }
    if (pool[made / chunk]) {
      auto* fresh = new (&pool[made / chunk][made % chunk]) socket;
      free_socks.push_back(fresh->member);
      ++made;
    }
  }
  socket* s = nullptr;
  if (!free_socks.empty()) {
    s = list_entry<socket, &socket::member>(free_socks.next);
    s->member.unlink();
    // A plain call may still sleep in the kernel on the socket this was: its counters come down when it returns.
    for (unsigned tries = 0; (s->rx_calls.load() | s->tx_calls.load() | s->refs.load()) && tries < 64 && !free_socks.empty(); ++tries) {
      free_socks.push_back(s->member);
      s = list_entry<socket, &socket::member>(free_socks.next);
      s->member.unlink();
    }
    s->~socket();
    new (s) socket;
    s->kind = file_kind::tcp;
    live_socks.push_back(s->member);
  }
  give();
  static std::atomic<uint32_t> serials{0};
  if (s) { s->row = row_alloc(); s->serial = serials.fetch_add(1, std::memory_order_relaxed) + 1; }
  return s;
}

void socket_release(socket* s) {
  mem_free(s->prefix);
  s->prefix = nullptr;
  s->prefix_len.store(0, std::memory_order_relaxed);
  row_free(s->row);
  take();
  s->row = ~0u;
  s->kind = file_kind::none;
  s->member.unlink();
  free_socks.push_back(s->member);
  give();
}

void fd_install(int fd, file* f) {
  if (static_cast<unsigned>(fd) >= fdtable_limit) return;
  f->nr_fds.fetch_add(1, std::memory_order_relaxed);
  f->fd.store(fd, std::memory_order_relaxed);
  fdtable[fd].store(f, std::memory_order_release);
}

file* fd_remove(int fd) {
  if (static_cast<unsigned>(fd) >= fdtable_limit) return nullptr;
  file* f = fdtable[fd].exchange(nullptr, std::memory_order_acq_rel);
  if (f) f->nr_fds.fetch_sub(1, std::memory_order_acq_rel);
  return f;
}

void sockets_for_each(void (*fn)(socket*, void*), void* ctx) {
  // A snapshot: fn may take owner words, and who holds one may come for the pool's lock. Objects are type-stable; fn re-checks.
  take();
  size_t n = 0;
  for (list_node* p = live_socks.next; p != &live_socks; p = p->next) ++n;
  auto** snap = static_cast<socket**>(mem_alloc(n * sizeof(socket*) + 1));
  n = 0;
  if (snap)
    for (list_node* p = live_socks.next; p != &live_socks; p = p->next) snap[n++] = list_entry<socket, &socket::member>(p);
  give();
  for (size_t i = 0; i < n; ++i)
    if (snap[i]->kind == file_kind::tcp) fn(snap[i], ctx);
  mem_free(snap);
}

void sockets_forget_locks() { lock.store(0, std::memory_order_relaxed); }

}  // namespace icepath
