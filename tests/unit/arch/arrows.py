#!/usr/bin/env python3
"""The arrows of the house: which layer may include which, and how long a file may be.

preload -> sock -> stack -> tcp/udp -> ip -> neigh -> net; base, wire and skb serve all; drivers include the net_device
contract and what serves all, nothing in src/ below start-up includes a driver. `arrows.py --self-test` checks that
the checker finds what it should.
"""
import pathlib
import re
import sys

SERVE_ALL = {"base", "wire", "skb"}
# A layer may include itself, what serves all, and what is listed here.
MAY_INCLUDE = {
    "base": set(), "wire": set(), "skb": {"net/mib.hpp"},
    "net": set(), "neigh": {"net"}, "ip": {"neigh", "net"},
    "tcp": {"ip", "neigh", "net"}, "udp": {"ip", "neigh", "net"},
    "control": {"tcp", "udp", "ip", "neigh", "net"},
    "stack": {"control", "tcp", "udp", "ip", "neigh", "net", "driver"},
    "sock": {"stack", "control", "tcp", "udp", "ip", "neigh", "net", "driver"},
    "preload": {"sock", "stack", "control", "tcp", "udp", "ip", "neigh", "net"},
    "driver": {"net"},
}
# libc's own functions: for the layers that deal with the kernel, not for those that make packets.
ONLY_FOR = {"base/libc.hpp": {"stack", "sock", "control", "preload"}}
# What serves all is itself in order: base below wire below skb.
SERVES = {"base": set(), "wire": {"base"}, "skb": {"base", "wire"}}
DRIVER_DIRS = {"ice", "e810", "xdp", "dpdk", "driver"}
MAX_LINES = 500
LONG_FILES_ALLOWED = set()  # "src/x/y.cpp": with the reason beside it
SUFFIXES = {".hpp", ".cpp", ".h", ".c"}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def layer_of_file(rel):
    parts = rel.parts
    if parts[0] in ("driver", "preload"):
        return parts[0]
    return parts[1] if parts[0] == "src" and len(parts) > 2 else None


def layer_of_include(inc, rel, root):
    """Layer an include leads to, found as the compiler would; None: not ours."""
    here = (root / rel).parent / inc
    for base in [here] + [root / d / inc for d in ("src", "preload", "driver", ".")]:
        if base.is_file():
            target = base.resolve().relative_to(root.resolve())
            return layer_of_file(target), target
    head = inc.split("/")[0]  # a file that does not exist (yet): by its name
    if head in DRIVER_DIRS:
        return "driver", pathlib.PurePath(inc)
    return (head if head in MAY_INCLUDE else None), pathlib.PurePath(inc)


def allowed(layer, target_layer, target):
    if target_layer is None or target_layer == layer:
        return True
    if layer not in ONLY_FOR.get("/".join(target.parts[-2:]), {layer}):
        return False
    if target_layer in SERVE_ALL:
        return layer not in SERVE_ALL or target_layer in SERVES[layer]
    may = MAY_INCLUDE[layer]
    return target_layer in may or "/".join(target.parts[-2:]) in may


def check(root):
    problems = []
    files = [p for d in ("src", "driver", "preload") if (root / d).is_dir() for p in sorted((root / d).rglob("*"))]
    seen = 0
    for path in files:
        if path.suffix not in SUFFIXES or not path.is_file():
            continue
        seen += 1
        rel = path.relative_to(root)
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) > MAX_LINES and rel.as_posix() not in LONG_FILES_ALLOWED:
            problems.append(f"{rel}: {len(lines)} lines, more than {MAX_LINES}")
        layer = layer_of_file(rel)
        if layer is None:
            continue
        if layer not in MAY_INCLUDE:
            problems.append(f"{rel}: layer '{layer}' has no place in the picture")
            continue
        for no, line in enumerate(lines, 1):
            m = INCLUDE.match(line)
            if not m:
                continue
            target_layer, target = layer_of_include(m.group(1), rel, root)
            if not allowed(layer, target_layer, target):
                problems.append(f"{rel}:{no}: {layer} includes {m.group(1)} ({target_layer}): against the arrows")
    if seen == 0:
        problems.append(f"{root}: no source files found")
    return problems


def self_test():
    import tempfile
    cases = [  # file, text, number of problems
        ("src/net/a.cpp", '#include "ip/ip.hpp"\n', 1),
        ("src/ip/a.cpp", '#include "net/net.hpp"\n#include "neigh/neighbour.hpp"\n#include "base/types.hpp"\n', 0),
        ("src/ip/b.cpp", '#include "tcp/tcp.hpp"\n', 1),
        ("src/tcp/a.cpp", '#include "e810/local_port.hpp"\n', 1),
        ("src/tcp/b.cpp", '#include "driver/e810/local_port.hpp"\n', 1),
        ("src/tcp/c.cpp", '  # include "../sock/socket.hpp"\n', 1),
        ("src/stack/a.cpp", '#include "e810/local_port.hpp"\n', 0),
        ("src/base/a.hpp", '#include "skb/sk_buff.hpp"\n', 1),
        ("src/skb/a.hpp", '#include "net/mib.hpp"\n', 0),
        ("src/skb/b.hpp", '#include "net/net.hpp"\n', 1),
        ("driver/ice/a.cpp", '#include "net/net_device.hpp"\n#include "ice/ring.hpp"\n', 0),
        ("driver/ice/b.cpp", '#include "ip/ip.hpp"\n', 1),
        ("preload/a.cpp", '#include "sock/socket.hpp"\n#include "base/libc.hpp"\n', 0),
        ("src/sock/a.cpp", '#include "base/libc.hpp"\n', 0),
        ("src/sock/b.cpp", '#include "preload/init.hpp"\n', 1),
        ("src/tcp/d.cpp", '#include "base/libc.hpp"\n', 1),
        ("src/net/long.cpp", "//\n" * 501, 1),
        ("src/net/short.cpp", "//\n" * 500, 0),
        ("src/odd/a.cpp", "", 1),
    ]
    bad = 0
    for name, text, want in cases:
        with tempfile.TemporaryDirectory() as d:
            root = pathlib.Path(d)
            (root / name).parent.mkdir(parents=True)
            (root / name).write_text(text)
            for real in ("src/sock/socket.hpp", "src/base/libc.hpp"):
                (root / real).parent.mkdir(parents=True, exist_ok=True)
                (root / real).write_text("")
            got = check(root)
            if len(got) != want:
                bad += 1
                print(f"self-test {name}: expected {want} problems, found {got}")
    return bad


def main():
    if sys.argv[1:] == ["--self-test"]:
        return 1 if self_test() else 0
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[3])
    problems = check(root)
    for p in problems:
        print(p)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
