import importlib.util
import json
import logging
import os
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from landmark_trees import write_gldv2_lists, write_revisited_tree

from core.backbones import build_backbone
from core.errors import UserError
from core.evaluation.plots import FRAMES
from core.files import ROOT

TOOL = ROOT / "tools" / "roxford_eval.py"
SETUPS = ("easy", "medium", "hard")


@pytest.fixture
def models(tmp_path):
    """Run folders of untrained networks: `old`, `new`, `small`, which embeds less, and `free`, which takes any size."""
    for name, network, options, size in (
        ("old", "r18", {"width": 8, "depth": 1}, 16),
        ("new", "r18", {"width": 8, "depth": 2}, 16),
        ("small", "r18", {"width": 8, "depth": 1}, 8),
        ("free", "resnet18", {}, 16),
    ):
        torch.manual_seed(size + len(name))
        folder = tmp_path / name
        folder.mkdir()
        torch.save(build_backbone(network, size, image_size=32, **options).state_dict(), folder / "model.pt")
        config = {"network": network, "network_options": options, "embedding_size": size, "image_size": 32}
        (folder / "config.json").write_text(json.dumps({**config, "normalization": "imagenet"}))
    return tmp_path


@pytest.fixture
def landmarks(tmp_path):
    return write_gldv2_lists(write_revisited_tree(tmp_path / "data" / "roxford5k", distractors=12))


@pytest.fixture
def evaluate(models, landmarks, monkeypatch):
    """Runs the tool in this process and returns its results.json."""
    spec = importlib.util.spec_from_file_location("roxford_eval", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "set_up_logging", lambda: None)
    monkeypatch.chdir(models)

    def run(*arguments):
        always = ["--data-path", landmarks, "--cache", models / "cache", "--num-workers", 0, "--out", models / "out"]
        monkeypatch.setattr(sys, "argv", ["roxford_eval.py", *map(str, (*always, *arguments))])
        tool.main()
        return json.loads((models / "out" / "results.json").read_text())

    return run


