#include "fake_region.hpp"

namespace ringtest {
fake_table* table;
uint8_t* fake_base[fake_slots];
uint64_t fake_bytes[fake_slots];
std::string fake_dir;
int rings_out;
namespace {
struct piece { uint8_t* p; size_t n; bool used; };
piece pieces[fake_slots][1024];
constexpr uint64_t frames_off = region_frames_off;
}  // namespace

void fake_init() {
  if (table) return;
  void* m = mmap(nullptr, sizeof(fake_table), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  table = new (m) fake_table;
  char dir[] = "/tmp/icepath-ring-XXXXXX";
  fake_dir = mkdtemp(dir);
}

void fake_make(uint32_t slot, uint32_t nr_frames) {
  fake_bytes[slot] = frames_off + uint64_t{nr_frames} * frame_size;
  fake_base[slot] = static_cast<uint8_t*>(mmap(nullptr, fake_bytes[slot], PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  table->cookie[slot] = hash_mix(slot + 77 + table->cookie[slot]);
}

void fake_open(region& r, uint32_t slot, uint32_t nr_frames) {
  if (!fake_base[slot]) fake_make(slot, nr_frames);
  r.base = fake_base[slot];
  r.bytes = fake_bytes[slot];
  r.slot = slot;
  r.cookie = table->cookie[slot];
  r.dir_fd = open(fake_dir.c_str(), O_PATH | O_DIRECTORY);
  r.hdr = new (r.base) region_header;
  r.hdr->version = region_version;
  r.hdr->cookie = r.cookie;
  r.hdr->nr_frames = nr_frames;
  if (!r.frames.init(r.base + frames_off, nr_frames, nullptr, nullptr).ok()) abort();
  for (auto& p : pieces[slot]) p = {};
  table->alive[slot] = 1;
}

void fake_close(region& r) {
  table->alive[r.slot] = 0;
  r.frames.destroy();
  close(r.dir_fd);
  munmap(fake_base[r.slot], fake_bytes[r.slot]);
  fake_base[r.slot] = nullptr;
}

host::host(region& reg, uint16_t stack_no) : r(&reg), no(stack_no) {
  n.skbs.init(&reg.frames);
  n.stats = &stats;
  n.now = 1;
  auto p = local_port_create(reg, n, stack_no);
  if (!p.ok()) abort();
  port = *p;
  n.dev = local_port_dev(port);
}
host::~host() {
  if (port) local_port_destroy(port);
  n.skbs.destroy();
}
uint32_t host::held() {
  n.skbs.frames.drain();
  return r->frames.in_use();
}
sk_buff* host::frame(const uint8_t dst[6], uint32_t payload, uint32_t tag) {
  sk_buff* s = n.skbs.alloc();
  if (!s) return nullptr;
  uint8_t* h = skb_put(s, 14);
  std::memcpy(h, dst, 6);
  std::memcpy(h + 6, dev().dev_addr, 6);
  h[12] = 0x88;
  h[13] = 0xb5;
  const uint32_t lin = payload < 1500 ? payload : 0;
  uint8_t* d = skb_put(s, lin);
  for (uint32_t i = 0; i < lin; ++i) d[i] = static_cast<uint8_t>(tag + i * 7);
  for (uint32_t at = lin; at < payload;) {
    const uint32_t k = payload - at < frame_size ? payload - at : static_cast<uint32_t>(frame_size);
    uint8_t* f = n.skbs.frames.alloc();
    if (!f) {
      n.skbs.free(s);
      return nullptr;
    }
    for (uint32_t i = 0; i < k; ++i) f[i] = static_cast<uint8_t>(tag + (at + i) * 7);
    s->frags[s->nr_frags++] = {f, k};
    s->len += k;
    s->data_len += k;
    at += k;
  }
  return s;
}
bool check_frame(const sk_buff* skb, uint32_t payload, uint32_t tag) {
  if (skb->len != payload + 14) return false;
  std::string b(payload, 0);
  skb_copy_bits(skb, 14, b.data(), payload);
  for (uint32_t i = 0; i < payload; ++i)
    if (static_cast<uint8_t>(b[i]) != static_cast<uint8_t>(tag + i * 7)) return false;
  return true;
}
bool join(host& a, host& b, uint16_t* txq, uint8_t mac[6]) {
  sk_buff* none[1];
  for (int i = 0; i < 10; ++i) {
    if (local_port_attach(a.port, b.id(), txq, mac) == attach::ready) return true;
    if (b.dev().rx_burst(none, 0) || a.dev().rx_burst(none, 0)) return false;
  }
  return false;
}
}  // namespace ringtest

namespace icepath {
using namespace ringtest;
uint8_t* region::alloc_ring(size_t bytes) {
  uint8_t* next = base + region_rings_off;
  for (auto& p : pieces[slot]) {
    if (!p.p) p = {next, bytes, false};
    next = p.p + p.n;
    if (next > base + region_frames_off) { p.p = nullptr; return nullptr; }
    if (!p.used && p.n == bytes) {
      p.used = true;
      ++rings_out;
      std::memset(p.p, 0, bytes);
      return p.p;
    }
  }
  return nullptr;
}
void region::free_ring(uint8_t* ptr, size_t) {
  for (auto& p : pieces[slot])
    if (p.p == ptr && p.used) { p.used = false; --rings_out; return; }
  abort();
}
result<region_peer> region_open_peer(uint32_t slot, uint64_t cookie, bool) {
  if (slot >= fake_slots || !table->alive[slot] || !fake_base[slot] || (cookie && cookie != table->cookie[slot])) return result<region_peer>::error(ESRCH);
  region_peer p;
  p.base = fake_base[slot];
  p.bytes = fake_bytes[slot];
  p.slot = slot;
  p.cookie = table->cookie[slot];
  return p;
}
void region_close_peer(region_peer& p) { p = {}; }
bool region_alive(uint32_t slot, uint64_t cookie) { return slot < fake_slots && table->alive[slot] && table->cookie[slot] == cookie; }
}  // namespace icepath
