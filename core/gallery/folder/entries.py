"""The entries of a gallery folder in its database, checksummed in blocks of rows."""

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from core.errors import UserError
from core.gallery.folder.database import ENTRY_INDEX, chunks
from core.gallery.store import Entries

__all__ = ["add", "checksums", "entries_after", "entries_at", "find", "ids_of", "remove"]

ROWS = 1000
"""In a block, which has a checksum: part of the format."""
COLUMNS = "row, id, label, image"


def add(
    db: sqlite3.Connection, ids: Sequence[str], labels: Sequence[str | None] | None, images: Sequence[str | None] | None
) -> np.ndarray:
    """New entries, whose ids are not there yet; returns their rows (B,)."""
    (first,) = db.execute("SELECT next_row FROM counters").fetchone()
    end = first + len(ids)
    db.execute("UPDATE counters SET next_row = ?", (end,))
    empty = are_sorted(db) and _is_empty(db)
    if empty:  # to sort all ids once is faster than to put each in its place
        db.execute("DROP INDEX entry_of_id")
    start = first
    while start < end:
        stop = min(start + ROWS - start % ROWS, end)
        part = slice(start - first, stop - first)
        label_part, image_part = (
            [None] * (stop - start) if column is None else column[part] for column in (labels, images)
        )
        crc = _add_block(db, start, ids[part], label_part, image_part)
        _keep(db, start // ROWS, _checksum(db, start // ROWS) if start % ROWS else crc)
        start = stop
    if empty:
        db.execute(ENTRY_INDEX)
    return np.arange(first, end)


def remove(db: sqlite3.Connection, rows: np.ndarray) -> None:
    """Entries (B,) that are there."""
    db.executemany("DELETE FROM entries WHERE row = ?", ((row,) for row in rows.tolist()))
    _seal(db, rows)


def are_sorted(db: sqlite3.Connection) -> bool:
    """Whether ids can be found quickly: not in a gallery that is being created."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'entry_of_id'").fetchone() is not None


def find(db: sqlite3.Connection, ids: Sequence[str]) -> np.ndarray:
    """Rows (B,) of ids, -1 for one that is not there."""
    if _is_empty(db):
        return np.full(len(ids), -1)
    rows = dict(_where_in(db, "id, row", "id", ids))
    return np.fromiter((rows.get(name, -1) for name in ids), np.int64, len(ids))


def ids_of(db: sqlite3.Connection, rows: np.ndarray) -> np.ndarray:
    """Ids of entries, of dtype object, in the shape of `rows`; `UserError` if one is not there."""
    unique, inverse = np.unique(rows, return_inverse=True)
    ids = dict(_where_in(db, "row, id", "row", unique.tolist()))
    if len(ids) < len(unique):
        raise UserError("the gallery is damaged: vectors have no entries; restore it from a backup")
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


def _is_empty(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM entries LIMIT 1").fetchone() is None


def _entries(found: list[tuple[int, str, str | None, str | None]]) -> Entries:
    rows, ids, labels, images = zip(*found) if found else ((), (), (), ())
    return Entries(np.array(rows, np.int64), list(ids), list(labels), list(images))


def _where_in(db: sqlite3.Connection, columns: str, column: str, values: Iterable[str | int]) -> Iterator[tuple]:
    for chunk in chunks(values):
        marks = ", ".join("?" * len(chunk))
        yield from db.execute(f"SELECT {columns} FROM entries WHERE {column} IN ({marks})", chunk)


def _add_block(
    db: sqlite3.Connection, row: int, ids: Sequence[str], labels: Sequence[str | None], images: Sequence[str | None]
) -> int:
    """New entries from `row` on; returns their checksum.

    As JSON the ids go in three times as fast as one by one, but SQLite ends a text in JSON at its first NUL.
    """
    text = _text(ids, labels, images)
    if list(labels) == list(images) == [None] * len(ids) and "\\u0000" not in text:
        sql = "INSERT INTO entries (row, id) SELECT ? + key, value FROM json_each(?, '$[0]')"
        db.execute(sql, (row, text))
    else:
        lines = zip(range(row, row + len(ids)), ids, labels, images)
        db.executemany("INSERT INTO entries VALUES (?, ?, ?, ?)", lines)
    return zlib.crc32(text.encode())


def _seal(db: sqlite3.Connection, rows: np.ndarray) -> None:
    """Keep the checksums of the blocks of `rows`."""
    for block in np.unique(rows // ROWS).tolist():
        _keep(db, block, _checksum(db, block))


def _keep(db: sqlite3.Connection, block: int, crc: int | None) -> None:
    if crc is None:
        db.execute("DELETE FROM entry_checksums WHERE block = ?", (block,))
    else:
        db.execute("INSERT OR REPLACE INTO entry_checksums VALUES (?, ?)", (block, crc))


def _checksum(db: sqlite3.Connection, block: int) -> int | None:
    """Of a block's entries in the order of their rows."""
    sql = "SELECT id, label, image FROM entries WHERE row >= ? AND row < ? ORDER BY row"
    found = db.execute(sql, (block * ROWS, (block + 1) * ROWS)).fetchall()
    return zlib.crc32(_text(*zip(*found)).encode()) if found else None


def _text(ids: Sequence[str], labels: Sequence[str | None], images: Sequence[str | None]) -> str:
    return json.dumps((ids, labels, images), ensure_ascii=False, default=repr)  # bytes are damaged text
