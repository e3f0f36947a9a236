#!/usr/bin/python3
# The command line of `icepath`: statuses, messages, and what `run` says about programs that cannot be accelerated.
import os
import stat
import subprocess
import lib
from lib import check, icepath


def said(text, *args, status):
    r = icepath(*args, status=status)
    check(text in r.stderr + r.stdout, f"icepath {' '.join(map(str, args))}: expected {text!r} in\n{r.stderr}{r.stdout}")


def test_statuses(_):
    said("icepath 0.", "--version", status=0)
    for sub in ([], ["run"], ["ss"], ["stat"], ["off"], ["on"], ["doctor"]):
        said("Usage:", *sub, "--help", status=0)
    said("A subcommand is required", status=2)
    said("no program given", "run", status=2)
    said("not in range", "off", "nonsense", status=2)
    said("no accelerated process 1 ", "off", "1", status=1)
    said("[", "ss", "--json", status=0)
    said("[", "stat", "--json", status=0)


def test_doctor_says_what_is_there_and_what_is_missing(_):
    said("ok  libicepath.so", "doctor", status=0)                  # the xdp port was not asked for
    said("no  no interface nosuchif0", "doctor", "nosuchif0", status=1)
    said("not an IPv4 address and a port", "doctor", "--peer", "192.0.2.1", status=2)
    said("that is this host", "doctor", "--peer", "127.0.0.1:80", status=0 if os.getuid() == 0 else 1)
    if os.getuid() == 0:
        r = subprocess.run(["setpriv", "--reuid", "nobody", lib.COMMAND, "doctor", "--peer", "127.0.0.1:80"], capture_output=True, text=True, timeout=20,
                           env=lib.environment("kernel"), check=False)
        check(r.returncode == 1 and "no  CAP_NET_ADMIN is missing" in r.stdout and "-> a service: AmbientCapabilities=" in r.stdout, r.stdout + r.stderr)


def test_run_gives_the_programs_status(_):
    icepath("run", "--", "sh", "-c", "exit 42", status=42)
    icepath("run", "true", status=0)
    said("command not found", "run", "--", "no-such-program-here", status=127)
    said("Permission denied", "run", "--", "/tmp", status=126)


def test_run_keeps_arguments_and_preload(_):
    r = icepath("run", "--stats", "--", "sh", "-c", 'echo "$0|$1|$LD_PRELOAD|$ICEPATH_STATS"', "--require", "--", status=0)
    check(r.stdout == f"--require|--|{lib.LIBRARY}|1\n", r.stdout + r.stderr)
    # Nobody's library is thrown out: ours stands before it.
    other = next(p for p in ("/usr/lib/x86_64-linux-gnu/libz.so.1", "/lib/x86_64-linux-gnu/libz.so.1") if os.path.exists(p))
    r = subprocess.run([lib.COMMAND, "run", "--", "sh", "-c", "echo $LD_PRELOAD"], capture_output=True, text=True, timeout=20,
                       env=lib.environment("kernel", LD_PRELOAD=other), check=True)
    check(r.stdout == f"{lib.LIBRARY}:{other}\n", r.stdout)


def test_run_says_what_cannot_be_accelerated(_):
    d = lib.tempfile.mkdtemp(dir=lib.tmp())
    source, static = os.path.join(d, "a.c"), os.path.join(d, "static")
    with open(source, "w") as f:
        f.write("int main(void) { return 7; }")
    subprocess.run(["gcc", "-static", source, "-o", static], check=True)
    said("statically linked", "run", "--", static, status=7)
    said("statically linked", "run", "--require", "--", static, status=1)
    if os.getuid() == 0:
        setuid = os.path.join(d, "setuid")
        subprocess.run(["gcc", source, "-o", setuid], check=True)
        os.chown(setuid, 65534, -1)
        os.chmod(setuid, 0o755 | stat.S_ISUID)
        said("set-user-ID", "run", "--", setuid, status=7)


lib.main([test_statuses, test_doctor_says_what_is_there_and_what_is_missing, test_run_gives_the_programs_status, test_run_keeps_arguments_and_preload,
          test_run_says_what_cannot_be_accelerated], arms=("fast",))
