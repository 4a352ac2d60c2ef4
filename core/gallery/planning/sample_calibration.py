"""Calibrations from a sample, and what their thresholds give on identities of which they have seen nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import UserError
from core.evaluation.calibration import FEWEST, ScoreCalibration, fit_calibration
from core.evaluation.roc import FARS
from core.gallery.planning.pair_scores import PairScores

__all__ = ["PAIRS", "Calibrator", "far_name", "impostor_pairs"]

PAIRS = {
    "stay": "old/old",
    "direct": "new/old",
    "query_map": "query_map/old",
    "gallery_map": "new/gallery_map",
    "side_by_side": "old/old",
    "full_backfill": "new/new",
}
"""What is compared with the stored part of the gallery, by road; of full_backfill with the refreshed one."""
OLD = "old/old"
MOST_IMAGES = 4000
"""Of the sample whose scores with each other are counted."""


def far_name(far: float) -> str:
    """As results files have it."""
    return f"far={far:.0e}"


def impostor_pairs(identities: np.ndarray) -> int:
    """Ordered pairs of images of different identities, numbered from 0, among those that are counted."""
    count = min(len(identities), MOST_IMAGES)
    shares = np.bincount(identities) / len(identities)
    return int(round(count**2 * (1 - (shares**2).sum())))


@dataclass(frozen=True, eq=False)
class Calibrator:
    """Scores of a sample's images with each other, all of different identities being impostors.

    Memory: 8 bytes for each of at most 16 million pairs of images, three times.
    """

    scores: Mapping[str, PairScores]
    """By pair (`PAIRS`)."""
    identities: np.ndarray
    """(N,), numbered from 0."""
    halves: np.ndarray
    """(N,) 0 or 1: each identity is in one."""
    rows: np.ndarray
    """Of the images that are counted."""

    @classmethod
    def of(
        cls, scores: Mapping[str, PairScores], identities: np.ndarray, halves: np.ndarray, seed: int
    ) -> "Calibrator":
        """All images are counted, or 4,000 drawn by the seed."""
        count = len(identities)
        rows = np.sort(np.random.default_rng(seed).choice(count, min(count, MOST_IMAGES), replace=False))
        return cls(scores, identities, halves, rows)

    def of_all(self, pair: str) -> ScoreCalibration:
        """From all identities."""
        return _fit(self._scores(pair, self.rows)[1])

    def of_other_halves(self, pair: str) -> tuple[ScoreCalibration, ScoreCalibration]:
        """For the identities of each half the calibration from those of the other half.

        From all identities where a half has too few images, in a sample that is not enough for anything.
        """
        scores = [self._scores(pair, self.rows[self.halves[self.rows] == half])[1] for half in (1, 0)]
        if min(map(len, scores)) < FEWEST:
            return self.of_all(pair), self.of_all(pair)
        return _fit(scores[0]), _fit(scores[1])

    def thresholds(self, calibration: ScoreCalibration) -> dict[str, float | None]:
        """Scores at each FAR; None where fewer than one impostor pair of the sample would be accepted."""
        resolved = impostor_pairs(self.identities)
        return {far_name(far): calibration.threshold(far) if far * resolved >= 1 else None for far in FARS}

    def realised(
        self, pair: str, calibrations: Mapping[str, Sequence[ScoreCalibration]]
    ) -> dict[str, dict[str, float | None]]:
        """By FAR: `far` and `tar` of each half at the other half's thresholds, and `impostors`, the pairs that tell.

        But for the old pair itself also `far_at_old` and `tar_at_old`, at the thresholds of the old pair. Means of the
        two halves, weighted by their pairs. None where they have too few pairs for the FAR. `calibrations`: by pair
        those of `of_other_halves`.
        """
        sums = {far_name(far): np.zeros(4) for far in FARS}
        totals = np.zeros(2)
        for half in (0, 1):
            genuine, impostor = self._scores(pair, self.rows[self.halves[self.rows] == half])
            totals += len(impostor), len(genuine)
            for far in FARS:
                for place, of_halves in enumerate((calibrations[pair], calibrations[OLD])):
                    least = of_halves[half].threshold(far)
                    accepted = (impostor >= least).sum(), (genuine >= least).sum()
                    sums[far_name(far)][2 * place : 2 * place + 2] += accepted
        names = ("far", "tar", "far_at_old", "tar_at_old")[: 2 if pair == OLD else 4]
        found: dict[str, dict[str, float | None]] = {}
        for far in FARS:
            known = far * totals[0] >= 1 and totals[1] > 0
            rates = sums[far_name(far)] / np.tile(totals, 2).clip(min=1)
            found[far_name(far)] = {name: float(rate) if known else None for name, rate in zip(names, rates)}
            found[far_name(far)]["impostors"] = int(totals[0])
        return found

    def _scores(self, pair: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores of all ordered pairs of two different images of `rows`: of one identity and of two."""
        scores = self.scores[pair](rows, rows)
        same = self.identities[rows][:, None] == self.identities[rows]
        impostor = scores[~same]
        np.fill_diagonal(same, False)
        return scores[same], impostor


def _fit(impostor: np.ndarray) -> ScoreCalibration:
    try:
        return fit_calibration(impostor)
    except ValueError as error:
        raise UserError(f"the sample has too few images to calibrate scores: {error}; give more identities") from error
