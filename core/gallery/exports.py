"""A gallery's vectors as files that `core.gallery.vector_files` reads again.

    npy       a folder: vectors.npy, ids.txt, and where there are any labels.txt and images.txt
    parquet   a file with the columns id, vector, label, image and version
    faiss     a folder as for npy, but vectors.faiss: unit vectors, whose products are cosines, in an IndexFlatIP in an
              IndexIDMap2 of the numbers of the lines of ids.txt, from 0

Exported are the entries that are there when it begins and have not gone when their turn comes.
"""

import logging
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError
from core.evaluation.search import import_faiss
from core.gallery.documents import read_upgrade
from core.gallery.store import BLOCK, Entries, Store
from core.models.maps.vectors import unit_rows
from core.outputs import replaced_atomically, require_replaceable
from core.progress import Progress
from core.room import require_room

__all__ = ["FORMATS", "export"]

logger = logging.getLogger(__name__)
FORMATS = ("npy", "parquet", "faiss")
IDS, LABELS, IMAGES = "ids.txt", "labels.txt", "images.txt"
WRITTEN = ("vectors.npy", "vectors.faiss", IDS, LABELS, IMAGES)
LINE = re.compile(r"(?!\ufeff)[^\n\r\t]*")
"""What can be a line of a list."""
Served = Iterator[tuple[str, Entries, np.ndarray]]
"""Key of a version, some entries, and their vectors of it."""


def export(store: Store, out: str | Path, format: str, version: str | None = None) -> int:
    """Write the entries with their vectors of the version with the key `version`; returns how many.

    `version` may be left out in a gallery of one model and, for parquet, during an upgrade: then each entry comes with
    the vector that serves it. `UserError` for an unknown format or version, where one must be chosen, for a text that
    its list cannot hold (npy and faiss: line ends and tabs), for a folder with other files in it, and if the disk
    refuses. Memory: 8 bytes an entry and a block; faiss: all vectors.
    """
    out = Path(out)
    if format not in FORMATS:
        raise UserError(f"there is no format {format!r}: choose one of {', '.join(FORMATS)}")
    keys = _versions_to_export(store, format, version)
    require_replaceable(out, folder=format != "parquet")
    _require_none_lost(out)
    rows = _rows_by_version(store, keys)
    total = sum(map(len, rows.values()))
    if total < len(store):
        logger.warning("%d entries have no vector of %s and are left out", len(store) - total, keys[-1])
    size = store.versions()[keys[0]].size if len(keys) == 1 else None
    with Progress("exporting", total, "vectors") as progress:
        served = _served(store, rows, progress)
        first = next(served, None)
        dtype = np.dtype(np.float32) if first is None or size is None else first[2].dtype
        served = chain([] if first is None else [first], served)
        width = max(store.versions()[key].size for key in keys)
        require_room(out, total * width * (4 if format == "faiss" else dtype.itemsize))
        if format == "parquet" or size is None:
            return _write_parquet(out, served, size, dtype)
        with replaced_atomically(out) as folder:
            folder.mkdir()
            return (_write_npy if format == "npy" else _write_faiss)(folder, served, size, dtype)


def _versions_to_export(store: Store, format: str, version: str | None) -> list[str]:
    """Keys of the versions, those first that serve an entry before others do."""
    versions, upgrade = list(store.versions()), read_upgrade(store)
    if not versions:
        raise UserError(f"{store.place} has no vectors to export: create the gallery first")
    if version is not None:
        if version not in versions:
            raise UserError(f"{store.place} has no vectors of {version}, only of {' and '.join(versions)}")
        return [version]
    if upgrade is None:
        return versions[:1]  # what else there is was left by an upgrade that did not begin
    if format != "parquet":
        raise UserError(
            f"{store.place} is being upgraded, and a file of this format holds vectors of one model: name the version "
            f"to export, {' or '.join(versions)}, or write parquet, which has a column for it"
        )
    return [key for key in (upgrade.new, upgrade.mapped, upgrade.old) if key is not None]


def _rows_by_version(store: Store, keys: list[str]) -> dict[str, np.ndarray]:
    """Rows (n,) of the entries that each version serves: those with a vector of it and of none before."""
    left = _all_rows(store, None)
    found = {}
    for key in keys:
        lacking = np.isin(left, _all_rows(store, key), assume_unique=True)
        found[key], left = left[~lacking], left[lacking]
    return found


def _all_rows(store: Store, lacking: str | None) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(entries.rows for entries in store.entries(lacking))])


