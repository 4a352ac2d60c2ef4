"""Record files as the field's tools write them, byte by byte from the formats' descriptions; no code under test."""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

MAGIC = struct.pack("<I", 0xCED7230A)
Record = tuple[int, int, float | Sequence[float], bytes]
"""Key, id, label or labels, payload."""


def write_files(prefix: Path, records: Iterable[Record]) -> Path:
    """`prefix`.rec and `prefix`.idx as MXNet's MXIndexedRecordIO writes them; no payload has a magic word inside."""
    with open(f"{prefix}.rec", "wb") as rec, open(f"{prefix}.idx", "w", newline="\n") as idx:
        for key, number, label, payload in records:
            labels = np.atleast_1d(np.asarray(label, "<f4"))
            single = np.ndim(label) == 0
            head = struct.pack("<IfQQ", 0 if single else len(labels), labels[0] if single else 0, number, 0)
            data = head + (b"" if single else labels.tobytes()) + payload
            idx.write(f"{key}\t{rec.tell()}\n")
            rec.write(MAGIC + struct.pack("<I", len(data)) + data + bytes(-len(data) % 4))
    return prefix


def face2rec2(prefix: Path, labels: Sequence[int], payloads: Sequence[bytes]) -> Path:
    """InsightFace's face2rec2: images (label, aligned), then the header, then a range wherever the label changed."""
    starts = [row + 1 for row in range(len(labels)) if row == 0 or labels[row] != labels[row - 1]]
    end = len(labels) + 1
    ranges = list(zip(starts, [*starts[1:], end]))
    images = [(i, i, (float(label), 1.0), image) for i, (label, image) in enumerate(zip(labels, payloads), 1)]
    header = [(0, 0, (float(end), float(end + len(ranges))), b"")]
    return write_files(prefix, [*images, *header, *((end + i, end + i, r, b"") for i, r in enumerate(ranges))])


def rec_builder(prefix: Path, labels: Sequence[int], payloads: Sequence[bytes]) -> Path:
    """InsightFace's RecBuilder: grouped images with a plain label, ranges, the header last; labels may have gaps."""
    end = len(labels) + 1
    ranges = [(1 + labels.index(c), 1 + labels.index(c) + labels.count(c)) for c in sorted(set(labels))]
    images = [(i, i, float(label), image) for i, (label, image) in enumerate(zip(labels, payloads), 1)]
    records = [*images, *((end + i, end + i, r, b"") for i, r in enumerate(ranges))]
    return write_files(prefix, [*records, (0, 0, (float(end), float(end + len(ranges))), b"")])


def seq_rec_builder(prefix: Path, labels: Sequence[int], payloads: Sequence[bytes]) -> Path:
    """InsightFace's SeqRecBuilder, and im2rec of a list that is not shuffled: images alone, from 0 on."""
    return write_files(prefix, [(i, i, float(label), p) for i, (label, p) in enumerate(zip(labels, payloads))])


def im2rec(prefix: Path, labels: Sequence[int], payloads: Sequence[bytes]) -> Path:
    """im2rec of one part of a shuffled list: keys in any order, with gaps."""
    keys = np.random.default_rng(1).permutation(3 * len(labels))[: len(labels)].tolist()
    return write_files(prefix, [(k, k, float(label), p) for k, label, p in zip(keys, labels, payloads)])


def shuffle_rec(prefix: Path, labels: Sequence[int], payloads: Sequence[bytes]) -> Path:
    """InsightFace's shuffle_rec: the ids of a file with a header, keys counted from 0, no header."""
    ids = (np.random.default_rng(1).permutation(len(labels)) + 1).tolist()
    return write_files(prefix, [(k, ids[k], float(label), p) for k, (label, p) in enumerate(zip(labels, payloads))])


def with_header(prefix: Path, labels: Sequence[int], payloads: Sequence[bytes], num_classes: int | None = None) -> Path:
    """As the released splits are written: a header with the number of classes, then the images with two labels."""
    classes = float(num_classes or max(labels) + 1)
    header = (0, 0, (len(labels) + 1.0, classes), b"")
    images = [(i, i, (float(label), 0.0), image) for i, (label, image) in enumerate(zip(labels, payloads), 1)]
    return write_files(prefix, [header, *images])


def without_ids(prefix: Path, labels: Sequence[int], payloads: Sequence[bytes]) -> Path:
    """Many a script: every record has id 0."""
    return write_files(prefix, [(i, 0, float(label), p) for i, (label, p) in enumerate(zip(labels, payloads))])


WRITERS = (face2rec2, rec_builder, seq_rec_builder, im2rec, shuffle_rec, with_header, without_ids)
