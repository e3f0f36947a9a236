#!/usr/bin/python3
# What a program may do with a connection that has been taken over from the kernel, and with one that moves under its hands: descriptors copied,
# inherited and passed, readiness in its forms, blocked threads, options, errors. The peer is always on the kernel.
import time
from net import Net, check, main, no_reset, pair, ping_pong, port_of_its_own, until, warm

net = Net()
OFF, ON = "kernel", "fast"


def start(**env):
    a, b = pair(net, **env)
    warm(a, b)
    return a, b


def end(*agents):
    for p in agents:
        p.end()


def move(a, b, path):
    """The connection to the kernel, or to the fast path again, by small messages."""
    if path == OFF:
        a.off()
        until("the connection is the kernel's", lambda: not a.fast())
    else:
        a.on()
        warm(a, b)


def test_fork_both_go_on():
    a, b = start()
    # The child writes, the parent reads; then the parent again.
    a.do("""
pid = os.fork()
if pid == 0:
    s.sendall(b'from the child')
    os._exit(0)
os.waitpid(pid, 0)""")
    check(b.do("s.recv(100)") == "from the child", "the child's bytes did not come")
    warm(a, b)                                                   # the child is gone: fast again
    b.do("s.sendall(b'to the child')")
    a.do("""
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    os.write(w, s.recv(100))
    os._exit(0)
os.waitpid(pid, 0)""")
    check(a.do("os.read(r, 100)") == "to the child", "the child did not read")
    ping_pong(a, b)
    a.do("s.close()")
    check(b.do("s.recv(1)") == "", "no end of file after the parent's close")
    end(a, b)


def test_exec_inherits():
    a, b = start()
    a.do("os.set_inheritable(s.fileno(), True)")
    code = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.sendall(b'executed'); s.sendall(s.recv(100))"
    a.put(f"subprocess.run([sys.executable, '-c', {code!r}, str(s.fileno())], pass_fds=[s.fileno()], check=True)")
    check(b.do("s.recv(8, socket.MSG_WAITALL)") == "executed", "the executed program could not write")
    b.do("s.sendall(b'answer')")
    check(b.do("s.recv(6, socket.MSG_WAITALL)") == "answer", "the executed program could not read")
    a.get()
    ping_pong(a, b)
    a.do("os.set_inheritable(s.fileno(), False)")
    end(a, b)


def test_exec_replaces():
    a, b = start()
    code = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.sendall(b'executed'); s.sendall(s.recv(100))"
    b.do("s.sendall(b'unread')")
    a.put(f"os.set_inheritable(s.fileno(), True); time.sleep(0.05); os.execv(sys.executable, [sys.executable, '-c', {code!r}, str(s.fileno())])")
    check(b.do("s.recv(14, socket.MSG_WAITALL)") == "executedunread", "the program that took its place lost the connection")
    check(b.do("s.recv(1)") == "", "no end of file at its exit")
    b.end()


def test_passed_by_scm_rights():
    a, b = start()
    a.do("""
x, y = socket.socketpair(socket.AF_UNIX)
pid = os.fork()
if pid == 0:
    s.close()
    _, fds, _, _ = socket.recv_fds(y, 10, 1)
    c = socket.socket(fileno=fds[0])
    c.sendall(b'passed')
    c.sendall(c.recv(100))
    os._exit(0)""")
    warm(a, b)                                                   # the child has closed its copy
    a.do("socket.send_fds(x, [b'f'], [s.fileno()]); s.close()")
    check(b.do("s.recv(6, socket.MSG_WAITALL)") == "passed", "the receiver could not write")
    b.do("s.sendall(b'answer')")
    check(b.do("s.recv(6, socket.MSG_WAITALL)") == "answer", "the receiver could not read")
    check(b.do("s.recv(1)") == "", "no end of file at the receiver's exit")
    end(a, b)


