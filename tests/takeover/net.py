# What the tests of connections taken over from the kernel share, on top of tests/apps/lib.py: two network namespaces with a veth pair between them
# (or a third one that forwards), programs in them with or without icepath, agents (agent.py) that a test drives by words, and what the kernels
# counted.
#
# Namespaces are named tko-PID-x and are removed at exit, also after a failure. A machine that cannot do it: exit 77 with the reason.
import atexit
import json
import os
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "apps"))
import lib                                      # pylint: disable=wrong-import-position
from lib import check, until                    # pylint: disable=wrong-import-position

HERE = os.path.dirname(os.path.abspath(__file__))
DEV = {"a": "va", "b": "vb"}
ADDR = {"a": "10.77.0.1", "b": "10.77.0.2"}
COUNTERS = ("TcpOutRsts", "TcpRetransSegs", "TcpExtTCPTimeouts", "TcpExtTCPAbortOnData", "TcpExtTCPAbortOnClose",
            "TcpExtTCPAbortOnTimeout", "TcpExtTCPAbortOnMemory", "TcpExtTCPAbortOnLinger", "TcpExtTCPAbortFailed")
_made = []


def skip(reason):
    print(f"1..0 # SKIP {reason}\nskipped: {reason}")
    sys.exit(77)


def sh(*argv, ok=True, text=None):
    r = subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False, input=text)
    if ok:
        check(r.returncode == 0, f"{' '.join(map(str, argv))}: {r.stderr.strip() or r.stdout.strip()}")
    return r.stdout


