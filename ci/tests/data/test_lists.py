"""Image lists as training data: parsing, decoding, missing and undecodable files, training and extraction from them."""

import logging
import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from launching import Launch
from PIL import Image
from tiny import projection_encoder, write_run_folder

from core.data.lists import ListDataset, file_sizes, read_list
from core.data.open_dataset import is_list, open_dataset
from core.data.records import RecordDataset
from core.embeddings.extraction import extract_embeddings
from core.embeddings.store import EmbeddingStore
from core.errors import UserError
from core.files import ROOT
from core.images.loader import load_batches

OLD_MODEL, MIXBCT = ROOT / "old_model" / "train.py", ROOT / "methods" / "mixbct" / "train.py"


def picture(label: int, height: int = 16, width: int = 16) -> np.ndarray:
    """A smooth image, another for each label."""
    noise = np.random.default_rng(label).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def write(folder: Path, files: dict[str, tuple[int, bytes]], name: str = "train.txt") -> Path:
    """A list of `path: (label, content)` with its files."""
    for path, (_, content) in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / name).write_text("".join(f"{path} {label}\n" for path, (label, _) in files.items()))
    return folder / name


def jpegs(labels: list[int], **size: int) -> dict[str, tuple[int, bytes]]:
    """JPEGs `images/<row>.jpg` that differ from row to row."""
    return {
        f"images/{row}.jpg": (label, simplejpeg.encode_jpeg(picture(row, **size), 95, "RGB", "444"))
        for row, label in enumerate(labels)
    }


def read(text: bytes, folder: Path) -> list[tuple[bytes, int]]:
    (folder / "list.txt").write_bytes(text)
    images = read_list(folder / "list.txt")
    return [(images.path(row), int(images.labels[row])) for row in range(len(images))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a.jpg 0", [(b"a.jpg", 0)]),
        (b"a.jpg 3\nb/c.png 12\n", [(b"a.jpg", 3), (b"b/c.png", 12)]),
        (b"my photo 7.jpg 5\n", [(b"my photo 7.jpg", 5)]),
        (b"a.jpg\t  \t41\nb 0007\n", [(b"a.jpg", 41), (b"b", 7)]),
        (b"\n\na.jpg 1\n   \n\r\nb.jpg 2\n\n", [(b"a.jpg", 1), (b"b.jpg", 2)]),
        (b"a.jpg 1\r\nb.jpg 2 \t \r\n", [(b"a.jpg", 1), (b"b.jpg", 2)]),
        (b"caf\xc3\xa9.jpg 1\n\xff\xfe.jpg 2\n", [(b"caf\xc3\xa9.jpg", 1), (b"\xff\xfe.jpg", 2)]),
        (b"1 2 3 16777215\n", [(b"1 2 3", 16_777_215)]),
        (b'a "b".jpg 1\n"c 2\n#d 3\n', [(b'a "b".jpg', 1), (b'"c', 2), (b"#d", 3)]),
    ],
)
def test_line_is_a_path_a_blank_and_a_label(tmp_path, text, expected):
    assert read(text, tmp_path) == expected


def test_list_of_random_lines_reads_as_plain_python_splits_it(tmp_path):
    rng = np.random.default_rng(0)
    names = [
        "".join(rng.choice(list("ab1 ./\t")) for _ in range(rng.integers(1, 30))).strip() or "x" for _ in range(500)
    ]
    lines = [f"{name}{rng.choice([' ', '  ', chr(9)])}{10 ** rng.integers(0, 9) // 7}" for name in names]
    lines = [line + rng.choice(["", " ", "\r"]) for line in lines]
    expected = [(line.split()[-1], line.rstrip()[: -len(line.split()[-1])].rstrip()) for line in lines]
    text = "\n".join(lines).encode()
    assert read(text, tmp_path) == [(path.encode(), int(label)) for label, path in expected]


@pytest.mark.parametrize(
    "line", ["b.jpg", "7", "b.jpg -1", "b.jpg 1.5", "b.jpg x", "b.jpg 1234567890", "b.jpg,3", "  4"]
)
def test_malformed_line_is_reported_with_file_and_line_number(tmp_path, line):
    with pytest.raises(UserError, match=rf"list\.txt, line 4: .*{re.escape(line.strip())}.* is not a path"):
        read(f"a.jpg 1\n\nc.jpg 2\n{line}\nd.jpg\n".encode(), tmp_path)


