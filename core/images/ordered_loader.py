"""Images of a test in their order, read by worker processes a batch at a time."""

from collections.abc import Iterator
from typing import Any

import cv2
from torch.utils.data import DataLoader, Dataset

from core.errors import UserError

__all__ = ["load_in_order"]


def load_in_order(
    batches: Dataset, num_images: int, batch_size: int, num_workers: int, pin_memory: bool = False
) -> Iterator[Any]:
    """What `batches` gives for range(0, B), range(B, 2 B), … up to `num_images`; a `UserError` that it gives is raised.

    `batches` returns the error in place of a batch: torch would bury its line in a worker's traceback. Memory: two
    batches a worker.
    """
    loader = DataLoader(
        batches,
        sampler=[range(start, min(start + batch_size, num_images)) for start in range(0, num_images, batch_size)],
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_use_one_thread,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _use_one_thread(worker: int) -> None:
    """OpenCV's own threads would fight with the other workers."""
    cv2.setNumThreads(0)
