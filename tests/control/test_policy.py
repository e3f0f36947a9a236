#!/usr/bin/env python3
"""Policy parity, one test for each authority of src/control/policy.hpp: without it the connection may leave the kernel, with it not, and it is
noticed. Random nftables rulesets against the kernel: where the check says ok, the kernel passes the connection's packets."""
import ctypes
import os
import random
import socket
import subprocess
import sys
import threading

import bpf
from netns import Probe, check, ifindex, inside, ip, main, namespace, need, run, skip, veth, wait_for

left_out = []      # rows that this machine cannot show: all others have passed then, and the test counts as skipped

SEED = int(os.environ.get("CONTROL_SEED", "20261122"))
SPORT, DPORT = 40000, 7000
CGROUPS = "/sys/fs/cgroup/unified"


class Host:
    def __init__(self, name, *wrap):
        self.a, self.b = namespace(name + "a"), namespace(name + "b")
        veth(self.a, "v0", self.b, "w0")
        veth(self.a, "v1", self.b, "w1")
        for i in (0, 1):
            ip(self.a, f"addr add 10.0.{i}.1/24 dev v{i}")
            ip(self.b, f"addr add 10.0.{i}.2/24 dev w{i}")
            ip(self.a, f"addr add fd00:{i}::1/64 dev v{i} nodad")
            ip(self.b, f"addr add fd00:{i}::2/64 dev w{i} nodad")
        self.dev = ifindex(self.a, "v0")
        self.probe = Probe(self.a, *wrap)

    def flow(self, more="", **kw):
        f = {"if": self.dev, "s": "10.0.0.1", "d": "10.0.0.2", "sport": SPORT, "dport": DPORT, **kw}
        self.probe.step()
        return self.probe.ask("policy " + " ".join(f"{k}={v}" for k, v in f.items()) + " " + more)

    def ok(self, what="", **kw):
        got = self.flow(**kw)
        check(got == "ok", f"{what}: {got}")

    def kernel(self, reason, what="", **kw):
        got = self.flow(**kw)
        check(got.startswith("kernel " + reason), f"{what}: {got}, and not {reason}")

    def nft(self, text, ok=True):
        for a, b in ((";;", ";"), ("} }", "}\n}"), ("} chain", "}\nchain"), ("} table", "}\ntable")):   # nft wants the ends of chains on lines
            text = text.replace(a, b)
        return subprocess.run(inside(self.a, "nft", "-f", "-"), input=text, capture_output=True, text=True, check=ok).returncode == 0

    def generation(self):
        self.probe.step()
        return int(self.probe.ask("gens").split()[5])