@pytest.mark.parametrize("text", [b"", b"\n \n"])
def test_list_without_images_is_an_error(tmp_path, text):
    with pytest.raises(UserError, match="list.txt contains no images"):
        read(text, tmp_path)


def test_file_that_is_not_text_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"list\.txt is not a text file of lines"):
        read(b"a.jpg 1\n\x89PNG\0\0 2\n", tmp_path)


def test_missing_list_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"image list not found: .*nowhere\.txt"):
        ListDataset(tmp_path / "nowhere.txt")


def test_dataset_gives_images_and_labels_in_the_order_of_the_list_with_gaps_in_the_labels(tmp_path):
    files = jpegs([4, 0, 4, 1, 0])
    files["images/odd name.png"] = (2, cv2.imencode(".png", picture(9)[..., ::-1])[1].tobytes())
    data = ListDataset(write(tmp_path, files))
    assert len(data) == data.num_images == 6 and data.num_classes == 5 and data.image_size == 16
    assert data.prefix == str(tmp_path / "train.txt")
    assert data.labels().tolist() == [4, 0, 4, 1, 0, 2] and data.labels().dtype == np.int64
    images, labels = data.batch([5, 0, 3, 0])
    assert images.dtype == np.uint8 and images.shape == (4, 16, 16, 3)
    assert labels.tolist() == [2, 4, 1, 4] and labels.dtype == np.int64
    expected = [np.asarray(Image.open(tmp_path / path).convert("RGB")) for path in files]
    assert np.array_equal(images[0], expected[5])
    for image, row in zip(images[1:], (0, 3, 0)):
        assert np.abs(image.astype(int) - expected[row]).max() <= 3  # JPEG decoders may round otherwise


def test_images_are_squashed_to_the_given_size_and_large_jpegs_as_if_decoded_whole(tmp_path):
    sizes = [(64, 48), (150, 100), (224, 448), (300, 97), (33, 20), (20, 90), (32, 32)]
    files = {
        f"{i}.jpg": (0, simplejpeg.encode_jpeg(picture(i, *size), 95, "RGB", "444")) for i, size in enumerate(sizes)
    }
    files["grey.jpg"] = (0, cv2.imencode(".jpg", picture(1, 130, 200)[..., 0])[1].tobytes())
    files["ink.jpg"] = (0, b"")
    path = write(tmp_path, files)
    Image.fromarray(picture(5, 130, 100)).convert("CMYK").save(tmp_path / "ink.jpg")
    data = ListDataset(path, image_size=32)
    images, _ = data.batch(range(len(files)))
    assert data.image_size == 32 and images.shape == (9, 32, 32, 3)
    for image, file in zip(images, files):
        whole = Image.open(tmp_path / file).convert("RGB")
        expected = np.asarray(whole.resize((32, 32), Image.Resampling.BOX if min(whole.size) >= 32 else 2)).astype(int)
        assert np.abs(image - expected).mean() < 4, file


def test_without_a_size_all_images_must_be_squares_of_the_first_ones_size(tmp_path):
    first = write(tmp_path, {**jpegs([0, 0]), "wide.jpg": (0, simplejpeg.encode_jpeg(picture(1, 16, 20)))})
    with pytest.raises(UserError, match=r"wide\.jpg is an image of 20x16, the first one of 16x16; .*image_size"):
        ListDataset(first).batch([0, 1, 2])
    (tmp_path / "wide.txt").write_text("wide.jpg 0\n")
    with pytest.raises(UserError, match=r"wide\.jpg is an image of 20x16, not a square; .*image_size"):
        ListDataset(tmp_path / "wide.txt").batch([0])


def test_paths_start_from_the_lists_folder_or_from_the_given_root_or_are_absolute(tmp_path):
    files = jpegs([0, 1, 2])
    write(tmp_path / "pictures", files)
    (tmp_path / "lists").mkdir()
    moved = tmp_path / "lists" / "train.txt"
    moved.write_text((tmp_path / "pictures" / "train.txt").read_text())
    absolute = tmp_path / "absolute.txt"
    absolute.write_text("".join(f"{tmp_path / 'pictures' / path} {label}\n" for path, (label, _) in files.items()))
    first = ListDataset(tmp_path / "pictures" / "train.txt").batch(range(3))[0]
    assert np.array_equal(ListDataset(moved, tmp_path / "pictures").batch(range(3))[0], first)
    assert np.array_equal(ListDataset(absolute).batch(range(3))[0], first)
    with pytest.raises(UserError, match=rf"3 of its 3 files are missing below {tmp_path / 'lists'}: .*image_root"):
        ListDataset(moved)


