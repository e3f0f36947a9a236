// `icepath run`: puts libicepath.so in front of LD_PRELOAD and becomes the program. What the dynamic loader would ignore
// silently (a static program, one that gains privileges, one of another architecture) is said before it starts.
#include <elf.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include "cli.hpp"

namespace icepath::cli {
namespace {

std::string self_dir() {
  char buf[PATH_MAX];
  const ssize_t n = readlink("/proc/self/exe", buf, sizeof buf);
  if (n <= 0) return {};
  std::string s(buf, static_cast<size_t>(n));
  return s.substr(0, s.rfind('/'));
}

// Beside the build (build/tools/icepath, build/preload/libicepath.so), or installed under the same prefix.
std::string find_library() {
  const std::string dir = self_dir();
  for (const char* rel : {"/../preload/libicepath.so", "/../" ICEPATH_LIBDIR "/libicepath.so", "/../lib/libicepath.so"}) {
    char abs[PATH_MAX];
    if (realpath((dir + rel).c_str(), abs) && access(abs, R_OK) == 0) return abs;
  }
  return {};
}

// The file execvp would take; empty and errno when there is none.
std::string find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) return access(name.c_str(), F_OK) == 0 ? name : std::string();
  const char* env = getenv("PATH");
  std::string path = env ? env : "/usr/local/bin:/usr/bin:/bin", denied;
  for (size_t at = 0; at <= path.size();) {
    size_t end = path.find(':', at);
    if (end == std::string::npos) end = path.size();
    std::string dir = path.substr(at, end - at), full = (dir.empty() ? "." : dir) + "/" + name;
    at = end + 1;
    struct ::stat st;
    if (::stat(full.c_str(), &st) != 0 || !S_ISREG(st.st_mode)) continue;
    if (access(full.c_str(), X_OK) == 0) return full;
    if (denied.empty()) denied = full;
  }
  errno = ENOENT;
  return denied;   // exists, but may not be executed: execvp says EACCES
}

// Why the loader would leave the library out of this file; nullptr when it would not, or when it cannot be told.
const char* not_reachable(const std::string& file, int depth) {
  const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return nullptr;
  unsigned char head[4096] = {};
  const ssize_t n = pread(fd, head, sizeof head - 1, 0);
  close(fd);
  if (n > 2 && head[0] == '#' && head[1] == '!' && depth < 4) {    // a script: its interpreter counts
    std::string line(reinterpret_cast<char*>(head) + 2, strcspn(reinterpret_cast<char*>(head) + 2, "\n"));
    const size_t b = line.find_first_not_of(" \t");
    if (b == std::string::npos) return nullptr;
    return not_reachable(line.substr(b, line.find_first_of(" \t", b) - b), depth + 1);
  }
  if (n < static_cast<ssize_t>(sizeof(Elf64_Ehdr)) || memcmp(head, ELFMAG, SELFMAG) != 0) return nullptr;
  Elf64_Ehdr eh;
  memcpy(&eh, head, sizeof eh);
  if (eh.e_ident[EI_CLASS] != ELFCLASS64 || eh.e_machine != EM_X86_64) return "it is built for another architecture than libicepath.so";
  bool interp = false;
  for (unsigned i = 0; i < eh.e_phnum && eh.e_phentsize == sizeof(Elf64_Phdr); ++i) {
    const uint64_t off = eh.e_phoff + uint64_t{i} * sizeof(Elf64_Phdr);
    if (off > static_cast<uint64_t>(n) - sizeof(Elf64_Phdr)) return nullptr;
    Elf64_Phdr ph;
    memcpy(&ph, head + off, sizeof ph);
    interp |= ph.p_type == PT_INTERP;
  }
  if (!interp) return "it is statically linked, so the dynamic loader that reads LD_PRELOAD never runs";
  struct ::stat st;
  if (::stat(file.c_str(), &st) != 0) return nullptr;
  const bool gains_uid = (st.st_mode & S_ISUID) && st.st_uid != getuid();
  const bool gains_gid = (st.st_mode & S_ISGID) && (st.st_mode & S_IXGRP) && st.st_gid != getgid();
  if (gains_uid || gains_gid) return "it is set-user-ID or set-group-ID, and the loader ignores LD_PRELOAD then";
  if (getuid() != 0 && getxattr(file.c_str(), "security.capability", nullptr, 0) > 0)
    return "it has file capabilities, and the loader ignores LD_PRELOAD then";
  return nullptr;
}

}  // namespace

int run(const run_options& o) {
  if (o.command.empty()) {
    complain("run: no program given; usage: icepath run [OPTIONS] -- CMD [ARG...]");
    return exit_usage;
  }
  const std::string lib = find_library();
  if (lib.empty()) {
    complain("libicepath.so was not found beside %s (looked in ../preload, ../" ICEPATH_LIBDIR " and ../lib)", self_dir().c_str());
    return exit_failed;
  }
  if (lib.find_first_of(" :") != std::string::npos) {   // LD_PRELOAD has no quoting, ld.so(8)
    complain("%s: LD_PRELOAD cannot name a path with a space or a colon in it", lib.c_str());
    return exit_failed;
  }
  const std::string file = find_program(o.command[0]);
  if (file.empty()) {
    complain("%s: %s", o.command[0].c_str(), errno == ENOENT ? "command not found" : strerror(errno));
    return errno == EACCES ? exit_not_executable : exit_not_found;
  }
  if (const char* why = not_reachable(file, 0)) {
    complain("%s%s cannot be accelerated: %s", o.require ? "" : "warning: ", file.c_str(), why);
    if (o.require) return exit_failed;
  }

  const char* old = getenv("LD_PRELOAD");
  setenv("LD_PRELOAD", (old && *old ? lib + ":" + old : lib).c_str(), 1);
  if (o.require) setenv("ICEPATH_REQUIRE", "1", 1);
  if (o.stats) setenv("ICEPATH_STATS", "1", 1);
  if (!o.ports.empty()) setenv("ICEPATH_PORTS", o.ports.c_str(), 1);
  if (!o.promote.empty()) setenv("ICEPATH_PROMOTE", o.promote.c_str(), 1);

  std::vector<char*> argv;
  for (const std::string& a : o.command) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  execvp(argv[0], argv.data());
  const int e = errno;
  complain("%s: %s", argv[0], strerror(e));
  return e == ENOENT ? exit_not_found : exit_not_executable;
}

}  // namespace icepath::cli
