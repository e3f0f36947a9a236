#!/usr/bin/python3
# Files through programs that encrypt, fork or exec: curl and openssl s_server, sshd and scp, rsync and git as daemons, nc, socat EXEC; and iperf3
# with eight streams, in reverse, in both directions. What arrives is compared with what was sent.
import filecmp
import getpass
import hashlib
import json
import os
import subprocess
import lib
from lib import check

MIB = 1 << 20


def directory():
    d = lib.tempfile.mkdtemp(dir=lib.tmp())
    os.chmod(d, 0o755)
    return d


def make_file(path, size):
    with open(path, "wb") as f:
        f.write(os.urandom(size))
    return path


def make_tree(d):
    # Small files, large ones, an empty one, a deep path.
    for i, size in enumerate((0, 1, 100, 5000, 70000, 3 * MIB, 24 * MIB)):
        sub = os.path.join(d, *(["sub"] * (i % 3)))
        os.makedirs(sub, exist_ok=True)
        make_file(os.path.join(sub, f"f{i}"), size)
    for i in range(200):
        make_file(os.path.join(d, f"small{i}"), i * 10)
    return d


def same_file(a, b, what):
    with open(a, "rb") as x, open(b, "rb") as y:
        check(hashlib.file_digest(x, "sha256").digest() == hashlib.file_digest(y, "sha256").digest(), f"{what}: another file arrived")


def same_tree(a, b, what):
    files = [os.path.relpath(os.path.join(d, n), a) for d, _, names in os.walk(a) for n in names]
    check(sum(len(n) for _, _, n in os.walk(b)) == len(files) and len(files) > 200, f"{what}: another number of files")
    _, wrong, bad = filecmp.cmpfiles(a, b, files, shallow=False)
    check(not wrong and not bad, f"{what}: {wrong[:5]} {bad[:5]} are different")


def size_of(d):
    return sum(os.path.getsize(os.path.join(x, n)) for x, _, names in os.walk(d) for n in names)


