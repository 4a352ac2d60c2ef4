"""What an evaluation of retrieval gives: metrics, and curves of precision over recall."""

from dataclasses import dataclass

import numpy as np

__all__ = ["RECALLS", "RetrievalResult", "interpolated_precision"]

RECALLS = np.linspace(0, 1, 101)
"""Where the curves have their points."""


@dataclass(frozen=True)
class RetrievalResult:
    """`metrics` as in results.json (None where no query counts), and by name the mean precision at RECALLS (101,)."""

    metrics: dict[str, float | None]
    curves: dict[str, np.ndarray]


def interpolated_precision(ranks: np.ndarray, num_positives: int) -> np.ndarray:
    """Largest precision at a recall of RECALLS or more, (101,); 0 where the recall is not reached.

    `ranks` (P,) are those of the positives that were found, from 0 and ascending, of the `num_positives` there are.
    """
    precision = np.arange(1, len(ranks) + 1) / (ranks + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    needed = np.ceil(RECALLS * num_positives - 1e-9).astype(np.int64).clip(min=1)
    return best[np.minimum(needed - 1, len(ranks))]
