"""Rank-1 on a sample while more and more of its enrolled images are embedded again, in several orders."""

from collections.abc import Mapping, Sequence

import numpy as np

from core.evaluation.calibration import ScoreCalibration
from core.gallery.planning.pair_scores import PairScores
from core.gallery.planning.trials import Draws, Found, search_segments

__all__ = ["SHARES", "area", "backfill_curves"]

SHARES = np.linspace(0, 1, 11).round(1)
NEW = "new/new"


def backfill_curves(
    scores: Mapping[str, PairScores],
    pairs: Mapping[str, str],
    priorities: Mapping[str, Mapping[str, np.ndarray]],
    calibrations: Mapping[str, Sequence[ScoreCalibration]],
    draws: Draws,
    halves: np.ndarray,
    before: Found,
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """By road and order `top1`, `nfr`, `pfr` at each share that is embedded again, and `auc`, the area under `top1`.

    `scores`: by pair. `pairs`: by road what searches the stored part; the refreshed part is searched by "new/new".
    `priorities`: by road and order numbers for the images (N,) or, of an order that is drawn anew each time, (R, N). A
    probe's scores are calibrated by the `calibrations` (by pair, for each half) of identities of the other half.
    `before`: by old/old. Memory: R N bits a point, order and road, as bytes.
    """
    counts = np.rint(SHARES * draws.enrolled.shape[1]).astype(int)
    right: dict[str, dict[str, np.ndarray]] = {
        road: {order: np.empty((len(SHARES), *draws.probes.shape), bool) for order in of_road}
        for road, of_road in priorities.items()
    }
    for draw, enrolled in enumerate(draws.enrolled):
        for road, of_road in priorities.items():
            segments = {order: _segments(_of_draw(values, draw)[enrolled], counts) for order, values in of_road.items()}
            for order, found in _states(scores, pairs[road], enrolled, draws, segments, calibrations, halves).items():
                right[road][order][:, draw] = found
    return {
        road: {order: _rates(found, before.is_right, draws) for order, found in of_road.items()}
        for road, of_road in right.items()
    }


def area(top1: Sequence[float]) -> float:
    """Under a curve, by trapezoids: its mean over the share."""
    values = np.asarray(top1)
    return float(np.diff(SHARES) @ (values[1:] + values[:-1]) / 2)


def _of_draw(values: np.ndarray, draw: int) -> np.ndarray:
    return values[draw] if values.ndim == 2 else values


def _segments(priorities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of entries (P,): the number s of the point of the curve after which each is refreshed, so that s + 1 sees it."""
    places = np.empty(len(priorities), int)
    places[np.argsort(-priorities, kind="stable")] = np.arange(len(priorities))
    return np.searchsorted(counts, places, "right") - 1


def _states(
    scores: Mapping[str, PairScores],
    pair: str,
    enrolled: np.ndarray,
    draws: Draws,
    segments: Mapping[str, np.ndarray],
    calibrations: Mapping[str, Sequence[ScoreCalibration]],
    halves: np.ndarray,
) -> dict[str, np.ndarray]:
    """By order whether each image (S, N) finds its identity first, at each share."""
    own, count = draws.identities, len(SHARES) - 1
    parts = [search_segments(scores[name], enrolled, own, segments, count) for name in (pair, NEW)]
    found = {}
    for order, segment in segments.items():
        stored, refreshed = (part[order] for part in parts)
        none = np.full((len(own), 1), -np.inf, np.float32)
        after = np.maximum.accumulate(stored.wrong[:, ::-1], axis=1)[:, ::-1]
        wrong_stored = _on_scale(np.hstack([after, none]), calibrations[pair], halves)
        wrong_refreshed = _on_scale(
            np.hstack([none, np.maximum.accumulate(refreshed.wrong, axis=1)]), calibrations[NEW], halves
        )
        right = [
            _on_scale(part.right[:, None], calibrations[name], halves)
            for part, name in ((stored, pair), (refreshed, NEW))
        ]
        is_refreshed = segment[own][:, None] < np.arange(len(SHARES))
        of_right = np.where(is_refreshed, right[1], right[0])
        found[order] = (of_right > np.maximum(wrong_stored, wrong_refreshed)).T
    return found


def _on_scale(scores: np.ndarray, calibrations: Sequence[ScoreCalibration], halves: np.ndarray) -> np.ndarray:
    """Minus the log FAR of scores (N, S), by the calibration for each image's half; -inf stays."""
    scaled = np.where(halves[:, None] == 0, calibrations[0](scores), calibrations[1](scores))
    return np.where(np.isneginf(scores), -np.inf, scaled)


def _rates(right: np.ndarray, before: np.ndarray, draws: Draws) -> dict[str, list[float]]:
    top1 = draws.rate(right).tolist()
    return {
        "top1": top1,
        "nfr": draws.rate(before & ~right).tolist(),
        "pfr": draws.rate(~before & right).tolist(),
        "auc": [area(top1)],
    }
