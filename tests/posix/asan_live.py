#!/usr/bin/env python3
"""AddressSanitizer really watches the library: a use after free in it is reported, and ends the program; without the library it runs through.

    asan_live.py PROGRAM libicepath.so"""
import sys

import run as posix

program, lib = sys.argv[1:]
code, out, err = posix.run(program, [], posix.environment(), 20)
assert (code, out) == (0, "not seen\n"), f"alone: {code} {out} {err}"
code, out, err = posix.run(program, [], posix.environment(lib, "eager"), 20)
assert code < 0 and "AddressSanitizer: heap-use-after-free" in err and "call_signal.cpp" in err, f"with the library: {code} {out} {err}"
