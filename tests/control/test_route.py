#!/usr/bin/env python3
"""control_route against `ip route get`: random routing tables (a fixed seed), IPv4 and IPv6. The mirror may say unknown; it may not be wrong, and
it must know the plain cases."""
import ipaddress
import json
import os
import random
import sys

from netns import Probe, batch, check, ifindex, inside, ip, main, namespace, run, veth

SEED = int(os.environ.get("CONTROL_SEED", "20261122"))
ERRNO = {"Network is unreachable": 101, "No route to host": 113, "Permission denied": 13, "Invalid argument": 22}
DEVS = 4


def make(name):
    a, b = namespace(name + "a"), namespace(name + "b")
    for i in range(DEVS):
        veth(a, f"v{i}", b, f"w{i}")
        run(*inside(a, "sysctl", "-qw", f"net.ipv6.conf.v{i}.accept_dad=0", f"net.ipv6.conf.v{i}.accept_ra=0"))
        ip(a, f"addr add 10.0.{i}.1/24 dev v{i}")
        ip(a, f"addr add fd00:{i}::1/64 dev v{i} nodad")
        ip(b, f"addr add 10.0.{i}.2/24 dev w{i}")
        ip(b, f"addr add fd00:{i}::2/64 dev w{i} nodad")
    ip(a, "link set v1 mtu 1400")
    ip(a, "link set v2 mtu 9000")
    return a


def kernel_says(ns, queries):
    """One JSON object or errno for each query, by one shell."""
    script = 'while read -r q; do ip -j $q 2>&1 | tr "\\n" " "; echo; done'
    out = run(*inside(ns, "sh", "-c", script), input="\n".join(queries) + "\n").splitlines()
    check(len(out) == len(queries), "as many answers as questions")
    answers = []
    for line in out:
        if line.startswith("["):
            answers.append(json.loads(line)[0])
        else:
            answers.append(next((e for text, e in ERRNO.items() if text in line), line))
    return answers


def compare(ns, probe, queries, v6):
    """queries: (saddr or -, daddr). Returns how many were known."""
    family = "-6" if v6 else "-4"
    says = kernel_says(ns, [f"{family} route get {d}" + (f" from {s}" if s != "-" else "") for s, d in queries])
    links = {link["ifname"]: link for link in json.loads(ip(ns, "-j link"))}
    known = 0
    for (s, d), kernel in zip(queries, says):
        ours = probe.ask(f"route {s} {d}").split()
        where = f"seed {SEED}: {s} -> {d}: mirror {ours}, kernel {kernel}"
        if ours[0] == "unknown":
            continue
        known += 1
        if isinstance(kernel, (int, str)):
            check(ours == ["error", str(kernel)], where)
            continue
        check(ours[0] == "ok", where)
        dev = links[kernel["dev"]]
        check(int(ours[1]) == dev["ifindex"], where)
        gateway = kernel.get("gateway") or kernel.get("via", {}).get("host")
        want = "local" if kernel.get("type") == "local" else gateway or "link"
        check(ours[2] == want, where)
        mtu = next((m["mtu"] for m in kernel.get("metrics", []) if "mtu" in m), dev["mtu"])
        check(int(ours[3]) == min(mtu, dev["mtu"]), where)
        if not v6:
            check(ours[4] == (s if s != "-" else kernel["prefsrc"]), where)
    return known


def random_v4(rng, wild):
    lines = []
    for _ in range(rng.randrange(5, 120)):
        plen = rng.choice((0, 1, 7, 8, 9, 12, 16, 16, 17, 20, 23, 24, 24, 25, 30, 31, 32))
        base = rng.choice((0x0A000000, 0x0A010000, 0xC0A80000, 0xAC100000)) | rng.getrandbits(rng.choice((2, 9, 17)))
        net = ipaddress.ip_network((base, plen), strict=False)
        dev = rng.randrange(DEVS)
        kind = rng.random()
        route = f"route add {net}" if kind < 0.8 else f"route add {rng.choice(('unreachable', 'prohibit', 'blackhole', 'throw'))} {net}"
        if kind < 0.5:
            route += f" via 10.0.{dev}.{rng.randrange(2, 9)}"
        elif kind < 0.55 and wild:
            route += f" nexthop via 10.0.0.2 nexthop via 10.0.{dev}.3"
        elif kind < 0.6 and wild:
            route += " nhid 7"
        elif kind < 0.65:
            route += f" via inet6 fd00:{dev}::2 dev v{dev}"
        elif kind < 0.8:
            route += f" dev v{dev}"
        if kind < 0.8 and rng.random() < 0.3:
            route += f" src 10.0.{dev}.1"
        if kind < 0.8 and rng.random() < 0.3:
            route += f" mtu {rng.choice((576, 1280, 1399, 5000))}"
        if rng.random() < 0.5:
            route += f" metric {rng.randrange(3)}"
        if wild and rng.random() < 0.1:
            route += f" tos {rng.choice(('0x10', '0x08'))}"
        if rng.random() < 0.1:
            route += " table " + rng.choice(("100", "100", "default") if wild else ("100",))
        lines.append(route)
    return lines


