#!/usr/bin/python3
# nginx with two workers: sendfile on and off, keepalive, proxy_pass to another nginx and to python, and a reload under load. The verifying client
# and the python server are those of matrix_proxy.py; matrix_nginx.py client PORT DIRECTORY SECONDS is one that a reload may disconnect.
import hashlib
import http.client
import json
import os
import random
import re
import signal
import sys
import threading
import time
import lib
from lib import check

PROXY = os.path.join(lib.HERE, "matrix_proxy.py")
SIZES = (0, 1, 200, 4096, 16383, 100000, 300000, 1 << 20)


def client(port, directory, seconds):
    with open(os.path.join(directory, "sums")) as f:
        sums = json.load(f)
    problems, done, again, end = [], [], [], time.monotonic() + seconds

    def one(no):
        rng, c = random.Random(no), http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            while time.monotonic() < end:
                name = rng.choice(sorted(sums))
                fresh = c.sock is None
                try:
                    c.request("GET", "/" + name)
                    r = c.getresponse()
                except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                    if fresh:                           # a kept connection may end between two requests, a new one may not
                        raise
                    c.close()
                    again.append(1)
                    continue
                body = r.read()
                if r.status != 200 or hashlib.sha256(body).hexdigest() != sums[name]:
                    raise ValueError(f"{name}: status {r.status}, {len(body)} bytes with another sha256")
                done.append(1)
        except Exception as e:                          # pylint: disable=broad-except
            problems.append(f"thread {no}: {type(e).__name__}: {e}")

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if problems:
        sys.exit("\n".join(problems))
    print(json.dumps({"done": len(done), "again": len(again)}))


class Nginx:
    def __init__(self, arm, sendfile, upstreams="", locations=""):
        self.dir, self.port, sums = lib.tempfile.mkdtemp(dir=lib.tmp()), lib.free_port(), {}
        os.chmod(self.dir, 0o755)
        self.root, self.log = os.path.join(self.dir, "root"), os.path.join(self.dir, "log")
        os.mkdir(self.root, 0o755)
        for i in range(16):
            data = os.urandom(SIZES[i % len(SIZES)])
            sums[f"f{i}"] = hashlib.sha256(data).hexdigest()
            with open(os.path.join(self.root, f"f{i}"), "wb") as f:
                f.write(data)
            os.chmod(f.name, 0o644)
        with open(os.path.join(self.root, "sums"), "w") as f:
            json.dump(sums, f)
        d, user = self.dir, "user root;" if os.geteuid() == 0 else ""
        with open(os.path.join(d, "conf"), "w") as f:
            f.write(f"""{user} worker_processes 2; daemon off; pid {d}/pid; error_log stderr;
env ICEPATH_STATS; env ICEPATH_REQUIRE; env LD_PRELOAD;
events {{ worker_connections 1024; }}
http {{ log_format bytes "$request_length $bytes_sent $status $upstream_bytes_sent $upstream_bytes_received";
access_log {self.log} bytes buffer=64k; sendfile {sendfile}; tcp_nopush {sendfile}; keepalive_timeout 65; keepalive_requests 1000000;
client_body_buffer_size 1m; client_body_temp_path {d}/b; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;
{upstreams}
server {{ listen 127.0.0.1:{self.port}; root {self.root}; {locations} }} }}
""")
        self.program = lib.server(arm, ["nginx", "-p", d, "-c", os.path.join(d, "conf"), "-e", "stderr"], self.port)

    def stop(self):
        self.program.stop(sig=signal.SIGQUIT, status=0)
        check("[alert]" not in self.program.err() and "[emerg]" not in self.program.err(), self.program.err()[-2000:])

    def moved(self):
        # By its own log: what clients sent and got, and what upstream servers got and sent.
        front = up = 0
        with open(self.log) as f:
            for line in f:
                words = line.split()
                check(words[2] == "200", f"status {words[2]} in the log")
                front += int(words[0]) + int(words[1])
                up += sum(int(w) for w in words[3:] if w.isdigit())
        return front, up


