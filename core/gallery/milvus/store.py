"""A gallery on a Milvus server, or in a milvus-lite file: for galleries that outgrow one machine.

**How it lies there.** The versions of a gallery lie side by side, each in a collection of its own, joined by the row
number of the entry:

    <name>__state         head, documents, tickets of writers (`core.gallery.milvus.state`)
    <name>__entries       row, code (hash of the id, by which it is found), id, label, image, checksum
    <name>__vectors_<n>   row, vector, others, checksum; one a version, n is never used again

`others` are the numbers of the other versions that the entry has a vector of, so that `without` is a filter of the
search. They are not fields of one collection: Milvus 2.3 has one vector field in a collection, neither 2.3 nor
milvus-lite 3.2 can add a field to a collection that is there, and none of the two leaves room free that a field took.

**What a kill leaves.** All calls but two are done as a whole or not at all: what they write is beside what is there,
until one request, a new head, makes it the state. Readers do not see the rest; the next writer removes it. The two:
`add_vectors` of more than `PART` rows or 16 MB may have written some of its parts, each as a whole; and the index that
`search` asks for may be missing, then the next `open` or `search` builds it. `add_vectors` writes the vector before
`others` of its siblings, and a search looks each hit up before it trusts `others`: an entry is never left out because
of work that was not done.

A server keeps what it has acknowledged (in its log, that Pulsar, Kafka or a disk holds). milvus-lite keeps it when the
process is killed, but syncs no file: when the power fails its newest data may be lost.
"""

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from core.errors import UserError
from core.gallery.milvus.connection import LONGEST_TEXT, MOST_HITS, PART, PART_BYTES, Connection
from core.gallery.milvus.state import Head, State, Writing
from core.gallery.store import BLOCK, Entries, Hits, Version

__all__ = ["MilvusStore"]

MOST_VERSIONS = 64
ENTRY_FIELDS = {
    "code": ("INT64", {}),
    "id": ("VARCHAR", {"max_length": LONGEST_TEXT}),
    "label": ("VARCHAR", {"max_length": LONGEST_TEXT}),
    "image": ("VARCHAR", {"max_length": LONGEST_TEXT}),
    "checksum": ("INT64", {}),
}
VECTOR_FIELDS = {
    "others": ("ARRAY", {"element_type": "INT64", "max_capacity": MOST_VERSIONS}),
    "checksum": ("INT64", {}),
}
ALL_FIELDS = ["row", "id", "label", "image", "checksum"]
INDEXES = {"exact": "FLAT", "hnsw": "HNSW", "ivf": "IVF_FLAT"}
SPARE = 16
"""Hits beyond the k that are asked for: hits that are no entries any more, or that tie with the last one."""
TRIES = 5
"""How often a search is made anew because entries were removed meanwhile; after that writers have to wait for it."""


