/* The cost of a call on an fd that is no socket: write(1 byte) to /dev/null and read(1 byte) from /dev/zero.
 * Prints the tenth percentile over 201 batches of the time per call: what a batch costs when nothing interrupts it. */
#include <fcntl.h>
#include "bench.h"

enum { batches = 201, calls = 5000 };

static double undisturbed_ns(int fd, int writing) {
  uint64_t took[batches];
  char c = 0;
  for (int b = 0; b < batches; ++b) {
    const uint64_t t0 = now_ns();
    for (int i = 0; i < calls; ++i)
      if ((writing ? write(fd, &c, 1) : read(fd, &c, 1)) != 1) die("call");
    took[b] = now_ns() - t0;
  }
  qsort(took, batches, sizeof *took, by_value);
  return (double)percentile(took, batches, 0.1) / calls;
}

int main(void) {
  const int null = open("/dev/null", O_WRONLY), zero = open("/dev/zero", O_RDONLY);
  if (null < 0 || zero < 0) die("open");
  /* A TCP socket exists, as in every program that uses icepath: its tables are set up. */
  if (socket(AF_INET, SOCK_STREAM, 0) < 0) die("socket");
  const double w = undisturbed_ns(null, 1), r = undisturbed_ns(zero, 0);
  printf("{\"write_ns\": %.2f, \"read_ns\": %.2f}\n", w, r);
  return 0;
}
