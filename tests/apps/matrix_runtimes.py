#!/usr/bin/python3
# Servers in python, node and java: echo and http, each with a client that counts its bytes and knows every answer. The programs are in this
# file: python's as roles (matrix_runtimes.py ROLE PORT ...), node's and java's as texts.
import asyncio
import http.server
import json
import multiprocessing.connection
import os
import random
import signal
import socket
import sys
import threading
import lib
from lib import check

SIZES = (1, 10, 500, 1460, 4096, 20000, 65536, 200000)
KEY = b"a key for the test"


# ---- clients: THREADS connections, each with ROUNDS exchanges. They print how many bytes were moved.
def in_threads(work, number):
    problems, moved = [], []

    def one(no):
        try:
            moved.append(work(no))
        except Exception as e:                          # pylint: disable=broad-except
            problems.append(f"thread {no}: {type(e).__name__}: {e}")
    threads = [threading.Thread(target=one, args=(n,)) for n in range(number)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if problems:
        sys.exit("\n".join(problems))
    print(sum(moved))


def echo_client(port, threads, rounds):
    def work(no):
        rng, moved = random.Random(no), 0
        s = socket.create_connection(("127.0.0.1", port), timeout=20)
        for i in range(rounds):
            data, got = rng.randbytes(rng.choice(SIZES)), b""
            sender = threading.Thread(target=s.sendall, args=(data,))
            sender.start()                              # an echo larger than all buffers needs both at once
            while len(got) < len(data):
                part = s.recv(len(data) - len(got))
                if not part:
                    raise EOFError(f"end after {len(got)} of {len(data)} bytes of message {i}")
                got += part
            sender.join()
            if got != data:
                raise ValueError(f"message {i} came back different")
            moved += 2 * len(data)
        s.shutdown(socket.SHUT_WR)
        if s.recv(1):
            raise ValueError("bytes after the end")
        return moved
    in_threads(work, threads)


def http_client(port, threads, rounds):
    def work(no):
        rng, moved, kept = random.Random(no), 0, b""
        s = socket.create_connection(("127.0.0.1", port), timeout=20)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(rounds):
            data = rng.randbytes(rng.choice(SIZES))
            request = b"POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(data) + data
            s.sendall(request)
            head, answer = -1, kept
            while head < 0 or len(answer) < head + length:
                part = s.recv(65536)
                if not part:
                    raise EOFError(f"end in the middle of answer {i}: {answer[:200]!r}")
                answer += part
                moved += len(part)
                if head < 0 and (at := answer.find(b"\r\n\r\n")) >= 0:
                    lines = answer[:at].lower().split(b"\r\n")
                    if lines[0].split()[1] != b"200":
                        raise ValueError(lines[0])
                    head, length = at + 4, next(int(x[15:]) for x in lines if x.startswith(b"content-length:"))
            if answer[head:head + length] != data:
                raise ValueError(f"body {i} came back different")
            kept, moved = answer[head + length:], moved + len(request)
        return moved
    in_threads(work, threads)


# ---- python
class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

    def pause_writing(self):
        self.transport.pause_reading()

    def resume_writing(self):
        self.transport.resume_reading()


def asyncio_server(port):
    async def serve():
        server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
        await server.serve_forever()
    asyncio.run(serve())


def asyncio_client(port, connections, rounds):
    async def one(no):
        rng, moved = random.Random(no), 0
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def receive(data):
            return await reader.readexactly(len(data))
        for i in range(rounds):
            data = rng.randbytes(rng.choice(SIZES))
            task = asyncio.create_task(receive(data))
            writer.write(data)
            await writer.drain()
            if await task != data:
                sys.exit(f"connection {no}, message {i}: a different one came back")
            moved += 2 * len(data)
        writer.write_eof()
        if await reader.read():
            sys.exit(f"connection {no}: bytes after the end")
        writer.close()
        return moved

    async def every():
        print(sum(await asyncio.gather(*(one(n) for n in range(connections)))))
    asyncio.run(every())


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


def threading_server(port):
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Posted).serve_forever()