def nftables():
    need("nft")
    h = Host("n")
    h.ok("an empty namespace")
    before = h.generation()

    def with_rules(text, verdict, what="", **kw):
        h.nft("flush ruleset\n" + text)
        if verdict == "ok":
            h.ok(f"{what or text}", **kw)
        else:
            h.kernel(verdict, what or text, **kw)

    drop, act = "nftables: a rule may drop", "nftables: a rule may act"
    chain = "table {f} t {{ chain c {{ type filter hook {h} priority 0; {r}; }} }}"
    for hook, port in (("output", "dport"), ("postrouting", "dport"), ("prerouting", "sport"), ("input", "sport")):
        for family in ("ip", "inet"):
            with_rules(chain.format(f=family, h=hook, r=f"tcp {port} {DPORT} drop"), drop)
            with_rules(chain.format(f=family, h=hook, r=f"tcp {port} {DPORT + 1} drop"), "ok")
            with_rules(chain.format(f=family, h=hook, r=f"tcp {port} {DPORT - 5}-{DPORT + 5} drop"), drop)
            with_rules(chain.format(f=family, h=hook, r=f"tcp {port} != {DPORT - 5}-{DPORT + 5} drop"), "ok")
    check(h.generation() > before, "the generation moves with the rules")
    out, inp = ("output", "oifname"), ("input", "iifname")
    for hook, name in (out, inp):
        with_rules(chain.format(f="inet", h=hook, r=f'{name} "v1" drop'), "ok")
        with_rules(chain.format(f="inet", h=hook, r=f'{name} "v0" drop'), drop)
        with_rules(chain.format(f="inet", h=hook, r=f'{name} "v*" drop'), drop)
        with_rules(chain.format(f="inet", h=hook, r=f'{name} "w*" drop'), "ok")
        with_rules(chain.format(f="inet", h=hook, r=f"{name[:3]} v1 drop"), "ok")
        with_rules(chain.format(f="inet", h=hook, r=f"{name[:3]} v0 drop"), drop)
    o = lambda r, f="ip": chain.format(f=f, h="output", r=r)   # noqa: E731
    with_rules(o("ip daddr 10.0.0.0/24 drop"), drop)
    with_rules(o("ip daddr 10.0.1.0/24 drop"), "ok")
    with_rules(o("ip saddr 10.0.0.2 ip daddr 10.0.0.1 drop"), "ok")
    with_rules(o(f"tcp sport {SPORT} tcp dport {DPORT} drop"), drop)
    with_rules(o("udp dport 53 drop"), "ok")
    with_rules(o(f"tcp dport != {DPORT} drop"), "ok")
    with_rules(o(f"tcp dport != {DPORT + 1} drop"), drop)
    with_rules(o("meta skuid 7 drop"), "ok", uid=8)
    with_rules(o("meta skuid 7 drop"), drop, uid=7)
    with_rules(o("meta mark 7 drop"), drop, mark=7)
    with_rules(o("meta mark 7 drop"), "ok", mark=8)
    with_rules(o(f"tcp dport {DPORT} counter"), act)
    with_rules(o("counter tcp dport 1 drop"), act)
    with_rules(o("tcp dport 1 counter drop"), "ok")
    with_rules(o(f"tcp dport {DPORT} limit rate 10/second accept"), act)
    with_rules(o("ct state established accept"), "ok", "accepted there or by what follows")
    with_rules(o("policy drop; ct state established accept"), "nftables: a chain's policy")
    with_rules(o("ct state invalid drop"), drop)
    with_rules(o("tcp flags syn drop"), drop)
    with_rules(o("tcp dport { 1, 2 } drop"), drop, "sets are not looked into")
    with_rules(o(f"policy drop; tcp dport {DPORT} accept"), "ok")
    with_rules(o(f"policy drop; tcp dport {DPORT + 1} accept"), "nftables: a chain's policy")
    with_rules(o("policy drop;"), "nftables: a chain's policy")
    with_rules(o(f"ip saddr . tcp dport vmap {{ 10.0.0.1 . {DPORT} : drop }}"), act)
    with_rules(o(f"tcp dport {DPORT} reject"), act)
    with_rules(o(f"tcp dport {DPORT} meta mark set 1"), act)
    with_rules(o("meta l4proto icmp counter"), "ok")
    c = "chain c { type filter hook output priority 0;"
    with_rules("table ip t { chain d { tcp dport 1 drop; } " + c + " jump d; } }", "ok", "a jump into what does not match")
    with_rules(f"table ip t {{ chain d {{ tcp dport {DPORT} drop; }} chain c {{ type filter hook output priority 0; jump d; }} }}", drop, "a jump")
    with_rules("table ip t { chain d { } chain c { type filter hook output priority 0; policy drop; jump d; accept; } }", "ok", "a jump into nothing")
    with_rules("table ip t { chain d { return; } " + c + " policy drop; goto d; accept; } }", "nftables: a chain's", "a goto")
    with_rules("table ip t { chain d { drop; } }", "ok", "a chain that nothing leads to")
    with_rules("table ip t { chain c { type filter hook forward priority 0; drop; } }", "ok", "forwarded packets only")
    with_rules("table ip6 t { chain c { type filter hook output priority 0; drop; } }", "ok", "the other family")
    with_rules("table ip6 t { chain c { type filter hook output priority 0; drop; } }", drop, "IPv6", s="fd00:0::1", d="fd00:0::2")
    with_rules("table ip6 t { " + c + " ip6 daddr fd00:1::/64 drop; } }", "ok", "IPv6", s="fd00:0::1", d="fd00:0::2")
    with_rules("table arp t { chain c { type filter hook output priority 0; drop; } }", "ok", "ARP")
    for hook in ("ingress", "egress"):
        with_rules(f"table netdev t {{ chain c {{ type filter hook {hook} device v0 priority 0; drop; }} }}", drop, f"netdev {hook}")
        with_rules(f"table netdev t {{ chain c {{ type filter hook {hook} device v1 priority 0; drop; }} }}", "ok", "another interface")
    with_rules("table inet t { chain c { type filter hook ingress device v0 priority 0; drop; } }", drop, "inet ingress")
    with_rules("", "ok", "all gone again")


