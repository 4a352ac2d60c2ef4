"""All roads searched on a sample: maps cross-fitted and chosen, hits and rates with their deviations."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.gallery.cross_fitting import FOLDS, Mapped, cross_fit, deal_identities, enough_pairs
from core.gallery.sample import Sample
from core.gallery.sample_calibration import PAIRS
from core.gallery.trials import Draws, Found, Resampling, search_draws
from core.models.maps.fit import DEFAULT_RANK

__all__ = ["BOTH_WAYS", "Measurement", "measure"]

logger = logging.getLogger(__name__)
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
    mapped: dict[str, Mapped]
    kinds: dict[str, dict[str, float]]
    """By "query_map" and "gallery_map" the top1 of each kind of map that was tried; that which was taken is first."""
    found: dict[str, Found] = field(default_factory=dict)
    """By pair (`core.gallery.upgrade`)."""

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


def measure(sample: Sample, draws: int, seed: int) -> Measurement:
    """Fit maps of all kinds in both directions, unless there are too few pairs, and search all pairs of vectors."""
    drawn = Draws.of(sample.identities, draws, seed)
    resampling = Resampling(drawn.by_identity(np.ones(drawn.probes.shape)), seed)
    vectors = {"old": sample.old, "new": sample.new}
    folds = deal_identities(sample.identities, FOLDS, seed)
    result = Measurement(drawn, resampling, vectors, {}, {})
    for name in BOTH_WAYS if enough_pairs(folds) else ():
        _choose_map(result, name, folds)
    pairs = ["old/old", "new/new", *(["new/old"] if sample.old.shape[1] == sample.new.shape[1] else [])]
    for pair in pairs:
        queries, gallery = (vectors[each] for each in pair.split("/"))
        result.found[pair] = search_draws(queries, gallery, drawn)
    return result


def _choose_map(result: Measurement, name: str, folds: np.ndarray) -> None:
    """Add the vectors that the best kind of map gives, and its searches."""
    source, target = (result.vectors[side] for side in BOTH_WAYS[name])
    tried: dict[str, tuple[Mapped, Found]] = {}
    for kind in KINDS[name]:
        if kind == "low_rank" and min(source.shape[1], target.shape[1]) <= DEFAULT_RANK:
            continue  # it would be the ridge again
        logger.info("%s: %s, fitted without the identities that it is tried on", name.replace("_", " "), kind)
        mapped = cross_fit(kind, source, target, folds)
        queries, gallery = (mapped.vectors, target) if name == "query_map" else (target, mapped.vectors)
        tried[kind] = mapped, search_draws(queries, gallery, result.draws)
    counts = np.stack([result.draws.influences(found) for _, found in tried.values()])
    rates = result.resampling.rates(counts)
    top1 = {kind: float(result.draws.rate(found.is_right)) for kind, (_, found) in tried.items()}
    usual = KINDS[name][0]
    best = max(tried, key=lambda kind: top1[kind])  # the first of equal ones
    apart = (rates[:, list(tried).index(best)] - rates[:, 0]).std()
    taken = best if top1[best] - top1[usual] > apart else usual
    result.kinds[name] = {taken: top1[taken], **top1}
    result.mapped[name], result.found[PAIRS[name]] = tried[taken]
    result.vectors[name] = result.mapped[name].vectors
