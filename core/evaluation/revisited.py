"""The protocol of the revisited Oxford and Paris benchmarks: average precision with junk, and mean precision at k.

Radenovic, Iscen, Tolias, Avrithis, Chum, "Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking",
CVPR 2018 (arXiv 1803.11285), counted as the benchmark's published script counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from core.evaluation.precision_recall import RetrievalResult, interpolated_precision

__all__ = ["KAPPAS", "SETUPS", "MeanAveragePrecision", "evaluate_revisited", "mean_average_precision", "setup_truth"]

Indices: TypeAlias = Sequence[int] | np.ndarray
KAPPAS = (1, 5, 10)
SETUPS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""Which labels of the annotation are positive and which are junk: neither helps nor harms."""


@dataclass(frozen=True)
class MeanAveragePrecision:
    """`map`, `aps` (Q,), `mp` (K,) and `prs` (Q, K): average precision and precision at the K kappas, as fractions.

    NaN for queries without positives, which the means `map` and `mp` leave out, and NaN where no query is left.
    `precision` (101,) is the mean of the interpolated precisions at `precision_recall.RECALLS`.
    """

    map: float
    aps: np.ndarray
    mp: np.ndarray
    prs: np.ndarray
    precision: np.ndarray


def mean_average_precision(
    ranks: np.ndarray, ground_truth: Sequence[Mapping[str, Indices]], kappas: Sequence[int] = KAPPAS
) -> MeanAveragePrecision:
    """Mean average precision of Q ranked lists.

    `ranks` (database, Q) holds database indices, the best of each query in row 0; a list may be cut off, and positives
    beyond its end count as never found. `ground_truth` has for each query the indices `ok` of its positives and, if
    there are any, `junk`. Junk is taken out of the list before ranks are counted. AP is the area under the
    precision-recall points by trapezoids. Precision at k counts to the last positive's rank where that comes before k.
    `ValueError` where the numbers of queries differ.
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 2 or ranks.shape[1] != len(ground_truth):
        raise ValueError(f"ranks (database, queries) of {len(ground_truth)} queries are needed, got {ranks.shape}")
    depths = np.asarray(kappas, dtype=np.int64)
    aps = np.full(len(ground_truth), np.nan)
    prs = np.full((len(ground_truth), len(depths)), np.nan)
    curves = []
    for query, truth in enumerate(ground_truth):
        positives, junk = (np.asarray(truth.get(key, ()), dtype=np.int64) for key in ("ok", "junk"))
        if len(positives):
            found = _junk_free_ranks(ranks[:, query], positives, junk)
            aps[query] = _average_precision(found, len(positives))
            prs[query] = _precision_at(found, depths)
            curves.append(interpolated_precision(found, len(positives)))
    counted = ~np.isnan(aps)
    if not counted.any():
        return MeanAveragePrecision(np.nan, aps, np.full(len(depths), np.nan), prs, np.full(101, np.nan))
    return MeanAveragePrecision(
        float(aps[counted].mean()), aps, prs[counted].mean(axis=0), prs, np.mean(curves, axis=0)
    )


def _junk_free_ranks(ranked: np.ndarray, positives: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Ranks of the positives in the list without its junk, from 0 and ascending."""
    places, junk_places = (np.flatnonzero(np.isin(ranked, indices)) for indices in (positives, junk))
    return places - np.searchsorted(junk_places, places)


def _average_precision(ranks: np.ndarray, num_positives: int) -> float:
    """Each positive adds 1 / `num_positives` to the recall, at the mean of the precisions just before and at it."""
    found = np.arange(len(ranks))
    before = np.where(ranks > 0, found / np.maximum(ranks, 1), 1.0)
    return float((before + (found + 1) / (ranks + 1)).sum() / (2 * num_positives))


def _precision_at(ranks: np.ndarray, kappas: np.ndarray) -> np.ndarray:
    depths = np.minimum(kappas, ranks[-1] + 1) if len(ranks) else kappas
    return np.searchsorted(ranks, depths) / depths


def setup_truth(annotation: Mapping[str, Indices], setup: str) -> dict[str, np.ndarray]:
    """The `ok` and `junk` indices of one query, annotated as `easy`, `hard` and `junk`, in a setup of SETUPS."""
    return {
        key: np.concatenate([np.asarray(annotation[label], dtype=np.int64) for label in labels])
        for key, labels in zip(("ok", "junk"), SETUPS[setup])
    }


def evaluate_revisited(
    ranks: np.ndarray, annotations: Sequence[Mapping[str, Indices]], kappas: Sequence[int] = KAPPAS
) -> RetrievalResult:
    """`map_easy mp@1_easy ...`, `..._medium`, `..._hard` as fractions, None where no query has positives, and curves.

    `ranks` as in `mean_average_precision`; `annotations` has for each query the indices `easy`, `hard` and `junk`.
    """
    metrics, curves = {}, {}
    for setup in SETUPS:
        result = mean_average_precision(ranks, [setup_truth(one, setup) for one in annotations], kappas)
        values = {f"map_{setup}": result.map, **{f"mp@{k}_{setup}": value for k, value in zip(kappas, result.mp)}}
        metrics.update({name: None if np.isnan(value) else float(value) for name, value in values.items()})
        curves[setup] = result.precision
    return RetrievalResult(metrics, curves)
