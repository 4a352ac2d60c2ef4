"""A map's prediction of its own error: linear in the unit source vector, log |f(v) - u|² = v.w + b.

FastFill (Jaeckle et al., ICLR 2023, arXiv 2303.04766) trains such a prediction together with its map, to find the
gallery images that should be embedded again first. For any other map this is a ridge on the pairs that it was fitted
on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from core.models.maps.linear import RidgeProblem, penalty_grid
from core.models.maps.moments import Moments
from core.models.maps.threads import in_shares, threads_for_tables
from core.models.maps.vectors import BLOCK_ROWS, Pairs, unit_rows

__all__ = ["fit_error_head"]

MAX_PAIRS = 1 << 14
"""That the head is fitted on, evenly spread over all: many for the few numbers that are fitted."""
LEAST_ERROR = 1e-10
"""Smaller errors are rounding."""


@dataclass(frozen=True, eq=False)
class _LogErrorMoments(Moments):
    """Moments whose target is one number a pair, of any size."""

    scatter: float

    @property
    def target_scatter(self) -> float:
        return self.scatter


def fit_error_head(pairs: Pairs, module: nn.Module) -> dict[str, Tensor]:
    """`weight` (1, D_s) and `bias` (1,) of the head of a map's network, from at most 16,384 of the pairs.

    The penalty is chosen by generalised cross-validation. Memory: D_s² numbers and a block of rows a
    thread.
    """
    moments = _compute_moments(pairs, module)
    with threads_for_tables(pairs.source_space.size):
        problem = RidgeProblem(moments)
        affine = problem.solve(problem.choose_penalty(penalty_grid(moments)))
    return {
        "weight": torch.from_numpy(affine.weight.T.astype(np.float32)),
        "bias": torch.from_numpy(affine.bias.astype(np.float32)),
    }


def _compute_moments(pairs: Pairs, module: nn.Module) -> _LogErrorMoments:
    """Of the unit source vectors and the logarithms of the map's squared errors."""
    rows = np.linspace(0, len(pairs) - 1, min(len(pairs), MAX_PAIRS)).astype(np.int64)
    source, errors = _errors(pairs, rows[:BLOCK_ROWS], module)
    origin = source.mean(axis=0), np.log(np.maximum(errors, LEAST_ERROR)).mean()
    parts = in_shares(len(rows), lambda blocks: _sum_blocks(pairs, [rows[block] for block in blocks], origin, module))
    source_sum, gram, cross, target_sum, squares = (np.sum(part, axis=0) for part in zip(*parts))
    count = len(rows)
    return _LogErrorMoments(
        count=count,
        source_mean=origin[0] + source_sum / count,
        target_mean=np.array([origin[1] + target_sum / count]),
        cross=(cross - source_sum * target_sum / count)[:, None],
        gram=gram - np.outer(source_sum, source_sum) / count,
        rounding=float(np.finfo(np.float32).eps) * pairs.source_space.size,
        scatter=float(squares - target_sum**2 / count),
    )


def _sum_blocks(
    pairs: Pairs, blocks: list[np.ndarray], origin: tuple[np.ndarray, np.floating], module: nn.Module
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """Over blocks of rows, v and the log errors t counted from the origin: sums of v, v' v, v' t, t and t²."""
    size = pairs.source_space.size
    source_sum, gram, cross, target_sum, squares = np.zeros(size), np.zeros((size, size)), np.zeros(size), 0.0, 0.0
    for rows in blocks:
        source, errors = _errors(pairs, rows, module)
        source, logs = source - origin[0], np.log(np.maximum(errors, LEAST_ERROR)) - origin[1]
        gram += source.T @ source
        cross += source.T @ logs
        source_sum += source.sum(axis=0)
        target_sum += float(logs.sum())
        squares += float(logs @ logs)
    return source_sum, gram, cross, target_sum, squares


def _errors(pairs: Pairs, rows: np.ndarray, module: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """The unit source vectors (n, D_s) of some rows, and the map's squared errors (n,); float32."""
    units = []
    for vectors, what in ((pairs.source, "source vectors"), (pairs.target, "target vectors")):
        block = vectors[rows]
        units.append(unit_rows(block, slice(0, len(block)), what, np.empty(block.shape, np.float32)))
    source, target = units
    with torch.inference_mode():
        mapped = module(torch.from_numpy(source)).numpy()
    return source, np.square(mapped - target).sum(axis=1)