def test_dup_and_dup2():
    a, b = start()
    a.do("d = s.dup(); e = os.dup2(s.fileno(), 150, False)")
    check(len(a.fast()) == 1, "dup gives the connection back")
    b.do("s.sendall(b'abcdef')")
    check(a.do("[s.recv(2), d.recv(2), os.read(150, 2)]") == ["ab", "cd", "ef"], "the copies do not read one stream")
    a.do("s.close(); d.send(b'1'); d.close(); os.write(150, b'2')")
    check(b.do("s.recv(2, socket.MSG_WAITALL)") == "12", "the copies do not write one stream")
    a.do("os.dup2(os.open('/dev/null', os.O_RDWR), 150)")       # closes the last one
    check(b.do("s.recv(1)") == "", "dup2 over the last descriptor does not close")
    end(a, b)


EPOLL = """
ep, kinds = {}, {'LT': 0, 'ET': select.EPOLLET, 'ONESHOT': select.EPOLLONESHOT}
for k, f in kinds.items():
    ep[k] = select.epoll()
    ep[k].register(s.fileno(), select.EPOLLIN | select.EPOLLRDHUP | f)
def look(k, t=0.0):
    return [e for _, e in ep[k].poll(t)]
"""


def test_epoll_over_moves():
    a, b = start()
    a.do(EPOLL)
    in_, = (a.do("select.EPOLLIN"),)
    for path in (OFF, ON, OFF, ON):
        for k in ("LT", "ET", "ONESHOT"):
            a.do(f"look('{k}')")                                  # an edge of the move itself is allowed
        a.do("ep['ONESHOT'].modify(s.fileno(), select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT)")
        move(a, b, path)
        for k in ("LT", "ET", "ONESHOT"):
            got = a.do(f"look('{k}')")
            check(all(e == in_ for e in got), f"{k} after a move to {path}: {got}")
            if k == "LT":
                check(not got, "LT reports data that is not there")
        a.do("ep['ONESHOT'].modify(s.fileno(), select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT)")
        b.do("s.sendall(b'12345678')")
        for k in ("LT", "ET", "ONESHOT"):
            check(a.do(f"look('{k}', 5.0)") == [in_], f"{k} does not report data on path {path}")
        check(a.do("look('LT')") == [in_] and a.do("look('ONESHOT')") == [], f"LT is not level, or ONESHOT shot twice ({path})")
        check(a.do("look('ET')") == [], f"ET reports twice ({path})")
        # Unread data over the next move: LT still says so
        check(a.do("s.recv(4)") == "1234", "wrong data")
        if path == OFF:
            a.on()
            a.do("for _ in range(40): s.recv(1, socket.MSG_PEEK)")
        else:
            a.off()
        check(a.do("look('LT', 1.0)") == [in_], f"LT forgets unread data over a move from {path}")
        check(a.do("s.recv(100)") == "5678", "unread data is lost by a move")
        if path == OFF:
            a.off()
        else:
            a.on()
    b.do("s.close()")
    for k in ("LT", "ET"):
        got = a.do(f"look('{k}', 5.0)")
        check(got and got[0] & in_ and got[0] & 0x2000, f"{k}: {got} at the end of file")
    end(a, b)


def test_blocked_reader_over_moves():
    a, b = start()
    move(a, b, OFF)
    for path in (ON, OFF, ON, OFF):
        a.do("w = Later(s.recv, 100)")
        time.sleep(0.05)
        if path == ON:
            a.on()
            a.do("for _ in range(60): s.send(b'x')")             # promoted by the sender's calls, if it can be with a reader in the kernel
            b.do("n = 0\nwhile n < 60: n += len(s.recv(100))")
        else:
            a.off()
        time.sleep(0.05)
        b.do("s.sendall(b'for the reader')")
        check(a.do("w.result(5)") == "for the reader", f"a reader that blocked before a move to {path}")
        warm(a, b, path=path)
    end(a, b)


def test_blocked_writer_over_moves():
    a, b = start()
    size = 20000000
    for path in (OFF, ON):
        a.do(f"w = Later(send_stream, s, 5, {size})")
        time.sleep(0.2)
        (a.on if path == ON else a.off)()
        if path == OFF:                                            # also with a full send buffer, and nobody who reads
            until("the connection is the kernel's", lambda: not a.fast(), 3)
        time.sleep(0.1)
        check(b.do(f"recv_stream(s, 5, {size})") == size, "bytes of a blocked writer are missing")
        check(a.do("w.result(5)") == size, "the blocked writer did not finish")
    end(a, b)


