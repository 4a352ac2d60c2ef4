"""A gallery in a local folder: SQLite for entries, versions and documents, a memory-mapped file of vectors a version.

A write appends vectors to the file of their version and flushes it, then commits the slots that they are in to the
database; until then nobody reads them. Slots are never written again: the ones that deleted and replaced vectors leave
are freed when they are more than those in use, by writing the file anew.
"""

import json
import logging
import os
import re
import shutil
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from core.claims import CLAIM, claimed
from core.errors import UserError
from core.evaluation.search import search
from core.files import reading
from core.gallery.folder import entries as folder_entries
from core.gallery.folder.check import faults
from core.gallery.folder.database import FILE, Database, StoredVersion, stored_versions
from core.gallery.folder.index import INDEXES, search_index
from core.gallery.folder.slots import live_slots, set_slots, slots_at, without_slots
from core.gallery.folder.vectors import SLOTS, UnitRows, VectorFile, require_slots
from core.gallery.store import BLOCK, Entries, Hits, Version
from core.outputs import flush, flush_folder, sweep, writing
from core.room import require_room

__all__ = ["FolderStore"]

logger = logging.getLogger(__name__)
VECTORS = re.compile(r"(?:vectors|index-\w+)-(\d+)\.\w+")
"""Names of the files that belong to a version, with the number of its vector file."""


