# BPF programs of two instructions, loaded and attached by bpf(2) itself: the tests of cgroup BPF and tcx need no more. x86-64 and arm64.
import ctypes
import os
import platform
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_NR = {"x86_64": 321, "aarch64": 280}[platform.machine()]
PROG_LOAD, PROG_ATTACH, PROG_DETACH, LINK_CREATE = 5, 8, 9, 28
CGROUP_SKB, SCHED_CLS, SOCK_OPS = 8, 3, 13
INET_INGRESS, INET_EGRESS, CGROUP_SOCK_OPS, TCX_INGRESS, TCX_EGRESS = 0, 1, 3, 46, 47


def bpf(command, attr):
    buf = ctypes.create_string_buffer(attr, len(attr))
    r = _libc.syscall(_NR, command, buf, len(attr))
    if r < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return r


def load(kind, returns, expected=0):
    insns = struct.pack("<BBhi", 0xB7, 0, 0, returns) + struct.pack("<BBhi", 0x95, 0, 0, 0)   # r0 = returns; exit
    code, licence = ctypes.create_string_buffer(insns, len(insns)), ctypes.create_string_buffer(b"Apache-2.0")
    attr = struct.pack("<IIQQIIQII16sII", kind, 2, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0, 0, b"", 0, expected)
    return bpf(PROG_LOAD, attr)


def cgroup_attach(path, kind, where, returns=1):
    """Returns a function that takes it away again."""
    dir_fd, prog = os.open(path, os.O_RDONLY | os.O_DIRECTORY), load(kind, returns, where)
    bpf(PROG_ATTACH, struct.pack("<IIII", dir_fd, prog, where, 0))

    def detach():
        bpf(PROG_DETACH, struct.pack("<IIII", dir_fd, prog, where, 0))
        os.close(dir_fd)
        os.close(prog)
    return detach


def tcx_attach(ifindex, where):
    """In the namespace of the caller. The link lives as long as the descriptor that is returned."""
    return bpf(LINK_CREATE, struct.pack("<IIII", load(SCHED_CLS, -1, where), ifindex, where, 0) + bytes(32))
