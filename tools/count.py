# Counts single tests in meson's testlog.json: a gtest or TAP program counts as many times as it has test cases. Skips inside a program
# are counted too: its exit status hides them. A program that ends badly without naming a failed case is one failure.
# Usage: count.py PREFIX testlog.json; prints `passed|failed|skipped NAME` lines.
import json
import re
import sys

GTEST = re.compile(r"^\[ +(OK|FAILED|SKIPPED) +\] ([\w./-]+?)(?:, where .*)? \(\d+ ms\)$", re.M)
TAP = re.compile(r"^(ok|not ok)\b[ \t]*\d*[ \t-]*([^#\n]*)(?:#[ \t]*(SKIP|TODO)?.*)?$", re.M)
WORD = {"OK": "passed", "FAILED": "failed", "SKIPPED": "skipped"}


def cases(output):
    if "[==========]" in output:
        return [(WORD[verdict], name) for verdict, name in GTEST.findall(output)]
    if re.search(r"^1\.\.\d+", output, re.M):
        return [("skipped" if directive == "SKIP" else "passed" if verdict == "ok" else "failed", name.strip())
                for verdict, name, directive in TAP.findall(output)]
    return []


def main(prefix, path):
    try:
        with open(path) as f:
            tests = [json.loads(line) for line in f if line.strip()]
    except OSError:
        print(f"failed {prefix}: no results in {path}")
        return
    for t in tests:
        name, result = t["name"], t["result"]
        found = cases(t.get("stdout", ""))
        for verdict, case in found:
            print(f"{verdict} {prefix}: {name}: {case}")
        bad = result in ("FAIL", "TIMEOUT", "INTERRUPT", "ERROR", "UNEXPECTEDPASS")
        if bad and not any(v == "failed" for v, _ in found):
            print(f"failed {prefix}: {name} ({result})")
        elif not found and not bad:
            print(f"{'skipped' if result == 'SKIP' else 'passed'} {prefix}: {name}")


main(*sys.argv[1:])