def established(h):
    """A connection by the kernel, from SPORT to DPORT; both ends as Python sockets."""
    def in_ns(ns, f):
        out = []

        def work():   # setns is the thread's
            fd = os.open(f"/run/netns/{ns}", os.O_RDONLY)
            check(ctypes.CDLL(None).setns(fd, 0x40000000) == 0, "setns")
            os.close(fd)
            out.append(f())
        t = threading.Thread(target=work)
        t.start()
        t.join()
        return out[0]

    def listen():
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("10.0.0.2", DPORT))
        s.listen()
        return s

    def connect():
        s = socket.socket()
        s.bind(("10.0.0.1", SPORT))
        s.settimeout(5)
        s.connect(("10.0.0.2", DPORT))
        return s

    server = in_ns(h.b, listen)
    client = in_ns(h.a, connect)
    peer = server.accept()[0]
    server.close()
    return client, peer


def passes(client, peer):
    """Whether a byte goes each way, and its acknowledgement, within the time of several retransmissions."""
    for s, r in ((client, peer), (peer, client)):
        s.send(b"x")
        r.settimeout(0.25)
        try:
            if r.recv(10) == b"":
                return False
        except (socket.timeout, TimeoutError):
            return False
    return True


def random_rules(rng):
    names, lines = ["d0", "d1"], []
    match = lambda: " ".join(rng.sample((   # noqa: E731
        f"tcp dport {rng.choice((DPORT, SPORT, 9))}", f"tcp sport {rng.choice((DPORT, SPORT, 9))}",
        f"tcp dport {rng.choice(('1-8000', '8000-50000', '> 7000', '<= 7000'))}",
        f"ip saddr {rng.choice(('10.0.0.0/24', '10.0.0.1', '10.0.0.2', '10.0.0.2/31', '10.1.0.0/16'))}",
        f"ip daddr != {rng.choice(('10.0.0.1', '10.0.0.2', '10.0.0.0/25'))}", f"oifname {rng.choice(('v0', 'v1', 'lo'))}",
        f"iifname != {rng.choice(('v0', 'v1'))}", "meta l4proto tcp", "ip protocol udp", f"oif {rng.choice(('v0', 'v1'))}",
        "ct state established", "tcp flags & (syn | ack) == ack", "tcp dport { 7000, 9 }", f"meta mark {rng.choice((0, 5))}"),
        rng.choice((0, 1, 1, 2, 2))))
    jumps = ["jump d0", "jump d1", "goto d0", "goto d1", "return"]
    verdict = lambda deep: rng.choice(["accept", "accept", "drop"] + ([] if deep else jumps))   # noqa: E731
    for n in names:
        lines += [f"chain {n} {{"] + [f"{match()} {verdict(True)};" for _ in range(rng.randrange(3))] + ["}"]
    for i in range(rng.randrange(1, 4)):
        hook = rng.choice(("output", "postrouting", "prerouting", "input"))
        lines += [f"chain c{i} {{ type filter hook {hook} priority {i}; policy {rng.choice(('accept', 'accept', 'drop'))};"]
        lines += [f"{match()} {verdict(False)};" for _ in range(rng.randrange(4))] + ["}"]
    return "table ip t {\n" + "\n".join(lines) + "\n}\n"


def random_nftables():
    """The check may be too careful; where it says ok, the kernel must let the connection pass."""
    need("nft")
    rng = random.Random(SEED)
    h = Host("r")
    said_ok = dropped = 0
    client, peer = established(h)
    for _ in range(150):
        rules = random_rules(rng)
        while not h.nft("flush ruleset\n" + rules, ok=False):   # nft refuses what contradicts itself
            rules = random_rules(rng)
        # Conntrack, which such a ruleset may turn on, would answer for all of them: only the rules are asked about.
        verdict = h.flow()
        if verdict == "ok" or verdict.startswith("kernel conntrack"):
            said_ok += 1
            check(passes(client, peer), f"seed {SEED}: {verdict}, and the kernel drops:\n{rules}")
        elif "drop" in verdict:
            dropped += 1
    h.nft("flush ruleset\n")
    print(f"nftables, random: {said_ok} ok and passed by the kernel, {dropped} to the kernel for a drop, of 150")
    check(said_ok >= 20 and dropped >= 20, "both kinds occur")


