"""The system calls with which a process changes a folder, one by one, and stopping it at any of them.

A filter of seccomp(2) hands each such call of a process, whatever made it (Python, SQLite, PyTorch's C++, Arrow), to
its supervisor before it is carried out. The supervisor lets it go on, or kills the process in its place. Linux 5.0 or
newer, x86-64 or AArch64; no privileges, no compiler, 40 microseconds a call.

What is seen: files made or emptied by open, writes, renames, removals, links, new folders, changes of a file's size,
and flushes (fsync, msync, sync). What is written through a memory map is no call: it is seen at the msync that follows.
"""

import ctypes
import fcntl
import os
import platform
import re
import select
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path

__all__ = ["Call", "run_supervised", "supported"]

PATHS, DESCRIPTOR, MAPPING, ALL = "paths", "descriptor", "mapping", "all"
CALLS = {
    # name: number on x86-64 (None: there is none) and AArch64, what it acts on, and its arguments:
    # of a path (descriptor of the folder or None for the present one, path)
    "creat": (85, None, PATHS, [(None, 0)]),
    "open": (2, None, PATHS, [(None, 0)]),
    "openat": (257, 56, PATHS, [(0, 1)]),
    "mkdir": (83, None, PATHS, [(None, 0)]),
    "mkdirat": (258, 34, PATHS, [(0, 1)]),
    "rmdir": (84, None, PATHS, [(None, 0)]),
    "unlink": (87, None, PATHS, [(None, 0)]),
    "unlinkat": (263, 35, PATHS, [(0, 1)]),
    "rename": (82, None, PATHS, [(None, 0), (None, 1)]),
    "renameat": (264, 38, PATHS, [(0, 1), (2, 3)]),
    "renameat2": (316, 276, PATHS, [(0, 1), (2, 3)]),
    "link": (86, None, PATHS, [(None, 1)]),
    "linkat": (265, 37, PATHS, [(2, 3)]),
    "symlink": (88, None, PATHS, [(None, 1)]),
    "symlinkat": (266, 36, PATHS, [(1, 2)]),
    "truncate": (76, 45, PATHS, [(None, 0)]),
    "write": (1, 64, DESCRIPTOR, 0),
    "pwrite64": (18, 68, DESCRIPTOR, 0),
    "writev": (20, 66, DESCRIPTOR, 0),
    "pwritev": (296, 70, DESCRIPTOR, 0),
    "sendfile": (40, 71, DESCRIPTOR, 0),
    "copy_file_range": (326, 285, DESCRIPTOR, 2),
    "ftruncate": (77, 46, DESCRIPTOR, 0),
    "fallocate": (285, 47, DESCRIPTOR, 0),
    "fsync": (74, 82, DESCRIPTOR, 0),
    "fdatasync": (75, 83, DESCRIPTOR, 0),
    "syncfs": (306, 267, DESCRIPTOR, 0),
    "msync": (26, 227, MAPPING, 0),
    "sync": (162, 81, ALL, None),
}
COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine())
NAMES = {} if COLUMN is None else {values[COLUMN]: name for name, values in CALLS.items() if values[COLUMN] is not None}
SECCOMP = (317, 277)
FLAGS = {"open": 1, "openat": 2}
"""Of calls that only count if a file is made or emptied: their argument with the flags."""
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000
RECEIVE, ANSWER, GO_ON = 0xC0502100, 0xC0182101, 1
NO_NEW_PRIVILEGES, SET_FILTER, NEW_LISTENER = 38, 1, 1 << 3
SECONDS = 120


@dataclass(frozen=True)
class Call:
    """A system call that is about to change something in the folder."""

    name: str
    paths: tuple[str, ...]
    """What it acts on, absolute; empty for sync, which acts on everything."""

    def __str__(self) -> str:
        return " ".join((self.name, *map(os.path.basename, self.paths)))


def supported() -> bool:
    """Whether this machine has what is needed here."""
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    return COLUMN is not None and actions.exists() and "user_notif" in actions.read_text().split()


