"""Class and data splits on hand-worked labels, as functions, as records, as lists and through the tool."""

import errno
import logging
import os
import re
import shutil
from collections import namedtuple

import numpy as np
import pytest
from launching import Launch

import core.outputs
from core.data.recordio import MAGIC_BYTES, RecordReader, RecordWriter
from core.data.records import RecordDataset
from core.data.split import class_split, data_split, split_list, split_records
from core.errors import UserError
from core.files import ROOT


def test_class_split_gives_the_first_identities_to_the_old_side_and_renumbers_the_others():
    labels = np.repeat(np.arange(10), 2)
    old, new = class_split(labels, 0.3)
    assert old.tolist() == [0, 0, 1, 1, 2, 2] + [-1] * 14
    assert new.tolist() == [-1] * 6 + np.repeat(np.arange(7), 2).tolist()


@pytest.mark.parametrize(
    ("classes", "ratio", "num_old"), [(93_431, 0.3, 28_029), (81_313, 0.3, 24_393), (100, 0.29, 29)]
)
def test_class_split_counts_are_the_published_ones(classes, ratio, num_old):
    old, new = class_split(np.arange(classes), ratio)
    assert ((old >= 0).sum(), (new >= 0).sum()) == (num_old, classes - num_old)


def test_class_split_ignores_the_order_of_records_and_gaps_in_the_labels():
    old, new = class_split(np.array([9, 4, 9, 2, 7, 2]), 0.5)
    assert old.tolist() == [-1, 1, -1, 0, -1, 0]
    assert new.tolist() == [1, -1, 1, -1, 0, -1]


def test_data_split_counts_per_class():
    counts = [1, 2, 3, 4, 5, 10, 15, 1]
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(8), counts))
    old, new = data_split(labels, 0.3, seed=0)
    assert np.bincount(old[old >= 0]).tolist() == [1, 1, 1, 1, 2, 3, 4, 1]
    assert np.bincount(new[new >= 0]).tolist() == [1, 1, 2, 3, 3, 7, 11, 1]
    both = (old >= 0) & (new >= 0)
    assert sorted(labels[both]) == [0, 7]
    assert ((old >= 0) | (new >= 0)).all()
    assert (old[old >= 0] == labels[old >= 0]).all() and (new[new >= 0] == labels[new >= 0]).all()


def test_data_split_never_gives_all_images_of_a_class_to_one_side():
    old, new = data_split(np.repeat(np.arange(3), [2, 3, 4]), 0.99, seed=0)
    assert np.bincount(old[old >= 0]).tolist() == [1, 2, 3]
    assert np.bincount(new[new >= 0]).tolist() == [1, 1, 1]


def test_data_split_is_drawn_from_the_seed():
    labels = np.repeat(np.arange(50), 10)
    assert (data_split(labels, 0.3, 1)[0] == data_split(labels, 0.3, 1)[0]).all()
    assert (data_split(labels, 0.3, 1)[0] != data_split(labels, 0.3, 2)[0]).any()


def make(prefix):
    labels = np.repeat(np.arange(10), [1, 2, 3, 4, 1, 2, 3, 4, 5, 5])
    payloads = [b"%d" % i + MAGIC_BYTES * (i % 2) for i in range(len(labels))]
    with RecordWriter(prefix) as writer:
        writer.write(0, (len(labels) + 1, 10), b"")
        for i, (label, payload) in enumerate(zip(labels, payloads), start=1):
            writer.write(i, (label, 5) if i % 3 else label, payload)
    return labels, payloads


def test_class_split_files_have_a_header_unchanged_payloads_and_new_labels(tmp_path):
    labels, payloads = make(tmp_path / "train")
    written = split_records(tmp_path / "train", "class", 0.3)
    assert written == {
        f"{tmp_path}/train_part_30_class": (6, 3),
        f"{tmp_path}/train_part_70_class": (24, 7),
    }
    start = 0
    for prefix, (num_images, num_classes) in written.items():
        with RecordReader(prefix) as reader:
            assert reader[0] == ((num_images + 1, num_classes), b"")
            assert reader.keys.tolist() == list(range(num_images + 1))
            for i in range(num_images):
                label = labels[start + i] - labels[start]
                expected = (label, 5) if (start + i + 1) % 3 else (label,)
                assert reader[i + 1] == (expected, payloads[start + i])
        start += num_images


def test_data_split_files_keep_the_labels(tmp_path):
    labels, payloads = make(tmp_path / "train")
    split_records(tmp_path / "train", "data", 0.3, seed=4)
    label_of = dict(zip(payloads, labels))
    seen = []
    for share in (30, 70):
        data = RecordDataset(tmp_path / f"train_part_{share}_data")
        assert data.num_classes == 10
        part = [data.payload(i) for i in range(len(data))]
        assert data.labels().tolist() == [label_of[p] for p in part]
        seen += part
    assert len(seen) == len(labels) + 2 and set(seen) == set(payloads)


