"""Scores of different embedding spaces on one scale, by what scores of different people are like in each space.

A cosine of 0.4 may be certain in one space and ordinary in another, so that scores of two spaces cannot be ranked
together as they are. What they have in common is how often two different people reach them.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["CALIBRATIONS", "ScoreCalibration", "fit_calibration"]

TAIL = 100
"""The highest impostor scores that the tail is fitted to: at most so many, and at most a tenth of all."""
FEWEST = 20
KNOTS = 256
CALIBRATIONS = ("z-score", "far")


@dataclass(frozen=True)
class ScoreCalibration:
    """What scores of different people (impostors) are like in one space, or between two.

    `mean` and `deviation` of the impostor scores, and their false accept rate as a curve: `far` (K,) at `scores` (K,),
    ascending; beyond the last, the rate falls exponentially with the score, by a factor of e for each `decay`.
    """

    mean: float
    deviation: float
    scores: np.ndarray
    log_far: np.ndarray
    decay: float

    def log_false_accept_rate(self, scores: np.ndarray) -> np.ndarray:
        """Natural logarithm of the estimated share of impostors that reach each score, of the scores' shape.

        Linear in the score between the knots, exponential beyond them; it falls strictly above the lowest knot.
        """
        inside = np.interp(scores, self.scores, self.log_far)
        beyond = self.log_far[-1] - (scores - self.scores[-1]) / self.decay
        return np.where(scores > self.scores[-1], beyond, inside)

    def threshold(self, far: float) -> float:
        """The score from which on a share `far` of impostors is accepted, above 0 and at most 1: the reverse."""
        log_far = np.log(far)
        if log_far < self.log_far[-1]:
            return float(self.scores[-1] + (self.log_far[-1] - log_far) * self.decay)
        return float(np.interp(log_far, self.log_far[::-1], self.scores[::-1]))

    def __call__(self, scores: np.ndarray, kind: str = "far") -> np.ndarray:
        """Scores of this space on the common scale, larger for more alike.

        `kind` "z-score": (score - mean) / deviation of impostors; "far": minus the logarithm of the estimated rate.
        """
        if kind == "z-score":
            return (scores - self.mean) / self.deviation
        return -self.log_false_accept_rate(scores)


def fit_calibration(impostor: np.ndarray) -> ScoreCalibration:
    """The calibration of impostor scores (I,), finite and in any order.

    The rate at a knot is the share of scores that reach it. Too few scores lie above the highest knot to be counted, so
    the tail is modelled: excesses over that knot are taken as exponential (their mean is `decay`), the simplest case of
    the peaks over threshold of extreme value theory (Pickands 1975). `ValueError` for fewer than 20 scores, or if all
    are equal.
    """
    if len(impostor) < FEWEST:
        raise ValueError(f"{len(impostor)} scores of different people are too few: at least {FEWEST} are needed")
    ordered = np.sort(impostor.astype(np.float64))
    mean, deviation = float(ordered.mean()), float(ordered.std())
    if not deviation > 0:
        raise ValueError(f"all {len(impostor)} scores of different people are {mean:.3g}")
    tail = max(2, min(TAIL, len(ordered) // 10))
    scores = np.unique(ordered[-np.unique(np.geomspace(tail, len(ordered), KNOTS).astype(np.int64))])
    reached = len(ordered) - np.searchsorted(ordered, scores, "left")
    excess = ordered[-tail:] - ordered[-tail]
    decay = float(excess.sum() / (tail - 1))  # that of the knot is no excess
    return ScoreCalibration(mean, deviation, scores, np.log(reached / len(ordered)), decay if decay > 0 else deviation)
