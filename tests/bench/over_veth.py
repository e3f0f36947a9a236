# What tools/bench --xdp measures: two hosts (network namespaces) with a veth pair between them, the kernel's way and over the xdp port. "-one": only the server
# is accelerated, its peer is on the kernel in both arms. Needs root. Bulk and pipelined loads are where the kernel's veth with its 64 KiB packets is hard to beat.
import json
import os
import re
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "takeover"))
from net import Net, lib                        # pylint: disable=wrong-import-position

HIGHER, LOWER = "higher is better", "lower is better"
BENCHES = {}                                    # as in tools/bench
_net = []


def net():
    if not _net:
        _net.append(Net())
    return _net[0]


def bench(name, unit, sense, what):
    def add(f):
        BENCHES[name] = (f, unit, sense, 5, what)
        return f
    return add


def arms(arm, one):
    return arm, "kernel" if one else arm


def sockperf(arm, one):
    n, (server, client) = net(), arms(arm, one)
    srv = n.server("a", server, ["sockperf", "sr", "--tcp", "-i", n.addr["a"], "-p", 7005], 7005)
    cli = n.run("b", client, ["sockperf", "pp", "--tcp", "-i", n.addr["a"], "-p", 7005, "-m", 64, "-t", 3])
    srv.stop(sig=signal.SIGINT, status=None)
    return float(re.search(r"percentile 50.000 = +([\d.]+)", cli.out())[1])


@bench("sockperf", "us", LOWER, "sockperf ping-pong, 64 B, blocking, median half round trip")
def sockperf_both(arm):
    return sockperf(arm, False)


@bench("sockperf-one", "us", LOWER, "the same, only the server accelerated")
def sockperf_one(arm):
    return sockperf(arm, True)


def redis(arm, one, *argv):
    n, (server, client) = net(), arms(arm, one)
    srv = n.server("a", server, ["redis-server", "--port", 7006, "--bind", n.addr["a"], "--save", "", "--appendonly", "no", "--protected-mode", "no",
                                 "--dir", lib.tmp()], 7006)
    if server == "fast":      # the port is opened when the first connection asks for it
        n.run("b", "kernel", ["redis-benchmark", "-h", n.addr["a"], "-p", 7006, "-t", "ping_mbulk", "-n", 2000, "-c", 1, "-q"])
        time.sleep(0.7)
    cli = n.run("b", client, ["redis-benchmark", "-h", n.addr["a"], "-p", 7006, "-t", "get", "--csv", *argv], timeout=120)
    srv.stop(status=None)
    return float(re.search(r'^"GET","([\d.]+)"', cli.out(), re.M)[1])


@bench("redis-c1", "requests/s", HIGHER, "redis-benchmark GET, one connection")
def redis_c1(arm):
    return redis(arm, False, "-c", 1, "-n", 60000)


@bench("redis-c1-one", "requests/s", HIGHER, "the same, only the server accelerated")
def redis_c1_one(arm):
    return redis(arm, True, "-c", 1, "-n", 40000)


@bench("redis-c50", "requests/s", HIGHER, "redis-benchmark GET, 50 connections")
def redis_c50(arm):
    return redis(arm, False, "-c", 50, "-n", 200000)


@bench("redis-c50-one", "requests/s", HIGHER, "the same, only the server accelerated")
def redis_c50_one(arm):
    return redis(arm, True, "-c", 50, "-n", 200000)


@bench("redis-pipeline", "requests/s", HIGHER, "redis-benchmark GET, 50 connections, pipeline of 16")
def redis_pipeline(arm):
    return redis(arm, False, "-c", 50, "-P", 16, "-n", 1000000)


@bench("iperf3", "Gbit/s", HIGHER, "iperf3, one stream")
def iperf3(arm):
    n = net()
    auto = {"ICEPATH_BULK": "auto"} if arm == "fast" else {}
    srv = n.server("a", arm, ["iperf3", "-s", "-1", "-B", n.addr["a"], "-p", 7007], 7007, **auto)
    cli = n.run("b", arm, ["iperf3", "-c", n.addr["a"], "-p", 7007, "-t", 3, "-J"], **auto)
    srv.wait(10)
    return json.loads(cli.out())["end"]["sum_received"]["bits_per_second"] / 1e9
