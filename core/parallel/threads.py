"""How many threads PyTorch works with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


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
