#!/usr/bin/python3
# Other programs of Debian: asyncio, nc, iperf3, sockperf; and 10,000 connections at once.
import hashlib
import json
import os
import re
import subprocess
import lib
from lib import check, need

ASYNCIO = os.path.join(lib.HERE, "asyncio_echo.py")


def test_asyncio_echo(arm):
    port = lib.free_port()
    srv = lib.server(arm, [lib.PYTHON, ASYNCIO, "server", port], port)
    cli = lib.run(arm, [lib.PYTHON, ASYNCIO, "client", port])
    check(cli.out() == "ok\n", cli.out() + cli.err())
    cli.check_fast(tx=100000, rx=100000)
    srv.stop(sig=2)
    srv.check_fast(tx=100000)


def test_asyncio_both_ends_in_one_thread(arm):
    # An event loop connected to itself never waits for itself.
    both = lib.run(arm, [lib.PYTHON, ASYNCIO, "both", lib.free_port()])
    check(both.out() == "ok\n", both.out() + both.err())
    both.check_fast(tx=100000, rx=100000)


def test_nc(arm):
    need("nc")
    port, size = lib.free_port(), 32 << 20
    data = lib.tmpfile()
    with open(data, "wb") as f:
        f.write(os.urandom(size))
    srv = lib.server(arm, ["nc", "-l", "127.0.0.1", port], port)
    with open(data, "rb") as f:
        cli = lib.Program(arm, ["nc", "-N", "127.0.0.1", port], stdin=f).wait(60)
    srv.wait(20)
    with open(srv.out_path, "rb") as a, open(data, "rb") as b:
        check(hashlib.file_digest(a, "sha256").digest() == hashlib.file_digest(b, "sha256").digest(), "nc got other bytes")
    cli.check_fast(tx=size // 2)
    srv.check_fast(rx=size // 2)


def test_iperf3(arm):
    need("iperf3")
    port = lib.free_port()
    srv = lib.server(arm, ["iperf3", "-s", "-1", "-p", port], port)
    cli = lib.run(arm, ["iperf3", "-c", "127.0.0.1", "-p", port, "-t", "2", "-J"])
    result = json.loads(cli.out())
    check("error" not in result, str(result.get("error")))
    moved = result["end"]["sum_received"]["bytes"]
    check(moved > 100 << 20, f"{moved} bytes in 2 s")
    srv.wait(20)
    cli.check_fast(tx=moved // 2)
    srv.check_fast(rx=moved // 2)


def test_iperf3_reverse_and_parallel(arm):
    need("iperf3")
    port = lib.free_port()
    srv = lib.server(arm, ["iperf3", "-s", "-1", "-p", port], port)
    cli = lib.run(arm, ["iperf3", "-c", "127.0.0.1", "-p", port, "-t", "2", "-R", "-P", "4", "-J"])
    moved = json.loads(cli.out())["end"]["sum_received"]["bytes"]
    srv.wait(20)
    cli.check_fast(rx=moved // 2)


def test_sockperf(arm):
    need("sockperf")
    port = lib.free_port()
    srv = lib.server(arm, ["sockperf", "sr", "--tcp", "-i", "127.0.0.1", "-p", port], port)
    cli = lib.run(arm, ["sockperf", "pp", "--tcp", "-i", "127.0.0.1", "-p", port, "-m", "64", "-t", "2", "--data-integrity"])
    check(re.search(r"Summary: Latency is [\d.]+ usec", cli.out()), cli.out() + cli.err())
    check("data integrity test failed" not in cli.out() + cli.err(), "a message came back changed:\n" + cli.out())
    check("# dropped messages = 0; # duplicated messages = 0; # out-of-order messages = 0" in cli.out(), cli.out())
    cli.check_fast(tx=64 * 1000, rx=64 * 1000)
    srv.stop(sig=2)


def test_10000_connections(arm):
    port, n = lib.free_port(), 10000
    exe = os.path.join(lib.BUILD, "tests", "bench", "conns10k")
    srv = lib.server(arm, [exe, "server", "127.0.0.1", port], port, stdin=subprocess.PIPE, ICEPATH_PROMOTE="eager")
    cli = lib.Program(arm, [exe, "client", "127.0.0.1", port, n, 3], stdin=subprocess.PIPE, ICEPATH_PROMOTE="eager")
    lib.until("all are open", lambda: '"open"' in cli.out() or not cli.alive(), 120, 0.1)
    check(cli.alive(), f"client ended: {cli.err()[-1000:]}")
    if arm == "fast":
        fast = sum(1 for r in lib.ss(cli.pid) if r["path"] == "fast")
        check(fast >= n * 9 // 10, f"{fast} of {n} connections are fast")
    cli.popen.stdin.write(b"go\n")
    cli.popen.stdin.close()
    cli.wait(60)
    check(f'"verified": {n}' in cli.out(), cli.out())
    srv.popen.stdin.close()
    srv.wait(20)
    cli.check_fast(tx=32 * n)


lib.main([test_asyncio_echo, test_asyncio_both_ends_in_one_thread, test_nc, test_iperf3, test_iperf3_reverse_and_parallel,
          test_sockperf, test_10000_connections])
