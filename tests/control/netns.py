# What the tests of the control plane share: network namespaces named ctl-PID-x with veth pairs between them, and the probe (probe.cpp) in one of
# them. Everything made here is removed at exit, also after a failure. A machine that cannot do it: exit 77 and the reason.
import atexit
import os
import shutil
import signal
import subprocess
import sys
import time

_made = []
_probes = []


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def need(*programs):
    for p in programs:
        if not shutil.which(p):
            skip(f"{p} is not installed (tools/packages)")


def check(condition, message):
    if not condition:
        raise AssertionError(message)


def run(*argv, ok=True, **kw):
    r = subprocess.run(argv, capture_output=True, text=True, check=False, **kw)
    if ok and r.returncode:
        raise AssertionError(f"{' '.join(argv)}: {r.stderr.strip() or r.stdout.strip()}")
    return r.stdout


def inside(ns, *argv):
    """nsenter, not `ip netns exec`: that mounts a new /sys, and with it the cgroups are gone."""
    return ("nsenter", f"--net=/run/netns/{ns}", *argv)


def namespace(name):
    if os.geteuid() != 0:
        skip("not root")
    need("ip", "nsenter")
    full = f"ctl-{os.getpid()}-{name}"
    r = subprocess.run(["ip", "netns", "add", full], capture_output=True, text=True, check=False)
    if r.returncode:
        skip(f"no network namespaces here: {r.stderr.strip()}")
    _made.append(full)
    run(*inside(full, "ip", "link", "set", "lo", "up"))
    return full


def veth(a, dev_a, b, dev_b):
    run("ip", "link", "add", dev_a, "netns", a, "type", "veth", "peer", "name", dev_b, "netns", b)
    for ns, dev in ((a, dev_a), (b, dev_b)):
        run(*inside(ns, "ip", "link", "set", dev, "up"))


def ip(ns, words, ok=True):
    return run(*inside(ns, "ip", *words.split()), ok=ok)


def batch(ns, lines, *options):
    """Lines that the kernel refuses are left out: the same for both sides."""
    subprocess.run(inside(ns, "ip", "-force", *options, "-batch", "-"), input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)


class Probe:
    def __init__(self, ns, *wrap):
        self.p = subprocess.Popen([*wrap, *inside(ns, sys.argv[1])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        _probes.append(self.p)
        first = self.p.stdout.readline().strip()
        check(first == "ready", f"the mirror does not open: {first!r}")

    def ask(self, line):
        self.p.stdin.write(line + "\n")
        self.p.stdin.flush()
        answer = self.p.stdout.readline()
        check(answer, f"the probe died at: {line}")
        return answer.strip()

    def step(self):
        return set(self.ask("step").split()[1:])

    def until(self, line, want, seconds=10):
        end = time.monotonic() + seconds
        while True:
            self.step()
            got = self.ask(line)
            if got.startswith(want):
                return got
            check(time.monotonic() < end, f"{line}: {got}, and not {want} within {seconds} s")


def wait_for(what, message, seconds=10):
    end = time.monotonic() + seconds
    while not what():
        check(time.monotonic() < end, message)
        time.sleep(0.05)


def ifindex(ns, dev):
    return int(ip(ns, f"-o link show {dev}").split(":")[0])


def mac(ns, dev):
    words = ip(ns, f"-o link show {dev}").split()
    return words[words.index("link/ether") + 1]


@atexit.register
def _clean():
    for p in _probes:
        p.stdin.close()
        try:
            p.wait(5)
        except subprocess.TimeoutExpired:
            p.kill()
    for ns in _made:
        subprocess.run(["ip", "netns", "del", ns], check=False)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def main(tests):
    """Each test in turn; the first failure ends it."""
    for t in tests:
        t()
        print(f"ok {t.__name__}", flush=True)
