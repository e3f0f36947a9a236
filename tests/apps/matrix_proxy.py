#!/usr/bin/python3
# haproxy with two threads, in front of nginx and of a python server that returns what is posted; clients keep their connections.
# matrix_proxy.py backend PORT, matrix_proxy.py client PORT DIRECTORY TURNS: the server and the verifying client, in programs of their own.
import csv
import hashlib
import http.client
import http.server
import json
import os
import random
import re
import signal
import socket
import sys
import threading
import lib
from lib import check

FILES, THREADS = 20, 4


class Posted(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def backend(port):
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Posted) as s:
        s.daemon_threads = True
        try:
            s.serve_forever()
        except KeyboardInterrupt:
            pass


def client(port, directory, turns):
    with open(os.path.join(directory, "sums")) as f:
        sums = json.load(f)
    problems, moved = [], []

    def one(no):
        try:
            rng, total = random.Random(no), 0
            c = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            c.connect()
            first = c.sock
            for turn in range(turns):
                name = rng.choice(sorted(sums))
                c.request("GET", "/" + name)
                body = c.getresponse().read()
                if hashlib.sha256(body).hexdigest() != sums[name]:
                    raise ValueError(f"GET {name}: {len(body)} bytes with another sha256")
                total += len(body)
                if turn % 3 == 0:
                    post = rng.randbytes(rng.choice((0, 1, 1000, 16384, 70000, 300000)))
                    c.request("POST", "/post", body=post)
                    r = c.getresponse()
                    if r.status != 200 or r.read() != post:
                        raise ValueError(f"POST of {len(post)} bytes: status {r.status} or another body")
                    total += 2 * len(post)
                if c.sock is not first:
                    raise ValueError("the connection was not kept")
            c.close()
            moved.append(total)
        except Exception as e:                          # pylint: disable=broad-except
            problems.append(f"thread {no}: {type(e).__name__}: {e}")

    threads = [threading.Thread(target=one, args=(n,)) for n in range(THREADS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if problems:
        sys.exit("\n".join(problems))
    print(sum(moved))


def docroot():
    d, sums = lib.tempfile.mkdtemp(dir=lib.tmp()), {}
    os.chmod(d, 0o755)
    for i in range(FILES):
        data = os.urandom((0, 1, 200, 4096, 16383, 100000, 300000, 1 << 20)[i % 8])
        sums[f"f{i}"] = hashlib.sha256(data).hexdigest()
        with open(os.path.join(d, f"f{i}"), "wb") as f:
            f.write(data)
        os.chmod(f.name, 0o644)
    with open(os.path.join(d, "sums"), "w") as f:
        json.dump(sums, f)
    return d


class Proxy:
    def __init__(self, arm, root, *options):
        self.port, web, posted = lib.free_port(), lib.free_port(), lib.free_port()
        self.nginx = lib.nginx(arm, web, root)
        self.python = lib.server(arm, [lib.PYTHON, __file__, "backend", posted], posted)
        d = lib.tempfile.mkdtemp(dir=lib.tmp())
        self.admin = os.path.join(d, "admin")
        with open(os.path.join(d, "cfg"), "w") as f:
            f.write(f"""global
  nbthread 2
  stats socket {self.admin} mode 600 level admin
defaults
  mode http
  {chr(10).join(options)}
  timeout connect 5s
  timeout client 20s
  timeout server 20s
  http-reuse always
frontend front
  bind 127.0.0.1:{self.port}
  use_backend posted if {{ path /post }}
  default_backend web
backend web
  server nginx 127.0.0.1:{web}
backend posted
  server python 127.0.0.1:{posted}
""")
        self.haproxy = lib.server(arm, ["haproxy", "-db", "-f", os.path.join(d, "cfg")], self.port)

    def moved(self):
        # By its own count, both sides, requests and answers.
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(self.admin)
            s.sendall(b"show stat\n")
            text = b"".join(iter(lambda: s.recv(65536), b"")).decode()
        rows = list(csv.DictReader(text.lstrip("# ").splitlines()))
        front = [r for r in rows if r["svname"] == "FRONTEND"]
        servers = [r for r in rows if r["svname"] in ("nginx", "python")]
        check(len(front) == 1 and len(servers) == 2, text)
        check(all(int(r["eresp"] or 0) == 0 and int(r["econ"] or 0) == 0 for r in servers), f"haproxy counted errors:\n{text}")
        return [sum(int(r["bin"]) + int(r["bout"]) for r in part) for part in (front, servers)]

    def stop(self):
        self.haproxy.stop(sig=signal.SIGUSR1, status=0)     # when its connections have ended; SIGTERM would kill it
        self.python.stop(sig=2)
        self.nginx.stop()


def programs(arm, *options):
    # mixed: the client is plain, all behind it are accelerated: haproxy holds connections of both kinds in one epoll set.
    lib.require("haproxy", "nginx", "curl", "wrk")
    srv_arm, cli_arm = lib.ends(arm)
    root = docroot()
    return Proxy(srv_arm, root, *options), cli_arm, root


def shares(arm, name, proxy, cli, least=0.95):
    front, servers = proxy.moved()
    proxy.stop()
    if arm == "fast":
        lib.share(arm, f"{name}, haproxy", lib.fast_bytes(proxy.haproxy), front + servers, least)
        lib.share(arm, f"{name}, client", lib.fast_bytes(cli), front, least)
    elif arm == "mixed":
        lib.share("fast", f"{name}, haproxy's side towards its servers", lib.fast_bytes(proxy.haproxy), servers, least)


def bodies(arm, name, turns, least, *options):
    proxy, cli_arm, root = programs(arm, *options)
    cli = lib.run(cli_arm, [lib.PYTHON, __file__, "client", proxy.port, root, turns], timeout=60)
    check(int(cli.out()) > 1 << 24, f"only {cli.out()} bytes")
    shares(arm, name, proxy, cli, least)


def test_haproxy_bodies(arm):
    bodies(arm, "verified bodies", 180, 0.9)


def test_haproxy_splice(arm):
    # splice(2) between a connection and a pipe
    bodies(arm, "verified bodies with splice", 60, 0, "option splice-request", "option splice-response")


def test_haproxy_curl(arm):
    lib.sanitizer_allows(lib.ends(arm)[1], "curl")
    proxy, cli_arm, root = programs(arm)
    to = lib.tempfile.mkdtemp(dir=lib.tmp())
    cli = lib.run(cli_arm, ["curl", "-sS", "-f", "-Z", "--parallel-max", "4", f"http://127.0.0.1:{proxy.port}/f[0-{FILES - 1}]",
                            "-o", os.path.join(to, "f#1")], timeout=60)
    for i in range(FILES):
        with open(os.path.join(root, f"f{i}"), "rb") as a, open(os.path.join(to, f"f{i}"), "rb") as b:
            check(a.read() == b.read(), f"f{i} came back different")
    front, servers = proxy.moved()
    proxy.stop()
    if arm == "fast":                                   # four short connections: their beginning counts
        lib.share(arm, "curl -Z, haproxy", lib.fast_bytes(proxy.haproxy), front + servers)
        lib.share(arm, "curl -Z, client", lib.fast_bytes(cli), front)


def test_haproxy_wrk(arm):
    proxy, cli_arm, _ = programs(arm)
    cli = lib.run(cli_arm, ["wrk", "-t", "2", "-c", "16", "-d", "3s", f"http://127.0.0.1:{proxy.port}/f3"])
    m = re.search(r"(\d+) requests in [\d.]+s", cli.out())
    check(m and int(m[1]) > 1000, cli.out())
    check("Socket errors" not in cli.out() and "Non-2xx" not in cli.out(), cli.out())
    print(f"# {m[1]} requests", flush=True)
    shares(arm, "wrk", proxy, cli)


if __name__ == "__main__":
    if sys.argv[1:2] == ["backend"]:
        backend(int(sys.argv[2]))
    elif sys.argv[1:2] == ["client"]:
        client(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        lib.main([test_haproxy_bodies, test_haproxy_splice, test_haproxy_curl, test_haproxy_wrk], arms=lib.MATRIX)
