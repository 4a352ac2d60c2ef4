import importlib.util
import json
import logging
import os
import subprocess
import sys

import pytest
import torch

from core.backbones import build_backbone
from core.errors import UserError
from core.files import ROOT

TOOL = ROOT / "tools" / "ijbc_eval.py"


@pytest.fixture
def models(tmp_path):
    """Two run folders, `old` and `new`, of narrow networks with random weights, and `small`, which embeds otherwise."""
    for name, depth, size in (("old", 1, 16), ("new", 2, 16), ("small", 1, 8)):
        torch.manual_seed(depth)
        options = {"width": 8, "depth": depth}
        folder = tmp_path / name
        folder.mkdir()
        torch.save(build_backbone("r18", size, image_size=24, **options).state_dict(), folder / "model.pt")
        config = {"network": "r18", "network_options": options, "embedding_size": size, "image_size": 24}
        (folder / "config.json").write_text(json.dumps({**config, "normalization": "face"}))
    return tmp_path


@pytest.fixture
def evaluate(models, tree, monkeypatch):
    """Runs the tool in this process and returns its results.json."""
    spec = importlib.util.spec_from_file_location("ijbc_eval", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "set_up_logging", lambda: None)

    def run(*arguments, out="out", data=tree):
        arguments = [
            "--data-path",
            data,
            "--cache",
            models / "cache",
            "--num-workers",
            0,
            "--out",
            models / out,
            *arguments,
        ]
        monkeypatch.setattr(sys, "argv", ["ijbc_eval.py", *map(str, arguments)])
        tool.main()
        return json.loads((models / out / "results.json").read_text())

    return run


