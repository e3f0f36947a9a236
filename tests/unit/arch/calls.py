#!/usr/bin/env python3
"""preload/calls.txt is complete and true.

    calls.py ROOT CXX LIBRARY

1. What exports.map exports is in the table, as something else than `passed`; and the library's dynamic symbols are the same names.
2. What the table says is not `passed` is exported, but for what pthread_atfork does.
3. Every function of the C library's headers that takes a descriptor is in the table, or is known to be about something else (NOT_SOCKETS).
4. Every function that an installed program (PROGRAMS) or its libraries import from libc, and that is such a function or a variant of one by its name
   (__x_chk, x64, __x), is in the table.
"""
import glob
import pathlib
import re
import shutil
import subprocess
import sys

KINDS = {"native", "watched", "emulated", "demoting", "passed"}
NOT_EXPORTED = {"fork"}                       # pthread_atfork
# Directories, mounts, timers, namespaces of files: a socket's fd in that place is an error that only the kernel gives.
NOT_SOCKETS = set("""
  faccessat fchmodat fchownat futimesat linkat mkdirat mkfifoat mknodat name_to_handle_at openat openat64 readlinkat renameat renameat2 scandirat
  scandirat64 symlinkat unlinkat utimensat open_tree mount_setattr fsconfig fsmount fspick fanotify_mark inotify_add_watch inotify_rm_watch
  eventfd_read eventfd_write timerfd_gettime timerfd_settime signalfd pidfd_getfd pidfd_send_signal
""".split())
HEADERS = """aio.h dirent.h fcntl.h ifaddrs.h mqueue.h netdb.h poll.h pty.h sched.h signal.h spawn.h stdio.h stdlib.h sys/epoll.h sys/eventfd.h
  sys/fanotify.h sys/file.h sys/inotify.h sys/ioctl.h sys/mman.h sys/mount.h sys/pidfd.h sys/select.h sys/sendfile.h sys/signalfd.h sys/socket.h
  sys/stat.h sys/statfs.h sys/statvfs.h sys/time.h sys/timerfd.h sys/uio.h sys/wait.h sys/xattr.h termios.h unistd.h utmp.h arpa/inet.h
  netinet/in.h""".split()
DESCRIPTOR = r"\bint +__?(?:fd|fd1|fd2|fildes|filedes|in_fd|out_fd|epfd|fdin|fdout|infd|outfd|newfd|oldfd|dfd|fromfd|tofd|lowfd|s|sock|ufd|in|out)\b"
PROGRAMS = """redis-server redis-cli redis-benchmark nginx memcached haproxy curl wget python3 node java postgres pgbench sshd ssh scp iperf3 sockperf nc wrk
  rsync git socat bash perl openssl""".split()
PLACES = ["/usr/bin", "/usr/sbin", "/usr/lib/postgresql/*/bin", "/usr/lib/jvm/*/lib"]


def table(path):
    rows, problems = {}, []
    for no, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        at = next((i for i, w in enumerate(words) if w in KINDS), None)
        if not at:
            problems.append(f"{path.name}:{no}: no names, or none of {sorted(KINDS)}")
            continue
        for name in words[:at]:
            if name in rows:
                problems.append(f"{path.name}:{no}: {name} is there twice")
            rows[name] = words[at]
    return rows, problems


def run(*argv, **kw):
    return subprocess.run(argv, capture_output=True, text=True, check=False, **kw).stdout


def exported(map_file):
    body = re.search(r"global:(.*?)local:", map_file.read_text(encoding="utf-8"), re.S)[1]
    return set(re.findall(r"(\w+);", re.sub(r"#.*", "", body)))


def takes_descriptors(cxx):
    text = "#define _GNU_SOURCE 1\n" + "".join(f"#include <{h}>\n" for h in HEADERS)
    out = run(*cxx, "-E", "-P", "-x", "c", "-D_LARGEFILE64_SOURCE", "-", input=text)
    return {m[1] for m in re.finditer(r"(\w+) *\(([^()]*)\)", re.sub(r"\s+", " ", out)) if re.search(DESCRIPTOR, m[2])}


def stem(name):
    """read of __read_chk, pread of __pread64_chk: the function a variant belongs to."""
    return re.sub(r"64$", "", re.sub(r"_chk$", "", name.lstrip("_")))


def imports(path):
    """libc symbols that a file and the libraries it is linked to import."""
    files = {path} | set(re.findall(r"=> (/\S+)", run("ldd", path)))
    for f in files:
        if re.search(r"/(libc|ld-linux[^/]*|libicepath)\.so", f):
            continue
        for line in run("nm", "-D", "--undefined-only", f).splitlines():
            m = re.search(r" [Uw] (\w+)@GLIBC", line)
            if m:
                yield m[1], f


def find_programs():
    found = {}
    for p in PROGRAMS:
        for place in PLACES:
            for f in glob.glob(f"{place}/{p}"):
                found[f] = p
    for f in glob.glob("/usr/lib/jvm/*/lib/lib*.so"):
        found[f] = "java"
    return found


def main():
    root, cxx, library = pathlib.Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3]
    rows, problems = table(root / "preload/calls.txt")
    exports = exported(root / "preload/exports.map")
    active = {n for n, kind in rows.items() if kind != "passed"} - NOT_EXPORTED
    problems += [f"{n}: exported, and in the table as passed or not at all" for n in sorted(exports - active)]
    problems += [f"{n}: not exported, although the table says {rows[n]}" for n in sorted(active - exports)]
    real = {line.split()[-1].split("@")[0] for line in run("nm", "-D", "--defined-only", library).splitlines()}
    problems += [f"{n}: exports.map and the library disagree" for n in sorted(real ^ exports)]
    universe = takes_descriptors(cxx)
    if len(universe) < 100:
        problems.append(f"only {len(universe)} functions with descriptors found in the headers")
    problems += [f"{n}: takes a descriptor (headers), and is not in the table" for n in sorted(universe - set(rows) - NOT_SOCKETS)]
    related = {stem(n) for n in (universe | set(rows)) - NOT_SOCKETS}
    programs, missing = find_programs(), {}
    for path, program in sorted(programs.items()):
        for name, by in imports(path):
            if stem(name) in related and name not in rows and name not in NOT_SOCKETS:
                missing.setdefault(name, set()).add(f"{program} ({pathlib.Path(by).name})")
    problems += [f"{n}: imported by {', '.join(sorted(who)[:4])}, and not in the table" for n, who in sorted(missing.items())]
    names = sorted(set(programs.values()))
    print(f"{len(rows)} functions; {len(universe)} with descriptors in the headers; {len(names)} programs: {' '.join(names)}")
    if not {"redis-server", "nginx", "curl", "python3"} <= set(names):
        problems.append("redis-server, nginx, curl and python3 are not installed: nothing to compare with")
    if not shutil.which("nm") or not shutil.which("ldd"):
        problems.append("nm and ldd are needed")
    for p in problems:
        print(p)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