def quietly(*argv, **more):
    subprocess.run(list(map(str, argv)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60,
                   env=lib.environment("kernel", **more))


def test_tls(arm):
    lib.require("openssl", "curl")
    srv_arm, cli_arm = lib.ends(arm)
    lib.sanitizer_allows(cli_arm, "curl")
    d, port, size = directory(), lib.free_port(), 96 * MIB
    path, key, cert = (os.path.join(d, n) for n in ("file", "key", "cert"))
    make_file(path, size)
    quietly("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out", cert,
            "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    srv = lib.server(srv_arm, ["env", "-C", d, "openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-key", key, "-cert", cert, "-HTTP"], port)
    make_file(os.path.join(d, "small"), 1000)
    # -HTTP sends a file as it is, headers included.
    for name, body in (("file", size), ("small", 1000)):
        with open(os.path.join(d, name), "rb") as f:
            data = f.read()
        with open(os.path.join(d, name), "wb") as f:
            f.write(b"HTTP/1.0 200 ok\r\nContent-Length: %d\r\n\r\n" % body + data)
        with open(os.path.join(d, name + ".body"), "wb") as f:
            f.write(data)
    to = lib.tmpfile()
    for _ in range(5):
        lib.run(cli_arm, ["curl", "-sS", "-f", "--cacert", cert, "-o", to, f"https://127.0.0.1:{port}/small"])
        same_file(os.path.join(d, "small.body"), to, "curl")
    cli = lib.run(cli_arm, ["curl", "-sS", "-f", "--cacert", cert, "-o", to, f"https://127.0.0.1:{port}/file"])
    same_file(path + ".body", to, "curl")
    srv.stop()
    lib.share(arm, "curl from openssl s_server, TLS", lib.fast_bytes(cli), size, 0.7)


def sshd_scp(arm, *how):
    lib.require("sshd", "ssh", "scp", "ssh-keygen")
    srv_arm, cli_arm = lib.ends(arm)
    d, port, user = directory(), lib.free_port(), getpass.getuser()
    os.chmod(d, 0o700)
    for key in ("host", "user"):
        quietly("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", os.path.join(d, key))
    os.rename(os.path.join(d, "user.pub"), os.path.join(d, "allowed"))
    made = os.geteuid() == 0 and not os.path.isdir("/run/sshd")
    if made:
        os.mkdir("/run/sshd", 0o755)                    # where it locks itself up; the service's start makes it as a rule
    with open(os.path.join(d, "conf"), "w") as f:
        f.write(f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {d}/host\nAuthorizedKeysFile {d}/allowed\nPidFile none\nUsePAM no\n"
                "StrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\nMaxStartups 100\n")
    try:
        srv = lib.server(srv_arm, ["/usr/sbin/sshd", "-D", "-e", *how, "-f", os.path.join(d, "conf")], port)
        options = ["-F", "none", "-i", os.path.join(d, "user"), "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={d}/known",
                   "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
        size = 48 * MIB
        path, there, back = make_file(os.path.join(d, "file"), size), os.path.join(d, "there"), os.path.join(d, "back")
        up = lib.run(cli_arm, ["scp", "-q", *options, "-P", port, path, f"{user}@127.0.0.1:{there}"])
        same_file(path, there, "scp to")
        down = lib.run(cli_arm, ["scp", "-q", *options, "-P", port, f"{user}@127.0.0.1:{there}", back])
        same_file(path, back, "scp from")
        ssh = lib.run(cli_arm, ["ssh", *options, "-p", port, f"{user}@127.0.0.1", "echo through ssh; exit 7"], status=7)
        check("through ssh" in ssh.out(), ssh.out() + ssh.err())
        srv.stop()
    finally:
        if made:
            os.rmdir("/run/sshd")
    lib.share(arm, " ".join(("scp and sshd", *how)), lib.fast_bytes(up, down), 2 * size)


def test_sshd_scp(arm):
    # A process for each connection, which starts sshd anew; before the login it is locked up: seccomp, RLIMIT_FSIZE and RLIMIT_NPROC 0.
    sshd_scp(arm)


def test_sshd_without_reexec_scp(arm):
    # -r: that process goes on with the connection that its parent accepted.
    sshd_scp(arm, "-r")


def test_rsync_daemon(arm):
    lib.require("rsync")
    srv_arm, cli_arm = lib.ends(arm)
    d, port = directory(), lib.free_port()
    tree, got, put = (os.path.join(d, n) for n in ("tree", "got", "put"))
    for x in (tree, got, put):
        os.mkdir(x)
    make_tree(tree)
    with open(os.path.join(d, "conf"), "w") as f:
        ids = "uid = root\ngid = root\n" if os.geteuid() == 0 else ""
        f.write(f"use chroot = no\nlog file = {d}/log\npid file = {d}/pid\n{ids}[tree]\npath = {tree}\n[put]\npath = {put}\nread only = no\n")
    srv = lib.server(srv_arm, ["rsync", "--daemon", "--no-detach", "--address", "127.0.0.1", "--port", port, "--config", os.path.join(d, "conf")], port)
    down = lib.run(cli_arm, ["rsync", "-a", f"rsync://127.0.0.1:{port}/tree/", got + "/"])
    same_tree(tree, got, "rsync from")
    up = lib.run(cli_arm, ["rsync", "-a", tree + "/", f"rsync://127.0.0.1:{port}/put/"])
    same_tree(tree, put, "rsync to")
    with open(os.path.join(put, "f0"), "a") as f:       # a difference is found and sent
        f.write("changed")
    again = lib.run(cli_arm, ["rsync", "-a", "-c", "--stats", tree + "/", f"rsync://127.0.0.1:{port}/put/"])
    check("regular files transferred: 1\n" in again.out(), again.out())
    same_tree(tree, put, "rsync again")
    srv.stop()
    lib.share(arm, "rsync daemon", lib.fast_bytes(down, up), 2 * size_of(tree))


def test_git_daemon(arm):
    lib.require("git")
    srv_arm, cli_arm = lib.ends(arm)
    d, port = directory(), lib.free_port()
    work, clone = os.path.join(d, "work"), os.path.join(d, "clone")
    config = {"HOME": d, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@localhost", "GIT_COMMITTER_NAME": "t",
              "GIT_COMMITTER_EMAIL": "t@localhost"}

    def commit(where, text):
        quietly("git", "-C", where, "add", "-A", **config)
        quietly("git", "-C", where, "commit", "-q", "-m", text, **config)

    def head(where):
        return subprocess.run(["git", "-C", where, "rev-parse", "HEAD"], check=True, capture_output=True, text=True,
                              env=lib.environment("kernel", **config)).stdout
    os.mkdir(work)
    make_tree(work)
    quietly("git", "-C", work, "init", "-q", "-b", "main", **config)
    commit(work, "one")
    quietly("git", "clone", "-q", "--bare", work, os.path.join(d, "r.git"), **config)
    srv = lib.server(srv_arm, ["git", "daemon", "--reuseaddr", "--export-all", "--enable=receive-pack", f"--base-path={d}",
                               "--listen=127.0.0.1", f"--port={port}", d], port, **config)
    cli = lib.run(cli_arm, ["git", "clone", "-q", f"git://127.0.0.1:{port}/r.git", clone], **config)
    quietly("git", "-C", clone, "fsck", "--full", **config)
    check(head(clone) == head(work), "the clone has another head")
    make_file(os.path.join(clone, "new"), 4 * MIB)
    commit(clone, "two")
    push = lib.run(cli_arm, ["git", "-C", clone, "push", "-q", "origin", "main"], **config)
    check(head(os.path.join(d, "r.git")) == head(clone) != head(work), "the push did not arrive")
    quietly("git", "-C", os.path.join(d, "r.git"), "fsck", "--full", **config)
    srv.stop()
    lib.share(arm, "git daemon", lib.fast_bytes(cli, push), size_of(work) // 2)


def test_nc_both_ways(arm):
    lib.require("nc")
    srv_arm, cli_arm = lib.ends(arm)
    port, size = lib.free_port(), 64 * MIB
    a, b = (make_file(lib.tmpfile(), size) for _ in "ab")
    with open(a, "rb") as f:
        srv = lib.server(srv_arm, ["nc", "-N", "-l", "127.0.0.1", port], port, stdin=f)
    with open(b, "rb") as f:
        cli = lib.Program(cli_arm, ["nc", "-N", "127.0.0.1", port], stdin=f)
    cli.wait(30)
    srv.wait(30)
    same_file(b, srv.out_path, "nc to the server")
    # A listening nc ends when its peer has ended, also when it has not sent all of its own: what came must be the beginning.
    with open(a, "rb") as x, open(cli.out_path, "rb") as y:
        got = y.read()
        check(len(got) > 0 and x.read(len(got)) == got, "nc to the client: other bytes arrived")
    lib.share(arm, "nc, both ways", lib.fast_bytes(cli), 2 * size)


def iperf3(arm, *options):
    lib.require("iperf3")
    srv_arm, cli_arm = lib.ends(arm)
    port = lib.free_port()
    srv = lib.server(srv_arm, ["iperf3", "-s", "-1", "-p", port], port)
    cli = lib.run(cli_arm, ["iperf3", "-c", "127.0.0.1", "-p", port, "-t", "2", "-J", *options])
    result = json.loads(cli.out())
    check("error" not in result, str(result.get("error")))
    srv.wait(20)
    moved = 0
    for s in result["end"]["streams"]:
        sent, got = s["sender"]["bytes"], s["receiver"]["bytes"]
        check(0 < got, f"a stream got nothing: {s}")
        moved += sent if s["sender"]["sender"] else got
    print(f"# {moved * 8 / 2e9:.1f} Gbit/s", flush=True)
    lib.share(arm, f"iperf3 {' '.join(options)}", lib.fast_bytes(cli), moved, 0.8)


def test_iperf3_parallel(arm):
    iperf3(arm, "-P", "8")


def test_iperf3_reverse(arm):
    iperf3(arm, "-R", "-P", "2")


def test_iperf3_both_directions(arm):
    iperf3(arm, "--bidir")


def socat(arm, listen, what):
    lib.require("socat")
    srv_arm, cli_arm = lib.ends(arm)
    port, size = lib.free_port(), 32 * MIB
    srv = lib.server(srv_arm, ["socat", f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr{listen}", what], port)
    path, clients = make_file(lib.tmpfile(), size), []
    for _ in range(2 if "fork" in listen else 1):
        with open(path, "rb") as f:
            clients.append(lib.Program(cli_arm, ["socat", "-t", "20", "-", f"TCP:127.0.0.1:{port}"], stdin=f))
    for c in clients:
        c.wait(30)
        same_file(path, c.out_path, "socat")
    srv.stop()
    lib.share(arm, f"socat {what}{', fork' if listen else ''}", lib.fast_bytes(*clients), 2 * size * len(clients))


def test_socat_exec(arm):
    socat(arm, "", "EXEC:cat")


def test_socat_fork_exec(arm):
    socat(arm, ",fork", "EXEC:cat")


def test_socat_exec_nofork(arm):
    socat(arm, "", "EXEC:cat,nofork")


lib.main([test_tls, test_sshd_scp, test_sshd_without_reexec_scp, test_rsync_daemon, test_git_daemon, test_nc_both_ways, test_iperf3_parallel, test_iperf3_reverse,
          test_iperf3_both_directions, test_socat_exec, test_socat_fork_exec, test_socat_exec_nofork], arms=lib.MATRIX)
