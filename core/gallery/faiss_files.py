"""Indexes of faiss that keep whole vectors, read from their files without faiss, whose reader trusts what a file says.

IndexFlat and IndexIVFFlat, perhaps in an IndexIDMap or IndexIDMap2, as faiss's index_write.cpp writes them. Each length
in a file is compared with what is left of it; nothing is held but the numbers of the vectors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from core.arrays import MappedArray
from core.errors import UserError

__all__ = ["MOST_NUMBERS", "FaissFile", "read_faiss_file"]

FLAT, IVF, MAPPED, HNSW = (b"IxFI", b"IxF2", b"IxFl"), b"IwFl", (b"IxMp", b"IxM2"), b"IHNf"
KNOWN = (*FLAT, IVF, *MAPPED)
MOST_NUMBERS, MOST_LISTS = 1 << 20, 1 << 24
"""Of a vector, and of an IVF index most of whose lists are empty."""


@dataclass(frozen=True)
class FaissFile:
    """N vectors of size D, which lie in the file in one part or, of an IVF index, list by list."""

    size: int
    numbers: np.ndarray
    """int64 (N,): of the vectors, in the order of the file; without own ones those from 0."""
    own_ids: np.ndarray | None
    """int64: of an IndexIDMap, the id of each number."""
    content: MappedArray
    """The bytes of the file."""
    starts: np.ndarray
    """(lists,): where in the file each part begins."""
    ends: np.ndarray
    """(lists,): how many vectors there are up to the end of each part."""

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, start: int, count: int) -> np.ndarray:
        """Vectors float32 (count, D)."""
        vectors, done, row = np.empty((count, self.size), np.float32), 0, 4 * self.size
        while done < count:
            part = int(np.searchsorted(self.ends, start + done, side="right"))
            first = start + done - (int(self.ends[part - 1]) if part else 0)
            taken = min(int(self.ends[part]) - start - done, count - done)
            at = int(self.starts[part]) + first * row
            vectors[done : done + taken].reshape(-1).view(np.uint8)[:] = self.content[at : at + taken * row]
            done += taken
        return vectors


def read_faiss_file(path: Path) -> FaissFile:
    """`UserError` for a damaged file, and for another kind of index, which is named."""
    if path.stat().st_size == 0:
        raise UserError(f"{path} is none of the files of vectors that are known: .npy, parquet, or a faiss index")
    return _Reader(path).file()


class _Reader:
    """Goes through a file from its beginning to its end."""

    def __init__(self, path: Path):
        self.path, self.position = path, 0
        self.content = cast(MappedArray, MappedArray(path, np.uint8, "r"))

    def file(self) -> FaissFile:
        kind, own = self.kind(), None
        if kind in MAPPED:
            self.header()
            inner = self.vectors(self.kind())
            own = self.vector(np.int64)
        elif kind in KNOWN:
            inner = self.vectors(kind)
        else:
            raise UserError(self.other(kind))
        size, numbers, starts, counts = inner
        if own is not None and len(own) != len(numbers):
            raise self.damaged(f"{len(own)} ids for {len(numbers)} vectors")
        return FaissFile(size, numbers, own, self.content, starts, np.cumsum(counts))

    def other(self, kind: bytes) -> str:
        if not (kind[:1] == b"I" and kind.isalnum()):
            return f"{self.path} is none of the files of vectors that are known: .npy, parquet, or a faiss index"
        return (
            f"{self.path} is a faiss index of the kind {kind.decode()}, which is none that keeps whole vectors: "
            "IndexFlat or IndexIVFFlat, perhaps in an IndexIDMap; give the vectors in one of these"
        )

    def vectors(self, kind: bytes) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Of a flat or IVF index: D, numbers of the vectors, starts and counts of its parts."""
        if kind in FLAT:
            size, count = self.header()
            start = self.flat(size, count)
            return size, np.arange(count), np.array([start]), np.array([count])
        if kind != IVF:
            raise UserError(self.other(kind))
        size, count = self.header()
        lists, _ = self.number(), self.number()
        self.quantizer()
        self.direct_map()
        return size, *self.lists(size, count, lists)

    def lists(self, size: int, count: int, lists: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        kind = self.kind()
        if kind != b"ilar":
            raise UserError(
                f"{self.path} keeps its lists in another file or not at all ({kind!r}): write the index with them in it"
            )
        found, code_size, layout = self.number(), self.number(), self.kind()
        table = self.vector(np.int64)
        if found != lists or code_size != 4 * size or layout not in (b"full", b"sprs"):
            raise self.damaged(f"{found} lists of {code_size} bytes a vector in place of {lists} of {4 * size}")
        if layout == b"sprs":
            pairs = table[: len(table) // 2 * 2].reshape(-1, 2)
            if lists > MOST_LISTS or (len(pairs) and not 0 <= pairs[:, 0].min() <= pairs[:, 0].max() < lists):
                raise self.damaged(f"the table of its {lists} lists")
            table = np.zeros(lists, np.int64)
            table[pairs[:, 0]] = pairs[:, 1]
        if len(table) != lists or (table < 0).any() or sum(table.tolist()) != count:
            raise self.damaged(f"its lists have {sum(table.tolist())} vectors, not {count}")
        self.bounded(count, code_size + 8)
        ends = self.position + np.cumsum(table * (code_size + 8))
        starts = ends - table * (code_size + 8)
        parts = [
            self.content[end - 8 * n : end].tobytes() for n, end in zip(table.tolist(), ends.tolist()) if n
        ]  # of ids, behind the vectors
        self.position += count * (code_size + 8)
        return np.frombuffer(b"".join(parts), "<i8").astype(np.int64), starts, table

    def quantizer(self) -> None:
        """Pass over the index of the centres."""
        kind = self.kind()
        if kind not in (*FLAT, HNSW):
            raise UserError(
                f"{self.path} has its centres in a faiss index of the kind {kind!r}, which is not read: give the "
                "vectors in an IndexFlat"
            )
        size, count = self.header()
        if kind == HNSW:
            for width in (8, 4, 4, 8, 4):  # probabilities, neighbours by level, levels, offsets, neighbours
                self.take(self.number(), width)
            self.take(5, 4)  # entry, levels, and the efforts of building and searching
            kind = self.kind()
            size, count = self.header() if kind in FLAT else (0, 0)
        if kind not in FLAT:
            raise self.damaged("the index of its centres")
        self.flat(size, count)

    def direct_map(self) -> None:
        kind = self.take(1)[0]
        self.take(self.number(), 8)
        if kind == 2:
            self.take(self.number(), 16)

    def flat(self, size: int, count: int) -> int:
        """Where the vectors begin."""
        if (found := self.number()) != size * count:
            raise self.damaged(f"{found} numbers for {count} vectors of {size}")
        start = self.position
        self.take(found, 4)
        return start

    def header(self) -> tuple[int, int]:
        """D and N."""
        size = int(self.take(4).view("<i4")[0])
        count = self.number()
        self.take(17)  # two that are not used, and whether it is trained
        if int(self.take(4).view("<i4")[0]) > 1:  # a metric with an argument
            self.take(4)
        if not 0 < size <= MOST_NUMBERS:
            raise self.damaged(f"vectors of {size} numbers")
        return size, count

    def kind(self) -> bytes:
        return self.take(4).tobytes()

    def number(self) -> int:
        return int(self.take(8).view("<u8")[0])

    def vector(self, dtype: type) -> np.ndarray:
        count = self.number()
        return self.take(count, np.dtype(dtype).itemsize).view(dtype)

    def take(self, count: int, width: int = 1) -> np.ndarray:
        """The next bytes, at an address that suits any type."""
        size = self.bounded(count, width) * width
        self.position += size
        mapped = self.content[self.position - size : self.position]
        return np.array(mapped) if size <= 64 else mapped

    def bounded(self, count: int, width: int = 1) -> int:
        if count * width > len(self.content) - self.position:
            raise self.damaged(f"{count} entries of {width} bytes where {len(self.content) - self.position} are left")
        return count

    def damaged(self, what: str) -> UserError:
        return UserError(f"{self.path} is a damaged faiss index: {what}; write it again")
