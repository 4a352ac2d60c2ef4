"""Linear maps x -> x W + b in closed form, from the moments of the pairs (v_i, u_i), all vectors of unit length.

procrustes   W orthogonal, min sum |v_i W - u_i|²: W = P Q' of the SVD P S Q' of V'U (Schönemann 1966). For D_s > D_t it
             is the first D_t columns of the rotation onto the targets padded with zeros; for D_s < D_t, W W' = I.
             Centred: also b, min sum |v_i W + b - u_i|²; the same of the vectors minus their means.
ridge        min sum |v_i W + b - u_i|² + penalty |W|², b free (Hoerl and Kennard 1970): one eigendecomposition of the
             centred V'V gives W for every penalty.
low_rank     the same among all W of a rank (reduced-rank ridge regression, Mukherjee and Zhu 2011).

The penalty is the one of a grid with the least error on pairs that are left out, one at a time, in closed form from the
same decomposition, as scikit-learn's RidgeCV has it. Of many pairs, whose leverages hardly differ, it is the one with
the least error of generalised cross-validation (Golub, Heath and Wahba 1979), which needs no second pass over the rows:

    GCV(penalty) = N RSS / (N - 1 - t)²,    t = sum_j e_j / (e_j + penalty),  e_j the eigenvalues,

RSS the sum of squared errors on the pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.linalg import eigh, svd

from core.models.maps.moments import Moments

__all__ = ["Affine", "RidgeProblem", "penalty_grid", "procrustes"]


@dataclass(frozen=True, eq=False)
class Affine:
    """x -> x W + b, float64."""

    weight: np.ndarray
    """W, (D_s, D_t)."""
    bias: np.ndarray
    """b, (D_t,)."""


def procrustes(moments: Moments, centred: bool) -> tuple[Affine, int]:
    """The orthogonal map, and its rank: how many directions the pairs determine, of min(D_s, D_t)."""
    left, values, right = svd(moments.cross if centred else moments.plain_cross, full_matrices=False)
    weight = left @ right
    bias = moments.target_mean - moments.source_mean @ weight if centred else np.zeros(weight.shape[1])
    return Affine(weight, bias), int((values > values[0] * moments.rounding).sum())


def penalty_grid(moments: Moments) -> np.ndarray:
    """33 penalties: 10^-6 to 10^2 of the mean eigenvalue of the centred V'V, four to a power of ten."""
    return np.logspace(-6, 2, 33) * np.trace(moments.gram) / len(moments.gram)


class RidgeProblem:
    """Ridge regression of the centred pairs for every penalty, from one eigendecomposition."""

    def __init__(self, moments: Moments):
        self.moments = moments
        values, vectors = eigh(moments.gram)
        # in the others the sources do not vary at all; where in none, the largest is rounding too, of N unit vectors
        kept = values > max(values[-1] * moments.rounding, moments.count * np.finfo(np.float64).eps)
        self.eigenvalues, self._vectors = values[kept], vectors[:, kept]
        self._targets = self._vectors.T @ moments.cross

    def gcv_errors(self, penalties: np.ndarray) -> np.ndarray:
        """GCV of each of the penalties (P,), all above 0: an estimate of the mean squared error of a pair not seen."""
        values, count, rank = self.eigenvalues, self.moments.count, len(self.eigenvalues)
        explained = (self._targets**2).sum(axis=1) / values
        left_over = max(0.0, self.moments.target_scatter - explained.sum()) if rank < count - 1 else 0.0
        shrunk = penalties[:, None] / (values + penalties[:, None])  # 1 - e / (e + penalty), without cancellation
        residual = left_over + (shrunk**2) @ explained
        return count * residual / (count - 1 - rank + shrunk.sum(axis=1)) ** 2

    def leave_one_out_errors(self, penalties: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """For each of the penalties (P,) the mean squared error of a pair that the map is fitted without, exactly.

        `source` (N, D_s) and `target` (N, D_t) are the pairs, of unit length.
        """
        scores = (source - self.moments.source_mean) @ self._vectors
        target = target - self.moments.target_mean
        errors = np.empty(len(penalties))
        for number, penalty in enumerate(penalties):
            shrunk = scores / (self.eigenvalues + penalty)
            left = 1 - 1 / len(source) - (shrunk * scores).sum(axis=1)  # 1 - leverage
            errors[number] = (((target - shrunk @ self._targets) / left[:, None]) ** 2).sum(axis=1).mean()
        return errors

    def choose_penalty(
        self, penalties: Sequence[float] | np.ndarray, pairs: tuple[np.ndarray, np.ndarray] | None = None
    ) -> float:
        """The penalty with the least error, the largest of them if several have it.

        With the `pairs`, of unit length, by leaving out one at a time, else by GCV.
        """
        ordered = np.sort(np.asarray(penalties, dtype=np.float64))[::-1]
        errors = self.gcv_errors(ordered) if pairs is None else self.leave_one_out_errors(ordered, *pairs)
        return float(ordered[errors.argmin()])

    def solve(self, penalty: float) -> Affine:
        """The map with this penalty; 0: of those with the least squared error the one of least norm."""
        weight = self._vectors @ (self._targets / (self.eigenvalues + penalty)[:, None])
        return Affine(weight, self.moments.target_mean - self.moments.source_mean @ weight)

    def solve_low_rank(self, penalty: float, rank: int) -> tuple[np.ndarray, Affine]:
        """The best map of a rank, as a matrix (D_s, r) and a map of what it gives; r < rank if the pairs vary less."""
        scaled = self._targets / np.sqrt(self.eigenvalues + penalty)[:, None]
        basis = svd(scaled, full_matrices=False)[2][:rank]
        inner = self.solve(penalty).weight @ basis.T
        return inner, Affine(basis, self.moments.target_mean - self.moments.source_mean @ inner @ basis)
