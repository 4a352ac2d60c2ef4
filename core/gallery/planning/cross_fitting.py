"""Maps of a sample's vectors that are judged on identities which they have not seen.

The identities are dealt to ten folds. A query of one fold and an entry of another are compared through the map that is
fitted without both folds, for an entry that a map has been fitted to draws mapped vectors of other people to itself: a
gallery of the map's own pairs makes a map of queries look up to ten points worse than the gallery of an upgrade, whose
entries are no pairs.
"""

from dataclasses import dataclass

import numpy as np

from core.gallery.orders import OF_MAP, map_priorities
from core.models.maps import Map, fit_map
from core.models.maps.fit import MIN_PAIRS
from core.models.maps.linear import RidgeProblem, procrustes
from core.models.maps.moments import Moments, compute_moments
from core.models.maps.vectors import open_pairs

__all__ = ["Mapped", "cross_fit", "cross_fitted_priorities", "deal_identities", "enough_pairs"]


@dataclass(frozen=True, eq=False)
class Mapped:
    """What maps make of the vectors of N images that are dealt to K folds (N,)."""

    folds: np.ndarray
    by_fold: np.ndarray
    """(K, N, D) float32 of unit length: [k, n] by the map that has seen neither fold k nor the fold of n."""

    @property
    def vectors(self) -> np.ndarray:
        """(N, D): each by the map that has seen all folds but its own."""
        return self.by_fold[self.folds, np.arange(len(self.folds))]


def deal_identities(identities: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """A part (N,), from 0 on, for each image: those of an identity (N,) are in one, and parts have as many identities.

    With fewer identities than parts there are as many parts as identities.
    """
    count = int(identities.max()) + 1
    return np.random.default_rng(seed).permutation(count)[identities] % min(parts, count)


def enough_pairs(folds: np.ndarray) -> bool:
    """Whether the pairs of all folds but any two suffice to fit a map."""
    return int(np.sort(np.bincount(folds))[:-2].sum()) >= MIN_PAIRS


def cross_fit(fitted: Map, source: np.ndarray, target: np.ndarray, folds: np.ndarray) -> Mapped:
    """Map unit source vectors (N, D_s) by maps of the kind of `fitted`, each fitted without two folds or one.

    `fitted` is the linear map of all pairs, whose options and penalty, relative to the number of pairs, are used. Each
    map comes from the moments of the folds; no pair is read twice. Memory: the result and K (D_s + D_t)² numbers.
    """
    count = int(folds.max()) + 1
    moments = [
        compute_moments(open_pairs(source[folds == k], target[folds == k]), with_gram=True) for k in range(count)
    ]
    by_fold = np.empty((count, len(source), target.shape[1]), np.float32)
    for first in range(count):
        for second in range(first + 1):
            seen = _union([each for k, each in enumerate(moments) if k not in (first, second)])
            weight, bias = _fit(fitted, seen)
            for own, other in {(first, second), (second, first)}:
                mapped = source[folds == own] @ weight + bias
                mapped /= np.linalg.norm(mapped, axis=1, keepdims=True).clip(min=1e-15)
                by_fold[other, folds == own] = mapped
    return Mapped(folds, by_fold)


def cross_fitted_priorities(
    fitted: Map, source: np.ndarray, target: np.ndarray, folds: np.ndarray
) -> dict[str, np.ndarray]:
    """By the orders of a map of the gallery, priorities (N,), each by the map fitted without the fold of the image."""
    priorities: dict[str, np.ndarray] = {}
    options = dict(fitted.options)
    for fold in np.unique(folds):
        own = folds == fold
        if fitted.penalty is not None:
            options["penalty"] = fitted.penalty * (~own).mean()
        of_others = fit_map(fitted.kind, source[~own], target[~own], **options)
        for order in OF_MAP:
            values = map_priorities(order, of_others, source[own])
            if values is not None:
                priorities.setdefault(order, np.empty(len(source), np.float32))[own] = values
    return priorities


def _union(parts: list[Moments]) -> Moments:
    """The moments of all pairs of the parts."""
    counts = np.array([part.count for part in parts])
    sources, targets = (np.stack(means) for means in zip(*((part.source_mean, part.target_mean) for part in parts)))
    source_mean, target_mean = (counts @ means / counts.sum() for means in (sources, targets))
    apart = sources - source_mean
    weighted = apart.T * counts
    return Moments(
        count=int(counts.sum()),
        source_mean=source_mean,
        target_mean=target_mean,
        cross=sum(part.cross for part in parts) + weighted @ (targets - target_mean),
        gram=sum(part.gram for part in parts) + weighted @ apart,
        rounding=max(part.rounding for part in parts),
    )


def _fit(like: Map, moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Weight (D_s, D_t) and bias (D_t,) of a map of the kind of `like`, float32."""
    if like.penalty is None:
        affine = procrustes(moments, bool(like.options.get("centred")))[0]
        weight, bias = affine.weight, affine.bias
    else:
        problem, penalty = RidgeProblem(moments), like.penalty * moments.count / like.num_pairs
        if like.kind == "low_rank":
            inner, outer = problem.solve_low_rank(penalty, like.options["rank"])
            weight, bias = inner @ outer.weight, outer.bias
        else:
            affine = problem.solve(penalty)
            weight, bias = affine.weight, affine.bias
    return weight.astype(np.float32), bias.astype(np.float32)
