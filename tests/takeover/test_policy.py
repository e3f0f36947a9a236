#!/usr/bin/python3
# The host's rules hold for a connection that has been taken over: a rule that comes during a transfer stops it as it stops the kernel's, and when
# the rule goes the transfer goes on.
import time
from net import Net, check, lib, main, no_reset, pair, ping_pong, until, warm


def drop(hook, match):
    lib.need("nft")
    net = Net()
    before = {x: net.counters(x) for x in "ab"}
    a, b = pair(net)
    warm(a, b)
    port = b.do("s.getpeername()[1]")
    for p, seeds in ((a, "1, 2"), (b, "2, 1")):
        p.do(f"d = Duplex(s, {seeds})")
    until("both directions flow", lambda: min(a.do("[d.sent, d.got]")) > 1 << 20)
    check(a.fast(), f"the connection was not fast before the rule: {a.rows()}")
    net.nft("a", f"table ip t {{\n chain c {{\n type filter hook {hook} priority 0;\n tcp {match.format(port=port)} drop\n}}\n}}\n")
    until("the connection is the kernel's", lambda: not a.fast(), 5)
    reason = [r["reason"] for r in a.rows() if r["state"] != "LISTEN"]
    check(any("nftables" in r for r in reason), f"the reason is {reason}")
    time.sleep(0.1)
    stopped = b.do("d.got") if hook == "output" else a.do("d.got")
    time.sleep(0.5)
    now = b.do("d.got") if hook == "output" else a.do("d.got")
    check(now == stopped, f"{now - stopped} bytes passed a rule that drops them ({hook})")
    net.nft("a", "flush ruleset\n")
    until("the transfer goes on without the rule", lambda: (b if hook == "output" else a).do("d.got") > now + (1 << 20), 20)
    a.do("d.stop = True")
    b.do("d.stop = True")
    sums = [p.do("d.join(20)", 30) for p in (a, b)]
    check(sums[0] == sums[1][::-1], f"sent and received: {sums}")
    a.end(), b.end()
    for x in "ab":
        no_reset(before[x], net.counters(x), f"kernel of {x}")


def test_a_drop_rule_in_output_stops_the_transfer(): drop("output", "sport {port}")
def test_a_drop_rule_in_input_stops_the_transfer(): drop("input", "dport {port}")


def test_a_rule_that_is_there_before_keeps_the_connection_in_the_kernel():
    lib.need("nft")
    net = Net()
    net.nft("a", "table ip t {\n chain c {\n type filter hook output priority 0;\n meta l4proto tcp limit rate 1000000/second counter\n}\n}\n")
    a, b = pair(net)

    def refused():
        ping_pong(a, b, 100)
        return any("nftables" in r["reason"] for r in a.rows())
    until("the rule is the reason", refused)
    check(not a.fast(), "fast in spite of a rule")
    a.end(), b.end()
    net.nft("a", "flush ruleset\ntable ip t {\n chain c {\n type filter hook output priority 0;\n tcp dport 9 drop\n}\n}\n")
    a2, b2 = pair(net)                            # a rule that does not concern it does no harm
    warm(a2, b2)
    a2.end(), b2.end()


main([test_a_drop_rule_in_output_stops_the_transfer, test_a_drop_rule_in_input_stops_the_transfer,
      test_a_rule_that_is_there_before_keeps_the_connection_in_the_kernel])
