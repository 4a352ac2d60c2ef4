"""Where a gallery's vectors lie: what a folder (`core.gallery.folder`) and Milvus (`core.gallery.milvus`) both do.

A gallery has entries: an id (any UTF-8 text, once in a gallery), an optional class and the optional path of its image.
For each entry there is a vector of one model or of several ("versions"), each stamped with the key of its model. The
same id enrolled again is another entry in its place, with another row number: what was computed for the entry before
can then no longer be written by mistake.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

__all__ = ["BLOCK", "Entries", "Hits", "Store", "Version"]

BLOCK = 4096
"""Entries that are read, written and checked together."""


@dataclass(frozen=True)
class Version:
    """The model that vectors are stamped with."""

    key: str
    """Fingerprint of the encoder, or the name that the user gave to a model that is not at hand."""
    name: str
    """For people."""
    size: int
    """Of its vectors, D."""
    model: str | None = None
    """The model argument, if the model is at hand."""


@dataclass(frozen=True)
class Entries:
    """A block of B entries."""

    rows: np.ndarray
    """(B,) int64, in the order of enrolment; never used again for another entry."""
    ids: list[str]
    labels: list[str | None]
    images: list[str | None]


@dataclass(frozen=True)
class Hits:
    """The k best entries of one version for each of Q queries, best first."""

    scores: np.ndarray
    """(Q, k) float32 cosines; -inf where there were fewer than k entries."""
    ids: np.ndarray
    """(Q, k) of dtype object: str, None where there is none."""


class Store(Protocol):
    """Each call is done as a whole or not at all, and durable when it returns; a killed one leaves no trace.

    Calls of several processes may go on at the same time: readers see the state before or after a write. A write waits
    a moment for another writer, then raises a `UserError` that says so.
    """

    place: str
    """Path or URI, for messages."""

    def versions(self) -> dict[str, Version]:
        """By key, in the order in which they were added."""
        ...

    def counts(self) -> dict[str, int]:
        """Number of entries with a vector of each version, by key."""
        ...

    def __len__(self) -> int:
        """Number of entries."""
        ...

    def document(self, name: str) -> Any:
        """A small JSON value (up to some MB) that is kept with the vectors; None if there is none of the name."""
        ...

    def set_documents(self, documents: Mapping[str, Any]) -> None:
        """Replace documents, all at once; a value of None removes one."""
        ...

    def add_version(self, version: Version) -> None:
        """Nothing if it is there already with the same size; `UserError` if with another."""
        ...

    def drop_version(self, key: str, documents: Mapping[str, Any] | None = None) -> None:
        """Remove a version with all its vectors and free their room; with it replace `documents`, in the same step.

        `UserError` if an entry would be left without any vector: nothing would find it again.
        """
        ...

    def require_room(self, needed: int) -> None:
        """`UserError` unless there is room for so many more bytes of vectors, as far as the store sees its disk."""
        ...

    def enrol(
        self,
        ids: Sequence[str],
        vectors: Mapping[str, np.ndarray],
        labels: Sequence[str | None] | None = None,
        images: Sequence[str | None] | None = None,
    ) -> None:
        """Add entries, or put them in the place of those with the same ids, of which nothing stays.

        `vectors`: by the key of a version that is there, (B, D) float32 or float16, finite and not zero, kept as given.
        `UserError` for an id that comes twice among `ids`, and for vectors of another size.
        """
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Remove entries with all their vectors; returns how many there were."""
        ...

    def add_vectors(self, key: str, rows: np.ndarray, vectors: np.ndarray) -> int:
        """Give entries (B,) a vector (B, D) of another version, or replace it; returns how many were written.

        Entries that were deleted or enrolled again since their `rows` were read are passed over.
        """
        ...

    def entries(self, lacking: str | None = None, size: int = BLOCK) -> Iterator[Entries]:
        """All entries in the order of their rows, in blocks; with `lacking` only those without a vector of it.

        Memory: one block. Entries that come or go meanwhile may be among them or not.
        """
        ...

    def entries_at(self, rows: np.ndarray) -> Entries:
        """The entries of `rows` that still exist, in the order of `rows`."""
        ...

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """Rows (B,) of ids, -1 for one that is not there."""
        ...

    def vectors(self, key: str, rows: np.ndarray) -> np.ndarray:
        """(B, D) as they were given; `UserError` if an entry has none of that version."""
        ...

    def vectors_at(self, key: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of `rows` that still exist and have a vector of a version, in their order, and the vectors (B, D)."""
        ...

    def search(self, key: str, queries: np.ndarray, k: int, without: Sequence[str] = (), index: str = "exact") -> Hits:
        """The k entries whose vectors of a version have the largest cosines with unit queries (Q, D) float32.

        Entries that have a vector of one of the versions `without` are left out. `index`: "exact", "hnsw" or "ivf".
        """
        ...

    def verify(self) -> list[str]:
        """The faults found: checks every checksum, that every id is there once, and which vector is whose.

        An entry without any vector is one too, and a vector without an entry.
        """
        ...

    def claimed(self, work: str) -> AbstractContextManager[None]:
        """Hold the gallery for one long work, named for people; `UserError` that says which other one holds it.

        The claim ends with the context, or with the process if it is killed. Entries may be enrolled, changed and
        deleted meanwhile.
        """
        ...

    def close(self) -> None:
        """Free what is open."""
        ...
