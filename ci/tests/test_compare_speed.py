"""The works that two revisions are timed with compute what plain code does, and the comparison reports what differs."""

import json
import subprocess

import numpy as np
import pytest
import torch

from ci import compare_speed
from ci.benchmarks.class_statistics import check_mask, check_numbers, plain_mask, plain_means, plain_radii
from ci.benchmarks.ijb_scoring import NUM_PAIRS
from ci.compare_speed import QUICK, Timed, difference, table
from ci.timed_works import WORKS
from core.embeddings.store import EmbeddingStore
from core.errors import UserError
from core.files import ROOT


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed") / "data"
    compare_speed.write_data(folder, QUICK, list(WORKS))
    return folder


def result(name, data):
    torch.manual_seed(0)
    return WORKS[name](data)()


@pytest.mark.parametrize(("ending", "folder"), [("", "store"), ("_from_disk", "large")])
def test_statistics_are_those_of_numpy(data, ending, folder):
    store = EmbeddingStore.open(data / folder)
    check_numbers(store, result(f"class_means{ending}", data), plain_means(store))
    check_mask(store, result(f"credible_rows{ending}", data), plain_mask(store))
    np.testing.assert_allclose(
        result(f"centres_and_radii{ending}", data), plain_radii(store), rtol=0, atol=1e-6
    )  # float32


def test_a_test_gives_the_same_with_files_and_after_them(data):
    rates = result("ijb_test", data)
    assert np.isfinite(rates).sum() > 10
    np.testing.assert_array_equal(result("ijb_stored", data), rates)


def test_pairs_are_those_of_the_file(data):
    first, second, same = result("pair_file", data)
    lines = np.loadtxt(data / "IJBC" / "meta" / "ijbc_template_pair_label.txt", np.int64)
    assert len(lines) == NUM_PAIRS // QUICK.shrink
    np.testing.assert_array_equal(same, lines[:, 2])
    for rows, ids in ((first, lines[:, 0]), (second, lines[:, 1])):
        assert len(np.unique(np.stack([rows, ids]), axis=1).T) == len(np.unique(rows)) == len(np.unique(ids))


def test_images_for_a_network_are_the_bytes_normalised_and_mirrored(data):
    plain = result("records", data).astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
    given = result("records_to_network", data)
    mirrored = np.array([np.allclose(g, p[:, :, ::-1], atol=1e-6) for g, p in zip(given, plain)])
    as_stored = np.array([np.allclose(g, p, atol=1e-6) for g, p in zip(given, plain)])
    assert (mirrored ^ as_stored).all() and mirrored.any() and as_stored.any()


def test_the_loss_of_a_network_falls_too(data):
    first, second = result("training_step", data)
    assert first > second


@pytest.mark.parametrize("name", ["partial_fc", "partial_fc_0.1", "partial_fc_0.01"])
def test_the_loss_falls_where_the_same_batch_is_trained_on(data, name):
    first, second, third = result(name, data)[:3]
    assert first > second > third


def test_differences_are_reported():
    numbers = np.array([1.0, np.nan, 3.0, np.inf])
    assert difference(numbers, numbers.copy()) == "the same"
    other = np.array([1.0, np.nan, 3.5, np.inf])
    assert difference(numbers, other) == "differ in 1 of 4 numbers, by up to 5.0e-01"
    none = np.array([np.nan, np.nan, 3.5, np.inf])
    assert difference(numbers, none) == "differ in 2 of 4 numbers, by up to inf"
    assert difference(numbers, numbers[:2]) == "(4,) and (2,) numbers"
    assert difference(np.array([True, False]), np.array([True, True])) == "differ in 1 of 2 numbers, by up to 1.0e+00"


def test_the_ratio_is_that_within_rounds():
    taken = Timed([4.0, 40.0, 6.0], [2.0, 10.0, 3.0], "the same")  # a round in which the machine was busy
    assert taken.times_faster == 2.0
    line = table({"pair_file": taken}).splitlines()[-1].split()
    assert line == ["pair_file", "6.000", "4.000", "40.000", "3.000", "2.000", "10.000", "2.00", "the", "same"]


def test_a_revision_beside_the_working_tree(tmp_path, capsys):
    if subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("these files are not in a git repository")
    words = ["HEAD", "--quick", "--works", "pair_file", "partial_fc", "--rounds", "1"]
    compare_speed.main([*words, "--folder", str(tmp_path), "--out", str(tmp_path / "kept.json")])
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert [kept["before"], kept["after"]] == ["HEAD", "the working tree"]
    for name in ("pair_file", "partial_fc"):
        work = kept["works"][name]
        assert len(work["before"]) == len(work["after"]) == 1 and min(*work["before"], *work["after"]) > 0
        assert name in printed and work["results"] in printed
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]


def test_a_work_that_fails_is_named_with_its_error(data, tmp_path):
    (tmp_path / "before" / "core").mkdir(parents=True)  # a revision that lacks what the works call
    (tmp_path / "before" / "core" / "__init__.py").write_text("raise ImportError('no such thing')")
    with pytest.raises(UserError, match="pair_file failed with the revision before: ImportError: no such thing"):
        next(compare_speed.runs(tmp_path, ["pair_file"], 1))
