#!/usr/bin/env python3
"""The mirror follows the kernel: links, addresses, routes that go without a word, neighbours, lost notifications, tables that do not fit.
Resolution and confirmation are asked of the kernel without a packet of our own."""
import json
import subprocess
import sys

from netns import Probe, batch, check, ifindex, inside, ip, mac, main, namespace, run, veth, wait_for


def pair(name):
    a, b = namespace(name + "a"), namespace(name + "b")
    veth(a, "v0", b, "w0")
    veth(a, "v1", b, "w1")
    for i in (0, 1):
        ip(a, f"addr add 10.0.{i}.1/24 dev v{i}")
        ip(b, f"addr add 10.0.{i}.2/24 dev w{i}")
        ip(a, f"addr add fd00:{i}::1/64 dev v{i} nodad")
        ip(b, f"addr add fd00:{i}::2/64 dev w{i} nodad")
    return a, b


def changes_of_each_kind():
    a, _ = pair("c")
    p = Probe(a)
    v0, v1 = ifindex(a, "v0"), ifindex(a, "v1")
    p.step()
    check(p.step() == set(), "nothing has changed")
    before = p.ask("gens")
    check(p.step() == set() and p.ask("gens") == before, "no generation without a change")
    ip(a, "route add 10.9.0.0/16 via 10.0.0.2")
    check({"routes", "policy"} <= p.step(), "a route")
    check(p.ask("gens") != before, "a generation with a change")
    check(p.ask("route - 10.9.1.1") == f"ok {v0} 10.0.0.2 1500 10.0.0.1", "the route added")
    ip(a, "route replace 10.9.0.0/16 via 10.0.1.2")
    p.step()
    check(p.ask("route - 10.9.1.1") == f"ok {v1} 10.0.1.2 1500 10.0.1.1", "the route replaced")
    ip(a, "link set v1 mtu 1300")
    check("links" in p.step(), "an MTU")
    check(p.ask("route - 10.9.1.1").split()[3] == "1300", "the new MTU")
    # The kernel says nothing of IPv4 routes that go with a link.
    ip(a, "link set v1 down")
    check({"links", "routes"} <= p.step(), "a link down")
    check(p.ask("route - 10.9.1.1") == "error 101", "the route went with the link")
    ip(a, "link set v1 up")
    p.step()
    check(p.ask("route - 10.0.1.7").startswith(f"ok {v1}"), "the link's own route is back")
    ip(a, "addr del 10.0.0.1/24 dev v0")
    check({"addrs", "routes"} <= p.step(), "an address")
    check(p.ask("route - 10.0.0.2") == "error 101", "the route went with the address")
    ip(a, "link set v0 name renamed", ok=False)
    ip(a, "link del v1")
    check("links" in p.step(), "a link that is gone")
    check(p.ask("route - 10.0.1.2") == "error 101", "nothing by a link that is gone")


