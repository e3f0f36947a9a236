#!/usr/bin/python3
# LD_PRELOAD under programs that have no fast connection changes nothing in what they do: same output, same exit status, same files.
import os
import re
import shutil
import subprocess
import lib
from lib import check, need


def outcome(arm, argv, directory, text=""):
    env = {k: v for k, v in os.environ.items() if not k.startswith("ICEPATH_") and k != "LD_PRELOAD"}
    env.update(LC_ALL="C", HOME=directory, GIT_CONFIG_NOSYSTEM="1", GIT_AUTHOR_DATE="1700000000 +0000", GIT_COMMITTER_DATE="1700000000 +0000",
               GIT_AUTHOR_NAME="a", GIT_AUTHOR_EMAIL="a@b.c", GIT_COMMITTER_NAME="a", GIT_COMMITTER_EMAIL="a@b.c", SOURCE_DATE_EPOCH="1700000000")
    if arm == "fast":
        env["LD_PRELOAD"] = lib.PRELOAD
    r = subprocess.run(argv, cwd=directory, env=env, input=text, capture_output=True, text=True, timeout=100)
    files = {}
    for d, _, names in os.walk(directory):
        for n in names:
            path = os.path.join(d, n)
            # What holds times or random names is compared by its name only.
            body = b"" if re.search(r"/\.git/(index|logs)|\.swp$|\.viminfo", path) or not os.path.isfile(path) else open(path, "rb").read()
            files[os.path.relpath(path, directory)] = body
    return {"status": r.returncode, "stdout": r.stdout, "stderr": r.stderr, "files": files}


def same(argv, text="", prepare=None):
    results = []
    for arm in ("kernel", "fast"):
        # The same path both times: some programs print it.
        directory = os.path.join(lib.tmp(), "unchanged")
        shutil.rmtree(directory, ignore_errors=True)
        os.mkdir(directory)
        if prepare:
            prepare(directory)
        results.append(outcome(arm, argv, directory, text))
    for what in ("status", "stdout", "stderr", "files"):
        a, b = (r[what] for r in results)
        check(a == b, f"{' '.join(argv)[:60]}: {what} differs: {str(a)[:300]!r} and {str(b)[:300]!r}")
    return results[0]


def write(name, text):
    def prepare(directory):
        with open(os.path.join(directory, name), "w") as f:
            f.write(text)
    return prepare


SHELL = r"""
set -e
x=$(printf 'a\nb\nc\n' | sort -r | head -2 | wc -l); echo $x
(exit 3) || echo "status $?"
sleep 0.2 & wait $!
trap 'echo usr1' USR1; kill -USR1 $$
exec 7<>file; echo seven >&7; exec 7>&-; cat file
for i in 1 2 3 4 5 6 7 8 9 10; do /bin/true; done
cat < /etc/hostname > /dev/null
ulimit -n
timeout 0.2 sleep 5 || echo "timed out $?"
echo 'done' | (read a; echo $a)
ls -l /proc/self/fd | wc -l
"""


@lib.in_arms("fast")
def test_shells_and_tools(_):
    need("bash", "perl", "vim", "make", "gcc")
    same(["bash", "-c", SHELL])
    same(["bash", "-i"], "echo hello\nfg\nexit 4\n")
    same(["dash", "-c", SHELL.replace("set -e", "")])
    same(["perl", "-e", 'use Socket; socketpair(A,B,AF_UNIX,SOCK_STREAM,0); if (!fork) { print B "x" x 5; exit 7 } close B; print <A>, "\n"; wait; print $?>>8, "\n"; '
                        'eval { local $SIG{ALRM} = sub { die "late\n" }; alarm 1; select undef,undef,undef,5 }; print $@'])
    check("VIM" in same(["vim", "--version"])["stdout"], "vim said nothing")
    same(["vim", "-es", "-u", "NONE", "-c", "%s/a/b/g|wq", "t.txt"], prepare=write("t.txt", "banana\n"))
    r = same(["make", "-j2"], prepare=write("Makefile", "all: a b\n\tcat a b\na b:\n\techo $@ > $@\n"))
    check(r["status"] == 0, "make failed")
    r = same(["gcc", "-O2", "-pipe", "-o", "prog", "prog.c"], prepare=write("prog.c", '#include <stdio.h>\nint main(void) { return puts("x") < 0; }\n'))
    check(r["status"] == 0 and "prog" in r["files"], "gcc failed")


