// Descriptors and processes, seen from a program under LD_PRELOAD: our own descriptors survive it, and children do not
// disturb the parent's table.
#include "host.hpp"
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>

namespace {

constexpr int internal = 500;               // where the fake layer keeps its own descriptor

bool alive(int fd) { return fcntl(fd, F_GETFD) >= 0; }
int status_of(pid_t pid) {
  int st = -1;
  EXPECT_EQ(pid, waitpid(pid, &st, 0));
  return WIFEXITED(st) ? WEXITSTATUS(st) : -WTERMSIG(st);
}
// Runs fn in a child, so that closing everything does not hurt the tests; its value is the exit status.
template <class F>
int in_child(F fn) {
  const pid_t pid = fork();
  if (pid == 0) _exit(fn());
  return status_of(pid);
}

TEST(descriptors, program_that_closes_everything_leaves_ours) {
  EXPECT_EQ(0, in_child([] {
    for (int fd = 3; fd < 1024; ++fd) {
      errno = 0;
      if (close(fd) == 0 ? fd == internal : errno != EBADF) return 1;
    }
    return alive(internal) ? 0 : 2;
  }));
  EXPECT_EQ(0, in_child([] { closefrom(3); return alive(internal) && !alive(internal - 1) ? 0 : 1; }));
  EXPECT_EQ(0, in_child([] {
    const int a = dup2(1, internal - 1), b = dup2(1, internal + 1), s = socket(AF_INET, SOCK_STREAM, 0);
    if (!alive(a) || !alive(b)) return 1;
    errno = 77;
    if (close_range(3, ~0u, 0) != 0 || errno != 77) return 2;
    return alive(internal) && !alive(a) && !alive(b) && !alive(s) ? 0 : 3;
  }));
  EXPECT_EQ(0, in_child([] { return close_range(internal, internal, 0) == 0 && alive(internal) ? 0 : 1; }));
  EXPECT_EQ(0, in_child([] { return close_range(9, 3, 0) == -1 && errno == EINVAL ? 0 : 1; }));
  EXPECT_EQ(0, in_child([] { return syscall(SYS_close, internal) == -1 && alive(internal) ? 0 : 1; }));
}

TEST(descriptors, ours_cannot_be_replaced) {
  EXPECT_EQ(0, in_child([] {
    const int null = open("/dev/null", O_RDONLY);
    if (dup2(null, internal) != -1 || errno != EBUSY) return 1;
    if (dup3(null, internal, O_CLOEXEC) != -1 || errno != EBUSY) return 2;
    return alive(internal) ? 0 : 3;
  }));
  EXPECT_EQ(0, in_child([] { return dup2(999, internal) == -1 && errno == EBADF && alive(internal) ? 0 : 1; }));
}

TEST(descriptors, duplicates_are_followed) {
  pair_of_sockets p;
  const int before = count(dups);
  const int d = dup(p.a), e = fcntl(p.a, F_DUPFD, 100), f = fcntl(p.a, F_DUPFD_CLOEXEC, 100);
  EXPECT_EQ(50, dup2(p.a, 50));
  EXPECT_EQ(51, dup3(p.a, 51, O_CLOEXEC));
  EXPECT_EQ(before + 5, count(dups));
  const int s = count(sends);
  for (int fd : {d, e, f, 50, 51}) EXPECT_EQ(1, write(fd, "x", 1));
  EXPECT_EQ(s + 5, count(sends));
  const int null = open("/dev/null", O_WRONLY), r = count(replaces);
  EXPECT_EQ(50, dup2(null, 50));                                 // a foreign file takes the number
  EXPECT_EQ(r + 1, count(replaces));
  EXPECT_EQ(1, write(50, "x", 1));
  EXPECT_EQ(s + 5, count(sends));
  EXPECT_EQ(-1, dup2(999, 51));                                  // fails before anything has happened
  EXPECT_EQ(1, write(51, "x", 1));
  EXPECT_EQ(s + 6, count(sends));
  for (int fd : {d, e, f, 50, 51, null}) close(fd);
}

TEST(processes, vfork_child_touches_the_kernel_only) {
  pair_of_sockets p;
  const int c = count(closes), d = count(dups), x = count(execs);
  const pid_t pid = vfork();
  if (pid == 0) {
    close(p.a);
    dup2(p.b, p.a);
    close_range(3, ~0u, 0);
    _exit(alive(internal) ? 1 : 7);
  }
  EXPECT_EQ(7, status_of(pid));
  EXPECT_EQ(c, count(closes));
  EXPECT_EQ(d, count(dups));
  EXPECT_EQ(x + 1, count(execs)) << "what the new program could inherit is demoted before vfork";
  const int s = count(sends);
  EXPECT_EQ(1, write(p.a, "x", 1));
  EXPECT_EQ(s + 1, count(sends)) << "the parent's table was changed by the child";
  close(dup(p.a));                                               // the flag is cleared
  EXPECT_EQ(c + 1, count(closes));
}

TEST(processes, vfork_and_exec) {
  const pid_t pid = vfork();
  if (pid == 0) {
    execl("/bin/sh", "sh", "-c", "exit 9", static_cast<char*>(nullptr));
    _exit(1);
  }
  EXPECT_EQ(9, status_of(pid));
}

TEST(processes, exec_family) {
  char* const argv[] = {const_cast<char*>("sh"), const_cast<char*>("-c"), const_cast<char*>("exit ${V:-1}"), nullptr};
  char* const env[] = {const_cast<char*>("V=5"), nullptr};
  char* const end = nullptr;
  setenv("V", "6", 1);
  EXPECT_EQ(5, in_child([&] { return execve("/bin/sh", argv, env); }));
  EXPECT_EQ(6, in_child([&] { return execv("/bin/sh", argv); }));
  EXPECT_EQ(6, in_child([&] { return execvp("sh", argv); }));
  EXPECT_EQ(5, in_child([&] { return execvpe("sh", argv, env); }));
  EXPECT_EQ(6, in_child([&] { return execl("/bin/sh", "sh", "-c", "exit $V", end); }));
  EXPECT_EQ(6, in_child([&] { return execlp("sh", "sh", "-c", "exit $V", end); }));
  EXPECT_EQ(5, in_child([&] { return execle("/bin/sh", "sh", "-c", "exit $V", end, env); }));
  EXPECT_EQ(5, in_child([&] { return fexecve(open("/bin/sh", O_RDONLY), argv, env); }));
  EXPECT_EQ(5, in_child([&] { return static_cast<int>(syscall(SYS_execve, "/bin/sh", argv, env)); }));
  pid_t pid;
  const int x = count(execs);
  ASSERT_EQ(0, posix_spawn(&pid, "/bin/sh", nullptr, nullptr, argv, env));
  EXPECT_EQ(5, status_of(pid));
  ASSERT_EQ(0, posix_spawnp(&pid, "sh", nullptr, nullptr, argv, env));
  EXPECT_EQ(5, status_of(pid));
  EXPECT_EQ(x + 2, count(execs));
  EXPECT_EQ(6, WEXITSTATUS(system("exit $V")));
}

TEST(processes, every_kind_of_fork_tells_the_child) {
  const int n = count(fork_children);
  const auto told = [n] { return count(fork_children) == n + 1 ? 0 : 1; };
  EXPECT_EQ(0, in_child(told));
  pid_t pid = _Fork();
  if (pid == 0) _exit(told());
  EXPECT_EQ(0, status_of(pid));
  pid = static_cast<pid_t>(syscall(SYS_fork));
  if (pid == 0) _exit(told());
  EXPECT_EQ(0, status_of(pid));
  pid = static_cast<pid_t>(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
  if (pid == 0) _exit(told());
  EXPECT_EQ(0, status_of(pid));
  alignas(16) static char stack[65536];
  auto fn = +[](void* p) -> int { return (*static_cast<decltype(told)*>(p))(); };
  pid = clone(fn, stack + sizeof stack, SIGCHLD, const_cast<void*>(static_cast<const void*>(&told)));
  EXPECT_EQ(0, status_of(pid));
  EXPECT_EQ(n, count(fork_children));
}

TEST(processes, clone_that_is_a_vfork) {
  pair_of_sockets p;
  alignas(16) static char stack[65536];
  const int c = count(closes);
  const pid_t pid = clone(+[](void* q) -> int { close(*static_cast<int*>(q)); _exit(3); }, stack + sizeof stack,
                          CLONE_VM | CLONE_VFORK | SIGCHLD, &p.a);
  EXPECT_EQ(3, status_of(pid));
  EXPECT_EQ(c, count(closes));
  close(dup(p.a));
  EXPECT_EQ(c + 1, count(closes));
}

}  // namespace

int main(int argc, char** argv) {
  // `preload_host end exit|_exit|quick_exit|abort`: ends in that way (life.py).
  if (argc == 3 && !strcmp(argv[1], "end")) {
    close(socket(AF_INET, SOCK_STREAM, 0));
    if (!strcmp(argv[2], "exit")) exit(0);
    if (!strcmp(argv[2], "_exit")) _exit(0);
    if (!strcmp(argv[2], "_Exit")) _Exit(0);
    if (!strcmp(argv[2], "quick_exit")) quick_exit(0);
    if (!strcmp(argv[2], "syscall")) syscall(SYS_exit_group, 0);
    if (!strcmp(argv[2], "abort")) abort();
    if (!strcmp(argv[2], "daemon")) return daemon(1, 1);
    return 0;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
