// Processes: fork and its relatives, exec, and the ways out.
//
// fork: handlers of pthread_atfork (init.cpp), which run in daemon and forkpty as well; _Fork and clone without CLONE_VM run no handlers,
// so they are done here. vfork: vfork.cpp; clone with CLONE_VM|CLONE_VFORK is the same thing under another name. exec: what the
// new program could inherit goes back to the kernel first, once per exec; a vfork child has had that done by its parent.
// Ends: exit() and quick_exit() reach process_ends through the destructor and the quick_exit handler (init.cpp), after the program's own handlers.
#include <alloca.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <cstdarg>
#include <cstdlib>
#include "export.hpp"
#include "sock/init.hpp"

using namespace icepath;

extern "C" [[gnu::visibility("hidden"), gnu::used]] void icepath_before_vfork() {
  if (!active() || icepath_in_vfork) return;
  const kept_errno e;
  sock_before_exec();
  e.restore();
}

void icepath::before_sandbox() {
  if (!active() || icepath_in_vfork) return;
  const kept_errno e;
  sock_before_sandbox();
  e.restore();
}

namespace {

void before_exec() { icepath_before_vfork(); }
void before_replacing() {
  if (!active() || icepath_in_vfork) return;
  const kept_errno e;
  sock_before_exec(true);
  e.restore();
}

struct clone_call {
  int (*fn)(void*);
  void* arg;
  bool shares_memory;
};

int clone_child(void* p) {
  const clone_call c = *static_cast<clone_call*>(p);
  if (c.shares_memory) icepath_in_vfork = 1;
  else { icepath_in_vfork = 0; sock_fork_child(); }
  return c.fn(c.arg);
}

// The arguments of an execl call, including the closing null pointer, as an array in the caller's frame.
#define ICEPATH_COLLECT(argv, first, ap)                                      \
  size_t argv##_n = 1;                                                        \
  va_list argv##_ap;                                                          \
  va_copy(argv##_ap, ap);                                                     \
  while (va_arg(argv##_ap, char*)) ++argv##_n;                                \
  va_end(argv##_ap);                                                          \
  char** const argv = static_cast<char**>(alloca((argv##_n + 1) * sizeof(char*))); \
  argv[0] = const_cast<char*>(first);                                         \
  for (size_t argv##_i = 1; argv##_i <= argv##_n; ++argv##_i) argv[argv##_i] = va_arg(ap, char*)

}  // namespace

ICEPATH_EXPORT pid_t _Fork() noexcept {
  if (!active() || icepath_in_vfork) return next::_Fork();
  sock_fork_prepare();
  const pid_t r = next::_Fork();
  const kept_errno e;
  if (r == 0) sock_fork_child();
  else sock_fork_parent();
  e.restore();
  return r;
}

ICEPATH_EXPORT int clone(int (*fn)(void*), void* stack, int flags, void* arg, ...) noexcept {
  va_list ap;
  va_start(ap, arg);
  void* const ptid = va_arg(ap, void*);
  void* const tls = va_arg(ap, void*);
  void* const ctid = va_arg(ap, void*);
  va_end(ap);
  const bool shares = flags & CLONE_VM;
  if (!active() || icepath_in_vfork || !fn || (shares && !(flags & CLONE_VFORK)))
    return next::clone(fn, stack, flags, arg, ptid, tls, ctid);
  if (shares) before_exec();
  else sock_fork_prepare();
  clone_call c{fn, arg, shares};
  const int r = next::clone(clone_child, stack, flags, &c, ptid, tls, ctid);
  const kept_errno e;
  if (shares) icepath_in_vfork = 0;
  else sock_fork_parent();
  e.restore();
  return r;
}
ICEPATH_EXPORT int __clone(int (*)(void*), void*, int, void*, ...) noexcept ICEPATH_ALIAS(clone);

// libc's daemon leaves the parent by a system call of its own; here the parent ends as any process does.
ICEPATH_EXPORT int daemon(int nochdir, int noclose) noexcept {
  switch (fork()) {
    case -1: return -1;
    case 0: break;
    default: _exit(0);
  }
  if (setsid() < 0) return -1;
  if (!nochdir && chdir("/") < 0) { /* as libc: not an error */ }
  if (noclose) return 0;
  const int null = open("/dev/null", O_RDWR);
  if (null < 0) return -1;
  for (int fd = 0; fd < 3; ++fd) dup2(null, fd);
  if (null > 2) close(null);
  return 0;
}

ICEPATH_EXPORT int execve(const char* path, char* const* argv, char* const* env) noexcept {
  before_replacing();
  return next::execve(path, argv, env);
}
ICEPATH_EXPORT int execv(const char* path, char* const* argv) noexcept { return execve(path, argv, environ); }
ICEPATH_EXPORT int execvp(const char* file, char* const* argv) noexcept {
  before_replacing();
  return next::execvp(file, argv);
}
ICEPATH_EXPORT int execvpe(const char* file, char* const* argv, char* const* env) noexcept {
  before_replacing();
  return next::execvpe(file, argv, env);
}
ICEPATH_EXPORT int fexecve(int fd, char* const* argv, char* const* env) noexcept {
  before_replacing();
  return next::fexecve(fd, argv, env);
}
ICEPATH_EXPORT int execveat(int dir, const char* path, char* const* argv, char* const* env, int flags) noexcept {
  before_replacing();
  return next::execveat(dir, path, argv, env, flags);
}

ICEPATH_EXPORT int execl(const char* path, const char* first, ...) noexcept {
  va_list ap;
  va_start(ap, first);
  ICEPATH_COLLECT(argv, first, ap);
  va_end(ap);
  return execve(path, argv, environ);
}
ICEPATH_EXPORT int execlp(const char* file, const char* first, ...) noexcept {
  va_list ap;
  va_start(ap, first);
  ICEPATH_COLLECT(argv, first, ap);
  va_end(ap);
  return execvp(file, argv);
}
ICEPATH_EXPORT int execle(const char* path, const char* first, ...) noexcept {
  va_list ap;
  va_start(ap, first);
  ICEPATH_COLLECT(argv, first, ap);
  char* const* const env = va_arg(ap, char* const*);
  va_end(ap);
  return execve(path, argv, env);
}

ICEPATH_EXPORT int posix_spawn(pid_t* pid, const char* path, const posix_spawn_file_actions_t* fa, const posix_spawnattr_t* at,
                               char* const* argv, char* const* env) {
  before_exec();
  return next::posix_spawn(pid, path, fa, at, argv, env);
}
ICEPATH_EXPORT int posix_spawnp(pid_t* pid, const char* file, const posix_spawn_file_actions_t* fa, const posix_spawnattr_t* at,
                                char* const* argv, char* const* env) {
  before_exec();
  return next::posix_spawnp(pid, file, fa, at, argv, env);
}
// A sandbox begins: from here on only the system calls that the program foresaw may be made, which are not ours.
ICEPATH_EXPORT int prctl(int option, ...) noexcept {
  va_list ap;
  va_start(ap, option);
  unsigned long a[4];
  for (auto& v : a) v = va_arg(ap, unsigned long);
  va_end(ap);
  if (option == PR_SET_SECCOMP && (a[0] != SECCOMP_MODE_FILTER || a[1])) before_sandbox();   // without a filter: a question, answered with EFAULT
  return next::prctl(option, a[0], a[1], a[2], a[3]);
}

// The spawned program gets this descriptor without its close-on-exec mark: it must be a kernel socket by then.
ICEPATH_EXPORT int posix_spawn_file_actions_adddup2(posix_spawn_file_actions_t* fa, int fd, int newfd) noexcept {
  demote_for(fd, "given to a new program");
  return next::posix_spawn_file_actions_adddup2(fa, fd, newfd);
}

ICEPATH_EXPORT void _exit(int status) {
  if (!icepath_in_vfork) process_ends();
  next::_exit(status);
  __builtin_unreachable();
}
ICEPATH_EXPORT void _Exit(int status) noexcept { _exit(status); }

ICEPATH_EXPORT void abort() noexcept {
  if (!icepath_in_vfork) process_ends();
  next::abort();
  __builtin_unreachable();
}
