"""A store in memory, of dicts and plain NumPy, and vectors to put into it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from core.errors import UserError
from core.gallery.store import BLOCK, Entries, Hits, Version


def vectors(count: int, size: int = 8, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """(count, size) of random directions, not of unit length."""
    return np.random.default_rng(seed).standard_normal((count, size)).astype(dtype)


def unit(rows: np.ndarray) -> np.ndarray:
    """The rows as unit vectors, float64."""
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class MemoryStore:
    """A `core.gallery.store.Store` without a disk: what a test puts in is there until it ends."""

    def __init__(self, place: str = "memory"):
        self.place = place
        self._versions: dict[str, Version] = {}
        self._documents: dict[str, Any] = {}
        self._entries: dict[int, tuple[str, str | None, str | None]] = {}
        self._rows: dict[str, int] = {}
        self._vectors: dict[str, dict[int, np.ndarray]] = {}
        self._next = 0
        self._work: str | None = None

    def versions(self) -> dict[str, Version]:
        return dict(self._versions)

    def counts(self) -> dict[str, int]:
        return {key: len(of_key) for key, of_key in self._vectors.items()}

    def __len__(self) -> int:
        return len(self._entries)

    def document(self, name: str) -> Any:
        return self._documents.get(name)

    def set_documents(self, documents: Mapping[str, Any]) -> None:
        merged = self._documents | dict(documents)
        self._documents = {name: value for name, value in merged.items() if value is not None}

    def add_version(self, version: Version) -> None:
        there = self._versions.get(version.key)
        if there is not None and there.size != version.size:
            raise UserError(f"{self.place}: version {version.key} has size {there.size}, not {version.size}")
        self._versions.setdefault(version.key, version)
        self._vectors.setdefault(version.key, {})

    def drop_version(self, key: str, documents: Mapping[str, Any] | None = None) -> None:
        others = set().union(*(of_key for other, of_key in self._vectors.items() if other != key))
        if not others.issuperset(self._vectors[key]):
            raise UserError(f"{self.place}: entries have a vector of {key} alone")
        del self._versions[key], self._vectors[key]
        self.set_documents(documents or {})

    def require_room(self, needed: int) -> None:
        pass

    def enrol(
        self,
        ids: Sequence[str],
        vectors: Mapping[str, np.ndarray],
        labels: Sequence[str | None] | None = None,
        images: Sequence[str | None] | None = None,
    ) -> None:
        ids = list(ids)
        if len(set(ids)) < len(ids):
            raise UserError("an id comes twice")
        for key, block in vectors.items():
            if block.shape != (len(ids), self._versions[key].size):
                raise UserError(f"vectors of {key} are {block.shape}")
        self.delete(ids)
        for place, name in enumerate(ids):
            row, self._next = self._next, self._next + 1
            self._rows[name] = row
            self._entries[row] = name, labels[place] if labels else None, images[place] if images else None
            for key, block in vectors.items():
                self._vectors[key][row] = block[place].copy()

    def delete(self, ids: Sequence[str]) -> int:
        rows = [self._rows.pop(name) for name in ids if name in self._rows]
        for row in rows:
            del self._entries[row]
            for of_key in self._vectors.values():
                of_key.pop(row, None)
        return len(rows)

    def add_vectors(self, key: str, rows: np.ndarray, vectors: np.ndarray) -> int:
        written = [(row, vector) for row, vector in zip(rows.tolist(), vectors) if row in self._entries]
        self._vectors[key].update((row, vector.copy()) for row, vector in written)
        return len(written)

    def entries(self, lacking: str | None = None, size: int = BLOCK) -> Iterator[Entries]:
        has = self._vectors[lacking] if lacking is not None else {}
        rows = [row for row in sorted(self._entries) if row not in has]
        for start in range(0, len(rows), size):
            yield self.entries_at(np.array(rows[start : start + size], np.int64))

    def entries_at(self, rows: np.ndarray) -> Entries:
        there = [row for row in rows.tolist() if row in self._entries]
        ids, labels, images = ([self._entries[row][part] for row in there] for part in range(3))
        return Entries(np.array(there, np.int64), ids, labels, images)

    def find(self, ids: Sequence[str]) -> np.ndarray:
        return np.array([self._rows.get(name, -1) for name in ids], np.int64)

    def vectors(self, key: str, rows: np.ndarray) -> np.ndarray:
        found, vectors = self.vectors_at(key, rows)
        if len(found) < len(rows):
            raise UserError(f"an entry has no vector of {key}")
        return vectors

    def vectors_at(self, key: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        of_key = self._vectors[key]
        there = np.array([row for row in rows.tolist() if row in of_key], np.int64)
        found = [of_key[row] for row in there.tolist()]
        return there, np.stack(found) if found else np.empty((0, self._versions[key].size), np.float32)

    def search(self, key: str, queries: np.ndarray, k: int, without: Sequence[str] = (), index: str = "exact") -> Hits:
        left_out = set().union(*(self._vectors[each] for each in without)) if without else set()
        rows = np.array([row for row in sorted(self._vectors[key]) if row not in left_out], np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), None, object)
        if len(rows):
            products = (queries.astype(np.float64) @ unit(self.vectors(key, rows)).T).astype(np.float32)
            best = np.argsort(-products, axis=1, kind="stable")[:, :k]
            scores[:, : best.shape[1]] = np.take_along_axis(products, best, axis=1)
            names = np.array([self._entries[row][0] for row in rows.tolist()], object)
            ids[:, : best.shape[1]] = names[best]
        return Hits(scores, ids)

    def verify(self) -> list[str]:
        return []

    @contextmanager
    def claimed(self, work: str) -> Iterator[None]:
        if self._work is not None:
            raise UserError(f"another work holds {self.place} ({self._work})")
        self._work = work
        try:
            yield
        finally:
            self._work = None

    def close(self) -> None:
        pass
