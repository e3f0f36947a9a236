# What the application tests and tools/bench share: free ports, programs started with and without icepath, time limits, clean-up.
#
# Every program runs in a process group of its own and is ended by that group's id, never by name; PDEATHSIG ends it when the test
# itself is killed. Temporary files live in one directory per test, removed at exit. Python standard library only.
import atexit
import ctypes
import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("ICEPATH_BUILD", os.path.join(ROOT, "build")))
LIBRARY = os.path.join(BUILD, "preload", "libicepath.so")
COMMAND = os.path.join(BUILD, "tools", "icepath")
PYTHON = "/usr/bin/python3"          # Debian's: a test runs what a user has
HERE = os.path.dirname(os.path.abspath(__file__))
ARMS = ("kernel", "fast")


def preload(library):
    """What LD_PRELOAD must say for a library: one built with AddressSanitizer needs the runtime behind it (preload/asan.cpp)."""
    if not os.path.exists(library):
        return library                  # main() says so
    needs = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    runtime = re.search(r"\(NEEDED\).*\[(libasan\.so\.\d+)\]", needs)
    return f"{library}:{runtime[1]}" if runtime else library


PRELOAD = preload(LIBRARY)
ASAN = PRELOAD != LIBRARY
ASAN_REPORTS = f"/tmp/icepath-asan-{os.getpid()}"

_libc = ctypes.CDLL(None, use_errno=True)
_running = []
_tmp = None


class Failure(Exception):
    pass