def routes_that_go_without_a_word():
    """Without IPv6, whose routes are announced: only the link and the address tell that IPv4 routes are gone."""
    a, _ = pair("w")
    run(*inside(a, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"))
    p = Probe(a)
    ip(a, "route add 10.9.0.0/16 via 10.0.1.2")
    p.until("route - 10.9.1.1", "ok")
    ip(a, "link set v1 down")
    p.step()
    check(p.ask("route - 10.9.1.1") == "error 101", "gone with the link")


def carrier():
    a, b = pair("l")
    p = Probe(a)
    check(p.ask("route - 10.0.0.2").startswith("ok"), "before")
    ip(b, "link set w0 down")
    p.until("route - 10.0.0.2", "unknown the route's link is down")
    ip(b, "link set w0 up")
    p.until("route - 10.0.0.2", "ok")


def packets(ns, dev):
    return json.loads(ip(ns, f"-j -s link show {dev}"))[0]["stats64"]["tx"]["packets"]


def neighbours():
    a, b = pair("n")
    p = Probe(a)
    v0 = ifindex(a, "v0")
    check(p.ask(f"neigh {v0} 10.0.0.2").startswith("none"), "not known yet")
    for addr in ("10.0.0.2", "fd00:0::2"):
        check(p.ask(f"resolve {v0} {addr}") == "0", "resolution is accepted")
        got = p.until(f"neigh {v0} {addr}", "usable")
        check(got.split()[1] == mac(b, "w0"), f"{addr}: the peer's address")
        state = json.loads(ip(a, f"-j neigh show {addr} dev v0"))[0]["state"]
        check(state == ["REACHABLE"], f"{addr}: {state}")
    ip(a, "neigh replace 10.0.0.77 lladdr 02:00:00:00:00:77 dev v0 nud permanent")
    check("neighs" in p.step(), "a neighbour")
    check(p.ask(f"neigh {v0} 10.0.0.77") == "usable 02:00:00:00:00:77", "a permanent one")
    ip(a, "neigh replace 10.0.0.77 lladdr 02:00:00:00:00:78 dev v0 nud stale")
    p.step()
    check(p.ask(f"neigh {v0} 10.0.0.77") == "stale 02:00:00:00:00:78", "a stale one is usable and due")
    ip(a, "neigh del 10.0.0.77 dev v0")
    p.step()
    check(p.ask(f"neigh {v0} 10.0.0.77").split()[0] in ("none", "failed"), "deleted")
    # A neighbour that does not answer ends as failed.
    run(*inside(a, "sysctl", "-qw", "net.ipv4.neigh.v0.retrans_time_ms=50"))
    check(p.ask(f"resolve {v0} 10.0.0.99") == "0", "resolution is accepted")
    p.until(f"neigh {v0} 10.0.0.99", "failed")


def stale_is_probed_and_confirmed():
    """NTF_USE sends a stale entry to DELAY as a packet would. Then: confirmed, it is REACHABLE without a probe; not confirmed, it is probed and
    fails, because the peer does not answer."""
    a, b = pair("s")
    ip(b, "link set w0 arp off")
    v0, peer = ifindex(a, "v0"), mac(b, "w0")
    run(*inside(a, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"))   # it would send of its own accord
    for key, value in (("delay_first_probe_time", 1), ("retrans_time_ms", 50)):
        run(*inside(a, "sysctl", "-qw", f"net.ipv4.neigh.v0.{key}={value}"))
    p = Probe(a)

    def state():
        shown = json.loads(ip(a, "-j neigh show 10.0.0.2 dev v0"))
        return shown[0]["state"][0] if shown else "gone"

    for confirm, want in ((True, "REACHABLE"), (False, "FAILED")):
        ip(a, f"neigh replace 10.0.0.2 lladdr {peer} dev v0 nud stale")
        p.until(f"neigh {v0} 10.0.0.2", "stale")
        sent = packets(a, "v0")
        check(p.ask(f"resolve {v0} 10.0.0.2") == "0", "used")
        check(state() == "DELAY", f"used, a stale entry is {state()}")

        def settled(confirm=confirm, want=want):   # as a flow does that makes progress: again and again
            return (not confirm or p.ask(f"confirm 10.0.0.1 10.0.0.2 {v0}") == "0") and state() == want

        wait_for(settled, f"{'' if confirm else 'not '}confirmed, it becomes {want}")
        if confirm:
            check(packets(a, "v0") == sent, "no packet was sent for it")
        p.until(f"neigh {v0} 10.0.0.2", "usable" if confirm else "failed")


def path_mtu():
    """What the kernel learnt from ICMP is in no dump, but can be asked for."""
    a, r, b = namespace("pa"), namespace("pr"), namespace("pb")
    veth(a, "v0", r, "r0")
    veth(r, "r1", b, "w0")
    for ns, dev, addr in ((a, "v0", "10.0.0.1"), (r, "r0", "10.0.0.254"), (r, "r1", "10.0.1.254"), (b, "w0", "10.0.1.1")):
        ip(ns, f"addr add {addr}/24 dev {dev}")
    ip(a, "route add default via 10.0.0.254")
    ip(b, "route add default via 10.0.1.254")
    ip(r, "link set r1 mtu 1300")
    run(*inside(r, "sysctl", "-qw", "net.ipv4.ip_forward=1"))
    p = Probe(a)
    check(p.ask("pmtu 10.0.0.1 10.0.1.1") == "1500", "nothing learnt yet")
    send = "import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.setsockopt(0,10,2); s.sendto(bytes(1400),('10.0.1.1',9))"
    run(*inside(a, sys.executable, "-c", send))   # IP_MTU_DISCOVER, IP_PMTUDISC_DO
    wait_for(lambda: p.ask("pmtu 10.0.0.1 10.0.1.1") == "1300", f"the path MTU is {p.ask('pmtu 10.0.0.1 10.0.1.1')}")
    check(p.ask("pmtu 10.9.9.9 10.0.1.1") == "-99", "a source that is not ours")


def without_privilege():
    """A process without capabilities has the mirror; resolution is refused with the kernel's errno, policy is unknown."""
    a, _ = pair("u")
    p = Probe(a)
    subprocess.run(inside(a, "ping", "-c1", "10.0.0.2"), capture_output=True, check=False)
    q = subprocess.Popen(inside(a, "setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", sys.argv[1]),
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    v0 = ifindex(a, "v0")
    asked = ("route - 10.0.0.2", f"resolve {v0} 10.0.0.5", f"confirm 10.0.0.1 10.0.0.2 {v0}", f"policy if={v0} s=10.0.0.1 d=10.0.0.2 sport=1 dport=2")
    out, _err = q.communicate("\n".join(asked) + "\n")
    lines = out.splitlines()
    check(lines[:2] == ["ready", f"ok {v0} link 1500 10.0.0.1"], f"routes need no capability: {lines}")
    check(lines[2:4] == ["-1", "0"], f"resolve is refused, confirm is not: {lines}")
    check(lines[4].startswith("kernel ") and "cannot be" in lines[4], f"policy is unknown: {lines}")
    p.step()


def lost_notifications():
    """More changes than the socket holds, while nobody reads: all is read anew, and is right."""
    a, _ = pair("o")
    p = Probe(a)
    p.step()
    batch(a, [f"route {do} 172.16.{i // 250}.{i % 250}/32 via 10.0.0.2" for do in ("add", "del", "add") for i in range(3000)])
    check("routes" in p.step(), "noticed")
    shown = len(json.loads(ip(a, "-j -4 route show table all"))) + len(json.loads(ip(a, "-j -6 route show table all")))
    check(int(p.ask("count").split()[2]) == shown, f"{p.ask('count')} and {shown} routes")
    check(p.ask("route - 172.16.3.7").startswith("ok"), "one of them")


def does_not_fit():
    a, _ = pair("f")
    p = Probe(a)
    batch(a, [f"route add 172.{16 + i // 62500}.{i // 250 % 250}.{i % 250}/32 via 10.0.0.2" for i in range(17000)])
    p.until("route - 10.0.0.2", "unknown the routing tables are not known")
    ip(a, "route flush root 172.16.0.0/12")
    p.until("route - 10.0.0.2", "ok")


if __name__ == "__main__":
    main([changes_of_each_kind, routes_that_go_without_a_word, carrier, neighbours, stale_is_probed_and_confirmed, path_mtu, without_privilege,
          lost_notifications, does_not_fit])
