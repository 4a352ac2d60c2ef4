"""Searches on a sample: one image of each identity is enrolled, drawn several times, and the others are probes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from core.gallery.planning.pair_scores import PairScores

__all__ = ["Draws", "Found", "Resampling", "Segments", "search_draws", "search_segments"]

BLOCK = 1024
"""Probes whose scores are held at a time."""
RESAMPLES = 1000
RESAMPLES_AT_A_TIME = 100


@dataclass(frozen=True, eq=False)
class Found:
    """Scores of each image with the enrolled ones, in each draw; those of an enrolled image mean nothing."""

    right: np.ndarray
    """(R, N) float32: with the image of its identity."""
    wrong: np.ndarray
    """(R, N) float32: the highest with another."""
    hit: np.ndarray
    """(R, N): the row of the sample that has it."""
    alone: np.ndarray
    """(R, N) bool: whether this one, and no other, keeps the right image from coming first."""

    @property
    def is_right(self) -> np.ndarray:
        """(R, N): whether the identity comes first; a tie does not count."""
        return self.right > self.wrong


@dataclass(frozen=True, eq=False)
class Draws:
    """R ways to enrol one image of each of P identities; an identity with one image only has no probe."""

    identities: np.ndarray
    """(N,)."""
    enrolled: np.ndarray
    """(R, P) rows of the sample, by identity."""
    probes: np.ndarray
    """(R, N) bool."""

    @classmethod
    def of(cls, identities: np.ndarray, count: int, seed: int) -> "Draws":
        """`count` draws for the images of `identities` (N,), numbered from 0 without a gap."""
        keys = np.random.default_rng(seed).random((count, len(identities)))
        order = np.lexsort((keys, np.broadcast_to(identities, keys.shape)), axis=1)
        firsts = np.searchsorted(np.sort(identities), np.arange(identities.max() + 1))
        enrolled = order[:, firsts]
        probes = np.ones(keys.shape, bool)
        np.put_along_axis(probes, enrolled, False, axis=1)
        return cls(identities, enrolled, probes)

    def by_identity(self, values: np.ndarray) -> np.ndarray:
        """Sums (..., P) over all draws of what is counted for the probes (..., R, N), by the probe's identity."""
        summed = np.where(self.probes, values, 0).sum(axis=-2, dtype=np.float64)
        order = np.argsort(self.identities, kind="stable")
        firsts = np.searchsorted(self.identities[order], np.arange(self.enrolled.shape[1]))
        return np.add.reduceat(summed[..., order], firsts, axis=-1)

    def influences(self, found: Found) -> np.ndarray:
        """What each identity adds to the number of right answers (P,), to the first order; their sum is that number.

        Its own probes that are answered rightly, less the probes of others that it alone keeps from it, as an entry of
        the gallery: with a further identity of this kind there would be as many more. Then the mean is set right.
        """
        own = self.by_identity(found.is_right)
        blamed = np.bincount(self.identities[found.hit[self.probes & found.alone]], minlength=len(own))
        return own - blamed + blamed.mean()

    def rate(self, values: np.ndarray) -> np.ndarray:
        """Means over all probes of all draws of `values` (..., R, N)."""
        return np.where(self.probes, values, 0).sum(axis=(-2, -1)) / max(1, self.probes.sum())


@dataclass(frozen=True, eq=False)
class Segments:
    """The highest wrong scores among the entries that are embedded again from one point of a curve to the next."""

    right: np.ndarray
    """(N,) float32."""
    wrong: np.ndarray
    """(N, S - 1) float32, -inf where there are none."""


def search_draws(pair: PairScores, draws: Draws) -> Found:
    """Search the enrolled images with all images as queries. Memory: scores of 1,024 queries."""
    shape = draws.probes.shape
    right, wrong, second = (np.empty(shape, np.float32) for _ in range(3))
    hit = np.empty(shape, np.int64)
    for draw, columns in enumerate(draws.enrolled):
        for block, scores in _score_blocks(pair, columns, shape[1]):
            own = draws.identities[block]
            rows = np.arange(len(own))
            right[draw, block] = scores[rows, own]
            scores[rows, own] = -np.inf
            best = scores.argmax(axis=1)
            wrong[draw, block] = scores[rows, best]
            hit[draw, block] = columns[best]
            scores[rows, best] = -np.inf
            second[draw, block] = scores.max(axis=1)
    return Found(right, wrong, hit, (right <= wrong) & (right > second))


def search_segments(
    pair: PairScores, enrolled: np.ndarray, own: np.ndarray, segments: Mapping[str, np.ndarray], count: int
) -> dict[str, Segments]:
    """Scores of all images with the `enrolled` (P,), of which `own` (N,) is right, by order and by segment.

    `segments`: by order the segment (P,) of each entry, below `count`. Memory: scores of 1,024 queries, twice.
    """
    right = np.empty(len(own), np.float32)
    wrong = {order: np.full((len(own), count), -np.inf, np.float32) for order in segments}
    for block, scores in _score_blocks(pair, enrolled, len(own)):
        rows = np.arange(len(scores))
        right[block] = scores[rows, own[block]]
        scores[rows, own[block]] = -np.inf
        for order, segment in segments.items():
            for number in range(count):
                columns = np.flatnonzero(segment == number)
                if len(columns):
                    wrong[order][block, number] = scores[:, columns].max(axis=1)
    return {order: Segments(right, each) for order, each in wrong.items()}


def _score_blocks(pair: PairScores, columns: np.ndarray, count: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of `count` queries and their scores (B, P) with some images, which may be changed."""
    for start in range(0, count, BLOCK):
        block = slice(start, min(start + BLOCK, count))
        yield block, pair(np.arange(block.start, block.stop), columns)


class Resampling:
    """Bootstrap over identities: rates of many samples of as many identities, drawn with replacement.

    An identity keeps all its probes, whose answers depend on each other; the same samples are used for all rates, so
    that differences are paired (Efron 1979). That other identities are enrolled too, then, is in the numbers that are
    resampled (`Draws.influences`).
    """

    def __init__(self, trials: np.ndarray, seed: int):
        """`trials` (P,): the number of probes of each identity."""
        self.trials, self.seed = trials, seed

    def rates(self, counts: np.ndarray) -> np.ndarray:
        """Of numbers by identity (K, P), sums over its probes,: the rates (1000, K) in the samples."""
        probed = np.flatnonzero(self.trials)
        stacked = np.concatenate([counts[:, probed], self.trials[None, probed]]).T
        rng = np.random.default_rng(self.seed)
        shares = np.full(len(probed), 1 / len(probed))
        sums = np.concatenate(
            [
                rng.multinomial(len(probed), shares, RESAMPLES_AT_A_TIME) @ stacked
                for _ in range(RESAMPLES // RESAMPLES_AT_A_TIME)
            ]
        )
        return sums[:, :-1] / sums[:, -1:]