def iptables():
    need("iptables-nft", "iptables-legacy")
    h = Host("i")
    for command, gone in (("iptables-nft", True), ("iptables-legacy", False)):
        h.ok(f"before {command}")
        run(*inside(h.a, command, "-A", "OUTPUT", "-p", "tcp", "--dport", str(DPORT), "-j", "DROP"))
        reason = "nftables: a rule may" if gone else "legacy iptables"
        wait_for(lambda reason=reason: h.flow().startswith("kernel " + reason), f"{command} is seen")
        if gone:
            run(*inside(h.a, command, "-F"))
            run(*inside(h.a, command, "-A", "OUTPUT", "-p", "tcp", "--dport", str(DPORT + 1), "-j", "DROP"))
            h.ok("a rule of iptables-nft for another port")
            run(*inside(h.a, command, "-A", "OUTPUT", "-m", "hashlimit", "--hashlimit-above", "1/s", "--hashlimit-name", "x", "-j", "DROP"))
            h.kernel("nftables", "a match with a memory")
            run(*inside(h.a, "nft", "flush", "ruleset"))


def conntrack():
    need("nft")
    h = Host("c")
    h.nft("table ip t { chain c { type filter hook output priority 0; ct state new accept; } }")
    h.ok("conntrack is on, and does not know this connection")
    _client, _peer = established(h)
    h.kernel("conntrack: the connection is tracked")
    h.kernel("conntrack: the connection is tracked", "from the other side", s="10.0.0.1", d="10.0.0.2")


def nat():
    need("nft")
    h = Host("m")
    h.nft("table ip t { chain c { type nat hook postrouting priority 100; oifname v0 masquerade; } }")
    h.kernel("nftables: a rule may act")
    h.nft(f"flush ruleset\ntable ip t {{ chain c {{ type nat hook output priority -100; tcp dport {DPORT} dnat to 10.0.0.2:{DPORT + 1}; }} }}")
    h.kernel("nftables: a rule may act")


def cgroup_bpf():
    if not os.path.isdir(CGROUPS) and not os.path.exists("/sys/fs/cgroup/cgroup.procs"):
        left_out.append("cgroup BPF: no cgroup2 mount")
        return
    root = CGROUPS if os.path.isdir(CGROUPS) else "/sys/fs/cgroup"
    outer, inner = f"{root}/ctl-{os.getpid()}", f"{root}/ctl-{os.getpid()}/in"
    os.makedirs(inner)
    h = None
    try:
        h = Host("g", "sh", "-c", f'echo $$ > {inner}/cgroup.procs && exec "$@"', "sh")
        h.ok("in a cgroup of its own")
        for where, kind, name in ((bpf.INET_EGRESS, bpf.CGROUP_SKB, "a program on egress"),
                                  (bpf.INET_INGRESS, bpf.CGROUP_SKB, "a program on ingress"),
                                  (bpf.CGROUP_SOCK_OPS, bpf.SOCK_OPS, "a sock_ops program")):
            for place in (inner, outer):   # the parent's is effective too
                detach = bpf.cgroup_attach(place, kind, where)
                h.kernel("cgroup BPF: " + name, place)
                h.kernel("cgroup BPF: " + name, "by number", cgroup=os.stat(inner).st_ino)
                detach()
                h.ok("detached")
        h.ok("by number", cgroup=os.stat(outer).st_ino)
        h.kernel("cgroup BPF: the socket's cgroup", "a cgroup that is not there", cgroup=1 << 40)
    finally:
        if h:
            h.probe.p.stdin.close()
            h.probe.p.wait(5)
        os.rmdir(inner)
        os.rmdir(outer)


def tc():
    h = Host("t")
    before = h.generation()
    t = lambda words: run(*inside(h.a, "tc", *words.split()))   # noqa: E731
    t("qdisc add dev v0 root tbf rate 1mbit burst 10k latency 50ms")
    h.kernel("tc: a qdisc")
    check(h.generation() > before, "noticed")
    t("qdisc del dev v0 root")
    h.ok("removed")
    t("qdisc add dev v0 clsact")
    h.ok("clsact without a filter")
    for way in ("ingress", "egress"):
        t(f"filter add dev v0 {way} protocol ip u32 match u32 0 0 classid 1:1")
        h.kernel("tc: a filter", way)
        t(f"filter del dev v0 {way}")
        h.ok(f"{way} removed")
    t("qdisc del dev v0 clsact")
    t("qdisc add dev v1 root tbf rate 1mbit burst 10k latency 50ms")
    h.ok("another interface")
    t("qdisc add dev v0 ingress_block 5 ingress")
    h.kernel("tc: a shared block")


