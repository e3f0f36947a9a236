# What tools/bench --apps measures: programs of the matrix with the load generators that come with them, few connections and more runnable threads than
# cores. Each returns work per second; a program that is slower than on the kernel is what is looked for. Both ends in the arm that is measured.
import json
import os
import re
import signal
import subprocess
import time
import lib
import matrix_postgres
from matrix_proxy import Proxy

HIGHER = "higher is better"
SECONDS = 2
BENCHES = {}                                                      # as in tools/bench


def bench(name, unit, what):
    def add(f):
        BENCHES[name] = (f, unit, HIGHER, 5, what)
        return f
    return add


def root_with(size):
    d = lib.tempfile.mkdtemp(dir=lib.tmp())
    os.chmod(d, 0o755)
    with open(os.path.join(d, "file"), "wb") as f:
        f.write(os.urandom(size))
    return d


def wrk(arm, port, threads, connections, path="file", *more):
    p = lib.run(arm, ["wrk", "-t", threads, "-c", connections, "-d", f"{SECONDS}s", *more, f"http://127.0.0.1:{port}/{path}"])
    lib.check("Non-2xx" not in p.out() and "Socket errors" not in p.out(), p.out())
    return float(re.search(r"Requests/sec: +([\d.]+)", p.out())[1])


# ---- redis, memcached
def redis(arm, *argv, **env):
    port = lib.free_port()
    srv = lib.server(arm, ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", lib.tmp(),
                           *env.pop("server", ())], port)
    b = lib.run(arm, ["redis-benchmark", "-p", port, "--csv", *argv], timeout=120)
    srv.stop()
    return float(re.search(r'^"(?:SET|GET)","([\d.]+)"', b.out(), re.M)[1])


@bench("redis-set-1k", "requests/s", "redis-benchmark SET, 1,000 B, 50 connections")
def redis_set(arm):
    return redis(arm, "-t", "set", "-d", 1000, "-n", 100000, "-c", 50)


@bench("redis-pipeline", "requests/s", "redis-benchmark GET, 50 connections, pipeline of 16")
def redis_pipeline(arm):
    return redis(arm, "-t", "get", "-n", 800000, "-c", 50, "-P", 16)


@bench("redis-threads", "requests/s", "redis-server --io-threads 4, redis-benchmark --threads 4, 64 connections: more threads than cores")
def redis_threads(arm):
    return redis(arm, "-t", "get", "-n", 150000, "-c", 64, "--threads", 4, server=("--io-threads", 4, "--io-threads-do-reads", "yes"))


def memcached(arm, threads, client_threads, connections):
    port = lib.free_port()
    user = ["-u", "root"] if os.geteuid() == 0 else []
    srv = lib.server(arm, ["memcached", "-p", port, "-U", 0, "-l", "127.0.0.1", "-t", threads, *user], port)
    p = lib.run(arm, ["memcaslap", "-s", f"127.0.0.1:{port}", "-T", client_threads, "-c", connections, "-t", f"{SECONDS}s", "-X", 200])
    srv.stop()
    return float(re.search(r"TPS: (\d+)", p.out())[1])


@bench("memcached", "requests/s", "memcached -t 1, memcaslap with one thread and 8 connections")
def memcached_small(arm):
    return memcached(arm, 1, 1, 8)


@bench("memcached-threads", "requests/s", "memcached -t 4, memcaslap with 4 threads and 64 connections: more threads than cores")
def memcached_threads(arm):
    return memcached(arm, 4, 4, 64)


# ---- web
def nginx(arm, size, workers, threads, connections, *more):
    port = lib.free_port()
    srv = lib.nginx(arm, port, root_with(size), workers)
    rate = wrk(arm, port, threads, connections, "file", *more)
    srv.stop()
    return rate


@bench("nginx", "requests/s", "nginx, one worker, 600 B, wrk -t 1 -c 4")
def nginx_small(arm):
    return nginx(arm, 600, 1, 1, 4)


@bench("nginx-threads", "requests/s", "nginx, two workers, 600 B, wrk -t 4 -c 64: more threads than cores")
def nginx_threads(arm):
    return nginx(arm, 600, 2, 4, 64)


@bench("nginx-1m", "requests/s", "nginx, two workers, 1 MiB by sendfile, wrk -t 2 -c 8")
def nginx_large(arm):
    return nginx(arm, 1 << 20, 2, 2, 8)


@bench("nginx-close", "requests/s", "nginx, one worker, 600 B, a connection for each request, wrk -t 1 -c 4")
def nginx_close(arm):
    return nginx(arm, 600, 1, 1, 4, "-H", "Connection: close")


@bench("haproxy", "requests/s", "haproxy with two threads in front of nginx, 600 B, wrk -t 2 -c 16: more threads than cores")
def haproxy(arm):
    proxy = Proxy(arm, root_with(600))
    rate = wrk(arm, proxy.port, 2, 16)
    proxy.stop()
    return rate


