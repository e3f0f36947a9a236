#!/usr/bin/python3
# PostgreSQL over TCP: one process for each connection. pgbench with its checks: whatever was committed, the balances of accounts, tellers and
# branches and the history have the same sum. The server refuses to run as root, and only processes of one user share the fast path: root
# runs all of it, the icepath command too, as the user postgres, with a copy of the library that this user can read.
import glob
import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
import threading
import time
import lib
from lib import check

USER = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
SECONDS = 3


def tool(name):
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
    check(found or shutil.which(name), f"{name} is not installed (group apps of tools/packages)")
    return found[-1] if found else shutil.which(name)


class Cluster:
    def __init__(self, arm):
        self.port, self.dir = lib.free_port(), lib.tempfile.mkdtemp(dir=lib.tmp())
        os.chmod(self.dir, 0o755)
        self.library, self.command = (shutil.copy(p, self.dir) for p in (lib.LIBRARY, lib.COMMAND)) if arm != "kernel" else (None, None)
        if USER:
            os.chown(self.dir, USER.pw_uid, USER.pw_gid)
        data = os.path.join(self.dir, "data")
        self.run("kernel", [tool("initdb"), "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale", "C"])
        srv_arm, self.cli_arm = lib.ends(arm)
        self.srv = lib.server(srv_arm, [tool("postgres"), "-D", data, "-h", "127.0.0.1", "-p", self.port, "-k", "", "-c", "fsync=off",
                                        "-c", "max_connections=40", "-c", "autovacuum=off"], self.port, user=USER, **self.env(srv_arm))
        lib.until("postgres answers", self.ready, 15)

    def env(self, arm):
        return {"LD_PRELOAD": lib.preload(self.library), "HOME": self.dir} if arm == "fast" else {"HOME": self.dir}

    def start(self, arm, argv, stdin=None):
        return lib.Program(arm, argv, stdin, user=USER, **self.env(arm))

    def run(self, arm, argv, timeout=60, status=0):
        return self.start(arm, argv).wait(timeout, status)

    def at(self):
        return ["-h", "127.0.0.1", "-p", self.port, "-U", "postgres"]

    def ready(self):
        p = self.run("kernel", [tool("pg_isready"), *self.at()], status=None)
        return p.popen.returncode == 0

    def sql(self, text, arm="kernel"):
        return self.run(arm, [tool("psql"), *self.at(), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text, "postgres"]).out().strip()

    def rows(self):
        who = dict(user=USER.pw_uid, group=USER.pw_gid, extra_groups=[]) if USER else {}
        r = subprocess.run([self.command, "ss", "--json"], capture_output=True, text=True, timeout=20, check=True,
                           env=lib.environment("kernel"), **who)
        return json.loads(r.stdout)

    def stop(self):
        self.srv.stop(sig=2, timeout=20, status=0)       # fast shutdown: an error of a server process would be in the status or the log
        check("PANIC" not in self.srv.err() and "terminated by signal" not in self.srv.err(), self.srv.err()[-3000:])


def moved_by(rows, pid):
    mine = [r for r in rows if r["pid"] == pid and r["state"] == "ESTAB"]
    return sum(r["fast_tx_bytes"] + r["fast_rx_bytes"] for r in mine), sum(r["tx_bytes"] + r["rx_bytes"] for r in mine)


def pgbench(c, *options):
    """pgbench in the client's arm; what its connections had moved when they were last looked at."""
    b = c.start(c.cli_arm, [tool("pgbench"), *c.at(), "-n", *options, "postgres"])
    last = (0, 0)
    while b.alive():
        if c.command:
            now = moved_by(c.rows(), b.pid)
            last = max(last, now, key=lambda x: x[1])
        time.sleep(0.5)
    b.wait()
    m = re.search(r"number of transactions actually processed: (\d+)", b.out())
    check(m and int(m[1]) > 100, b.out() + b.err())
    check("number of failed transactions: 0 " in b.out(), b.out())
    print(f"# {' '.join(options)}: {m[1]} transactions", flush=True)
    return b, int(m[1]), last


def test_pgbench(arm):
    c = Cluster(arm)
    c.run(c.cli_arm, [tool("pgbench"), *c.at(), "-i", "-q", "-s", "2", "postgres"])
    done = 0
    for options in (("-c", "8", "-j", "2", "-T", SECONDS), ("-c", "4", "-j", "2", "-T", 2, "-M", "prepared")):
        b, n, (fast, moved) = pgbench(c, *map(str, options))
        done += n
        if arm == "fast":
            lib.share(arm, f"pgbench {' '.join(map(str, options))}", fast, moved, 0.95)
    sums = c.sql("select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),"
                 " (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history), (select count(*) from pgbench_history)")
    a, t, b, h, count = map(int, sums.split("|"))
    check(a == t == b == h, f"the sums differ: {sums}")
    check(count == done, f"{count} rows of history for {done} transactions")
    c.stop()
    if arm == "mixed":
        lib.share(arm, "postgres", lib.fast_bytes(c.srv), 1)


def test_copy_and_large_results(arm):
    # COPY in and out, a result of 8 MB, LISTEN and NOTIFY, an error in the middle, a cancelled query.
    c = Cluster(arm)
    rows = "".join(f"{i}\t{hashlib.sha256(b'%d' % i).hexdigest() * (1 + i % 8)}\n" for i in range(40000))
    path = lib.tmpfile()
    with open(path, "w") as f:
        f.write("create table t(i int, v text);\ncopy t from stdin;\n" + rows + "\\.\nlisten x;\nselect 1/0;\nnotify x, 'hello';\n"
                "set statement_timeout=200;\nselect pg_sleep(10);\nset statement_timeout=0;\ncopy (select * from t order by i) to stdout;\n")
    with open(path) as f:
        psql = c.start(c.cli_arm, [tool("psql"), *c.at(), "-X", "-q", "-A", "-t", "postgres"], stdin=f).wait(60)
    check("division by zero" in psql.err() and "statement timeout" in psql.err(), psql.err())
    first, _, rest = psql.out().partition("\n")
    check(first.startswith('Asynchronous notification "x" with payload "hello"'), first)
    check(rest == rows, "COPY came back different")
    got = c.run(c.cli_arm, [tool("psql"), *c.at(), "-X", "-q", "-A", "-t", "-F", "\t", "-c", "select * from t order by i", "postgres"])
    check(got.out() == rows, "the result came back different")
    c.stop()
    if arm == "fast":
        lib.share(arm, "psql, COPY in and out", lib.fast_bytes(psql), 2 * len(rows))
        lib.share(arm, "psql, a large result", lib.fast_bytes(got), len(rows))


def test_connection_for_each_transaction(arm):
    # -C: a fork and an end for each of them. Short connections stay in the kernel; none may fail.
    c = Cluster(arm)
    c.run(c.cli_arm, [tool("pgbench"), *c.at(), "-i", "-q", "-s", "1", "postgres"])
    pgbench(c, "-C", "-S", "-c", "4", "-j", "2", "-T", "2")
    c.stop()


if __name__ == "__main__":
    lib.main([test_pgbench, test_copy_and_large_results, test_connection_for_each_transaction], arms=lib.MATRIX)
