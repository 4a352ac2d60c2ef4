"""How many threads work on what: those that meet after each short step wait for each other, and where other programs
run as well that takes most of the time.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

from core.models.maps.vectors import row_blocks
from core.parallel.threads import one_thread

__all__ = ["in_shares", "threads_for_tables"]

Result = TypeVar("Result")
SMALL_TABLE = 1024
"""Up to this size one thread decomposes a table in a second; two on busy processors were seen to need ten times as
long."""


def in_shares(count: int, work: Callable[[list[slice]], Result]) -> list[Result]:
    """The results of `work` on shares of the blocks over `count` rows, one for each of as many threads as torch uses.

    Blocks are dealt in turn. Meanwhile BLAS and torch use one thread alone in each of them.
    """
    num_threads = torch.get_num_threads()
    blocks = list(row_blocks(count))
    shares = [blocks[thread::num_threads] for thread in range(num_threads)]
    with one_thread(), _one_blas_thread(), ThreadPoolExecutor(num_threads) as threads:
        return list(threads.map(work, shares))


@contextmanager
def threads_for_tables(size: int) -> Iterator[None]:
    """Meanwhile NumPy decomposes tables of up to this size (D, D) with as many threads as it pays."""
    with _one_blas_thread() if size <= SMALL_TABLE else nullcontext():
        yield


def _one_blas_thread() -> AbstractContextManager[object]:
    return _libraries(len(sys.modules)).limit(limits=1, user_api="blas")


@lru_cache(maxsize=1)
def _libraries(num_modules: int) -> ThreadpoolController:
    """Those with threads that are loaded. Looking for them takes milliseconds: not again before modules came in."""
    return ThreadpoolController()