# ---- languages
NODE = """
const http = require('http'), cluster = require('cluster');
if (process.argv[3] === 'cluster' && cluster.isPrimary) { cluster.fork(); cluster.fork(); process.on('SIGTERM', () => process.exit(0)); }
else {
  http.createServer((q, r) => { r.writeHead(200, {'Content-Length': 5}); r.end('hello'); }).listen(+process.argv[2], '127.0.0.1');
  process.on('SIGTERM', () => process.exit(0));
}
"""
JAVA = """
import java.net.*; import java.util.concurrent.*;
public class B {
  public static void main(String[] a) throws Exception {
    var s = com.sun.net.httpserver.HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(a[0])), 64);
    s.setExecutor(Executors.newFixedThreadPool(4));
    s.createContext("/", x -> { x.sendResponseHeaders(200, 5); x.getResponseBody().write("hello".getBytes()); x.close(); });
    s.start();
  }
}
"""
ASYNCIO = """
import asyncio, sys
class Echo(asyncio.Protocol):
    def connection_made(self, t): self.t = t
    def data_received(self, d): self.t.write(d)
async def main():
    s = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", int(sys.argv[1]))
    await s.serve_forever()
asyncio.run(main())
"""
ECHO_CLIENT = """
import socket, sys, time
s = socket.create_connection(("127.0.0.1", int(sys.argv[1]))); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
n, end = 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    s.sendall(b"x" * 200)
    got = 0
    while got < 200: got += len(s.recv(200))
    n += 1
print(n / float(sys.argv[2]))
"""


def source(name, text):
    path = os.path.join(lib.tempfile.mkdtemp(dir=lib.tmp()), name)
    with open(path, "w") as f:
        f.write(text)
    return path


def served(arm, argv, threads, connections, settle=0.0):
    port = lib.free_port()
    srv = lib.server(arm, [port if a == "PORT" else a for a in argv], port, timeout=30)
    time.sleep(settle)
    rate = wrk(arm, port, threads, connections, "")
    srv.stop(status=None)
    return rate


@bench("node", "requests/s", "node http, wrk -t 1 -c 8")
def node(arm):
    return served(arm, ["node", source("b.js", NODE), "PORT"], 1, 8)


@bench("node-cluster", "requests/s", "node cluster of two workers, wrk -t 2 -c 16: more threads than cores")
def node_cluster(arm):
    return served(arm, ["node", source("b.js", NODE), "PORT", "cluster"], 2, 16, 0.5)


@bench("java", "requests/s", "java HttpServer with four threads, wrk -t 2 -c 8: more threads than cores")
def java(arm):
    return served(arm, ["java", "-XX:+UseSerialGC", "-Xmx128m", source("B.java", JAVA), "PORT"], 2, 8)


@bench("asyncio", "round trips/s", "python asyncio echo, one python client, 200 B")
def asyncio_echo(arm):
    port = lib.free_port()
    srv = lib.server(arm, [lib.PYTHON, source("s.py", ASYNCIO), port], port)
    rate = float(lib.run(arm, [lib.PYTHON, source("c.py", ECHO_CLIENT), port, SECONDS]).out())
    srv.stop(sig=signal.SIGKILL, status=None)
    return rate


# ---- postgres, bulk
def pgbench(arm, *argv):
    c = matrix_postgres.Cluster(arm)
    c.run("kernel", [matrix_postgres.tool("pgbench"), *c.at(), "-i", "-q", "-s", 1, "postgres"])
    p = c.run(arm, [matrix_postgres.tool("pgbench"), *c.at(), "-n", "-S", "-T", SECONDS, *argv, "postgres"])
    c.srv.stop(sig=signal.SIGINT, status=None)
    return float(re.search(r"tps = ([\d.]+)", p.out())[1])


@bench("pgbench", "transactions/s", "pgbench -S -c 1")
def pgbench_one(arm):
    return pgbench(arm, "-c", 1)


@bench("pgbench-threads", "transactions/s", "pgbench -S -c 8 -j 2: more processes than cores")
def pgbench_many(arm):
    return pgbench(arm, "-c", 8, "-j", 2)


@bench("pgbench-connect", "transactions/s", "pgbench -S -C -c 2: a connection, and a process, for each transaction")
def pgbench_connect(arm):
    return pgbench(arm, "-C", "-c", 2)


def iperf3(arm, *argv):
    port = lib.free_port()
    srv = lib.server(arm, ["iperf3", "-s", "-1", "-p", port], port)
    cli = lib.run(arm, ["iperf3", "-c", "127.0.0.1", "-p", port, "-t", SECONDS, "-J", *argv])
    srv.wait(10)
    return json.loads(cli.out())["end"]["sum_received"]["bits_per_second"] / 1e9


@bench("iperf3-P8", "Gbit/s", "iperf3 -P 8")
def iperf3_parallel(arm):
    return iperf3(arm, "-P", 8)


@bench("iperf3-R", "Gbit/s", "iperf3 -R")
def iperf3_reverse(arm):
    return iperf3(arm, "-R")


@bench("nc", "MiB/s", "256 MiB by nc to nc, which read and write 16 KiB at a time")
def nc(arm):
    size = 256
    port = lib.free_port()
    with open(os.path.join(lib.tmp(), "nc.out"), "wb") as out:
        srv = subprocess.Popen(["nc", "-l", "127.0.0.1", str(port)], stdin=subprocess.DEVNULL, stdout=out, env=lib.environment(arm),
                               stderr=subprocess.DEVNULL)
        lib.until("nc listens", lambda: lib.listening(port), 10)
        t0 = time.perf_counter()
        with open("/dev/zero", "rb") as zero:
            head = subprocess.Popen(["head", "-c", f"{size}M"], stdin=zero, stdout=subprocess.PIPE)
            cli = subprocess.Popen(["nc", "-N", "127.0.0.1", str(port)], stdin=head.stdout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   env=lib.environment(arm))
            head.stdout.close()
            lib.check(cli.wait(60) == 0 and srv.wait(60) == 0, "nc failed")
            head.wait()
        took = time.perf_counter() - t0
        lib.check(os.fstat(out.fileno()).st_size == size << 20, "nc lost bytes")
    return size / took
