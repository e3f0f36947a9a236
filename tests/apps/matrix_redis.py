#!/usr/bin/python3
# redis-server with AOF and BGSAVE (a fork) under load, pipelining, publish and subscribe, four I/O threads. The client is of our own
# (matrix_redis.py load|subscribe PORT ...), counts its bytes and knows every answer.
import json
import os
import re
import socket
import sys
import threading
import time
import lib
from lib import check


class Connection:
    def __init__(self, port):
        self.s = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buf, self.at, self.moved = b"", 0, 0

    def send(self, *commands):
        data = b"".join(b"*%d\r\n" % len(c) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in c) for c in commands)
        self.s.sendall(data)
        self.moved += len(data)

    def more(self):
        data = self.s.recv(1 << 16)
        if not data:
            raise EOFError("redis closed the connection")
        self.moved += len(data)
        self.buf, self.at = self.buf[self.at:] + data, 0

    def line(self):
        while (end := self.buf.find(b"\r\n", self.at)) < 0:
            self.more()
        line, self.at = self.buf[self.at:end], end + 2
        return line

    def answer(self):
        line = self.line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            n = int(rest)
            if n < 0:
                return None
            while len(self.buf) - self.at < n + 2:
                self.more()
            data = self.buf[self.at:self.at + n]
            self.at += n + 2
            return data
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        if kind == b":":
            return int(rest)
        if kind == b"-":
            raise ValueError(rest.decode())
        return rest

    def call(self, *words):
        self.send(tuple(w if isinstance(w, bytes) else str(w).encode() for w in words))
        return self.answer()


def value_of(key):
    return (b"%s=" % key) * (1 + sum(key) % 200)