def serve_objects(c):
    try:
        while True:
            kind, value = c.recv()
            c.send((kind, value[::-1] if kind == "turn" else sum(value)))
    except EOFError:
        c.close()


def listener(port):
    # Connections are served by threads of this process.
    with multiprocessing.connection.Listener(("127.0.0.1", port), backlog=16, authkey=KEY) as server:
        while True:
            threading.Thread(target=serve_objects, args=(server.accept(),), daemon=True).start()


def forking_listener(port):
    # Connections are served by a process each, as multiprocessing does by default.
    with multiprocessing.connection.Listener(("127.0.0.1", port), backlog=16, authkey=KEY) as server:
        while True:
            c = server.accept()
            multiprocessing.Process(target=serve_objects, args=(c,), daemon=True).start()
            c.close()


def objects_client(port, threads, rounds):
    def work(no):
        rng, moved = random.Random(no), 0
        c = multiprocessing.connection.Client(("127.0.0.1", port), authkey=KEY)
        for i in range(rounds):
            if i % 2:
                data = rng.randbytes(rng.choice(SIZES))
                c.send(("turn", data))
                if c.recv() != ("turn", data[::-1]):
                    raise ValueError(f"object {i} came back different")
                moved += 2 * len(data)
            else:
                data = [rng.randrange(100) for _ in range(rng.choice(SIZES) // 10)]
                c.send(("sum", data))
                if c.recv() != ("sum", sum(data)):
                    raise ValueError(f"object {i}: wrong sum")
                moved += 2 * len(data)
        c.close()
        return moved
    in_threads(work, threads)


# ---- node: `http PORT`, `cluster PORT rr|none`, `client PORT CONNECTIONS ROUNDS`
NODE = r"""
const http = require('http'), cluster = require('cluster'), crypto = require('crypto');
const [role, port, a, b] = process.argv.slice(2);
function serve() {
  const server = http.createServer((req, res) => {
    const parts = [];
    req.on('data', d => parts.push(d));
    req.on('end', () => {
      const body = Buffer.concat(parts);
      res.writeHead(200, {'Content-Length': body.length, 'X-Pid': process.pid});
      res.end(body);
    });
  });
  server.keepAliveTimeout = 60000;
  server.listen(+port, '127.0.0.1');
  return server;
}
if (role === 'http') {
  serve();
  process.on('SIGTERM', () => process.exit(0));
} else if (role === 'cluster') {
  cluster.schedulingPolicy = a === 'rr' ? cluster.SCHED_RR : cluster.SCHED_NONE;
  if (cluster.isPrimary) {
    for (let i = 0; i < 2; i++) cluster.fork();
    process.on('SIGTERM', () => { for (const w of Object.values(cluster.workers)) w.process.kill(); cluster.disconnect(() => process.exit(0)); });
  } else {
    serve();
    process.on('SIGTERM', () => process.exit(0));
  }
} else {
  const agent = new http.Agent({keepAlive: true, maxSockets: +a}), sockets = new Set(), pids = new Set();
  const sizes = [1, 10, 500, 1460, 4096, 20000, 65536, 200000];
  const one = i => new Promise((done, fail) => {
    const body = crypto.randomBytes(sizes[i % sizes.length]);
    const req = http.request({agent, host: '127.0.0.1', port: +port, method: 'POST', path: '/', headers: {'Content-Length': body.length}}, res => {
      const parts = [];
      pids.add(res.headers['x-pid']);
      res.on('data', d => parts.push(d));
      res.on('end', () => res.statusCode === 200 && Buffer.concat(parts).equals(body) ? done() : fail(new Error('answer ' + i + ' is another')));
      res.on('error', fail);
    });
    req.on('socket', s => sockets.add(s));
    req.on('error', fail);
    req.end(body);
  });
  const line = async n => { for (let i = 0; i < +b; i++) await one(i * 3 + n); };
  Promise.all(Array.from({length: +a}, (_, n) => line(n))).then(() => {
    let moved = 0;
    for (const s of sockets) moved += s.bytesRead + s.bytesWritten;
    console.log(JSON.stringify({moved, sockets: sockets.size, pids: pids.size}));
    agent.destroy();
  }, e => { console.error(e); process.exit(1); });
}
"""

# ---- java: `echo PORT` (one selector), `http PORT` (com.sun.net.httpserver), `client PORT CONNECTIONS ROUNDS` (a thread each)
JAVA = r"""
import java.io.*; import java.net.*; import java.nio.*; import java.nio.channels.*; import java.util.*;
import java.util.concurrent.*; import java.util.concurrent.atomic.*;
public class M {
  public static void main(String[] a) throws Exception {
    int port = Integer.parseInt(a[1]);
    if (a[0].equals("echo")) echo(port); else if (a[0].equals("http")) http(port);
    else client(port, Integer.parseInt(a[2]), Integer.parseInt(a[3]));
  }
  static void echo(int port) throws IOException {
    Selector sel = Selector.open();
    ServerSocketChannel l = ServerSocketChannel.open();
    l.bind(new InetSocketAddress("127.0.0.1", port)); l.configureBlocking(false); l.register(sel, SelectionKey.OP_ACCEPT);
    for (;;) {
      sel.select();
      for (Iterator<SelectionKey> it = sel.selectedKeys().iterator(); it.hasNext();) {
        SelectionKey k = it.next(); it.remove();
        if (k.isAcceptable()) {
          SocketChannel c = l.accept(); c.configureBlocking(false);
          c.register(sel, SelectionKey.OP_READ, ByteBuffer.allocateDirect(1 << 16));
          continue;
        }
        SocketChannel c = (SocketChannel) k.channel(); ByteBuffer b = (ByteBuffer) k.attachment();
        boolean end = k.isReadable() && c.read(b) < 0;
        b.flip(); c.write(b); b.compact();
        if (end) c.close();
        else k.interestOps((b.position() > 0 ? SelectionKey.OP_WRITE : 0) | (b.hasRemaining() ? SelectionKey.OP_READ : 0));
      }
    }
  }
  static void http(int port) throws IOException {
    var s = com.sun.net.httpserver.HttpServer.create(new InetSocketAddress("127.0.0.1", port), 64);
    s.setExecutor(Executors.newFixedThreadPool(4));
    s.createContext("/echo", x -> {
      byte[] b = x.getRequestBody().readAllBytes();
      x.sendResponseHeaders(200, b.length == 0 ? -1 : b.length); x.getResponseBody().write(b); x.close();
    });
    s.start();
  }
  static void client(int port, int connections, int rounds) throws Exception {
    int[] sizes = {1, 10, 500, 1460, 4096, 20000, 65536};
    AtomicLong moved = new AtomicLong(); AtomicReference<Throwable> bad = new AtomicReference<>();
    List<Thread> threads = new ArrayList<>();
    for (int n = 0; n < connections; n++) {
      Random rng = new Random(n);
      Thread t = new Thread(() -> {
        try (Socket s = new Socket("127.0.0.1", port)) {
          var in = new DataInputStream(s.getInputStream()); var out = s.getOutputStream();
          for (int i = 0; i < rounds; i++) {
            byte[] data = new byte[sizes[rng.nextInt(sizes.length)]], got = new byte[data.length];
            rng.nextBytes(data); out.write(data); in.readFully(got);
            if (!Arrays.equals(data, got)) throw new IOException("message " + i + " came back different");
            moved.addAndGet(2L * data.length);
          }
          s.shutdownOutput();
          if (in.read() >= 0) throw new IOException("bytes after the end");
        } catch (Throwable e) { bad.set(e); }
      });
      threads.add(t); t.start();
    }
    for (Thread t : threads) t.join();
    if (bad.get() != null) throw new RuntimeException(bad.get());
    System.out.println(moved.get());
  }
}
"""


def write(name, text):
    path = os.path.join(lib.tempfile.mkdtemp(dir=lib.tmp()), name)
    with open(path, "w") as f:
        f.write(text)
    return path


def pair(arm, what, server, client, sig=signal.SIGTERM, least=0.95, after=None):
    """server(port) and client(port) are command lines; the client prints the bytes it has moved."""
    srv_arm, cli_arm = lib.ends(arm)
    port = lib.free_port()
    srv = lib.server(srv_arm, server(port), port, timeout=30)
    if after:
        after(srv)
    cli = lib.run(cli_arm, client(port))
    got = json.loads(cli.out())
    moved = got if isinstance(got, int) else got["moved"]
    check(moved > 1 << 20, cli.out())
    srv.stop(sig=sig)
    check("Traceback" not in srv.err() and "Exception" not in srv.err(), srv.err()[-2000:])
    if arm == "fast":
        lib.share(arm, f"{what}, client", lib.fast_bytes(cli), moved, least)
        lib.share(arm, f"{what}, server", lib.fast_bytes(srv), moved, least)
    else:
        lib.share(arm, what, lib.fast_bytes(srv), moved)
    return got


def role(name, *more):
    return lambda port: [lib.PYTHON, __file__, name, port, *more]


def test_asyncio(arm):
    pair(arm, "python asyncio", role("asyncio"), role("asyncio_client", 8, 150), signal.SIGINT)


def test_threading_http_server(arm):
    pair(arm, "python ThreadingHTTPServer", role("threading"), role("http_client", 4, 100), signal.SIGINT)


def test_multiprocessing(arm):
    pair(arm, "python multiprocessing, threads", role("listener"), role("objects", 4, 150), signal.SIGINT)


def test_multiprocessing_with_processes(arm):
    pair(arm, "python multiprocessing, a process for each connection", role("forking"), role("objects", 4, 150), signal.SIGINT)


def test_node_http(arm):
    lib.require("node")
    js = write("m.js", NODE)
    got = pair(arm, "node http", lambda p: ["node", js, "http", p], lambda p: ["node", js, "client", p, 8, 150])
    check(got["sockets"] == 8, f"connections were not kept: {got}")
    pair(arm, "node http with a python client", lambda p: ["node", js, "http", p], role("http_client", 4, 150))


def cluster(arm, policy):
    lib.require("node")
    js = write("m.js", NODE)
    got = pair(arm, f"node cluster, {policy}", lambda p: ["node", js, "cluster", p, policy], lambda p: ["node", js, "client", p, 8, 150],
               after=lambda srv: lib.until("there are two workers", lambda: len(children(srv.pid)) == 2) and lib.time.sleep(0.5))
    print(f"# {got['pids']} workers answered", flush=True)
    check(policy == "none" or got["pids"] == 2, f"one worker has answered all: {got}")


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return f.read().split()


def test_node_cluster(arm):
    # The first process accepts, and gives each connection to a worker.
    cluster(arm, "rr")


def test_node_cluster_shared_listener(arm):
    cluster(arm, "none")


def java_command():
    # A single source file, as `java M.java`; the small options keep the start short.
    return ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m", "-Xshare:auto", write("M.java", JAVA)]


def test_java_nio_echo(arm):
    lib.require("java", "javac")
    java = java_command()
    pair(arm, "java NIO echo", lambda p: [*java, "echo", p], lambda p: [*java, "client", p, 6, 300])
    pair(arm, "java NIO echo with a python client", lambda p: [*java, "echo", p], role("echo_client", 4, 200))


def test_java_http_server(arm):
    lib.require("java", "javac")
    java = java_command()
    pair(arm, "java HttpServer", lambda p: [*java, "http", p], role("http_client", 4, 100))


ROLES = {"asyncio": asyncio_server, "asyncio_client": asyncio_client, "threading": threading_server, "listener": listener,
         "forking": forking_listener, "objects": objects_client, "echo_client": echo_client, "http_client": http_client}
if sys.argv[1:]:
    try:
        ROLES[sys.argv[1]](*map(int, sys.argv[2:]))
    except KeyboardInterrupt:
        pass
else:
    lib.main([test_asyncio, test_threading_http_server, test_multiprocessing, test_multiprocessing_with_processes, test_node_http,
              test_node_cluster, test_node_cluster_shared_listener, test_java_nio_echo, test_java_http_server], arms=lib.MATRIX)
