"""All roads searched on a sample: maps cross-fitted and chosen, hits and rates with their deviations."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.gallery.planning.cross_fitting import (
    Mapped,
    cross_fit,
    cross_fitted_priorities,
    deal_identities,
    enough_pairs,
)
from core.gallery.planning.pair_scores import MappedGallery, MappedQueries, PairScores, Plain
from core.gallery.planning.sample import Sample
from core.gallery.planning.sample_calibration import PAIRS
from core.gallery.planning.trials import Draws, Found, Resampling, search_draws
from core.gallery.store import Version
from core.models.maps import Map, Space, fit_map
from core.models.maps.fit import DEFAULT_RANK

__all__ = ["BOTH_WAYS", "Measurement", "measure"]

logger = logging.getLogger(__name__)
FOLDS = 10
KINDS = {"query_map": ("procrustes", "ridge", "low_rank"), "gallery_map": ("ridge", "procrustes", "low_rank")}
"""Of maps, the usual one first: another is taken where it is better by more than chance."""
BOTH_WAYS = {"query_map": ("new", "old"), "gallery_map": ("old", "new")}
"""From which vectors to which a map leads."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was measured on a sample."""

    draws: Draws
    resampling: Resampling
    vectors: dict[str, np.ndarray]
    """(N, D) by name: "old", "new", and as far as there are maps "query_map" and "gallery_map", cross-fitted."""
    scores: dict[str, PairScores] = field(default_factory=dict)
    """By pair (`core.gallery.upgrade`)."""
    found: dict[str, Found] = field(default_factory=dict)
    """By pair."""
    maps: dict[str, Map] = field(default_factory=dict)
    """By "query_map" and "gallery_map" the map of the kind that was taken, fitted on all pairs."""
    kinds: dict[str, dict[str, float]] = field(default_factory=dict)
    """Likewise the top1 of each kind that was tried."""
    priorities: dict[str, np.ndarray] = field(default_factory=dict)
    """(N,) by the orders of a map of the gallery, cross-fitted."""

    def top1(self, pair: str) -> float:
        """Share of the probes whose identity comes first."""
        return float(self.draws.rate(self.found[pair].is_right))

    def flips(self, pair: str) -> tuple[float, float]:
        """NFR and PFR relative to old/old."""
        before, after = self.found["old/old"].is_right, self.found[pair].is_right
        return float(self.draws.rate(before & ~after)), float(self.draws.rate(~before & after))

    def deviations(self, roads: Sequence[str]) -> tuple[dict[str, float], dict[str, dict[str, dict[str, Any]]]]:
        """Of the top1 of each road, and of the differences between any two: `[road][other]`, as plans have them."""
        counts = np.stack([self.draws.influences(self.found[PAIRS[road]]) for road in roads])
        rates = self.resampling.rates(counts)
        apart = (rates[:, :, None] - rates[:, None]).std(axis=0)
        top1 = [self.top1(PAIRS[road]) for road in roads]
        return dict(zip(roads, rates.std(axis=0).tolist())), {
            road: {
                other: {"difference": top1[i] - top1[j], "std": float(apart[i, j])}
                for j, other in enumerate(roads)
                if j != i or road == "stay"
            }
            for i, road in enumerate(roads)
        }


def measure(sample: Sample, old: Version, new: Version, draws: int, seed: int) -> Measurement:
    """Fit maps of all kinds in both directions, unless there are too few pairs, and search all pairs of vectors."""
    drawn = Draws.of(sample.identities, draws, seed)
    resampling = Resampling(drawn.by_identity(np.ones(drawn.probes.shape)), seed)
    result = Measurement(drawn, resampling, {"old": sample.old, "new": sample.new})
    for pair in ("old/old", "new/new", "new/old")[: 3 if old.size == new.size else 2]:
        queries, gallery = pair.split("/")
        result.scores[pair] = Plain(result.vectors[queries], result.vectors[gallery])
        result.found[pair] = search_draws(result.scores[pair], drawn)
    folds = deal_identities(sample.identities, FOLDS, seed)
    spaces = {"old": Space(old.size, old.name, old.key), "new": Space(new.size, new.name, new.key)}
    for name in BOTH_WAYS if enough_pairs(folds) else ():
        _choose_map(result, name, folds, spaces)
    return result


def _choose_map(result: Measurement, name: str, folds: np.ndarray, spaces: dict[str, Space]) -> None:
    """Add the map of the best kind, and what is found through it."""
    source, target = (result.vectors[side] for side in BOTH_WAYS[name])
    of_source, of_target = (spaces[side] for side in BOTH_WAYS[name])
    tried: dict[str, tuple[Map, Mapped, PairScores, Found]] = {}
    for kind in KINDS[name]:
        if kind == "low_rank" and min(of_source.size, of_target.size) <= DEFAULT_RANK:
            continue  # it would be the ridge again
        logger.info("%s: %s, tried on identities that it has not seen", name.replace("_", " "), kind)
        fitted = fit_map(kind, source, target, spaces=(of_source, of_target))
        mapped = cross_fit(fitted, source, target, folds)
        scores = MappedQueries(mapped, target) if name == "query_map" else MappedGallery(target, mapped)
        tried[kind] = fitted, mapped, scores, search_draws(scores, result.draws)
    usual = KINDS[name][0]
    rates = result.resampling.rates(np.stack([result.draws.influences(found) for *_, found in tried.values()]))
    top1 = {kind: float(result.draws.rate(found.is_right)) for kind, (*_, found) in tried.items()}
    best = max(tried, key=lambda kind: top1[kind])  # the first of equal ones
    apart = (rates[:, list(tried).index(best)] - rates[:, 0]).std()
    taken = best if top1[best] - top1[usual] > apart else usual
    pair = PAIRS[name]
    result.maps[name], mapped, result.scores[pair], result.found[pair] = tried[taken]
    result.vectors[name], result.kinds[name] = mapped.vectors, top1
    if name == "gallery_map":
        result.priorities.update(cross_fitted_priorities(result.maps[name], source, target, folds))