def in_threads(work, number):
    problems = []

    def one(no):
        try:
            work(no)
        except Exception as e:                          # pylint: disable=broad-except
            problems.append(f"thread {no}: {type(e).__name__}: {e}")
    threads = [threading.Thread(target=one, args=(n,)) for n in range(number)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if problems:
        sys.exit("\n".join(problems))


def load(port, rounds, depth):
    # Six connections; in each round `depth` pairs of SET and GET are under way before the first answer is read.
    connections = [Connection(port) for _ in range(6)]

    def work(no):
        c = connections[no]
        for i in range(rounds):
            keys = [b"k:%d:%d" % (no, (i * depth + j) % 4000) for j in range(depth)]
            c.send(*(x for k in keys for x in ((b"SET", k, value_of(k)), (b"GET", k), (b"INCR", b"count"))))
            for k in keys:
                if c.answer() != b"OK" or c.answer() != value_of(k) or c.answer() <= 0:
                    raise ValueError(f"{k}: another answer")
    in_threads(work, len(connections))
    c = connections[0]
    count = int(c.call("GET", "count"))
    if count % (6 * rounds * depth):
        sys.exit(f"the counter is {count}")
    print(json.dumps({"moved": sum(x.moved for x in connections), "count": count, "keys": c.call("DBSIZE")}))


def subscribe(port, readers, messages):
    # Several subscribers, one publisher: each reader gets each message once and in order.
    subs = [Connection(port) for _ in range(readers)]
    for n, s in enumerate(subs):
        if n % 2:
            s.call("PSUBSCRIBE", "chan*")
        else:
            s.call("SUBSCRIBE", "channel")
    pub = Connection(port)
    body = b"x" * 200

    def work(no):
        if no == readers:
            for i in range(0, messages, 50):
                pub.send(*((b"PUBLISH", b"channel", b"%d:%s" % (j, body)) for j in range(i, i + 50)))
                for _ in range(50):
                    if pub.answer() != readers:
                        raise ValueError("PUBLISH reached another number of subscribers")
            return
        for i in range(messages):
            if subs[no].answer()[-1] != b"%d:%s" % (i, body):
                raise ValueError(f"message {i} is another")
    in_threads(work, readers + 1)
    print(json.dumps({"moved": pub.moved + sum(s.moved for s in subs)}))


def redis(arm, directory, *more):
    port = lib.free_port()
    return port, lib.server(arm, ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", directory, *more], port)


def run(arm, *argv):
    p = lib.Program(arm, [lib.PYTHON, __file__, *argv]).wait(60)
    return p, json.loads(p.out())


def shares(arm, what, srv, moved, least):
    lib.share(arm, what, lib.fast_bytes(srv), moved, least)


def admin(port, *words):
    # Not by the fast path in any arm: a plain process asks.
    c = Connection(port)
    try:
        return c.call(*words)
    finally:
        c.s.close()


def test_aof_and_bgsave_under_load(arm):
    lib.require("redis-server")
    srv_arm, cli_arm = lib.ends(arm)
    d = lib.tempfile.mkdtemp(dir=lib.tmp())
    aof = ("--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0", "--enable-debug-command", "yes")
    port, srv = redis(srv_arm, d, *aof)
    cli = lib.Program(cli_arm, [lib.PYTHON, __file__, "load", port, "700", "16"])
    forks = 0
    while cli.alive():
        time.sleep(0.2)
        try:
            admin(port, "BGSAVE" if forks % 2 else "BGREWRITEAOF")
            forks += 1
        except ValueError as e:                         # one at a time
            check("in progress" in str(e) or "scheduled" in str(e), str(e))
    cli.wait()
    got = json.loads(cli.out())
    check(got["count"] == 6 * 700 * 16 and forks >= 3, f"{got}, {forks} forks")
    lib.until("no child is left", lambda: b"aof_rewrite_in_progress:0" in (i := admin(port, "INFO", "persistence")) and b"rdb_bgsave_in_progress:0" in i)
    info = admin(port, "INFO", "persistence")
    check(b"rdb_last_bgsave_status:ok" in info and b"aof_last_bgrewrite_status:ok" in info and b"aof_last_write_status:ok" in info, info.decode())
    digest = admin(port, "DEBUG", "DIGEST")
    srv.stop()
    shares(arm, "redis-server, AOF and BGSAVE under load", srv, got["moved"], 0.9)
    # What the log says is what the clients were told.
    port, srv = redis(srv_arm, d, *aof)
    lib.until("the log is loaded", lambda: b"\nloading:0" in admin(port, "INFO", "persistence"))
    check(admin(port, "DBSIZE") == got["keys"] and admin(port, "DEBUG", "DIGEST") == digest, "the log has other keys or values")
    srv.stop()


def test_pipelining(arm):
    lib.require("redis-server")
    srv_arm, cli_arm = lib.ends(arm)
    port, srv = redis(srv_arm, lib.tmp())
    _, got = run(cli_arm, "load", port, "60", "200")
    srv.stop()
    shares(arm, "redis-server, pipelining", srv, got["moved"], 0.95)


def test_publish_and_subscribe(arm):
    lib.require("redis-server")
    srv_arm, cli_arm = lib.ends(arm)
    port, srv = redis(srv_arm, lib.tmp())
    _, got = run(cli_arm, "subscribe", port, "6", "10000")
    srv.stop()
    shares(arm, "redis-server, publish and subscribe", srv, got["moved"], 0.9)


def test_io_threads(arm):
    lib.require("redis-server", "redis-benchmark")
    srv_arm, cli_arm = lib.ends(arm)
    port, srv = redis(srv_arm, lib.tmp(), "--io-threads", "4", "--io-threads-do-reads", "yes")
    _, got = run(cli_arm, "load", port, "150", "16")
    b = lib.run(cli_arm, ["redis-benchmark", "-h", "127.0.0.1", "-p", port, "-t", "set,get", "-n", "40000", "-c", "50", "-P", "4", "-d", "200", "--csv"])
    check(re.findall(r'^"(SET|GET)","[\d.]+"', b.out(), re.M) == ["SET", "GET"], b.out() + b.err())
    info = admin(port, "INFO", "stats").decode()
    check(re.search(r"io_threaded_writes_processed:[1-9]", info), info)
    moved = sum(int(x) for x in re.findall(r"total_net_(?:in|out)put_bytes:(\d+)", info))
    check(moved >= got["moved"], info)
    srv.stop()
    shares(arm, "redis-server --io-threads 4", srv, moved, 0.9)


if sys.argv[1:2] == ["load"]:
    load(*map(int, sys.argv[2:]))
elif sys.argv[1:2] == ["subscribe"]:
    subscribe(*map(int, sys.argv[2:]))
else:
    lib.main([test_aof_and_bgsave_under_load, test_pipelining, test_publish_and_subscribe, test_io_threads], arms=lib.MATRIX)
