#!/usr/bin/python3
# A path that is not perfect: loss in the middle, other MTUs, a link that goes down and up, a next hop whose address changes. The accelerated end's
# own namespace has no rules; what happens, happens on the way.
import time
from net import Net, check, lib, main, no_reset, pair, ping_pong, until, warm

MB = 1 << 20


def transfer(net, size, least=0.9, during=None, timeout=60):
    before = {x: net.counters(x) for x in "ab"}
    a, b = pair(net)
    warm(a, b)
    started = time.monotonic()
    for p, seeds in ((a, "1, 2"), (b, "2, 1")):
        p.do(f"d = Duplex(s, {seeds}, {size})")
    if during:
        during(a, b)
    for p in (a, b):
        p.do(f"end = time.monotonic() + {timeout}\nfor t in d.threads: t.join(max(0, end - time.monotonic()))", timeout + 10)
    moved = [p.do("d.join(1)") for p in (a, b)]
    took = time.monotonic() - started
    check(moved == [[size, size]] * 2, f"{moved} bytes instead of {size} each way")
    a.do("s.close()")
    b.do("s.close()")
    b.end()
    s = a.end().stats()
    lib.share("fast", f"{2 * size / took / 1e6:.0f} MB/s both ways", s.get("tx_bytes", 0) + s.get("rx_bytes", 0), 2 * size, least)
    after = {x: net.counters(x) for x in "ab"}
    for x in "ab":
        no_reset(before[x], after[x], f"kernel of {x}")
    return s


def loss(percent, size):
    lib.need("nft")
    net = Net(middle=True)
    some = f"meta l4proto tcp numgen random mod 1000 < {percent * 10} drop"
    net.nft("m", f"table ip t {{\n chain c {{\n type filter hook forward priority 0;\n {some}\n}}\n}}\n")
    s = transfer(net, size)
    check(s.get("retransmits", 0) > 0, f"nothing was lost: {s}")


def test_loss_1_percent(): loss(1, 20 * MB)
def test_loss_5_percent(): loss(5, 5 * MB)
def test_mtu_9000(): transfer(Net(mtu=9000), 50 * MB)
def test_mtu_1400(): transfer(Net(mtu=1400), 30 * MB)


def test_moves_under_loss():
    lib.need("nft")
    net = Net(middle=True)
    net.nft("m", "table ip t {\n chain c {\n type filter hook forward priority 0;\n meta l4proto tcp numgen random mod 1000 < 10 drop\n}\n}\n")

    def moves(a, _):
        for _ in range(30):
            a.off()
            time.sleep(0.005)
            a.on()
            time.sleep(0.02)
    transfer(net, 10 * MB, 0.0, moves)


def test_link_down_for_a_second():
    net = Net()

    def flap(a, _):
        time.sleep(0.1)
        net.ip("b", "link set vb down")            # the far end's: our interface loses its carrier
        time.sleep(1)
        net.ip("b", "link set vb up")
    transfer(net, 40 * MB, 0.0, flap)


def test_own_link_down_for_a_second():
    net = Net()

    def flap(a, _):
        time.sleep(0.1)
        net.ip("a", "link set va down")
        time.sleep(1)
        net.ip("a", "link set va up")
    transfer(net, 40 * MB, 0.0, flap)


def test_neighbour_changes_its_address():
    net = Net()
    a, b = pair(net)
    warm(a, b)
    net.ip("b", "link set vb address 02:00:00:00:77:02")
    net.ip("a", "neigh replace 10.77.0.2 lladdr 02:00:00:00:77:02 dev va nud reachable")
    a.do("d = Duplex(s, 1, 2, 5000000)")
    b.do("d = Duplex(s, 2, 1, 5000000)")
    check(a.do("[t.join(20) for t in d.threads]; d.join(1)") == [5000000, 5000000], "our end did not go on")
    check(b.do("[t.join(20) for t in d.threads]; d.join(1)") == [5000000, 5000000], "the other end did not go on")
    a.end(), b.end()


main([test_mtu_9000, test_mtu_1400, test_loss_1_percent, test_loss_5_percent, test_moves_under_loss, test_neighbour_changes_its_address,
      test_link_down_for_a_second, test_own_link_down_for_a_second])
