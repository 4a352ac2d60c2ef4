"""tools/verify.py: the numbers of sets written in several ways, their files, and mistakes."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from launching import load_program
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold
from tiny import write_run_folder

from core.errors import UserError
from core.files import ROOT
from core.models.encoder import load_encoder

NUM_PAIRS = 40


@pytest.fixture
def verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Runs the tool in this process and returns its results.json."""
    tool = load_program(ROOT / "tools" / "verify.py")
    monkeypatch.setattr(tool, "set_up_logging", lambda: None)

    def run(*arguments: object) -> dict:
        own = ["--cache", tmp_path / "cache", "--num-workers", 0, "--device", "cpu", "--out", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["verify.py", *map(str, (*arguments, *own))])
        tool.main()
        return json.loads((tmp_path / "out" / "results.json").read_text())

    return run


def noisy_pairs(seed: int, size: int) -> tuple[list[np.ndarray], list[bool]]:
    """Pairs of one image with noise, and of two: not all are told apart by a random network."""
    rng = np.random.default_rng(seed)
    images, same = [], []
    for pair in range(NUM_PAIRS):
        first, other = rng.integers(0, 256, (2, size, size, 3))
        second = first if pair % 2 else other
        images += [first, np.clip(second + rng.normal(0, 70, first.shape), 0, 255)]
        same.append(pair % 2 == 1)
    return [image.astype(np.uint8) for image in images], same


def write_jpegs_as_lists(path: Path) -> Path:
    """As InsightFace writes them today."""
    images, same = noisy_pairs(0, 16)
    path.write_bytes(pickle.dumps(([cv2.imencode(".jpg", i)[1].tobytes() for i in images], same), 2))
    return path


def write_pngs_of_another_size(path: Path) -> Path:
    """Larger than the network's input, the images as NumPy arrays of bytes, the labels as an array."""
    images, same = noisy_pairs(1, 20)
    path.write_bytes(pickle.dumps(([cv2.imencode(".png", i)[1].ravel() for i in images], np.array(same)), 4))
    return path


def write_grey_images(path: Path) -> Path:
    """Images of one channel, a tuple of bytearrays, labels 0 and 1."""
    images, same = noisy_pairs(2, 16)
    encoded = tuple(bytearray(cv2.imencode(".png", i[..., 0])[1].tobytes()) for i in images)
    path.write_bytes(pickle.dumps((encoded, [int(label) for label in same]), 3))
    return path


WRITERS = {"lfw": write_jpegs_as_lists, "cfp_fp": write_pngs_of_another_size, "agedb_30": write_grey_images}


