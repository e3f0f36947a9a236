#!/usr/bin/python3
# The two ends of a verified byte stream, run as programs by test_control.py and test_death.py.
#   stream.py echo PORT             echo server, one thread per connection
#   stream.py send PORT SECONDS     sends a numbered stream and checks that every byte comes back, for so long; prints the byte count
#   stream.py fork PORT             echoes one connection; after 190 messages forks a child that only keeps it, and prints the child's pid
#   stream.py hang PORT             exchanges messages, prints `ready`, blocks in recv; prints `end` or `reset` and the monotonic time
#                                   when the connection is over
import os
import select
import socket
import struct
import sys
import threading
import time


def echo(port):
    lst = socket.socket()
    lst.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    lst.bind(("127.0.0.1", port))
    lst.listen(128)

    def serve(c):
        try:
            with c:
                while data := c.recv(65536):
                    c.sendall(data)
        except OSError:
            pass
    while True:
        threading.Thread(target=serve, args=(lst.accept()[0],), daemon=True).start()


def fork(port):
    lst = socket.socket()
    lst.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    lst.bind(("127.0.0.1", port))
    lst.listen(1)
    c = lst.accept()[0]
    lst.close()
    messages = 0
    while data := c.recv(65536):
        c.sendall(data)
        messages += 1
        if messages == 190:
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(0)
            print(child, flush=True)


def block(n):
    return b"".join(struct.pack("<Q", n * 512 + i) for i in range(512))


def send(port, seconds):
    # Keeps up to 64 blocks of 4 KiB under way; sizes of the writes vary, so that lanes change in the middle of a block too.
    s = socket.create_connection(("127.0.0.1", port))
    s.setblocking(False)
    end = time.monotonic() + seconds
    out, got, sent_blocks, checked, expect, steps = b"", b"", 0, 0, b"", 0
    while True:
        more = time.monotonic() < end
        if more and not out and (sent_blocks * 4096 - checked) < 64 * 4096:
            out = block(sent_blocks)
            sent_blocks += 1
        if not more and not out and checked == sent_blocks * 4096:
            break
        r, w, _ = select.select([s], [s] if out else [], [], 10)
        if not r and not w:
            sys.exit(f"nothing moved for 10 s: {checked} of {sent_blocks * 4096} bytes came back")
        if w:
            steps += 1
            n = s.send(out[:1 + steps * 7919 % 4096])
            out = out[n:]
        if r:
            data = s.recv(65536)
            if not data:
                sys.exit(f"the stream ended after {checked} bytes")
            got += data
            while len(got) >= 4096:
                expect = block(checked // 4096)
                if got[:4096] != expect:
                    at = next(i for i in range(4096) if got[i] != expect[i])
                    sys.exit(f"byte {checked + at} is wrong")
                got, checked = got[4096:], checked + 4096
    s.shutdown(socket.SHUT_WR)
    s.setblocking(True)
    if s.recv(1):
        sys.exit("bytes after the end")
    print(checked)


def hang(port):
    s = socket.create_connection(("127.0.0.1", port))
    i, enough = 0, time.monotonic() + 0.5          # time to be promoted
    while i < 200 or time.monotonic() < enough:
        s.sendall(b"%08d" % i)
        if s.recv(8, socket.MSG_WAITALL) != b"%08d" % i:
            sys.exit("a wrong echo")
        i += 1
    print("ready", flush=True)
    try:
        what = "end" if s.recv(1) == b"" else "data"
    except ConnectionResetError:
        what = "reset"
    print(what, time.monotonic(), flush=True)


{"echo": lambda a: echo(int(a[0])), "fork": lambda a: fork(int(a[0])), "send": lambda a: send(int(a[0]), float(a[1])), "hang": lambda a: hang(int(a[0]))}[sys.argv[1]](sys.argv[2:])