def _served(store: Store, rows: dict[str, np.ndarray], progress: Progress) -> Served:
    for key, of_key in rows.items():
        for start in range(0, len(of_key), BLOCK):
            block = of_key[start : start + BLOCK]
            entries = store.entries_at(block)
            try:
                vectors = store.vectors(key, entries.rows)
            except UserError:
                again = store.entries_at(entries.rows)
                if len(again.rows) == len(entries.rows):
                    raise
                entries, vectors = again, store.vectors(key, again.rows)  # some were deleted meanwhile
            yield key, entries, vectors
            progress.update(len(block))


def _write_parquet(out: Path, served: Served, size: int | None, dtype: np.dtype) -> int:
    """`size`: D if all vectors have the same, else None."""
    number = pa.float16() if dtype == np.float16 else pa.float32()
    vector = pa.list_(number) if size is None else pa.list_(number, size)
    texts = {name: pa.string() for name in ("id", "label", "image", "version")}
    schema = pa.schema({"id": texts.pop("id"), "vector": vector, **texts})
    count = 0
    with replaced_atomically(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for key, entries, vectors in served:
            numbers = pa.array(vectors.astype(dtype, copy=False).ravel(), number)
            if size is None:
                starts = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
                lists = pa.ListArray.from_arrays(pa.array(starts), numbers)
            else:
                lists = pa.FixedSizeListArray.from_arrays(numbers, size)
            columns = [entries.ids, lists, entries.labels, entries.images, [key] * len(vectors)]
            arrays = [pa.array(column, kind) if isinstance(column, list) else column
                      for column, kind in zip(columns, schema.types)]  # fmt: skip
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            count += len(vectors)
    return count


def _require_none_lost(out: Path) -> None:
    """`UserError` if the folder `out` is there with other files than those of an export, which it would replace."""
    others = sorted(path.name for path in out.iterdir() if path.name not in WRITTEN) if out.is_dir() else []
    if others:
        raise UserError(f"{out} holds {others[0]}, which would be lost: name a new folder for the export")


def _write_npy(folder: Path, served: Served, size: int, dtype: np.dtype) -> int:
    with open(folder / "vectors.npy", "wb") as file:
        count = 0
        _write_header(file, count, size, dtype)
        with _Lists(folder) as lists:
            for _, entries, vectors in served:
                file.write(np.ascontiguousarray(vectors, dtype).data)
                lists.add(entries)
                count += len(vectors)
        file.seek(0)
        _write_header(file, count, size, dtype)  # as long as before: NumPy leaves room for a larger number of rows
    return count


def _write_header(file: BinaryIO, count: int, size: int, dtype: np.dtype) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, size)}
    np.lib.format.write_array_header_1_0(file, header)


def _write_faiss(folder: Path, served: Served, size: int, dtype: np.dtype) -> int:
    faiss = import_faiss()
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(size))
    with _Lists(folder) as lists:
        for _, entries, vectors in served:
            if len(vectors):
                units = unit_rows(vectors, slice(0, len(vectors)), "vectors", np.empty(vectors.shape))
                index.add_with_ids(units.astype(np.float32), np.arange(index.ntotal, index.ntotal + len(units)))
            lists.add(entries)
    try:
        faiss.write_index(index, str(folder / "vectors.faiss"))
    except RuntimeError as error:
        raise UserError(
            f"cannot write {folder / 'vectors.faiss'}: its disk is full or fails; make room there"
        ) from error
    return index.ntotal


class _Lists:
    """The text files beside vectors, written as the entries come; those in which no entry has anything are removed."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files = {name: open(folder / name, "w", encoding="utf-8", newline="\n") for name in (IDS, LABELS, IMAGES)}
        self._empty = {LABELS, IMAGES}

    def __enter__(self) -> "_Lists":
        return self

    def add(self, entries: Entries) -> None:
        """A line for each entry; of images for those that have one."""
        images = [(image, name) for image, name in zip(entries.images, entries.ids) if image is not None]
        for name, texts in ((IDS, entries.ids), (LABELS, entries.labels), (IMAGES, [image for image, _ in images])):
            bad = next((text for text in texts if text is not None and not LINE.fullmatch(text)), None)
            if bad is not None:
                raise UserError(f"{bad[:100]!r} cannot be a line of {name}: export parquet, which holds any text")
            if name != IDS and any(texts):
                self._empty.discard(name)
        self._files[IDS].writelines(f"{name}\n" for name in entries.ids)
        self._files[LABELS].writelines(f"{label or ''}\n" for label in entries.labels)
        self._files[IMAGES].writelines(f"{image}\t{name}\n" for image, name in images)

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()
        for name in self._empty:
            (self._folder / name).unlink()
