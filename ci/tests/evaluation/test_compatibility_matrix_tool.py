"""tools/compatibility_matrix.py on tiny untrained models: the rates of all pairs, verdicts, files, mistakes."""

import csv
import json
import logging
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from launching import load_program
from tiny import write_run_folder

from core.errors import UserError
from core.evaluation.compatibility_matrix import UpdateMatrix
from core.evaluation.results import read_evaluations
from core.files import ROOT

TOOL = ROOT / "tools" / "compatibility_matrix.py"
SINGLE = ROOT / "tools" / "ijbc_eval.py"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Run folders of untrained models; `wide` embeds in more dimensions, `again/old` is another one called old."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "again").mkdir()
    for seed, (name, size) in enumerate((("old", 8), ("new", 8), ("wide", 16), ("again/old", 8))):
        write_run_folder(folder / name, seed, size, image_size=24)
    return folder


@pytest.fixture
def run_tool(tree, tmp_path, monkeypatch):
    """Runs a tool in this process with the tiny tree; returns its results.json."""

    def run(program, *arguments, out="out"):
        tool = load_program(program)
        monkeypatch.setattr(tool, "set_up_logging", lambda: None)
        shared = ["--data-path", tree, "--cache", tmp_path / "cache", "--num-workers", 0, "--out", tmp_path / out]
        monkeypatch.setattr(sys, "argv", [program.name, *map(str, [*shared, *arguments])])
        tool.main()
        return json.loads((tmp_path / out / "results.json").read_text())

    return run


def test_newer_model_is_compatible_only_if_it_beats_the_gallerys_own_model():
    rates = np.array([[0.5, 0.9, 0.9], [0.5, 0.8, 0.9], [0.51, np.nan, 0.7]])
    matrix = UpdateMatrix(["a", "b", "c"], rates, rates.diagonal())
    assert matrix.updates() == [(1, 0), (2, 0), (2, 1)]
    assert [matrix.is_compatible(*pair) for pair in matrix.updates()] == [False, True, None]
    assert [matrix.verdict(*pair) for pair in matrix.updates()] == [
        "no (50.00 against 50.00)", "yes (51.00 against 50.00)", "-"
    ]  # fmt: skip
    assert matrix.texts()[2] == ["51.00 ✓", "-", "70.00"] and matrix.texts()[0] == ["50.00", "90.00", "90.00"]
    assert (
        UpdateMatrix(["a", "b"], np.array([[0.1, 0.1], [0.1, 0.1]]), np.array([np.nan, 0.1])).is_compatible(1, 0)
        is None
    )
    mapped_gallery = UpdateMatrix(["a+ridge", "b"], np.array([[0.6, 0.1], [0.5, 0.7]]), np.array([0.4, 0.7]))
    assert mapped_gallery.verdict(1, 0) == "yes (50.00 against 40.00)"
    assert UpdateMatrix(["a", "a+ridge", "b"], rates, rates.diagonal(), [1]).updates() == [(2, 0), (2, 1)]


