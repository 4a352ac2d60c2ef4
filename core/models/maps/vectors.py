"""What maps are fitted on and applied to: vectors in rows, the space that they lie in, and pairs of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from core.errors import UserError

__all__ = [
    "Pairs",
    "Space",
    "Vectors",
    "open_pairs",
    "open_vectors",
    "read_rows",
    "row_blocks",
    "scaled_rows",
    "unit_rows",
]

BLOCK_ROWS = 2048
"""Rows that are read and normalised at a time: few enough to stay in a processor's cache."""
SAFE_LENGTHS = (1e-15, 1e15)
"""The squares of lengths between these neither underflow nor overflow in float32."""


@dataclass(frozen=True)
class Space:
    """A model's embedding space."""

    size: int
    """D."""
    name: str = "unnamed"
    """Of the model, for people."""
    fingerprint: str | None = None
    """Of the model (`core.models.encoder.Encoder`); None: not known, then nothing is checked against it."""

    def __str__(self) -> str:
        known = "" if self.fingerprint is None else f", fingerprint {self.fingerprint[:12]}"
        return f"{self.name} (size {self.size}{known})"


class _StoreInfo(Protocol):
    @property
    def model_name(self) -> str: ...
    @property
    def model_fingerprint(self) -> str: ...
    @property
    def data_name(self) -> str: ...
    @property
    def data_fingerprint(self) -> str: ...


@runtime_checkable
class _Store(Protocol):
    """As much of `core.embeddings.store.EmbeddingStore`, which belongs to a higher room, as is used here."""

    @property
    def info(self) -> _StoreInfo: ...
    @property
    def features(self) -> np.ndarray: ...


Vectors: TypeAlias = np.ndarray | _Store
"""(N, D): an array of numbers, also a memory-mapped one, or an embedding store, which knows its model and its data."""


def open_vectors(vectors: Vectors, what: str) -> tuple[np.ndarray, Space]:
    """The rows (N, D) and their space; `UserError` naming `what` they are if they are no rows of real numbers."""
    rows = vectors.features if isinstance(vectors, _Store) else vectors
    if not isinstance(rows, np.ndarray):
        rows = np.asarray(rows)
    if rows.ndim != 2 or rows.shape[1] == 0 or rows.dtype.kind not in "fiu":
        raise UserError(
            f"{what} must be an array (N, D) of real numbers, one vector a row: got {rows.dtype} {rows.shape}"
        )
    if isinstance(vectors, _Store):
        return rows, Space(rows.shape[1], vectors.info.model_name, vectors.info.model_fingerprint)
    return rows, Space(rows.shape[1])


@dataclass(frozen=True, eq=False)
class Pairs:
    """Embeddings of the same N images by two models, as they are stored, row by row."""

    source: np.ndarray
    """(N, D_s)."""
    target: np.ndarray
    """(N, D_t)."""
    source_space: Space
    target_space: Space

    def __len__(self) -> int:
        return len(self.source)

    def unit_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """All pairs at once, normalised, float64."""
        rows = slice(0, len(self))
        sides = (self.source, "source vectors"), (self.target, "target vectors")
        source, target = (unit_rows(side, rows, what, np.empty(side.shape)) for side, what in sides)
        return source, target


def open_pairs(source: Vectors, target: Vectors, spaces: tuple[Space, Space] | None = None) -> Pairs:
    """The pairs of two arrays or stores, and the spaces that they lie in, unless `spaces` says it.

    `UserError` if their numbers of rows differ, or they are stores of different data.
    """
    (source_rows, source_space), (target_rows, target_space) = (
        open_vectors(source, "source vectors"),
        open_vectors(target, "target vectors"),
    )
    if len(source_rows) != len(target_rows):
        raise UserError(
            f"{len(source_rows)} source vectors and {len(target_rows)} target vectors are no pairs: give the vectors "
            "of the same images, in the same order"
        )
    if isinstance(source, _Store) and isinstance(target, _Store):
        ours, theirs = source.info, target.info
        if ours.data_fingerprint != theirs.data_fingerprint:
            raise UserError(
                f"the stores are no pairs: {ours.model_name}'s was made from {ours.data_name} (fingerprint "
                f"{ours.data_fingerprint[:12]}), {theirs.model_name}'s from {theirs.data_name} (fingerprint "
                f"{theirs.data_fingerprint[:12]}): extract both models' embeddings of the same images"
            )
    if spaces is not None:
        for given, found in zip(spaces, (source_space, target_space)):
            if given.size != found.size:
                raise UserError(f"vectors of size {found.size} are not of the space of {given}: give that model's")
        source_space, target_space = spaces
    return Pairs(source_rows, target_rows, source_space, target_space)


def row_blocks(count: int) -> Iterator[slice]:
    """Slices of `BLOCK_ROWS` rows over `count` rows."""
    return (slice(start, min(start + BLOCK_ROWS, count)) for start in range(0, count, BLOCK_ROWS))


def read_rows(vectors: np.ndarray, rows: slice, what: str, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `vectors` (N, D), perhaps scaled, and one over the length of each as they are given here, in `dtype`.

    `UserError` with the number of the first row that has no direction: one that is zero or not finite.
    """
    block = np.asarray(vectors[rows], dtype=dtype)
    with np.errstate(all="ignore"):
        squares = np.einsum("nd,nd->n", block, block)
        if not (SAFE_LENGTHS[0] ** 2 < squares.min() and squares.max() < SAFE_LENGTHS[1] ** 2):  # also if one is NaN
            block = _without_extremes(np.asarray(vectors[rows], dtype=np.float64), rows.start, what).astype(dtype)
            squares = np.einsum("nd,nd->n", block, block)
    return block, 1 / np.sqrt(squares)


def scaled_rows(block: np.ndarray, scales: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The rows of a block (n, D) times `scales` (n,), in the first rows of `out`."""
    return np.einsum("nd,n->nd", block, scales, out=out[: len(block)])  # faster than np.multiply


def unit_rows(vectors: np.ndarray, rows: slice, what: str, out: np.ndarray) -> np.ndarray:
    """The rows of `vectors` (N, D) divided by their lengths, in the first rows of `out`; errors as of `read_rows`."""
    return scaled_rows(*read_rows(vectors, rows, what, out.dtype), out)


def _without_extremes(block: np.ndarray, first_row: int, what: str) -> np.ndarray:
    """The rows divided by their largest number, so that squares of very long and very short ones can be summed."""
    largest = np.abs(block).max(axis=1)  # NaN if one number is
    bad = np.flatnonzero(~(np.isfinite(largest) & (largest > 0)))
    if len(bad):
        problem = "zero" if largest[bad[0]] == 0 else "not finite"
        raise UserError(f"row {first_row + bad[0]} of the {what} is {problem}, it has no direction: leave it out")
    return block / largest[:, None]