def test_data_split_of_fewer_images_than_classes_can_be_read(tmp_path):
    with RecordWriter(tmp_path / "train") as writer:
        for i in range(12):
            writer.write(i, 0 if i < 6 else 100, b"image")
    for prefix, (num_images, num_classes) in split_records(tmp_path / "train", "data", 0.3).items():
        data = RecordDataset(prefix)
        assert (data.num_images, data.num_classes) == (num_images, num_classes) and num_classes == 101


def make_list(path, classes=10, images=4):
    """Lines `folder/<class> <number>.jpg label` in no order of classes; labels are ten times the class."""
    lines = [f"folder/{c} {i}.jpg {10 * c}" for c in range(classes) for i in range(images)]
    path.write_text("\n".join(np.random.default_rng(0).permutation(lines)) + "\n\n")
    return read_lines(path)


def read_lines(path):
    return [tuple(line.rsplit(" ", 1)) for line in path.read_text().splitlines() if line]


def test_class_split_of_a_list_numbers_the_old_classes_first_in_the_whole_list(tmp_path):
    lines = make_list(tmp_path / "x.txt")
    written = split_list(tmp_path / "x.txt", "class", 0.3, seed=5)
    old, new, whole = (tmp_path / f"x_part_{share}_class.txt" for share in (30, 70, 100))
    assert written == {str(old): (12, 3), str(new): (28, 7), str(whole): (40, 10)}
    old, new, whole = (read_lines(path) for path in (old, new, whole))
    assert [path for path, _ in whole] == [path for path, _ in lines]
    number = dict(whole)
    classes = {(label, number[path]) for path, label in lines}  # of the source and of the whole list, one to one
    assert len(classes) == 10 and {int(n) for _, n in classes} == set(range(10))
    assert sorted(classes, key=lambda pair: int(pair[0])) != sorted(classes, key=lambda pair: int(pair[1]))  # shuffled
    assert old == [(path, label) for path, label in whole if int(label) < 3]
    assert new == [(path, str(int(label) - 3)) for path, label in whole if int(label) >= 3]


def test_classes_of_a_list_are_shuffled_by_the_seed(tmp_path):
    make_list(tmp_path / "x.txt")
    texts = []
    for seed in (1, 1, 2):
        split_list(tmp_path / "x.txt", "class", 0.3, seed)
        texts.append([path.read_bytes() for path in sorted(tmp_path.glob("x_part*"))])
    assert texts[0] == texts[1] and all(a != b for a, b in zip(texts[1], texts[2]))


def test_data_split_of_a_list_keeps_the_labels_and_the_order_of_lines(tmp_path):
    lines = make_list(tmp_path / "x.txt")
    written = split_list(tmp_path / "x.txt", "data", 0.25, seed=5)
    old, new = (tmp_path / f"x_part_{share}_data.txt" for share in (25, 75))
    assert written == {str(old): (10, 91), str(new): (30, 91)}
    old, new = read_lines(old), read_lines(new)
    assert old == [line for line in lines if line in set(old)] and new == [line for line in lines if line not in old]
    assert {label for _, label in old} == {label for _, label in lines}


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 30, 0.05, 0.5, 0.4999999, 0.99999999])
def test_ratio_that_leaves_a_side_empty_or_without_a_name_of_its_own_is_refused(tmp_path, ratio):
    make(tmp_path / "train")
    with pytest.raises(UserError, match="ratio"):
        split_records(tmp_path / "train", "class", ratio)
    make_list(tmp_path / "train.txt")
    with pytest.raises(UserError, match="ratio"):
        split_list(tmp_path / "train.txt", "class", ratio)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("mode", ["class", "data"])
def test_negative_seed_is_refused(tmp_path, mode):
    make(tmp_path / "train")
    make_list(tmp_path / "train.txt")
    for split, source in ((split_records, tmp_path / "train"), (split_list, tmp_path / "train.txt")):
        with pytest.raises(UserError, match="seed -1 is negative"):
            split(source, mode, 0.3, -1)


def run_tool(*arguments, logs):
    (status,), (output,) = Launch(ROOT / "tools" / "split_dataset.py", [*arguments], logs).wait()
    return status, output


