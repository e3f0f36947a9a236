#!/usr/bin/python3
# nginx and python3's http.server with curl: files arrive with the right sha256, also while other accelerated processes are killed.
import hashlib
import os
import random
import threading
import time
import lib
from lib import check, need

STREAM = os.path.join(lib.HERE, "stream.py")
MIB = 1 << 20
SIZE = int(os.environ.get("ICEPATH_TEST_MIB", "1024")) * MIB


def kernel_part(size):
    # What is in the kernel's socket buffers when a direction changes lanes stays there and is delivered from there: at most the largest send
    # buffer and the largest receive buffer together. 5 to 12 MiB as a rule, up to 21 on a busy machine with 4 + 32 MiB of buffers.
    most = 0
    for name in ("tcp_wmem", "tcp_rmem"):
        with open(f"/proc/sys/net/ipv4/{name}") as f:
            most += int(f.read().split()[2])
    return min(most, size // 2)


def make_file(directory, size):
    # Not compressible, not periodic: a block that is lost, doubled or moved changes the sum.
    path, digest = os.path.join(directory, "file"), hashlib.sha256()
    with open(path, "wb") as f:
        for _ in range(size // MIB):
            block = os.urandom(MIB)
            digest.update(block)
            f.write(block)
    os.chmod(path, 0o644)
    return digest.hexdigest()


def docroot():
    d = lib.tempfile.mkdtemp(dir=lib.tmp())
    os.chmod(d, 0o755)
    return d


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fetch(arm, port, want, size):
    to = lib.tmpfile()
    curl = lib.run(arm, ["curl", "-sS", "-o", to, f"http://127.0.0.1:{port}/file"], timeout=120)
    check(os.path.getsize(to) == size, f"{os.path.getsize(to)} bytes came instead of {size}")
    check(sha256(to) == want, "the file arrived with another sha256")
    os.unlink(to)
    return curl


def test_nginx_curl(arm):
    need("nginx", "curl")
    root, port, size = docroot(), lib.free_port(), SIZE
    want = make_file(root, size)
    srv = lib.nginx(arm, port, root)
    fetch(arm, port, want, size).check_fast(rx=size - kernel_part(size))
    srv.stop()
    srv.check_fast(tx=size - kernel_part(size))


@lib.in_arms("fast")
def test_nginx_curl_while_others_are_killed(arm):
    need("nginx", "curl")
    root, port, size = docroot(), lib.free_port(), SIZE
    want = make_file(root, size)
    srv = lib.nginx(arm, port, root)
    echo_port, stop, deaths = lib.free_port(), threading.Event(), []
    echo = lib.server(arm, [lib.PYTHON, STREAM, "echo", echo_port], echo_port)

    def killer():
        while not stop.is_set():
            victims = [lib.Program(arm, [lib.PYTHON, STREAM, "send", echo_port, "60"]),
                       lib.Program(arm, ["curl", "-sS", "--limit-rate", "20M", "-o", "/dev/null", f"http://127.0.0.1:{port}/file"])]
            time.sleep(random.uniform(0.05, 0.5))
            for v in victims:
                v.kill()
                deaths.append(v.pid)

    t = threading.Thread(target=killer)
    t.start()
    try:
        for _ in range(max(1, 512 * MIB // SIZE)):
            fetch(arm, port, want, size).check_fast(rx=size - kernel_part(size))
    finally:
        stop.set()
        t.join()
    check(len(deaths) >= 2, "nobody was killed meanwhile")
    check(srv.alive() and echo.alive(), "a server died")
    srv.stop()


def test_python_http_server_curl(arm):
    need("curl")
    root, port, size = docroot(), lib.free_port(), 64 * MIB
    want = make_file(root, size)
    srv = lib.server(arm, [lib.PYTHON, "-m", "http.server", port, "--bind", "127.0.0.1", "-d", root], port)
    fetch(arm, port, want, size).check_fast(rx=size - kernel_part(size))
    for _ in range(20):                                   # short connections
        lib.run(arm, ["curl", "-sS", "-f", "-o", "/dev/null", f"http://127.0.0.1:{port}/"])
    srv.stop(sig=2)                                       # KeyboardInterrupt: an orderly end
    srv.check_fast(tx=size - kernel_part(size))


lib.main([test_nginx_curl, test_nginx_curl_while_others_are_killed, test_python_http_server_curl])
