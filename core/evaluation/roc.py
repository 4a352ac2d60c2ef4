"""Verification of pairs: rates of true and false accepts (TAR and FAR) by the threshold, and thresholds by the FAR."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

__all__ = ["FARS", "RocResult", "rates_at", "receiver_operating_characteristic"]

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class RocResult:
    """1:1: metrics and thresholds, None where the data cannot resolve one, and a curve of K points.

    `metrics` are `tar@far=1e-06` ... and `auc`; `thresholds` `far=1e-06` ... say with which score, or a higher one, a
    pair is accepted there. `fpr` (K,) are FPRs on a logarithmic grid from one impostor pair to 1, `tpr` (K,) the
    largest TPR at or below each.
    """

    metrics: dict[str, float | None]
    thresholds: dict[str, float | None]
    fpr: np.ndarray
    tpr: np.ndarray
    at_old_threshold: dict[str, dict[str, float] | None] = field(default_factory=dict)
    """In a cross-test, by each FAR of old/old, `tar` and `far` of the cross-test at the same score (`rates_at`)."""

    def all_thresholds(self) -> dict[str, object]:
        """`thresholds` as results files have them: in a cross-test also `at_old_threshold`."""
        return {**self.thresholds, **({"at_old_threshold": self.at_old_threshold} if self.at_old_threshold else {})}


def rates_at(
    genuine: np.ndarray, impostor: np.ndarray, thresholds: Mapping[str, float | None]
) -> dict[str, dict[str, float] | None]:
    """`tar` and `far` where scores from each threshold on are accepted, by its name; None where one is missing.

    `genuine` (G,) and `impostor` (I,) are scores of pairs of one person and of two. With the thresholds of another
    model they say what becomes of a service that keeps its threshold.
    """
    if not len(genuine) or not len(impostor):
        return dict.fromkeys(thresholds)
    rates: dict[str, dict[str, float] | None] = dict.fromkeys(thresholds)
    for name, least in thresholds.items():
        if least is not None:
            rates[name] = {"tar": float((genuine >= least).mean()), "far": float((impostor >= least).mean())}
    return rates


def receiver_operating_characteristic(genuine: np.ndarray, impostor: np.ndarray) -> RocResult:
    """Metrics, thresholds and curve of scores of pairs of one person (G,) and of two persons (I,).

    TAR at FAR x is the TPR at the FPR nearest to x among those that a threshold can give, the largest such TPR; the
    threshold is the lowest score that is accepted then. Both are None below one impostor pair (x < 1 / I); all are None
    without pairs of either kind. Both arrays are sorted once; each rate is then a binary search, so that no array over
    all thresholds is made. (scikit-learn's `roc_curve` makes several, and takes 30 times as long for the 15.7 million
    pairs of IJB-C.)
    """
    genuine, impostor = np.sort(genuine), np.sort(impostor)
    metrics: dict[str, float | None] = dict.fromkeys([*(f"tar@far={far:.0e}" for far in FARS), "auc"])
    thresholds: dict[str, float | None] = dict.fromkeys(f"far={far:.0e}" for far in FARS)
    if not len(genuine) or not len(impostor):
        return RocResult(metrics, thresholds, np.empty(0), np.empty(0))
    for far in FARS:
        count = _accepted_impostors(impostor, far)
        if count is not None:
            metrics[f"tar@far={far:.0e}"] = float(_accepted(genuine, impostor, np.array(count)) / len(genuine))
            thresholds[f"far={far:.0e}"] = _threshold(genuine, impostor, count)
    below = np.searchsorted(impostor, genuine, "left") + np.searchsorted(impostor, genuine, "right")
    metrics["auc"] = float(below.mean() / (2 * len(impostor)))
    counts = np.unique(np.geomspace(1, len(impostor), 400).astype(np.int64))
    tpr = _accepted(genuine, impostor, counts) / len(genuine)
    return RocResult(metrics, thresholds, counts / len(impostor), tpr)


def _accepted(genuine: np.ndarray, impostor: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many of the sorted genuine scores lie above the thresholds that let at most `counts` impostor pairs pass."""
    barred = impostor[len(impostor) - 1 - counts.clip(max=len(impostor) - 1)]
    above = len(genuine) - np.searchsorted(genuine, barred, "right")
    return np.where(counts >= len(impostor), len(genuine), above)


def _accepted_impostors(impostor: np.ndarray, far: float) -> int | None:
    """How many of the sorted scores pass at the FPR nearest to `far`. The slack of 1e-6 pairs is for its rounding."""
    num_impostors = len(impostor)
    wanted = far * num_impostors
    if wanted < 1 - 1e-6:
        return None
    barred = impostor[num_impostors - 1 - min(int(wanted + 1e-6), num_impostors - 1)]
    # impostor pairs with equal scores pass together: so many pass above `barred`, and so many from `barred` on
    fewer, more = (num_impostors - int(np.searchsorted(impostor, barred, side)) for side in ("right", "left"))
    return more if more - wanted <= wanted - fewer + 1e-6 else fewer


def _threshold(genuine: np.ndarray, impostor: np.ndarray, count: int) -> float:
    """The lowest of the sorted scores that is accepted where `count` impostor pairs pass; above all if none is."""
    if count >= len(impostor):
        return float(min(genuine[0], impostor[0]))
    barred = impostor[len(impostor) - 1 - count]
    places = [(scores, np.searchsorted(scores, barred, "right")) for scores in (genuine, impostor)]
    accepted = [scores[place] for scores, place in places if place < len(scores)]
    return float(min(accepted, default=np.nextafter(barred, np.inf, dtype=barred.dtype)))
