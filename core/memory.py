"""How much memory a process may use, and refusing what asks for more before it is allocated.

Sizes come from files and settings: an absurd one must not be found out by the system killing the process.
"""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import UserError
from core.sizes import size_in_words

__all__ = ["bounded_memory", "machine_memory", "require_memory"]

CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

STATM = Path("/proc/self/statm")


def machine_memory() -> int:
    """Bytes of the machine, of the container, or left to the process (`ulimit -v`), whichever has the least."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CGROUPS:
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return min([*limits, *([max(soft - _taken(), 0)] if soft != resource.RLIM_INFINITY else [])])


def _taken() -> int:
    """Bytes of the process's address space."""
    return int(STATM.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if STATM.exists() else 0


def require_memory(size: int, what: str, remedy: str) -> None:
    """`UserError` if `what` takes more bytes than there is memory; it ends in the `remedy`."""
    if size > (most := machine_memory()):
        raise UserError(f"{what} takes {size_in_words(size)} of memory, and {size_in_words(most)} are there: {remedy}")


@contextmanager
def bounded_memory(extra: int) -> Iterator[None]:
    """Meanwhile the process cannot take much more than `extra` bytes beyond what it has: allocations fail instead.

    For libraries that allocate what a file's header asks for. The bound is that of the address space, for all threads.
    """
    if not STATM.exists():  # another system than Linux
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = _taken() + extra
    bounds = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([wanted, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