class Skip(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failure(message)


def need(*programs):
    for p in programs:
        if not shutil.which(p):
            raise Skip(f"{p} is not installed (tools/packages)")


def require(*programs):
    """For the program matrix: who asks for it has the packages, so a missing program is a failure."""
    for p in programs:
        check(shutil.which(p), f"{p} is not installed (group apps of tools/packages)")


def tmp():
    global _tmp
    if _tmp is None:
        _tmp = tempfile.mkdtemp(prefix="icepath-test-")
        os.chmod(_tmp, 0o755)        # nginx workers may run as another user
    return _tmp


def tmpfile(suffix=""):
    fd, path = tempfile.mkstemp(dir=tmp(), suffix=suffix)
    os.close(fd)
    return path


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(arm, **more):
    env = {k: v for k, v in os.environ.items() if not k.startswith("ICEPATH_") and k != "LD_PRELOAD"}
    if arm == "fast":
        env.update(LD_PRELOAD=PRELOAD, ICEPATH_STATS="1", ICEPATH_REQUIRE="1")
        for k in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS"):
            env.pop(k, None)
        if ASAN:                         # a daemon's stderr may be lost, and a master starts dead workers again: main() looks for reports
            os.makedirs(ASAN_REPORTS, exist_ok=True)
            os.chmod(ASAN_REPORTS, 0o1777)
            env["ASAN_OPTIONS"] = env["UBSAN_OPTIONS"] = f"log_path={ASAN_REPORTS}/report"
    env.update({k: str(v) for k, v in more.items()})
    return env


def _in_child():
    os.setpgid(0, 0)
    _libc.prctl(1, signal.SIGKILL)   # PR_SET_PDEATHSIG


STATS = re.compile(r"^icepath: (pid=\d+ .*)$", re.M)


class Program:
    """A program in one arm. Output goes to files, so that it never blocks on us."""

    def __init__(self, arm, argv, stdin=None, user=None, **env):
        self.arm, self.argv = arm, [str(a) for a in argv]
        self.out_path, self.err_path = tmpfile(".out"), tmpfile(".err")
        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            self.popen = subprocess.Popen(self.argv, stdin=stdin or subprocess.DEVNULL, stdout=out, stderr=err,
                                          env=environment(arm, **env), preexec_fn=_in_child,
                                          **(dict(user=user.pw_uid, group=user.pw_gid, extra_groups=[]) if user else {}))
        self.pid = self.popen.pid
        _running.append(self)

    def out(self):
        with open(self.out_path, errors="replace") as f:
            return f.read()

    def err(self):
        with open(self.err_path, errors="replace") as f:
            return f.read()

    def alive(self):
        return self.popen.poll() is None

    def wait(self, timeout=60, status=0):
        try:
            got = self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure(f"{self.argv[0]} ({self.arm}) did not end within {timeout} s\n{self.err()[-2000:]}") from None
        self._forget()
        if status is not None:
            check(got == status, f"{' '.join(self.argv)} ({self.arm}): exit status {got}, expected {status}\n"
                                 f"{self.out()[-2000:]}{self.err()[-2000:]}")
        return self

    def stop(self, sig=signal.SIGTERM, timeout=10, status=None):
        if self.alive():
            os.kill(self.pid, sig)
        return self.wait(timeout, status)

    def kill(self):
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            if self.popen.poll() is None:
                self.popen.kill()
        self.popen.wait()
        self._forget()

    def _forget(self):
        if self in _running:
            _running.remove(self)

    def stats(self):
        """The ICEPATH_STATS lines of the program and its children, summed."""
        total = {}
        for line in STATS.findall(self.err()):
            for word in line.split():
                k, _, v = word.partition("=")
                if v.isdigit() and k != "pid":
                    total[k] = total.get(k, 0) + int(v)
        return total

    def check_fast(self, tx=0, rx=0):
        """After the end: at least one connection was fast and at least so many bytes went that way. Nothing to show in the kernel arm."""
        if self.arm != "fast":
            return
        s = self.stats()
        what = f"{os.path.basename(self.argv[0])}: {s or 'no ICEPATH_STATS line'} \n{self.err()[-1000:]}"
        check(s.get("fast", 0) > 0, f"no connection of it was fast: {what}")
        check(s.get("tx_bytes", 0) >= tx, f"fewer than {tx} bytes left by the fast path: {what}")
        check(s.get("rx_bytes", 0) >= rx, f"fewer than {rx} bytes came by the fast path: {what}")


def run(arm, argv, timeout=60, status=0, **env):
    return Program(arm, argv, **env).wait(timeout, status)


def cleanup():
    global _tmp
    for p in list(_running):
        p.kill()
    if _tmp:
        shutil.rmtree(_tmp, ignore_errors=True)
        _tmp = None


atexit.register(cleanup)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def until(what, condition, timeout=10, step=0.02):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(step)
    raise Failure(f"{what}: not within {timeout} s")


def listening(port):
    # Read from /proc, because a probing connect would be a connection of its own in the server's counters.
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as f:
                if any(f":{port:04X} " in line and " 0A " in line for line in f):
                    return True
        except OSError:
            pass
    return False


def server(arm, argv, port, timeout=15, stdin=None, **env):
    p = Program(arm, argv, stdin, **env)

    def up():
        check(p.alive(), f"{argv[0]} ({arm}) ended at start\n{p.out()[-1000:]}{p.err()[-2000:]}")
        return listening(port)
    until(f"{argv[0]} ({arm}) listens on {port}", up, timeout)
    return p


def icepath(*args, timeout=20, status=0):
    r = subprocess.run([COMMAND, *map(str, args)], capture_output=True, text=True, timeout=timeout,
                       env=environment("kernel"))
    if status is not None:
        check(r.returncode == status, f"icepath {' '.join(map(str, args))}: exit status {r.returncode}\n{r.stdout}{r.stderr}")
    return r


def ss(pid=None):
    rows = json.loads(icepath("ss", "--json").stdout)
    return [r for r in rows if pid is None or r["pid"] == pid]


def fast_rows(pid=None):
    return [r for r in ss(pid) if r["path"] == "fast"]


# ---- the programs that several tests and benchmarks start
def redis(arm, port, **env):
    return server(arm, ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                        "--daemonize", "no", "--dir", tmp(), "--maxclients", "12000"], port, **env)


