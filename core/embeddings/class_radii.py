"""How far the embeddings of a class lie from its mean: the class boundaries of AdvBCT (distances) and LCE (angles).

Boundary of a class of k rows (released code of AdvBCT, Pan et al., CVPR 2023): the largest of its sorted distances
d_0 <= ... <= d_(k-1) that is not an outlier. For k >= 4 an outlier is farther than q_3 + 1.5 (q_3 - q_1), the quartiles
being q_1 = d_(floor(k / 4)) and q_3 = d_(floor(3 k / 4)). A class of fewer than two rows has no boundary.

Embeddings are L2-normalised; the mean is not normalised again for distances, and its length does not affect angles.
Memory: one block of rows and a few values a row.
"""

from typing import Literal

import numpy as np

from core.embeddings.row_blocks import row_values
from core.embeddings.statistics import lengths, load_statistic, prepare_class_means, write_once
from core.embeddings.store import EmbeddingStore
from core.parallel.collectives import barrier
from core.parallel.ranks import Ranks

__all__ = ["NO_RADIUS", "Measure", "class_radii", "prepare_class_radii"]

Measure = Literal["distance", "angle"]
NO_RADIUS = -1.0
"""Stands for the radius of a class that has none."""


def class_radii(store: EmbeddingStore, means: np.ndarray, measure: Measure) -> np.ndarray:
    """Radius of every class around `means` (C, D): float64 (C,), -1 for a class of fewer than two rows.

    `measure`: "distance", Euclidean, or "angle", in radians between an embedding and its class mean.
    """

    def distances(block: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return lengths(block - means[labels])

    def angles(block: np.ndarray, labels: np.ndarray) -> np.ndarray:
        own = means[labels].astype(np.float64)
        own /= np.maximum(lengths(own), 1e-12)[:, None]
        return np.arccos(np.clip(np.einsum("nd,nd->n", block, own), -1, 1))

    values = row_values(store, distances if measure == "distance" else angles)
    return largest_without_outliers(values, np.asarray(store.labels()), len(means))


def largest_without_outliers(values: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Largest value of each class that is not an outlier, (C,), of values (N,); -1 for classes of fewer than two."""
    order = np.lexsort((values, labels))
    values, labels = values[order], labels[order]
    first = np.flatnonzero(np.diff(labels, prepend=-1))
    sizes = np.diff(first, append=len(labels))
    lower, upper = values[first + sizes // 4], values[first + 3 * sizes // 4]
    limit = np.where(sizes >= 4, upper + 1.5 * (upper - lower), np.inf)
    kept = np.where(values <= np.repeat(limit, sizes), values, 0.0)
    radii = np.full(num_classes, NO_RADIUS)
    radii[labels[first]] = np.where(sizes >= 2, np.maximum.reduceat(kept, first), NO_RADIUS)
    return radii


def prepare_class_radii(store: EmbeddingStore, measure: Measure, ranks: Ranks) -> tuple[np.ndarray, np.ndarray]:
    """The class means, float32 (C, D), memory-mapped, and `class_radii` around them, float32 (C,). Collective.

    Both are kept beside the store, the radii as `class_radii_<measure>.npy`; the first rank computes what is missing.
    """
    means = prepare_class_means(store, ranks)
    path = store.path / f"class_radii_{measure}.npy"
    if ranks.is_first:
        write_once(path, 4 * len(means), lambda: class_radii(store, means, measure).astype(np.float32))
    barrier()
    return means, load_statistic(path, np.float32, (len(means),))