OPTIONS = ("SOL_SOCKET SO_REUSEADDR", "SOL_SOCKET SO_KEEPALIVE", "SOL_SOCKET SO_SNDBUF", "SOL_SOCKET SO_RCVBUF", "SOL_SOCKET SO_PRIORITY",
           "IPPROTO_TCP TCP_NODELAY", "IPPROTO_TCP TCP_KEEPIDLE", "IPPROTO_TCP TCP_KEEPINTVL", "IPPROTO_TCP TCP_KEEPCNT",
           "IPPROTO_TCP TCP_USER_TIMEOUT", "IPPROTO_IP IP_TOS", "IPPROTO_IP IP_TTL", "SOL_SOCKET SO_RCVLOWAT",
           "SOL_SOCKET SO_ERROR", "SOL_SOCKET SO_TYPE")


def test_options_and_info_over_moves():
    a, b = pair(net)
    # Of the connection as it is before the first move: set in the kernel, read on the fast path, and back
    a.do("""
names = %r
def opt(n):
    l, o = n.split()
    return s.getsockopt(getattr(socket, l), getattr(socket, o))
def all_of():
    v = {n: opt(n) for n in names}
    v['linger'] = s.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8).hex()
    v['cc'] = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b'\\0').decode()
    v['names'] = [list(s.getsockname()), list(s.getpeername())]
    return v
def info():
    i = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    return dict(state=i[0], options=i[5], wscale=i[6], snd_mss=struct.unpack_from('I', i, 16)[0], rtt=struct.unpack_from('I', i, 68)[0],
                advmss=struct.unpack_from('I', i, 88)[0], acked=struct.unpack_from('Q', i, 120)[0], received=struct.unpack_from('Q', i, 128)[0])
def put(n, v):
    l, o = n.split()
    s.setsockopt(getattr(socket, l), getattr(socket, o), v)
put('SOL_SOCKET SO_KEEPALIVE', 1); put('IPPROTO_TCP TCP_KEEPIDLE', 77); put('SOL_SOCKET SO_RCVBUF', 200000); put('SOL_SOCKET SO_SNDBUF', 300000)
put('IPPROTO_TCP TCP_NODELAY', 1); put('IPPROTO_IP IP_TOS', 0x10); put('IPPROTO_TCP TCP_USER_TIMEOUT', 45000); put('SOL_SOCKET SO_REUSEADDR', 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 0, 9))
""" % (OPTIONS,))
    want, first = a.do("all_of()"), a.do("info()")
    changes = {ON: (("SOL_SOCKET SO_KEEPALIVE", 0), ("IPPROTO_TCP TCP_KEEPCNT", 5), ("IPPROTO_IP IP_TTL", 33), ("SOL_SOCKET SO_REUSEADDR", 0)),
               OFF: (("SOL_SOCKET SO_KEEPALIVE", 1), ("IPPROTO_TCP TCP_KEEPCNT", 7), ("SOL_SOCKET SO_REUSEADDR", 1))}
    for path in (ON, OFF, ON, OFF):
        move(a, b, path)
        got = a.do("all_of()")
        check(got == want, f"after a move to {path}: " + ", ".join(f"{k} {want[k]} became {got[k]}" for k in want if want[k] != got[k]))
        ping_pong(a, b)
        i = a.do("info()")
        same = [k for k in ("state", "options", "wscale", "snd_mss", "advmss") if i[k] != first[k]]
        check(not same, f"TCP_INFO after a move to {path}: {[(k, first[k], i[k]) for k in same]}")
        check(i["rtt"] > 0, f"TCP_INFO has no round trip time on path {path}")
        if path == ON:
            check(i["acked"] > 0 and i["received"] > 0, f"TCP_INFO counts nothing on path {path}: {i}")
        for n, v in changes[path]:
            a.do(f"put({n!r}, {v})")
            want[n] = v
        got = a.do("all_of()")
        check(got == want, f"set on path {path}: " + ", ".join(f"{k} {want[k]} is {got[k]}" for k in want if want[k] != got[k]))
    end(a, b)


