"""Lists as other tools write them: the same images, labels and order as from a list of lines `path label`."""

import csv
import io
import logging
import re

import numpy as np
import pytest
import simplejpeg

from core.data.lists import ListDataset, read_list
from core.data.open_dataset import is_list, open_dataset
from core.data.split import split_list
from core.errors import UserError

ROWS = [("img/b 1.jpg", 2), ("img/a.jpg", 0), ("img/c,d.jpg", 2), ("img/caf\u00e9.jpg", 1), ("img/7", 0)]
NAMES = {0: "Ann", 1: "Zo\u00eb", 2: "bob"}
LINES = [(path.encode(), label) for path, label in ROWS]


def read(folder, text, name="list.txt"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    images = read_list(folder / name)
    assert images.labels.dtype == np.int64
    return [(images.path(row), int(images.labels[row])) for row in range(len(images))]


def table(columns, rows, delimiter=",", quoting=csv.QUOTE_MINIMAL, end="\n"):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([columns, *rows])
    return out.getvalue()


def plain(end="\n"):
    return "".join(f"{path} {label}{end}" for path, label in ROWS)


LISTS = {
    "im2rec": "".join(f"{i}\t{label:f}\t{path}\n" for i, (path, label) in enumerate(ROWS) if path != "img/7")
    + "4\t0.000000\timg/7\n",
    "im2rec shuffled": "".join(f"{9 * i % 5}\t{label}\t{path}\r\n" for i, (path, label) in enumerate(ROWS)),
    "im2rec with several labels": "".join(
        f"{i}\t{label}.0\t-25.5\t3\t{path}\n" for i, (path, label) in enumerate(ROWS)
    ),
    "face2rec2": "".join(f"1\t{path}\t{label}\n" for path, label in ROWS),
    "face2rec2 with boxes": "".join(f"1\t{path}\t{label}{chr(9) + '0' * i}\n" for i, (path, label) in enumerate(ROWS)),
    "byte order mark": "\ufeff" + plain(),
    "byte order mark and CRLF": "\ufeff" + plain("\r\n"),
    "blank lines and blank ends": "\ufeff\r\n" + plain(" \t\r\n\r\n"),
    "csv": table(["path", "label"], ROWS),
    "csv, other order, more columns": table(
        ["", "x_1", "Label", "Image Path"], [(i, 0.5, b, a) for i, (a, b) in enumerate(ROWS)]
    ),
    "csv quoted, CRLF and byte order mark": "\ufeff" + table(["file", "identity"], ROWS, ",", csv.QUOTE_ALL, "\r\n"),
    "semicolons": table(["file_name", "class"], ROWS, ";"),
    "tabs": table(["Image", "Id"], ROWS, "\t"),
    "floats of pandas": table(["filename", "landmark_id"], [(path, float(label)) for path, label in ROWS]),
    "id and label": table(["id", "label"], ROWS),
    "path wins over image_id": table(["image_id", "class_id", "path"], [(i, b, a) for i, (a, b) in enumerate(ROWS)]),
    "names": table(["path", "person"], [(path, NAMES[label]) for path, label in ROWS]),
    "blank lines in a table": "\n\n" + table(["path", "label"], ROWS).replace("\n", "\n\n"),
    "one split": table(["path", "label", "split"], [(*row, "validation") for row in ROWS]),
    "several splits": table(
        ["split", "path", "label"],
        [("test", "img/x.jpg", 8), *(("Train", *row) for row in ROWS), ("val", "img/y.jpg", 9)],
    ),
}


@pytest.mark.parametrize("kind", LISTS)
def test_every_kind_gives_the_rows_of_the_plain_list(tmp_path, kind):
    assert read(tmp_path, plain()) == LINES
    assert read(tmp_path, LISTS[kind]) == LINES


@pytest.mark.parametrize("name", ["list.csv", "list.lst", "list.tsv", "list"])
def test_the_suffix_does_not_matter(tmp_path, name):
    for kind in ("im2rec", "face2rec2", "csv", "tabs"):
        assert read(tmp_path, LISTS[kind], name) == LINES and is_list(tmp_path / name)
    if not name.endswith(("csv", "tsv")):
        assert read(tmp_path, plain(), name) == LINES


def test_table_separated_by_blanks(tmp_path):
    """As that of Stanford Online Products."""
    text = "image_id class_id super_class_id path\n1 1 1 bicycle_final/111_0.JPG\n2 1 1 bicycle_final/111_1.JPG\n"
    assert read(tmp_path, text) == [(b"bicycle_final/111_0.JPG", 1), (b"bicycle_final/111_1.JPG", 1)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_text_of_windows_in_utf_16(tmp_path, encoding):
    text = (plain("\r\n") if encoding == "utf-16" else "\ufeff" + plain("\r\n")).encode(encoding)
    assert read(tmp_path, text) == LINES


def test_bytes_that_are_no_utf_8_are_kept(tmp_path):
    for text in (b"path,label\ncaf\xe9.jpg,1\n", b"0\t1.0\tcaf\xe9.jpg\n", b"1\tcaf\xe9.jpg\t1\n"):
        assert read(tmp_path, text) == [(b"caf\xe9.jpg", 1)]


def test_what_was_recognised_is_logged_in_one_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for kind, line in {
        "im2rec": "is an im2rec list: index, label, path",
        "im2rec with several labels": "of the 3 labels of a line the first is the class",
        "face2rec2": "is a list of InsightFace's: aligned, path, label",
        "csv, other order, more columns": "paths in its column Image Path, labels in Label",
        "names": "its 3 names of classes are numbered in sorted order",
        "several splits": "5 of its 7 rows are train in split",
    }.items():
        caplog.clear()
        read(tmp_path, LISTS[kind])
        assert f"{tmp_path}/list.txt" in caplog.text and line in caplog.text
    caplog.clear()
    read(tmp_path, plain())
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\t1.0\ta.jpg\nx\t1.0\tb.jpg\n", "line 2: it does not begin with an index"),
        ("0\t1.0\ta.jpg\n1\t0.5\tb.jpg\n", "line 2: it has a label that is no class"),
        ("0\t1.0\ta.jpg\n\n1\tx\tb.jpg\n", "line 3: it has a name for its label, unlike the first"),
        ("0\t1.0\ta.jpg\n1\t1.0\t2.0\tb.jpg\n", "line 2: 4 fields, but 3 in the first"),
        ("0\t1.0\ta.jpg\n1\t1.0\n", "line 2: it has no path"),
        ("1\ta.jpg\t0\n0\tb.jpg\t1\t3\t4\t50\t60\n", r"line 2: it is a face that is not aligned"),
        ("1\ta.jpg\t0\n2\tb.jpg\t1\n", r"line 2: it does not begin with 0 or 1, as in InsightFace's lists"),
        ("1\ta.jpg\t0\n1\tb.jpg\n", "line 2: it has no label"),
        ("path,label\na.jpg,1\nb.jpg,2,3\n", "line 3: 3 fields, but 2 in the first"),
        ('path,label\r\n"a,b.jpg",1\r\nb.jpg\r\n', "line 3: it has no label"),
        ("path,label\na.jpg,1\n,2\n", "line 3: it has no path"),
        ("path,label\na.jpg,-1\n", "line 2: it has a label that is no class"),
        ("path,label\na.jpg,1234567890\n", "line 2: it has a label that is no class"),
        ("path,label\na.jpg,Ann\nb.jpg,7\n", "line 3: it has a number for its label, unlike the first"),
        ("path,label\n", "contains no images"),
        ("path,filename,label\na,b,1\n", "its columns path and filename may all hold the paths"),
        ("path,label,class\na,1,2\n", "its columns label and class may all hold the labels"),
        ("path,label,split\na,1,val\nb,2,test\n", "no row of its column split says train"),
        ("id,landmark_id\nabc,7\n", r"is a table of GLDv2: .*tools/prepare_gldv2\.py"),
        ("id,url,landmark_id\nabc,http://x,7\n", r"is a table of GLDv2: .*tools/prepare_gldv2\.py"),
        ("landmark_id,images\n7,abc abd\n", r"is a table of GLDv2: .*tools/prepare_gldv2\.py"),
        ("a.jpg,1\nb.jpg,2\n", r"line 1: 'a\.jpg,1' does not name a column of paths and one of labels"),
        ("path,colour\na.jpg,1\n", r"line 1: 'path,colour' does not name a column of paths and one of labels"),
    ],
)
def test_line_that_does_not_fit_and_columns_that_are_not_clear_are_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=rf"{tmp_path}/list\.csv.*{message}") as caught:
        read(tmp_path, text, "list.csv")
    assert "\n" not in str(caught.value)


