"""Sums over pairs, from which the linear maps are computed: one pass over the rows, memory for a few (D, D) tables."""

from dataclasses import dataclass

import numpy as np

from core.models.maps.threads import in_shares
from core.models.maps.vectors import BLOCK_ROWS, Pairs, read_rows, scaled_rows, unit_rows

__all__ = ["Moments", "compute_moments"]

SOURCE, TARGET = "source vectors", "target vectors"

EXACT_PAIRS = 1 << 15
"""Up to so many pairs the products are float64; of more, in whose sums rounding averages out, they are float32."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over N pairs of unit vectors v (D_s,) and u (D_t,), float64."""

    count: int
    """N."""
    source_mean: np.ndarray
    """Mean of v, (D_s,)."""
    target_mean: np.ndarray
    """Mean of u, (D_t,)."""
    cross: np.ndarray
    """Sum of (v - mean)' (u - mean), (D_s, D_t)."""
    gram: np.ndarray
    """Sum of (v - mean)' (v - mean), (D_s, D_s); empty (0, 0) if it was not asked for."""
    rounding: float
    """The error of `gram` and `cross`, relative to the largest eigenvalue of `gram`."""

    @property
    def plain_cross(self) -> np.ndarray:
        """Sum of v' u, (D_s, D_t)."""
        return self.cross + self.count * np.outer(self.source_mean, self.target_mean)

    @property
    def target_scatter(self) -> float:
        """Sum of |u - mean|²."""
        return self.count * max(0.0, 1 - float(self.target_mean @ self.target_mean))


def compute_moments(pairs: Pairs, with_gram: bool) -> Moments:
    """The moments of the pairs, their rows normalised. Blocks of rows are dealt to as many threads as torch uses.

    Products are float32 for large N and are added up in float64. For `gram` a mean, that of the first rows, is
    subtracted before, so that no digits are lost where all vectors point the same way. Memory: D_s (D_s + D_t) numbers
    a thread. `UserError` for a row without a direction.
    """
    dtype = np.dtype(np.float64 if len(pairs) <= EXACT_PAIRS else np.float32)
    origin = _rough_mean(pairs, dtype) if with_gram else np.zeros(pairs.source_space.size, dtype)
    parts = in_shares(len(pairs), lambda blocks: _sum_blocks(pairs, blocks, origin, dtype, with_gram))
    source_sum, target_sum, cross, gram = (np.sum(part, axis=0) for part in zip(*parts))
    count = len(pairs)
    size = pairs.source_space.size
    return Moments(
        count=count,
        source_mean=origin + source_sum / count,
        target_mean=target_sum / count,
        cross=cross - np.outer(source_sum, target_sum) / count,
        gram=gram - np.outer(source_sum, source_sum) / count if with_gram else np.empty((0, 0)),
        rounding=float(np.finfo(dtype).eps) * (size if dtype == np.float64 else 1),
    )


def _rough_mean(pairs: Pairs, dtype: np.dtype) -> np.ndarray:
    """The mean direction of the first sources (D_s,)."""
    first = slice(0, min(BLOCK_ROWS, len(pairs)))
    return unit_rows(pairs.source, first, SOURCE, np.empty((first.stop, pairs.source_space.size), dtype)).mean(axis=0)


def _sum_blocks(
    pairs: Pairs, blocks: list[slice], origin: np.ndarray, dtype: np.dtype, with_gram: bool
) -> tuple[np.ndarray, ...]:
    """Over some blocks of rows, v counted from the origin: sums of v and of u, of v' u and, if asked for, of v' v."""
    sizes = pairs.source_space.size, pairs.target_space.size
    source_buffer, target_buffer = (np.empty((BLOCK_ROWS, size), dtype) for size in sizes)
    source_sum, target_sum, cross = np.zeros(sizes[0]), np.zeros(sizes[1]), np.zeros(sizes)
    gram = np.zeros((sizes[0], sizes[0]) if with_gram else (0, 0))
    gram_product, cross_product = np.empty(gram.shape, dtype), np.empty(cross.shape, dtype)
    for rows in blocks:
        source, source_scales = read_rows(pairs.source, rows, SOURCE, dtype)
        target, target_scales = read_rows(pairs.target, rows, TARGET, dtype)
        target_sum += target_scales @ target
        if with_gram:
            source = scaled_rows(source, source_scales, source_buffer)
            source -= origin
            gram += np.matmul(source.T, source, out=gram_product)
            source_sum += source.sum(axis=0)
            target = scaled_rows(target, target_scales, target_buffer)
        else:  # the scales of both sides at once: one pass over memory less
            source_sum += source_scales @ source
            source = scaled_rows(source, source_scales * target_scales, source_buffer)
        cross += np.matmul(source.T, target, out=cross_product)
    return source_sum, target_sum, cross, gram
