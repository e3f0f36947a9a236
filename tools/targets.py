# The ninja targets that the tests of some suites need, one a line. Usage: targets.py BUILDDIR SUITE...
import json
import os
import subprocess
import sys


def ask(what, directory):
    return json.loads(subprocess.run(["meson", "introspect", what, directory], check=True, capture_output=True, text=True).stdout)


def main(directory, *suites):
    files = {t["id"]: t["filename"] for t in ask("--targets", directory)}
    for test in ask("--tests", directory):
        if any(s.split(":")[-1] in suites for s in test["suite"]):
            for target in test["depends"]:
                for name in files[target]:
                    yield os.path.relpath(name, os.path.realpath(directory) if name.startswith(os.path.realpath(directory)) else directory)


print("\n".join(sorted(set(main(*sys.argv[1:])))))
