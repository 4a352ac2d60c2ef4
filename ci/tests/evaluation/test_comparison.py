"""Methods and roads side by side: tables, CSV and picture from entries worked by hand."""

import csv

import numpy as np
import pytest

from core.errors import UserError
from core.evaluation.comparison import DIRECT, Comparison, Entry, read_csv

GALLERY, QUERY = "gallery map (ridge)", "query map (procrustes)"


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


def road(method: str, seed: int, self_test: float, road: str, cross_test: float, nfr: float, pfr: float) -> Entry:
    """On two tests, of which A has flips."""
    tests = {"A": self_test, "B": self_test}, {"A": cross_test, "B": cross_test / 2}
    return Entry(method, seed, *tests, {"A": (nfr, pfr)}, road)


@pytest.fixture
def roads() -> Comparison:
    """Two methods on three roads; "far" has no maps in the second seed."""
    return Comparison(
        [
            entry("old", 0, 60, 60, 30), road("independent", 0, 80, DIRECT, 1, 59, 0),
            road("independent", 0, 80, QUERY, 55, 9, 4), road("independent", 0, 80, GALLERY, 70, 2, 12),
            road("near", 0, 84, DIRECT, 72, 3, 15), road("near", 0, 84, QUERY, 68, 4, 12),
            road("near", 0, 84, GALLERY, 76, 1, 17), road("far", 0, 70, DIRECT, 50, 20, 10),
            entry("old", 1, 50, 50, 30), road("independent", 1, 90, DIRECT, 3, 49, 2),
            road("independent", 1, 90, QUERY, 60, 5, 15), road("independent", 1, 90, GALLERY, 80, 1, 31),
            road("near", 1, 88, DIRECT, 60, 4, 14), road("near", 1, 88, QUERY, 64, 4, 18),
            road("near", 1, 88, GALLERY, 82, 3, 35), road("far", 1, 70, DIRECT, 52, 6, 8),
        ]
    )  # fmt: skip


def cells(table: str) -> list[list[str]]:
    """The cells of a Markdown table by line, its rule left out."""
    header, _, *rows = (line.strip("| ").split(" | ") for line in table.splitlines())
    return [header, *rows]


def test_table_of_methods_has_the_direct_road_alone_with_its_flips_where_the_test_has_any(roads):
    header, independent, near, far = cells(roads.table("A"))
    assert header[-3:] == ["NFR", "PFR", "new/old > old/old"]
    assert near[:1] + near[3:4] == ["near", "66.0 ± 8.5"] and near[-3:] == ["3.5 ± 0.7", "14.5 ± 0.7", "2 of 2"]
    assert far[-1] == "1 of 2" and independent[0] == "independent"
    assert "NFR" not in roads.table("B")


def test_table_of_roads_has_a_row_a_model_and_road_and_what_all_embedded_again_would_give(roads):
    header, *rows = cells(roads.table_of_roads("A"))
    names = ["independent"] * 3 + ["near"] * 3 + ["far", "independent"]
    assert [row[0] for row in rows] == names
    assert [row[1] for row in rows] == [DIRECT, QUERY, GALLERY, DIRECT, QUERY, GALLERY, DIRECT, "embedded again"]
    near = dict(zip(header, rows[5]))
    assert near["new/new"] == "86.0 ± 2.8" and near["new/old"] == "**79.0 ± 4.2**" and near["NFR"] == "2.0 ± 1.4"
    gains = [(76 - 60) / (80 - 60), (82 - 50) / (90 - 50)]
    assert gains == [0.8, 0.8] and near["gain"] == "0.80 ± 0.00" and near["new/old > old/old"] == "2 of 2"
    assert {row[-2] for row in rows[:-1]} == {"0"} and rows[-1][-2] == "all" and rows[-1][2] == "85.0 ± 7.1"


def test_scores_of_a_road_are_those_of_its_cross_test_and_the_models_self_test(roads):
    values = roads.values("near", "A", GALLERY)
    np.testing.assert_allclose(values["p_up"], 100 / (1 + np.exp(-np.array([4 / 80, -2 / 90]))))
    np.testing.assert_allclose(values["p_comp"], 100 / (1 + np.exp([-0.8, -0.8])))
    np.testing.assert_allclose(values["NFR"], [1, 3])


def test_summary_names_the_best_road_the_best_without_a_map_and_the_best_without_training_and_where_a_map_harms(roads):
    first, second = roads.summary().splitlines()
    assert first.startswith("- **A**: 55.0 ± 7.1 before the update, 85.0 ± 7.1 if all is embedded again.")
    assert f"Best: near, {GALLERY} 79.0 ± 4.2, gain 0.80 ± 0.00." in first
    assert "Without a map: near 66.0 ± 8.5" in first
    assert f"Without compatible training: independent, {GALLERY} 75.0 ± 7.1" in first
    assert (
        "Roads with a map that find less than without one: none." in first
    )  # of both seeds 66 directly and with the query map
    worse = [one for one in roads.entries if (one.method, one.road, one.seed) != ("near", QUERY, 0)]
    worse.append(road("near", 0, 84, QUERY, 67, 4, 11))
    assert f"Roads with a map that find less than without one: near, {QUERY} (-0.5)." in Comparison(worse).summary()
    assert "Roads with a map that find less than before the update: none." in first
    assert f"Roads with a map that find less than before the update: independent, {QUERY} (-1.2)." in second
    assert second.startswith("- **B**: 30.0 ± 0.0 before")


def test_without_maps_there_is_no_table_of_roads(comparison, roads):
    assert "by road" not in comparison.tables() and roads.tables().count("by road") == 2
    assert "map" not in comparison.summary() and "Best: near 55.0 ± 21.2, gain 0.12 ± 0.53." in comparison.summary()


def test_comparison_is_read_again_from_its_csv(roads, tmp_path):
    roads.write_csv(tmp_path / "results.csv")
    again = read_csv(tmp_path / "results.csv")
    assert again.tables() == roads.tables() and again.summary() == roads.summary()
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 14 and {row["images embedded"] for row in rows} == {"0"}


@pytest.mark.parametrize(
    "text", ["", "method,seed\nbct,0\n", "method,road,seed,test,old/old,new/new,new/old,NFR\na,b,c,d"]
)
def test_file_that_is_no_comparison_is_an_error(tmp_path, text):
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(UserError, match=r"results.csv is not a readable results.csv of tools/benchmark.py"):
        read_csv(tmp_path / "results.csv")
    with pytest.raises(UserError, match=r"results.csv of tools.benchmark.py cannot be read: .*none.csv"):
        read_csv(tmp_path / "none.csv")


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


@pytest.mark.parametrize(
    "text",
    [
        "",
        "method,road,seed\n",
        "a,b\n1,2\n",
        "\xff\xfe",
        "method,road,seed,test,old/old,new/new,new/old,NFR,PFR\nbct,direct\n",
        "method,road,seed,test,old/old,new/new,new/old,NFR,PFR\nbct,direct,0,top1,1,2,3,,\n",  # no independent model
        "method,road,seed,test,old/old,new/new,new/old,NFR,PFR\n"
        "independent,direct,0,top1,1,2,3,,\nbct,direct,0,other,1,2,3,,\n",
    ],
)
def test_results_csv_that_is_none_is_one_line_with_the_file(tmp_path, text):
    (tmp_path / "results.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"results\.csv is not a readable .*; run the benchmark again"):
        read_csv(tmp_path / "results.csv")