def nginx(arm, port, root, workers=1):
    # --- master and worker, as a distribution starts it; the worker inherits the listener and accepts.
    d = tempfile.mkdtemp(dir=tmp())
    os.chmod(d, 0o755)
    conf = os.path.join(d, "nginx.conf")
    with open(conf, "w") as f:
        user = "user root;" if os.geteuid() == 0 else ""
        f.write(f"""{user} worker_processes {workers}; daemon off; pid {d}/pid; error_log stderr;
env ICEPATH_STATS; env ICEPATH_REQUIRE; env LD_PRELOAD;
events {{ worker_connections 1024; }}
http {{ access_log off; sendfile on; keepalive_timeout 65; client_body_temp_path {d}/b; proxy_temp_path {d}/p;
fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;
server {{ listen 127.0.0.1:{port}; root {root}; }} }}
""")
    return server(arm, ["nginx", "-p", d, "-c", conf, "-e", "stderr"], port)


# ---- the program matrix
MATRIX = ("kernel", "fast", "mixed")


def ends(arm):
    """Arms of server and client. mixed: the server is accelerated, its client is not."""
    return {"kernel": ("kernel", "kernel"), "fast": ("fast", "fast"), "mixed": ("fast", "kernel")}[arm]


def fast_bytes(*programs):
    stats = [p.stats() for p in programs]
    return sum(s.get("tx_bytes", 0) + s.get("rx_bytes", 0) for s in stats)


def share(arm, what, fast, moved, least=0.0):
    """Prints which share of the bytes a program moved went by the fast path, and asks for at least so much in the fast arm, none in the others."""
    check(moved > 0, f"{what}: nothing was moved")
    if arm == "fast":
        text = f"{what}: {100 * fast / moved:.1f} % of {moved / 1e6:.1f} MB by the fast path"
        print(f"# {text}", flush=True)
        check(fast >= least * moved, f"{text}; expected {100 * least:g} %")
    else:
        check(fast == 0, f"{what}: {fast} bytes by the fast path, although only one end has it")


def no_reports():
    """Fails with what AddressSanitizer wrote in any process since the last call."""
    texts = []
    for path in glob.glob(f"{ASAN_REPORTS}/*") if ASAN else []:
        with open(path, errors="replace") as f:
            texts.append(f"{path}:\n{f.read()[:6000]}")
        os.unlink(path)
    check(not texts, "\n".join(texts))


def main(tests, arms=ARMS):
    """Runs functions test(arm) in each arm; speaks TAP."""
    plan = [(t, a) for t in tests for a in getattr(t, "arms", arms)]
    only = os.environ.get("ICEPATH_TEST_ARM")          # kernel: leave the fast arm out, for use on a tree without the library
    plan = [(t, a) for t, a in plan if only in (None, "", a)]
    print(f"1..{len(plan)}", flush=True)
    failed = 0
    for n, (t, a) in enumerate(plan, 1):
        name = f"{n} - {t.__name__}" + (f" [{a}]" if a else "")
        started = time.monotonic()
        try:
            if a == "fast":
                check(os.path.exists(LIBRARY), f"{LIBRARY} was not built")
            t(a) if a else t()
            no_reports()
            print(f"ok {name} # {time.monotonic() - started:.2f} s", flush=True)
        except Skip as e:
            print(f"ok {name} # SKIP {e}", flush=True)
        except Exception as e:                          # pylint: disable=broad-except
            failed += 1
            print(f"not ok {name}", flush=True)
            text = str(e) if isinstance(e, Failure) else traceback.format_exc()
            print("".join(f"# {line}\n" for line in text.splitlines()), end="", flush=True)
        finally:
            for p in list(_running):
                p.kill()
    shutil.rmtree(ASAN_REPORTS, ignore_errors=True)
    cleanup()
    sys.exit(1 if failed else 0)


def in_arms(*arms):
    def mark(f):
        f.arms = arms
        return f
    return mark


if __name__ == "__main__":
    print(__file__, "is a library")
