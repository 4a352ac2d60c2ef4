"""Maps of a sample's vectors that are judged on identities which they have not seen."""

from dataclasses import dataclass, field

import numpy as np

from core.gallery.orders import OF_MAP, map_priorities
from core.models.maps import fit_map
from core.models.maps.fit import MIN_PAIRS

__all__ = ["FOLDS", "Mapped", "cross_fit", "deal_identities", "enough_pairs"]

FOLDS = 5


@dataclass(frozen=True, eq=False)
class Mapped:
    """What maps make of a sample: each vector mapped by the one that has seen no image of its identity."""

    vectors: np.ndarray
    """(N, D_t) float32, of unit length."""
    priorities: dict[str, np.ndarray] = field(default_factory=dict)
    """(N,) by the orders that a map gives."""


def deal_identities(identities: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """A part (N,), from 0 on, for each image: those of an identity (N,) are in one, and parts have as many identities.

    With fewer identities than parts some parts are empty.
    """
    shuffled = np.random.default_rng(seed).permutation(int(identities.max()) + 1)
    return shuffled[identities] % parts


def enough_pairs(folds: np.ndarray) -> bool:
    """Whether the pairs of all folds but one, of any (N,), suffice to fit a map."""
    return len(folds) - np.bincount(folds).max() >= MIN_PAIRS


def cross_fit(kind: str, source: np.ndarray, target: np.ndarray, folds: np.ndarray) -> Mapped:
    """Map the source vectors (N, D_s) of each fold (N,) by a map fitted on the pairs of the other folds."""
    vectors = np.empty((len(source), target.shape[1]), np.float32)
    priorities: dict[str, np.ndarray] = {}
    for fold in np.unique(folds):
        own = folds == fold
        fitted = fit_map(kind, source[~own], target[~own])
        vectors[own] = fitted(source[own])
        for order in OF_MAP:
            values = map_priorities(order, fitted, source[own])
            if values is not None:
                priorities.setdefault(order, np.zeros(len(source), np.float32))[own] = values
    return Mapped(vectors, priorities)