def test_matrix_holds_what_the_single_tests_find_and_each_model_embeds_once(run_tool, models, tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO)
    found = run_tool(
        TOOL,
        "--models",
        *(models / name for name in ("old", "new", "wide")),
        "--metric",
        "top1",
        "auc",
        "tar@far=1e-06",
    )
    assert caplog.text.count("embedding ") == 3 and "from the store" not in caplog.text
    rates = {}
    for one in read_evaluations(tmp_path / "out" / "results.json"):
        rates |= {(one.query.name, one.gallery.name, metric): one.metrics[metric] for metric in one.rates()}
    for query, gallery in (("old", "old"), ("old", "new"), ("new", "old"), ("new", "new")):
        cross = () if query == gallery else ("-m_old", models / gallery)
        single = [run_tool(SINGLE, "-m", models / query, *cross, *task, out="single") for task in (("-N",), ())]
        assert rates[query, gallery, "top1"] == single[0]["metrics"]["top1"]
        assert rates[query, gallery, "auc"] == single[1]["metrics"]["auc"]
        assert single[1] in found["evaluations"]  # one schema
    assert ("wide", "old", "top1") not in rates and rates["wide", "wide", "top1"] > 0
    assert rates["old", "new", "tar@far=1e-06"] is None

    cross, own = rates["new", "old", "top1"], rates["old", "old", "top1"]
    assert found["compatible"][0] == {
        "query": "new", "gallery": "old", "top1": cross > own, "tar@far=1e-06": None,
        "auc": rates["new", "old", "auc"] > rates["old", "old", "auc"],
    }  # fmt: skip
    assert found["compatible"][1] == {
        "query": "wide", "gallery": "old", "top1": None, "auc": None, "tar@far=1e-06": None
    }  # fmt: skip
    with open(tmp_path / "out" / "matrix.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["metric", "query", "old", "new", "wide"] and len(rows) == 1 + 3 * 3
    assert float(rows[2][2]) == pytest.approx(cross, abs=1e-6) and rows[3][:4] == ["top1", "wide", "", ""]
    printed = capsys.readouterr().out
    (flips,) = (
        [one["metrics"]["nfr"], one["metrics"]["pfr"]]
        for one in found["evaluations"]
        if (one["task"], one["models"]["query"]["name"], one["models"]["gallery"]["name"]) == ("ijbc-1:N", "new", "old")
    )
    assert f"{100 * flips[0]:.2f}  {100 * flips[1]:.2f}" in " ".join(printed.splitlines()).replace("   ", "  ")
    assert f"{100 * cross:.2f} against {100 * own:.2f}" in printed and "wide / new" in printed
    assert cv2.imread(str(tmp_path / "out" / "matrix.png")).shape[0] > 200


def test_models_are_fed_what_the_options_say_of_each(run_tool, models):
    told = ["--means", "auto", "120,110,100", "--stds", "auto", "60", "--channel-orders", "auto", "BGR"]
    found = run_tool(TOOL, "--models", models / "old", models / "old", *told, "--networks", "auto", "r18")
    fed = [one["models"]["query"]["preprocessing"] for one in found["evaluations"]]
    face = "24 pixels, mean (127.5, 127.5, 127.5), std (127.5, 127.5, 127.5)"
    assert set(fed) == {face, "24 pixels, mean (120.0, 110.0, 100.0), std (60.0, 60.0, 60.0), BGR"}
    assert len({one["models"]["query"]["fingerprint"] for one in found["evaluations"]}) == 2


def test_program_prints_rank_1_and_tar_of_models_with_equal_names(models, tree, tmp_path):
    arguments = ["--models", models / "old", models / "again" / "old", "--data-path", tree, "--num-workers", 0]
    arguments += ["--cache", tmp_path / "cache", "--out", tmp_path / "out", "--device", "cpu"]
    finished = subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[0] == "top1 (%)" and "tar@far=1e-04 (%)" in lines
    assert lines[-1].startswith(f"again/old / {models.name}/old "), "as much of the paths as tells them apart"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["matrix.csv", "matrix.png", "results.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "old"], "at least two models"),
        (["--models", "old", "new", "--networks", "r18"], "--networks names 1 for 2 models"),
        (["--models", "old", "new", "--channel-orders", "RGB"], "--channel-orders names 1 for 2 models"),
        (["--models", "old", "new", "--means", "face", "auto"], "mean and std of a model's input belong together"),
        (["--models", "old", "missing"], "missing"),
        (["--models", "old", "new", "--metric", "top3"], "top3"),
        (["--models", "old", "new", "--out", "no/where"], "parent"),
        (["--models", "old", "new", "--data-path", "old"], "IJBC/meta/"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(run_tool, models, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(models)
    with pytest.raises(UserError, match=message):
        run_tool(TOOL, *arguments)
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()