def run_supervised(
    context: BaseContext, folder: Path, work: Callable[..., None], arguments: tuple, on_call: Callable[[Call], bool]
) -> int:
    """Run `work(*arguments)` in a new process; `on_call` is asked before each call that changes `folder`.

    If it answers False, the process is killed (SIGKILL) before the call. Returns the exit status. Processes that the
    process starts are supervised too. `TimeoutError` after two minutes without a call or an end.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = context.Process(target=_supervised, args=(theirs, work, arguments))
        process.start()
        theirs.close()
        _, listeners, _, _ = socket.recv_fds(ours, 1, 1)
        if not listeners:
            process.join()
            raise OSError(f"the process could not be supervised (status {process.exitcode})")
        try:
            _supervise(listeners[0], process.sentinel, process.pid, str(folder), on_call)
        finally:
            process.kill()
            process.join()
            os.close(listeners[0])
    return process.exitcode


def _supervised(to_supervisor: socket.socket, work: Callable[..., None], arguments: tuple) -> None:
    """In the new process."""
    instructions = _filter()
    buffer = ctypes.create_string_buffer(instructions)
    program = struct.pack("@HP", len(instructions) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    listener = libc.syscall(SECCOMP[COLUMN], SET_FILTER, NEW_LISTENER, program)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    socket.send_fds(to_supervisor, [b"."], [listener])  # by sendmsg, which the filter lets pass
    os.close(listener)
    to_supervisor.close()
    work(*arguments)


def _filter() -> bytes:
    """The program of the filter: the calls of CALLS are handed over, those of FLAGS if they make or empty a file."""
    made_or_emptied = os.O_CREAT | os.O_TRUNC
    lines = [(LOAD, 0, 0, 0)]
    for number, name in NAMES.items():
        if name in FLAGS:
            at = 16 + 8 * FLAGS[name]
            lines += [(EQUAL, 0, 4, number), (LOAD, 0, 0, at), (ANY_BIT, 0, 1, made_or_emptied)]
            lines += [(RETURN, 0, 0, NOTIFY), (RETURN, 0, 0, ALLOW)]
        else:
            lines += [(EQUAL, 0, 1, number), (RETURN, 0, 0, NOTIFY)]
    lines.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _supervise(listener: int, end: int, process: int, folder: str, on_call: Callable[[Call], bool]) -> None:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(end, select.POLLIN)
    while True:
        ready = dict(poll.poll(1000 * SECONDS))
        if not ready:
            raise TimeoutError(f"no call and no end within {SECONDS} s")
        if not ready.get(listener, 0) & select.POLLIN:
            return
        message = bytearray(80)
        try:
            fcntl.ioctl(listener, RECEIVE, message)
            (identity, thread), (number,) = struct.unpack_from("QI", message), struct.unpack_from("i", message, 16)
            call = _decoded(thread, NAMES[number], struct.unpack_from("6Q", message, 32), folder)
            if call is not None and not on_call(call):
                os.kill(process, signal.SIGKILL)
                return
            fcntl.ioctl(listener, ANSWER, bytearray(struct.pack("QqiI", identity, 0, 0, GO_ON)))
        except FileNotFoundError:  # the thread has ended
            continue


def _decoded(thread: int, name: str, arguments: tuple[int, ...], folder: str) -> Call | None:
    """The call, None if it does not change the folder."""
    _, _, kind, places = CALLS[name]
    if kind == ALL:
        return Call(name, ())
    if kind == PATHS:
        paths = [_path(thread, None if at is None else arguments[at], arguments[text]) for at, text in places]
    elif kind == DESCRIPTOR:
        paths = [_link(f"/proc/{thread}/fd/{arguments[places]}")]
    else:
        paths = [_mapped_file(thread, arguments[places])]
    if not any(path == folder or path.startswith(folder + "/") for path in paths):
        return None
    return Call(name, tuple(paths))


def _path(thread: int, descriptor: int | None, address: int) -> str:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        text = b""
        while b"\0" not in text and len(text) < 4096:  # a page at a time: the next may not be there
            text += memory.read(min(256, 4096 - (address + len(text)) % 4096))
    name = os.fsdecode(text.partition(b"\0")[0])
    here = descriptor is None or ctypes.c_int(descriptor & 0xFFFFFFFF).value == -100
    start = _link(f"/proc/{thread}/cwd" if here else f"/proc/{thread}/fd/{descriptor}")
    return os.path.normpath(os.path.join(start, name))


def _mapped_file(thread: int, address: int) -> str:
    with open(f"/proc/{thread}/maps") as lines:
        for line in lines:
            if found := re.match(r"(\w+)-(\w+) \S+ \S+ \S+ \d+ *(/.*)", line):
                if int(found[1], 16) <= address < int(found[2], 16):
                    return found[3]
    return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
