#!/usr/bin/env python3
"""The library's beginning and end in a process: ICEPATH_REQUIRE, ICEPATH_STATS, every way out."""
import os
import subprocess
import sys

so, host = sys.argv[1], sys.argv[2]
failed = []


def run(cmd, **env):
    return subprocess.run(cmd, env={**os.environ, "LD_PRELOAD": so, **env}, capture_output=True, text=True, timeout=60)


def check(what, ok, got):
    if not ok:
        failed.append(f"{what}: {got}")


r = run(["/bin/true"])
check("a quiet start", r.returncode == 0 and r.stderr == "", r)
r = run(["/bin/true"], FAKE_INIT="fail")
check("set-up failure means one line and the kernel path", r.returncode == 0 and r.stderr.count("\n") == 1 and "the test says so" in r.stderr, r)
r = run(["/bin/echo", "hi"], FAKE_INIT="fail", ICEPATH_REQUIRE="1")
check("REQUIRE ends the program with status 1 and says why", r.returncode == 1 and r.stdout == "" and "the test says so" in r.stderr, r)
r = run(["/bin/echo", "hi"], ICEPATH_REQUIRE="1")
check("REQUIRE is content with a working set-up", r.returncode == 0 and r.stdout == "hi\n", r)
for way in ("return", "exit", "_exit", "_Exit", "quick_exit", "syscall", "abort"):
    r = run([host, "end", way], ICEPATH_STATS="1")
    check(f"{way}: one statistics line, the end told once", r.stderr.count("fake: ") == 1 and "exit=1 " in r.stderr and "close=1" in r.stderr, r)
    check(f"{way}: status", r.returncode == (-6 if way == "abort" else 0), r)
r = run([host, "end", "daemon"], ICEPATH_STATS="1")
check("daemon: parent and child both end properly", r.stderr.count("fake: ") == 2, r)
r = run(["/bin/true"], ICEPATH_STATS="0")
check("no statistics unless asked for", r.stderr == "", r)

print("\n".join(failed) or "ok")
sys.exit(1 if failed else 0)
