"""Orders in which a live gallery is embedded again: numbers for its entries, of which the largest come first.

random           as a baseline
predicted_error  where the map of the gallery predicts the largest error of its own (Jaeckle et al., "FastFill", 2023)
length           where that map gives a short vector: a ridge draws back to the mean where it is not certain
class_distance   far from the mean of its class (Ricci et al., "lambda-Orthogonality Regularization", 2025)
oracle           by the true distance of stored and new vector, which nobody has before the work is done: a bound
"""

import numpy as np

from core.models.maps import Map

__all__ = ["OF_MAP", "ORACLE", "ORDERS", "class_distances", "map_priorities", "random_priorities"]

ORDERS = ("random", "predicted_error", "length", "class_distance")
ORACLE = "oracle"
OF_MAP = ("predicted_error", "length")
"""Those that need a map of the gallery, and no more than one entry at a time."""


def random_priorities(count: int, seed: int) -> np.ndarray:
    """(count,)."""
    return np.random.default_rng(seed).random(count)


def map_priorities(order: str, gallery_map: Map, vectors: np.ndarray) -> np.ndarray | None:
    """Of stored vectors (N, D) the priorities (N,) by one of `OF_MAP`; None if this map cannot tell."""
    if order == "predicted_error":
        return gallery_map.predicted_error(vectors)
    return -gallery_map.lengths(vectors)


def class_distances(vectors: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Distances (N,) of unit vectors (N, D) to the means of their classes (N,), numbered from 0."""
    sums = np.zeros((int(classes.max()) + 1, vectors.shape[1]), np.float64)
    np.add.at(sums, classes, vectors)
    means = sums / np.bincount(classes)[:, None].clip(min=1)
    return np.linalg.norm(vectors - means[classes], axis=1)
