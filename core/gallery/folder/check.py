"""The faults of a gallery folder: what differs from its checksum, and what does not fit together."""

import sqlite3
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from core.gallery.folder import entries as folder_entries
from core.gallery.folder import slots as folder_slots
from core.gallery.folder.database import FILE, StoredVersion, stored_versions
from core.gallery.folder.vectors import SLOTS, VectorFile

__all__ = ["faults"]

SHOWN = 10
"""Ids of a damaged block in its line."""


def faults(db: sqlite3.Connection, file_of: Callable[[StoredVersion], VectorFile]) -> Iterator[str]:
    """A line a fault, of one state of the database. Memory: a block of vectors, and 30 bytes an entry."""
    for (line,) in db.execute("PRAGMA integrity_check"):
        if line != "ok":
            yield f"{FILE}: {' '.join(line.split())}"
    yield from _document_faults(db)
    yield from _entry_faults(db)
    rows = np.fromiter((row for (row,) in db.execute("SELECT row FROM entries ORDER BY row")), np.int64)
    if len(rows) and rows[-1] >= db.execute("SELECT next_row FROM counters").fetchone()[0]:
        yield f"{FILE}: row {rows[-1]} would be given to another entry"
    versions = stored_versions(db).values()
    for stored in versions:
        what = f"vectors of {stored.version.name} ({stored.version.key})"
        for line in _slot_faults(db, stored, rows):
            yield f"{what}: {line}"
        for line in _vector_faults(db, stored, file_of(stored)):
            yield f"{what}: {line}"
    if len(alone := folder_slots.without_slots(db, rows, [stored.number for stored in versions])):
        (first,) = folder_entries.ids_of(db, alone[:1])
        what = f"{len(alone)} entries have no vector, the first {first[:200]!r}"
        yield f"{FILE}: {what}: delete them or insert them again"


def _document_faults(db: sqlite3.Connection) -> Iterator[str]:
    for name, value, crc in db.execute("SELECT name, CAST(value AS BLOB), crc FROM documents"):
        if zlib.crc32(value) != crc:
            yield f"{FILE}: the document {name} differs from its checksum"


def _entry_faults(db: sqlite3.Connection) -> Iterator[str]:
    for rows, kept, found in folder_entries.checksums(db):
        if kept != found:
            yield f"{FILE}: the entries of rows {rows.start} to {rows.stop - 1} differ from their checksum"


def _slot_faults(db: sqlite3.Connection, stored: StoredVersion, entries: np.ndarray) -> Iterator[str]:
    """`entries`: the rows of all."""
    for block in folder_slots.damaged_blocks(db, stored.number):
        start = block * folder_slots.ROWS
        yield f"which vectors are those of rows {start} to {start + folder_slots.ROWS - 1} differs from its checksum"
    rows, slots = folder_slots.live_slots(db, stored.number)
    if len(alone := rows[~np.isin(rows, entries)]):
        yield f"{len(alone)} of them have no entry, the first that of row {alone[0]}"
    if len(np.unique(slots)) != len(slots):
        yield "some belong to several entries"
    if len(behind := rows[(slots < 0) | (slots >= stored.slots)]):
        yield f"{len(behind)} lie behind the end, the first that of row {behind[0]}"
    if len(rows) != stored.live:
        yield f"{len(rows)} are there, {stored.live} were counted"


def _vector_faults(db: sqlite3.Connection, stored: StoredVersion, file: VectorFile) -> Iterator[str]:
    kept = dict(db.execute("SELECT block, crc FROM vector_checksums WHERE version = ?", (stored.number,)))
    if not stored.slots:
        return
    try:
        found = dict(file.checksums())
    except OSError as error:
        yield f"{file.path.name} cannot be read ({error.strerror})"
        return
    damaged = [block for block in sorted(kept.keys() | found.keys()) if kept.get(block) != found.get(block)]
    if not damaged:
        return
    rows, slots = folder_slots.live_slots(db, stored.number)
    for block in damaged:
        there = rows[slots // SLOTS == block]
        ids = [repr(name[:200]) for name in folder_entries.ids_of(db, there[:SHOWN]).tolist()]
        more = f" and {len(there) - len(ids)} more" if len(there) > len(ids) else ""
        state = "is not all there" if found.get(block) is None else "differs from its checksum"
        yield f"block {block} of {file.path.name} {state}; entries {', '.join(ids) or 'none'}{more}"
