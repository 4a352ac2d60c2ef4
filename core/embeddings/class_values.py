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
    first = _first_rows(labels)
    if first is None or np.diff(first[_chunks(first, CHUNK_ROWS)]).max(initial=0) > MOST_ROWS:
        means = class_means(store, scale)[0].astype(dtype)
        return means, row_values(
            store, lambda rows, of_rows: value_of(rows if scale is None else rows * scale, means[of_rows])
        )

    means, values = empty_means(store, dtype), np.empty(len(labels))
    # Of all chunks at once: for each of thousands of chunks it would take a sixth of the time.
    chunks, counts, present = _chunks(first, CHUNK_ROWS), np.diff(first), labels[first[:-1]]
    number = np.repeat(np.arange(len(counts)), counts)

    def fill(some: slice) -> None:
        bounds = chunks[some.start : some.stop + 1]
        most = int(np.diff(first[bounds]).max())
        buffer = np.empty((most, store.info.embedding_size))
        own = np.empty((most, store.info.embedding_size), dtype)
        for low, high, start, end in zip(bounds[:-1], bounds[1:], first[bounds[:-1]], first[bounds[1:]]):
            rows = float64_rows(store.features[start:end], out=buffer[: end - start])
            of_rows = number[start:end] - low
            sums = np.zeros((high - low, rows.shape[1]))
            torch.from_numpy(sums).index_add_(0, torch.from_numpy(of_rows), torch.from_numpy(rows))
            if scale is not None:
                sums *= scale
                rows *= scale
            means[present[low:high]] = sums / counts[low:high, None]
            np.take(means, labels[start:end], axis=0, out=own[: end - start], mode="clip")
            values[start:end] = value_of(rows, own[: end - start])

    num_threads = torch.get_num_threads()
    with one_thread():
        for _ in in_order(fill, slices(0, len(chunks) - 1, CHUNKS), num_threads):
            pass
    return means, values


def order_within_classes(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rows by class and in it by value, int64 (N,), equal ones as they come: `np.lexsort((values, labels))`.

    Sorted labels are taken in chunks, which stay in a core's cache, by as many threads as torch uses.
    """
    first = _first_rows(labels)
    if first is None:
        return np.lexsort((values, labels))
    order = np.empty(len(labels), np.int64)
    bounds = first[_chunks(first, SORTED_ROWS)].tolist()

    def sort(some: slice) -> None:
        for start, end in zip(bounds[some], bounds[some.start + 1 :]):
            order[start:end] = np.lexsort((values[start:end], labels[start:end])) + start

    for _ in in_order(sort, slices(0, len(bounds) - 1, CHUNKS), torch.get_num_threads()):
        pass
    return order


def _first_rows(labels: np.ndarray) -> np.ndarray | None:
    """The first row of each class that has rows, and the end, int64; None if the labels (N,) are not sorted."""
    if (labels[1:] < labels[:-1]).any():
        return None
    starts = np.flatnonzero(labels[1:] != labels[:-1]) + 1
    return np.concatenate([np.zeros(min(len(labels), 1), np.int64), starts, [len(labels)]])


def _chunks(first: np.ndarray, rows: int) -> np.ndarray:
    """Where in `first` chunks of about `rows` rows begin, each of whole classes, and where the last one ends, int64."""
    begins = np.searchsorted(first[:-1], np.arange(0, first[-1], rows), side="right") - 1
    return np.append(np.unique(begins), len(first) - 1)
