"""A seccomp filter: the system calls that code does not get, as a program for the kernel
(https://docs.kernel.org/userspace-api/seccomp_filter.html)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

# struct seccomp_data: where the number of the call and the architecture are
NUMBER = 0
ARCHITECTURE = 4

LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K

ALLOW = 0x7FFF0000
KILL = 0x80000000
ERRNO = 0x00050000
EPERM = 1
ENOSYS = 38

X32 = 0x40000000
"""Numbers from here on are the same calls once more, in another form; aarch64 has none."""

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE3 = 435
"""It answers "no such call", so that the C library tries `clone`, which is refused."""

# No process or thread of its own; no memory outside its limits (shared memory, memfd, message
# queues); no sockets; no namespaces and mounts; nothing that looks into other processes; and some
# doors into the kernel that no answer needs. The same number everywhere, or one by machine.
REFUSED = {
    "x86_64": {
        "clone": 56, "fork": 57, "vfork": 58,
        "shmget": 29, "shmat": 30, "shmctl": 31, "semget": 64, "msgget": 68, "mq_open": 240,
        "memfd_create": 319, "socket": 41, "ptrace": 101, "unshare": 272, "setns": 308,
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "personality": 135,
        "process_vm_readv": 310, "process_vm_writev": 311, "open_by_handle_at": 304,
        "add_key": 248, "request_key": 249, "keyctl": 250, "perf_event_open": 298, "bpf": 321,
        "userfaultfd": 323, "kexec_load": 246, "init_module": 175, "finit_module": 313,
    },
    "aarch64": {
        "clone": 220,
        "shmget": 194, "shmat": 196, "shmctl": 195, "semget": 190, "msgget": 186, "mq_open": 180,
        "memfd_create": 279, "socket": 198, "ptrace": 117, "unshare": 97, "setns": 268,
        "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "personality": 92,
        "process_vm_readv": 270, "process_vm_writev": 271, "open_by_handle_at": 265,
        "add_key": 217, "request_key": 218, "keyctl": 219, "perf_event_open": 241, "bpf": 280,
        "userfaultfd": 282, "kexec_load": 104, "init_module": 105, "finit_module": 273,
    },
}  # fmt: skip
NEWER = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "memfd_secret": 447,
}
"""Newer calls have one number on all machines."""


def program(machine: str) -> bytes:
    """Return the filter for a machine of this kind, one of `AUDIT`."""
    return b"".join(_instructions(machine))


def _instructions(machine: str) -> Iterator[bytes]:
    yield _instruction(LOAD, ARCHITECTURE)
    yield from _unless_equal(AUDIT[machine], KILL)
    yield _instruction(LOAD, NUMBER)
    yield _instruction(AT_LEAST, X32, skip_if_not=1)
    yield _instruction(RETURN, KILL)
    yield from _if_equal(CLONE3, ERRNO | ENOSYS)
    for number in (*REFUSED[machine].values(), *NEWER.values()):
        yield from _if_equal(number, ERRNO | EPERM)
    yield _instruction(RETURN, ALLOW)


def _if_equal(value: int, result: int) -> Iterator[bytes]:
    yield _instruction(EQUAL, value, skip_if_not=1)
    yield _instruction(RETURN, result)


def _unless_equal(value: int, result: int) -> Iterator[bytes]:
    yield _instruction(EQUAL, value, skip_if=1)
    yield _instruction(RETURN, result)


def _instruction(
    code: int, value: int, skip_if: int = 0, skip_if_not: int = 0
) -> bytes:
    """A `struct sock_filter`: a jump skips so many instructions."""
    return struct.pack("<HBBI", code, skip_if, skip_if_not, value)
