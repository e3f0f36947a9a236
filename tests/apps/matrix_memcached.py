#!/usr/bin/python3
# memcached with four threads, and a client of its own (matrix_memcached.py client PORT): 16 connections in 4 threads. Every value is a function
# of its key, so that a reader knows what must come; a counter that all connections raise has their sum in the end.
import hashlib
import json
import pwd
import os
import socket
import sys
import threading
import lib
from lib import check

THREADS, PER_THREAD, KEYS = 4, 4, 250


def value_of(key):
    h = hashlib.sha256(key.encode()).digest()
    return h * (1 + (h[0] << 8 | h[1]) % 300)          # 32 to 9600 bytes


class Connection:
    def __init__(self, port):
        self.s = socket.create_connection(("127.0.0.1", port))
        self.s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buf, self.tx, self.rx = bytearray(), 0, 0

    def send(self, data):
        self.s.sendall(data)
        self.tx += len(data)

    def more(self):
        data = self.s.recv(65536)
        if not data:
            raise EOFError("memcached closed the connection")
        self.rx += len(data)
        self.buf += data

    def line(self):
        while (end := self.buf.find(b"\r\n")) < 0:
            self.more()
        line = bytes(self.buf[:end])
        del self.buf[:end + 2]
        return line

    def block(self, n):
        while len(self.buf) < n + 2:
            self.more()
        data, tail = bytes(self.buf[:n]), self.buf[n:n + 2]
        if tail != b"\r\n":
            raise ValueError("a value does not end where it should")
        del self.buf[:n + 2]
        return data

    def expect(self, want, what):
        got = self.line()
        if got != want:
            raise ValueError(f"{what}: {got!r} instead of {want!r}")

    def set(self, key, value, reply=True):
        self.send(b"set %s 7 0 %d%s\r\n%s\r\n" % (key.encode(), len(value), b"" if reply else b" noreply", value))
        if reply:
            self.expect(b"STORED", f"set {key}")

    def get(self, *keys):
        self.send(b"get " + b" ".join(k.encode() for k in keys) + b"\r\n")
        for key in keys:
            word = self.line().split()
            if word[:3] != [b"VALUE", key.encode(), b"7"]:
                raise ValueError(f"get {key}: {word!r}")
            if self.block(int(word[3])) != value_of(key):
                raise ValueError(f"get {key}: another value")
        self.expect(b"END", "end of get")


def client(port):
    connections = [[Connection(port) for _ in range(PER_THREAD)] for _ in range(THREADS)]
    first = connections[0][0]
    first.send(b"set count 0 0 1\r\n0\r\n")
    first.expect(b"STORED", "set count")
    problems, barrier = [], threading.Barrier(THREADS)

    def thread(no):
        mine = connections[no]
        try:
            for i in range(KEYS):
                for n, c in enumerate(mine):
                    key = f"{no}:{n}:{i}"
                    c.set(key, value_of(key), reply=i % 3 != 0)
                    c.get(key)
                    c.send(b"incr count 1\r\n")
                    c.line()
            for c in mine:                              # twenty requests before the first answer is read
                keys = [f"{no}:{n}:{i}" for i in range(5) for n in range(PER_THREAD)]
                c.send(b"".join(b"get %s\r\n" % k.encode() for k in keys))
                for k in keys:
                    if c.line().split()[1] != k.encode() or c.block(len(value_of(k))) != value_of(k):
                        raise ValueError(f"pipelined get {k}: another value")
                    c.expect(b"END", f"pipelined get {k}")
            barrier.wait(30)
            other = (no + 1) % THREADS                  # what another thread has stored
            for i in range(0, KEYS, 10):
                for n, c in enumerate(mine):
                    c.get(*(f"{other}:{n}:{k}" for k in range(i, i + 10)))
            big = b"".join(hashlib.sha256(b"%d" % k).digest() for k in range(30000))
            mine[0].set(f"big{no}", big)
            mine[0].send(b"get big%d\r\n" % no)
            mine[0].line()
            if mine[0].block(len(big)) != big:
                raise ValueError("a large value came back different")
            mine[0].expect(b"END", "end of the large value")
            mine[0].send(b"delete big%d\r\n" % no)
            mine[0].expect(b"DELETED", "delete")
        except Exception as e:                          # pylint: disable=broad-except
            problems.append(f"thread {no}: {type(e).__name__}: {e}")
            barrier.abort()

    threads = [threading.Thread(target=thread, args=(n,)) for n in range(THREADS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if problems:
        sys.exit("\n".join(problems))
    first.send(b"get count\r\n")
    first.line()
    count = int(first.line())
    first.expect(b"END", "end of count")
    every = [c for row in connections for c in row]
    if count != THREADS * PER_THREAD * KEYS:
        sys.exit(f"the counter is {count}, not {THREADS * PER_THREAD * KEYS}")
    first.send(b"stats\r\n")
    stats = {}
    while (line := first.line()) != b"END":
        _, name, number = line.decode().split(" ", 2)
        stats[name] = number
    print(json.dumps({"tx": sum(c.tx for c in every), "rx": sum(c.rx for c in every), "hits": int(stats["get_hits"]),
                      "misses": int(stats["get_misses"]), "threads": int(stats["threads"])}))


def test_memcached(arm):
    lib.require("memcached")
    srv_arm, cli_arm = lib.ends(arm)
    port = lib.free_port()
    srv = lib.server(srv_arm, ["memcached", "-l", "127.0.0.1", "-p", port, "-U", "0", "-t", "4", "-m", "64",
                               "-u", pwd.getpwuid(os.geteuid()).pw_name], port)
    cli = lib.run(cli_arm, [lib.PYTHON, __file__, "client", port], timeout=60)
    got = json.loads(cli.out())
    check(got["misses"] == 0 and got["threads"] == 4, f"memcached says {got}")
    srv.stop()
    moved = got["tx"] + got["rx"]
    lib.share(arm, "memcached -t 4", lib.fast_bytes(srv), moved, 0.95)
    if arm == "fast":
        lib.share(arm, "its client", lib.fast_bytes(cli), moved, 0.95)


if sys.argv[1:2] == ["client"]:
    client(int(sys.argv[2]))
else:
    lib.main([test_memcached], arms=lib.MATRIX)
