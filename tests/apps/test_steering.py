#!/usr/bin/python3
# T08, receive flow steering: a connection follows the thread that uses it, and not a byte goes wrong on the way.
import os
import lib
from lib import check


def test_T08_connection_follows_the_thread_that_uses_it(arm):
    p = lib.run(arm, [lib.PYTHON, os.path.join(lib.HERE, "handover.py")])
    check(p.out().strip() == "12000", f"{p.out().strip()} of 12000 messages came back right")
    if arm == "fast":
        check(p.stats().get("demoted", 0) >= 2, f"the connection never moved: {p.stats()}")
        p.check_fast(tx=500000, rx=500000)


lib.main([test_T08_connection_follows_the_thread_that_uses_it])
