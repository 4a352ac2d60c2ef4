"""A file of vectors in slots, in the order of their arrival: written behind its end alone, and read through a map.

The database says how many slots count. What lies behind them is left of a write that was not finished, and the next
write puts its own there; so a reader's slots never change under it.
"""

import io
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.arrays import MappedArray
from core.errors import UserError
from core.models.maps.vectors import row_blocks, unit_rows
from core.outputs import flush_folder, writing

__all__ = ["SLOTS", "UnitRows", "VectorFile", "require_slots"]

SLOTS = 4096
"""In a block, which has a checksum: part of the format."""


@dataclass(frozen=True)
class VectorFile:
    """`slots` vectors (slots, D) of one dtype, without a header."""

    path: Path
    size: int
    dtype: np.dtype
    slots: int

    @property
    def _row(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def _bytes(self) -> int:
        return self.slots * self._row

    def open(self) -> np.ndarray:
        """The vectors (slots, D), memory-mapped. `FileNotFoundError` if it is gone; `UserError` if it is too short."""
        if not self.slots:
            return np.empty((0, self.size), self.dtype)
        self._require_whole()
        return MappedArray(self.path, self.dtype, "r", shape=(self.slots, self.size))

    def _require_whole(self) -> None:
        if (found := os.stat(self.path).st_size) < self._bytes:
            raise UserError(
                f"{self.path} is damaged: {found} bytes in place of {self._bytes}; restore the gallery from a backup"
            )

    def append(self, vectors: np.ndarray, crc: int, what: str) -> list[tuple[int, int]]:
        """Write vectors (B, D) behind the end; returns the blocks of slots that they touch, each with its checksum.

        `crc`: of the last block so far. They are on the disk when it returns. `UserError` that names `what` they
        are for a vector that is zero or not finite. Memory: a block.
        """
        if self.slots:
            self._require_whole()
        checksums = {}
        with writing(self.path), open(self.path, "r+b" if self.slots else "wb", buffering=0) as file:
            file.truncate(self._bytes)
            file.seek(self._bytes)
            for block, rows in _by_block(self.slots, len(vectors)):
                with np.errstate(over="ignore"):
                    part = np.ascontiguousarray(vectors[rows], self.dtype)
                _require_directions(part, rows.start, what)
                data = part.reshape(-1).view(np.uint8).data
                _write(file, data)
                crc = zlib.crc32(data, crc if (self.slots + rows.start) % SLOTS else 0)
                checksums[block] = crc
            os.fsync(file.fileno())
        if not self.slots:
            flush_folder(self.path.parent)
        return list(checksums.items())

    def trim(self) -> None:
        """Cut off what does not count."""
        with suppress(FileNotFoundError):
            if os.stat(self.path).st_size > self._bytes:
                os.truncate(self.path, self._bytes)

    def checksums(self) -> Iterator[tuple[int, int | None]]:
        """Number and checksum of each block as it is on the disk, None for one that cannot be read. `OSError`."""
        with open(self.path, "rb", buffering=0) as file:
            for block, rows in _by_block(0, self.slots):
                length = (rows.stop - rows.start) * self._row
                try:
                    data = os.pread(file.fileno(), length, rows.start * self._row)
                except OSError:
                    data = b""
                yield block, zlib.crc32(data) if len(data) == length else None


class UnitRows:
    """Vectors (N, D) in some slots, as unit vectors float32 when they are read. Memory: what is read."""

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, vectors: np.ndarray, slots: np.ndarray):
        """`vectors`: (S, D); `slots`: (N,) ascending."""
        require_slots(slots, len(vectors))
        self._vectors, self._slots = vectors, slots
        self.shape = (len(slots), vectors.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        slots = self._slots[rows]
        flat = slots.reshape(-1)
        units = np.empty((len(flat), self.shape[1]), np.float32)
        for block in row_blocks(len(flat)):
            vectors = _read(self._vectors, flat[block])
            unit_rows(vectors, slice(0, len(vectors)), "stored vectors", units[block])
        return units.reshape(*slots.shape, self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)


def require_slots(slots: np.ndarray, count: int) -> None:
    """`UserError` unless slots (N,) are among the first `count`: what says it may be damaged."""
    if len(slots) and not 0 <= slots.min() <= slots.max() < count:
        raise UserError(
            f"the gallery is damaged: vectors in the slots {slots.min()} to {slots.max()} are asked for, of {count}; "
            "check it with verify, restore it from a backup"
        )


def _read(vectors: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """`vectors[slots]`; not copied where the slots follow each other."""
    first, last = int(slots[0]), int(slots[-1])
    if last - first == len(slots) - 1 and (np.diff(slots) == 1).all():
        return vectors[first : last + 1]
    return vectors[slots]


def _by_block(start: int, count: int) -> Iterator[tuple[int, slice]]:
    """Numbers of the blocks that `count` slots from `start` on touch, each with the rows (of `count`) that go there."""
    for block in range(start // SLOTS, -(-(start + count) // SLOTS)):
        yield block, slice(max(block * SLOTS - start, 0), min((block + 1) * SLOTS - start, count))


def _require_directions(vectors: np.ndarray, first: int, what: str) -> None:
    for rows in row_blocks(len(vectors)):
        part = vectors[rows].astype(np.float32, copy=False)
        with np.errstate(all="ignore"):
            squares = np.einsum("nd,nd->n", part, part)
        doubtful = np.flatnonzero(~((squares > 1e-30) & (squares < 1e30)))  # also NaN, and what overflows
        largest = np.abs(part[doubtful]).max(axis=1, initial=0)
        bad = doubtful[~(np.isfinite(largest) & (largest > 0))]
        if len(bad):
            problem = "zero" if not part[bad[0]].any() else "not finite"
            raise UserError(
                f"row {first + rows.start + bad[0]} of the {what} is {problem}, it has no direction: leave it out"
            )


def _write(file: io.RawIOBase, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]
