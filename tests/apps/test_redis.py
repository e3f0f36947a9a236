#!/usr/bin/python3
# redis-server with redis-benchmark and redis-cli; an accelerated and a plain client of one accelerated server at a time.
import os
import re
import sys
import threading
import time
import lib
from lib import check, need, run


def test_benchmark(arm):
    need("redis-server", "redis-benchmark")
    port = lib.free_port()
    srv = lib.redis(arm, port)
    n = 10000
    for clients in (1, 50):
        b = run(arm, ["redis-benchmark", "-h", "127.0.0.1", "-p", port, "-t", "set,get", "-n", n, "-c", clients, "--csv"])
        rows = re.findall(r'^"(SET|GET)","([\d.]+)"', b.out(), re.M)
        check([r[0] for r in rows] == ["SET", "GET"], f"unexpected output:\n{b.out()}")
        b.check_fast(tx=n * 36)                       # one GET request is 36 bytes
    srv.stop()
    srv.check_fast(tx=n * 5, rx=n * 36)


def test_values_arrive(arm):
    need("redis-server", "redis-cli")
    port = lib.free_port()
    srv = lib.redis(arm, port)
    value = "".join(chr(97 + i * 7 % 26) for i in range(200000))
    path = lib.tmpfile()
    with open(path, "w") as f:
        f.write("".join(f"SET key:{i} v{i}-{value[i:i + 3000]}\n" for i in range(300)))
        f.write("".join(f"GET key:{i}\n" for i in range(300)))
    with open(path) as f:
        cli = lib.Program(arm, ["redis-cli", "-p", port], stdin=f).wait()
    lines = cli.out().split("\n")
    check(lines[:300] == ["OK"] * 300, "not every SET was answered OK")
    for i in range(300):
        check(lines[300 + i] == f"v{i}-{value[i:i + 3000]}", f"key:{i} came back different")
    cli.check_fast(tx=100000, rx=100000)
    srv.stop()
    srv.check_fast(tx=100000, rx=100000)


@lib.in_arms("fast")
def test_plain_and_accelerated_client_together(_):
    need("redis-server", "redis-cli")
    port = lib.free_port()
    srv = lib.redis("fast", port)
    problems = []

    def client(arm):
        path = lib.tmpfile()
        with open(path, "w") as f:
            f.write("".join(f"SET {arm}:{i} {arm}-{i}\nGET {arm}:{i}\n" for i in range(3000)))
        with open(path) as f:
            p = lib.Program(arm, ["redis-cli", "-p", port], stdin=f).wait()
        want = [x for i in range(3000) for x in ("OK", f"{arm}-{i}")]
        if p.out().split("\n")[:6000] != want:
            problems.append(f"{arm} client got a wrong answer")
        try:
            p.check_fast(tx=50000)
        except lib.Failure as e:
            problems.append(str(e))

    threads = [threading.Thread(target=client, args=(a,)) for a in ("kernel", "fast")]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    check(not problems, "; ".join(problems))
    srv.stop()
    srv.check_fast(tx=10000)


@lib.in_arms("fast")
def test_ss_and_stat_show_the_fast_path(_):
    need("redis-server", "redis-benchmark")
    port = lib.free_port()
    srv = lib.redis("fast", port)
    bench = lib.Program("fast", ["redis-benchmark", "-p", port, "-t", "get", "-n", "2000000", "-c", "1", "-q"])
    lib.until("icepath ss shows a fast row of both processes",
              lambda: lib.fast_rows(srv.pid) and lib.fast_rows(bench.pid), 10)
    row = lib.fast_rows(bench.pid)[0]
    check(row["state"] == "ESTAB" and row["peer"] == f"127.0.0.1:{port}" and row["reason"], f"row is {row}")
    check(row["cwnd"] > 0 and row["rtt_us"] >= 0 and row["comm"].startswith("redis-benchmar"), f"row is {row}")
    stat = [p for p in lib.json.loads(lib.icepath("stat", "--json").stdout) if p["pid"] == srv.pid]
    check(len(stat) == 1 and stat[0]["layers"]["Tcp"]["TcpInSegs"] > 0, f"stat is {stat}")
    check(stat[0]["layers"]["Ring"]["RingTxDesc"] > 0, "no descriptor was used")
    bench.kill()
    lib.until("the killed process left the table", lambda: not lib.ss(bench.pid), 5)
    srv.stop()


def switches(pid):
    """Sleeps of each thread of the process so far, by thread name and id."""
    threads = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/status") as f:
            fields = dict(line.split(":", 1) for line in f)
        threads[fields["Name"].strip(), tid] = int(fields["voluntary_ctxt_switches"])
    return threads


@lib.in_arms("fast")
def test_idle_the_helper_thread_sleeps_and_the_server_wakes_for_its_own_timer_only(_):
    need("redis-server")
    port = lib.free_port()
    srv = lib.redis("fast", port)
    client = lib.Program("fast", [sys.executable, "-c", f"""
import socket, time
s = socket.create_connection(("127.0.0.1", {port}))
for i in range(20000):
    s.sendall(b"PING\\r\\n")
    assert s.recv(100)
time.sleep(60)
"""])
    lib.until("the connection is fast and has come to rest",
              lambda: (r := lib.fast_rows(srv.pid)) and r[0]["fast_rx_bytes"] > 100000 and not time.sleep(0.5) and r == lib.fast_rows(srv.pid))
    before = switches(srv.pid)
    time.sleep(2)
    slept = {t: n - before.get(t, 0) for t, n in switches(srv.pid).items()}
    helper = sum(n for (name, _), n in slept.items() if name == "icepath")
    check(any(name == "icepath" for name, _ in slept) and helper <= 4, f"the helper thread woke {helper} times in 2 s: {slept}")
    # ten timer events a second; a machine that stands still for a while makes them fewer, never more
    check(sum(slept.values()) - helper <= 30, f"redis woke more often than its timer: {slept}")
    client.kill()
    srv.stop()


lib.main([test_values_arrive, test_benchmark, test_plain_and_accelerated_client_together, test_ss_and_stat_show_the_fast_path,
          test_idle_the_helper_thread_sleeps_and_the_server_wakes_for_its_own_timer_only])
