#!/usr/bin/env python3
"""Random programs of diff_epoll on the kernel and on icepath: every seed's text must be the same.

    diff.py PROGRAM [--arm kernel|fast] [--lib libicepath.so] [--promote eager|lazy] [--cold] [--seeds FROM-TO] [--jobs N]
    diff.py PROGRAM --lib libicepath.so --seeds 4711 --steps 3,17-20        replays a part of one program, with its text

Arm kernel compares two runs of the kernel with each other; a difference is a failure of the program. ICEPATH_DIFF_SEEDS=FROM-TO in the environment
goes before --seeds: the long mode for nights is ICEPATH_DIFF_SEEDS=1-1000000, and under meson --timeout-multiplier 0 with it. --run-timeout is for
one process of some seeds. A seed that fails is shown with its difference, with the call that replays it, and with the fewest of its steps that still
differ (--no-minimise leaves that out). A failing seed is not tried again in the hope of a better answer. It counts as the kernel's own, and not as a
failure, only when the kernel is shown to give icepath's very answer too, within KERNEL_AGAIN more runs; more than one such seed in 500 is a failure
of the program all the same."""
import argparse
import concurrent.futures
import difflib
import os
import re
import sys
import threading
import time

import run as posix

KERNEL_AGAIN = 40   # runs of the kernel on a seed that differs
SHOWN = 5           # failing seeds that are shown and minimised
CHUNK = 20          # seeds of one process
STEPS = 100         # of one program (all_steps in diff_epoll.cpp)


class Seed:
    """What became of one that differs."""

    def __init__(self, number, want, got, kernels):
        self.number, self.want, self.got, self.kernels = number, want, got, kernels


class Bench:
    def __init__(self, o):
        self.o = o
        self.kernel_env = posix.environment()
        self.fast_env = posix.environment(o.lib, o.promote) if o.arm == "fast" else self.kernel_env
        self.lock = threading.Lock()
        self.moved, self.stop = 0, False

    def text(self, env, first, count, steps=None):
        args = [str(first), str(count), steps or f"0-{STEPS - 1}"] + (["cold"] if self.o.cold else [])
        name = "icepath" if env is not self.kernel_env else "kernel"
        out, err = posix.good(f"{name}, seeds {first}-{first + count - 1}", self.o.program, args, env, self.o.run_timeout)
        if env is not self.kernel_env:
            moved = [int(m) for m in posix.STATS.findall(err)]
            if not moved:
                raise posix.Failed(f"no statistics line on stderr, the library was not active\n{posix.tail(err.encode())}")
            with self.lock:
                self.moved += sum(moved)
        return out

    def kernel(self, *a):
        return self.text(self.kernel_env, *a)

    def fast(self, *a):
        return self.text(self.fast_env, *a)

    def chunk(self, first, count):
        """The seeds of one process that differ."""
        if self.stop:
            return None
        want, got = sections(self.kernel(first, count)), sections(self.fast(first, count))
        if want.keys() != got.keys() or len(want) != count:
            raise posix.Failed(f"seeds {first}-{first + count - 1}: {len(want)} programs on the kernel, {len(got)} on the other arm")
        bad = []
        for n in want:
            if want[n] == got[n]:
                continue
            kernels = {want[n]}
            for _ in range(KERNEL_AGAIN if self.o.arm == "fast" else 0):
                kernels.add(sections(self.kernel(n, 1))[n])
            bad.append(Seed(n, want[n], got[n], kernels))
        return bad

    def differs(self, seed, steps, tries):
        """Some try differs from all that the kernel says to these steps."""
        listed = step_list(steps)
        want = {self.kernel(seed, 1, listed) for _ in range(3)}
        return len(want) == 1 and any(self.fast(seed, 1, listed) not in want for _ in range(tries))

    def minimise(self, seed, seconds=60):
        """The fewest steps of the program that still differ: greedy, in pieces that get smaller."""
        steps, end = list(range(STEPS)), time.monotonic() + seconds
        tries = 1 if all(self.differs(seed, steps, 1) for _ in range(3)) else 8
        if tries > 1 and not self.differs(seed, steps, 3 * tries):
            return None, tries
        size = STEPS // 2
        while size >= 1 and time.monotonic() < end:
            at, shrunk = len(steps) - size, False
            while at > -size and time.monotonic() < end:
                rest = steps[:max(at, 0)] + steps[max(at, 0) + size:]
                if rest and len(rest) < len(steps) and self.differs(seed, rest, tries):
                    steps, shrunk = rest, True
                at -= size
            if not (shrunk and size == 1):
                size //= 2
        return steps, tries


def sections(text):
    """By seed."""
    parts = re.split(r"(?m)^== seed (\d+)\n", text)
    return {int(n): t for n, t in zip(parts[1::2], parts[2::2])}


def step_list(steps):
    out = []
    for s in steps:
        if out and out[-1][1] == s - 1:
            out[-1][1] = s
        else:
            out.append([s, s])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in out)


