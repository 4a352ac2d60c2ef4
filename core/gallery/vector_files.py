"""Vectors that come as files: NumPy's .npy with a list of ids, parquet, faiss indexes that keep whole vectors.

.npy      (N, D), and the ids in a text file, one a line
parquet   columns `id`, text or whole numbers, and `vector`, lists of numbers; optional `label`, `image` and
          `version`, the key of the model that the vectors are stamped with
faiss     IndexFlat and IndexIVFFlat, perhaps in an IndexIDMap or IndexIDMap2; ids are the index's own numbers, as
          text, or the lines of a text file: of IVF indexes the line whose number, from 0, is that of the vector, of
          the others in the order of the vectors
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.compute import call_function

from core.arrays import open_vector_array
from core.errors import UserError
from core.files import require_file
from core.gallery.faiss_files import MOST_NUMBERS, FaissFile, read_faiss_file
from core.gallery.store import BLOCK
from core.gallery.text_lists import located, read_ids, read_images, read_labels, require_once
from core.memory import bounded_memory

__all__ = ["Block", "VectorFile", "as_stored", "open_vectors"]

logger = logging.getLogger(__name__)
NPY, PARQUET = b"\x93NUMPY", b"PAR1"
"""What files of these kinds begin with."""
DTYPES = ("float16", "float32", "float64")
ARROW_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}
UNIT_TOLERANCE = 1e-3
ROOM, MOST_PACKED = 1 << 30, 64
"""Bytes that reading a file may take besides its own, and how many times smaller a parquet file is than its vectors."""


@dataclass(frozen=True)
class Block:
    """B vectors and what belongs to them."""

    ids: list[str]
    vectors: np.ndarray
    """(B, D) float16 as given, or float32; finite and not zero."""
    labels: list[str | None]
    images: list[str | None]


@dataclass(frozen=True)
class VectorFile:
    """N vectors of size D in a file, and what belongs to each; ids are there once. Held is the text alone."""

    path: Path
    size: int
    ids: pl.Series
    labels: pl.Series | None
    images: pl.Series | None
    version: str | None
    """Key of the model that the vectors are stamped with, if the file says it."""
    read: Callable[[int], Iterator[np.ndarray]]
    """All vectors in blocks of so many, in any float dtype."""

    def __len__(self) -> int:
        return len(self.ids)

    def blocks(self, size: int = BLOCK) -> Iterator[Block]:
        """All vectors, float64 rounded to float32; `UserError` naming row and id of one without a direction.

        Memory: one block.
        """
        start = 0
        for vectors in self.read(size):
            rows = slice(start, start + len(vectors))
            ids = self.ids[rows].to_list()
            yield Block(
                ids,
                as_stored(vectors, lambda row, start=start: self.named(start + row)),
                _texts(self.labels, rows),
                _texts(self.images, rows),
            )
            start = rows.stop

    def named(self, row: int) -> str:
        """Which vector this is, for errors."""
        return f"{self.path}: the vector in row {row} (counted from 0, id {self.ids[row]!r})"


def as_stored(vectors: np.ndarray, named: Callable[[int], str]) -> np.ndarray:
    """Vectors (B, D) as a gallery keeps them: float16 as it is, float32 or float64 as float32.

    `UserError` for other types or shapes, and for the first one without a direction, whose row `named` puts into words.
    """
    if vectors.ndim != 2 or vectors.dtype.newbyteorder("=").name not in DTYPES:
        raise UserError(f"vectors are {' or '.join(DTYPES)} (B, D), one a row: got {vectors.dtype} {vectors.shape}")
    dtype = np.float16 if vectors.dtype == np.float16 else np.float32
    with np.errstate(all="ignore"):
        stored = np.ascontiguousarray(vectors, dtype=dtype)
        wide = stored.astype(np.float32, copy=False)
        squares = np.einsum("nd,nd->n", wide, wide)
    for row in np.flatnonzero(~(np.isfinite(squares) & (squares > 0))).tolist():
        if np.isfinite(stored[row]).all() and stored[row].any():
            continue  # its square alone is out of range
        problem = "zero" if not vectors[row].any() else "not finite"
        if np.isfinite(vectors[row]).all() and vectors[row].any():
            problem = "too long or too short for float32"
        raise UserError(f"{named(row)} is {problem}: it has no direction, leave it out")
    return stored


def _texts(column: pl.Series | None, rows: slice) -> list[str | None]:
    return [None] * (rows.stop - rows.start) if column is None else column[rows].to_list()


def open_vectors(
    path: str | Path,
    ids: str | Path | None = None,
    labels: str | Path | None = None,
    images: str | Path | None = None,
) -> VectorFile:
    """The vectors of a file, whose kind is seen from its content, joined to text files (`core.gallery.text_lists`).

    `UserError` for a file of another kind or a damaged one, numbers of rows that differ, an id that is empty or there
    twice. Memory: the text of ids, classes and images; vectors stay on disk.
    """
    path = require_file(path, "file of vectors")
    with open(path, "rb") as file:
        magic = file.read(len(NPY))
    if magic == NPY:
        opened = _open_npy(path, ids)
    elif magic.startswith(PARQUET):
        opened = _open_parquet(path, ids)
    else:
        opened = _open_faiss(path, ids)
    return _with_lists(opened, labels, images)


def _with_lists(file: VectorFile, labels: str | Path | None, images: str | Path | None) -> VectorFile:
    """A file with classes and images by lists in place of its own."""
    of_labels, of_images = file.labels, file.images
    if labels is not None:
        of_labels = read_labels(labels)
        _require_count(labels, len(of_labels), file.path, len(file))
    if images is not None:
        of_images = read_images(images, file.ids)
        missing = of_images.null_count()
        if missing:
            logger.info("%s: %d of %d ids have no image", images, missing, len(of_images))
    return VectorFile(file.path, file.size, file.ids, of_labels, of_images, file.version, file.read)


def _require_count(lines_of: str | Path, lines: int, path: Path, count: int) -> None:
    if lines != count:
        raise UserError(
            f"{lines_of} has {lines} lines, but {path} {count} vectors: give a line for each, in their order"
        )


def _open_npy(path: Path, ids: str | Path | None) -> VectorFile:
    array = open_vector_array(path)
    _require_floats(path, array.dtype.newbyteorder("=").name)
    if ids is None:
        raise UserError(f"{path} has no ids: give a text file with one a line, in the order of the vectors")
    names = read_ids(ids)
    _require_count(ids, len(names), path, len(array))

    def read(size: int) -> Iterator[np.ndarray]:
        return (array[start : start + size] for start in range(0, len(array), size))

    return VectorFile(path, array.shape[1], names, None, None, None, read)


def _require_floats(path: Path, dtype: str) -> None:
    if dtype not in DTYPES:
        raise UserError(f"{path} holds numbers of the kind {dtype}: vectors are float16, float32 or float64")


def _open_parquet(path: Path, ids: str | Path | None) -> VectorFile:
    try:
        with bounded_memory(_room(path)):
            file = pq.ParquetFile(path, memory_map=True)
        schema = file.schema_arrow
        for name in ("id", "vector"):
            if name not in schema.names:
                raise UserError(f"{path} has no column {name}: its columns are {', '.join(schema.names)}")
        if ids is not None:
            raise UserError(f"{path} has its ids in a column: leave {ids} out")
        columns = [name for name in ("id", "label", "image", "version") if name in schema.names]
        texts = {}
        for name in columns:
            with bounded_memory(_room(path, file)):
                column = file.read(columns=[name]).column(0)
            texts[name] = _text_column(path, name, column)
        size = _vector_size(path, file)
    except UserError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise _damaged(path, error) from error
    names = texts["id"]
    if names.null_count() or (names == "").any():
        row = (names.fill_null("") == "").arg_true()[0]
        raise UserError(f"{path}: row {row} (counted from 0) has no id")
    require_once(names, lambda row: f"{path}, row {row} (counted from 0)")
    images = texts.get("image")
    opened = VectorFile(
        path, size, names, texts.get("label"), images if images is None else located(images, path.parent),
        _stamp(path, texts.get("version")), lambda size: _read_parquet(opened, size),
    )  # fmt: skip
    return opened


def _room(path: Path, file: pq.ParquetFile | None = None) -> int:
    """Bytes that a parquet file may take while it is read: those of its largest group of rows, if it can hold them."""
    size = path.stat().st_size
    groups = range(file.metadata.num_row_groups) if file else ()
    largest = max((file.metadata.row_group(group).total_byte_size for group in groups), default=0) if file else 0
    return ROOM + 2 * size + 3 * min(max(largest, 0), MOST_PACKED * size)


def _damaged(path: Path, error: Exception) -> UserError:
    said = f"{type(error).__name__} {error}".splitlines()[0][:300]
    return UserError(f"{path} cannot be read as parquet: it is damaged ({said}): write it again")


def _text_column(path: Path, name: str, column: pa.ChunkedArray) -> pl.Series:
    """Text, or whole numbers as text; null for an empty one."""
    column.validate(full=True)  # Polars takes it as it is
    series = pl.Series(name, pl.from_arrow(column))
    if not (series.dtype.is_integer() or series.dtype in (pl.String, pl.Categorical, pl.Null)):
        raise UserError(f"{path}: its column {name} is {series.dtype}, not text: write it as text")
    series = series.cast(pl.String)
    return series if name == "id" else series.set(series == "", None)


def _stamp(path: Path, versions: pl.Series | None) -> str | None:
    keys = [] if versions is None else versions.drop_nulls().unique().sort().to_list()
    if len(keys) > 1:
        raise UserError(f"{path} has vectors of {len(keys)} models ({', '.join(keys[:3])}): give those of one")
    return keys[0] if keys else None


def _vector_size(path: Path, file: pq.ParquetFile) -> int:
    """D, by the kind of the column or by the first row."""
    kind = file.schema_arrow.field("vector").type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise UserError(f"{path}: its column vector is {kind}: write lists of numbers")
    number = str(kind.value_type)
    _require_floats(path, ARROW_NAMES.get(number, number))
    if pa.types.is_fixed_size_list(kind):
        if not 0 < kind.list_size <= MOST_NUMBERS:
            raise UserError(f"{path}: its vectors have {kind.list_size} numbers each, more than any model's, or none")
        return kind.list_size
    for batch in _batches(path, file, 1):
        if batch.num_rows and batch.column(0)[0].is_valid and len(batch.column(0)[0]):
            return len(batch.column(0)[0])
        raise UserError(f"{path}: row 0 has no vector")
    raise UserError(f"{path} has no rows, and so its vectors have no size: write lists of fixed size")


def _read_parquet(file: VectorFile, size: int) -> Iterator[np.ndarray]:
    start = 0
    try:
        for batch in _batches(file.path, pq.ParquetFile(file.path, memory_map=True), size):
            yield _matrix(file, batch.column(0), start)
            start += batch.num_rows
    except UserError:
        raise
    except Exception as error:
        raise _damaged(file.path, error) from error
    if start != len(file):
        raise UserError(f"{file.path} has {len(file)} ids and {start} vectors: it is damaged, write it again")


def _batches(path: Path, file: pq.ParquetFile, size: int) -> Iterator[pa.RecordBatch]:
    """The vectors of a file in parts of so many rows; reading takes no more memory than the file can ask for."""
    batches = file.iter_batches(size, columns=["vector"])
    while True:
        with bounded_memory(_room(path, file)):
            batch = next(batches, None)
        if batch is None:
            return
        batch.validate(full=True)
        yield batch


def _matrix(file: VectorFile, column: Any, start: int) -> np.ndarray:
    """Lists of numbers (B,) as (B, D)."""
    sizes = call_function("list_value_length", [column]).fill_null(0).to_numpy(zero_copy_only=False)
    other = np.flatnonzero(sizes != file.size)
    if len(other):
        row = int(other[0])
        problem = f"has {sizes[row]} numbers, not {file.size}: vectors of one model have one size"
        raise UserError(f"{file.named(start + row)} {problem}")
    values = column.flatten()
    if values.null_count:
        row = values.is_null().to_numpy(zero_copy_only=False).argmax() // file.size
        raise UserError(f"{file.named(start + int(row))} has a missing number: leave it out")
    return values.to_numpy(zero_copy_only=False).reshape(-1, file.size)


def _open_faiss(path: Path, ids: str | Path | None) -> VectorFile:
    found = read_faiss_file(path)
    numbers = found.numbers if found.own_ids is None else _own_ids(path, found)
    if ids is None:
        names = pl.Series("id", numbers).cast(pl.String)
        require_once(names, lambda row: f"{path}, row {row} (counted from 0)")
    else:
        lines = read_ids(ids)
        _require_count(ids, len(lines), path, len(numbers))
        _require_numbers(
            found.numbers, len(lines), f"{ids}: the numbers of the vectors in {path} are not those of its lines"
        )
        names = lines.gather(found.numbers)

    def read(size: int) -> Iterator[np.ndarray]:
        return (found.read(start, min(size, len(names) - start)) for start in range(0, len(names), size))

    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(found.read(0, min(BLOCK, len(names))), axis=1)
        if (np.abs(lengths - 1) > UNIT_TOLERANCE).any():
            logger.warning(
                "%s: not all vectors have length 1; the index ranks them by it, the gallery by cosines", path
            )
    return VectorFile(path, found.size, names, None, None, None, read)


def _own_ids(path: Path, found: FaissFile) -> np.ndarray:
    """Of an IndexIDMap, in the order of the vectors."""
    assert found.own_ids is not None
    _require_numbers(found.numbers, len(found.own_ids), f"{path} is damaged: the numbers of its vectors have no ids")
    return found.own_ids[found.numbers]


def _require_numbers(numbers: np.ndarray, count: int, problem: str) -> None:
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < count:
        raise UserError(f"{problem}: leave it out, or write the index again")
