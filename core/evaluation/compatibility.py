"""How much a new model gains, and how compatible it is with the old one, from four scores a test set.

The scores of AdvBCT (Pan et al., CVPR 2023, "Boundary-Aware Backward-Compatible Representation via Adversarial Learning
in Image Retrieval", section on evaluation metrics), and the two plain criteria of the field (Shen et al., CVPR 2020).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["CompatibilityScores", "scores"]


@dataclass(frozen=True)
class CompatibilityScores:
    """`p_up`, `p_comp`, `p_1` in per cent, means over the test sets; the rest has one entry a test set.

    `compatible`: a new query finds more in the old gallery than an old query does (cross > old).
    `update_gain`: (cross - old) / (star - old), the share of the new model's gain that comes without a new gallery.
    """

    p_up: float
    p_comp: float
    p_1: float
    compatible: tuple[bool, ...]
    update_gain: tuple[float, ...]


def scores(
    self_new: Sequence[float], self_star: Sequence[float], cross: Sequence[float], old: Sequence[float]
) -> CompatibilityScores:
    """Compatibility of a new model over D test sets; each argument has D scores in per cent.

    `self_new`: new queries in the new gallery; `self_star`: the same of a model trained alone on the same data;
    `cross`: new queries in the old gallery; `old`: old queries in the old gallery. For each test set, with the
    logistic function sigma, p_up = sigma((self - star) / star), p_comp = sigma((cross - old) / (star - old)), and p_1
    is their harmonic mean. `ValueError` where lengths differ, a score is not finite, star is 0, or star equals old.
    """
    columns = [np.asarray(column, dtype=np.float64) for column in (self_new, self_star, cross, old)]
    if columns[0].ndim != 1 or not len(columns[0]) or any(column.shape != columns[0].shape for column in columns):
        raise ValueError(f"four sequences of one score a test set are needed, got shapes {[c.shape for c in columns]}")
    if not all(np.isfinite(column).all() for column in columns):
        raise ValueError("the scores must be finite numbers")
    new, star, crossed, before = columns
    if (star == 0).any() or (star == before).any():
        raise ValueError(f"self_star must differ from 0 and from old on every test set: got {star} against {before}")
    gain = (crossed - before) / (star - before)
    p_up, p_comp = _logistic((new - star) / star), _logistic(gain)
    p_1 = 2 * p_up * p_comp / (p_up + p_comp)
    return CompatibilityScores(
        p_up=100 * float(p_up.mean()),
        p_comp=100 * float(p_comp.mean()),
        p_1=100 * float(p_1.mean()),
        compatible=tuple((crossed > before).tolist()),
        update_gain=tuple(gain.tolist()),
    )


def _logistic(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), written so that a large negative x does not overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))
