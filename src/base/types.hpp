// Basic vocabulary of icepath: time, results, byte order, sequence numbers.
// Pure values, no state; any thread.
#pragma once
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace icepath {

using nsec = uint64_t;  // monotonic time or a span of it, nanoseconds
constexpr nsec usec_ns = 1000, msec_ns = 1000 * 1000, sec_ns = 1000ull * 1000 * 1000;

#define ICEPATH_LIKELY(x) __builtin_expect(!!(x), 1)
#define ICEPATH_UNLIKELY(x) __builtin_expect(!!(x), 0)

// A value or an errno. errno itself is written only in preload/.
template <class T>
class [[nodiscard]] result {
 public:
  constexpr result(T v) : v_(std::move(v)), err_(0) {}
  static constexpr result error(int e) { result r{T{}}; r.err_ = e; return r; }
  constexpr bool ok() const { return err_ == 0; }
  constexpr explicit operator bool() const { return ok(); }
  constexpr int err() const { return err_; }       // positive errno, 0 when ok
  constexpr const T& value() const { return v_; }  // T{} when !ok()
  constexpr const T& operator*() const { return v_; }

 private:
  T v_;
  int err_;
};

// A TCP sequence number (RFC 9293 section 3.4): compared modulo 2^32.
constexpr bool before(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) < 0; }
constexpr bool after(uint32_t a, uint32_t b) { return before(b, a); }
constexpr bool between(uint32_t s1, uint32_t s2, uint32_t s3) { return s3 - s2 >= s1 - s2; }  // s2<=s1<=s3

// Network byte order in wire structs: a type, so that a missing swap does not compile.
template <class T>
struct [[gnu::packed]] be {
  T raw;
  constexpr T get() const { return swap(raw); }
  constexpr void set(T v) { raw = swap(v); }
  constexpr operator T() const { return get(); }
  constexpr be& operator=(T v) { set(v); return *this; }
  static constexpr T swap(T v) {
    if constexpr (sizeof(T) == 2) return static_cast<T>(__builtin_bswap16(v));
    else if constexpr (sizeof(T) == 4) return static_cast<T>(__builtin_bswap32(v));
    else return static_cast<T>(__builtin_bswap64(v));
  }
};
using be16 = be<uint16_t>;
using be32 = be<uint32_t>;
using be64 = be<uint64_t>;
static_assert(sizeof(be16) == 2 && sizeof(be32) == 4 && alignof(be32) == 1);

// An IPv4 or IPv6 address in 16 bytes; IPv4 is held v4-mapped (::ffff:a.b.c.d, RFC 4291 section 2.5.5.2).
struct inet_addr {
  uint8_t b[16];
  static inet_addr v4(uint32_t host_order) {
    inet_addr a{};
    a.b[10] = a.b[11] = 0xff;
    const uint32_t n = __builtin_bswap32(host_order);
    std::memcpy(a.b + 12, &n, 4);
    return a;
  }
  bool is_v4() const {
    static constexpr uint8_t p[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    return std::memcmp(b, p, 12) == 0;
  }
  uint32_t to_v4() const { uint32_t n; std::memcpy(&n, b + 12, 4); return __builtin_bswap32(n); }
  bool operator==(const inet_addr& o) const { return std::memcmp(b, o.b, 16) == 0; }
};

// A connection's name, seen from the local end. Ports in host order.
struct four_tuple {
  inet_addr saddr, daddr;
  uint16_t sport, dport;
  bool operator==(const four_tuple& o) const {
    return saddr == o.saddr && daddr == o.daddr && sport == o.sport && dport == o.dport;
  }
  four_tuple reversed() const { return {daddr, saddr, dport, sport}; }
};

inline uint64_t hash_mix(uint64_t x) {  // splitmix64 finalizer
  x ^= x >> 30; x *= 0xbf58476d1ce4e5b9ull;
  x ^= x >> 27; x *= 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}
inline uint64_t hash_of(const four_tuple& t) {
  uint64_t s[2], d[2];
  std::memcpy(s, t.saddr.b, 16);
  std::memcpy(d, t.daddr.b, 16);
  const uint64_t p = (uint64_t{t.sport} << 16) | t.dport;
  return hash_mix(hash_mix(hash_mix(s[0] ^ (d[0] << 1)) ^ s[1]) ^ (d[1] << 1) ^ p);
}

}  // namespace icepath
