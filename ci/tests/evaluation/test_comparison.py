"""Methods side by side: tables, CSV and picture from entries worked by hand."""

import csv

import numpy as np
import pytest

from core.evaluation.comparison import Comparison, Entry


def entry(method: str, seed: int, self_test: float, cross_test: float, second: float = 50.0) -> Entry:
    """With two tests; the second one's self- and cross-test are the same."""
    return Entry(method, seed, {"A": self_test, "B": second}, {"A": cross_test, "B": second})


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(
        [
            entry("old", 0, 60, 60, 40), entry("independent", 0, 80, 1, 80), entry("near", 0, 80, 70, 60),
            entry("old", 1, 50, 50, 40), entry("independent", 1, 90, 3, 80), entry("near", 1, 72, 40, 60),
        ]
    )  # fmt: skip


def test_values_are_those_of_the_formulas_for_each_seed(comparison):
    values = comparison.values("near", "A")
    np.testing.assert_allclose(values["old/old"], [60, 50])
    np.testing.assert_allclose(values["gain"], [0.5, -0.25])
    sigmoid = 1 / (1 + np.exp(-np.array([0.0, -0.2])))
    np.testing.assert_allclose(values["p_up"], 100 * sigmoid)
    np.testing.assert_allclose(values["p_comp"], 100 / (1 + np.exp([-0.5, 0.25])))


def test_table_has_mean_and_sample_deviation_and_counts_the_compatible_seeds(comparison):
    header, _, independent, near = (line.split(" | ") for line in comparison.table("A").splitlines())
    assert header[1] == "old/old" and near[1] == "55.0 ± 7.1"
    assert near[3] == "55.0 ± 21.2" and near[-1] == "1 of 2 |"
    assert independent[2] == "85.0 ± 7.1" and independent[-1] == "0 of 2 |"


def test_overall_scores_are_means_over_the_tests(comparison):
    found = comparison.scores("near", 0, ["A", "B"])
    alone = [comparison.scores("near", 0, [test]) for test in "AB"]
    assert found.p_up == pytest.approx(np.mean([one.p_up for one in alone]))
    assert found.p_1 == pytest.approx(np.mean([one.p_1 for one in alone]))
    assert "near" in comparison.overall() and "old" not in comparison.overall()


def test_an_independent_model_no_better_than_the_old_one_leaves_dashes_not_numbers():
    same = Comparison([entry("old", 0, 60, 60), entry("independent", 0, 60, 1), entry("new", 0, 70, 65)])
    assert same.table("A").splitlines()[-1] == "| new | 60.0 | 70.0 | 65.0 | - | - | - | - | 1 of 1 |"


def test_a_rate_that_the_data_cannot_resolve_leaves_dashes():
    nan = float("nan")
    table = Comparison([entry("old", 0, nan, nan), entry("independent", 0, nan, nan)]).table("A")
    assert table.splitlines()[-1] == "| independent | - | - | - | - | - | - | - | 0 of 1 |"


def test_csv_has_a_line_for_each_method_seed_and_test(comparison, tmp_path):
    comparison.write_csv(tmp_path / "results.csv")
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    (row,) = [row for row in rows if (row["method"], row["seed"], row["test"]) == ("near", "1", "A")]
    assert float(row["gain"]) == -0.25 and float(row["new/old"]) == 40


def test_picture_has_a_panel_a_test_with_a_mark_a_method(comparison, tmp_path):
    figure = comparison.plot(tmp_path / "compatibility.png")
    assert [axes.get_title() for axes in figure.axes] == comparison.tests
    for axes in figure.axes:
        assert [bars.get_label() for bars in axes.containers] == comparison.methods