def run_program(*arguments):
    command = [sys.executable, str(TOOL), "--device", "cpu", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_program_writes_table_results_and_curves_of_a_cross_test(models, tree):
    finished = run_program(
        "-m", models / "new", "-m_old", models / "old", "-N", "--data-path", tree,
        "--cache", models / "cache", "--out", models / "out",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    header, rule, *rows = finished.stdout.splitlines()
    assert header.split() == ["%", "top1", "top5", "top10", "tpir@fpir=0.01", "tpir@fpir=0.1", "nfr", "pfr"]
    assert [row.split("  ")[0] for row in rows] == ["new / old", "g1", "g2", "mixed"]
    assert sorted(path.name for path in (models / "out").iterdir()) == ["identification.png", "results.json"]


def test_program_ends_with_one_error_line_and_leaves_nothing(models, tree):
    (tree / "IJBC" / "loose_crop" / "9.jpg").write_bytes(b"damaged")
    finished = run_program(
        "-m", models / "old", "--data-path", tree, "--cache", models / "cache", "--out", models / "out"
    )
    last = finished.stderr.splitlines()[-1]
    assert finished.returncode == 2 and last.startswith("error: ") and "9.jpg" in last
    assert finished.stderr.count("error: ") == 1 and "Traceback" not in finished.stderr
    assert not (models / "out").exists()


def test_cross_test_after_two_self_tests_embeds_nothing_and_tells_the_sides(evaluate, models, caplog):
    caplog.set_level(logging.INFO)
    old = evaluate("-m", models / "old")
    new = evaluate("-m", models / "new")
    assert "from the store" not in caplog.text
    cross = evaluate("-m", models / "new", "-m_old", models / "old")
    assert caplog.text.count("embeddings from the store") == 2
    assert cross["task"] == "ijbc-1:1"
    assert cross["models"]["query"] == new["models"]["query"]
    assert cross["models"]["gallery"] == old["models"]["gallery"]
    assert cross["models"]["gallery"]["embeds"] == "first template of each pair"
    assert list(cross["metrics"]) == [f"tar@far=1e-0{i}" for i in (6, 5, 4, 3, 2, 1)] + ["auc"]
    assert cross["metrics"]["tar@far=1e-06"] is None, "fewer than a million impostor pairs"
    assert max(cross["metrics"]["auc"] - 0.5, 0) < min(old["metrics"]["auc"], new["metrics"]["auc"]) - 0.5
    assert (models / "out" / "roc.png").stat().st_size > 10_000


def test_identification_of_a_model_with_itself_fills_every_metric_of_the_contract(evaluate, models):
    result = evaluate("-m", models / "new", "-N", "--batch-size", 7)
    assert result["task"] == "ijbc-1:N"
    metrics = result["metrics"]
    rates = {"top1", "top5", "top10", "tpir@fpir=0.01", "tpir@fpir=0.1"}
    assert set(metrics) == rates | {"g1", "g2", "mixed"}
    assert set(metrics["g1"]) == set(metrics["g2"]) == rates and set(metrics["mixed"]) == {"top1", "top5", "top10"}
    assert metrics["top1"] == (metrics["g1"]["top1"] + metrics["g2"]["top1"]) / 2 > 0.5


@pytest.mark.parametrize("switch", ["--no-flip", "--no-detector-score", "--normalize-embeddings"])
def test_switch_changes_the_result_without_embedding_again(evaluate, models, caplog, switch):
    plain = evaluate("-m", models / "old")
    caplog.set_level(logging.INFO)
    switched = evaluate("-m", models / "old", switch)
    assert "embeddings from the store" in caplog.text
    assert switched["metrics"] != plain["metrics"] and switched["settings"] != plain["settings"]


def test_what_the_models_are_fed_is_told_kept_and_decides_which_embeddings_are_used(evaluate, models, caplog):
    own = evaluate("-m", models / "old")
    caplog.set_level(logging.INFO)
    fed = ["--mean-old", 120, 110, 100, "--std-old", 60, "--channel-order-old", "BGR"]
    told = evaluate("-m", models / "old", "-m_old", models / "old", *fed)
    assert caplog.text.count("embeddings from the store") == 1, "those of the model as it is"
    query, gallery = told["models"]["query"], told["models"]["gallery"]
    assert query == own["models"]["query"] and query["fingerprint"] != gallery["fingerprint"]
    assert query["preprocessing"] == "24 pixels, mean (127.5, 127.5, 127.5), std (127.5, 127.5, 127.5)"
    assert gallery["preprocessing"] == "24 pixels, mean (120.0, 110.0, 100.0), std (60.0, 60.0, 60.0), BGR"
    assert told["metrics"] != own["metrics"]
    same = evaluate("-m", models / "old", "--mean", "face", "--std", "face")
    assert (same["models"], same["metrics"]) == (own["models"], own["metrics"])


def test_state_dict_needs_and_takes_its_network_and_ijbb_is_another_task(evaluate, models, tmp_path, tree_writer):
    torch.manual_seed(0)
    torch.save(build_backbone("mbf", 16).state_dict(), models / "bare.pt")
    tree = tree_writer(tmp_path / "b", "IJBB", num_subjects=6)
    arguments = ("-m", models / "bare.pt", "--subset", "IJBB")
    with pytest.raises(UserError, match="-net"):
        evaluate(*arguments, data=tree)
    result = evaluate(*arguments, "-net", "mbf", data=tree)
    assert result["task"] == "ijbb-1:1" and result["models"]["query"]["network"] == "mbf"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "small", "-m_old", "old"], "small gives 8 numbers an embedding, .*old 16"),
        (["-m", "missing"], "missing"),
        (["-m", "old", "-old_net", "r18"], "no -m_old"),
        (["-m", "old", "--channel-order-old", "BGR"], "no -m_old"),
        (["-m", "old", "--mean", "127.5"], "mean and std of a model's input belong together"),
        (["-m", "old", "--mean", "0.5", "--std", "0.5"], "look like those for pixels from 0 to 1"),
        (["-m", "old", "--channel-order", "GBR"], "--channel-order: invalid choice: 'GBR'"),
        (["-m", "old", "--out", "no/where"], "parent"),
        (["-m", "old", "--subset", "IJBA"], "IJBA"),
        (["-m", "old", "--batch-size", "0"], "--batch-size"),
        (["-m", "old", "--device", "toaster"], "unknown --device 'toaster'"),
        (["-m", "old", "--device", "cuda:99"], "cuda:99 is not here"),
        (["-m", "old", "--data-path", "old"], "IJBC/meta/ijbc_face_tid_mid.txt"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(evaluate, models, monkeypatch, arguments, message):
    monkeypatch.chdir(models)
    with pytest.raises(UserError, match=message):
        evaluate(*arguments)
    assert not (models / "out").exists() and not (models / "cache").exists()


def test_missing_meta_file_is_reported_with_its_name(evaluate, models, tree):
    (tree / "IJBC" / "meta" / "ijbc_1N_gallery_G2.csv").unlink()
    with pytest.raises(UserError, match="ijbc_1N_gallery_G2.csv"):
        evaluate("-m", models / "old", "-N")
