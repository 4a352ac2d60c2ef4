"""ci/results_page.py: the tables of RESULTS.md are those of the kept results, and new results find their place."""

import sys

import pytest
from launching import load_program

from core.errors import UserError
from core.evaluation.comparison import Comparison, Entry, read_csv
from core.files import ROOT

PLACE = "<!-- tables: {} -->\n{}\n<!-- end -->"


@pytest.fixture
def page():
    return load_program(ROOT / "ci" / "results_page.py")


@pytest.fixture
def benchmark(tmp_path):
    """A benchmark's folder with the results of one data set and scenario."""
    scores = [("old", 40, 40), ("independent", 80, 1), ("bct", 82, 60)]
    entries = [Entry(method, seed, {"A": own}, {"A": cross}) for seed in (0, 3) for method, own, cross in scores]
    folder = tmp_path / "benchmark" / "glyphs-retrieval" / "exdata"
    folder.mkdir(parents=True)
    Comparison(entries).write_csv(folder / "results.csv")
    return tmp_path / "benchmark"


def test_page_of_this_repository_has_the_tables_of_the_kept_results(page):
    text = page.PAGE.read_text()
    assert page.filled(text, page.KEPT) == text
    assert page.SECTION.findall(text)


def test_new_results_are_kept_and_replace_the_tables_in_their_place_alone(page, benchmark, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    kept.mkdir()
    name = "glyphs_retrieval_exdata"
    before = ["# Results", PLACE.format(name, "| older |"), "in words", PLACE.format("glyphs_opclass", ""), "the end"]
    (tmp_path / "RESULTS.md").write_text("\n\n".join(before))
    monkeypatch.setattr(page, "PAGE", tmp_path / "RESULTS.md")
    monkeypatch.setattr(page, "KEPT", kept)
    monkeypatch.setattr(sys, "argv", ["results_page.py", str(benchmark)])
    page.main()
    assert sorted(path.name for path in kept.iterdir()) == [f"{name}.csv", f"{name}.png"]
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| bct | 40.0 ± 0.0 | 82.0 ± 0.0 | 60.0 ± 0.0 | 0.50 ± 0.00 |" in text and "older" not in text
    assert "Seeds: 0, 3." in text and f"(ci/benchmarks/results/{name}.png)" in text
    assert PLACE.format("glyphs_opclass", "Not measured yet.") in text
    assert text.startswith("# Results\n\n<!--") and "-->\n\nin words\n\n<!--" in text and text.endswith("the end")
    assert page.filled(text, kept) == text


def kept_by(page, benchmark, folder, *entries) -> Comparison:
    """What is kept once the benchmark's results meet those that were kept before."""
    folder.mkdir()
    Comparison(entries).write_csv(folder / "glyphs_retrieval_exdata.csv")
    page.keep(benchmark, folder)
    assert (folder / "glyphs_retrieval_exdata.png").read_bytes().startswith(b"\x89PNG")
    return read_csv(folder / "glyphs_retrieval_exdata.csv")


def test_methods_that_were_not_run_again_stay_and_are_not_compared_over_other_seeds(page, benchmark, tmp_path):
    before = [("old", 40, 40), ("independent", 80, 1), ("bct", 82, 59), ("l2", 50, 70)]
    entries = [Entry(method, 3, {"A": own}, {"A": cross}) for method, own, cross in before]
    found = kept_by(page, benchmark, tmp_path / "kept", *entries)
    assert found.methods == ["bct", "l2"] and found.seeds == [0, 3]
    assert found.values("bct", "A")["new/old"].tolist() == [60, 60] and found.values("l2", "A")["new/old"] == [70]
    assert "Best: bct 60.0 ± 0.0" in found.summary() and found.summary().endswith(
        "Left out of this list, as they were not run on all seeds: l2."
    )


def test_roads_and_seeds_that_were_not_run_again_stay_but_for_maps_of_a_model_that_is_another_now(
    page, benchmark, tmp_path
):
    road = "gallery map (ridge)"

    def entry(method, seed, own, cross, road="direct"):
        return Entry(method, seed, {"A": own}, {"A": cross}, road=road)

    found = kept_by(
        page, benchmark, tmp_path / "kept",
        *(entry("old", seed, 40, 40) for seed in (0, 3, 7)), *(entry("independent", seed, 80, 1) for seed in (0, 3, 7)),
        entry("independent", 3, 80, 66, road), entry("bct", 0, 82, 59), entry("bct", 0, 82, 71, road),
        entry("bct", 3, 81, 59), entry("bct", 3, 81, 72, road), entry("bct", 7, 83, 58), entry("bct", 7, 83, 73, road),
    )  # fmt: skip
    assert found.seeds == [0, 3, 7]
    assert found.values("bct", "A")["new/old"].tolist() == [60, 60, 58], "as they were run now, where they were"
    assert found.values("independent", "A", road)["new/old"].tolist() == [66]
    assert found.values("bct", "A", road)["new/old"].tolist() == [71, 73], "seed 3 had another model"


def test_results_of_other_tests_are_not_joined(page, benchmark, tmp_path):
    entries = [Entry(method, 3, {"B": 40.0}, {"B": 40.0}) for method in ("old", "independent")]
    with pytest.raises(UserError, match="cannot be joined .* its tests are B, not A"):
        kept_by(page, benchmark, tmp_path / "kept", *entries)


@pytest.mark.parametrize("changed", ["old", "independent"])
def test_results_of_other_baselines_are_not_joined(page, benchmark, tmp_path, changed):
    entries = [Entry(m, 3, {"A": own + (m == changed)}, {"A": own}) for m, own in (("old", 40), ("independent", 80))]
    with pytest.raises(UserError, match=f"cannot be joined .* the {changed} model of seed 3 has other scores"):
        kept_by(page, benchmark, tmp_path / "kept", *entries)


def test_results_without_a_place_and_folders_without_results_are_errors(page, benchmark, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    page.keep(benchmark, kept)
    with pytest.raises(UserError, match="no place for glyphs_retrieval_exdata: add '<!-- tables: NAME -->'"):
        page.filled("# Results", kept)
    with pytest.raises(UserError, match="name the folder of tools/benchmark.py"):
        page.keep(kept, kept)
