"""Class means of an embedding store, computed block by block, and files that keep statistics beside it.

Embeddings are L2-normalised first, unless a function says otherwise. Memory: a (C, D) float64 table and a few blocks of
rows a thread. The rows need not be sorted by class; of sorted ones all threads add up the classes, with 8 bytes a row
and a chunk a thread (`core.embeddings.class_chunks`).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from core.arrays import open_array, read_array
from core.embeddings.class_chunks import ClassChunk, work_by_class
from core.embeddings.row_blocks import normalized_blocks
from core.embeddings.store import EmbeddingStore
from core.errors import UserError
from core.memory import require_memory
from core.outputs import replaced_atomically, require_replaceable, sweep
from core.parallel.collectives import barrier
from core.parallel.ranks import Ranks
from core.parallel.threads import one_thread
from core.room import require_room

__all__ = [
    "class_means",
    "class_means_path",
    "empty_means",
    "lengths",
    "load_statistic",
    "means_size",
    "num_classes_of",
    "prepare_class_means",
    "write_once",
]

AGAIN = "delete it, it will be computed again"


def num_classes_of(store: EmbeddingStore) -> int:
    """The largest label + 1."""
    return int(store.labels().max(initial=-1)) + 1


def class_means(
    store: EmbeddingStore, scale: np.ndarray | None = None, normalized: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the normalised embeddings of every class, float64 (C, D), and its number of images, int64 (C,).

    C is the largest label + 1; a class without images has a zero mean. The means are not normalised again. `scale` (D,)
    multiplies each dimension before the mean. `normalized=False` takes the embeddings as they are stored.
    """
    sums = empty_means(store)
    counts = np.bincount(store.labels(), minlength=len(sums))

    def fill(most: int, chunks: Iterator[ClassChunk]) -> None:
        for chunk in chunks:
            sums[chunk.classes] = chunk.sums

    if not work_by_class(store, fill, normalized):
        table, blocks = torch.from_numpy(sums), normalized_blocks(store, normalized)
        with one_thread():
            for _, block, labels in blocks:
                table.index_add_(0, torch.from_numpy(labels), torch.from_numpy(block))
    if scale is not None:
        sums *= scale
    return sums / np.maximum(counts, 1)[:, None], counts


def empty_means(store: EmbeddingStore, dtype: type = np.float64) -> np.ndarray:
    """Zeros (C, D); `UserError` if `class_means` have no room in the memory."""
    num_classes = num_classes_of(store)
    require_memory(
        32 * num_classes * store.info.embedding_size,
        f"the table of the means of {num_classes} classes, one more than the largest label of the store,",
        "correct the labels, extract the embeddings again",
    )
    return np.zeros((num_classes, store.info.embedding_size), dtype)


def means_size(store: EmbeddingStore) -> int:
    """Bytes of the `class_means` in float32."""
    return 4 * store.info.embedding_size * num_classes_of(store)


def prepare_class_means(store: EmbeddingStore, ranks: Ranks, normalized: bool = True) -> np.ndarray:
    """`class_means`, float32 (C, D), memory-mapped: computed by the first rank if it is missing. Collective.

    Kept as `class_means.npy`, or `class_means_raw.npy` for embeddings as they are stored, in the store.
    """
    path = class_means_path(store, normalized)
    if ranks.is_first:
        write_once(path, means_size(store), lambda: class_means(store, normalized=normalized)[0].astype(np.float32))
    barrier()
    return load_statistic(path, np.float32, (num_classes_of(store), store.info.embedding_size), mapped=True)


def class_means_path(store: EmbeddingStore, normalized: bool = True) -> Path:
    """Where `prepare_class_means` keeps the means."""
    return store.path / ("class_means.npy" if normalized else "class_means_raw.npy")


def lengths(vectors: np.ndarray) -> np.ndarray:
    """L2 norms (n,) of vectors (n, D)."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))


def load_statistic(path: Path, dtype: type, shape: tuple[int, ...], mapped: bool = False) -> np.ndarray:
    """A statistic that is kept in the store, memory-mapped or not; `UserError` if the file is damaged or another's."""
    array = (open_array if mapped else read_array)(path, "statistic of a store", AGAIN)
    if (array.dtype, array.shape) != (dtype, shape):
        raise UserError(
            f"{path} holds {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape} as its store asks for: {AGAIN}"
        )
    return array


def write_once(path: Path, size: int, compute: Callable[[], np.ndarray]) -> None:
    """Compute an array of `size` bytes and save it at `path`, unless that file exists."""
    if path.exists():
        sweep(path.parent)
    else:
        require_replaceable(path)
        require_room(path, size)
        array = compute()
        with replaced_atomically(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array)
