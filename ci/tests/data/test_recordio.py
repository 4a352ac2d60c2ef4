"""The record format against hand-worked bytes, every kind of damage, and sharing with worker processes."""

import multiprocessing
import pickle
import struct

import numpy as np
import pytest

from core.data.recordio import RecordReader, RecordWriter
from core.errors import UserError

MAGIC = bytes([0x0A, 0x23, 0xD7, 0xCE])


def write(prefix, records):
    with RecordWriter(prefix) as writer:
        for index, label, payload in records:
            writer.write(index, label, payload)
    return prefix


def part(flag, data):
    return MAGIC + struct.pack("<I", flag << 29 | len(data)) + data + bytes(-len(data) % 4)


def header(flag, label, index):
    return struct.pack("<IfQQ", flag, label, index, 0)


def test_scalar_and_vector_labels_are_the_bytes_that_mxnet_writes(tmp_path):
    prefix = write(tmp_path / "a", [(0, (4, 2), b""), (1, 7, b"abcde"), (2, [3.5], b"")])
    first = "0a23d7ce 20000000 02000000 00000000 00000000 00000000 00000000 00000000 00008040 00000040"
    second = "0a23d7ce 1d000000 00000000 0000e040 01000000 00000000 00000000 00000000 61626364 65000000"
    third = "0a23d7ce 18000000 00000000 00006040 02000000 00000000 00000000 00000000"
    assert (tmp_path / "a.rec").read_bytes().hex() == (first + second + third).replace(" ", "")
    assert (tmp_path / "a.idx").read_bytes() == b"0\t0\n1\t40\n2\t80\n"
    with RecordReader(prefix) as reader:
        assert len(reader) == 3
        assert list(map(reader.__getitem__, range(3))) == [((4, 2), b""), ((7,), b"abcde"), ((3.5,), b"")]


@pytest.mark.parametrize(
    ("payload", "parts"),
    [
        (MAGIC, [b"", b""]),
        (b"abcd" + MAGIC + b"e", [b"abcd", b"e"]),
        (MAGIC + MAGIC, [b"", b"", b""]),
        (b"ab" + MAGIC + b"cd", None),
        (b"ab" + MAGIC + b"cd" + MAGIC + b"xyz", [b"ab" + MAGIC + b"cd", b"xyz"]),
        (b"abcd" + MAGIC[:3], None),
    ],
)
def test_record_is_split_exactly_at_aligned_magic_words(tmp_path, payload, parts):
    prefix = write(tmp_path / "a", [(5, 1, payload), (6, 2, b"after")])
    if parts is None:
        expected = part(0, header(0, 1, 5) + payload)
    else:
        parts = [header(0, 1, 5) + parts[0], *parts[1:]]
        flags = [1, *[2] * (len(parts) - 2), 3]
        expected = b"".join(map(part, flags, parts))
    data = (tmp_path / "a.rec").read_bytes()
    assert data == expected + part(0, header(0, 2, 6) + b"after")
    with RecordReader(prefix) as reader:
        assert reader[0] == ((1,), payload)
        assert reader[1] == ((2,), b"after")


def test_magic_word_in_header_or_labels_splits_the_record_too(tmp_path):
    magic = struct.unpack("<I", MAGIC)[0]
    label = struct.unpack("<f", MAGIC)[0]
    prefix = write(tmp_path / "a", [(magic, 3, b"x"), (1, (label, 2), MAGIC)])
    expected = part(1, struct.pack("<If", 0, 3)) + part(3, struct.pack("<IQ", 0, 0) + b"x")
    expected += part(1, header(2, 0, 1)) + part(2, struct.pack("<f", 2)) + part(3, b"")
    assert (tmp_path / "a.rec").read_bytes() == expected
    assert (tmp_path / "a.idx").read_text() == f"{magic}\t0\n1\t{len(part(1, bytes(8)) + part(3, bytes(13)))}\n"
    with RecordReader(prefix) as reader:
        assert reader[0] == ((3,), b"x")
        assert reader[1] == ((label, 2), MAGIC)


def test_random_payloads_full_of_magic_words_are_read_as_written(tmp_path):
    rng = np.random.default_rng(0)
    pieces = [MAGIC, b"", b"a", b"abcd", MAGIC[:2], MAGIC[2:]]
    payloads = [b"".join(pieces[i] for i in rng.integers(0, 6, rng.integers(0, 9))) for _ in range(300)]
    labels = [tuple(map(float, range(k))) for k in rng.integers(1, 4, 300)]
    prefix = write(tmp_path / "a", list(zip(range(300), labels, payloads)))
    with RecordReader(prefix) as reader:
        assert [reader[i] for i in range(300)] == list(zip(labels, payloads))


def test_records_that_are_read_together_are_those_that_are_read_one_by_one(tmp_path):
    """Of one label and of several, split at magic words, empty, and larger than what is read at once."""
    rng = np.random.default_rng(0)
    magic = struct.pack("<I", 0xCED7230A)
    payloads = [
        b"",
        b"x",
        rng.bytes(5000),
        magic * 3,
        b"1234" + magic + rng.bytes(100),
        rng.bytes(1 << 21),
        rng.bytes(7),
    ]
    labels = [3.0, (1.0, 2.0), 0.0, (5.0,), (6.0, 7.0, 8.0), 9.0, 2.0]
    prefix = write(tmp_path / "train", list(zip(range(7), labels, payloads)))
    reader = RecordReader(prefix)
    for records in (np.arange(7), np.array([6, 0, 3, 3, 5]), np.array([6]), np.empty(0, np.int64)):
        found, views = reader.views(records)
        one_by_one = [reader[i] for i in records]
        assert found.tolist() == [values[0] for values, _ in one_by_one] and found.dtype == np.float32
        assert [bytes(view) for view in views] == [payload for _, payload in one_by_one]


