/* The cost of a call on an fd that is no socket: write(1 byte) to /dev/null, read(1 byte) from /dev/zero, poll of one. Batches of calls as the
 * program makes them (under icepath: its functions) and of libc's own functions, found by name in libc, take turns in this one process; of the batches of
 * each kind the tenth percentile counts: what a batch costs when nothing interrupts it. Without icepath both are the same function. */
#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include "bench.h"

enum { batches = 401, calls = 2000, kinds = 3 };

static ssize_t (*libc_write)(int, const void*, size_t);
static ssize_t (*libc_read)(int, void*, size_t);
static int (*libc_poll)(struct pollfd*, nfds_t, int);
static const char* const names[kinds] = {"write", "read", "poll"};

static uint64_t batch(int kind, int direct, int fd) {
  char c = 0;
  struct pollfd p = {.fd = fd, .events = POLLIN};
  ssize_t (*const w)(int, const void*, size_t) = direct ? libc_write : write;
  ssize_t (*const r)(int, void*, size_t) = direct ? libc_read : read;
  int (*const l)(struct pollfd*, nfds_t, int) = direct ? libc_poll : poll;
  const uint64_t t0 = now_ns();
  for (int i = 0; i < calls; ++i)
    if ((kind == 0 ? w(fd, &c, 1) : kind == 1 ? r(fd, &c, 1) : l(&p, 1, 0)) != 1) die("call");
  return now_ns() - t0;
}

static double undisturbed(uint64_t* took) {
  qsort(took, batches, sizeof *took, by_value);
  return (double)percentile(took, batches, 0.1) / calls;
}

static void* in_libc(void* libc, const char* name) {
  void* const f = dlsym(libc, name);
  if (!f) die(name);
  return f;
}

int main(void) {
  static uint64_t own[batches], direct[batches];
  const int fd[kinds] = {open("/dev/null", O_WRONLY), open("/dev/zero", O_RDONLY), open("/dev/zero", O_RDONLY)};
  void* const libc = dlopen("libc.so.6", RTLD_NOW);
  if (fd[0] < 0 || fd[1] < 0 || fd[2] < 0 || !libc) die("open");
  libc_write = in_libc(libc, "write");
  libc_read = in_libc(libc, "read");
  libc_poll = in_libc(libc, "poll");
  /* A TCP socket exists, as in every program that uses icepath: its tables are set up. */
  if (socket(AF_INET, SOCK_STREAM, 0) < 0) die("socket");
  printf("{");
  for (int k = 0; k < kinds; ++k) {
    for (int b = 0; b < batches; ++b) {
      own[b] = batch(k, 0, fd[k]);
      direct[b] = batch(k, 1, fd[k]);
    }
    printf("%s\"%s_ns\": %.2f, \"libc_%s_ns\": %.2f", k ? ", " : "", names[k], undisturbed(own), names[k], undisturbed(direct));
  }
  printf("}\n");
  return 0;
}