class MilvusStore:
    """The protocol `core.gallery.store.Store` on Milvus.

    float16 vectors are stored and come back as float32, which holds each of their values. Ids, labels and paths have at
    most 65,535 bytes (labels and paths one less). A call costs some reads of consistency level Strong, each of which
    takes about 0.2 seconds on a server of default settings, whatever its size: write and search many at a time.
    """

    def __init__(self, connection: Connection, name: str):
        """See `create` and `open`."""
        self.place = f"{name} in {connection.uri}"
        self._connection = connection
        self._name = name
        self._state = State(connection, name, self.place)
        self._entries = f"{name}__entries"

    @classmethod
    def create(cls, uri: str, name: str) -> "MilvusStore":
        """A new, empty gallery: `uri` is http://host:port of a server, or the path of a file that ends in `.db`.

        `UserError` if there is one of the name. What a creation that was cut short has left is replaced.
        """
        _require_name(name)
        connection = Connection(uri)
        store = cls(connection, name)
        try:
            there = connection.collections()
            if store._entries in there:
                raise UserError(f"there is a gallery {store.place} already: name another, or drop its collections")
            for collection in there:
                if re.fullmatch(rf"{name}__(state|vectors_\d+)", collection):
                    connection.drop(collection)
            store._state.create()
            # the collection of entries comes last: with it the gallery is there
            connection.create(store._entries, "row", ENTRY_FIELDS, 2, look_up="code")
        except BaseException:
            connection.close()
            raise
        return store

    @classmethod
    def open(cls, uri: str, name: str) -> "MilvusStore":
        """One that is there; `UserError` if it is not."""
        _require_name(name)
        if uri.endswith(".db"):
            _require_file(uri, name)
        connection = Connection(uri)
        store = cls(connection, name)
        try:
            if store._entries not in connection.collections():
                raise UserError(f"there is no gallery {store.place}: correct the name, or create it")
            connection.make_ready(store._state.collection)
            connection.make_ready(store._entries, look_up="code")
            for number, _ in store._state.head().versions.values():
                connection.make_ready(store._vectors(number))
        except BaseException:
            connection.close()
            raise
        return store

    def claimed(self, work: str) -> AbstractContextManager[None]:
        """See `Store.claimed`."""
        return self._state.claimed(work)

    def close(self) -> None:
        """See `Store.close`."""
        self._connection.close()

    def versions(self) -> dict[str, Version]:
        """See `Store.versions`."""
        return {key: version for key, (_, version) in self._state.head().versions.items()}

    def counts(self) -> dict[str, int]:
        """See `Store.counts`."""
        head = self._state.head()
        return {
            key: self._connection.count(self._vectors(number), head.condition)
            for key, (number, _) in head.versions.items()
        }

    def __len__(self) -> int:
        return self._connection.count(self._entries, self._state.head().condition)

    def document(self, name: str) -> Any:
        """See `Store.document`."""
        return self._state.document(name)

    def set_documents(self, documents: Mapping[str, Any]) -> None:
        """See `Store.set_documents`."""
        with self._writing() as writing:
            writing.commit(documents)

    def add_version(self, version: Version) -> None:
        """See `Store.add_version`."""
        with self._writing() as writing:
            head = writing.head
            if version.key in head.versions:
                size = head.versions[version.key][1].size
                if size != version.size:
                    raise UserError(
                        f"{self.place} has vectors of {version.key} with {size} numbers, not {version.size}: name the"
                        " version anew"
                    )
                return
            if len(head.versions) == MOST_VERSIONS:
                raise UserError(f"{self.place} has {MOST_VERSIONS} versions: drop one before another is added")
            self._connection.create(self._vectors(head.numbers), "row", VECTOR_FIELDS, version.size)
            versions = {**head.versions, version.key: (head.numbers, version)}
            writing.commit(versions=versions, numbers=head.numbers + 1)

    def drop_version(self, key: str, documents: Mapping[str, Any] | None = None) -> None:
        """See `Store.drop_version`; a version that is not there is no error."""
        with self._writing() as writing:
            head = writing.head
            if key in head.versions:
                self._require_others(head, key)
            versions = {other: value for other, value in head.versions.items() if other != key}
            writing.commit(documents, versions=versions, removals=head.removals + 1)
            if key in head.versions:
                self._connection.drop(self._vectors(head.versions[key][0]))

    def _require_others(self, head: Head, key: str) -> None:
        """`UserError` if an entry has a vector of this version alone; in the turn of a writer all marks are right."""
        number = self._number(head, key)
        others = self._others(head, number)
        marked = f" and not array_contains_any(others, {others})" if others else ""
        alone = self._connection.count(self._vectors(number), head.condition + marked)
        if alone:
            raise UserError(
                f"{self.place}: {alone} entries have a vector of {key} alone, perhaps enrolled meanwhile: repeat the "
                "command"
            )

    def require_room(self, needed: int) -> None:
        """Nothing: the server's disk is not seen from here."""

    def enrol(
        self,
        ids: Sequence[str],
        vectors: Mapping[str, np.ndarray],
        labels: Sequence[str | None] | None = None,
        images: Sequence[str | None] | None = None,
    ) -> None:
        """See `Store.enrol`. Memory beside the arguments: one request of 16 MB, several times as Python objects."""
        ids = list(ids)
        labels, images = (list(texts) if texts is not None else [None] * len(ids) for texts in (labels, images))
        _require_texts(ids, labels, images)
        if not ids:
            return
        with self._writing() as writing:
            head = writing.head
            arrays = {key: self._as_stored(head, key, array, len(ids)) for key, array in vectors.items()}
            numbers = [self._number(head, key) for key in arrays]
            rows = head.rows + np.arange(len(ids))
            replaced = self._find(head, ids)
            replaced = replaced[replaced >= 0]
            for number, array in zip(numbers, arrays.values()):
                others = [[other for other in numbers if other != number]] * len(ids)
                self._connection.insert(self._vectors(number), _vector_columns(rows, array, others))
            self._connection.insert(self._entries, _entry_columns(rows, ids, labels, images))
            self._commit_removal(writing, replaced, rows=head.rows + len(ids))

    def delete(self, ids: Sequence[str]) -> int:
        """See `Store.delete`."""
        with self._writing() as writing:
            rows = np.unique(self._find(writing.head, list(ids)))
            rows = rows[rows >= 0]
            self._commit_removal(writing, rows)
        return len(rows)

    def add_vectors(self, key: str, rows: np.ndarray, vectors: np.ndarray) -> int:
        """See `Store.add_vectors`; what a kill may leave of more than `PART` rows is told above."""
        rows = np.asarray(rows, dtype=np.int64)
        with self._writing() as writing:
            number = self._number(writing.head, key)
            vectors = self._as_stored(writing.head, key, vectors, len(rows))
            _, last = np.unique(rows[::-1], return_index=True)  # of a row that comes twice the last vector
            chosen = len(rows) - 1 - last
            chosen = chosen[self._is_entry(writing.head, rows[chosen])]
            step = max(1, min(PART, PART_BYTES // (4 * vectors.shape[1] + 64)))
            for start in range(0, len(chosen), step):
                part = chosen[start : start + step]
                self._add_part(writing, number, rows[part], vectors[part])
        return len(chosen)

    def _add_part(self, writing: Writing, number: int, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Vectors first, then the mark on the entries' other versions: until then a search finds both, and checks."""
        siblings = {other: self._select_vectors(other, rows) for other in self._others(writing.head, number)}
        others = {row: [] for row in rows.tolist()}
        for other, (found, _, _) in siblings.items():
            for row in found.tolist():
                others[row].append(other)
        writing.announce({"number": number, "rows": rows.tolist()})
        self._connection.upsert(
            self._vectors(number), _vector_columns(rows, vectors, [others[row] for row in rows.tolist()])
        )
        for other, found in siblings.items():
            self._mark(writing.head, other, number, found)

    def _mark(self, head: Head, other: int, number: int, found: tuple[np.ndarray, np.ndarray, list[list[int]]]) -> None:
        """Write `number` into `others` of vectors of version `other`."""
        rows, vectors, others = found
        alive = {alive for alive, _ in head.versions.values()}
        lacking = [i for i, numbers in enumerate(others) if number not in numbers]
        if lacking:
            marked = [sorted({*others[i], number} & alive) for i in lacking]
            self._connection.upsert(self._vectors(other), _vector_columns(rows[lacking], vectors[lacking], marked))

    def entries(self, lacking: str | None = None, size: int = BLOCK) -> Iterator[Entries]:
        """See `Store.entries`. Blocks are of `size` row numbers: where entries were removed they are smaller."""
        head = self._state.head()
        number = None if lacking is None else self._number(head, lacking)
        for start in range(0, head.rows, size):
            stop = min(start + size, head.rows)
            found = self._connection.between(self._entries, "row", start, stop, ALL_FIELDS)
            if number is not None:
                there = self._connection.between(self._vectors(number), "row", start, stop, ["row"])
                there = {row["row"] for row in there}
                found = [row for row in found if row["row"] not in there]
            block = _as_entries(head, found)
            if block.ids:
                yield block

    def entries_at(self, rows: np.ndarray) -> Entries:
        """See `Store.entries_at`."""
        rows = np.asarray(rows, dtype=np.int64)
        head = self._state.head()
        found = _as_entries(head, self._connection.among(self._entries, "row", rows, ALL_FIELDS))
        there = np.isin(rows, found.rows)
        at = np.searchsorted(found.rows, rows[there])
        return Entries(rows[there], *([texts[i] for i in at] for texts in (found.ids, found.labels, found.images)))

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """See `Store.find`."""
        return self._find(self._state.head(), list(ids))

    def vectors(self, key: str, rows: np.ndarray) -> np.ndarray:
        """See `Store.vectors`; float32."""
        found, vectors = self.vectors_at(key, rows)
        if len(missing := np.asarray(rows)[~np.isin(rows, found)]):
            raise UserError(f"entry {missing[0]} of {self.place} has no vector of {key}")
        return vectors

    def vectors_at(self, key: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Store.vectors_at`; float32."""
        rows = np.asarray(rows, dtype=np.int64)
        head = self._state.head()
        found, vectors, _ = self._select_vectors(self._number(head, key), rows)
        rows = rows[np.isin(rows, found) & head.is_entry(rows)]
        return rows, vectors[np.searchsorted(found, rows)].reshape(len(rows), head.versions[key][1].size)

    def search(self, key: str, queries: np.ndarray, k: int, without: Sequence[str] = (), index: str = "exact") -> Hits:
        """See `Store.search`; of entries with equal cosines the one with the lower row comes first.

        Vectors have one index at a time: a search that wants another one than the search before has it built first,
        while other searches wait or fail. k <= 16,384.
        """
        if k > MOST_HITS:
            raise UserError(f"Milvus finds at most {MOST_HITS:,} entries for a query, not {k:,}")
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        head = self._state.head()
        size = head.versions[key][1].size if key in head.versions else 0
        self._number(head, key)
        if queries.ndim != 2 or queries.shape[1] != size:
            raise UserError(f"queries (Q, {size}) are needed to search vectors of {key}, got {queries.shape}")
        hits = Hits(np.full((len(queries), k), -np.inf, dtype=np.float32), np.full((len(queries), k), None))
        if key in without or not len(queries):
            return hits
        self._require_index(head, key, index)
        for _ in range(TRIES):
            head = self._state.head()
            found = self._search(head, key, queries, k, without, index)
            if self._state.head().removals == head.removals:
                return found
        with self._writing() as writing:
            return self._search(writing.head, key, queries, k, without, index)

    def _search(self, head: Head, key: str, queries: np.ndarray, k: int, without: Sequence[str], index: str) -> Hits:
        """Search, look the hits up, and search again without those that do not count, until there are k that do."""
        number, banned = self._number(head, key), [self._number(head, other) for other in without]
        hits = Hits(np.full((len(queries), k), -np.inf, dtype=np.float32), np.full((len(queries), k), None))
        unmarked = f"not array_contains_any(others, {banned})" if banned else ""
        limit, left = min(k + SPARE, MOST_HITS), np.arange(len(queries))
        bad = np.empty(0, dtype=np.int64)
        while len(left):
            condition = " and ".join(filter(None, [unmarked, f"row not in {bad.tolist()}" if len(bad) else ""]))
            options = _search_options(index, limit)
            found = self._connection.search(self._vectors(number), queries[left], limit, condition, options)
            rows = np.unique(np.concatenate([hit for hit, _ in found]))
            names = self._names_of_hits(head, banned, rows)
            again = []
            for query, (hit, scores) in zip(left, found):
                good = np.array([row in names for row in hit.tolist()], dtype=bool)
                if good.sum() < k and len(hit) == limit and not good.all():
                    again.append(query)
                order = np.lexsort((hit[good], -scores[good]))[:k]
                hits.scores[query, : len(order)] = scores[good][order]
                hits.ids[query, : len(order)] = [names[row] for row in hit[good][order].tolist()]
            bad = np.append(bad, [row for row in rows.tolist() if row not in names]).astype(np.int64)
            left, limit = np.array(again, dtype=np.int64), min(4 * limit, MOST_HITS)
        return hits

    def _names_of_hits(self, head: Head, banned: list[int], rows: np.ndarray) -> dict[int, str]:
        """Ids by row, of the rows that are entries without a vector of a version `banned`."""
        found = self._connection.among(self._entries, "row", rows[head.is_entry(rows)], ["row", "id"])
        names = {row["row"]: row["id"] for row in found}
        for number in banned:
            for row in self._connection.among(self._vectors(number), "row", rows, ["row"]):
                names.pop(row["row"], None)
        return names

    def _require_index(self, head: Head, key: str, index: str) -> None:
        if index not in INDEXES:
            raise UserError(f"unknown index {index!r}: {', '.join(INDEXES)}")
        collection = self._vectors(self._number(head, key))
        if self._connection.index_of(collection) == INDEXES[index]:
            return
        with self._writing():
            count = self._connection.count(collection, "")
            self._connection.replace_index(collection, INDEXES[index], _build_options(index, count))

    def verify(self) -> list[str]:
        """See `Store.verify`. Memory: one block of vectors, and 8 bytes an entry."""
        faults: list[str] = []
        head = self._state.head()
        for name in head.documents:
            try:
                self._state.document(name)
            except UserError as error:
                faults.append(str(error))
        codes = []
        for start in range(0, head.rows, BLOCK):
            found = self._connection.between(self._entries, "row", start, start + BLOCK, ALL_FIELDS)
            block = _as_entries(head, found)
            sums = {row["row"]: row["checksum"] for row in found}
            for row, *texts in zip(block.rows.tolist(), block.ids, block.labels, block.images):
                if _text_checksum(*texts) != sums[row]:
                    faults.append(f"the entry {row} of {self.place} is damaged")
            codes.append(_codes(block.ids))
            without = block.rows
            for key, (number, _) in head.versions.items():
                rows, found = self._verify_vectors(head, key, number, start, block.rows)
                faults += found
                without = np.setdiff1d(without, rows, assume_unique=True)
            left = self.entries_at(without)  # without those that were removed meanwhile
            faults += [
                f"the entry {name[:200]!r} of {self.place} has no vector: delete it or insert it again"
                for name in left.ids
            ]
        values, counts = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *codes]), return_counts=True)
        return faults + self._repeated_ids(head, values[counts > 1])

    def _repeated_ids(self, head: Head, codes: np.ndarray) -> list[str]:
        """Of the ids with these codes, which two or more entries have, those that are the same text."""
        ids: list[str] = []
        for start in range(0, head.rows if len(codes) else 0, BLOCK):
            found = self._connection.between(self._entries, "row", start, start + BLOCK, ALL_FIELDS)
            texts = _as_entries(head, found).ids
            ids += [text for text, there in zip(texts, np.isin(_codes(texts), codes)) if there]
        return [f"the id {text[:100]!r} is there more than once in {self.place}" for text in _repeated(ids)]

    def _verify_vectors(
        self, head: Head, key: str, number: int, start: int, entries: np.ndarray
    ) -> tuple[np.ndarray, list[str]]:
        """The rows of one block with a vector, and their faults.

        Checked are checksums, entries, and that no vector is marked with a version that the entry lacks.
        """
        fields = ["row", "vector", "others", "checksum"]
        found = self._connection.between(self._vectors(number), "row", start, start + BLOCK, fields)
        found = [row for row in found if head.is_entry(np.array([row["row"]]))[0]]
        if not found:
            return np.empty(0, dtype=np.int64), []
        rows, vectors, others = _as_vectors(found)
        sums = {row["row"]: row["checksum"] for row in found}
        wrong = _checksums(vectors) != np.array([sums[row] for row in rows.tolist()])
        faults = [f"the vector of entry {row}, version {key}, of {self.place} is damaged" for row in rows[wrong]]
        alone = np.setdiff1d(rows, entries)
        faults += [f"a vector of {key} in {self.place} has no entry: row {row}" for row in alone]
        for other_key, (other, _) in head.versions.items():
            marked = rows[[other in numbers for numbers in others]]
            there = [row["row"] for row in self._connection.among(self._vectors(other), "row", marked, ["row"])]
            faults += [
                f"entry {row} of {self.place} has no vector of {other_key}, but its vector of {key} is marked so"
                for row in np.setdiff1d(marked, np.array(there, dtype=np.int64))
            ]
        return rows, faults

    @contextmanager
    def _writing(self) -> Iterator[Writing]:
        """The turn of this writer, in a gallery in which nothing is left of killed ones."""
        with self._state.writing() as writing:
            if writing.abandoned:
                self._tidy_up(writing)
            yield writing

    def _tidy_up(self, writing: Writing) -> None:
        """Remove what killed writers left, and complete the marks that they had announced."""
        head = writing.head
        self._state.remove_unnamed(head)
        named = {self._vectors(number) for number, _ in head.versions.values()}
        for collection in self._connection.collections():
            if re.fullmatch(rf"{self._name}__vectors_\d+", collection) and collection not in named:
                self._connection.drop(collection)
        for collection in named:
            self._connection.make_ready(collection)
        for collection in (self._entries, *sorted(named)):
            self._connection.delete_from(collection, "row", head.rows)
        self._commit_removal(writing, np.empty(0, dtype=np.int64))
        for work in writing.abandoned.values():
            if work.get("number") in {number for number, _ in head.versions.values()}:
                rows, _, _ = self._select_vectors(work["number"], np.array(work["rows"], dtype=np.int64))
                for other in self._others(head, work["number"]):
                    self._mark(head, other, work["number"], self._select_vectors(other, rows))
        writing.forget_abandoned()

    def _commit_removal(self, writing: Writing, gone: np.ndarray, **changes: Any) -> None:
        """Commit that rows `gone` are dead, together with `changes`; then remove all that are."""
        dead = tuple(sorted({*writing.head.dead, *gone.tolist()}))
        if dead:
            changes |= {"dead": dead, "removals": writing.head.removals + 1}
        if changes:
            writing.commit(**changes)
        if dead:
            for number, _ in writing.head.versions.values():
                self._connection.delete(self._vectors(number), "row", np.array(dead))
            self._connection.delete(self._entries, "row", np.array(dead))
            writing.commit(dead=())

    def _vectors(self, number: int) -> str:
        return f"{self._name}__vectors_{number}"

    def _number(self, head: Head, key: str) -> int:
        if key not in head.versions:
            there = ", ".join(head.versions) or "no version yet"
            raise UserError(f"{self.place} has no vectors of {key}; name one that it has: {there}")
        return head.versions[key][0]

    def _others(self, head: Head, number: int) -> list[int]:
        return [other for other, _ in head.versions.values() if other != number]

    def _as_stored(self, head: Head, key: str, vectors: np.ndarray, count: int) -> np.ndarray:
        self._number(head, key)
        size = head.versions[key][1].size
        if vectors.shape != (count, size):
            raise UserError(
                f"vectors of {key} in {self.place} are ({count}, {size}) for {count} entries, not {vectors.shape}"
            )
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def _is_entry(self, head: Head, rows: np.ndarray) -> np.ndarray:
        found = self._connection.among(self._entries, "row", rows, ["row"])
        return head.is_entry(rows) & np.isin(rows, [row["row"] for row in found])

    def _find(self, head: Head, ids: list[str]) -> np.ndarray:
        """Rows (B,), -1 for an id that is not there: by the hash, and then the text."""
        if not ids:
            return np.empty(0, dtype=np.int64)
        rows = self._connection.among(self._entries, "code", np.unique(_codes(ids)), ["row", "id"])
        alive = head.is_entry(np.array([row["row"] for row in rows], dtype=np.int64))
        by_id = {row["id"]: row["row"] for row, there in zip(rows, alive) if there}
        return np.array([by_id.get(text, -1) for text in ids], dtype=np.int64)

    def _select_vectors(self, number: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
        """Of those among `rows` that have a vector: rows, in order, vectors and `others`."""
        return _as_vectors(self._connection.among(self._vectors(number), "row", rows, ["row", "vector", "others"]))


def _require_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", name):
        raise UserError(f"a gallery in Milvus has a name of letters, digits and _, with no digit first, not {name!r}")


def _require_file(path: str, name: str) -> None:
    """milvus-lite would make a file that is not there."""
    if not os.path.exists(path):
        raise UserError(f"there is no gallery {name} in {path}: the file does not exist; create it")


def _require_texts(ids: list[str], labels: list[str | None], images: list[str | None]) -> None:
    """UTF-8, not too long, and each id once."""
    if len({len(ids), len(labels), len(images)}) > 1:
        raise UserError(f"{len(ids)} ids, {len(labels)} labels and {len(images)} images do not fit together")
    for what, texts, most in (("id", ids, 0), ("label", labels, 1), ("image", images, 1)):
        for text in texts:
            try:
                size = len((text or "").encode()) + most
            except UnicodeEncodeError:
                raise UserError(f"the {what} {(text or '')[:100]!a} is not UTF-8: correct it") from None
            if size > LONGEST_TEXT:
                raise UserError(
                    f"the {what} that begins with {(text or '')[:40]!r} has {size - most:,} bytes: shorten it to the"
                    f" {LONGEST_TEXT - most:,} that Milvus takes"
                )
    for text in _repeated(ids):
        raise UserError(f"the id {text[:100]!r} comes twice among those to enrol: give each once")


def _repeated(texts: list[str]) -> list[str]:
    """Those that come more than once."""
    if len(set(texts)) == len(texts):
        return []
    texts = sorted(texts)
    return sorted({text for text, following in zip(texts, texts[1:]) if text == following})


def _codes(ids: list[str]) -> np.ndarray:
    """(B,) int64: a hash of each id, the same in every process."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in ids)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def _entry_columns(
    rows: np.ndarray, ids: list[str], labels: list[str | None], images: list[str | None]
) -> dict[str, Any]:
    return {
        "row": rows,
        "vector": np.ones((len(rows), 2), dtype=np.float32),  # Milvus has no collection without vectors
        "code": _codes(ids),
        "id": ids,
        "label": [_packed(text) for text in labels],
        "image": [_packed(text) for text in images],
        "checksum": [_text_checksum(*texts) for texts in zip(ids, labels, images)],
    }


def _vector_columns(rows: np.ndarray, vectors: np.ndarray, others: list[list[int]]) -> dict[str, Any]:
    return {"row": rows, "vector": vectors, "others": others, "checksum": _checksums(vectors)}


def _packed(text: str | None) -> str:
    """A text that may be missing, which is no value of Milvus 2.3."""
    return "" if text is None else f"={text}"


def _text_checksum(*texts: str | None) -> int:
    return zlib.crc32(json.dumps(texts).encode())


def _checksums(vectors: np.ndarray) -> np.ndarray:
    """(N,) int64 of vectors (N, D) float32: the sum of their bits times odd numbers, modulo 2^64."""
    bits = np.ascontiguousarray(vectors, dtype=np.float32).view(np.uint32)
    factors = np.random.default_rng(0).integers(0, 1 << 63, size=bits.shape[1], dtype=np.uint64) * 2 + 1
    return np.einsum("nd,d->n", bits.astype(np.uint64), factors).view(np.int64)


def _as_entries(head: Head, found: list[dict[str, Any]]) -> Entries:
    """Of rows that are entries, in their order."""
    rows = np.array([row["row"] for row in found], dtype=np.int64)
    order = np.argsort(rows)
    order = order[head.is_entry(rows[order])]
    texts = ([found[i][name] for i in order] for name in ("id", "label", "image"))
    ids, labels, images = texts
    return Entries(rows[order], ids, *([text[1:] if text else None for text in column] for column in (labels, images)))


def _as_vectors(found: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    found = sorted(found, key=lambda row: row["row"])
    rows = np.array([row["row"] for row in found], dtype=np.int64)
    vectors = np.array([row["vector"] for row in found], dtype=np.float32)
    return rows, vectors, [list(row["others"]) for row in found]


def _build_options(index: str, count: int) -> dict[str, int]:
    """HNSW: 16 neighbours; IVF: about 4 sqrt(N) cells, as faiss advises."""
    if index == "hnsw":
        return {"M": 16, "efConstruction": 200}
    return {"nlist": int(np.clip(4 * count**0.5, 1, 65536))} if index == "ivf" else {}


def _search_options(index: str, limit: int) -> dict[str, int]:
    if index == "hnsw":
        return {"ef": min(max(512, 4 * limit), 2 * MOST_HITS)}
    return {"nprobe": 64} if index == "ivf" else {}
