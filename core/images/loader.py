"""The one loader of images: batches of rows, read in order by worker processes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from core.errors import UserError
from core.images.source import ImageReader

__all__ = ["Column", "load_batches"]


class Column(Protocol):
    """An array (N, ...), or what reads rows like one."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray: ...  # noqa: D105


class _Batches(Dataset):
    """Maps a sequence of rows to the tensors of that batch; runs in the workers."""

    def __init__(self, source: ImageReader, columns: Mapping[str, Column]):
        self.source, self.columns = source, columns

    def __getitem__(self, index: Sequence[int]) -> dict[str, Tensor] | UserError | OSError:
        rows = np.asarray(index, dtype=np.int64)
        try:
            arrays = self.source.read(rows)
            entries = {name: np.array(column[rows]) for name, column in self.columns.items()}
        except (UserError, OSError) as error:
            return error  # raised in the main process: torch would bury its line in a worker's traceback
        return {name: torch.from_numpy(array) for name, array in {**arrays, "row": rows, **entries}.items()}


def load_batches(
    source: ImageReader,
    row_batches: Iterable[Sequence[int] | np.ndarray],
    num_workers: int,
    columns: Mapping[str, Column] | None = None,
    pin_memory: bool = False,
    prefetch: int = 2,
) -> Iterator[dict[str, Tensor]]:
    """Yield, in the order of `row_batches`, dicts of CPU tensors read by `num_workers` processes (0: by this one).

    A dict holds what `source.read` gives for the rows, `row` int64 (B,), and under the name of each of `columns` its
    entries for the rows (memory-mapped columns are read in the workers). `UserError` if an image cannot be read.
    Memory: `prefetch` batches a worker.
    """
    batches = DataLoader(
        _Batches(source, columns or {}),
        sampler=row_batches,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch if num_workers else None,
        worker_init_fn=_use_one_thread,
        generator=torch.Generator(),  # a loader draws a seed when it starts: not from the stream that a resume restores
    )
    for batch in batches:
        if isinstance(batch, UserError | OSError):
            raise batch
        yield batch


def _use_one_thread(worker: int) -> None:
    """Keep OpenCV's own threads from competing with the other workers."""
    cv2.setNumThreads(0)