@lib.in_arms("fast")
def test_git_apt_systemd_ssh(_):
    need("git", "apt-get", "systemd-analyze", "ssh")
    r = same(["bash", "-c", "git init -q . && echo x > f && git add f && git commit -qm one && git clone -q . ../clone-$$ && rm -rf ../clone-$$ && git log --oneline"])
    check(r["status"] == 0 and "one" in r["stdout"], f"git failed: {r}")
    for argv in (["apt-get", "--version"], ["systemd-analyze", "--version"], ["systemd-analyze", "calendar", "*-*-* 00:00:00", "--base-time=2026-01-01"],
                 ["ssh", "-V"], ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=2", "-p", "1", "127.0.0.1", "true"]):
        same(argv)


# Blocking, non-blocking and failing calls to where nobody listens, names, UDP, Unix sockets: errors and their order.
NETWORK = r"""
import errno, os, select, socket, threading
def t(f):
    try: return f()
    except OSError as e: return errno.errorcode.get(e.errno, str(e))
s = socket.socket(); print(t(lambda: s.connect(("127.0.0.1", 1)))); s.close()
s = socket.socket(); s.setblocking(False); print(t(lambda: s.connect(("127.0.0.1", 1))) in ("EINPROGRESS", "ECONNREFUSED"))
print(select.select([], [s], [], 2)[1] == [s], errno.errorcode.get(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("127.0.0.1", 0)); u.sendto(b"hi", u.getsockname()); print(u.recvfrom(10)[0])
a, b = socket.socketpair(); a.sendall(b"z"); print(b.recv(10))
v = socket.socket(socket.AF_INET6); print(t(lambda: v.connect(("::1", 1)))); print(socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)[0][1])
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(1)
def serve():
    c = l.accept()[0]; c.sendall(c.recv(10)[::-1]); c.close()
threading.Thread(target=serve).start()
with socket.create_connection(l.getsockname()) as c: c.sendall(b"abc"); print(c.recv(10), c.recv(10))
print(sorted(int(f) for f in os.listdir("/proc/self/fd") if int(f) < 256)[:3], t(lambda: os.close(60)))
"""


@lib.in_arms("fast")
def test_sockets_of_other_kinds(_):
    r = same([lib.PYTHON, "-c", NETWORK])
    check(r["status"] == 0 and "b'cba' b''" in r["stdout"], f"the program failed: {r}")


# A program that may write no file (RLIMIT_FSIZE 0, before or after the fast path was set up), or whose stderr nobody reads: what we write must not kill it.
LIMITED = r"""
import os, resource, socket, sys, threading
def limit(): resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
if sys.argv[1] == "before": limit()
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(1)
def serve():
    c = l.accept()[0]
    while (b := c.recv(65536)): c.sendall(b)
threading.Thread(target=serve).start()
with socket.create_connection(l.getsockname()) as c:
    for i in range(300):
        c.sendall(b"x" * 1000); n = 0
        while n < 1000: n += len(c.recv(1000))
        if i == 200 and sys.argv[1] == "after": limit()
print("done")
"""


@lib.in_arms("fast")
def test_our_lines_on_stderr_kill_nobody(_):
    env = lib.environment("fast", ICEPATH_LOG="debug")
    del env["ICEPATH_REQUIRE"]
    for when in ("before", "after", "never"):
        read_end, write_end = os.pipe()
        os.close(read_end)
        with open(lib.tmpfile(), "w") as file, os.fdopen(write_end, "w") as pipe:
            for stderr in (file, pipe):
                # python ignores both signals, and its default for them must be the kernel's here
                code = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL); signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n" + LIMITED
                r = subprocess.run([lib.PYTHON, "-c", code, when], env=env, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60)
                check((r.returncode, r.stdout) == (0, "done\n"), f"limit {when}, stderr a {'file' if stderr is file else 'pipe'}: {r.returncode} {r.stdout!r}")


lib.main([test_shells_and_tools, test_git_apt_systemd_ssh, test_sockets_of_other_kinds, test_our_lines_on_stderr_kill_nobody])