def shares(arm, what, web, cli, least):
    front, up = web.moved()
    if arm == "fast":
        lib.share(arm, f"{what}: nginx", lib.fast_bytes(web.program), front + up, least)
        lib.share(arm, f"{what}: client", lib.fast_bytes(cli), front, least)
    elif up:
        lib.share("fast" if arm == "mixed" else arm, f"{what}: nginx, upstream", lib.fast_bytes(web.program), up, least)
    else:
        lib.share(arm, what, lib.fast_bytes(web.program), front)


def files(arm, sendfile):
    lib.require("nginx", "wrk")
    srv_arm, cli_arm = lib.ends(arm)
    web = Nginx(srv_arm, sendfile)
    cli = lib.run(cli_arm, ["wrk", "-t", "2", "-c", "16", "-d", "2s", f"http://127.0.0.1:{web.port}/f3"])
    m = re.search(r"(\d+) requests in", cli.out())
    check(m and int(m[1]) > 1000 and "Socket errors" not in cli.out() and "Non-2xx" not in cli.out(), cli.out())
    print(f"# {m[1]} requests", flush=True)
    web.stop()
    shares(arm, f"wrk, sendfile {sendfile}", web, cli, 0.9)
    web = Nginx(srv_arm, sendfile)
    cli = lib.run(cli_arm, [lib.PYTHON, __file__, "client", web.port, web.root, "2"])
    got = json.loads(cli.out())
    check(got["done"] > 200 and got["again"] == 0, cli.out())
    web.stop()
    shares(arm, f"verified bodies, sendfile {sendfile}", web, cli, 0.9)


def test_nginx_sendfile_on(arm):
    files(arm, "on")


def test_nginx_sendfile_off(arm):
    files(arm, "off")


def test_nginx_proxy_pass(arm):
    lib.require("nginx")
    srv_arm, cli_arm = lib.ends(arm)
    posted = lib.free_port()
    python = lib.server(srv_arm, [lib.PYTHON, PROXY, "backend", posted], posted)
    behind = Nginx(srv_arm, "on")
    ports = {"files": behind.port, "python": posted}
    upstreams = "".join(f"upstream {n} {{ server 127.0.0.1:{p}; keepalive 8; keepalive_requests 1000000; }}\n" for n, p in ports.items())
    kept = "proxy_http_version 1.1; proxy_set_header Connection '';"
    web = Nginx(srv_arm, "on", upstreams, f"{kept} location / {{ proxy_pass http://files; }} location /post {{ proxy_pass http://python; }}")
    cli = lib.run(cli_arm, [lib.PYTHON, PROXY, "client", web.port, behind.root, "120"])
    check(int(cli.out()) > 1 << 24, f"only {cli.out()} bytes")
    web.stop()
    behind.stop()
    python.stop(sig=2)
    shares(arm, "proxy_pass", web, cli, 0.9)


def test_nginx_reload_under_load(arm):
    lib.require("nginx")
    srv_arm, cli_arm = lib.ends(arm)
    web = Nginx(srv_arm, "on")

    def workers():
        with open(f"/proc/{web.program.pid}/task/{web.program.pid}/children") as f:
            return set(f.read().split())
    before = lib.until("there are two workers", lambda: len(workers()) == 2 and workers())
    cli = lib.Program(cli_arm, [lib.PYTHON, __file__, "client", web.port, web.root, "5"])
    for _ in range(3):
        time.sleep(1.2)
        os.kill(web.program.pid, signal.SIGHUP)
        lib.until("others took their place", lambda: len(workers() - before) == 2 and not workers() & before, 15)
        before = workers()
    cli.wait(30)
    got = json.loads(cli.out())
    check(got["done"] > 200, cli.out())
    print(f"# {got['done']} files, {got['again']} connections ended between two requests", flush=True)
    web.stop()
    shares(arm, "reload under load", web, cli, 0.5)


if sys.argv[1:2] == ["client"]:
    client(int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
else:
    lib.main([test_nginx_sendfile_on, test_nginx_sendfile_off, test_nginx_proxy_pass, test_nginx_reload_under_load], arms=lib.MATRIX)