def run_program(*arguments):
    command = [sys.executable, str(TOOL), "--device", "cpu", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_program_writes_table_results_and_curves_of_a_cross_test(models, landmarks):
    finished = run_program(
        "-m", models / "new", "-m_old", models / "old", "--data-path", landmarks.parent,
        "--cache", models / "cache", "--out", models / "out",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    header, rule, *rows, flips = finished.stdout.splitlines()
    assert "old model's own search: NFR" in flips
    assert header.split() == ["new", "/", "old", "(%)", "mAP", "mP@1", "mP@5", "mP@10"]
    assert tuple(row.split()[0] for row in rows) == SETUPS
    assert sorted(path.name for path in (models / "out").iterdir()) == ["precision_recall.png", "results.json"]


def test_program_ends_with_one_error_line_and_leaves_nothing(models, landmarks):
    (landmarks / "jpg" / "database_009.jpg").write_bytes(b"damaged")
    finished = run_program(
        "-m", models / "old", "--data-path", landmarks, "--cache", models / "c", "--out", models / "o"
    )
    last = finished.stderr.splitlines()[-1]
    assert finished.returncode == 2 and last.startswith("error: ") and "database_009.jpg" in last
    assert finished.stderr.count("error: ") == 1 and "Traceback" not in finished.stderr
    assert not (models / "o").exists()


def test_cross_test_after_two_self_tests_embeds_nothing_and_tells_the_sides(evaluate, models, caplog):
    caplog.set_level(logging.INFO)
    old = evaluate("-m", "old")
    new = evaluate("-m", "new")
    assert "from the store" not in caplog.text
    cross = evaluate("-m", "new", "-m_old", "old")
    assert caplog.text.count("embeddings from the store") == 4, "the old model's own search too, for the flips"
    assert cross["task"] == "roxford5k"
    assert cross["models"]["query"] == new["models"]["query"] and cross["models"]["query"]["embeds"] == "queries"
    assert cross["models"]["gallery"] == old["models"]["gallery"]
    names = {f"{name}_{setup}" for setup in SETUPS for name in ("map", "mp@1", "mp@5", "mp@10")}
    assert set(cross["metrics"]) == names | {"nfr", "pfr"} and all(
        0 <= value <= 1 for value in cross["metrics"].values()
    )
    assert cross["metrics"]["map_easy"] < min(old["metrics"]["map_easy"], new["metrics"]["map_easy"])


@pytest.mark.parametrize(
    ("model", "switches", "setting"),
    [
        ("new", ["--no-crop"], {"crop": False}),
        ("new", ["--whiten"], {"whiten": True}),
        ("new", ["--query-expansion", 2], {"query_expansion": 2}),
        ("new", ["--distractors", "data/roxford5k/more/list.txt"], {"num_distractors": 12}),
        ("free", ["--scales", 1, 0.7071, 1.4142], {"scales": [1, 0.7071, 1.4142]}),
        ("free", ["--image-size", 48], {"image_size": 48}),
    ],
)
def test_switch_changes_the_result_and_is_noted(evaluate, model, switches, setting):
    plain, switched = evaluate("-m", model), evaluate("-m", model, *switches)
    assert switched["metrics"] != plain["metrics"]
    assert setting.items() <= switched["settings"].items() and switched["settings"] != plain["settings"]


def test_distractors_are_negatives_for_every_query(evaluate, models, landmarks):
    plain = evaluate("-m", "new")["metrics"]
    (landmarks / "more" / "jpg").rename(models / "elsewhere")
    arguments = ("--distractors", landmarks / "more" / "list.txt", "--distractor-root", models / "elsewhere")
    worse = evaluate("-m", "new", *arguments, "--pictures", 2)["metrics"]
    assert all(worse[name] <= plain[name] for name in plain)
    assert len(list((models / "out" / "pictures").iterdir())) == 2


def test_gldv2_and_rparis6k_are_other_tasks(evaluate, models, landmarks):
    result = evaluate("-m", "new", "--dataset", "gldv2")
    assert result["task"] == "gldv2" and set(result["metrics"]) == {"map@100", "map@100_public", "map@100_private"}
    assert result["metrics"]["map@100"] == pytest.approx(
        (result["metrics"]["map@100_public"] + result["metrics"]["map@100_private"]) / 2
    )
    (landmarks / "jpg").rename(models / "jpg")
    assert evaluate("-m", "new", "--dataset", "gldv2", "--image-root", models) == result
    (models / "jpg").rename(landmarks / "jpg")
    (landmarks / "gnd_roxford5k.pkl").rename(landmarks / "gnd_rparis6k.pkl")
    assert evaluate("-m", "new", "--dataset", "rparis6k")["task"] == "rparis6k"


def test_pictures_show_each_query_and_its_hits_framed_by_what_they_are(evaluate, models):
    evaluate("-m", "new", "--pictures")
    pictures = sorted((models / "out" / "pictures").iterdir())
    assert [path.name for path in pictures] == [f"000{i + 1}_query_{i}.png" for i in range(4)]
    picture = cv2.imread(str(pictures[0]))[..., ::-1].astype(int)
    for name, colour in FRAMES.items():
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(picture - wanted).max(axis=2) < 12).sum() > 100, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "small", "-m_old", "old"], "small gives 8 numbers an embedding, .*old 16"),
        (["-m", "missing"], "missing"),
        (["-m", "old", "-old_net", "r18"], "no -m_old"),
        (["-m", "old", "--out", "no/where"], "parent"),
        (["-m", "old", "--dataset", "roxford"], "roxford"),
        (["-m", "old", "--batch-size", "0"], "--batch-size"),
        (["-m", "old", "--device", "toaster"], "unknown --device 'toaster'"),
        (["-m", "old", "--scales", "1", "2"], "takes only images of 32 pixels"),
        (["-m", "free", "-m_old", "old", "--image-size", "64"], "old .* takes only images of 32 pixels"),
        (["-m", "old", "--scales", "0"], "--scales must be above 0"),
        (["-m", "free", "--scales", "1", "nan"], "--scales must be above 0 and finite"),
        (["-m", "free", "--scales", "inf"], "--scales must be above 0 and finite"),
        (["-m", "old", "--query-expansion", "-1"], "--query-expansion"),
        (["-m", "old", "--data-path", "old"], "gnd_roxford5k.pkl"),
        (["-m", "old", "--dataset", "rparis6k"], "gnd_rparis6k.pkl"),
        (["-m", "old", "--dataset", "gldv2", "--data-path", "old"], "gldv2_queries.txt"),
        (["-m", "old", "--dataset", "gldv2", "--distractors", "x.txt"], "not to gldv2"),
        (["-m", "old", "--distractors", "x.txt"], "list of distractors not found: x.txt"),
        (["-m", "old", "--distractor-root", "old"], "no --distractors"),
        (["-m", "old", "--image-root", "old"], "--image-root is for gldv2"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(evaluate, models, arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate(*arguments)
    assert not (models / "out").exists() and not (models / "cache").exists()


def test_missing_image_and_index_outside_the_database_are_named(evaluate, models, landmarks):
    (landmarks / "jpg" / "query_2.jpg").rename(models / "query_2.jpg")
    with pytest.raises(UserError, match="image not found: .*query_2.jpg"):
        evaluate("-m", "old")
    path = landmarks / "gnd_roxford5k.pkl"
    content = pickle.loads(path.read_bytes())
    content["gnd"][1]["easy"][0] = 1000
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="easy of query query_1 has the index 1000"):
        evaluate("-m", "old")
