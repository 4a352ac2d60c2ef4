"""Record files that are cut short, replaced or written to while a program reads them, and headers that promise much."""

import logging
import os
import pickle
import struct

import numpy as np
import pytest
from limited_child import limited, outcome
from tiny import write_records

from core.data.record_index import write_index
from core.data.recordio import HEADER, MAGIC, MOST_LABELS, RecordReader, RecordWriter, pack
from core.data.records import STRETCH, RecordDataset
from core.errors import UserError
from core.images.loader import load_batches

LABELS = [0, 1, 2] * 20
CHANGED = r"train\.rec has changed while it was read \(\d+ bytes before, \d+ now\)"


def cut_short(path):
    os.truncate(path, 3000)


def emptied(path):
    path.write_bytes(b"")


def written_over(path):
    content = path.read_bytes()
    path.write_bytes(content[:2000] + b"\0" * (len(content) - 2000))
    os.utime(path, ns=(1, 1))


def replaced_by_other_images(path):
    """Every record is whole, but another."""
    other = path.read_bytes()
    write_records(path.parent / "other", LABELS, seed=1)
    os.replace(path.parent / "other.rec", path)
    assert path.read_bytes() != other
    os.utime(path, ns=(1, 1))


IN_PLACE = [cut_short, emptied, written_over]


@pytest.mark.parametrize("change", IN_PLACE)
def test_a_file_that_changes_in_place_is_told_and_ends_no_process(tmp_path, change):
    data = RecordDataset(write_records(tmp_path / "train", LABELS))
    rows = np.arange(data.num_images)
    assert data.batch(rows)[0].shape == (60, 16, 16, 3)
    labels = data._labels = None
    change(tmp_path / "train.rec")
    for read in (lambda: data.batch(rows), lambda: data.batch(rows[-1:]), data.labels, lambda: data.payload(50)):
        error = outcome(read)
        if isinstance(error, np.ndarray) or read is not data.labels and isinstance(error, bytes):
            continue
        assert isinstance(error, UserError), error
    assert labels is None
    with pytest.raises(UserError, match=CHANGED):
        data.batch(rows)


@pytest.mark.parametrize("change", [*IN_PLACE, replaced_by_other_images])
def test_a_worker_that_opens_another_file_tells_it(tmp_path, change):
    data = RecordDataset(write_records(tmp_path / "train", LABELS))
    assert data.image_size == 16
    there = pickle.dumps(data)  # as to a worker that is spawned
    assert pickle.loads(there).batch([0])[0].shape == (1, 16, 16, 3)
    change(tmp_path / "train.rec")
    with pytest.raises(UserError, match=CHANGED):
        pickle.loads(there).batch([0])


def test_a_replaced_file_is_read_to_the_end_by_those_that_have_it_open(tmp_path):
    data = RecordDataset(write_records(tmp_path / "train", LABELS))
    before = data.batch(np.arange(60))
    replaced_by_other_images(tmp_path / "train.rec")
    after = data.batch(np.arange(60))
    assert np.array_equal(before[0], after[0]) and np.array_equal(before[1], after[1])


def test_a_loader_tells_that_its_records_have_changed(tmp_path):
    data = RecordDataset(write_records(tmp_path / "train", LABELS))
    batches = load_batches(data, [np.arange(i, i + 4) for i in range(0, 60, 4)], 1, prefetch=1)
    next(batches)
    cut_short(tmp_path / "train.rec")
    with pytest.raises(UserError, match=CHANGED):
        list(batches)


def test_an_index_is_not_made_of_a_file_that_grows(tmp_path, monkeypatch):
    prefix = write_records(tmp_path / "train", LABELS)
    (tmp_path / "train.idx").unlink()

    def grow(data):
        with open(tmp_path / "train.rec", "ab") as file:
            file.write(bytes(64))
        return HEADER.unpack_from(data)

    monkeypatch.setattr("core.data.record_index.HEADER", type("", (), {"size": 24, "unpack_from": staticmethod(grow)}))
    with pytest.raises(UserError, match=CHANGED):
        write_index(prefix)
    assert not (tmp_path / "train.idx").exists()