def diff(a, b, name_b):
    return "\n".join(difflib.unified_diff(a.splitlines(), b.splitlines(), "kernel", name_b, lineterm="", n=8))


def seed_range(text):
    m = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(m[1]), int(m[2] or m[1])) if m else (0, 0)
    if not 1 <= first <= last:
        raise argparse.ArgumentTypeError(f"{text}: seeds are FROM-TO, from 1")
    return first, last


def show(b, s):
    o = b.o
    print(f"\nFAILED seed {s.number}: {len(s.kernels)} kind(s) of answer in {KERNEL_AGAIN + 1} kernel runs, none of them this", file=sys.stderr)
    print(diff(s.want, s.got, f"icepath ({o.promote})" if o.arm == "fast" else "kernel, second run"), file=sys.stderr)
    again = f"{sys.argv[0]} {o.program} --arm {o.arm}" + (f" --lib {o.lib} --promote {o.promote}" if o.arm == "fast" else "") + f" --seeds {s.number}"
    again += " --cold" if o.cold else ""
    print(f"again: {again}", file=sys.stderr)
    if o.minimise and o.arm == "fast":
        steps, tries = b.minimise(s.number)
        if not steps:
            print("alone it did not differ again: load or chance is part of it", file=sys.stderr)
            return
        print(f"fewest steps: {again} --steps {step_list(steps)}" + ("" if tries == 1 else f" (not every time: one of {tries} tries)"), file=sys.stderr)
        want = b.kernel(s.number, 1, step_list(steps))
        for _ in range(5 * tries):
            got = b.fast(s.number, 1, step_list(steps))
            if got != want:
                print(diff(want, got, "icepath"), file=sys.stderr)
                break


def all_seeds(b, first, last):
    o, own, failed, done, began = b.o, [], [], 0, time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(o.jobs) as pool:
        parts = [pool.submit(b.chunk, f, min(CHUNK, last - f + 1)) for f in range(first, last + 1, CHUNK)]
        try:
            for p in concurrent.futures.as_completed(parts):
                bad = p.result()
                if bad is None:
                    continue
                done += 1
                for s in bad:
                    (own if o.arm == "fast" and s.got in s.kernels else failed).append(s)
                    if s in failed and len(failed) <= SHOWN:
                        show(b, s)
                if len(failed) >= SHOWN and not o.keep_going:
                    b.stop = True
                if o.verbose and done % 50 == 0:
                    print(f"{done * CHUNK} seeds, {len(failed)} failed, {time.monotonic() - began:.0f} s", flush=True)
        finally:
            b.stop = True
    n = min(done * CHUNK, last - first + 1)
    print(f"{n} seeds in {time.monotonic() - began:.1f} s: {len(failed)} failed, {len(own)} differ as the kernel does from itself"
          + (f", {b.moved} bytes by the fast way" if o.arm == "fast" else ""))
    if failed:
        print("failed: " + " ".join(str(s.number) for s in sorted(failed, key=lambda s: s.number)), file=sys.stderr)
    if len(own) * 500 > max(n, 500):
        raise posix.Failed(f"too many seeds that the kernel answers in several ways: {' '.join(str(s.number) for s in own)}")
    if o.arm == "fast" and b.moved < o.expect_fast:
        raise posix.Failed(f"only {b.moved} bytes went the fast way, at least {o.expect_fast} were expected")
    return 1 if failed else 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("program")
    p.add_argument("--arm", choices=("kernel", "fast"), default="fast")
    p.add_argument("--lib")
    p.add_argument("--promote", choices=("eager", "lazy"), default="eager")
    p.add_argument("--seeds", type=seed_range, default=(1, 1000), metavar="FROM-TO")
    p.add_argument("--steps", help="only these steps of one seed; prints the texts")
    p.add_argument("--cold", action="store_true", help="promotions in the midst of the programs")
    p.add_argument("--jobs", type=int, default=4)
    p.add_argument("--expect-fast", type=int, default=0, metavar="BYTES")
    p.add_argument("--run-timeout", type=float, default=60.0, help="seconds for one process")
    p.add_argument("--keep-going", action="store_true", help=f"also after {SHOWN} failed seeds")
    p.add_argument("--no-minimise", dest="minimise", action="store_false")
    p.add_argument("--verbose", action="store_true")
    o = p.parse_args()
    if o.arm == "fast" and not o.lib:
        p.error("--arm fast needs --lib")
    if "ICEPATH_DIFF_SEEDS" in os.environ:
        try:
            o.seeds = seed_range(os.environ["ICEPATH_DIFF_SEEDS"])
        except argparse.ArgumentTypeError as e:
            p.error(f"ICEPATH_DIFF_SEEDS: {e}")
    b = Bench(o)
    try:
        if o.steps:
            want, got = b.kernel(o.seeds[0], 1, o.steps), b.fast(o.seeds[0], 1, o.steps)
            print(want)
            print("no difference" if want == got else diff(want, got, "other arm"))
            return want != got
        return all_seeds(b, *o.seeds)
    except posix.Failed as e:
        print(f"FAILED {os.path.basename(o.program)}: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
