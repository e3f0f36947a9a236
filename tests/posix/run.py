#!/usr/bin/env python3
"""Runs one posix program on the kernel and on icepath and compares what it printed.

    run.py PROGRAM --arm kernel
    run.py PROGRAM --arm fast --lib libicepath.so [--promote eager|lazy] [--expect-fast BYTES] [-- case...]

The kernel is the oracle. Arm kernel runs the program twice without icepath: it must end well and say the same twice. Arm fast runs it once without and
once with icepath and shows the difference of the two texts. --expect-fast says how many bytes must have gone the fast way at least, by the line that
ICEPATH_STATS=1 prints; without that a program that silently stayed in the kernel would pass. A failed comparison is not repeated: an unstable answer is a
failure too. Random programs are compared by diff.py."""
import argparse
import difflib
import os
import re
import signal
import subprocess
import sys

STATS = re.compile(r"^icepath: pid=\d+ .*\btx_bytes=(\d+)", re.M)


class Failed(Exception):
    pass


def run(program, cases, env, timeout):
    proc = subprocess.Popen([program, *cases], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            start_new_session=True)
    try:
        out, err = proc.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(proc.pid, signal.SIGKILL)
        out, err = proc.communicate()
        raise Failed(f"no end after {timeout:g} s; printed so far:\n{tail(out)}\nstderr:\n{tail(err)}") from None
    finally:
        try:
            os.killpg(proc.pid, signal.SIGKILL)  # children that were left behind
        except ProcessLookupError:
            pass
    return proc.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def tail(data, lines=25):
    return "\n".join(data.decode(errors="replace").splitlines()[-lines:])


def preload(lib):
    """What LD_PRELOAD must say for a library: one built with AddressSanitizer needs the runtime beside it (preload/asan.cpp)."""
    needs = subprocess.run(["readelf", "-d", lib], capture_output=True, text=True, check=True).stdout
    runtime = re.search(r"\(NEEDED\).*\[(libasan\.so\.\d+)\]", needs)
    return f"{lib}:{runtime[1]}" if runtime else lib


def environment(lib=None, promote=None):
    env = {k: v for k, v in os.environ.items() if not k.startswith("ICEPATH_") and k != "LD_PRELOAD"}
    if "ICEPATH_RUNTIME_DIR" in os.environ:
        env["ICEPATH_RUNTIME_DIR"] = os.environ["ICEPATH_RUNTIME_DIR"]
    env["LC_ALL"] = "C"
    if lib:
        env.update(LD_PRELOAD=preload(lib), ICEPATH_PROMOTE=promote, ICEPATH_STATS="1")
    return env


def good(arm, program, cases, env, timeout):
    try:
        code, out, err = run(program, cases, env, timeout)
    except Failed as e:
        raise Failed(f"{arm}: {e}") from None
    if code == 77:
        print(out, err)
        sys.exit(77)
    if code != 0:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        raise Failed(f"{arm}: {how}\n{tail(out.encode())}\nstderr:\n{tail(err.encode())}")
    return out, err


def compare(name_a, a, name_b, b, err):
    if a == b:
        return
    diff = difflib.unified_diff(a.splitlines(), b.splitlines(), name_a, name_b, lineterm="", n=6)
    note = f"\nstderr of {name_b}:\n{tail(err.encode())}" if err.strip() else ""
    raise Failed("\n".join(diff) + note)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("program")
    p.add_argument("--arm", choices=("kernel", "fast"), default="kernel")
    p.add_argument("--lib")
    p.add_argument("--promote", choices=("eager", "lazy"), default="eager")
    p.add_argument("--expect-fast", type=int, default=0, metavar="BYTES")
    p.add_argument("--timeout", type=float, default=50.0)
    p.add_argument("cases", nargs="*")
    o = p.parse_args()
    try:
        want, _ = good("kernel", o.program, o.cases, environment(), o.timeout)
        if o.arm == "kernel":
            again, err = good("kernel, second run", o.program, o.cases, environment(), o.timeout)
            compare("kernel", want, "kernel, second run", again, err)
            return 0
        name = f"icepath ({o.promote})"
        got, err = good(name, o.program, o.cases, environment(o.lib, o.promote), o.timeout)
        compare("kernel", want, name, got, err)
        moved = [int(m) for m in STATS.findall(err)]
        if not moved:
            raise Failed(f"{name}: no statistics line on stderr, the library was not active\n{tail(err.encode())}")
        if sum(moved) < o.expect_fast:
            raise Failed(f"{name}: only {sum(moved)} bytes went the fast way, at least {o.expect_fast} were expected\n{tail(err.encode())}")
    except Failed as e:
        print(f"FAILED {os.path.basename(o.program)}: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
