"""The sample that a plan is made on: the owner's images with identities, embedded by the old and by the new model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.arrays import open_vector_array
from core.errors import UserError
from core.gallery.text_lists import read_lines
from core.models.maps.vectors import open_vectors, unit_rows

__all__ = ["Sample", "pair_sample"]


@dataclass(frozen=True, eq=False)
class Sample:
    """N images of P identities; unit vectors of both models, row by row, float32."""

    old: np.ndarray
    """(N, D_old)."""
    new: np.ndarray
    """(N, D_new)."""
    identities: np.ndarray
    """(N,) int64, numbers from 0 to P - 1."""
    identity_names: list[str]
    """(P)."""
    names: list[str]
    """(N): paths of the images, or numbers of rows."""

    @classmethod
    def of(
        cls,
        old: np.ndarray,
        new: np.ndarray,
        identities: list[str],
        names: list[str] | None = None,
        what: tuple[str, str] = ("old vectors", "new vectors"),
    ) -> "Sample":
        """Vectors of any length and the identity of each; `what` the vectors are is said in messages.

        `UserError` unless all have the same number of rows, and no vector is zero or not finite.
        """
        (old, _), (new, _) = open_vectors(old, what[0]), open_vectors(new, what[1])
        for name, count in zip((what[1], "identities"), (len(new), len(identities))):
            if count != len(old):
                raise UserError(
                    f"{len(old)} {what[0]}, but {count} {name}: give both models' vectors of the same images in the "
                    "same order, and one identity for each"
                )
        of_old, of_new = (
            unit_rows(side, slice(0, len(side)), name, np.empty(side.shape, np.float32))
            for side, name in zip((old, new), what)
        )
        numbers = {name: number for number, name in enumerate(dict.fromkeys(identities))}
        rows = np.array([numbers[name] for name in identities], dtype=np.int64)
        return cls(of_old, of_new, rows, list(numbers), names or [str(row) for row in range(len(rows))])


def pair_sample(old: str | Path, new: str | Path, labels: str | Path) -> Sample:
    """The sample of two `.npy` files of vectors and a text file with an identity a line; `UserError` as `Sample.of`."""
    identities = [line.strip() for line in read_lines(labels, "file of identities")]
    while identities and not identities[-1]:
        identities.pop()
    if "" in identities:
        raise UserError(f"{labels}, line {identities.index('') + 1} is empty: each line is the identity of an image")
    return Sample.of(
        open_vector_array(old), open_vector_array(new), identities, None, (f"vectors of {old}", f"vectors of {new}")
    )
