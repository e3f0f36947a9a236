#!/usr/bin/python3
# `icepath off` and `on` again and again while data flows both ways: the connection moves between the kernel and the fast path hundreds of times, no
# byte is lost, doubled or changed, nobody is reset. The pause of a move is printed, not judged.
import json
import statistics
import time
from net import Net, check, lib, main, no_reset, pair, sh, warm

net = Net()
PAIRS = 60                           # a pair: to the kernel and back again


def counted(agent):
    for p in json.loads(agent.icepath("stat", "--json")):
        if p["pid"] == agent.pid:
            layer = next(v for v in p["layers"].values() if "SockPromoted" in v)
            return layer["SockPromoted"], layer["SockDemoted"]
    return 0, 0


def move(agent, pairs, seconds):
    """Off and on by one shell, as fast as it can start the command; every third time it lets the connection be fast for a while."""
    end, first = time.monotonic() + seconds, counted(agent)
    command = f"{lib.COMMAND} off {agent.pid} && {lib.COMMAND} on {agent.pid} && {lib.COMMAND} ss"
    loop = f"i=0; while [ $i -lt 10 ]; do {command} || exit 1; [ $((i % 3)) -gt 0 ] || sleep 0.02; i=$((i + 1)); done >/dev/null"
    while True:
        sh(*net.inside(agent.x), "sh", "-c", loop)
        up, down = (now - then for now, then in zip(counted(agent), first))
        if up >= pairs and down >= pairs:
            return up, down
        check(time.monotonic() < end, f"only {up} take-overs and {down} give-backs within {seconds} s: {agent.rows()}")


def under_load(arms, movers):
    before = {x: net.counters(x) for x in "ab"}
    a, b = pair(net, arms)
    ends = {"a": a, "b": b}
    warm(a, b, [ends[x] for x, arm in zip("ab", arms) if arm == "fast"])
    a.do("d = Duplex(s, 1, 2)")
    b.do("d = Duplex(s, 2, 1)")
    for x in movers:
        up, down = move(ends[x], PAIRS // len(movers), 40)
        print(f"# end {x}: {up} take-overs, {down} give-backs under load", flush=True)
    time.sleep(0.1)
    a.do("d.stop = True")
    b.do("d.stop = True")
    sums = [p.do("d.join(20)", 30) for p in (a, b)]
    gaps = {x: sorted(p.do("d.gaps"))[-3:] for x, p in ends.items()}
    check(sums[0] == sums[1][::-1], f"sent and received: {sums}")
    check(min(sums[0]) > 1 << 20, f"hardly anything was sent meanwhile: {sums}")
    print(f"# {sums[0][0] / 1e6:.0f} + {sums[0][1] / 1e6:.0f} MB; the longest waits of a reader, ms: "
          + "; ".join(f"{x} {', '.join(f'{g * 1e3:.1f}' for g in v)}" for x, v in gaps.items()), flush=True)
    a.do("s.close()")
    b.do("s.close()")
    after = {x: net.counters(x) for x in "ab"}
    for x in "ab":
        no_reset(before[x], after[x], f"kernel of {x}")
    print("# kernel retransmissions: " + ", ".join(f"{x} {after[x]['TcpRetransSegs'] - before[x]['TcpRetransSegs']}, timeouts "
                                                   f"{after[x]['TcpExtTCPTimeouts'] - before[x]['TcpExtTCPTimeouts']}" for x in "ab"), flush=True)
    a.end(), b.end()


def test_moves_under_load(): under_load(("fast", "kernel"), "a")
def test_moves_of_both_ends_under_load(): under_load(("fast", "fast"), "ab")


def test_moves_of_a_conversation():
    """Small messages: every one arrives, and the slowest tell how long a move is."""
    a, b = pair(net)
    warm(a, b)
    b.put("while x := s.recv(1000): s.sendall(x)")
    a.do("""
times, go = [], [True]
def talk():
    i = 0
    while go[0]:
        m = struct.pack('<Q', i) * (1 + i % 100)
        t = time.monotonic()
        s.sendall(m)
        got = b''
        while len(got) < len(m):
            x = s.recv(1000)
            assert x, 'end of file'
            got += x
        assert got == m, 'wrong answer'
        times.append(time.monotonic() - t)
        i += 1
    return i
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
t = Later(talk)""")
    up, _ = move(a, PAIRS, 40)
    check(a.do("go[0] = False; t.result()") > 100, "hardly any messages")
    times = sorted(a.do("times"))
    moves = times[-2 * up:]
    print(f"# {len(times)} round trips, median {statistics.median(times) * 1e6:.0f} us; the {len(moves)} slowest, one for each move "
          f"(the command runs beside it): "
          f"median {statistics.median(moves) * 1e6:.0f} us, max {moves[-1] * 1e3:.1f} ms", flush=True)
    a.do("s.close()")
    b.get()
    a.end(), b.end()


main([test_moves_of_a_conversation, test_moves_under_load, test_moves_of_both_ends_under_load])
