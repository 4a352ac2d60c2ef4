"""How many classes records have, by whatever tool they were written, and what their splits make of it."""

import logging

import pytest
from limited_child import limited
from record_writers import face2rec2, im2rec, rec_builder, seq_rec_builder, shuffle_rec, with_header

from core.data.lists import ListDataset, read_list
from core.data.records import RecordDataset
from core.data.split import split_list, split_records
from core.errors import UserError

UNGROUPED = [0, 1, 2, 2, 0, 1, 1, 2]
IMAGES = [b"image %d" % i for i in range(8)]


@pytest.mark.parametrize(
    ("writer", "labels", "classes"),
    [
        (face2rec2, UNGROUPED, 3),  # 7 ranges
        (face2rec2, [2, 2, 0, 0, 1, 1, 1, 1], 3),  # grouped, but not ascending: the last label is not the largest
        (face2rec2, [0, 1, 0, 1, 0, 1, 0, 7], 8),  # as many ranges as classes, most of them without an image
        (face2rec2, [0, 0, 1, 1, 2, 2, 2, 3], 4),
        (face2rec2, [5, 4, 3, 2, 1, 0, 5, 5], 6),
        (rec_builder, [0, 0, 3, 3, 3, 9, 9, 9], 10),  # gaps: 3 ranges
        (rec_builder, [0, 0, 1, 1, 1, 2, 2, 2], 3),
        (seq_rec_builder, UNGROUPED, 3),
        (im2rec, [9, 0, 0, 0, 0, 0, 0, 0], 10),
        (shuffle_rec, UNGROUPED, 3),
        (with_header, UNGROUPED, 3),
    ],
)
def test_classes_are_those_of_the_labels_whatever_the_index_ranges(tmp_path, writer, labels, classes):
    data = RecordDataset(writer(tmp_path / "train", labels, IMAGES))
    assert (data.num_images, data.num_classes) == (8, classes)
    assert sorted(data.labels()) == sorted(labels)


def test_header_that_counts_ranges_which_the_index_lacks_is_not_a_number_of_classes(tmp_path):
    for labels, classes in (([0, 0, 1, 1, 1, 2, 2, 2], 3), (UNGROUPED, 3)):
        prefix = face2rec2(tmp_path / "train", labels, IMAGES)
        index = tmp_path / "train.idx"
        index.write_text("".join(index.read_text().splitlines(keepends=True)[:9]))
        assert RecordDataset(prefix).num_classes == classes


def test_header_that_counts_more_classes_than_there_are_images_is_believed(tmp_path):
    for labels, classes in (([0, 0, 1, 2, 2, 2, 3, 3], 20), ([7] * 8, 11), ([0, 30] * 4, 31)):
        data = RecordDataset(with_header(tmp_path / "train", labels, IMAGES, classes))
        assert data.num_classes == classes and data.labels().tolist() == labels


def test_grouped_files_are_opened_without_reading_their_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(RecordDataset, "labels", lambda self: pytest.fail("all labels are read"))
    labels = [0, 0, 1, 1, 1, 2, 2, 2]
    for writer in (face2rec2, rec_builder, with_header):
        assert RecordDataset(writer(tmp_path / "train", labels, IMAGES)).num_classes == 3


def test_one_line_says_that_header_and_labels_disagree(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for writer, labels, counts in (
        (face2rec2, UNGROUPED, ["6 class ranges by its header, but 3 classes by its labels"]),
        (rec_builder, [0, 0, 3, 3, 3, 9, 9, 9], ["3 class ranges by its header, but 10 classes by its labels"]),
        (rec_builder, [0, 0, 1, 1, 1, 2, 2, 2], []),
        (with_header, UNGROUPED, []),
    ):
        caplog.clear()
        RecordDataset(writer(tmp_path / "train", labels, IMAGES)).labels()
        lines = [record.message for record in caplog.records if "ranges" in record.message]
        assert [line.split(", which")[0].split(".rec: ")[1] for line in lines] == counts
    caplog.clear()
    RecordDataset(with_header(tmp_path / "train", UNGROUPED, IMAGES, num_classes=5)).labels()
    assert [r.message for r in caplog.records] == [
        f"{tmp_path}/train.rec: 3 of its 5 classes have images; the others get a class weight too"
    ]


@pytest.mark.parametrize("writer", [face2rec2, im2rec, with_header])
@pytest.mark.parametrize("mode", ["class", "data"])
def test_splits_have_the_right_number_of_classes_in_their_headers(tmp_path, writer, mode):
    prefix = writer(tmp_path / "train", UNGROUPED, IMAGES)
    written = split_records(prefix, mode, 0.4)
    expected = {"class": [(2, 1), (6, 2)], "data": [(3, 3), (5, 3)]}[mode]
    assert list(written.values()) == expected
    for part, (images, classes) in written.items():
        data = RecordDataset(part)
        assert (data.num_images, data.num_classes) == (images, classes)
        assert data._reader[0] == ((images + 1, classes), b"")


@pytest.mark.parametrize("label", [2**24, 999_999_999])
def test_labels_that_are_absurd_for_the_images_are_refused_before_anything_is_allocated(tmp_path, label):
    (tmp_path / "list.txt").write_text(f"a.jpg 0\na.jpg {label}\n")
    (tmp_path / "table.csv").write_text(f"path,label\na.jpg,{label}\n")
    (tmp_path / "a.jpg").write_bytes(b"image")
    im2rec(tmp_path / "train", [0, 0, label], IMAGES[:3])
    with_header(tmp_path / "promised", [0, 0, 1], IMAGES[:3], label + 2)
    opened = {
        "list.txt": lambda: ListDataset(tmp_path / "list.txt"),
        "table.csv": lambda: read_list(tmp_path / "table.csv"),
        "train.rec": lambda: RecordDataset(tmp_path / "train"),
        "promised.rec": lambda: RecordDataset(tmp_path / "promised"),
        "list": lambda: split_list(tmp_path / "list.txt", "class", 0.3, rule="released"),
    }
    for name, read in opened.items():
        with limited(500, 20), pytest.raises(UserError, match=rf"{name}.*: its labels go up to .* has [123] images"):
            read()


def test_labels_with_gaps_up_to_the_limit_are_classes(tmp_path):
    im2rec(tmp_path / "train", [0, 0, 2**24 - 1], IMAGES[:3])
    assert RecordDataset(tmp_path / "train").num_classes == 2**24
