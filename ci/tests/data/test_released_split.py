"""The released rules against plain loops that do what the releases describe, file by file and byte by byte."""

import logging

import numpy as np
import pytest
from record_writers import with_header

from core.data.released_split import first_images, numbered_by_shuffle, shuffled_images
from core.data.split import split_list, split_records
from core.errors import UserError

RATIO = 0.3
COUNTS = [[1, 2, 3, 4, 5, 7, 1, 10, 15, 25], [5, 1, 1, 1, 8, 35], [3, 3, 2, 2, 45, 5, 4, 4, 6, 15, 11, 1, 1]]


def grouped(counts):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return labels, [b"image %d" % i for i in range(len(labels))]


def files(folder, pattern):
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("mode", ["class", "data"])
def test_records_are_split_into_the_files_of_the_release(tmp_path, counts, mode):
    """MixBCT's script: sorted images with two labels; by class the first of them, by image the first of each class."""
    labels, images = grouped(counts)
    old, new = [], []
    num_old, num_classes = round(len(counts) * RATIO), len(counts)
    for label, image in zip(labels, images):
        own = [one for other, one in zip(labels, images) if other == label]
        share = max(1, round(len(own) * RATIO))
        if mode == "class":
            (old if label < num_old else new).append((label if label < num_old else label - num_old, image))
            continue
        if len(own) == 1 or own.index(image) < share:
            old.append((label, image))
        if len(own) == 1 or own.index(image) >= share:
            new.append((label, image))
    classes = (num_old, num_classes - num_old) if mode == "class" else (num_classes, num_classes)
    (tmp_path / "expected").mkdir()
    for share, side, total in zip((30, 70), (old, new), classes):
        with_header(tmp_path / "expected" / f"train_part_{share}_{mode}", *zip(*side), num_classes=total)
    with_header(tmp_path / "train", labels, images)
    split_records(tmp_path / "train", mode, RATIO, rule="released")
    assert files(tmp_path, "train_part*") == files(tmp_path / "expected", "*")


def released_lists(lines, num_classes):
    """AdvBCT's script: the texts of old class, all classes, old data, new data, from lines (path, label)."""
    by_class = [[line for line in lines if line[1] == label] for label in range(num_classes)]
    np.random.seed(666)
    shuffled = np.arange(num_classes)
    np.random.shuffle(shuffled)
    is_old = set(shuffled[: int(num_classes * RATIO)].tolist())
    number, old_class, whole = {}, [], []
    for label in [*sorted(is_old), *sorted(set(range(num_classes)) - is_old)]:
        number[label] = len(number)
    old_data, new_data = [], []
    for label, own in enumerate(by_class):
        whole += [(path, number[label]) for path, _ in own]
        old_class += [(path, number[label]) for path, _ in own if label in is_old]
        old = {0}
        if len(own) > 3:
            np.random.seed(666 + label)
            order = np.arange(len(own))
            np.random.shuffle(order)
            old = set(order[: int(len(own) * RATIO)].tolist())
        old_data += [line for place, line in enumerate(own) if place in old]
        new_data += [line for place, line in enumerate(own) if place not in old or len(own) == 1]
    return ["".join(f"{path} {label}\n" for path, label in part) for part in (old_class, whole, old_data, new_data)]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("shuffled", [False, True])
def test_lists_are_split_into_the_files_of_the_release(tmp_path, counts, shuffled):
    labels = grouped(counts)[0]
    lines = [(f"train/{i}.jpg", label) for i, label in enumerate(labels)]
    if shuffled:
        lines = [lines[i] for i in np.random.default_rng(0).permutation(len(lines))]
    (tmp_path / "x.txt").write_text("".join(f"{path} {label}\n" for path, label in lines))
    expected = released_lists(lines, len(counts))
    state = np.random.get_state()[1].tolist()
    split_list(tmp_path / "x.txt", "class", RATIO, rule="released")
    split_list(tmp_path / "x.txt", "data", RATIO, rule="released")
    names = ["x_part_30_class", "x_part_100_class", "x_part_30_data", "x_part_70_data"]
    assert [(tmp_path / f"{name}.txt").read_text() for name in names] == expected
    assert np.random.get_state()[1].tolist() == state
    whole = [line.rsplit(" ", 1) for line in expected[1].splitlines()]
    num_old = int(len(counts) * RATIO)
    new = "".join(f"{path} {int(label) - num_old}\n" for path, label in whole if int(label) >= num_old)
    assert (tmp_path / "x_part_70_class.txt").read_text() == new  # the release has none; as ours otherwise


def test_counts_are_those_of_the_released_data_sets():
    assert numbered_by_shuffle(np.arange(81_313), RATIO)[1] == 24_393
    counts = np.array([1, 2, 3, 4, 7, 10, 100])
    labels = np.repeat(np.arange(7), counts)
    assert np.bincount(labels, shuffled_images(labels, RATIO)).tolist() == [1, 1, 1, 1, 2, 3, 30]
    assert np.bincount(labels, first_images(labels, RATIO)).tolist() == [1, 1, 1, 1, 2, 3, 30]


def test_records_that_are_not_sorted_are_split_class_by_class_and_told(tmp_path, caplog):
    labels, images = [2, 0, 2, 1, 0, 2, 2], [b"%d" % i for i in range(7)]
    caplog.set_level(logging.INFO)
    split_records(with_header(tmp_path / "train", labels, images), "data", RATIO, rule="released")
    with_header(tmp_path / "train_part_30", [2, 0, 1], [b"0", b"1", b"3"])
    assert files(tmp_path, "train_part_30_data.rec") == {
        "train_part_30_data.rec": (tmp_path / "train_part_30.rec").read_bytes()
    }
    assert "train.rec is not sorted by class, as the release expects" in caplog.text


@pytest.mark.parametrize("split", [split_records, split_list])
def test_seed_is_refused_with_the_released_rule(tmp_path, split):
    with pytest.raises(UserError, match="the seed 3 has no effect on the released rule"):
        split(tmp_path / "x.txt", "class", RATIO, 3, rule="released")
