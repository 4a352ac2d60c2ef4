"""A gallery while it is embedded again: how accurate the search is at each step, by the order of the images.

At each step some entries of the gallery are refreshed (they have the new model's embedding) and the others still have
the stored one. How queries reach both parts is the road:

    direct        the new model's query against both (a compatible model)
    gallery_map   the same, with the stored part mapped into the new space
    query_map     the query mapped into the old space against the stored part, as it is against the refreshed one
    side_by_side  the old model's query against the stored part, the new model's against the refreshed one

Scores of the two parts are ranked together, as they are ("raw") or calibrated (`core.evaluation.calibration`). Flips
(`core.evaluation.flips`) are relative to the search before the update. The area under a curve (AUC) is its mean over
the share of the gallery that is refreshed, by trapezoids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.evaluation.calibration import CALIBRATIONS, ScoreCalibration, fit_calibration
from core.evaluation.flips import flip_rates
from core.evaluation.identification import GallerySearch, Search, evaluate_1_n, probe_blocks, search_metrics
from core.evaluation.ijb_meta import IdentificationLists, Subjects
from core.evaluation.revisited import mean_average_precision, setup_truth

__all__ = ["RAW", "SCALES", "Calibrations", "Curve", "Features", "Priorities", "identification_curves",
           "retrieval_curves", "steps"]  # fmt: skip

RAW = "raw"
SCALES = (RAW, *CALIBRATIONS)
MEDIUM = "medium"

Priorities = Mapping[str, np.ndarray]
"""By the name of an order, numbers (R, T) for T templates or images; in each of R repeats the largest come first."""
Calibrations = tuple[ScoreCalibration, ScoreCalibration]
"""Of the stored and of the refreshed part."""


@dataclass(frozen=True)
class Features:
    """What a road compares: unit features of the queries, and of the gallery, for the stored and the refreshed part.

    Rows are templates, (T, D) in all four arrays, or the queries (Q, D) and the images (N, D) of a retrieval test. The
    two parts may have different D.
    """

    stored_queries: np.ndarray
    stored_gallery: np.ndarray
    refreshed_queries: np.ndarray
    refreshed_gallery: np.ndarray

    def select(self, queries: np.ndarray, gallery: np.ndarray) -> "Features":
        """The features of these rows only, in float64."""
        return Features(
            self.stored_queries[queries].astype(np.float64),
            self.stored_gallery[gallery].astype(np.float64),
            self.refreshed_queries[queries].astype(np.float64),
            self.refreshed_gallery[gallery].astype(np.float64),
        )

    def scores(self, queries: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Products (Q, G) of some queries with the whole gallery: against the stored and the refreshed embeddings."""
        return (
            self.stored_queries[queries] @ self.stored_gallery.T,
            self.refreshed_queries[queries] @ self.refreshed_gallery.T,
        )


@dataclass(frozen=True)
class Curve:
    """Of one order, at each step: `metrics` (S,) by name, rates in [0, 1]; `nfr` and `pfr` (S,)."""

    metrics: dict[str, np.ndarray]
    nfr: np.ndarray
    pfr: np.ndarray

    def area(self, metric: str, shares: np.ndarray) -> float:
        """AUC of a metric."""
        values = self.metrics[metric]
        return float(np.diff(shares) @ (values[1:] + values[:-1]) / 2)


def steps(count: int) -> np.ndarray:
    """Shares of the gallery that are refreshed at `count` steps, from 0 to 1."""
    return np.linspace(0.0, 1.0, count)


def identification_curves(
    features: Features, old: np.ndarray, lists: IdentificationLists, priorities: Priorities, shares: np.ndarray
) -> dict[str, dict[str, Curve]]:
    """Curves by scale ("raw", "z-score", "far") and by order of a gallery of templates; a template is refreshed whole.

    `old` (T, D) are the old model's template features. Each gallery is refreshed by itself, and rates are means over
    the two: `top1`, `tpir@fpir=0.1` and so on as `evaluate_1_n` has them. The calibration of one gallery is fitted on
    the subjects of the other one, on identities apart from those it is tested on: all scores of their probes with the
    templates of other subjects. Memory: 16 bytes for each probe, step, repeat and scale, and 1,024 rows of scores.
    `ValueError` if a gallery is too small to calibrate the other one.
    """
    before = evaluate_1_n(old, old, lists).found
    names = list(lists.galleries)
    of_galleries = []
    for name, other in zip(names, reversed(names)):
        gallery = lists.galleries[name]
        columns = GallerySearch(gallery, lists.probes).templates
        masks = {order: _refreshed(values[:, columns], shares) for order, values in priorities.items()}
        calibrations = _calibrate_on(features, lists.galleries[other], lists.probes)
        states = _search_states(features, gallery, lists.probes, masks, calibrations, before[name])
        of_galleries.append({scale: _curves(found, masks) for scale, found in states.items()})
    return {
        scale: {order: _mean([curves[scale][order] for curves in of_galleries]) for order in priorities}
        for scale in SCALES
    }