def tcx():
    h = Host("x")
    h.ok("before")
    for where in (bpf.TCX_INGRESS, bpf.TCX_EGRESS):
        child = subprocess.Popen(inside(h.a, sys.executable, "-c",
                                        f"import bpf,sys; fd=bpf.tcx_attach({h.dev},{where}); print('on',flush=True); sys.stdin.read()"),
                                 cwd=os.path.dirname(os.path.abspath(__file__)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        on = child.stdout.readline()
        if not on:
            left_out.append("tcx: this kernel has none")
            return
        wait_for(lambda: h.flow().startswith("kernel tcx: a program"), "a tcx program is seen by the look each second")
        child.stdin.close()
        child.wait()
        wait_for(lambda: h.flow() == "ok", "a tcx program that is gone")


def xfrm():
    h = Host("f")
    before = h.generation()
    near = "src 10.0.0.0/24 dst 10.0.0.0/24"
    for words, verdict in (
            ("src 10.0.0.1/32 dst 10.0.0.2/32 dir out", "kernel"), ("src 10.0.0.2/32 dst 10.0.0.1/32 dir in", "kernel"),
            ("src 10.0.9.0/24 dst 10.0.0.2/32 dir out", "ok"), ("src 10.0.0.1/32 dst 10.0.0.2/32 dir fwd", "ok"),
            (f"{near} proto tcp dport {DPORT} dir out", "kernel"), (f"{near} proto tcp dport {DPORT + 1} dir out", "ok"),
            (f"{near} proto udp dir out", "ok"), ("src fd00::/16 dst fd00::/16 dir out", "ok")):
        ip(h.a, f"xfrm policy add {words} tmpl proto esp mode tunnel")
        (h.ok if verdict == "ok" else lambda w: h.kernel("XFRM: a policy", w))(words)
        ip(h.a, "xfrm policy flush")
        h.ok("flushed")
    check(h.generation() > before, "noticed")
    ip(h.a, "xfrm policy setdefault out block")
    h.kernel("XFRM", "what no policy allows is blocked")
    ip(h.a, "xfrm policy setdefault out accept")
    h.ok("and not any more")


def links_and_routes():
    h = Host("l")
    h.ok("before")
    h.kernel("SO_BINDTODEVICE", bound=ifindex(h.a, "v1"))
    h.ok("bound to its own interface", bound=h.dev)
    h.kernel("the socket is of another network namespace", netns=12345)
    h.ok("of this namespace", netns=h.probe.ask("netns"))
    h.kernel("the route leaves by another interface", "rp_filter and asymmetric routes", d="10.0.1.2", s="10.0.0.1")
    h.kernel("the peer is this host", s="10.0.0.1", d="10.0.1.1")
    h.kernel("no route", d="10.77.0.1")
    h.kernel("no such interface", **{"if": 999})
    h.kernel("the loopback interface", **{"if": 1})
    h.ok("SO_MARK without a rule for it", mark=5)
    ip(h.a, "rule add fwmark 5 lookup 100")
    h.kernel("ip rules", "SO_MARK with ip rule", mark=5)
    ip(h.a, "rule del fwmark 5 lookup 100")
    h.ok("the rule is gone", mark=5)
    ip(h.a, "link add br0 type bridge")
    ip(h.a, "link set v0 master br0")
    h.kernel("the interface has a master")
    ip(h.a, "link set v0 nomaster")
    h.ok("no master any more")
    ip(h.a, "link set br0 up")
    ip(h.a, "addr add 10.5.0.1/24 dev br0")
    got = h.flow(s="10.5.0.1", d="10.5.0.2", **{"if": ifindex(h.a, "br0")})
    check(got.startswith("kernel a virtual interface"), got)
    ip(h.a, "link set v0 down")
    h.kernel("the interface is down")


if __name__ == "__main__":
    print(f"seed {SEED}")
    main([links_and_routes, nftables, random_nftables, iptables, conntrack, nat, cgroup_bpf, tc, tcx, xfrm])
    if left_out:
        skip("; ".join(left_out))
    sys.exit(0)