def random_v6(rng, wild):
    lines = []
    for _ in range(rng.randrange(5, 100)):
        plen = rng.choice((0, 3, 16, 32, 33, 47, 48, 63, 64, 64, 65, 96, 127, 128))
        base = rng.choice((0xFD00, 0x2001)) << 112 | rng.getrandbits(6) << 96 | rng.getrandbits(3) << 62 | rng.getrandbits(2)
        net = ipaddress.ip_network((base, plen), strict=False)
        dev, kind = rng.randrange(DEVS), rng.random()
        if kind < 0.45:
            route = f"route add {net} via fd00:{dev}::{rng.randrange(2, 5)} dev v{dev}"
        elif kind < 0.5 and wild:
            route = f"route add {net} nexthop via fd00:0::2 nexthop via fd00:{dev}::3"
        elif kind < 0.8:
            route = f"route add {net} dev v{dev}"
        else:
            route = f"route add {rng.choice(('unreachable', 'prohibit', 'blackhole'))} {net}"
        if kind < 0.8 and rng.random() < 0.3:
            route += f" mtu {rng.choice((1280, 1390, 1450))}"
        lines.append(route + f" metric {rng.randrange(1, 4) if wild else 1}")
    return lines


def questions(rng, ns, v6, n=60):
    """Destinations inside, at the edges of and outside the table's prefixes."""
    nets = []
    for r in json.loads(ip(ns, ("-6" if v6 else "-4") + " -j -N route show table all")):
        dst = r.get("dst", "default")
        nets.append(ipaddress.ip_network(("::/0" if v6 else "0.0.0.0/0") if dst == "default" else dst, strict=False))
    out = []
    while len(out) < n:
        net = rng.choice(nets)
        at = int(net.network_address) + rng.choice((0, 1, net.num_addresses - 1, net.num_addresses, rng.randrange(net.num_addresses)))
        if at >= 1 << (128 if v6 else 32):
            continue
        d = ipaddress.ip_address(at) if not v6 else ipaddress.IPv6Address(at)
        if d.is_unspecified or (v6 and d.ipv4_mapped):
            continue
        dev = rng.randrange(DEVS)
        s = rng.choice(("-", f"fd00:{dev}::1" if v6 else f"10.0.{dev}.1"))
        out.append((s, str(d)))
    return out


def scenario(v6, wild, rounds, least):
    rng = random.Random(f"{SEED}{v6}{wild}")
    ns = make(f"{'6' if v6 else '4'}{'w' if wild else 'p'}")
    ip(ns, "nexthop add id 7 via 10.0.0.3 dev v0")
    probe = Probe(ns)
    asked = known = 0
    family = "-6" if v6 else "-4"
    for _ in range(rounds):
        batch(ns, (random_v6 if v6 else random_v4)(rng, wild), family)
        probe.step()
        q = questions(rng, ns, v6)
        asked += len(q)
        known += compare(ns, probe, q, v6)
        for table in ("main", "default", "100"):
            ip(ns, f"{family} route flush table {table} proto boot", ok=False)
    print(f"{'IPv6' if v6 else 'IPv4'} {'wild' if wild else 'plain'}: {known} of {asked} answers known")
    check(known >= asked * least, f"only {known} of {asked} known")


def plain_v4():
    scenario(False, False, 12, 0.6)


def wild_v4():
    scenario(False, True, 12, 0.3)


def plain_v6():
    scenario(True, False, 8, 0.5)


def wild_v6():
    scenario(True, True, 8, 0.3)


def rules_and_refusals():
    ns = make("r")
    probe = Probe(ns)
    ip(ns, "route add 192.168.0.0/16 via 10.0.1.2")
    probe.step()
    answer = f"ok {ifindex(ns, 'v1')} 10.0.1.2 1400 10.0.1.1"
    check(probe.ask("route - 192.168.3.4") == answer, "the plain answer")
    for rule in ("fwmark 5 lookup 100", "from 10.0.1.1 lookup 100", "to 1.2.3.4 lookup 100", "iif lo lookup 100", "ipproto tcp dport 80 lookup 100",
                 "tos 0x10 lookup 100", "uidrange 1-5 lookup 100", "not fwmark 1 lookup 100", "priority 5 lookup 100",
                 "suppress_prefixlength 0 lookup main", "goto 32766 priority 3"):
        ip(ns, f"rule add {rule}")
        check("rules" in probe.step(), f"rule {rule} is noticed")
        check(probe.ask("route - 192.168.3.4") == "unknown ip rules", f"rule {rule} is not evaluated")
        ip(ns, f"rule del {rule}")
        probe.step()
        check(probe.ask("route - 192.168.3.4") == answer, f"after rule {rule}")
    check(probe.ask("route 9.9.9.9 192.168.3.4").startswith("unknown the source"), "a source that is not ours")
    check(probe.ask("route - 10.255.0.1") == "error 101", "no route: ENETUNREACH")
    ip(ns, "route add 127.1.2.0/24 dev v0")
    probe.step()
    check(probe.ask("route - 127.1.2.3").startswith("unknown local and main"), "local and main contradict")
    check(probe.ask("route - 10.0.1.1").startswith("ok 1 local"), "an own address")
    check(probe.ask("route - 224.0.0.5").startswith("unknown"), "multicast")


if __name__ == "__main__":
    print(f"seed {SEED}")
    main([plain_v4, wild_v4, plain_v6, wild_v6, rules_and_refusals])
    sys.exit(0)
