"""Lists of GLDv2 from hand-written csv files, through the tool's function and the tool."""

import json
import logging
import re
from pathlib import Path

import pytest
from launching import Launch

from core.builtin.gldv2_lists import ground_truth, prepare_gldv2, read_index, read_solution, read_train
from core.data.lists import read_list
from core.errors import UserError
from core.evaluation.gldv2 import read_gldv2
from core.files import ROOT

TRAIN = {27: ["aa00000000000001", "b000000000000002"], 1: ["c000000000000003"], 203: ["0d00000000000004"]}
INDEX = ["1a00000000000000", "2b00000000000000", "3c00000000000000", "4d00000000000000"]
QUERIES = {
    "e100000000000000": ("3c00000000000000 1a00000000000000", "Private"),
    "e200000000000000": ("None", "Ignored"),
    "e300000000000000": ("2b00000000000000 ffffffffffffffff", "Public"),
    "e400000000000000": ("eeeeeeeeeeeeeeee", "Public"),
}
OUTPUTS = ["gldv2_ground_truth.json", "gldv2_index.txt", "gldv2_queries.txt", "train_clean.txt"]


def place_of(part: str, image: str) -> str:
    return f"{part}/{image[0]}/{image[1]}/{image[2]}/{image}.jpg"


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder with csv/, images/ and an empty out/; queries that are ignored have no image."""
    for folder in ("csv", "out"):
        (tmp_path / folder).mkdir()
    lines = [f"{landmark},{' '.join(images)}" for landmark, images in TRAIN.items()]
    (tmp_path / "csv" / "train_clean.csv").write_text("\n".join(["landmark_id,images", *lines]) + "\n")
    (tmp_path / "csv" / "index.csv").write_text("\n".join(["id", *INDEX]) + "\n")
    lines = [f"{query},{images},{usage}" for query, (images, usage) in QUERIES.items()]
    (tmp_path / "csv" / "retrieval_solution_v2.1.csv").write_text("\n".join(["id,images,Usage", *lines]) + "\n")
    files = [place_of("train", image) for images in TRAIN.values() for image in images]
    files += [place_of("index", image) for image in INDEX]
    files += [place_of("test", query) for query, (_, usage) in QUERIES.items() if usage != "Ignored"]
    for file in files:
        (tmp_path / "images" / file).parent.mkdir(parents=True)
        (tmp_path / "images" / file).touch()
    return tmp_path


def prepare(data: Path, **options) -> Path:
    prepare_gldv2(data / "csv", data / "images", data / "out", **options)
    return data / "out"


def test_classes_are_numbered_by_landmark_and_the_test_has_no_ignored_queries(data, caplog):
    with caplog.at_level(logging.INFO):
        out = prepare(data)
    assert sorted(path.name for path in out.iterdir()) == OUTPUTS
    expected = [("c000000000000003", 0), *((image, 1) for image in TRAIN[27]), ("0d00000000000004", 2)]
    lines = (out / "train_clean.txt").read_text().splitlines()
    assert lines == [f"{place_of('train', image)} {label}" for image, label in expected]
    assert (out / "gldv2_index.txt").read_text().splitlines() == [place_of("index", image) for image in INDEX]
    queries = ["e100000000000000", "e300000000000000", "e400000000000000"]
    assert (out / "gldv2_queries.txt").read_text().splitlines() == [place_of("test", query) for query in queries]
    truth = json.loads((out / "gldv2_ground_truth.json").read_text())
    assert truth == {"usage": ["Private", "Public", "Public"], "positives": [[0, 2], [1], []]}
    assert "2 of 5 positives are not in the index" in caplog.text and "1 of 3 queries have no positives" in caplog.text


def test_lists_are_read_by_training_and_evaluation(data):
    out = prepare(data)
    assert read_list(out / "train_clean.txt").labels.tolist() == [0, 1, 1, 2]
    test = read_gldv2(out, data / "images")
    assert test.usage.tolist() == ["private", "public", "public"]
    assert [rows.tolist() for rows in test.positives] == [[0, 2], [1], []]


@pytest.mark.parametrize(("part", "outputs"), [("train", OUTPUTS[3:]), ("test", OUTPUTS[:3])])
def test_one_part_needs_only_its_own_files(data, part, outputs):
    for name in ["train_clean.csv"] if part == "test" else ["index.csv", "retrieval_solution_v2.1.csv"]:
        (data / "csv" / name).unlink()
    assert sorted(path.name for path in prepare(data, parts=(part,)).iterdir()) == outputs


@pytest.mark.parametrize(
    ("part", "image"), [("train", "b000000000000002"), ("index", "1a00000000000000"), ("test", "e300000000000000")]
)
def test_missing_image_is_named_and_counted_and_is_an_error_or_left_out(data, caplog, part, image):
    (data / "images" / place_of(part, image)).unlink()
    count = {"train": 4, "index": 4, "test": 3}[part]
    message = f"1 of the {count} files of {part} are missing below {data / 'images'}: {place_of(part, image)}"
    with pytest.raises(UserError, match=re.escape(message)):
        prepare(data)
    assert list((data / "out").iterdir()) == []
    with caplog.at_level(logging.INFO):
        out = prepare(data, skip_missing=True)
    assert message in caplog.text
    assert not any(image in path.read_text() for path in out.iterdir())
    truth = json.loads((out / "gldv2_ground_truth.json").read_text())
    expected = {
        "train": {"usage": ["Private", "Public", "Public"], "positives": [[0, 2], [1], []]},
        "index": {"usage": ["Private", "Public", "Public"], "positives": [[1], [0], []]},
        "test": {"usage": ["Private", "Public"], "positives": [[0, 2], []]},
    }
    assert truth == expected[part]
    labels = [line.split()[-1] for line in (out / "train_clean.txt").read_text().splitlines()]
    assert labels == (["0", "1", "2"] if part == "train" else ["0", "1", "1", "2"])


def test_all_images_missing_is_an_error_even_if_missing_ones_are_left_out(data):
    with pytest.raises(UserError, match="4 of the 4 files of train are missing"):
        prepare_gldv2(data / "csv", data / "out", data / "out", skip_missing=True)


def test_positive_named_twice_counts_once_and_extra_blanks_are_ignored(tmp_path):
    (tmp_path / "s.csv").write_text('id,images,Usage\nq00,"i02  i01 i02 ",Public\nq01,,Private\n')
    (tmp_path / "i.csv").write_text("id\ni01\ni00\ni02\n")
    truth = ground_truth(read_solution(tmp_path / "s.csv"), read_index(tmp_path / "i.csv"))
    assert truth == {"usage": ["Public", "Private"], "positives": [[0, 2], []]}


def test_landmarks_are_ordered_as_numbers_and_other_columns_are_ignored(tmp_path):
    (tmp_path / "t.csv").write_text("extra,images,landmark_id\nx,b00 a00,10\ny,c00,9\n")
    assert read_train(tmp_path / "t.csv").rows() == [("c00", 0), ("b00", 1), ("a00", 1)]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train_clean.csv", "landmark_id,images\n1,abc\nx,abd\n", "line 3: landmark_id is not a whole number"),
        ("train_clean.csv", "landmark_id,images\n1,abc\n1,abd\n", "line 3: this landmark_id occurs twice"),
        ("train_clean.csv", "landmark_id,images\n1, \n", "line 2: images is empty"),
        ("train_clean.csv", "landmark_id,images\n1,abc ../../etc\n", "line 2: images is not a list of image ids"),
        ("train_clean.csv", "landmark,images\n1,abc\n", "cannot be read .*expected the columns landmark_id, images"),
        ("train_clean.csv", "landmark_id,images\n", "has no lines below its header"),
        ("train_clean.csv", "", "cannot be read"),
        ("index.csv", "id\nabc\nabc\n", "line 3: this id occurs twice"),
        ("index.csv", "id\nabc\na/b/c\n", "line 3: id is not an image id"),
        ("retrieval_solution_v2.1.csv", "id,images,Usage\nabc,abd,public\n", "line 2: Usage is not Public, Private"),
        ("retrieval_solution_v2.1.csv", "id,images,Usage\nabc,abd,Public\nabc,,Public\n", "line 3: this id occurs"),
        ("retrieval_solution_v2.1.csv", None, "csv file of GLDv2 not found"),
    ],
)
def test_damaged_csv_file_is_reported_with_its_line_and_nothing_is_written(data, file, text, message):
    (data / "csv" / file).unlink() if text is None else (data / "csv" / file).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        prepare(data)
    assert file in str(caught.value) and list((data / "out").iterdir()) == []


def as_train_csv(data, header, line, name="train.csv"):
    """In place of train_clean.csv a line an image, classes mixed."""
    rows = [(image, landmark) for landmark, images in TRAIN.items() for image in images]
    rows = [rows[i] for i in (3, 1, 2, 0)]
    (data / "csv" / "train_clean.csv").unlink()
    text = header + "\n" + "".join(line.format(image=image, landmark=landmark) + "\n" for image, landmark in rows)
    (data / "csv" / name).write_bytes(text.encode())
    return [("c000000000000003", 0), ("b000000000000002", 1), ("aa00000000000001", 1), ("0d00000000000004", 2)]


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("id,url,landmark_id", '{image},"http://example.org/a,b.jpg",{landmark}'),
        ("id,landmark_id", "{image},{landmark}"),
        ("landmark_id,id,url", "{landmark},{image},"),
        ("\ufeffid;landmark_id\r", "{image};{landmark}\r"),
    ],
)
def test_train_csv_with_a_line_an_image_gives_a_list_of_its_own_name(data, caplog, header, line):
    expected = as_train_csv(data, header, line)
    with caplog.at_level(logging.INFO):
        out = prepare(data)
    assert sorted(path.name for path in out.iterdir()) == [*OUTPUTS[:3], "train.txt"]
    lines = (out / "train.txt").read_text().splitlines()
    assert lines == [f"{place_of('train', image)} {label}" for image, label in expected]
    assert "train_clean.csv: the list is made of all images of" in caplog.text
    assert "train.txt: 4 images of 3 classes" in caplog.text


def test_train_clean_csv_is_preferred_to_train_csv(data):
    (data / "csv" / "train.csv").write_text("id,landmark_id\nabc,1\n")
    assert [path.name for path in prepare(data, parts=("train",)).iterdir()] == ["train_clean.txt"]


@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_files_that_went_through_excel_give_the_same_lists(data, end, separator, quote):
    before = {path.name: path.read_bytes() for path in prepare(data).iterdir()}
    for path in (data / "csv").iterdir():
        rows = [line.split(",") for line in path.read_text().splitlines()]
        text = "".join(separator.join(f"{quote}{field}{quote}" for field in row) + end for row in rows)
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert {path.name: path.read_bytes() for path in prepare(data).iterdir()} == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,landmark_id\nabc,1\nabd,x\n", "line 3: landmark_id is not a whole number"),
        ("id,url,landmark_id\nabc,,1\nabc,,2\n", "line 3: this id occurs twice"),
        ("id,landmark_id\n../etc/passwd,1\n", "line 2: id is not an image id"),
        ("id,url\nabc,x\n", "cannot be read .*expected the columns landmark_id, images"),
    ],
)
def test_damaged_train_csv_is_reported_with_its_line(data, text, message):
    (data / "csv" / "train_clean.csv").unlink()
    (data / "csv" / "train.csv").write_text(text)
    with pytest.raises(UserError, match=rf"train\.csv.*{message}"):
        prepare(data)
    assert list((data / "out").iterdir()) == []


def test_tool_writes_the_lists_or_ends_with_one_error_line(data):
    def run(*arguments: object) -> tuple[int, str]:
        common = ["--csv", data / "csv", "--images", data / "images"]
        (status,), (output,) = Launch(ROOT / "tools/prepare_gldv2.py", [*common, *arguments], data / "logs").wait()
        return status, output

    (data / "images" / place_of("test", "e300000000000000")).unlink()
    for out, message in (("nowhere", "the output folder"), ("out", "1 of the 3 files of test are missing")):
        status, output = run("--out", data / out)
        lines = output.splitlines()
        assert status == 2 and [line for line in lines if line.startswith("error: ")] == lines[-1:]
        assert message in lines[-1] and "Traceback" not in output and list((data / "out").iterdir()) == []
    assert run("--out", data / "out", "--only", "train")[0] == 0
    assert [path.name for path in (data / "out").iterdir()] == ["train_clean.txt"]
    assert run("--out", data / "out", "--missing", "skip")[0] == 0
    assert sorted(path.name for path in (data / "out").iterdir()) == OUTPUTS
