#!/usr/bin/python3
# Real programs, accelerated on an interface that they share with the kernel; the other side is on the kernel, in another network namespace.
import hashlib
import json
import os
import re
from net import Net, check, lib, main, no_reset, port_of_its_own

net = Net()
MIB = 1 << 20


def test_redis():
    lib.need("redis-server", "redis-benchmark", "redis-cli")
    port, before = port_of_its_own(), net.counters("a")
    srv = net.server("a", "fast", ["redis-server", "--port", port, "--bind", net.addr["a"], "--save", "", "--appendonly", "no", "--daemonize", "no",
                                   "--dir", lib.tmp(), "--protected-mode", "no"], port)
    for clients, pipeline, n in ((50, 1, 40000), (50, 16, 200000), (1, 1, 5000)):
        b = net.run("b", "kernel", ["redis-benchmark", "-h", net.addr["a"], "-p", port, "-t", "set,get",
                                     "-n", n, "-c", clients, "-P", pipeline, "--csv"])
        rows = dict(re.findall(r'^"(SET|GET)","([\d.]+)"', b.out(), re.M))
        check(set(rows) == {"SET", "GET"}, f"unexpected output:\n{b.out()}")
        print(f"# redis -c {clients} -P {pipeline}: SET {rows['SET']}/s, GET {rows['GET']}/s", flush=True)
    value = "".join(chr(97 + i * 7 % 26) for i in range(3000))
    path = lib.tmpfile()
    with open(path, "w") as f:
        f.write("".join(f"SET key:{i} {i}{value}\nGET key:{i}\n" for i in range(1000)))
    with open(path) as f:
        cli = net.run("b", "kernel", ["redis-cli", "-h", net.addr["a"], "-p", port], stdin=f)
    check(cli.out().split("\n")[:2000] == [x for i in range(1000) for x in ("OK", f"{i}{value}")], "values came back different")
    srv.stop()
    s = srv.stats()
    check(s.get("fast", 0) > 100, f"hardly any connection was fast: {s}")
    srv.check_fast(tx=3000000, rx=10000000)
    no_reset(before, net.counters("a"), "redis", but=("TcpOutRsts", "TcpExtTCPAbortOnData"))   # the benchmark closes with answers under way
    net.no_program("a")


def test_nginx():
    lib.need("nginx", "curl", "wrk")
    port, size, want = port_of_its_own(), 100 * MIB, hashlib.sha256()
    root = lib.tempfile.mkdtemp(dir=lib.tmp())
    os.chmod(root, 0o755)
    with open(os.path.join(root, "file"), "wb") as f:
        for _ in range(size // MIB):
            block = os.urandom(MIB)
            want.update(block)
            f.write(block)
    with open(os.path.join(root, "small"), "wb") as f:
        f.write(b"x" * 1000)
    conf = os.path.join(root, "conf")
    with open(conf, "w") as f:
        f.write(f"""user root; worker_processes 1; daemon off; pid {root}/pid; error_log stderr;
env ICEPATH_STATS; env ICEPATH_REQUIRE; env ICEPATH_PORTS; env ICEPATH_BULK; env LD_PRELOAD;
events {{ worker_connections 1024; }}
http {{ access_log off; sendfile on; keepalive_timeout 65; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
uwsgi_temp_path {root}/u; scgi_temp_path {root}/s; server {{ listen {net.addr['a']}:{port}; root {root}; }} }}
""")
    srv = net.server("a", "fast", ["nginx", "-p", root, "-c", conf, "-e", "stderr"], port)
    to = lib.tmpfile()
    for limit in ((), ("--limit-rate", "100M")):
        net.run("b", "kernel", ["curl", "-sS", *limit, "-o", to, f"http://{net.addr['a']}:{port}/file"])
        with open(to, "rb") as f:
            check(hashlib.file_digest(f, "sha256").hexdigest() == want.hexdigest(), "the file arrived with another sha256")
    wrk = net.run("b", "kernel", ["wrk", "-t1", "-c20", "-d2s", f"http://{net.addr['a']}:{port}/small"]).out()
    check("Requests/sec" in wrk and "Non-2xx" not in wrk and not re.search(r"Socket errors: (?!connect 0, read 0, write 0)", wrk), wrk)
    print(f"# wrk: {re.search(r'Requests/sec: *([0-9.]+)', wrk)[1]} requests/s", flush=True)
    srv.stop()
    srv.check_fast(tx=size)
    lib.share("fast", "nginx, 2 files", srv.stats().get("tx_bytes", 0), 2 * size, 0.5)
    net.no_program("a")


def test_iperf3():
    lib.need("iperf3")
    for accelerated in ("server", "client"):
        for way in ((), ("-R",)):
            port = port_of_its_own()
            x, y = ("a", "b") if accelerated == "server" else ("b", "a")
            srv = net.server(x, "fast" if x == "a" else "kernel", ["iperf3", "-s", "-1", "-p", port, "-B", net.addr[x]], port)
            cli = net.run(y, "fast" if y == "a" else "kernel", ["iperf3", "-c", net.addr[x], "-p", port, "-t", "3", "-J", *way])
            srv.wait(20, None)
            end = json.loads(cli.out())["end"]
            sent, got = end["sum_sent"]["bytes"], end["sum_received"]["bytes"]
            check(sent > 50e6 and got > 0.5 * sent, f"{sent} bytes sent, {got} received")
            fast = srv if x == "a" else cli
            s = fast.stats()
            text = f"iperf3 {accelerated} accelerated{', reverse' if way else ''}: {end['sum_received']['bits_per_second'] / 1e9:.1f} Gbit/s"
            lib.share("fast", text, s.get("tx_bytes", 0) + s.get("rx_bytes", 0), max(sent, got), 0.5)
    net.no_program("a")


main([test_redis, test_nginx, test_iperf3])
