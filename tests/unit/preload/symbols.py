#!/usr/bin/env python3
"""What the library shows to the dynamic linker: exactly the symbols of exports.map, and no dependency but libc (libm is part of it); and that no layer
below preload/ calls a libc function that we interpose (it would come back to us): those must say real::x."""
import re
import subprocess
import sys

exports_map, so, layers = sys.argv[1], sys.argv[2], sys.argv[3:]
run = lambda *a: subprocess.run(a, check=True, capture_output=True, text=True).stdout
text = re.sub(r"#.*", "", open(exports_map).read())
wanted = set(re.findall(r"(\w+);", text.split("global:")[1].split("local:")[0]))
failed = []

shown = {line.split()[-1].split("@")[0] for line in run("nm", "-D", "--defined-only", so).splitlines() if line}
if shown != wanted:
    failed.append(f"exported but not listed: {sorted(shown - wanted)}; listed but not exported: {sorted(wanted - shown)}")

needed = set(re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-dW", so)))
if not needed <= {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}:
    failed.append(f"needs more than glibc: {sorted(needed)}")

# syscall, read and write on the library's own descriptors come back to us and go straight on to libc; _exit and abort are ends, not sockets.
harmless = {"syscall", "_exit", "abort", "read", "write"}
for lib in layers:
    try:
        out = run("nm", "-uA", lib)
    except subprocess.CalledProcessError:
        continue
    for line in out.splitlines():
        name = line.split()[-1]
        if name in wanted - harmless:
            failed.append(f"{line.split()[0]} calls {name}, which is ours")

print("\n".join(failed) or "ok")
sys.exit(1 if failed else 0)
