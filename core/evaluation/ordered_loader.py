"""Images of a test in their order, read by worker processes a batch at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from core.data.records import decode_image
from core.errors import UserError

__all__ = ["load_in_order", "read_image"]


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


def read_image(path: Path) -> np.ndarray:
    """The image at `path`, uint8 (H, W, 3) RGB; `UserError` naming it if it cannot be read or decoded."""
    try:
        return decode_image(path.read_bytes())
    except OSError as error:
        raise UserError(f"image not readable: {path} ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"image cannot be decoded: {path} ({error})") from None


def _use_one_thread(worker: int) -> None:
    """OpenCV's own threads would fight with the other workers."""
    cv2.setNumThreads(0)
