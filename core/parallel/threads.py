"""How many threads PyTorch works with, and work that is shared out to threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

__all__ = ["in_order", "one_thread"]

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Meanwhile PyTorch's operations on the CPU use one thread each.

    For many short ones: several threads wait for each other after each, which takes most of the time as soon as other
    programs run as well.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def in_order(work: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """The results of `work` in the order of the items; no more than two a thread are there at once.

    An error of `work` is raised in its place.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as threads:
        for item in items:
            if len(pending) == 2 * num_threads:
                yield pending.popleft().result()
            pending.append(threads.submit(work, item))
        while pending:
            yield pending.popleft().result()
