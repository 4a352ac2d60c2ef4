"""The entries of a gallery folder in its database, checksummed in blocks of rows."""

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat

import numpy as np

from core.gallery.folder_database import ENTRY_INDEX, chunks
from core.gallery.store import Entries

__all__ = ["add", "checksums", "entries_after", "entries_at", "find", "ids_of", "remove"]

ROWS = 1000
"""In a block."""
COLUMNS = "row, id, label, image"


def add(
    db: sqlite3.Connection, ids: Sequence[str], labels: Sequence[str | None] | None, images: Sequence[str | None] | None
) -> np.ndarray:
    """New entries, whose ids are not there yet; returns their rows (B,)."""
    (first,) = db.execute("SELECT next_row FROM counters").fetchone()
    rows = range(first, first + len(ids))
    db.execute("UPDATE counters SET next_row = ?", (rows.stop,))
    empty = db.execute("SELECT 1 FROM entries LIMIT 1").fetchone() is None
    if empty:  # to sort all ids once is faster than to put each in its place
        db.execute("DROP INDEX entry_of_id")
    columns = zip(rows, ids, *(repeat(None) if column is None else column for column in (labels, images)))
    for values in chunks(chain.from_iterable(columns)):
        db.execute("INSERT INTO entries VALUES " + ", ".join(["(?, ?, ?, ?)"] * (len(values) // 4)), values)
    if empty:
        db.execute(ENTRY_INDEX)
    added = np.arange(rows.start, rows.stop)
    _seal(db, added)
    return added


def remove(db: sqlite3.Connection, rows: np.ndarray) -> None:
    """Entries (B,) that are there."""
    db.executemany("DELETE FROM entries WHERE row = ?", ((row,) for row in rows.tolist()))
    _seal(db, rows)


def find(db: sqlite3.Connection, ids: Sequence[str]) -> np.ndarray:
    """Rows (B,) of ids, -1 for one that is not there."""
    rows = dict(_where_in(db, "id, row", "id", ids))
    return np.fromiter((rows.get(name, -1) for name in ids), np.int64, len(ids))


def ids_of(db: sqlite3.Connection, rows: np.ndarray) -> np.ndarray:
    """Ids of entries that are there, of dtype object, in the shape of `rows`."""
    unique, inverse = np.unique(rows, return_inverse=True)
    ids = dict(_where_in(db, "row, id", "row", unique.tolist()))
    return np.array([ids[row] for row in unique.tolist()], object)[inverse.reshape(rows.shape)]


def entries_at(db: sqlite3.Connection, rows: np.ndarray) -> Entries:
    """The entries of `rows` (B,) that are there, in the order of `rows`."""
    found = {entry[0]: entry for entry in _where_in(db, COLUMNS, "row", rows.tolist())}
    return _entries([found[row] for row in rows.tolist() if row in found])


def entries_after(db: sqlite3.Connection, row: int, count: int) -> Entries:
    """The next `count` entries behind `row`."""
    sql = f"SELECT {COLUMNS} FROM entries WHERE row > ? ORDER BY row LIMIT ?"
    return _entries(db.execute(sql, (row, count)).fetchall())


def checksums(db: sqlite3.Connection) -> Iterator[tuple[range, int | None, int | None]]:
    """Rows of each block, the checksum that was kept and that of what is there; None for no entry."""
    kept = dict(db.execute("SELECT block, crc FROM entry_checksums"))
    there = {block for (block,) in db.execute("SELECT DISTINCT row / ? FROM entries", (ROWS,))}
    for block in sorted(kept.keys() | there):
        yield range(block * ROWS, (block + 1) * ROWS), kept.get(block), _checksum(db, block)


def _entries(found: list[tuple[int, str, str | None, str | None]]) -> Entries:
    rows, ids, labels, images = zip(*found) if found else ((), (), (), ())
    return Entries(np.array(rows, np.int64), list(ids), list(labels), list(images))


def _where_in(db: sqlite3.Connection, columns: str, column: str, values: Iterable[str | int]) -> Iterator[tuple]:
    for chunk in chunks(values):
        marks = ", ".join("?" * len(chunk))
        yield from db.execute(f"SELECT {columns} FROM entries WHERE {column} IN ({marks})", chunk)


def _seal(db: sqlite3.Connection, rows: np.ndarray) -> None:
    """Keep the checksums of the blocks of `rows`."""
    for block in np.unique(rows // ROWS).tolist():
        crc = _checksum(db, block)
        if crc is None:
            db.execute("DELETE FROM entry_checksums WHERE block = ?", (block,))
        else:
            db.execute("INSERT OR REPLACE INTO entry_checksums VALUES (?, ?)", (block, crc))


def _checksum(db: sqlite3.Connection, block: int) -> int | None:
    """Of a block's entries in the order of their rows."""
    (text,) = db.execute(
        "SELECT CAST(group_concat(row || char(9) || id || coalesce(char(9) || label, char(0)) || "
        "coalesce(char(9) || image, char(0)), char(10)) AS BLOB) FROM "
        f"(SELECT {COLUMNS} FROM entries WHERE row >= ? AND row < ? ORDER BY row)",
        (block * ROWS, (block + 1) * ROWS),
    ).fetchone()
    return None if text is None else zlib.crc32(text)
