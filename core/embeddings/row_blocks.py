"""Going over all rows of an embedding store on as many threads as torch uses; results come in the order of the rows."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from core.embeddings.store import EmbeddingStore
from core.parallel.threads import in_order

__all__ = ["CHUNKS", "float64_rows", "normalized_blocks", "row_values", "slices"]

BLOCK_ROWS = 512
"""Rows that are handed over together."""
CHUNK_ROWS = 256
"""Few enough rows that their float64 copies stay in a core's caches, many enough that Python's overhead is small."""
CHUNKS = 64
"""That a thread works on before it takes the next ones."""


def normalized_blocks(store: EmbeddingStore, normalized: bool = True) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """(rows, float64 embeddings (n, D), labels (n,)) over the store, 512 rows at a time; embeddings of unit length.

    `normalized=False` gives the embeddings as they are stored. Memory: two blocks a thread.
    """
    labels = store.labels()

    def read(rows: slice) -> tuple[slice, np.ndarray, np.ndarray]:
        return rows, float64_rows(store.features[rows], normalized), np.array(labels[rows])

    return in_order(read, slices(0, store.info.num_images, BLOCK_ROWS), torch.get_num_threads())


def row_values(store: EmbeddingStore, compute: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """`compute` on normalised embeddings float64 (n, D) and their labels (n,), a value a row: float64 (N,)."""
    count, labels = store.info.num_images, store.labels()
    values = np.empty(count)

    def fill(rows: slice) -> None:
        features = store.features[rows]
        of_rows = np.asarray(labels[rows])
        for chunk in slices(0, len(features), CHUNK_ROWS):
            values[rows][chunk] = compute(float64_rows(features[chunk]), of_rows[chunk])

    for _ in in_order(fill, slices(0, count, CHUNKS * CHUNK_ROWS), torch.get_num_threads()):
        pass
    return values


def float64_rows(rows: np.ndarray, normalized: bool = True, out: np.ndarray | None = None) -> np.ndarray:
    """A copy of the rows (n, D), in `out` if given; of unit length if `normalized`, those of zeros as they are."""
    block = np.empty(rows.shape) if out is None else out
    block[...] = rows
    if normalized:
        block /= np.maximum(np.sqrt(np.einsum("nd,nd->n", block, block)), 1e-12)[:, None]
    return block


def slices(start: int, end: int, step: int) -> Iterator[slice]:
    """The numbers from `start` to `end`, `step` at a time."""
    for first in range(start, end, step):
        yield slice(first, min(first + step, end))
