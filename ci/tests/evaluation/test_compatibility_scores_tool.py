"""tools/compatibility_scores.py on hand-made results files: roles from fingerprints, metrics, mistakes."""

import json
import subprocess
import sys

import pytest
from launching import load_program

from core.errors import UserError
from core.evaluation.results import Evaluation, Model, write_matrix, write_pairs
from core.files import ROOT

TOOL = ROOT / "tools" / "compatibility_scores.py"

# A row (BCT) of AdvBCT's table "Extended-data", mAP in per cent on RParis, ROxford, GLDv2-test, and its printed scores
TASKS = ("rparis6k", "roxford5k", "gldv2")
METRICS = {"rparis6k": "map_medium", "roxford5k": "map_medium", "gldv2": "map@100"}
ROW = {
    "old/old": (75.45, 49.15, 10.03),
    "new/new": (80.58, 56.34, 14.61),
    "star/star": (81.15, 63.85, 16.48),
    "new/old": (77.37, 49.66, 11.30),
}
PRINTED = (48.02, 54.71, 51.13)


def write_result(folder, pair, task, metrics, settings=None, prefix=""):
    """A results file of a pair "query/gallery"; the model's name is its fingerprint."""
    models = {
        side: {"name": prefix + name, "fingerprint": prefix + name + "f" * 60}
        for side, name in zip(("query", "gallery"), pair.split("/"))
    }
    path = folder / f"{prefix}{pair.replace('/', '_')}_{task.replace(':', '_')}.json"
    content = {"task": task, "models": models, "metrics": metrics, "settings": settings or {"crop": True}}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def paper_files(tmp_path):
    return [
        write_result(tmp_path, pair, task, {METRICS[task]: values[t] / 100, "map_easy": 0.5, "parts": {"a": 1}})
        for pair, values in ROW.items()
        for t, task in enumerate(TASKS)
    ]


@pytest.fixture
def print_scores(monkeypatch, capsys):
    """Runs the tool in this process; returns the cells of each line of the table by the line's name, and all text."""
    tool = load_program(TOOL)
    monkeypatch.setattr(tool, "set_up_logging", lambda: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["compatibility_scores.py", *map(str, arguments)])
        tool.main()
        text = capsys.readouterr().out
        lines = [line for line in text.split("\n\n")[0].splitlines()[2:]]
        return {line.split("  ")[0]: line.split("  ", 1)[1].split() for line in lines}, text

    return run


def test_scores_of_the_papers_row_are_printed_whatever_the_order_of_the_files(paper_files, print_scores):
    table, text = print_scores(*paper_files[::-1])
    assert list(table) == ["gldv2 map@100", "roxford5k map_medium", "rparis6k map_medium", "overall"]
    assert table["roxford5k map_medium"][:4] == ["49.15", "56.34", "63.85", "49.66"]
    assert float(table["roxford5k map_medium"][6]) == pytest.approx((49.66 - 49.15) / (63.85 - 49.15), abs=5e-4)
    assert [float(cell) for cell in table["overall"][1:4]] == pytest.approx(PRINTED, abs=0.02)
    assert table["overall"][4:] == ["3", "of", "3"] and table["gldv2 map@100"][-1] == "yes"
    assert text.rstrip().endswith("old: old, new: new, star: star")


