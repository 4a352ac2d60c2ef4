"""The memory that a step of a benchmark takes."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["private_memory"]

STATM = Path("/proc/self/statm")
EVERY = 0.02
"""Seconds between two looks."""


@contextmanager
def private_memory() -> Iterator[list[float]]:
    """The most memory of this process, in GiB, that is not of files, beyond what it had before."""

    def used() -> float:
        resident, shared = (int(number) for number in STATM.read_text().split()[1:3])
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE") / 2**30

    def look() -> None:
        peak[0] = max(peak[0], used() - before)

    def watch() -> None:
        while not done.wait(EVERY):
            look()

    before, peak, done = used(), [0.0], threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
        look()
    finally:
        done.set()
        thread.join()
