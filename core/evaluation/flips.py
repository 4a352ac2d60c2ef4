"""Flips: which queries a change of models turns from right to wrong, and which the other way.

Yan et al., "Positive-Congruent Training: Towards Regression-Free Model Updates", CVPR 2021 (arXiv 2011.09161), carried
over from classes to searches: an answer is right if the first result is. A mean that rises can hide that many people
who were found are not found any more.
"""

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["flip_rates", "mean_flip_rates"]


def flip_rates(before: np.ndarray, after: np.ndarray) -> dict[str, float | None]:
    """`nfr` and `pfr` of answers (Q,), right or wrong, before and after a change; None without a query.

    NFR, the negative flips, is the share of queries that are answered rightly before and wrongly after; PFR, the
    positive flips, the reverse. PFR - NFR is the change of the rank-1 rate.
    """
    if not len(before):
        return {"nfr": None, "pfr": None}
    return {"nfr": float((before & ~after).mean()), "pfr": float((~before & after).mean())}


def mean_flip_rates(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Means of `flip_rates` over galleries, given by name as in `IdentificationResult.found`; None if one has none."""
    rates = [flip_rates(before[name], after[name]) for name in before]
    return {name: _mean([one[name] for one in rates]) for name in ("nfr", "pfr")}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
