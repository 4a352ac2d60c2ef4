"""Going over a store that is sorted by class, a few whole classes at a time, on as many threads as torch uses.

Record files of faces are sorted by class, and so are their stores.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from core.embeddings.row_blocks import CHUNKS, float64_rows, slices
from core.embeddings.store import EmbeddingStore
from core.parallel.threads import in_order, one_thread

__all__ = ["ClassChunk", "chunk_bounds", "first_rows", "work_by_class"]

CHUNK_ROWS = 256
"""Few enough rows that their float64 copies stay in a core's caches, many enough that Python's overhead is small. A
chunk goes on to the end of its last class."""
MOST_ROWS = 8192
"""The most rows of a chunk."""


@dataclass(frozen=True)
class ClassChunk:
    """All rows of some classes."""

    rows: slice
    """Of the store."""
    features: np.ndarray
    """Float64 (n, D). May be overwritten: the next chunk is read into the same memory."""
    classes: np.ndarray
    """The labels (k,) of these classes, ascending."""
    counts: np.ndarray
    """Rows of each (k,)."""
    sums: np.ndarray
    """Of each class's rows, float64 (k, D), added up one row after the other."""


def work_by_class(
    store: EmbeddingStore, work: Callable[[int, Iterator[ClassChunk]], None], normalized: bool = True
) -> bool:
    """Call `work(most, chunks)` on several threads; together the calls get every chunk once.

    No chunk of a call has more than `most` rows. They are of unit length if `normalized`. Returns False, and has done
    nothing, if the store is not sorted by class or a chunk would have more than `MOST_ROWS` rows. Memory: a chunk a
    thread, and 8 bytes a row.
    """
    labels = np.asarray(store.labels())
    first = first_rows(labels)
    if first is None:
        return False
    # For all chunks together: done in each of thousands of chunks, this would take a sixth of the time.
    bounds, counts, present = chunk_bounds(first, CHUNK_ROWS), np.diff(first), labels[first[:-1]]
    if np.diff(first[bounds]).max(initial=0) > MOST_ROWS:
        return False
    number = np.repeat(np.arange(len(counts)), counts)

    def read(own: np.ndarray, most: int) -> Iterator[ClassChunk]:
        buffer = np.empty((most, store.info.embedding_size))
        for low, high, start, end in zip(own[:-1], own[1:], first[own[:-1]], first[own[1:]]):
            features = float64_rows(store.features[start:end], normalized, out=buffer[: end - start])
            sums = np.zeros((high - low, features.shape[1]))
            of_rows = torch.from_numpy(number[start:end] - low)
            torch.from_numpy(sums).index_add_(0, of_rows, torch.from_numpy(features))
            yield ClassChunk(slice(start, end), features, present[low:high], counts[low:high], sums)

    def some(chunks: slice) -> None:
        own = bounds[chunks.start : chunks.stop + 1]
        most = int(np.diff(first[own]).max())
        work(most, read(own, most))

    num_threads = torch.get_num_threads()
    with one_thread():
        for _ in in_order(some, slices(0, len(bounds) - 1, CHUNKS), num_threads):
            pass
    return True


def first_rows(labels: np.ndarray) -> np.ndarray | None:
    """The first row of each class that has rows, and the end, int64; None if the labels (N,) are not sorted."""
    if (labels[1:] < labels[:-1]).any():
        return None
    starts = np.flatnonzero(labels[1:] != labels[:-1]) + 1
    return np.concatenate([np.zeros(min(len(labels), 1), np.int64), starts, [len(labels)]])


def chunk_bounds(first: np.ndarray, rows: int) -> np.ndarray:
    """Where in `first` chunks of about `rows` rows begin, each of whole classes, and where the last one ends, int64."""
    begins = np.searchsorted(first[:-1], np.arange(0, first[-1], rows), side="right") - 1
    return np.append(np.unique(begins), len(first) - 1)
