#!/usr/bin/python3
# kill -9: the other end sees it at once; nobody else stalls; memory of the dead is reclaimed.
import os
import signal
import time
import lib
from lib import check

STREAM = os.path.join(lib.HERE, "stream.py")


def shared_files():
    base = os.environ.get("ICEPATH_RUNTIME_DIR")
    top = os.path.join(base, "icepath") if base else f"/dev/shm/icepath-{os.getuid()}"
    return {os.path.join(d, f) for d, _, files in os.walk(top) for f in files if f.endswith(".mem")}


def test_peer_sees_the_end_at_once(arm):
    port = lib.free_port()
    srv = lib.server(arm, [lib.PYTHON, STREAM, "echo", port], port)
    cli = lib.Program(arm, [lib.PYTHON, STREAM, "hang", port])
    lib.until("client is ready", lambda: "ready" in cli.out())
    if arm == "fast":
        lib.until("the connection is fast", lambda: lib.fast_rows(cli.pid) and lib.fast_rows(srv.pid))
    killed = time.monotonic()
    os.kill(srv.pid, signal.SIGKILL)
    cli.wait(10)
    what, when = cli.out().split("\n")[1].split()
    check(what in ("end", "reset"), f"the client saw {what}")
    check(float(when) - killed < 1.0, f"the client saw it after {float(when) - killed:.3f} s")
    if arm == "fast":
        check(cli.stats().get("fast", 0) > 0, "the connection was never fast")


@lib.in_arms("fast")
def test_peer_sees_the_end_although_a_fork_child_keeps_the_connection(arm):
    # The kernel's connection stays open in the child, but what the dead one had taken from the fast one is lost: the stream must not go on, nor hang.
    port = lib.free_port()
    srv = lib.server(arm, [lib.PYTHON, STREAM, "fork", port], port, ICEPATH_PROMOTE="eager")   # fast before the fork
    cli = lib.Program(arm, [lib.PYTHON, STREAM, "hang", port], ICEPATH_PROMOTE="eager")
    lib.until("client is ready", lambda: "ready" in cli.out())
    lib.until("the connection is fast", lambda: lib.fast_rows(cli.pid) and lib.fast_rows(srv.pid))
    child = int(srv.out())
    killed = time.monotonic()
    os.kill(srv.pid, signal.SIGKILL)
    try:
        cli.wait(10)
    finally:
        os.kill(child, signal.SIGKILL)
    what, when = cli.out().split("\n")[1].split()
    check(what in ("end", "reset"), f"the client saw {what}")
    check(float(when) - killed < 1.0, f"the client saw it after {float(when) - killed:.3f} s")


def test_client_killed_while_sending(arm):
    # The dead one may be in the middle of writing into the server's ring. Another client's stream goes on, and is right.
    port = lib.free_port()
    srv = lib.server(arm, [lib.PYTHON, STREAM, "echo", port], port)
    good = lib.Program(arm, [lib.PYTHON, STREAM, "send", port, "8"])
    for i in range(12):
        victim = lib.Program(arm, [lib.PYTHON, STREAM, "send", port, "60"])
        time.sleep(0.15 + 0.037 * (i % 7))
        victim.kill()
    good.wait(30)
    check(int(good.out()) > 1 << 20, f"only {good.out()} bytes")
    good.check_fast(tx=1 << 18, rx=1 << 18)
    check(srv.alive(), f"the server died: {srv.err()[-1000:]}")
    if arm == "fast":
        lib.until("the server has no connection left", lambda: not lib.fast_rows(srv.pid), 5)


@lib.in_arms("fast")
def test_memory_is_reclaimed(_):
    port = lib.free_port()
    before = shared_files()
    srv = lib.server("fast", [lib.PYTHON, STREAM, "echo", port], port)
    for _ in range(5):
        victim = lib.Program("fast", [lib.PYTHON, STREAM, "send", port, "60"])
        lib.until("fast", lambda v=victim: lib.fast_rows(v.pid))
        victim.kill()
    # A later process takes over what the dead left, so their number does not grow with every death.
    cli = lib.Program("fast", [lib.PYTHON, STREAM, "send", port, "1"]).wait(20)
    cli.check_fast(tx=1)
    left = shared_files() - before
    check(len(left) <= 2, f"regions left: {sorted(left)}")
    srv.kill()


lib.main([test_peer_sees_the_end_at_once, test_peer_sees_the_end_although_a_fork_child_keeps_the_connection,
          test_client_killed_while_sending, test_memory_is_reclaimed])
