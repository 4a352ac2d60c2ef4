"""Threads that each take blocks of rows through all steps of some work, whose single steps are too short to share."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from core.models.maps.vectors import row_blocks

__all__ = ["in_shares"]

Result = TypeVar("Result")


def in_shares(count: int, work: Callable[[list[slice]], Result]) -> list[Result]:
    """The results of `work` on shares of the blocks over `count` rows, one for each of as many threads as torch uses.

    Blocks are dealt in turn. Meanwhile BLAS and torch use one thread alone in each of them: threads that meet after
    each step spend most of their time waiting wherever other programs run as well.
    """
    num_threads = torch.get_num_threads()
    blocks = list(row_blocks(count))
    shares = [blocks[thread::num_threads] for thread in range(num_threads)]
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(num_threads) as threads:
            return list(threads.map(work, shares))
    finally:
        torch.set_num_threads(num_threads)
