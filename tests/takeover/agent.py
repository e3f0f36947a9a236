#!/usr/bin/python3
# A program that a test drives by words: each line on stdin is a JSON string of Python, run here; the answer, one JSON line, goes to the FIFO of
# argv[1]: ["ok", value of the last expression] or ["error", type, errno, text]. Bytes are sent as latin-1 strings. The helpers below are in scope.
import ast
import errno
import fcntl
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

PERIOD = 1000003                     # prime, so that a lost or doubled piece of any usual size shifts the pattern
_patterns = {}


def pattern(seed):
    if seed not in _patterns:
        one = random.Random(seed).randbytes(PERIOD)
        _patterns[seed] = one + one  # any 64 KiB of the stream is one slice
    return _patterns[seed]


def piece(seed, at, n):
    off = at % PERIOD
    return pattern(seed)[off:off + n]


def send_stream(s, seed, n, at=0, chunk=65536):
    """Blocking: n bytes of the stream `seed` from position `at`."""
    end = at + n
    while at < end:
        at += s.send(piece(seed, at, min(chunk, end - at)))
    return at


def recv_stream(s, seed, n, at=0, chunk=65536):
    """Reads n bytes (None: up to EOF) and checks each. Returns how many there were."""
    start = at
    while n is None or at - start < n:
        data = s.recv(chunk if n is None else min(chunk, n - (at - start)))
        if not data:
            break
        if data != piece(seed, at, len(data)):
            want = piece(seed, at, len(data))
            k = next(i for i in range(len(data)) if data[i] != want[i])
            raise AssertionError(f"byte {at + k - start} of the stream is wrong ({len(data)} bytes came at {at - start})")
        at += len(data)
    return at - start


class Duplex:
    """Both directions at once, a thread each, blocking; counters can be read meanwhile. mine, theirs: seeds and lengths (None: until told / EOF)."""

    def __init__(self, s, mine, theirs, length=None, chunk=65536):
        self.s, self.sent, self.got, self.error, self.ended = s, 0, 0, None, False
        self.stop, self.longest, self.gaps = False, 0.0, []
        self.mine, self.theirs, self.length, self.chunk = mine, theirs, length, chunk
        self.threads = [threading.Thread(target=self._run, args=(f,), daemon=True) for f in (self._send, self._recv)]
        for t in self.threads:
            t.start()

    def _run(self, f):
        try:
            f()
        except BaseException as e:   # pylint: disable=broad-except
            self.error = self.error or f"{f.__name__}: {type(e).__name__}: {e}"

    def _send(self):
        while not self.stop and (self.length is None or self.sent < self.length):
            n = self.chunk if self.length is None else min(self.chunk, self.length - self.sent)
            self.sent += self.s.send(piece(self.mine, self.sent, n))
        while self.length is not None and self.got < self.length and not self.error and not self.ended:
            time.sleep(0.001)      # a half-close gives the connection back: not while it is measured
        self.s.shutdown(socket.SHUT_WR)

    def _recv(self):
        last = time.monotonic()
        while data := self.s.recv(self.chunk):
            now = time.monotonic()
            if now - last > 0.0005:
                self.gaps.append(now - last)
            last = now
            if data != piece(self.theirs, self.got, len(data)):
                raise AssertionError(f"wrong bytes between {self.got} and {self.got + len(data)}")
            self.got += len(data)
        self.ended = True

    def join(self, timeout=60):
        self.stop = True
        end = time.monotonic() + timeout
        for t in self.threads:
            t.join(max(0, end - time.monotonic()))
        if self.error:
            raise AssertionError(self.error)
        if any(t.is_alive() for t in self.threads):
            raise AssertionError(f"not over after {timeout} s: {self.sent} bytes sent, {self.got} received, end of file: {self.ended}")
        return self.sent, self.got


class Later:
    """A call in a thread of its own: ask .result() for what came of it."""

    def __init__(self, f, *args):
        self.value, self.error = None, None
        self.thread = threading.Thread(target=self._run, args=(f, *args), daemon=True)
        self.thread.start()

    def _run(self, f, *args):
        try:
            self.value = f(*args)
        except BaseException as e:   # pylint: disable=broad-except
            self.error = e

    def result(self, timeout=20):
        self.thread.join(timeout)
        if self.thread.is_alive():
            raise AssertionError("still blocked")
        if self.error:
            raise self.error
        return self.value


def listen(addr, port, backlog=64):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((addr, port))
    s.listen(backlog)
    return s


def connect(addr, port):
    s = socket.socket()
    s.settimeout(None)
    s.connect((addr, port))
    return s


def plain(v):
    if isinstance(v, (bytes, bytearray)):
        return v.decode("latin-1")
    if isinstance(v, (list, tuple)):
        return [plain(x) for x in v]
    return v if isinstance(v, (int, float, str, bool, dict, type(None))) else repr(v)


def main():
    # The answers go to a descriptor out of the way of those under test.
    fd = os.open(sys.argv[1], os.O_WRONLY)
    out = os.fdopen(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200), "w", buffering=1)
    os.close(fd)
    scope = dict(globals())
    for line in sys.stdin:
        try:
            tree = ast.parse(json.loads(line))
            value = None
            if tree.body and isinstance(tree.body[-1], ast.Expr):
                last = ast.Expression(tree.body.pop().value)
                exec(compile(tree, "<test>", "exec"), scope)           # pylint: disable=exec-used
                value = eval(compile(last, "<test>", "eval"), scope)   # pylint: disable=eval-used
            else:
                exec(compile(tree, "<test>", "exec"), scope)           # pylint: disable=exec-used
            answer = ["ok", plain(value)]
        except Exception as e:   # pylint: disable=broad-except
            answer = ["error", type(e).__name__, getattr(e, "errno", None), str(e)]
        out.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
