"""How far the embeddings of a class lie from its mean: the class boundaries of AdvBCT (distances) and LCE (angles).

Boundary of a class of k rows (released code of AdvBCT, Pan et al., CVPR 2023): the largest of its sorted distances
d_0 <= ... <= d_(k-1) that is not an outlier. For k >= 4 an outlier is farther than q_3 + 1.5 (q_3 - q_1), the quartiles
being q_1 = d_(floor(k / 4)) and q_3 = d_(floor(3 k / 4)). A class of fewer than two rows has no boundary.

Embeddings are L2-normalised; the mean is not normalised again for distances, and its length does not affect angles.
Memory: as in `core.embeddings.class_values`.
"""

from typing import Literal

import numpy as np

from core.embeddings.class_values import ValueOf, distance_to_mean, means_and_values, order_within_classes
from core.embeddings.row_blocks import row_values
from core.embeddings.statistics import (
    class_means_path,
    lengths,
    load_statistic,
    means_size,
    num_classes_of,
    prepare_class_means,
    write_once,
)
from core.embeddings.store import EmbeddingStore
from core.parallel.collectives import barrier
from core.parallel.ranks import Ranks
from core.room import require_room

__all__ = ["NO_RADIUS", "Measure", "class_radii", "prepare_class_radii"]

Measure = Literal["distance", "angle"]
NO_RADIUS = -1.0
"""Stands for the radius of a class that has none."""


def class_radii(store: EmbeddingStore, means: np.ndarray, measure: Measure) -> np.ndarray:
    """Radius of every class around `means` (C, D): float64 (C,), -1 for a class of fewer than two rows.

    `measure`: "distance", Euclidean, or "angle", in radians between an embedding and its class mean.
    """
    values = row_values(store, lambda rows, labels: VALUES[measure](rows, means[labels]))
    return largest_without_outliers(values, np.asarray(store.labels()), len(means))


def angle_to_mean(rows: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Angles (n,), radians, between normalised rows float64 (n, D) and means (n, D). A `ValueOf`."""
    own = means.astype(np.float64)
    own /= np.maximum(lengths(own), 1e-12)[:, None]
    return np.arccos(np.clip(np.einsum("nd,nd->n", rows, own), -1, 1))


VALUES: dict[Measure, ValueOf] = {"distance": distance_to_mean, "angle": angle_to_mean}


def largest_without_outliers(values: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Largest value of each class that is not an outlier, (C,), of values (N,); -1 for classes of fewer than two."""
    order = order_within_classes(values, labels)
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
    path = store.path / f"class_radii_{measure}.npy"
    if ranks.is_first and not path.exists() and not class_means_path(store).exists():  # both in one pass over the file
        require_room(path, means_size(store) + 4 * num_classes_of(store))
        means, values = means_and_values(store, VALUES[measure], dtype=np.float32)
        radii = largest_without_outliers(values, np.asarray(store.labels()), len(means))
        write_once(class_means_path(store), means.nbytes, lambda: means)
        write_once(path, radii.nbytes, lambda: radii.astype(np.float32))
    means = prepare_class_means(store, ranks)
    if ranks.is_first:
        write_once(path, 4 * len(means), lambda: class_radii(store, means, measure).astype(np.float32))
    barrier()
    return means, load_statistic(path, np.float32, (len(means),))