def _search_states(
    features: Features,
    gallery: Subjects,
    probes: Subjects,
    masks: Mapping[str, np.ndarray],
    calibrations: Calibrations,
    before: np.ndarray,
) -> dict[str, list[dict[str, float]]]:
    """By scale, the rates in each state: the masks (R, S, G) of all orders, one after another."""
    columns = GallerySearch(gallery, probes).templates
    chosen = features.select(probes.templates, columns)
    stacked = np.concatenate([each.reshape(-1, len(columns)) for each in masks.values()])
    searches = {scale: [GallerySearch(gallery, probes) for _ in stacked] for scale in SCALES}
    for block in probe_blocks(len(probes.templates)):
        scores = chosen.scores(block)
        for scale in SCALES:
            stored, refreshed = _on_scale(scores, scale, calibrations)
            for mask, search in zip(stacked, searches[scale]):
                search.count(block, np.where(mask, refreshed, stored))
    return {scale: [_rates(search.result(), before) for search in of_scale] for scale, of_scale in searches.items()}


def _rates(search: Search, before: np.ndarray) -> dict[str, float]:
    metrics, _ = search_metrics(search)
    rates = {**metrics, **flip_rates(before, search.ranks == 1)}
    return {name: np.nan if rate is None else rate for name, rate in rates.items()}


def _calibrate_on(features: Features, gallery: Subjects, probes: Subjects) -> Calibrations:
    """The calibration from all scores of a gallery's templates with the probes of its other subjects."""
    own = np.isin(probes.subjects, gallery.subjects)
    impostor = probes.subjects[own][:, None] != gallery.subjects
    scores = features.select(probes.templates[own], gallery.templates).scores()
    stored, refreshed = (fit_calibration(of_part[impostor]) for of_part in scores)
    return stored, refreshed


def retrieval_curves(
    features: Features,
    old: tuple[np.ndarray, np.ndarray],
    annotations: Sequence[Mapping[str, np.ndarray]],
    priorities: Priorities,
    shares: np.ndarray,
    calibrations: Calibrations | None = None,
) -> dict[str, dict[str, Curve]]:
    """Curves by scale and by order of the database of a revisited test, `map_medium` and `mp@1_medium`.

    `old`: the old model's descriptors of the queries (Q, D) and of the database (N, D). A query is answered rightly if
    its first result that is not junk is a positive of the setup Medium; queries without positives are left out. Without
    `calibrations` there are only raw scores. Memory: Q N scores for each part, in float64, and their order.
    """
    truth = [setup_truth(annotation, MEDIUM) for annotation in annotations]
    before = _found_first(old[0].astype(np.float64) @ old[1].T.astype(np.float64), truth)[1]
    masks = {order: _refreshed(values, shares) for order, values in priorities.items()}
    rows = (np.arange(len(each)) for each in (features.stored_queries, features.stored_gallery))
    scores = features.select(*rows).scores()
    curves = {}
    for scale in SCALES if calibrations else (RAW,):
        stored, refreshed = _on_scale(scores, scale, calibrations)
        found = []
        for mask in np.concatenate([each.reshape(-1, stored.shape[1]) for each in masks.values()]):
            metrics, right = _found_first(np.where(mask, refreshed, stored), truth)
            flips = {name: np.nan if rate is None else rate for name, rate in flip_rates(before, right).items()}
            found.append({**metrics, **flips})
        curves[scale] = _curves(found, masks)
    return curves


def _found_first(scores: np.ndarray, truth: list[dict[str, np.ndarray]]) -> tuple[dict[str, float], np.ndarray]:
    """Metrics of scores (Q, N), rounded to float32, and whether each query that counts has a positive first."""
    ranked = np.argsort(-scores.astype(np.float32), axis=1, kind="stable")
    result = mean_average_precision(ranked.T, truth, (1,))
    counted = ~np.isnan(result.aps)
    metrics = {f"map_{MEDIUM}": result.map, f"mp@1_{MEDIUM}": float(result.mp[0])}
    return metrics, result.prs[counted, 0] == 1


def _refreshed(priorities: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Whether each of G entries is refreshed, (R, S, G), in each repeat of an order (R, G) and at each share (S,)."""
    place = np.argsort(np.argsort(-priorities, axis=1, kind="stable"), axis=1)
    counts = np.rint(shares * priorities.shape[1])
    return place[:, None] < counts[:, None]


def _on_scale(
    scores: tuple[np.ndarray, np.ndarray], scale: str, calibrations: Calibrations | None
) -> tuple[np.ndarray, np.ndarray]:
    if scale == RAW or calibrations is None:
        return scores
    stored, refreshed = (calibrate(part, scale) for part, calibrate in zip(scores, calibrations))
    return stored, refreshed


def _curves(found: list[dict[str, float]], masks: Mapping[str, np.ndarray]) -> dict[str, Curve]:
    """The curve of each order from the rates in all states: the mean over its repeats."""
    curves, start = {}, 0
    for order, mask in masks.items():
        repeats, count = mask.shape[:2]
        states = found[start : start + repeats * count]
        start += len(states)
        rates = {
            name: np.array([state[name] for state in states]).reshape(repeats, count).mean(axis=0) for name in states[0]
        }
        curves[order] = Curve(nfr=rates.pop("nfr"), pfr=rates.pop("pfr"), metrics=rates)
    return curves


def _mean(curves: Sequence[Curve]) -> Curve:
    return Curve(
        {name: np.mean([curve.metrics[name] for curve in curves], axis=0) for name in curves[0].metrics},
        np.mean([curve.nfr for curve in curves], axis=0),
        np.mean([curve.pfr for curve in curves], axis=0),
    )