def test_missing_files_are_named_and_counted_and_are_an_error_or_left_out(tmp_path, caplog):
    files = jpegs([0] * 12 + [1, 2, 5])
    path = write(tmp_path, files)
    for row in (*range(12), 14):
        (tmp_path / f"images/{row}.jpg").unlink()
    (tmp_path / "images/3.jpg").mkdir()
    with pytest.raises(UserError) as caught:
        ListDataset(path)
    message = str(caught.value)
    assert "train.txt: 13 of its 15 files are missing" in message and "and others" in message
    assert all(f"images/{row}.jpg" in message for row in range(10)) and "images/10.jpg" not in message
    with caplog.at_level(logging.INFO):
        data = ListDataset(path, skip_bad=True)
    assert len([r for r in caplog.records if "13 of its 15 files are missing" in r.getMessage()]) == 1
    assert data.labels().tolist() == [1, 2] and len(data) == 2
    assert data.num_classes == 6  # the list's, whatever is missing
    whole = ListDataset(write(tmp_path / "whole", files))
    assert np.array_equal(data.batch([0, 1])[0], whole.batch([12, 13])[0])
    for row in (12, 13):
        (tmp_path / f"images/{row}.jpg").unlink()
    with pytest.raises(UserError, match="15 of its 15 files are missing"):
        ListDataset(path, skip_bad=True)


def damaged_list(folder: Path) -> Path:
    """Rows 2, 3 (cut short), 6 (empty) and 9 cannot be decoded; 9 is alone in its class."""
    files = jpegs([0, 1, 0, 0, 1, 0, 1, 0, 1, 2])
    for row, content in ((2, b"no image"), (6, b""), (9, b"\xff\xd8\xff no JPEG")):
        files[f"images/{row}.jpg"] = (files[f"images/{row}.jpg"][0], content)
    label, whole = files["images/3.jpg"]
    files["images/3.jpg"] = (label, whole[:-40])
    return write(folder, files)


@pytest.mark.parametrize("row", [2, 3, 6, 9])
def test_undecodable_file_is_an_error_with_its_name(tmp_path, row):
    data = ListDataset(damaged_list(tmp_path))
    data.batch([0, 1, 4])
    with pytest.raises(UserError, match=rf"images/{row}\.jpg is not an image that can be decoded .*bad_images"):
        data.batch([0, row])


def test_file_that_vanishes_is_an_error_with_its_name_or_substituted(tmp_path):
    path = write(tmp_path, jpegs([0, 0]))
    strict, lenient = ListDataset(path), ListDataset(path, image_size=16, skip_bad=True)
    (tmp_path / "images/1.jpg").unlink()
    with pytest.raises(UserError, match=r"images/1\.jpg .*No such file"):
        strict.batch([1])
    assert np.array_equal(lenient.batch([1])[0], strict.batch([0])[0])


@pytest.mark.parametrize("order", [range(10), range(9, -1, -1), [9, 2, 6, 3, 0, 1, 4, 5, 7, 8]])
def test_damaged_file_is_substituted_by_the_first_image_of_its_class_whatever_is_read_first(tmp_path, caplog, order):
    whole = ListDataset(write(tmp_path / "whole", jpegs([0, 1, 0, 0, 1, 0, 1, 0, 1, 2]))).batch(range(10))[0]
    data = ListDataset(damaged_list(tmp_path), skip_bad=True)
    order = np.array(order)
    images, labels = data.batch(order)
    substitutes = {2: 0, 3: 0, 6: 1}  # 9 has none: black
    expected = whole[[substitutes.get(row, row) for row in range(10)]]
    expected[9] = 0
    assert np.array_equal(images, expected[order]) and labels.tolist() == data.labels()[order].tolist()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(re.search(r"images/(\d)\.jpg cannot", line).group(1) for line in warnings) == ["2", "3", "6", "9"]


