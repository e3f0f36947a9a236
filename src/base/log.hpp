// One line on stderr, `icepath: …`, for set-up failures and for those who ask (ICEPATH_LOG). Never per packet.
// Any thread, any signal handler: formatted into a stack buffer, written by one raw write(2), errno untouched, nothing allocated, no SIGPIPE or SIGXFSZ.
// Formats: %d %i %u %x %c %s %p %% with h, l, ll, z, width, 0, - and %.*s; what does not fit in 512 bytes is cut.
#pragma once
#include <atomic>
#include <cstdarg>
#include <cstddef>

namespace icepath {

enum class log_level : int { error, warn, info, debug };

extern std::atomic<int> log_threshold;   // set by config; warn until then
inline bool log_enabled(log_level l) { return static_cast<int>(l) <= log_threshold.load(std::memory_order_relaxed); }

size_t format_line(char* to, size_t room, const char* fmt, va_list ap);   // always terminated; characters written
[[gnu::format(printf, 3, 4)]] size_t format(char* to, size_t room, const char* fmt, ...);
[[gnu::format(printf, 1, 2)]] void log_last_line(const char* fmt, ...);   // at exit, whatever the level: ICEPATH_STATS

[[gnu::format(printf, 1, 2)]] void log_error(const char* fmt, ...);
[[gnu::format(printf, 1, 2)]] void log_warn(const char* fmt, ...);
[[gnu::format(printf, 1, 2)]] void log_info(const char* fmt, ...);
[[gnu::format(printf, 1, 2)]] void log_debug(const char* fmt, ...);

}  // namespace icepath