def write_images(folder, rows=ROWS):
    for number, (path, _) in enumerate(rows):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((16, 16, 3), 40 * number, np.uint8)
        (folder / path).write_bytes(simplejpeg.encode_jpeg(pixels, 95, "RGB", "444"))


@pytest.mark.parametrize("kind", ["plain", "csv", "mixed"])
def test_paths_of_windows_are_found(tmp_path, kind, caplog):
    write_images(tmp_path)
    caplog.set_level(logging.INFO)
    (tmp_path / "a.txt").write_text(plain())
    expected = ListDataset(tmp_path / "a.txt").batch(range(5))
    windows = [(path.replace("/", "\\"), label) for path, label in ROWS]
    windows = [*windows[:2], *ROWS[2:]] if kind == "mixed" else windows
    text = table(["path", "label"], windows) if kind == "csv" else "".join(f"{p} {c}\r\n" for p, c in windows)
    (tmp_path / "b.txt").write_text(text)
    images, labels = open_dataset(tmp_path / "b.txt").batch(range(5))
    assert np.array_equal(images, expected[0]) and np.array_equal(labels, expected[1])
    assert "b.txt: its paths are Windows's; each \\ is read as /" in caplog.text


def test_backslash_in_a_name_is_kept_and_missing_files_are_named_as_written(tmp_path):
    rows = [("odd\\name.jpg", 0), ("img/b.jpg", 1)]
    write_images(tmp_path, rows)
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{p} {c}\n" for p, c in rows))
    assert ListDataset(path).image_name(0) == f"{tmp_path}/odd\\name.jpg"
    path.write_text("C:\\photos\\1.jpg 0\nC:\\photos\\2.jpg 1\n")
    with pytest.raises(UserError, match=re.escape("2 of its 2 files are missing below") + r".*C:\\photos\\1\.jpg"):
        ListDataset(path)


def test_splits_of_a_table_are_lists_that_are_read(tmp_path):
    rows = [(f"img/{i}, {i}.jpg", f"name {i // 4}") for i in range(40)]
    (tmp_path / "t.csv").write_text(table(["path", "person"], rows))
    written = split_list(tmp_path / "t.csv", "class", 0.3)
    assert list(written.values()) == [(12, 3), (28, 7), (40, 10)]
    whole = read_list(tmp_path / "t_part_100_class.txt")
    assert [whole.path(row).decode() for row in range(40)] == [path for path, _ in rows]


def test_classes_without_images_are_counted_in_one_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_images(tmp_path)
    (tmp_path / "a.txt").write_text("img/a.jpg 1\nimg/7 3\n")
    assert ListDataset(tmp_path / "a.txt").num_classes == 4
    assert "a.txt: 2 of its 4 classes have images" in caplog.text


def test_bytes_of_a_name_that_look_like_blanks_are_kept(tmp_path):
    rows = read(tmp_path, "path,person\na\u00e0,Nicol\u00e0\nb\u0105,Nicol\u0085\n")
    assert rows == [("a\u00e0".encode(), 1), ("b\u0105".encode(), 0)]
