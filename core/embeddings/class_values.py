"""Class means, and a value of every row beside the mean of its class, in one pass over a store sorted by class.

Record files of faces are sorted by class, and so are their stores. The file of another store, or of one with a class
too large to be held, is read twice. Either way gives the same bits. Embeddings are L2-normalised first. Memory: the
(C, D) table, a few values a row, and for each thread some chunks of rows.
"""

from collections.abc import Callable

import numpy as np
import torch

from core.embeddings.row_blocks import CHUNKS, float64_rows, row_values, slices
from core.embeddings.statistics import class_means, empty_means, lengths
from core.embeddings.store import EmbeddingStore
from core.parallel.threads import in_order, one_thread

__all__ = ["ValueOf", "distance_to_mean", "means_and_values", "order_within_classes"]

ValueOf = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Normalised rows float64 (n, D) and the means (n, D) of their classes, both of which it may overwrite, to (n,)."""
CHUNK_ROWS = 128
"""Rows whose float64 copies stay in a core's cache; a chunk goes on to the end of its last class."""
SORTED_ROWS = 1024
"""Rows that are sorted together, and the rest of their last class."""
MOST_ROWS = 8192
"""In a chunk; with a larger class the file is read twice."""


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
    bounds = _chunk_bounds(labels, CHUNK_ROWS)
    if bounds is None or np.diff(bounds).max(initial=0) > MOST_ROWS:
        means = class_means(store, scale)[0].astype(dtype)
        return means, row_values(
            store, lambda rows, of_rows: value_of(rows if scale is None else rows * scale, means[of_rows])
        )

    means, values = empty_means(store, dtype), np.empty(len(labels))
    starts, ends = bounds[:-1], bounds[1:]

    def fill(chunks: slice) -> None:
        most = int((ends[chunks] - starts[chunks]).max())
        buffer = np.empty((most, store.info.embedding_size))
        own = np.empty((most, store.info.embedding_size), dtype)
        for start, end in zip(starts[chunks].tolist(), ends[chunks].tolist()):
            rows = float64_rows(store.features[start:end], out=buffer[: end - start])
            of_rows = labels[start:end]
            begins = np.diff(of_rows, prepend=-1) > 0
            classes, number = of_rows[begins], np.cumsum(begins) - 1
            sums = np.zeros((len(classes), rows.shape[1]))
            torch.from_numpy(sums).index_add_(0, torch.from_numpy(number), torch.from_numpy(rows))
            if scale is not None:
                sums *= scale
                rows *= scale
            means[classes] = sums / np.bincount(number)[:, None]
            np.take(means, of_rows, axis=0, out=own[: end - start], mode="clip")
            values[start:end] = value_of(rows, own[: end - start])

    num_threads = torch.get_num_threads()
    with one_thread():
        for _ in in_order(fill, slices(0, len(starts), CHUNKS), num_threads):
            pass
    return means, values


def order_within_classes(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rows by class and in it by value, int64 (N,), equal ones as they come: `np.lexsort((values, labels))`.

    Sorted labels are taken in chunks, which stay in a core's cache.
    """
    bounds = _chunk_bounds(labels, SORTED_ROWS)
    if bounds is None:
        return np.lexsort((values, labels))
    order = np.empty(len(labels), np.int64)
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist()):
        order[start:end] = np.lexsort((values[start:end], labels[start:end])) + start
    return order


def _chunk_bounds(labels: np.ndarray, rows: int) -> np.ndarray | None:
    """First rows of chunks of about `rows` rows, each of whole classes, and the end; None if labels are not sorted."""
    steps = np.diff(labels, prepend=-1)
    if (steps < 0).any():
        return None
    first = np.flatnonzero(steps)
    of_chunks = np.searchsorted(first, np.arange(0, len(labels), rows), side="right") - 1
    return np.append(first[np.unique(of_chunks)], len(labels))
