// The barrier of a take-over. A softirq is not preempted by a task (but with PREEMPT_RT), so when this thread has run on a CPU, the softirq that was
// going on there has ended. Visiting a CPU costs some tens of microseconds; an RCU grace period (membarrier) proves the same and takes 8 to 16 ms.
// The thread's affinity and scheduling class are as before when it returns. Any thread; blocks for that long.
#include <fcntl.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/utsname.h>

#include "sock/kernel_repair.hpp"

namespace icepath {

namespace {

constexpr size_t max_cpus = 8192;
struct cpu_mask { unsigned long w[max_cpus / (8 * sizeof(unsigned long))]; };

bool realtime_kernel() {
  utsname u;
  return raw_syscall(SYS_uname, &u) < 0 || __builtin_strstr(u.version, "PREEMPT_RT") != nullptr;
}

// "0-3,8" of /sys/devices/system/cpu/online. false: not readable.
bool online_cpus(cpu_mask& m) {
  const long fd = raw_syscall(SYS_openat, AT_FDCWD, "/sys/devices/system/cpu/online", O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return false;
  char b[4096];
  const long len = raw_syscall(SYS_read, fd, b, sizeof b - 1);
  raw_syscall(SYS_close, fd);
  if (len <= 0) return false;
  m = {};
  size_t first = 0, v = 0;
  bool range = false, any = false;
  for (long i = 0; i <= len; ++i) {
    const char ch = i < len ? b[i] : ',';
    if (ch >= '0' && ch <= '9') {
      v = v * 10 + static_cast<size_t>(ch - '0');
      any = true;
      if (v >= max_cpus) return false;
    } else if (ch == '-') {
      first = v;
      v = 0;
      range = true;
    } else {
      if (any)
        for (size_t k = range ? first : v; k <= v; ++k) m.w[k / 64] |= 1ul << (k % 64);
      v = 0;
      range = any = false;
    }
  }
  return true;
}

// False: some CPU could not be visited.
bool visit_all() {
  cpu_mask online, old{};
  if (!online_cpus(online)) return false;
  const long bytes = raw_syscall(SYS_sched_getaffinity, 0, sizeof old, &old);
  if (bytes < 0) return false;
  sched_param before_p{};
  const long policy = raw_syscall(SYS_sched_getscheduler, 0);
  raw_syscall(SYS_sched_getparam, 0, &before_p);
  const sched_param fifo{1};
  // Else a busy CPU makes us wait.
  const bool raised = policy == SCHED_OTHER && raw_syscall(SYS_sched_setscheduler, 0, SCHED_FIFO | SCHED_RESET_ON_FORK, &fifo) >= 0;
  bool all = true;
  for (size_t k = 0; all && k < max_cpus; ++k) {
    if (!(online.w[k / 64] >> (k % 64) & 1)) continue;
    cpu_mask one{};
    one.w[k / 64] = 1ul << (k % 64);
    unsigned now = ~0u;
    all = raw_syscall(SYS_sched_setaffinity, 0, sizeof one, &one) >= 0 && raw_syscall(SYS_getcpu, &now, nullptr, nullptr) >= 0 && now == k;
  }
  raw_syscall(SYS_sched_setaffinity, 0, static_cast<size_t>(bytes), &old);
  if (raised) raw_syscall(SYS_sched_setscheduler, 0, policy, &before_p);
  return all;
}

}  // namespace

int kernel_settle() {
  static const bool rt = realtime_kernel();
  if (!rt && visit_all()) return 0;
  const long r = raw_syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
  return r < 0 ? static_cast<int>(r) : 0;
}

}  // namespace icepath
