#!/usr/bin/python3
# A connection of a program on an interface that it shares with the kernel: both directions at once with every byte checked, how it ends, and what is
# left behind. The peer is on the kernel, or accelerated too.
import threading
import time
from net import Net, check, lib, main, no_reset, pair, until, warm

net = Net()
MB = 1 << 20
SIZE = 50 * MB


def both_ways(arms, listener):
    before = {x: net.counters(x) for x in "ab"}
    a, b = pair(net, arms, listener)
    ends = {"a": a, "b": b}
    accelerated = [x for x, arm in zip("ab", arms) if arm == "fast"]
    warm(a, b, [ends[x] for x in accelerated])
    started = time.monotonic()
    a.do(f"d = Duplex(s, 1, 2, {SIZE})")
    b.do(f"d = Duplex(s, 2, 1, {SIZE})")
    moved = [p.do("for t in d.threads: t.join(50)\nd.join(1)", 60) for p in (a, b)]
    took = time.monotonic() - started
    check(moved == [[SIZE, SIZE]] * 2, f"{moved} bytes instead of {SIZE} each way")
    a.do("s.close()")
    b.do("s.close()")
    for x in accelerated:
        stats = ends[x].end().stats()
        fast = stats.get("tx_bytes", 0) + stats.get("rx_bytes", 0)
        lib.share("fast", f"{'/'.join(arms)}, listener {listener}, end {x}, {2 * SIZE / took / 1e6:.0f} MB/s", fast, 2 * SIZE, 0.9)
    after = {x: net.counters(x) for x in "ab"}
    for x in "ab":
        no_reset(before[x], after[x], f"kernel of {x}")
    for x in accelerated:
        net.no_program(x)


def test_accelerated_server_kernel_client(): both_ways(("fast", "kernel"), "a")
def test_accelerated_client_kernel_server(): both_ways(("fast", "kernel"), "b")
def test_both_accelerated(): both_ways(("fast", "fast"), "a")


def test_half_close_by_us_then_an_answer():
    before = net.counters("a")
    a, b = pair(net)
    warm(a, b)
    b.put("got = recv_stream(s, 7, None); send_stream(s, 8, 3000000); s.close(); got")
    a.do("send_stream(s, 7, 2000000); s.shutdown(socket.SHUT_WR)")
    check(a.do("recv_stream(s, 8, None)") == 3000000, "the answer after our half-close is short")
    check(b.get() == 2000000, "the request before our half-close is short")
    check(a.do("s.recv(1)") == "", "end of file is not lasting")
    a.fails("s.send(b'x')", 32)
    a.do("s.close()")
    no_reset(before, net.counters("a"), "half-close")
    a.end(), b.end()


def test_half_close_by_the_peer_then_an_answer():
    before = net.counters("a")
    a, b = pair(net)
    warm(a, b)
    b.put("send_stream(s, 7, 2000000); s.shutdown(socket.SHUT_WR); recv_stream(s, 8, None)")
    check(a.do("recv_stream(s, 7, None)") == 2000000, "the request is short")
    bits = a.do("p = select.poll(); p.register(s, select.POLLIN | select.POLLRDHUP); dict(p.poll(1000)).get(s.fileno())")
    check(bits == 0x2001, "poll does not say RDHUP")
    a.do("send_stream(s, 8, 3000000); s.close()")
    check(b.get() == 3000000, "the answer is short")
    no_reset(before, net.counters("a"), "half-close of the peer")
    a.end(), b.end()


def test_close_with_unread_data_resets():
    a, b = pair(net)
    warm(a, b)
    b.do("s.sendall(b'x' * 5000)")
    a.do("assert s.recv(1, socket.MSG_PEEK) == b'x'; time.sleep(0.05); s.close()")
    b.fails("s.settimeout(5); s.recv(1)", 104)
    a.end(), b.end()


def test_close_after_send_delivers_all():
    before = net.counters("a")
    a, b = pair(net)
    warm(a, b)
    b.do("w = Later(lambda: (time.sleep(0.3), recv_stream(s, 3, None))[1])")     # a reader that is late: much is unsent at the close
    a.do("s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4000000); send_stream(s, 3, 3000000); s.close()")
    check(b.do("w.result()") == 3000000, "bytes sent before the close are missing")
    no_reset(before, net.counters("a"), "close after send")
    a.end(), b.end()


def test_reset_by_the_peer():
    a, b = pair(net)
    warm(a, b)
    a.do("w = Later(s.recv, 100); time.sleep(0.1)")
    b.do("s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()")
    a.fails("w.result()", 104)
    check(a.do("s.recv(1)") == "", "after its error a reset connection reads as at its end")
    a.fails("s.send(b'x')", 32)
    a.do("s.close()")
    a.end(), b.end()


def test_exit_right_after_send():
    before = net.counters("a")
    for how in ("sys.exit(0)", "os._exit(0)"):
        a, b = pair(net)
        warm(a, b)
        b.do("w = Later(lambda: (time.sleep(0.2), recv_stream(s, 3, None))[1])")
        a.put(f"send_stream(s, 3, 1500000)\n{how}")
        check(b.do("w.result()") == 1500000, f"{how}: bytes sent before the exit are missing")
        until("the program ended", lambda: not a.p.alive(), 10)
        b.end()
        net.no_program("a")
    no_reset(before, net.counters("a"), "exit after send")


def test_killed_leaves_nothing_and_others_go_on():
    a, b = pair(net)
    warm(a, b)
    k, other = pair(net, ("kernel", "kernel"))
    stop = threading.Event()
    k.do("d = Duplex(s, 1, 2)")
    other.do("d = Duplex(s, 2, 1)")
    a.do("d = Duplex(s, 1, 2)")
    b.do("d = Duplex(s, 2, 1)")
    time.sleep(0.3)
    check(net.program("a"), "no XDP program on the interface while it is used")
    stop.set()
    a.p.kill()
    net.no_program("a")
    x = k.do("d.got")
    until("other connections go on", lambda: k.do("d.got") > x + 10 * MB, 20)
    # The dead one's peer is told: by the kernel, for which there is no such connection, at its next segment.
    error = b.do("d.threads[0].join(5); d.threads[1].join(5); d.error")
    check(error and ("Errno 104" in error or "Errno 32" in error), f"the peer of the dead program: {error}")
    k.do("d.stop = True")
    other.do("d.join(20)")
    k.do("d.join(20)")
    a2, b2 = pair(net)          # and the next one finds the interface free
    warm(a2, b2)
    for p in (a2, b2, k, other, b):
        p.end()


main([test_accelerated_server_kernel_client, test_accelerated_client_kernel_server, test_both_accelerated, test_half_close_by_us_then_an_answer,
      test_half_close_by_the_peer_then_an_answer, test_close_with_unread_data_resets, test_close_after_send_delivers_all, test_reset_by_the_peer,
      test_exit_right_after_send, test_killed_leaves_nothing_and_others_go_on])