@pytest.mark.parametrize("key", [0, 1])
@pytest.mark.parametrize("order", ["ascending", "shuffled"])
def test_labels_of_many_records_are_those_of_the_records_one_by_one(tmp_path, caplog, key, order):
    """With one label and several, split ones, large ones, and gaps, at the stretches' edges too."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 40_000, 200)
    sizes[[3, 50]] = STRETCH - 100, 3 * STRETCH
    split = struct.pack("<I", MAGIC)
    with RecordWriter(tmp_path / "train") as writer:
        for i, size in enumerate(sizes.tolist()):
            label = float(i) if i % 3 else (float(i), 7.0)
            writer.write(key + i, label, (split if i % 5 == 0 else b"") + bytes(size))
        writer.write(key + 200, 200.0, b"")  # ends before the words that are read of the others
    if order == "shuffled":
        lines = (tmp_path / "train.idx").read_text().splitlines()
        (tmp_path / "train.idx").write_text("".join(lines[i] + "\n" for i in rng.permutation(201)))
    data = RecordDataset(tmp_path / "train")
    expected = [data.record(row)[0][0] for row in range(201)]
    assert data.labels().tolist() == expected and sorted(expected) == list(range(201))


def framed(data: bytes, flag: int = 0, length: int | None = None) -> bytes:
    length = len(data) if length is None else length
    return struct.pack("<II", MAGIC, flag << 29 | length) + data + bytes(-len(data) % 4)


IMAGE = pack(0, 1.0, b"image---")
HOSTILE = {
    "length beyond the file": (framed(IMAGE, length=(1 << 29) - 1), "0\t0\n"),
    "labels beyond the record": (framed(HEADER.pack(2**32 - 1, 0, 0, 0)), "0\t0\n"),
    "no end of its parts": (framed(b"abcd", 1) + framed(b"", 2) * 5000, "0\t0\n"),
    "last part alone": (framed(IMAGE, 3), "0\t0\n"),
    "offset beyond the file": (framed(IMAGE), "0\t999999999999\n"),
    "offset at the end of int64": (framed(IMAGE), f"0\t{2**63 - 1}\n"),
    "offset within a record": (framed(IMAGE), "0\t3\n"),
    "offset beyond int64": (framed(IMAGE), f"0\t{10**30}\n"),
    "negative offset": (framed(IMAGE), "0\t-8\n"),
    "negative key": (framed(IMAGE), "-1\t0\n"),
    "no line": (framed(IMAGE), "\0" * 50),
    "endless line": (framed(IMAGE), "1" * 1_000_000),
    "not UTF-8": (framed(IMAGE), b"\xff\xfe\t\xff".decode("latin-1")),
    "header of 2^31 images": (framed(pack(0, (2.0**31, 5.0), b"")) + framed(IMAGE), "0\t0\n1\t40\n"),
    "header of no number": (framed(pack(0, (np.nan, np.inf), b"")) + framed(IMAGE), "0\t0\n1\t40\n"),
    "empty": (b"", ""),
    "file of zeros": (bytes(1000), "0\t0\n1\t40\n"),
}


@pytest.mark.parametrize("damage", HOSTILE)
def test_headers_and_indexes_that_promise_anything_are_one_line_in_little_memory(tmp_path, damage):
    records, index = HOSTILE[damage]
    (tmp_path / "train.rec").write_bytes(records)
    (tmp_path / "train.idx").write_text(index, encoding="latin-1")
    with limited(megabytes=1000, seconds=20), pytest.raises(UserError) as caught:
        RecordDataset(tmp_path / "train").batch([0])
    assert "train." in str(caught.value) and len(str(caught.value)) < 600


def test_a_sparse_file_of_labels_is_refused_without_reading_them_as_numbers(tmp_path):
    with open(tmp_path / "train.rec", "wb") as file:
        file.write(framed(HEADER.pack(MOST_LABELS + 1, 0, 0, 0), length=400 << 20))
        file.truncate(401 << 20)
    (tmp_path / "train.idx").write_text("0\t0\n")
    reader = RecordReader(tmp_path / "train")
    error = outcome(lambda: reader[0], megabytes=900)
    assert isinstance(error, UserError) and "promises 1048577 labels" in str(error)


def test_what_is_read_is_logged_as_before(tmp_path, caplog):
    write_records(tmp_path / "train", LABELS)
    with open(tmp_path / "train.rec", "ab") as file:
        file.write(bytes(12))
    with caplog.at_level(logging.WARNING):
        RecordDataset(tmp_path / "train")
    assert "its last 12 bytes are not in" in caplog.text
