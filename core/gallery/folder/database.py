"""The SQLite file of a gallery folder: ids, versions, documents, and which entry has which slot of a vector file."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.gallery.store import Version
from core.room import no_room

__all__ = ["ENTRY_INDEX", "FILE", "Database", "StoredVersion", "chunks", "stored_versions"]

FILE = "gallery.sqlite"
KIND = int.from_bytes(b"bctG", "big")
FORMAT = 1
"""Kept in the head of the file, as SQLite's application id and user version."""
PATIENCE = 10.0
"""Seconds that a write waits for another one."""
DTYPES = (None, "float16", "float32")
"""Of vectors; None until there are some."""
AT_ONCE = 400
"""Values in one statement: few statements are faster than many."""
CACHE_KIB = 1 << 16
ENTRY_INDEX = "CREATE UNIQUE INDEX entry_of_id ON entries (id)"
SCHEMA = """
CREATE TABLE counters (next_row INTEGER NOT NULL, next_file INTEGER NOT NULL);
INSERT INTO counters VALUES (0, 0);
CREATE TABLE entries (row INTEGER PRIMARY KEY, id TEXT NOT NULL, label TEXT, image TEXT);
CREATE TABLE entry_checksums (block INTEGER PRIMARY KEY, crc INTEGER NOT NULL);
CREATE TABLE versions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL, size INTEGER NOT NULL,
    model TEXT, file INTEGER NOT NULL, dtype TEXT, slots INTEGER NOT NULL DEFAULT 0, live INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE slots (
    version INTEGER NOT NULL, block INTEGER NOT NULL, slots BLOB NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (version, block)
);
CREATE TABLE vector_checksums (
    version INTEGER NOT NULL, block INTEGER NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (version, block)
) WITHOUT ROWID;
CREATE TABLE documents (name TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class StoredVersion:
    """A line of the table of versions."""

    number: int
    """Never used again for another version."""
    version: Version
    file: int
    """Number of the vector file, never used again for another file."""
    dtype: str | None
    """None until there are vectors."""
    slots: int
    """In the file."""
    live: int
    """Of them, those of entries."""


def stored_versions(db: sqlite3.Connection) -> dict[str, StoredVersion]:
    """All versions by key, in the order in which they were added."""
    found = db.execute(
        "SELECT number, key, name, size, model, file, dtype, slots, live FROM versions ORDER BY number"
    ).fetchall()
    for number, key, name, size, _, file, dtype, slots, live in found:
        counts = [number, size - 1 if type(size) is int else size, file, slots, live]
        texts = all(isinstance(text, str) for text in (key, name))
        if not texts or dtype not in DTYPES or not all(type(count) is int and count >= 0 for count in counts):
            raise UserError(
                f"the gallery is damaged: its versions have other entries ({name!r:.40}, {size!r:.20}, {dtype!r:.20}); "
                "restore it from a backup"
            )
    return {
        key: StoredVersion(number, Version(key, name, size, model), *rest)
        for number, key, name, size, model, *rest in found
    }


class Database:
    """A connection, of one thread. SQLite's errors become `UserError`, of one line that names the gallery."""

    def __init__(self, folder: Path, place: str, new: bool = False):
        """`place`: the gallery's path for people. `new`: an empty one, which need not outlive a crash (`finish`)."""
        self.path, self.place = folder / FILE, place
        with self._explained():
            mode = "rwc" if new else "rw"
            uri = f"{self.path.absolute().as_uri()}?mode={mode}"
            self._connection = sqlite3.connect(uri, uri=True, timeout=PATIENCE, isolation_level=None)
        try:
            with self._explained():
                self._make() if new else self._check()
        except BaseException:
            self._connection.close()
            raise

    def _make(self) -> None:
        for setting in (f"application_id = {KIND}", f"user_version = {FORMAT}", "journal_mode = MEMORY"):
            self._connection.execute(f"PRAGMA {setting}")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(f"PRAGMA cache_size = {-CACHE_KIB}")
        self._connection.executescript(SCHEMA)

    def _check(self) -> None:
        kind, version = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        if kind != KIND:
            raise UserError(f"{self.place} is not a gallery: its {FILE} is of another program")
        if version > FORMAT:
            raise UserError(
                f"the gallery {self.place} has format {version}, newer than {FORMAT} of this program: use a newer one"
            )
        # A view or a trigger would run the file's own statements, without end if it likes.
        strange = self._connection.execute(
            "SELECT type, name FROM sqlite_master WHERE type NOT IN ('table', 'index') OR sql LIKE 'CREATE VIRTUAL%'"
        ).fetchone()
        if strange is not None:
            raise UserError(self._explanation("it has a {} {:.40}, as no gallery has".format(*strange)))
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(f"PRAGMA cache_size = {-CACHE_KIB}")

    def finish(self) -> None:
        """Make a new database one that others can open, and close it. `UserError` if an id is there twice.

        All ids are sorted now, which is faster than to put each in its place.
        """
        with self._explained():
            try:
                self._connection.execute(ENTRY_INDEX)
            except sqlite3.IntegrityError as error:
                raise UserError(f"{self.place} is not created: an id comes twice; give each once") from error
            self._connection.execute("PRAGMA journal_mode = WAL")
        self.close()

    def close(self) -> None:
        """Free the file."""
        with self._explained():
            self._connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One state of the database, whatever is written meanwhile. Inside another such context: that one's state."""
        if self._connection.in_transaction:
            yield self._connection
            return
        with self._explained():
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.execute("COMMIT")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A write, durable when the context ends, undone by an exception; `UserError` if another goes on too long."""
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself ends some
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise  # a fault of the program
        except sqlite3.DatabaseError as error:
            raise UserError(self._explanation(str(error))) from error
        except OverflowError as error:
            raise UserError(self._explanation("its rows have numbers that no entry has")) from error
        except UnicodeEncodeError as error:
            raise UserError(f"an id, class or path is not UTF-8: {error.object[:200]!a}; correct it") from error
        except UnicodeDecodeError as error:  # SQLite's message quotes the damaged bytes
            raise UserError(self._explanation(f"text that is not UTF-8 ({error.reason})")) from error

    def _explanation(self, text: str) -> str:
        """By the text: Python 3.10 does not give SQLite's codes."""
        if "locked" in text:
            return f"another process is writing to {self.place}: repeat the command when it is done"
        if "full" in text or "disk I/O" in text:
            return str(no_room(self.place, f"{text}, this write is undone"))
        if "readonly" in text or "unable to open" in text:
            return f"cannot write {self.place}: {text}; change its permissions, or run as a user who has them"
        if "too big" in text or "too large" in text:
            return f"cannot write {self.place}: {text}; give shorter ids, classes and documents"
        return f"the gallery {self.place} is damaged: {self.path.name}: {text}; restore it from a backup"


def chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    """As many values as fit into one statement, one chunk after the other."""
    left = iter(values)
    while chunk := list(islice(left, AT_ONCE)):
        yield chunk