def test_reader_follows_the_lines_of_the_index_not_its_keys(tmp_path):
    prefix = write(tmp_path / "a", [(9, 1, b"one"), (4, 2, b"two")])
    lines = (tmp_path / "a.idx").read_text().splitlines()
    (tmp_path / "a.idx").write_text(f"{lines[1]}\r\n{lines[0]}")
    with RecordReader(prefix) as reader:
        assert [reader[0], reader[1]] == [((2,), b"two"), ((1,), b"one")]
        for i in (-1, 2):
            with pytest.raises(IndexError):
                reader[i]


def test_empty_file_has_no_records(tmp_path):
    with RecordReader(write(tmp_path / "a", [])) as reader:
        assert len(reader) == 0


def test_closed_reader_refuses_to_read(tmp_path):
    reader = RecordReader(write(tmp_path / "a", [(0, 1, b"x")]))
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader[0]


def first_payload(reader, queue):
    queue.put(reader[1])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_reader_is_shared_with_worker_processes(tmp_path, method, opened):
    reader = RecordReader(write(tmp_path / "a", [(0, 1, b"x"), (1, 2, MAGIC + b"y")]))
    if opened:
        assert reader[0] == ((1,), b"x")
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = [context.Process(target=first_payload, args=(reader, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [((2,), MAGIC + b"y")] * 2
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert reader[1] == ((2,), MAGIC + b"y")


def test_pickled_reader_carries_no_file(tmp_path):
    reader = RecordReader(write(tmp_path / "a", [(0, 1, bytes(10_000))]))
    assert reader[0][1] == bytes(10_000)
    data = pickle.dumps(reader)
    assert len(data) < 2000
    assert pickle.loads(data)[0] == reader[0]


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda d: d[:40] + b"x" + d[41:], "no magic word at byte 40"),
        (lambda d: d[:60], "it reaches to byte 76, but the file ends at 60"),
        (lambda d: d[:40], "it begins at byte 40, but the file ends at 40"),
        (lambda d: d[:44] + struct.pack("<I", 1 << 29 | 28) + d[48:], "its part 1 is of kind 0"),
        (lambda d: d[:44] + struct.pack("<I", 2 << 29 | 24) + d[48:], "part of kind 2"),
        (lambda d: d[:44] + struct.pack("<I", 5 << 29 | 24) + d[48:], "part of kind 5"),
        (lambda d: d[:44] + struct.pack("<I", 4) + d[48:], "4 bytes are too few"),
        (lambda d: d[:48] + struct.pack("<I", 3) + d[52:], "promises 3 labels"),
    ],
)
def test_damaged_record_is_named_and_the_others_are_read(tmp_path, damage, what):
    prefix = write(tmp_path / "a", [(0, 1, b"first---"), (1, 2, b"2nd-"), (2, 3, b"")])
    path = tmp_path / "a.rec"
    path.write_bytes(damage(path.read_bytes()))
    reader = RecordReader(prefix)
    assert reader[0] == ((1,), b"first---")
    with pytest.raises(UserError, match=f"a.rec: record 1 is damaged: .*{what}"):
        reader[1]


def test_offset_past_the_end_is_named_with_its_key(tmp_path):
    prefix = write(tmp_path / "a", [(0, 1, b"")])
    with open(tmp_path / "a.idx", "a") as index:
        index.write("77\t4000\n")
    with pytest.raises(UserError, match=r"a.rec: record 1 \(key 77\) is damaged: it begins at byte 4000"):
        RecordReader(prefix)[1]


@pytest.mark.parametrize("line", ["1", "1\t2\t3", "one\t40", "1 40", "\t40", "1\t", "", "1\t-4"])
def test_malformed_index_line_is_named(tmp_path, line):
    prefix = write(tmp_path / "a", [(0, 1, b"")])
    (tmp_path / "a.idx").write_text(f"0\t0\n{line}\n2\t80\n")
    with pytest.raises(UserError, match="a.idx: the line of record 1 "):
        RecordReader(prefix)


@pytest.mark.parametrize("suffix", [".rec", ".idx"])
def test_missing_file_is_named(tmp_path, suffix):
    prefix = write(tmp_path / "a", [])
    (tmp_path / f"a{suffix}").unlink()
    with pytest.raises(UserError, match=f"a{suffix}"):
        RecordReader(prefix)


def test_failed_writing_leaves_older_files_and_nothing_else(tmp_path):
    prefix = write(tmp_path / "a", [(0, 1, b"old")])
    with pytest.raises(RuntimeError), RecordWriter(prefix) as writer:
        writer.write(0, 1, b"new")
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.idx", "a.rec"]
    assert RecordReader(prefix)[0] == ((1,), b"old")


def test_closing_twice_and_replacing_are_allowed(tmp_path):
    write(tmp_path / "a", [(0, 1, b"old"), (1, 1, b"old")])
    writer = RecordWriter(tmp_path / "a")
    writer.write(0, 2, b"new")
    assert RecordReader(tmp_path / "a")[0] == ((1,), b"old")
    writer.close()
    writer.close()
    reader = RecordReader(tmp_path / "a")
    assert (len(reader), reader[0]) == (1, ((2,), b"new"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.idx", "a.rec"]


def test_writing_into_a_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        RecordWriter(tmp_path / "none" / "a")


def test_label_without_values_is_refused(tmp_path):
    with RecordWriter(tmp_path / "a") as writer, pytest.raises(ValueError, match="label"):
        writer.write(0, (), b"")