def test_tool_writes_both_sides_and_replaces_them(tmp_path, tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    make(tmp_path / "train")
    for ratio in (0.4, 0.2, 0.4):
        assert run_tool("--rec", tmp_path / "train", "--mode", "data", "--ratio", ratio, logs=logs)[0] == 0
    parts = {f"train_part_{share}_data{suffix}" for share in (20, 40, 60, 80) for suffix in (".rec", ".idx")}
    assert {p.name for p in tmp_path.iterdir()} == parts | {"train.rec", "train.idx"}


def test_tool_splits_a_list_and_reports_a_malformed_line(tmp_path, tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    make_list(tmp_path / "x.txt")
    status, output = run_tool("--rec", tmp_path / "x.txt", "--mode", "class", "--seed", 3, logs=logs)
    assert status == 0 and "x_part_100_class.txt: 40 images of 10 classes" in output
    assert {p.name for p in tmp_path.iterdir()} == {"x.txt", *(f"x_part_{share}_class.txt" for share in (30, 70, 100))}
    (tmp_path / "y.txt").write_text("a.jpg 1\nb.jpg\n")
    status, output = run_tool("--rec", tmp_path / "y.txt", "--mode", "class", logs=logs)
    assert status == 2 and re.match(r"error: .*y\.txt, line 2: 'b\.jpg' is not", output.splitlines()[-1])
    assert not list(tmp_path.glob("y_part*")) and "Traceback" not in output


@pytest.mark.parametrize("damage", ["record", "index", "missing"])
def test_tool_names_damage_in_one_line_and_leaves_nothing(tmp_path, tmp_path_factory, damage):
    make(tmp_path / "train")
    rec, idx = tmp_path / "train.rec", tmp_path / "train.idx"
    if damage == "record":
        rec.write_bytes(rec.read_bytes()[:-20])
        what = ("train.rec: record 30 is damaged",)
    elif damage == "index":
        idx.write_text(idx.read_text().replace("\n7\t", "\nseven\t"))
        what = ("train.idx", "record 7")
    else:
        idx.unlink()
        what = ("train.idx",)
    before = sorted(tmp_path.iterdir())
    status, output = run_tool("--rec", tmp_path / "train", "--mode", "class", logs=tmp_path_factory.mktemp("logs"))
    lines = output.splitlines()
    assert status == 2 and sum(line.startswith("error: ") for line in lines) == 1
    assert lines[-1].startswith("error: ") and all(part in lines[-1] for part in what)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["train", "train.rec", ""])
def test_parts_of_records_in_another_folder_are_those_beside_the_data(tmp_path, name):
    data, out = tmp_path / "data", tmp_path / "parts"
    data.mkdir()
    make(data / "train")
    split_records(data / "train", "data", 0.4, 3)
    expected = {path.name: path.read_bytes() for path in data.glob("train_part*")}
    for path in data.glob("train_part*"):
        path.unlink()
    written = split_records(data / name, "data", 0.4, 3, out=out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected and len(list(data.iterdir())) == 2
    assert set(written) == {f"{out}/train_part_40_data", f"{out}/train_part_60_data"}


def test_parts_of_a_list_in_another_folder_say_where_the_images_are(tmp_path, caplog):
    make_list(tmp_path / "x.txt")
    split_list(tmp_path / "x.txt", "class", 0.3)
    expected = {path.name: path.read_bytes() for path in tmp_path.glob("x_part*")}
    with caplog.at_level(logging.INFO):
        split_list(tmp_path / "x.txt", "class", 0.3, out=tmp_path / "parts")
    assert {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()} == expected
    assert f"train with image_root={tmp_path}" in caplog.text


@pytest.mark.parametrize("kind", ["records", "list"])
def test_folder_that_cannot_be_written_to_is_one_line_before_the_work(tmp_path, monkeypatch, kind):
    """Root may write anywhere, so what the system says of the folder is replaced."""
    data = tmp_path / "data"
    data.mkdir()
    source, split = (data / "train", split_records) if kind == "records" else (data / "x.txt", split_list)
    (make if kind == "records" else make_list)(source)
    before = sorted(data.iterdir())
    temporary_file = core.outputs.TemporaryFile

    def make_file(**options):
        if options["dir"] == data:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(data))
        return temporary_file(**options)

    monkeypatch.setattr(core.outputs, "TemporaryFile", make_file)
    monkeypatch.setattr("core.data.split.track", lambda *_: pytest.fail("the work has begun"))
    for out in (None, data):
        with pytest.raises(UserError, match=rf"cannot write {data}: Read-only file system; .* \(--out\)$"):
            split(source, "class", 0.3, out=out)
    with pytest.raises(UserError, match=rf"cannot write {data}/parts: Read-only file system; .* \(--out\)$"):
        split(source, "class", 0.3, out=data / "parts")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file is no folder; name another path \(--out\)$"):
        split(source, "class", 0.3, out=tmp_path / "file")
    assert sorted(data.iterdir()) == before
    monkeypatch.undo()
    assert split(source, "class", 0.3, out=tmp_path / "new" / "parts")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any folder; the test above replaces the answer")
def test_read_only_folder_is_one_line_before_the_work(tmp_path):
    make(tmp_path / "train")
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UserError, match=r"Permission denied; .* \(--out\)$"):
            split_records(tmp_path / "train", "class", 0.3)
    finally:
        tmp_path.chmod(0o755)


def test_disk_without_room_is_one_line_before_the_work(tmp_path, monkeypatch):
    make(tmp_path / "train")
    size = (tmp_path / "train.rec").stat().st_size
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(size - 1))
    with pytest.raises(UserError, match="/train_part_30_class: it needs .* 1 bytes are missing; make room"):
        split_records(tmp_path / "train", "class", 0.3)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(size))
    split_records(tmp_path / "train", "class", 0.3)
    assert len(list(tmp_path.iterdir())) == 6
