"""The index of a record file, made again from that file alone, with the keys that its writer gave."""

import logging
from array import array
from pathlib import Path

import numpy as np
import polars as pl

from core.data.recordio import HEADER, MOST_AT_ONCE, RecordFile, unpack
from core.errors import UserError
from core.outputs import replaced_atomically, require_replaceable
from core.progress import Progress

__all__ = ["write_index"]

logger = logging.getLogger(__name__)
MEGABYTE = 20
"""The power of 2."""
LARGEST_KEY = 2**63 - 1


def write_index(prefix: str | Path) -> int:
    """Write `prefix`.idx, a line `key<TAB>offset` for each record of `prefix`.rec in the file's order; their number.

    The keys are the ids in the records' headers, as InsightFace's tools and `im2rec` number them; where these are no
    numbering of their own, the records are counted from 0 (see `record_keys`). An index that is there is replaced, when
    the new one is whole. Log lines say what was found. `UserError` naming file, record and byte of the first damage.
    The file is read in one pass; memory is 40 bytes a record.
    """
    file = RecordFile(f"{prefix}.rec")
    try:
        require_replaceable(f"{prefix}.idx")
    except UserError as error:
        raise UserError(f"{error} (a folder with a link to the .rec will do)") from error
    offsets, ids = _scan(file)
    if not len(ids):
        raise UserError(f"{file.path} contains no records")
    keys = record_keys(ids)
    if not np.array_equal(keys, ids):
        logger.info(
            "%s: the ids in its records are no numbering of the file; the records are counted from 0", file.path
        )
    with replaced_atomically(f"{prefix}.idx") as temporary:
        pl.DataFrame({"key": keys, "offset": offsets}).write_csv(temporary, include_header=False, separator="\t")
    _report(file, keys, offsets)
    return len(keys)


def _scan(file: RecordFile) -> tuple[np.ndarray, np.ndarray]:
    """Offset (int64) and id (uint64) of each record."""
    offsets, ids = array("q"), array("Q")
    offset = size = 0
    with Progress(f"reading {file.path.name}", file.size >> MEGABYTE, "MB") as progress:
        while offset < file.size:
            try:
                data, end = file.record(offset, size)
                unpack(data)
            except ValueError as error:
                file.require_unchanged()
                raise UserError(
                    f"{file.path}: record {len(ids)}, at byte {offset}, is damaged: {error}; copy or make the file "
                    f"again, or keep the {len(ids)} records before it with: truncate -s {offset} {file.path}"
                ) from None
            offsets.append(offset)
            ids.append(HEADER.unpack_from(data)[2])
            if megabytes := (end >> MEGABYTE) - (offset >> MEGABYTE):
                progress.update(megabytes)
            offset, size = end, min(end - offset, MOST_AT_ONCE)  # the next record is likely to be as large
    file.require_unchanged()
    return np.array(offsets, np.int64), np.array(ids, np.uint64)


def record_keys(ids: np.ndarray) -> np.ndarray:
    """The keys (N,), int64, of records with the ids (N,), uint64, as their writer gave them.

    All writers take the id for the key, but for InsightFace's `shuffle_rec.py`, which keeps the ids 1 to N of a file
    with a header, leaves the header out, and counts from 0. Ids that occur twice are no keys: counted from 0, as
    MXNet's rec2idx does with all files.
    """
    ordered = np.sort(ids)
    repeated = (ordered[1:] == ordered[:-1]).any() or ordered[-1] > LARGEST_KEY
    shuffled = ordered[0] == 1 and ordered[-1] == len(ids) and not np.array_equal(ordered, ids)
    return np.arange(len(ids)) if repeated or shuffled else ids.astype(np.int64)


def _report(file: RecordFile, keys: np.ndarray, offsets: np.ndarray) -> None:
    """Log what the records are, and a header that promises other images than there are."""
    first = np.flatnonzero(keys == 0)[:1]
    labels, payload = unpack(file.record(int(offsets[first[0]]))[0]) if len(first) else ((), b"image")
    if len(labels) != 2 or len(payload):
        logger.info("%s.idx: %d records, no header record", file.path.with_suffix(""), len(keys))
        return
    images = int(np.count_nonzero((keys > 0) & (keys < labels[0])))
    logger.info(
        "%s.idx: %d records: a header, %d images, %d class ranges",
        file.path.with_suffix(""), len(keys), images, len(keys) - 1 - images,
    )  # fmt: skip
    if abs(images + 1 - labels[0]) > np.spacing(np.float32(labels[0])):  # exact to 2^24 images, then to the rounding
        logger.warning("%s: its header promises %.0f images: the file is not whole", file.path, labels[0] - 1)
