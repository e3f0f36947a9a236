/* The duration of one send() of 64 bytes.
 *   send_cost server IP PORT                 reads one connection to its end in blocking recv(), answers nothing but a byte at the end
 *   send_cost client IP PORT SENDS GAP_USEC  times each send(); GAP_USEC passes between two, so that the reader sleeps again */
#include <sys/ioctl.h>
#include "bench.h"

static int server(char** arg) {
  static char buf[65536];
  const int l = listen_on(arg[0], arg[1]), fd = accept(l, NULL, NULL);
  uint64_t bytes = 0;
  ssize_t n;
  if (fd < 0) die("accept");
  while ((n = recv(fd, buf, sizeof buf, 0)) > 0) bytes += (uint64_t)n;
  if (n < 0) die("recv");
  if (send(fd, "", 1, MSG_NOSIGNAL) != 1) die("send");
  printf("{\"bytes\": %llu}\n", (unsigned long long)bytes);
  return 0;
}

static int client(char** arg) {
  const int fd = connect_to(arg[0], arg[1]), sends = atoi(arg[2]), warm_up = sends / 5 + 100;
  const uint64_t gap = (uint64_t)atoi(arg[3]) * 1000;
  uint64_t* took = calloc((size_t)sends, sizeof *took);
  char msg[64], end;
  memset(msg, 'x', sizeof msg);
  if (!took) die("calloc");
  for (int i = -warm_up; i < sends; ++i) {
    const uint64_t t0 = now_ns();
    if (send(fd, msg, sizeof msg, 0) != (ssize_t)sizeof msg) die("send");
    const uint64_t t1 = now_ns();
    if (i >= 0) took[i] = t1 - t0;
    while (now_ns() - t1 < gap) {}
  }
  for (int left = 1; left > 0; usleep(1000))   /* what a shutdown finds unread is another matter */
    if (ioctl(fd, TIOCOUTQ, &left) != 0) die("TIOCOUTQ");
  shutdown(fd, SHUT_WR);
  if (recv(fd, &end, 1, MSG_WAITALL) != 1) die("the reader did not get everything");
  qsort(took, (size_t)sends, sizeof *took, by_value);
  printf("{\"sends\": %d, \"gap_usec\": %s, \"median_ns\": %llu, \"p10_ns\": %llu, \"p99_ns\": %llu}\n", sends, arg[3],
         (unsigned long long)percentile(took, (size_t)sends, 0.5), (unsigned long long)percentile(took, (size_t)sends, 0.1),
         (unsigned long long)percentile(took, (size_t)sends, 0.99));
  free(took);
  return 0;
}

int main(int argc, char** argv) {
  if (argc == 4 && strcmp(argv[1], "server") == 0) return server(argv + 2);
  if (argc == 6 && strcmp(argv[1], "client") == 0) return client(argv + 2);
  fprintf(stderr, "usage: send_cost server IP PORT | client IP PORT SENDS GAP_USEC\n");
  return 2;
}
