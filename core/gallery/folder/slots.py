"""Which entry's vector lies in which slot of a version's vector file, packed for whole blocks of entries.

A million entries are read in some milliseconds, so that nothing has to be kept between two searches, and a change of
some entries writes only their blocks.
"""

import sqlite3
import zlib
from collections.abc import Iterable

import numpy as np

from core.errors import UserError

__all__ = ["ROWS", "damaged_blocks", "live_slots", "set_slots", "slots_at", "without_slots"]

ROWS = 1000
"""Entries in a block: their slots, int32, just fit into a page of the database. Part of the format."""
NONE = -1
DTYPE = np.dtype("<i4")


def slots_at(db: sqlite3.Connection, version: int, rows: np.ndarray) -> np.ndarray:
    """Slots (B,) int64 of the entries (B,), -1 where the entry has no vector of the version."""
    blocks, inverse = np.unique(rows // ROWS, return_inverse=True)
    return _read(db, version, blocks)[inverse, rows % ROWS].astype(np.int64)


def live_slots(db: sqlite3.Connection, version: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and slots, int64 (N,), of the entries that have a vector of the version, in the order of their rows."""
    found = db.execute("SELECT block, slots FROM slots WHERE version = ? ORDER BY block", (version,)).fetchall()
    blocks = np.array([block for block, _ in found], np.int64)
    slots = np.frombuffer(b"".join(_whole(packed) for _, packed in found), DTYPE).reshape(len(found), ROWS)
    block, place = np.nonzero(slots != NONE)
    return blocks[block] * ROWS + place, slots[block, place].astype(np.int64)


def without_slots(db: sqlite3.Connection, rows: np.ndarray, versions: Iterable[int]) -> np.ndarray:
    """Those of the entries (B,) that have a vector of none of the versions."""
    for version in versions:
        rows = rows[~np.isin(rows, live_slots(db, version)[0], assume_unique=True)]
    return rows


def set_slots(db: sqlite3.Connection, version: int, rows: np.ndarray, slots: np.ndarray | int) -> None:
    """Give entries (B,) slots (B,) of a version; -1 takes theirs away."""
    blocks, inverse = np.unique(rows // ROWS, return_inverse=True)
    table = _read(db, version, blocks)
    before = np.count_nonzero(table != NONE)
    table[inverse, rows % ROWS] = slots
    used = (table != NONE).any(axis=1)
    db.executemany("DELETE FROM slots WHERE version = ? AND block = ?", ((version, int(b)) for b in blocks[~used]))
    packed = ((int(block), line.tobytes()) for block, line in zip(blocks[used], table[used]))
    db.executemany(
        "INSERT OR REPLACE INTO slots VALUES (?, ?, ?, ?)",
        ((version, block, line, zlib.crc32(line)) for block, line in packed),
    )
    change = int(np.count_nonzero(table != NONE) - before)
    db.execute("UPDATE versions SET live = live + ? WHERE number = ?", (change, version))


def _read(db: sqlite3.Connection, version: int, blocks: np.ndarray) -> np.ndarray:
    """Slots (n, ROWS) of blocks (n,)."""
    table = np.full((len(blocks), ROWS), NONE, DTYPE)
    for line, block in zip(table, blocks.tolist()):
        found = db.execute("SELECT slots FROM slots WHERE version = ? AND block = ?", (version, block)).fetchone()
        if found is not None:
            line[:] = np.frombuffer(_whole(found[0]), DTYPE)
    return table


def _whole(packed: object) -> bytes:
    """A block as it was written; `UserError` for another length or type."""
    if not isinstance(packed, bytes) or len(packed) != ROWS * DTYPE.itemsize:
        raise UserError("the gallery is damaged: its table of slots has other entries; restore it from a backup")
    return packed


def damaged_blocks(db: sqlite3.Connection, version: int) -> list[int]:
    """Numbers of the blocks that differ from their checksums."""
    found = db.execute("SELECT block, slots, crc FROM slots WHERE version = ? ORDER BY block", (version,))
    return [block for block, packed, crc in found if zlib.crc32(packed) != crc]
