/* Many connections open at once, each of which echoes.
 *   conns10k server IP PORT                  epoll echo server; ends when its standard input ends
 *   conns10k client IP PORT COUNT ROUNDS     opens COUNT connections, sends and checks ROUNDS messages on each, prints
 *                                            {"open": COUNT, ...}, waits for a line on standard input, then does one more round
 *                                            on every connection, closes them and prints {"verified": ...} */
#include <sys/epoll.h>
#include "bench.h"

enum { message = 32 };

static void raise_nofile(unsigned need) {
  struct rlimit r;
  getrlimit(RLIMIT_NOFILE, &r);
  if (r.rlim_max < need) { /* only root can */
    struct rlimit more = {need, need};
    if (setrlimit(RLIMIT_NOFILE, &more) == 0) return;
  }
  r.rlim_cur = r.rlim_max;
  setrlimit(RLIMIT_NOFILE, &r);
  if (r.rlim_cur < need) {
    fprintf(stderr, "RLIMIT_NOFILE is %llu, %u are needed\n", (unsigned long long)r.rlim_cur, need);
    exit(1);
  }
}

static void server_add(int ep, int fd) {
  struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
  if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) != 0) die("epoll_ctl");
}

static int server(char** arg) {
  const int l = listen_on(arg[0], arg[1]), ep = epoll_create1(0);
  struct epoll_event ev[256];
  char buf[4096];
  if (ep < 0) die("epoll_create1");
  server_add(ep, l);
  server_add(ep, 0);
  for (;;) {
    const int n = epoll_wait(ep, ev, 256, -1);
    if (n < 0 && errno != EINTR) die("epoll_wait");
    for (int i = 0; i < n; ++i) {
      const int fd = ev[i].data.fd;
      if (fd == l) {
        const int c = accept(l, NULL, NULL), one = 1;
        if (c < 0) die("accept");
        setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        server_add(ep, c);
        continue;
      }
      const ssize_t got = read(fd, buf, sizeof buf);
      if (fd == 0) {
        if (got <= 0) return 0;
        continue;
      }
      if (got <= 0) {
        close(fd);
        continue;
      }
      for (ssize_t done = 0, w; done < got; done += w)
        if ((w = write(fd, buf + done, (size_t)(got - done))) <= 0) die("write");
    }
  }
}

static void echo(int fd, int no, int round) {
  char out[message], in[message];
  memset(out, 0, sizeof out);
  snprintf(out, sizeof out, "connection %d round %d", no, round);
  if (write(fd, out, sizeof out) != (ssize_t)sizeof out) die("write");
  for (size_t done = 0; done < sizeof in;) {
    const ssize_t n = read(fd, in + done, sizeof in - done);
    if (n <= 0) die("read: connection ended");
    done += (size_t)n;
  }
  if (memcmp(in, out, sizeof in) != 0) {
    fprintf(stderr, "connection %d round %d: a different message came back\n", no, round);
    exit(1);
  }
}

static int client(char** arg) {
  const int count = atoi(arg[2]), rounds = atoi(arg[3]);
  int* fds = calloc((size_t)count, sizeof *fds);
  char line[16];
  if (!fds) die("calloc");
  const uint64_t t0 = now_ns();
  for (int i = 0; i < count; ++i) {
    fds[i] = connect_to(arg[0], arg[1]);
    for (int r = 0; r < rounds; ++r) echo(fds[i], i, r);
  }
  printf("{\"open\": %d, \"seconds\": %.3f}\n", count, (double)(now_ns() - t0) / 1e9);
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) return 1;
  for (int i = 0; i < count; ++i) echo(fds[i], i, rounds);
  for (int i = 0; i < count; ++i) close(fds[i]);
  printf("{\"verified\": %d}\n", count);
  free(fds);
  return 0;
}

int main(int argc, char** argv) {
  raise_nofile(10100);
  if (argc == 4 && strcmp(argv[1], "server") == 0) return server(argv + 2);
  if (argc == 6 && strcmp(argv[1], "client") == 0) return client(argv + 2);
  fprintf(stderr, "usage: conns10k server IP PORT | client IP PORT COUNT ROUNDS\n");
  return 2;
}