def test_program_prints_the_table(paper_files):
    finished = subprocess.run([sys.executable, TOOL, *paper_files], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0 and finished.stdout.startswith("%"), finished.stderr
    finished = subprocess.run([sys.executable, TOOL, *paper_files[:-1]], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 2 and finished.stderr.splitlines()[-1].startswith("error: gldv2: there is no cross")


def test_faces_are_compared_by_tar_and_rank_1_and_an_incompatible_model_is_named(tmp_path, print_scores):
    rates = {"old/old": 0.7, "a/a": 0.9, "b/b": 0.88, "b/old": 0.6}
    files = [write_result(tmp_path, pair, "ijbc-1:1", {"tar@far=1e-04": rate}) for pair, rate in rates.items()]
    files += [write_result(tmp_path, pair, "ijbc-1:N", {"top1": rate + 0.05}) for pair, rate in rates.items()]
    table, text = print_scores(*files)
    assert list(table) == ["ijbc-1:1 tar@far=1e-04", "ijbc-1:N top1", "overall"]
    assert table["ijbc-1:1 tar@far=1e-04"][6] == "-0.500" and table["ijbc-1:1 tar@far=1e-04"][-1] == "no"
    assert table["overall"][-3:] == ["0", "of", "2"] and "star: a" in text


def test_several_metrics_make_several_test_sets(paper_files, print_scores, tmp_path):
    for path in paper_files:
        content = json.loads(path.read_text())
        if content["task"] == "roxford5k":
            content["metrics"]["map_hard"] = content["metrics"]["map_medium"] / 2
            path.write_text(json.dumps(content))
    table, _ = print_scores(*paper_files, "--metric", "map_hard", "--metric", "map_medium")
    assert list(table) == [
        "rparis6k map_medium", "roxford5k map_hard", "roxford5k map_medium", "gldv2 map@100", "overall"
    ]  # fmt: skip
    assert table["roxford5k map_hard"][6:10] == table["roxford5k map_medium"][6:10]
    with pytest.raises(UserError, match="--metric map_tiny is in none of the files, which have map_medium, map_easy"):
        print_scores(*paper_files, "--metric", "map_tiny")


def test_missing_and_ambiguous_tests_are_errors(tmp_path, paper_files, print_scores):
    only = paper_files[1::3]
    for left_out, words in enumerate(
        [r"self-test of the old model \(old\)", r"self-test of the new model \(new\)", "trained alone", "cross-test"]
    ):
        with pytest.raises(UserError, match=f"roxford5k: there is no .*{words}"):
            print_scores(*only[:left_out], *only[left_out + 1 :])
    rate = {"map_medium": 0.5}
    with pytest.raises(
        UserError, match="which is the cross-test .*new_old_roxford5k.json or .*star_old_roxford5k.json"
    ):
        print_scores(*only, write_result(tmp_path, "star/old", "roxford5k", rate))
    with pytest.raises(UserError, match="trained alone"):
        print_scores(*only, write_result(tmp_path, "fourth/fourth", "roxford5k", rate))
    with pytest.raises(UserError, match="which is the self-test of the old model"):
        print_scores(*only, only[0])


def test_models_and_settings_must_be_the_same_throughout(tmp_path, paper_files, print_scores):
    others = [write_result(tmp_path, pair, "ijbc-1:N", {"top1": 0.5}, prefix="x") for pair in ROW]
    with pytest.raises(UserError, match=r"old model of ijbc-1:N \(xold\) is not that of rparis6k \(old\)"):
        print_scores(*paper_files, *others)
    whole = write_result(tmp_path, "star/star", "roxford5k", {"map_medium": 0.5}, {"crop": False}, prefix="")
    with pytest.raises(UserError, match=r"different settings \(crop\)"):
        print_scores(*[path for path in paper_files[1::3] if path != whole], whole)


def test_values_without_scores_are_errors(tmp_path, print_scores):
    def files(old, star, task="ijbc-1:1", metric="tar@far=1e-04"):
        rates = {"old/old": old, "new/new": 0.8, "star/star": star, "new/old": 0.75}
        return [write_result(tmp_path, pair, task, {metric: rate}) for pair, rate in rates.items()]

    with pytest.raises(UserError, match=r"star_star_ijbc-1_1.json: tar@far=1e-04 cannot be resolved"):
        print_scores(*files(0.7, None))
    with pytest.raises(UserError, match="self_star must differ from 0 and from old"):
        print_scores(*files(0.7, 0.7))
    with pytest.raises(UserError, match="tar@far=1e-04 is missing"):
        print_scores(*files(0.7, 0.9, metric="auc"))
    with pytest.raises(UserError, match="the task faces has no usual metric"):
        print_scores(*files(0.7, 0.9, task="faces"))


def test_demo_and_matrix_files_are_read_like_single_results(tmp_path, print_scores):
    rates = {"old/old": 0.5, "new/new": 0.8, "new/old": 0.6, "independent/independent": 0.9, "independent/old": 0.01}
    demo = tmp_path / "demo.json"
    flips = {"new/old": {"nfr": 0.05, "pfr": 0.15}}
    write_pairs(
        demo,
        {
            pair: {"1:1": {"auc": rate}, "1:N": {"top1": rate, "g1": {}, **flips.get(pair, {})}}
            for pair, rate in rates.items()
        },
    )
    table, text = print_scores("--models", "old", "new", "independent", "--metric", "top1", "--metric", "auc", demo)
    assert list(table) == ["ijbc-1:1 auc", "ijbc-1:N top1", "overall"]
    assert table["ijbc-1:N top1"][:5] == ["50.00", "80.00", "90.00", "60.00", "5.00"]
    assert table["ijbc-1:N top1"][5:7] == ["15.00", "0.250"] and table["ijbc-1:1 auc"][4:6] == ["-", "-"]
    assert text.rstrip().endswith("old: old, new: new, star: independent")
    with pytest.raises(UserError, match="which is the cross-test .*, new/old in .* or independent/old in .* --models"):
        print_scores("--metric", "top1", demo)
    with pytest.raises(UserError, match="--models nobody: the files have no such model, only independent, new, old"):
        print_scores("--models", "old", "nobody", "new", demo)
    only_cross = tmp_path / "cross.json"
    write_pairs(only_cross, {"new/old": {"1:1": {}, "1:N": {}}})
    with pytest.raises(UserError, match="--models new old new: the files have no test of this update"):
        print_scores("--models", "new", "old", "new", only_cross)

    models = {name: Model(name, name * 8) for name in ("old", "new", "independent")}
    evaluations = [
        Evaluation("ijbc-1:N", *(models[name] for name in pair.split("/")), {"top1": rate}, {"flip": True})
        for pair, rate in rates.items()
    ]
    matrix = tmp_path / "matrix.json"
    write_matrix(matrix, evaluations, [{"query": "new", "gallery": "old", "top1": True}])
    assert print_scores("--models", "old", "new", "independent", matrix)[0]["ijbc-1:N top1"][6] == "0.250"


def test_mapped_queries_are_measured_by_what_the_model_behind_the_map_finds_in_its_own_gallery(tmp_path, print_scores):
    rates = {"old/old": 0.5, "alone/alone": 0.9, "alone+procrustes/old": 0.7, "new/new": 0.8, "new+procrustes/old": 0.6}
    flips = {"nfr": 0.05, "pfr": 0.25}
    demo = tmp_path / "demo.json"
    write_pairs(demo, {pair: {"1:1": {"auc": rate}, "1:N": {"top1": rate, **flips}} for pair, rate in rates.items()})
    metrics = ["--metric", "top1", "--metric", "auc"]
    for star in ("alone", "alone+procrustes"):
        table, text = print_scores("--models", "old", "alone+procrustes", star, *metrics, demo)
        assert table["ijbc-1:N top1"][:7] == ["50.00", "90.00", "90.00", "70.00", "5.00", "25.00", "0.500"]
        assert text.rstrip().endswith("old: old, new: alone+procrustes, star: alone")
    table, _ = print_scores("--models", "old", "new+procrustes", "alone", *metrics, demo)
    assert table["ijbc-1:N top1"][:4] == ["50.00", "80.00", "90.00", "60.00"]

    models = {
        name: Model(name, name * 8, base=name.rpartition("+")[0] * 8) for name in ("old", "new", "new+map", "star")
    }
    pairs = {"old/old": 0.5, "new/new": 0.8, "new+map/new+map": 0.7, "star/star": 0.9, "new+map/old": 0.6}
    for left_out, found in ((None, "80.00"), ("new/new", "70.00")):  # the map's own self-test, where there is no other
        evaluations = [
            Evaluation("ijbc-1:N", *(models[name] for name in pair.split("/")), {"top1": rate}, {"flip": True})
            for pair, rate in pairs.items()
            if pair != left_out
        ]
        write_matrix(tmp_path / "matrix.json", evaluations, [])
        assert print_scores(tmp_path / "matrix.json")[0]["ijbc-1:N top1"][:4] == ["50.00", found, "90.00", "60.00"]


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", '{"evaluations": []}', '{"task": "x", "metrics": {}, "models": {"query": {}}}']
)
def test_files_that_are_no_results_are_errors(tmp_path, print_scores, content):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(UserError, match=r"other.json is not a readable results file.*; give the results.json"):
        print_scores(tmp_path / "other.json")
    with pytest.raises(UserError, match="results file not found"):
        print_scores(tmp_path / "none.json")