def test_substitute_is_the_first_that_can_be_decoded_itself(tmp_path):
    files = jpegs([0, 0, 0, 0])
    for row in (0, 3):
        files[f"images/{row}.jpg"] = (0, b"no image")
    images, _ = ListDataset(write(tmp_path, files), image_size=16, skip_bad=True).batch(range(4))
    assert all(np.array_equal(images[row], images[1]) for row in (0, 3)) and not np.array_equal(images[2], images[1])


def test_workers_and_unpickled_copies_give_the_same_images(tmp_path):
    data = ListDataset(damaged_list(tmp_path), skip_bad=True)
    rows = [[0, 2], [3, 4], [6, 9]]
    batches = list(load_batches(data, rows, num_workers=1))
    assert [batch["row"].tolist() for batch in batches] == rows
    again = data.batch(range(10))[0]
    assert np.array_equal(np.concatenate([batch["image"] for batch in batches]), again[[0, 2, 3, 4, 6, 9]])
    copy = pickle.loads(pickle.dumps(data))
    assert np.array_equal(copy.batch(range(10))[0], again) and copy.fingerprint == data.fingerprint


def test_undecodable_file_in_a_worker_reaches_the_main_process_as_user_error(tmp_path):
    data = ListDataset(damaged_list(tmp_path))
    with pytest.raises(UserError, match=r"images/2\.jpg is not an image"):
        list(load_batches(data, [[0, 1], [2, 3]], num_workers=1))


def test_fingerprint_depends_on_the_list_and_the_files_not_on_their_place(tmp_path):
    files = jpegs([0, 1, 2, 2])
    first = ListDataset(write(tmp_path / "a", files)).fingerprint
    assert ListDataset(write(tmp_path / "b", files, "other.txt"), image_size=8, skip_bad=True).fingerprint == first
    changed = {}
    changed["label"] = {**files, "images/3.jpg": (1, files["images/3.jpg"][1])}
    changed["size"] = {**files, "images/3.jpg": (2, files["images/3.jpg"][1] + b"x")}
    changed["content"] = {**files, "images/3.jpg": (2, files["images/3.jpg"][1][:-1] + b"x")}
    changed["order"] = dict(reversed(files.items()))
    prints = [ListDataset(write(tmp_path / name, content)).fingerprint for name, content in changed.items()]
    (tmp_path / "a" / "images/1.jpg").unlink()
    prints.append(ListDataset(tmp_path / "a" / "train.txt", skip_bad=True).fingerprint)
    assert len({first, *prints}) == 6


def test_file_sizes_over_several_blocks_and_threads(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"")
    names = [tmp_path / "a", tmp_path / "b", tmp_path / "none", tmp_path, "\0"]
    sizes = file_sizes(lambda i: str(names[i % 5]), 10_003, "files")
    assert sizes.tolist() == ([3, 0, -1, -1, -1] * 2001)[:10_003]


def test_rec_names_a_list_or_records(tmp_path, tiny_records):
    path = write(tmp_path, jpegs([0, 1]))
    (tmp_path / "plain").write_text(path.read_text())
    assert is_list("nowhere.txt") and is_list(tmp_path / "plain")
    assert not is_list(tiny_records) and not is_list(f"{tiny_records}.rec") and not is_list(tmp_path)
    assert isinstance(open_dataset(tiny_records, 8), RecordDataset)
    data = open_dataset(tmp_path / "plain", 8, tmp_path, True)
    assert isinstance(data, ListDataset) and data.skip_bad and data.image_size == 8


