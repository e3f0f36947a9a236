#!/usr/bin/python3
# `icepath off PID` and `on PID` under load: connections change lanes, every byte arrives in order.
import os
import time
import lib
from lib import check

STREAM = os.path.join(lib.HERE, "stream.py")


def stream_pair(seconds, promote="lazy"):
    port = lib.free_port()
    srv = lib.server("fast", [lib.PYTHON, STREAM, "echo", port], port, ICEPATH_PROMOTE=promote)
    cli = lib.Program("fast", [lib.PYTHON, STREAM, "send", port, seconds], ICEPATH_PROMOTE=promote)
    lib.until("the connection is fast at both ends", lambda: lib.fast_rows(srv.pid) and lib.fast_rows(cli.pid))
    return srv, cli


def test_off_and_on_under_load(_):
    srv, cli = stream_pair(8)
    for turn, who in enumerate((srv, cli, srv, cli, cli, srv)):
        time.sleep(0.2)
        out = lib.icepath("off", who.pid).stdout
        check("1 socket" in out or turn, f"off said {out!r}")
        lib.until("the connection is in the kernel at both ends",
                  lambda: not lib.fast_rows(srv.pid) and not lib.fast_rows(cli.pid))
        rows = [r for r in lib.ss(who.pid) if r["state"] == "ESTAB"]
        check(len(rows) == 1 and rows[0]["path"] == "kernel" and rows[0]["reason"], f"rows after off: {rows}")
        time.sleep(0.2)
        lib.icepath("on", who.pid)
        lib.until("the connection is fast again", lambda: lib.fast_rows(srv.pid) and lib.fast_rows(cli.pid))
    cli.wait(30)
    check(int(cli.out()) > 1 << 20, f"only {cli.out()} bytes went round")
    cli.check_fast(tx=1 << 18, rx=1 << 18)
    srv.kill()


def test_many_quick_turns(_):
    srv, cli = stream_pair(6)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        lib.icepath("off", srv.pid)
        lib.icepath("on", srv.pid)
    cli.wait(30)
    srv.kill()


def test_off_both_ends_at_once(_):
    srv, cli = stream_pair(8)
    end, turns = time.monotonic() + 5, 0
    while time.monotonic() < end and turns < 10:
        turns += 1
        check(cli.alive(), f"the client ended early: {cli.err()[-1000:]}")
        jobs = [lib.Program("kernel", [lib.COMMAND, "off", p.pid]) for p in (srv, cli)]
        for j in jobs:
            j.wait(20)
        jobs = [lib.Program("kernel", [lib.COMMAND, "on", p.pid]) for p in (srv, cli)]
        for j in jobs:
            j.wait(20)
    cli.wait(30)
    srv.kill()


def test_off_holds_for_new_connections(_):
    port = lib.free_port()
    srv = lib.server("fast", [lib.PYTHON, STREAM, "echo", port], port)
    lib.icepath("off", srv.pid)
    cli = lib.Program("fast", [lib.PYTHON, STREAM, "send", port, "1"])
    time.sleep(0.5)
    check(not lib.fast_rows(cli.pid), "a connection was promoted although its peer is off")
    cli.wait(20)
    check(cli.stats().get("fast") == 0, f"stats: {cli.stats()}")
    srv.kill()


lib.main([test_off_and_on_under_load, test_many_quick_turns, test_off_both_ends_at_once, test_off_holds_for_new_connections],
         arms=("fast",))
