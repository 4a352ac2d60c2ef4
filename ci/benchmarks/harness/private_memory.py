"""The memory that a step of a benchmark takes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["private_memory"]


@contextmanager
def private_memory() -> Iterator[list[float]]:
    """The most memory of this process, in GiB, that is not of files, beyond what it had before."""

    def used() -> float:
        resident, shared = (int(number) for number in Path("/proc/self/statm").read_text().split()[1:3])
        return (resident - shared) * 4096 / 2**30

    before, peak, done = used(), [0.0], threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], used() - before)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
        peak[0] = max(peak[0], used() - before)
    finally:
        done.set()
        thread.join()