def test_store_of_a_list_is_joined_by_row_and_refused_for_another_list(tmp_path, ranks):
    data = ListDataset(write(tmp_path, jpegs([2, 0, 1, 0])))
    store = extract_embeddings(projection_encoder(), data, tmp_path / "store", ranks, batch_size=3)
    assert store.labels().tolist() == [2, 0, 1, 0]
    assert np.allclose(store.features, projection_encoder()(data.batch(range(4))[0]).numpy(), atol=1e-4)
    (tmp_path / "images/2.jpg").unlink()
    shorter = ListDataset(tmp_path / "train.txt", skip_bad=True)
    with pytest.raises(
        UserError, match=r"made from other data \(.*train\.txt, 4 images.* than .*train\.txt \(3 images"
    ):
        extract_embeddings(projection_encoder(), shorter, tmp_path / "store", ranks)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Lists of 48 images of 6 classes: a good one, one with a bad line, and one with a damaged and a missing file."""
    place = tmp_path_factory.mktemp("lists")
    (place / "config.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")
    labels = list(range(6)) * 8
    good = write(place / "images", jpegs(labels, height=24, width=20), "good.txt")
    (place / "line.txt").write_text(good.read_text() + "images/1.jpg one\n")
    files = jpegs(labels, height=24, width=20)
    files["images/30.jpg"] = (0, b"no image")
    write(place / "bad", files, "bad.txt")
    with open(place / "bad" / "bad.txt", "a") as file:
        file.write("images/no such file.jpg 3\n")
    write_run_folder(place / "old", image_size=32)
    return place


@pytest.fixture
def launch(place, tmp_path, tiny_settings):
    """Run a program on one of the lists for two steps an epoch; returns its status and output."""

    def launch_program(program: Path, *overrides: str) -> tuple[int, str]:
        arguments = [place / "config.py", *tiny_settings, "image_size=16", f"output={tmp_path / 'run'}", *overrides]
        (status,), (output,) = Launch(program, list(map(str, arguments)), tmp_path / "logs").wait()
        return status, output

    return launch_program


def test_models_are_trained_on_a_list_with_an_old_model_of_another_image_size(place, launch, tmp_path):
    (tmp_path / "lists").mkdir()
    moved = tmp_path / "lists" / "train.txt"
    moved.write_text((place / "images" / "good.txt").read_text())
    status, output = launch(
        MIXBCT, f"rec={moved}", f"image_root={place / 'images'}", f"old_model={place / 'old'}", "num_workers=1",
        f"features={tmp_path / 'store'}",
    )  # fmt: skip
    assert status == 0, output
    assert "48 images of 6 classes" in output and (tmp_path / "run" / "model.pt").exists()
    store = EmbeddingStore.open(tmp_path / "store")
    data = ListDataset(moved, place / "images", 32)
    assert store.info.data_fingerprint == data.fingerprint and store.labels().tolist() == list(range(6)) * 8
    status, output = launch(OLD_MODEL, f"rec={moved}", f"output={tmp_path / 'none'}")
    assert status == 2 and "48 of its 48 files are missing" in output.splitlines()[-1]
    assert not (tmp_path / "none").exists()


def test_bad_files_of_a_list_stop_a_training_or_are_skipped(place, launch, tmp_path):
    bad = f"rec={place / 'bad' / 'bad.txt'}"
    for overrides, message in (
        ((bad,), r"bad\.txt: 1 of its 49 files are missing below .*: images/no such file\.jpg; "),
        ((f"rec={place / 'line.txt'}",), r"line\.txt, line 49: 'images/1\.jpg one' is not a path"),
        ((bad, "bad_images=ignore"), "'bad_images' in the command line must be 'error' or 'skip', got 'ignore'"),
    ):
        status, output = launch(OLD_MODEL, *overrides)
        assert status == 2 and re.match(r"error: .*" + message, output.splitlines()[-1]), output
        assert "Traceback" not in output and not (tmp_path / "run").exists()
    status, output = launch(OLD_MODEL, bad, "bad_images=skip")
    assert status == 0 and (tmp_path / "run" / "model.pt").exists(), output
    assert len(re.findall(r"images/no such file\.jpg; their lines are left out", output)) == 1
    assert "images/30.jpg cannot be decoded" in output


def test_extraction_tool_takes_a_list(place, tmp_path):
    def extract(*arguments: object) -> tuple[int, str]:
        common = ["--model", place / "old", "--out", tmp_path / "store", "--num-workers", 0, "--device", "cpu"]
        program = ROOT / "tools" / "extract_features.py"
        (status,), (output,) = Launch(program, [*common, *arguments], tmp_path / "logs").wait()
        return status, output

    bad = place / "bad" / "bad.txt"
    status, output = extract("--rec", bad)
    assert status == 2 and "1 of its 49 files are missing" in output.splitlines()[-1] and not list(tmp_path.glob("st*"))
    status, output = extract("--rec", bad, "--bad-images", "skip")
    assert status == 0 and f"{tmp_path / 'store'}: 48 x 8" in output, output
    store = EmbeddingStore.open(tmp_path / "store")
    assert np.array_equal(store.features[30], store.features[0])  # the first of its class
    status, output = extract("--rec", place / "images" / "good.txt", "--image-root", place / "images")
    assert status == 2 and "was made from other data" in output.splitlines()[-1]