def test_peek_waitall_and_so_error():
    a, b = start()
    b.do("s.sendall(b'0123456789')")
    check(a.do("s.recv(4, socket.MSG_PEEK)") == "0123" and a.do("s.recv(10, socket.MSG_PEEK | socket.MSG_WAITALL)") == "0123456789", "MSG_PEEK")
    a.off()
    check(a.do("s.recv(4, socket.MSG_PEEK)") == "0123", "MSG_PEEK of what was unread at a move")
    check(a.do("fcntl.ioctl(s, 0x541B, b'....')")[:1] == "\n", "FIONREAD of what was unread at a move")
    check(a.do("s.recv(10, socket.MSG_WAITALL)") == "0123456789", "unread data")
    a.on()
    warm(a, b)
    check(a.do("s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)") == 0, "SO_ERROR without an error")
    b.do("s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()")
    bits = a.do("p = select.poll(); p.register(s, select.POLLIN); p.poll(3000)[0][1]")
    check(bits & 0x18 == 0x18, f"poll says {bits:#x} after a reset")
    check(a.do("s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)") == 104, "SO_ERROR after a reset")
    check(a.do("s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)") == 0, "SO_ERROR is told twice")
    end(a, b)


def test_poll_and_select():
    a, b = start()
    a.do("p = select.poll(); p.register(s, select.POLLIN)")
    for path in (ON, OFF, ON):
        if path != ON or not a.fast():
            move(a, b, path)
        check(a.do("[p.poll(0), select.select([s], [s], [s], 0)[0]]") == [[], []], f"readable without data on path {path}")
        check(a.do("len(select.select([s], [s], [], 0)[1])") == 1, f"not writable on path {path}")
        a.do("w = Later(p.poll, 5000); v = Later(select.select, [s], [], [], 5)")
        time.sleep(0.05)
        b.do("s.sendall(b'x')")
        check(a.do("len(w.result())") == 1 and a.do("len(v.result()[0])") == 1, f"sleepers in poll and select on path {path}")
        check(a.do("s.recv(10)") == "x", "wrong data")
    end(a, b)


def test_nonblocking_connect():
    a, b = net.agent("a"), net.agent("b", "kernel")
    port = port_of_its_own()
    b.do(f"l = listen('{net.addr['b']}', {port})")
    err = a.do(f"s = socket.socket(); s.setblocking(False); s.connect_ex(('{net.addr['b']}', {port}))")
    check(err in (0, 115), f"connect says {err}")
    b.do("s = l.accept()[0]")
    check(a.do("len(select.select([], [s], [], 5)[1])") == 1 and a.do("s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)") == 0, "not connected")
    a.do("s.setblocking(True)")
    warm(a, b)
    a.do("s.setblocking(False)")
    a.fails("s.recv(1)", 11)
    a.fails("for _ in range(10000): s.send(bytes(65536))", 11)       # nobody reads: it ends
    a.off()
    a.fails("for _ in range(10000): s.send(bytes(65536))", 11)
    a.fails("s.connect(('10.77.0.2', 1))", 106)
    err = a.do(f"t = socket.socket(); t.setblocking(False); t.connect_ex(('{net.addr['b']}', 1))")
    a.do("select.select([], [t], [], 5)")
    check(err == 111 or a.do("t.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)") == 111, "a refused connect is not told")
    end(a, b)


main([test_fork_both_go_on, test_exec_inherits, test_exec_replaces, test_passed_by_scm_rights, test_dup_and_dup2, test_epoll_over_moves,
      test_blocked_reader_over_moves, test_blocked_writer_over_moves, test_options_and_info_over_moves, test_peek_waitall_and_so_error,
      test_poll_and_select, test_nonblocking_connect])
