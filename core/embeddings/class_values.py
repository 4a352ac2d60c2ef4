"""Class means, and a value of every row beside the mean of its class, in one pass over a store sorted by class.

The file of another store, or of one with a class too large to be held, is read twice. Either way gives the same bits.
Embeddings are L2-normalised first. Memory: the (C, D) table, a few values a row, and for each thread two chunks.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from core.embeddings.class_chunks import ClassChunk, chunk_bounds, first_rows, work_by_class
from core.embeddings.row_blocks import CHUNKS, row_values, slices
from core.embeddings.statistics import class_means, empty_means, lengths
from core.embeddings.store import EmbeddingStore
from core.parallel.threads import in_order

__all__ = ["ValueOf", "distance_to_mean", "means_and_values", "order_within_classes"]

ValueOf = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Normalised rows float64 (n, D) and the means (n, D) of their classes, both of which it may overwrite, to (n,)."""
SORTED_ROWS = 1024
"""Rows that are sorted together, and the rest of their last class."""


def distance_to_mean(rows: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Euclidean distances (n,) of rows float64 (n, D) to means (n, D). A `ValueOf`."""
    return lengths(np.subtract(rows, means, out=rows))


def means_and_values(
    store: EmbeddingStore, value_of: ValueOf, scale: np.ndarray | None = None, dtype: type = np.float64
) -> tuple[np.ndarray, np.ndarray]:
    """`class_means` in `dtype` (C, D), and `value_of` every row and the mean of its class, float64 (N,).

    `scale` (D,) multiplies each dimension of the normalised rows, and so of the means.
    """
    labels = np.asarray(store.labels())
    means, values = empty_means(store, dtype), np.empty(len(labels))

    def fill(most: int, chunks: Iterator[ClassChunk]) -> None:
        own = np.empty((most, store.info.embedding_size), dtype)
        for chunk in chunks:
            rows, sums = chunk.features, chunk.sums
            if scale is not None:
                sums *= scale
                rows *= scale
            means[chunk.classes] = sums / chunk.counts[:, None]
            np.take(means, labels[chunk.rows], axis=0, out=own[: len(rows)], mode="clip")
            values[chunk.rows] = value_of(rows, own[: len(rows)])

    if not work_by_class(store, fill):
        means = class_means(store, scale)[0].astype(dtype)
        values = row_values(
            store, lambda rows, of_rows: value_of(rows if scale is None else rows * scale, means[of_rows])
        )
    return means, values


def order_within_classes(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rows by class and in it by value, int64 (N,), equal ones as they come: `np.lexsort((values, labels))`.

    Sorted labels are taken in chunks, which stay in a core's cache, by as many threads as torch uses.
    """
    first = first_rows(labels)
    if first is None:
        return np.lexsort((values, labels))
    order = np.empty(len(labels), np.int64)
    bounds = first[chunk_bounds(first, SORTED_ROWS)].tolist()

    def sort(some: slice) -> None:
        for start, end in zip(bounds[some], bounds[some.start + 1 :]):
            order[start:end] = np.lexsort((values[start:end], labels[start:end])) + start

    for _ in in_order(sort, slices(0, len(bounds) - 1, CHUNKS), torch.get_num_threads()):
        pass
    return order