class FolderStore:
    """A `core.gallery.store.Store` in a folder, of one thread of one process; others open it for themselves.

    Vectors of a version have the type of the first ones, float32 or float16; later ones of the other are converted.
    Writes and searches hold a block of vectors in memory, and 30 bytes an entry. While a search goes on, what others
    write stays in the database's log, which is emptied between searches.
    """

    def __init__(self, folder: Path, place: str, database: Database):
        """Of `open` and `creating`."""
        self.place, self._folder, self._database = place, folder, database

    @classmethod
    def create(cls, path: str | Path) -> "FolderStore":
        """An empty gallery. `UserError` if there is something at `path`, or its parent does not exist."""
        with cls.creating(path):
            pass
        return cls.open(path)

    @classmethod
    @contextmanager
    def creating(cls, path: str | Path) -> Iterator["FolderStore"]:
        """A gallery to be filled: it is at `path` when the context ends well, else nothing is.

        Faster than to fill an empty one; each id is enrolled once. `UserError` as of `create`, at the end if an id came
        twice, and while another process is creating the same one; what a killed one left is cleared away.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.creating")
        with writing(path, temporary):
            _require_new(path)
            temporary.mkdir(exist_ok=True)
        with claimed(temporary, "creation"):
            try:
                with writing(path, temporary):
                    _clear(temporary)
                store = cls(temporary, str(path), Database(temporary, str(path), new=True))
                try:
                    yield store
                    store._database.finish()
                finally:
                    store.close()
                Database(temporary, str(path)).close()  # there is room for what SQLite makes to open it
                with writing(path, temporary):
                    flush(temporary)
                    _require_new(path)
                    os.rename(temporary, path)
                    flush_folder(path.parent)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise

    @classmethod
    def open(cls, path: str | Path) -> "FolderStore":
        """Open a gallery; `UserError` if there is none, if it is damaged or of a newer format."""
        path = Path(path)
        if not os.path.isfile(path / FILE):
            found = f"{path} is no gallery: it has no {FILE}" if os.path.lexists(path) else f"no gallery found: {path}"
            raise UserError(f"{found}; correct the path, or create the gallery")
        store = cls(path, str(path), Database(path, str(path)))
        try:
            for key in store.versions():
                with store._opened(key):
                    pass
        except BaseException:
            store.close()
            raise
        return store

    def claimed(self, work: str) -> AbstractContextManager[None]:  # noqa: D102
        return claimed(self._folder, work)

    def close(self) -> None:  # noqa: D102
        self._database.close()

    def versions(self) -> dict[str, Version]:  # noqa: D102
        with self._database.reading() as db:
            return {key: stored.version for key, stored in stored_versions(db).items()}

    def counts(self) -> dict[str, int]:  # noqa: D102
        with self._database.reading() as db:
            return {key: stored.live for key, stored in stored_versions(db).items()}

    def __len__(self) -> int:
        with self._database.reading() as db:
            return db.execute("SELECT count(*) FROM entries").fetchone()[0]

    def document(self, name: str) -> Any:  # noqa: D102
        with self._database.reading() as db:
            found = db.execute("SELECT value FROM documents WHERE name = ?", (name,)).fetchone()
        if found is None:
            return None
        with reading(self._folder / FILE, "file of a gallery", "restore it from a backup"):
            return json.loads(found[0])

    def set_documents(self, documents: Mapping[str, Any]) -> None:  # noqa: D102
        with self._writing() as db:
            _set_documents(db, documents)

    def add_version(self, version: Version) -> None:  # noqa: D102
        with self._writing() as db:
            there = stored_versions(db).get(version.key)
            if there is None:
                file = _next_file(db)
                values = (version.key, version.name, version.size, version.model, file)
                db.execute("INSERT INTO versions (key, name, size, model, file) VALUES (?, ?, ?, ?, ?)", values)
            elif there.version.size != version.size:
                raise UserError(
                    f"{self.place} has vectors of {version.key} of size {there.version.size}, not {version.size}: give "
                    "that model, or name another version"
                )

    def drop_version(self, key: str, documents: Mapping[str, Any] | None = None) -> None:  # noqa: D102
        with self._writing() as db:
            number = self._require(db, key).number
            others = [other.number for other in stored_versions(db).values() if other.number != number]
            alone = without_slots(db, live_slots(db, number)[0], others)
            if ids := folder_entries.entries_at(db, alone).ids:
                raise UserError(
                    f"{self.place}: {len(ids)} entries have a vector of {key} alone, the first {ids[0][:200]!r}, "
                    "perhaps enrolled meanwhile: repeat the command"
                )
            for table, column in (("slots", "version"), ("vector_checksums", "version"), ("versions", "number")):
                db.execute(f"DELETE FROM {table} WHERE {column} = ?", (number,))
            _set_documents(db, documents or {})
        with self._database.writing() as db:
            self._sweep(db)

    def require_room(self, needed: int) -> None:  # noqa: D102
        with writing(self._folder):
            require_room(self._folder, needed)

    def enrol(  # noqa: D102
        self,
        ids: Sequence[str],
        vectors: Mapping[str, np.ndarray],
        labels: Sequence[str | None] | None = None,
        images: Sequence[str | None] | None = None,
    ) -> None:
        if len(set(ids)) != len(ids):
            twice = next(name for name, count in Counter(ids).items() if count > 1)
            raise UserError(f"the id {twice[:200]!r} comes twice among those to enrol: give each once")
        for what, column in (("labels", labels), ("images", images)):
            if column is not None and len(column) != len(ids):
                raise ValueError(f"{len(column)} {what} for {len(ids)} ids")
        with self._writing() as db, ThreadPoolExecutor(1) as pool:
            appended = {}
            for key, given in vectors.items():
                append = self._appending(db, self._require(db, key), len(ids), given)
                appended[key] = given.dtype, pool.submit(append)
            if folder_entries.are_sorted(db):
                rows = folder_entries.find(db, ids)
                self._remove(db, rows[rows >= 0])
            rows = folder_entries.add(db, ids, labels, images)
            for key, (dtype, checksums) in appended.items():
                _give_slots(db, self._require(db, key), rows, dtype, checksums.result())
        self._compact()

    def delete(self, ids: Sequence[str]) -> int:  # noqa: D102
        with self._writing() as db:
            rows = folder_entries.find(db, list(dict.fromkeys(ids)))
            rows = rows[rows >= 0]
            self._remove(db, rows)
        self._compact()
        return len(rows)

    def add_vectors(self, key: str, rows: np.ndarray, vectors: np.ndarray) -> int:  # noqa: D102
        rows = np.asarray(rows, np.int64)
        with self._writing() as db:
            there = np.isin(rows, folder_entries.entries_at(db, rows).rows)
            stored, rows, vectors = self._require(db, key), rows[there], vectors if there.all() else vectors[there]
            checksums = self._appending(db, stored, len(rows), vectors)()
            _give_slots(db, stored, rows, vectors.dtype, checksums)
        self._compact()
        return len(rows)

    def entries(self, lacking: str | None = None, size: int = BLOCK) -> Iterator[Entries]:
        """As the protocol says; blocks may be smaller than `size`."""
        after = -1
        while True:
            with self._database.reading() as db:
                block = folder_entries.entries_after(db, after, size)
                if not len(block.rows):
                    return
                after = int(block.rows[-1])
                if lacking is not None:
                    slots = slots_at(db, self._require(db, lacking).number, block.rows)
                    block = _selected(block, np.flatnonzero(slots < 0))
            if len(block.rows):
                yield block

    def entries_at(self, rows: np.ndarray) -> Entries:  # noqa: D102
        with self._database.reading() as db:
            return folder_entries.entries_at(db, np.asarray(rows, np.int64))

    def find(self, ids: Sequence[str]) -> np.ndarray:  # noqa: D102
        with self._database.reading() as db:
            return folder_entries.find(db, ids)

    def vectors(self, key: str, rows: np.ndarray) -> np.ndarray:  # noqa: D102
        found, vectors = self.vectors_at(key, rows)
        if len(missing := np.asarray(rows)[~np.isin(rows, found)]):
            raise UserError(f"{self.place} has no vector of {key} for the entry of row {missing[0]}: add it first")
        return vectors

    def vectors_at(self, key: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # noqa: D102
        rows = np.asarray(rows, np.int64)
        with self._opened(key) as (db, stored, vectors):
            slots = slots_at(db, stored.number, rows)
            there = slots >= 0
            require_slots(slots[there], len(vectors))
            return rows[there], np.array(vectors[slots[there]])

    def search(  # noqa: D102
        self, key: str, queries: np.ndarray, k: int, without: Sequence[str] = (), index: str = "exact"
    ) -> Hits:
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), None, object)
        with self._opened(key) as (db, stored, vectors):
            if queries.ndim != 2 or queries.shape[1] != stored.version.size:
                raise UserError(
                    f"queries of shape {queries.shape} cannot search {self.place}, whose vectors of {key} have size "
                    f"{stored.version.size}: embed the queries with that model"
                )
            rows, live = live_slots(db, stored.number)
            order = np.argsort(live)  # the vectors are read as they lie on the disk
            rows, live = rows[order], live[order]
            slots = live
            for other in without:
                left = ~np.isin(rows, live_slots(db, self._require(db, other).number)[0], assume_unique=True)
                rows, slots = rows[left], slots[left]
            if not len(rows):
                return Hits(scores, ids)
            require_slots(live, len(vectors))
            count = min(k, len(rows))
            if index == "exact":
                found, places = search(queries, UnitRows(vectors, slots), count)
            elif index in INDEXES:
                file = self._folder / f"index-{index}-{stored.file}.faiss"
                found, places = search_index(index, queries, vectors, live, slots, count, file)
            else:
                raise UserError(f"there is no index {index}: name one of exact, {', '.join(INDEXES)}")
            order = np.lexsort((rows[places], -found))  # among equal ones the lower row comes first
            scores[:, :count] = np.take_along_axis(found, order, axis=1)
            ids[:, :count] = folder_entries.ids_of(db, np.take_along_axis(rows[places], order, axis=1))
        ids[np.isneginf(scores)] = None
        return Hits(scores, ids)

    def verify(self) -> list[str]:  # noqa: D102
        found = []
        try:
            with self._database.reading() as db:
                found.extend(faults(db, self._file))
        except (UserError, ValueError, TypeError, KeyError) as error:  # too damaged to be read further
            found.append(" ".join(f"{FILE}: {error}".split()))
        return found

    def _require(self, db: sqlite3.Connection, key: str) -> StoredVersion:
        versions = stored_versions(db)
        if key not in versions:
            raise UserError(f"{self.place} has no vectors of {key}: name one of {', '.join(versions) or 'none'}")
        return versions[key]

    def _file(self, stored: StoredVersion) -> VectorFile:
        path = self._folder / f"vectors-{stored.file}.bin"
        return VectorFile(path, stored.version.size, np.dtype(stored.dtype or np.float32), stored.slots)

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[sqlite3.Connection, StoredVersion, np.ndarray]]:
        """One state of the database, and a version's vectors by slot."""
        gone = None
        while True:
            with self._database.reading() as db:
                stored = self._require(db, key)
                file = self._file(stored)
                try:
                    vectors = file.open()
                except FileNotFoundError:
                    if file.path == gone:
                        raise UserError(
                            f"the gallery {self.place} is damaged: {file.path.name} is missing; restore a backup"
                        ) from None
                    gone = file.path  # perhaps removed since the state was read: then the next state has another
                    continue
                yield db, stored, vectors
                return

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A write to the database, and perhaps to vector files, of which nothing is left if it fails."""
        begun = False
        try:
            with self._database.writing() as db:
                self._sweep(db)
                begun = True
                yield db
        except BaseException:
            if begun:
                with suppress(UserError), self._database.writing() as db:
                    self._sweep(db)
            raise

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Remove what a write that did not end has left in files, and files of versions that are gone."""
        sweep(self._folder)
        known = {stored.file: stored for stored in stored_versions(db).values()}
        for path in self._folder.iterdir():
            if match := VECTORS.fullmatch(path.name):
                with writing(path):
                    if int(match[1]) not in known:
                        path.unlink(missing_ok=True)
                    elif path.suffix == ".bin":
                        self._file(known[int(match[1])]).trim()

    def _appending(
        self, db: sqlite3.Connection, stored: StoredVersion, count: int, vectors: np.ndarray
    ) -> Callable[[], list[tuple[int, int]]]:
        """What writes vectors (count, D) behind those of a version, and returns the checksums of the touched blocks."""
        name, shape = stored.version.name, (count, stored.version.size)
        if vectors.shape != shape or vectors.dtype not in (np.float32, np.float16):
            raise UserError(
                f"vectors of {name} must be float32 or float16 {shape}, not {vectors.dtype} {vectors.shape}: give "
                "those of that model"
            )
        file = self._file(replace(stored, dtype=stored.dtype or vectors.dtype.name))
        sql = "SELECT crc FROM vector_checksums WHERE version = ? AND block = ?"
        last = db.execute(sql, (stored.number, stored.slots // SLOTS)).fetchone()
        return partial(file.append, vectors, last[0] if last else 0, f"vectors of {name}")

    def _remove(self, db: sqlite3.Connection, rows: np.ndarray) -> None:
        """Entries (B,) that are there, with their vectors."""
        for stored in stored_versions(db).values():
            set_slots(db, stored.number, rows, -1)
        folder_entries.remove(db, rows)

    def _compact(self) -> None:
        """Write the files anew of versions with more slots that are free than in use. Of no consequence if it fails."""
        with self._database.reading() as db:
            if not any(map(_is_wasteful, stored_versions(db).values())):
                return
        try:
            with self._writing() as db:
                for stored in filter(_is_wasteful, stored_versions(db).values()):
                    self._rewrite(db, stored)
            with self._database.writing() as db:
                self._sweep(db)
        except UserError as error:
            logger.warning("%s keeps the room of deleted vectors for now: %s", self.place, error)

    def _rewrite(self, db: sqlite3.Connection, stored: StoredVersion) -> None:
        """Move a version's vectors to another file, without those that no entry has. Memory: a block."""
        old, number = self._file(stored), _next_file(db)
        sums = "SELECT block, crc FROM vector_checksums WHERE version = ?"
        if dict(old.checksums()) != dict(db.execute(sums, (stored.number,))):
            raise UserError(f"{old.path} is damaged; restore the gallery from a backup")
        vectors = old.open()
        rows, slots = live_slots(db, stored.number)
        order = np.argsort(slots)
        rows, slots = rows[order], slots[order]
        checksums = []
        for start in range(0, len(slots), SLOTS):
            new = self._file(replace(stored, file=number, slots=start))
            checksums += new.append(vectors[slots[start : start + SLOTS]], 0, f"vectors of {stored.version.name}")
        db.execute("DELETE FROM vector_checksums WHERE version = ?", (stored.number,))
        _keep_checksums(db, stored.number, checksums)
        db.execute("UPDATE versions SET file = ?, slots = ? WHERE number = ?", (number, len(slots), stored.number))
        set_slots(db, stored.number, rows, np.arange(len(slots)))


def _is_wasteful(stored: StoredVersion) -> bool:
    return stored.slots - stored.live > max(stored.live, SLOTS)


def _next_file(db: sqlite3.Connection) -> int:
    (number,) = db.execute("SELECT next_file FROM counters").fetchone()
    db.execute("UPDATE counters SET next_file = next_file + 1")
    return number


def _require_new(path: Path) -> None:
    if os.path.lexists(path):
        raise UserError(f"{path} exists already: name another place for the gallery, or remove it first")
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} of the gallery {path.name} does not exist: make it, or name another")


def _clear(folder: Path) -> None:
    """Remove all files but the claim."""
    for path in folder.iterdir():
        if path.name != CLAIM:
            path.unlink()


def _selected(entries: Entries, places: np.ndarray) -> Entries:
    columns = ([column[place] for place in places] for column in (entries.ids, entries.labels, entries.images))
    return Entries(entries.rows[places], *columns)


def _give_slots(
    db: sqlite3.Connection, stored: StoredVersion, rows: np.ndarray, dtype: np.dtype, checksums: list[tuple[int, int]]
) -> None:
    """Give entries (B,) the slots behind those of a version, where their vectors lie."""
    end = stored.slots + len(rows)
    _keep_checksums(db, stored.number, checksums)
    values = stored.dtype or dtype.name, end, stored.number
    db.execute("UPDATE versions SET dtype = ?, slots = ? WHERE number = ?", values)
    set_slots(db, stored.number, rows, np.arange(stored.slots, end))


def _keep_checksums(db: sqlite3.Connection, number: int, checksums: list[tuple[int, int]]) -> None:
    db.executemany("INSERT OR REPLACE INTO vector_checksums VALUES (?, ?, ?)", ((number, *line) for line in checksums))


def _set_documents(db: sqlite3.Connection, documents: Mapping[str, Any]) -> None:
    for name, value in documents.items():
        if value is None:
            db.execute("DELETE FROM documents WHERE name = ?", (name,))
        else:
            text = json.dumps(value, ensure_ascii=False)
            db.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (name, text, zlib.crc32(text.encode())))
