// See log.hpp.
#include "base/log.hpp"

#include <cstdint>
#include <cstring>

#include "base/quiet_signals.hpp"
#include "base/raw_syscall.hpp"

namespace icepath {

std::atomic<int> log_threshold{static_cast<int>(log_level::warn)};

namespace {

struct out {
  char* p;
  char* end;  // room for the terminator is behind it
  void put(char c) { if (p < end) *p++ = c; }
  void put(const char* s, size_t n) { while (n--) put(*s++); }
  void pad(char c, long n) { while (n-- > 0) put(c); }
};

void put_number(out& o, uint64_t v, unsigned base, bool neg, long width, bool zero, bool left) {
  char digits[24];
  size_t n = 0;
  do digits[n++] = "0123456789abcdef"[v % base];
  while (v /= base);
  const long fill = width - static_cast<long>(n) - neg;
  if (!left && !zero) o.pad(' ', fill);
  if (neg) o.put('-');
  if (!left && zero) o.pad('0', fill);
  while (n) o.put(digits[--n]);
  if (left) o.pad(' ', fill);
}

void emit(const char* fmt, va_list ap, bool last = false) {
  char line[512];
  static constexpr char head[] = "icepath: ";
  std::memcpy(line, head, sizeof head - 1);
  size_t n = sizeof head - 1;
  n += format_line(line + n, sizeof line - n, fmt, ap);
  line[n++] = '\n';
  quiet_signals quiet;
  quiet.result(raw_syscall(SYS_write, 2, line, n), last);
}

}  // namespace

size_t format_line(char* to, size_t room, const char* fmt, va_list ap) {
  if (!room) return 0;
  out o{to, to + room - 1};
  for (; *fmt; ++fmt) {
    if (*fmt != '%') {
      o.put(*fmt);
      continue;
    }
    ++fmt;
    bool zero = false, left = false;
    for (; *fmt == '0' || *fmt == '-'; ++fmt) (*fmt == '0' ? zero : left) = true;
    long width = 0, precision = -1;
    if (*fmt == '*') width = va_arg(ap, int), ++fmt;
    else for (; *fmt >= '0' && *fmt <= '9'; ++fmt) width = width * 10 + (*fmt - '0');
    if (*fmt == '.') {
      precision = 0;
      if (*++fmt == '*') precision = va_arg(ap, int), ++fmt;
      else for (; *fmt >= '0' && *fmt <= '9'; ++fmt) precision = precision * 10 + (*fmt - '0');
    }
    int longs = 0;
    for (; *fmt == 'l' || *fmt == 'z' || *fmt == 'h' || *fmt == 'j' || *fmt == 't'; ++fmt) longs += *fmt != 'h';
    switch (*fmt) {
      case 'd':
      case 'i': {
        const long long v = longs > 1 ? va_arg(ap, long long) : longs ? va_arg(ap, long) : va_arg(ap, int);
        const auto u = static_cast<uint64_t>(v);
        put_number(o, v < 0 ? 0 - u : u, 10, v < 0, width, zero, left);
        break;
      }
      case 'u':
      case 'x':
        put_number(o, longs > 1 ? va_arg(ap, unsigned long long) : longs ? va_arg(ap, unsigned long) : va_arg(ap, unsigned),
                   *fmt == 'x' ? 16 : 10, false, width, zero, left);
        break;
      case 'p':
        o.put("0x", 2);
        put_number(o, reinterpret_cast<uintptr_t>(va_arg(ap, void*)), 16, false, width, zero, left);
        break;
      case 'c':
        o.put(static_cast<char>(va_arg(ap, int)));
        break;
      case 's': {
        const char* s = va_arg(ap, const char*);
        if (!s) s = "(null)";
        size_t n = 0;
        while ((precision < 0 || n < static_cast<size_t>(precision)) && s[n]) ++n;
        const long fill = width - static_cast<long>(n);
        if (!left) o.pad(' ', fill);
        o.put(s, n);
        if (left) o.pad(' ', fill);
        break;
      }
      case '\0':
        --fmt;
        break;
      default:
        o.put(*fmt);
    }
  }
  *o.p = '\0';
  return static_cast<size_t>(o.p - to);
}

size_t format(char* to, size_t room, const char* fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  const size_t n = format_line(to, room, fmt, ap);
  va_end(ap);
  return n;
}

void log_last_line(const char* fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  emit(fmt, ap, true);
  va_end(ap);
}

#define ICEPATH_LOG_FN(name)                 \
  void log_##name(const char* fmt, ...) {    \
    if (!log_enabled(log_level::name)) return; \
    va_list ap;                              \
    va_start(ap, fmt);                       \
    emit(fmt, ap);                           \
    va_end(ap);                              \
  }
ICEPATH_LOG_FN(error)
ICEPATH_LOG_FN(warn)
ICEPATH_LOG_FN(info)
ICEPATH_LOG_FN(debug)
#undef ICEPATH_LOG_FN

}  // namespace icepath
