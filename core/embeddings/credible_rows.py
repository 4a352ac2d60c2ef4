"""MixBCT's denoising (arXiv 2308.06948): the rows of an embedding store that are nearest the mean of their class.

Embeddings are L2-normalised first. Memory: as in `core.embeddings.class_values`.
"""

from pathlib import Path

import numpy as np

from core.embeddings.class_values import distance_to_mean, means_and_values, order_within_classes
from core.embeddings.row_blocks import normalized_blocks
from core.embeddings.statistics import load_statistic, write_once
from core.embeddings.store import EmbeddingStore
from core.parallel.collectives import barrier
from core.parallel.ranks import Ranks

__all__ = ["credible_mask", "credible_mask_path", "prepare_credible_mask"]


def dimension_scale(store: EmbeddingStore) -> np.ndarray:
    """One over the L2 norm of each dimension of the normalised embeddings over all rows, float64 (D,)."""
    squares = sum((block**2).sum(axis=0) for _, block, _ in normalized_blocks(store))
    return 1 / np.sqrt(np.maximum(squares, 1e-24))


def lowest_of_class(values: np.ndarray, labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """True for the `kept[c]` lowest values of every class c, bool (N,); of equal ones the first rows."""
    sizes = np.bincount(labels)
    ends = np.cumsum(sizes) - sizes + kept
    lowest = np.empty(len(labels), np.bool_)
    lowest[order_within_classes(values, labels)] = np.arange(len(labels)) < np.repeat(ends, sizes)
    return lowest


def credible_mask(store: EmbeddingStore, keep: float, scale_dimensions: bool = False) -> np.ndarray:
    """MixBCT's denoising (arXiv 2308.06948): True for the ceil(keep * k) rows of a class of k nearest its mean. (N,).

    `scale_dimensions` first divides each dimension by its norm over the whole data set, as the released tool does.
    """
    scale = dimension_scale(store) if scale_dimensions else None
    _, distances = means_and_values(store, distance_to_mean, scale)
    labels = np.asarray(store.labels())
    counts = np.bincount(labels)
    kept = np.ceil(np.round(keep * counts, 9)).astype(np.int64)  # rounded first: 0.7 * 10 is not quite 7
    return lowest_of_class(distances, labels, kept)


def prepare_credible_mask(store: EmbeddingStore, keep: float, scale_dimensions: bool, ranks: Ranks) -> np.ndarray:
    """`credible_mask`, kept in the store: computed by the first rank if it is missing. Collective."""
    path = credible_mask_path(store, keep, scale_dimensions)
    if ranks.is_first:
        write_once(path, store.info.num_images, lambda: credible_mask(store, keep, scale_dimensions))
    barrier()
    return load_statistic(path, np.bool_, (store.info.num_images,))


def credible_mask_path(store: EmbeddingStore, keep: float, scale_dimensions: bool = False) -> Path:
    """Path of the mask, bool (N,): `credible_<keep>.npy` or `credible_<keep>_scaled.npy` in the store."""
    return store.path / f"credible_{keep}{'_scaled' if scale_dimensions else ''}.npy"
