/* connect + accept + close: how many a second.
 *   conn_rate server IP PORT COUNT   accepts, reads to the end of each connection, closes; prints the rate from the first to the last
 *   conn_rate client IP PORT COUNT   connects and closes */
#include "bench.h"

static int server(char** arg) {
  const int l = listen_on(arg[0], arg[1]), count = atoi(arg[2]);
  uint64_t first = 0;
  for (int i = 0; i < count; ++i) {
    char c;
    const int fd = accept(l, NULL, NULL);
    if (fd < 0) die("accept");
    if (i == 0) first = now_ns();
    if (recv(fd, &c, 1, 0) != 0) die("recv: expected the end of the stream");
    if (close(fd) != 0) die("close");
  }
  const double s = (double)(now_ns() - first) / 1e9;
  printf("{\"connections\": %d, \"seconds\": %.6f, \"per_second\": %.1f}\n", count, s, (count - 1) / s);
  return 0;
}

static int client(char** arg) {
  const int count = atoi(arg[2]);
  const struct sockaddr_in a = address_of(arg[0], arg[1]);
  for (int i = 0; i < count; ++i) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) die("socket");
    if (connect(fd, (const struct sockaddr*)&a, sizeof a) != 0) die("connect");
    if (close(fd) != 0) die("close");
  }
  return 0;
}

int main(int argc, char** argv) {
  if (argc == 5 && strcmp(argv[1], "server") == 0) return server(argv + 2);
  if (argc == 5 && strcmp(argv[1], "client") == 0) return client(argv + 2);
  fprintf(stderr, "usage: conn_rate server|client IP PORT COUNT\n");
  return 2;
}
