// What a barrier costs that proves "every softirq that was running has ended" (src/sock/kernel_settle.cpp), idle and with one busy thread.
// Prints median, 90 % and maximum in microseconds for each way. Needs root.
#include <arpa/inet.h>
#include <linux/membarrier.h>
#include <net/ethernet.h>
#include <sys/socket.h>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>
#include "base/clock.hpp"
#include "sock/kernel_repair.hpp"

using namespace icepath;

static void measure(const char* name, void (*f)(), int rounds) {
  std::vector<nsec> t;
  f();
  for (int i = 0; i < rounds; ++i) {
    const nsec a = clock_now();
    f();
    t.push_back(clock_now() - a);
    if (i % 4 == 0) ::usleep(500);
  }
  std::sort(t.begin(), t.end());
  const auto us = [&](size_t i) { return static_cast<double>(t[i]) * 1e-3; };
  std::printf("%-28s median %9.1f us   90 %% %9.1f   max %9.1f   (%d calls)\n", name, us(t.size() / 2), us(t.size() * 9 / 10),
              us(t.size() - 1), rounds);
}

int main() {
  std::atomic<bool> stop{false};
  for (const bool busy : {false, true}) {
    std::thread burner;
    if (busy) burner = std::thread([&] { while (!stop.load(std::memory_order_relaxed)) cpu_relax(); });
    std::printf("-- %s\n", busy ? "one busy thread" : "idle");
    measure("kernel_settle", [] { if (kernel_settle()) std::printf("failed\n"); }, 500);
    measure("membarrier GLOBAL", [] { raw_syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0); }, 100);
    measure("packet socket open, close", [] { ::close(::socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL))); }, 100);
    stop = busy;
    if (busy) burner.join();
  }
  return 0;
}