class Net:
    """a --veth-- b, or with middle=True a -- m -- b where m forwards."""

    def __init__(self, mtu=1500, middle=False):
        if os.geteuid() != 0:
            skip("not root")
        for p in ("ip", "nsenter", "nstat"):
            if not shutil.which(p):
                skip(f"{p} is not installed (tools/packages)")
        for plugin in ("libicepath-xdp.so", "libicepath-control.so"):
            if not os.path.exists(os.path.join(lib.BUILD, "preload", plugin)):
                skip(f"{plugin} was not built")
        self.names, self.addr = {}, dict(ADDR)
        for x in "amb" if middle else "ab":
            self._add(x)
        if middle:
            self.addr["b"] = "10.78.0.2"
            self.veth("a", "va", "m", "m0", mtu)
            self.veth("b", "vb", "m", "m1", mtu)
            for x, dev, addr in (("a", "va", "10.77.0.1"), ("m", "m0", "10.77.0.2"), ("b", "vb", "10.78.0.2"), ("m", "m1", "10.78.0.1")):
                self.ip(x, f"addr add {addr}/24 dev {dev}")
            self.ip("a", "route add default via 10.77.0.2")
            self.ip("b", "route add default via 10.78.0.1")
            sh(*self.inside("m"), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        else:
            self.veth("a", "va", "b", "vb", mtu)
            for x in "ab":
                self.ip(x, f"addr add {ADDR[x]}/24 dev {DEV[x]}")
        until("the link is up", lambda: self._ping("a", self.addr["b"]))
        self._ping("b", self.addr["a"])

    def _add(self, x):
        name = f"tko-{os.getpid()}-{len(_made)}{x}"
        r = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
        if r.returncode:
            skip(f"no network namespaces here: {r.stderr.strip()}")
        _made.append(name)
        self.names[x] = name
        self.ip(x, "link set lo up")

    def veth(self, x, dev_x, y, dev_y, mtu):
        sh("ip", "link", "add", dev_x, "netns", self.names[x], "mtu", mtu, "type", "veth", "peer", "name", dev_y, "netns", self.names[y], "mtu", mtu)
        for n, dev in ((x, dev_x), (y, dev_y)):
            self.ip(n, f"link set {dev} up")

    def _ping(self, x, to):
        # A datagram makes the kernel resolve the neighbour; ping may not be installed.
        code = f"import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'', ('{to}', 9))"
        sh(*self.inside(x), lib.PYTHON, "-c", code, ok=False)
        return any(w in self.ip(x, "neigh") for w in ("REACHABLE", "STALE", "DELAY", "PROBE"))

    def inside(self, x):
        # nsenter, not `ip netns exec`: that mounts a new /sys, and the policy check then cannot see the cgroups.
        return ["nsenter", f"--net=/run/netns/{self.names[x]}"]

    def ip(self, x, words, ok=True):
        return sh(*self.inside(x), "ip", *words.split(), ok=ok)

    def nft(self, x, text):
        sh(*self.inside(x), "nft", "-f", "-", text=text)

    def counters(self, x):
        out = sh(*self.inside(x), "nstat", "-asz", "--json")
        all_of = json.loads(out)["kernel"]
        return {k: all_of.get(k, 0) for k in COUNTERS}

    def start(self, x, arm, argv, stdin=None, **env):
        """A program in namespace x: arm fast (with icepath on this side's interface) or kernel. nsenter itself, not under test, has no icepath."""
        if arm == "fast":
            env = {"LD_PRELOAD": lib.LIBRARY, "ICEPATH_STATS": 1, "ICEPATH_REQUIRE": 1, "ICEPATH_BULK": "fast",
                   "ICEPATH_PORTS": f"xdp:{DEV[x]}", **env}
        words = [f"{k}={v}" for k, v in env.items()]
        p = lib.Program("kernel", [*self.inside(x), "env", *words, *argv], stdin)
        p.arm = arm
        return p

    def run(self, x, arm, argv, timeout=60, status=0, stdin=None, **env):
        return self.start(x, arm, argv, stdin, **env).wait(timeout, status)

    def server(self, x, arm, argv, port, timeout=15, **env):
        p = self.start(x, arm, argv, **env)

        def up():
            check(p.alive(), f"{argv[0]} ({arm}) ended at start\n{p.out()[-1000:]}{p.err()[-2000:]}")
            return listening(p.pid, port)
        until(f"{argv[0]} ({arm}) listens on {port}", up, timeout)
        return p

    def agent(self, x, arm="fast", **env):
        return Agent(self, x, arm, **env)

    def program(self, x):
        """Is an XDP program on the interface?"""
        return "xdp" in self.ip(x, f"-d link show {DEV[x]}")

    def no_program(self, x):
        until(f"no XDP program is left on {DEV[x]}", lambda: not self.program(x), 5)


def listening(pid, port):
    try:
        with open(f"/proc/{pid}/net/tcp") as f:
            return any(f":{port:04X} " in line and " 0A " in line for line in f)
    except OSError:
        return False


class Remote(Exception):
    """What went wrong in the agent."""

    def __init__(self, kind, code, text):
        super().__init__(f"{kind}: {text}")
        self.kind, self.errno = kind, code


class Agent:
    def __init__(self, net, x, arm, **env):
        self.net, self.x = net, x
        fifo = os.path.join(lib.tmp(), f"agent{time.monotonic_ns()}")
        os.mkfifo(fifo)
        self.p = net.start(x, arm, [lib.PYTHON, os.path.join(HERE, "agent.py"), fifo], stdin=subprocess.PIPE, **env)
        fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(fd, True)
        self.answers = fd
        self.rest = b""
        self.pid = self.p.pid

    def put(self, code):
        self.p.popen.stdin.write(json.dumps(code).encode() + b"\n")
        self.p.popen.stdin.flush()

    def get(self, timeout=60):
        import select                            # pylint: disable=import-outside-toplevel
        end = time.monotonic() + timeout
        while b"\n" not in self.rest:
            left = end - time.monotonic()
            check(left > 0, f"the agent in {self.x} ({self.p.arm}) does not answer within {timeout} s\n{self.p.err()[-2000:]}")
            if not select.select([self.answers], [], [], min(left, 0.2))[0]:
                check(self.p.alive(), f"the agent in {self.x} ({self.p.arm}) has ended\n{self.p.err()[-2000:]}")
                continue
            data = os.read(self.answers, 65536)
            if not data:                         # not opened yet, or gone
                check(self.p.alive(), f"the agent in {self.x} ({self.p.arm}) has ended\n{self.p.err()[-2000:]}")
                time.sleep(0.01)
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        answer = json.loads(line)
        if answer[0] == "error":
            raise Remote(*answer[1:])
        return answer[1]

    def do(self, code, timeout=60):
        self.put(code)
        return self.get(timeout)

    def fails(self, code, *errnos):
        """The code must raise OSError with one of these numbers."""
        try:
            value = self.do(code)
        except Remote as e:
            check(e.errno in errnos, f"{code}: {e}, expected errno {errnos}")
            return
        raise lib.Failure(f"{code} did not fail: {value!r}")

    def icepath(self, *words):
        """The command, in the program's namespace: elsewhere it does not see it."""
        return sh(*self.net.inside(self.x), lib.COMMAND, *words)

    def rows(self):
        return [r for r in json.loads(self.icepath("ss", "--json")) if r["pid"] == self.pid]

    def fast(self):
        return [r for r in self.rows() if r["path"] == "fast"]

    def on(self):
        self.icepath("on", self.pid)

    def off(self):
        self.icepath("off", self.pid)

    def end(self, timeout=20):
        """Orderly: end of file on stdin."""
        self.p.popen.stdin.close()
        self.p.wait(timeout)
        os.close(self.answers)
        return self.p

    def stats(self):
        return self.p.stats()


_port = 7000


def port_of_its_own():
    global _port
    _port += 1
    return _port


def pair(net, arms=("fast", "kernel"), listener="a", port=None, **env):
    """Two agents and a connection between them, `s` in both; the first is in a, the second in b."""
    a, b = net.agent("a", arms[0], **(env if arms[0] == "fast" else {})), net.agent("b", arms[1], **(env if arms[1] == "fast" else {}))
    srv, cli = (a, b) if listener == "a" else (b, a)
    port = port or port_of_its_own()
    srv.do(f"l = listen('{net.addr[listener]}', {port})")
    cli.put(f"s = connect('{net.addr[listener]}', {port})")
    srv.do("s = l.accept()[0]")
    cli.get()
    return a, b


def warm(a, b, of=(), path="fast", rounds=40):
    """Small messages to and fro until those in `of` (default: a) have their connection on the fast path."""
    for agent in of or (a,):
        for _ in range(100):
            ping_pong(a, b, rounds)
            rows = [r for r in agent.rows() if r["state"] != "LISTEN"]
            if rows and all(r["path"] == path for r in rows):
                break
            time.sleep(0.03)
        else:
            raise lib.Failure(f"the connection of {agent.x} is not on path {path}: {agent.rows()}\n{agent.p.err()[-2000:]}")


def ping_pong(a, b, rounds=10):
    b.put(f"for _ in range({rounds}): s.sendall(s.recv(100))")
    a.do(f"for _ in range({rounds}):\n  s.sendall(b'ping'); assert s.recv(100) == b'ping'")
    b.get()


def no_reset(before, after, what, but=()):
    for k in COUNTERS:
        if k in ("TcpRetransSegs", "TcpExtTCPTimeouts") or k in but:
            continue
        check(after[k] == before[k], f"{what}: {k} went from {before[k]} to {after[k]}")


@atexit.register
def _clean():
    lib.cleanup()
    for name in _made:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def main(tests):
    for t in tests:
        t.arms = getattr(t, "arms", (None,))
    lib.main(tests)
