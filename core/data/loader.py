"""Worker processes that read and decode whole batches, for training and for feature extraction."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from core.data.open_dataset import ImageDataset
from core.errors import UserError

__all__ = ["load_batches"]


class _DecodedBatches(Dataset):
    """Maps a sequence of rows to the tensors of that batch; runs in the workers."""

    def __init__(self, data: ImageDataset, columns: Mapping[str, np.ndarray]):
        self.data, self.columns = data, columns

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Tensor] | UserError:
        rows = np.asarray(rows, dtype=np.int64)
        try:
            images, labels = self.data.batch(rows)
        except UserError as error:
            return error  # raised again in the main process; torch would bury the line in a worker's traceback
        batch = {"image": torch.from_numpy(images), "label": torch.from_numpy(labels), "row": torch.from_numpy(rows)}
        for name, column in self.columns.items():
            batch[name] = torch.from_numpy(np.array(column[rows]))
        return batch


def load_batches(
    data: ImageDataset,
    row_batches: Iterable[Sequence[int]],
    num_workers: int,
    columns: Mapping[str, np.ndarray] | None = None,
    pin_memory: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Yield, in the order of `row_batches`, dicts of CPU tensors read by `num_workers` processes (0: by this one).

    `image` uint8 (B, H, W, 3) RGB, `label` int64 (B,), `row` int64 (B,), and for each of `columns`, arrays with one
    entry a row of the data (memory-mapped ones are read in the workers), the batch's entries under its name.
    `UserError` if an image cannot be decoded.
    """
    batches = DataLoader(
        _DecodedBatches(data, columns or {}),
        sampler=row_batches,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
        generator=torch.Generator(),  # a loader draws a seed when it starts: not from the stream that a resume restores
    )
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        yield batch
