# The measuring half of tools/demo, which builds first. Uses the helpers of tests/apps/lib.py: own servers on free ports, killed by pid.
import os
import re
import statistics
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "apps"))
import lib                                                        # noqa: E402

REQUEST = 36                                                      # bytes of one GET request of redis-benchmark
# clients, pipeline, pairs, requests over the kernel, requests over icepath: about a second each
ROWS = ((1, 1, 5, 25000, 120000), (50, 1, 5, 100000, 300000), (50, 16, 2, 600000, 600000))


def measure(arm, clients, pipeline, requests):
    """Requests per second and median latency in ms, on a fresh server."""
    port = lib.free_port()
    server = lib.redis(arm, port)
    lib.run("kernel", ["redis-cli", "-p", port, "set", "key:__rand_int__", "xxx"])
    bench = lib.Program(arm, ["redis-benchmark", "-h", "127.0.0.1", "-p", port, "-t", "get", "-n", requests, "-c", clients,
                              "-P", pipeline, "--csv"])
    rows = None
    if arm == "fast":
        rows = lib.until("icepath ss shows the fast path", lambda: lib.fast_rows(bench.pid) or not bench.alive(), 10)
    bench.wait(60)
    m = re.search(r'^"GET","([\d.]+)","[\d.]+","[\d.]+","([\d.]+)"', bench.out(), re.M)
    lib.check(m, f"redis-benchmark said:\n{bench.out()}{bench.err()}")
    server.stop()
    if arm == "fast":
        bench.check_fast(tx=requests * REQUEST * 9 // 10)         # all but the first few requests, which went by the kernel
        server.check_fast(rx=requests * REQUEST * 9 // 10)
    return float(m[1]), float(m[2]), rows, bench, server


def main():
    proof, rows_seen = [], []
    table = []
    print("\n== redis GET, Debian's redis-server and redis-benchmark, kernel and icepath in turn")
    for clients, pipeline, pairs, n_kernel, n_fast in ROWS:
        rates = {"kernel": [], "fast": []}
        lat = {"kernel": [], "fast": []}
        for _ in range(pairs):
            for arm, n in (("kernel", n_kernel), ("fast", n_fast)):
                rate, p50, rows, bench, server = measure(arm, clients, pipeline, n)
                rates[arm].append(rate)
                lat[arm].append(p50)
                if arm == "fast":
                    rows_seen.append(rows if isinstance(rows, list) else [])
                    proof = [lib.STATS.findall(p.err())[-1:] for p in (bench, server)]
        k, f = (statistics.median(rates[a]) for a in lib.ARMS)
        table.append((f"-c {clients}" + (f" -P {pipeline}" if pipeline > 1 else ""), pairs, k, f, f / k,
                      *(statistics.median(lat[a]) for a in lib.ARMS)))
        print(f"   -c {clients} -P {pipeline}: " + ", ".join(
            f"{a} " + " ".join(f"{r / 1000:.1f}k" for r in rates[a]) for a in lib.ARMS), flush=True)
    print(f"\n{'redis-benchmark -t get':24} {'pairs':>5} {'kernel req/s':>14} {'icepath req/s':>14} {'ratio':>7}"
          f" {'kernel p50 ms':>14} {'icepath p50 ms':>15}")
    for name, pairs, k, f, ratio, lk, lf in table:
        print(f"{name:24} {pairs:>5} {k:>14.0f} {f:>14.0f} {ratio:>6.2f}x {lk:>14.3f} {lf:>15.3f}")
    print("\n== proof that the bytes went by the fast path (last pair)")
    for name, lines in zip(("redis-benchmark", "redis-server   "), proof):
        for line in lines:
            print(f"   {name} {line}")
    shown = max(rows_seen, key=len)
    lib.check(shown, "`icepath ss --json` never showed a fast connection while the benchmark ran")
    r = shown[0]
    print(f"   icepath ss --json, while it ran: {len(shown)} fast, such as pid {r['pid']} {r['local']} -> {r['peer']} "
          f"\"path\": \"{r['path']}\" ({r['reason']})")


try:
    main()
except lib.Failure as e:
    print(f"\ntools/demo: the fast path was not used, or a program failed:\n{e}", file=sys.stderr)
    sys.exit(1)
finally:
    lib.cleanup()