def embeddings(model: Path, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Unit sums of the embeddings of images and mirrored images; the labels."""
    encoder = load_encoder(model)
    payloads, same = pickle.loads(path.read_bytes())
    images = [cv2.imdecode(np.frombuffer(bytes(p), np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for p in payloads]
    if len(images[0]) != 16:
        images = [cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA) for image in images]
    stacked = np.stack(images)
    total = sum(encoder(view.copy()).double().numpy() for view in (stacked, stacked[:, :, ::-1]))
    return total / np.linalg.norm(total, axis=1, keepdims=True), np.array(same, bool)


def check(result: dict, first: np.ndarray, second: np.ndarray, same: np.ndarray) -> None:
    """Against scikit-learn's curve and a loop over folds and thresholds; of each pair the cosine of its two rows."""
    cosines = (first[0::2] * second[1::2]).sum(1)
    metrics, thresholds = result["metrics"], result["thresholds"]
    fpr, tpr, scores = roc_curve(same, cosines, drop_intermediate=False)
    assert metrics["auc"] == pytest.approx(roc_auc_score(same, cosines))
    for name in ("1e-06", "1e-05", "1e-04", "1e-03", "1e-02"):  # 20 impostor pairs
        assert metrics[f"tar@far={name}"] is thresholds[f"far={name}"] is None
    nearest = max(np.flatnonzero(np.abs(fpr - 0.1) == np.abs(fpr - 0.1).min()), key=lambda i: tpr[i])
    assert metrics["tar@far=1e-01"] == pytest.approx(tpr[nearest])
    assert thresholds["far=1e-01"] == pytest.approx(scores[nearest], abs=1e-5)

    grid = np.arange(0, 4, 0.01)
    right = (((2 - 2 * cosines)[:, None] < grid) == same[:, None]).astype(float)
    folds = [
        right[test][:, right[train].mean(0).argmax()].mean() for train, test in KFold(10, shuffle=False).split(cosines)
    ]
    assert (metrics["accuracy"], metrics["accuracy_std"]) == pytest.approx((np.mean(folds), np.std(folds)))
    assert 0.5 < metrics["accuracy"] < 1
    judged = (cosines >= thresholds["accuracy"]) == same
    assert judged.mean() == pytest.approx(right.mean(0).max())


def test_a_folder_of_sets_gives_the_numbers_of_a_plain_loop(verify, tmp_path, capsys):
    paths = {name: write(tmp_path / f"{name}.bin") for name, write in WRITERS.items()}
    model = write_run_folder(tmp_path / "run")
    results = verify("-m", model, "--data-path", tmp_path)["evaluations"]
    assert [one["task"] for one in results] == ["verification-agedb_30", "verification-cfp_fp", "verification-lfw"]
    for one in results:
        rows, same = embeddings(model, paths[one["task"].removeprefix("verification-")])
        check(one, rows, rows, same)
        assert one["models"]["query"]["fingerprint"] == load_encoder(model).fingerprint
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["%", "accuracy", "accuracy_std", "tar@far=1e-01", "auc"]
    assert lines[6].split() == ["threshold", "accuracy", "far=1e-01"]
    assert [line.split()[0] for line in (*lines[2:5], *lines[8:])] == ["agedb_30", "cfp_fp", "lfw"] * 2
    assert f"{100 * results[0]['metrics']['accuracy']:.2f}" == lines[2].split()[1]
    assert (tmp_path / "out" / "roc.png").stat().st_size > 10_000


def test_in_a_cross_test_the_old_model_embeds_the_first_image_of_a_pair(verify, tmp_path, caplog):
    caplog.set_level("INFO")
    path = write_jpegs_as_lists(tmp_path / "lfw.bin")
    new = write_run_folder(tmp_path / "new", seed=1)
    old = tmp_path / "old"
    old.mkdir()
    for name in ("model.pt", "config.json"):
        (old / name).write_bytes((new / name).read_bytes())
    result = verify("-m", new, "-m_old", old, "--data-path", path)  # equal models: the numbers of a self-test
    rows, same = embeddings(new, path)
    assert result["task"] == "verification-lfw"
    check(result, rows, rows, same)
    assert caplog.text.count("embeddings from the store") == 1, "two equal models share the cache"
    result = verify("-m", new, "-m_old", write_run_folder(tmp_path / "other", seed=2), "--data-path", path)
    first, _ = embeddings(tmp_path / "other", path)
    assert result["metrics"]["auc"] == pytest.approx(roc_auc_score(same, (first[0::2] * rows[1::2]).sum(1)))
    assert (
        result["models"]["gallery"] | {"name": "other", "embeds": "first image of each pair"}
        == (result["models"]["gallery"])
    )


def test_mistakes_are_one_line_and_leave_nothing(verify, tmp_path):
    model = write_run_folder(tmp_path / "run")

    def message(*paths: Path) -> str:
        with pytest.raises(UserError) as caught:
            verify("-m", model, "--data-path", *paths)
        assert not (tmp_path / "out").exists()
        return str(caught.value).replace(str(tmp_path), "F")

    assert message(tmp_path / "lfw.bin") == "verification set not found: F/lfw.bin (a .bin file, or a folder of them)"
    assert message(model) == "F/run has no verification sets: expected files such as lfw.bin in it"
    (tmp_path / "a").mkdir()
    first, second = write_grey_images(tmp_path / "lfw.bin"), write_grey_images(tmp_path / "a" / "lfw.bin")
    assert message(first, second) == "two verification sets are called lfw: F/lfw.bin and F/a/lfw.bin"
    (tmp_path / "z.bin").write_bytes(pickle.dumps({"no": "set"}))
    assert message(first, tmp_path / "z.bin").startswith("F/z.bin is no verification set")
    assert not (tmp_path / "cache").exists()
    payloads, same = pickle.loads(first.read_bytes())
    first.write_bytes(pickle.dumps(([*payloads[:7], b"no image", *payloads[8:]], same)))
    assert message(first) == "F/lfw.bin: image 7 cannot be decoded (unknown format or damaged)"
