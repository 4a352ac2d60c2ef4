"""All benchmarks run at small sizes and keep what they measure; the ratios are those of planted times."""

import importlib
import inspect
import json
import os
import re
import time
from types import SimpleNamespace

import pytest
import torch

from ci.benchmarks import __main__ as program
from ci.benchmarks.harness import private_memory
from ci.benchmarks.harness.bench import Bench, Sample, SetUpError, digits, measure, summarise, threads_restored
from ci.benchmarks.harness.machine import busy
from core.files import ROOT
from core.heads import PartialFC

NAMES = program.first_lines()
WANT_MORE = ("backfill_curves", "gallery_milvus", "gallery_upgrade")
"""A server, or what trainings left."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WANT_MORE])
def test_a_benchmark_runs_and_keeps_what_it_prints(name, tmp_path, capsys):
    program.main([name, "--quick", "--repeats", "1", "--out", str(tmp_path), "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == [f"{name}.quick.json"]
    kept = json.loads((tmp_path / f"{name}.quick.json").read_text())
    assert kept["benchmark"] == name and kept["quick"] and kept["repeats"] == 1
    assert kept["works"] or kept["tables"]
    for work in kept["works"]:
        assert work["work"] in printed and work["ways"][0]["times_ours"] == 1
        assert all(way["way"] in printed and way["seconds"] == [way["median_seconds"]] for way in work["ways"])
    assert all(table["title"] in printed and table["rows"] for table in kept["tables"])
    assert all(line in printed for line in kept["notes"])
    for told in (kept["machine"]["cpu"], kept["versions"]["numpy"], kept["versions"]["bctlab"]):
        assert told in printed


def test_a_head_whose_gradient_is_not_that_of_the_plain_loss_fails_its_benchmark(tmp_path, monkeypatch):
    forward = PartialFC.forward

    def doubled(*given):
        loss = forward(*given)
        return loss + (loss - loss.detach())

    monkeypatch.setattr(PartialFC, "forward", doubled)
    with pytest.raises(AssertionError, match="PartialFC, embeddings"):
        program.main(["partial_fc", "--quick", "--repeats", "1", "--out", str(tmp_path)])


def test_a_gallery_in_a_milvus_file_is_measured(tmp_path):
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
    words = ["--quick", "--repeats", "1", "--uri", str(tmp_path / "gallery.db"), "--out", str(tmp_path)]
    program.main(["gallery_milvus", *words])
    kept = json.loads((tmp_path / "gallery_milvus.quick.json").read_text())
    assert len(kept["works"]) == 3 and len(kept["tables"][0]["rows"]) == 8


def test_curves_of_two_seeds_become_one_line(tmp_path, capsys):
    folders = []
    for seed, gained in enumerate((0.02, 0.04)):
        curve = {"top1": [0.5, 0.7, 0.69], "nfr": [0.0, 0.03, 0.01]}
        orders = {"random": curve | {"auc": 0.6}, "margin": curve | {"auc": 0.6 + gained}}
        results = {"models": {"new": {"name": "bct"}}, "roads": {"direct": {"raw": orders}}}
        folders.append(tmp_path / f"seed_{seed}")
        folders[-1].mkdir()
        (folders[-1] / "results.json").write_text(json.dumps(results))
    program.main(["backfill_curves", "--curves", *map(str, folders), "--out", str(tmp_path)])
    (row,) = json.loads((tmp_path / "backfill_curves.json").read_text())["tables"][0]["rows"]
    assert row == {
        "new model": "bct", "road": "direct", "scores": "raw", "seeds": "2", "from": "50.0", "to": "69.0",
        "random": "60.0", "margin": "+3.00 ± 1.41", "largest fall": "1.00", "worst NFR": "3.0",
    }  # fmt: skip
    assert "a fall of 1.00 in step 2 of 2" in capsys.readouterr().out


def test_all_skips_what_wants_more_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(program, "first_lines", lambda: dict.fromkeys((*WANT_MORE, "search"), "does"))
    program.main(["all", "--quick", "--repeats", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for name in WANT_MORE:
        assert f"{name}: does\nskipped: {name} needs" in printed
        with pytest.raises(SetUpError, match=f"{name} needs"):
            program.main([name, "--out", str(tmp_path)])
    assert [file.name for file in tmp_path.iterdir()] == ["search.quick.json"]


@pytest.mark.parametrize(
    "words", [["nothing"], ["search", "--gallary", "3"], ["all", "--gallery", "3"], ["search", "--repeats", "0"]]
)
def test_mistakes_on_the_command_line_end_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        program.main(words)
    assert ended.value.code == 2 and "error: " in capsys.readouterr().err


def test_results_have_a_place_before_the_work_begins(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        program.main(["search", "--quick", "--out", str(tmp_path / "file")])
    assert "times ours" not in capsys.readouterr().out


def test_options_are_the_keywords_of_run_and_win_over_quick():
    def run(
        bench, *, rows: int = 10, rate: float = 0.5, whole_file: bool = False, sizes: tuple = (1, 2), path: str = ""
    ):
        pass

    module = SimpleNamespace(__doc__="Does.", run=run, QUICK={"rows": 3, "rate": 0.1})
    plain = program.parse("made", module, [])
    assert (plain.rows, plain.rate, plain.whole_file, plain.sizes, plain.path) == (10, 0.5, False, (1, 2), "")
    assert (plain.quick, plain.repeats) == (False, 5)
    words = ["--quick", "--rate", "0.25", "--whole-file", "--sizes", "4", "--path", "a"]
    quick = program.parse("made", module, words)
    assert (quick.rows, quick.rate, quick.whole_file, quick.sizes, quick.path) == (3, 0.25, True, [4], "a")
    assert (quick.quick, quick.repeats) == (True, 2)


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_a_docstring_are_those_of_the_benchmark(name):
    module = importlib.import_module(f"ci.benchmarks.{name}")
    commands = re.findall(r"python -m ci\.benchmarks (\S+)((?: \S+)*)", module.__doc__)
    assert commands and {each for each, _ in commands} == {name}
    for _, options in commands:
        program.parse(name, module, options.split())
    assert set(getattr(module, "QUICK", {})) < set(inspect.signature(module.run).parameters)


def test_threads_that_a_benchmark_sets_are_its_own():
    before = torch.get_num_threads()
    with threads_restored():
        torch.set_num_threads(before + 1)
        assert torch.get_num_threads() != before
    assert torch.get_num_threads() == before


def test_ways_take_turns_and_give_their_last_results(tmp_path, capsys):
    done = []
    ways = {name: lambda name=name: done.append(name) or len(done) for name in ("ours", "theirs")}
    results = Bench(3, tmp_path).compare("counting", ways)
    capsys.readouterr()
    assert done == ["ours", "theirs"] * 3 and results == {"ours": 5, "theirs": 6}


def test_ratios_are_of_the_same_round_and_for_one_item():
    def taken(seconds, cpu):
        return [Sample(one, other, peak, None) for one, other, peak in zip(seconds, cpu, (0.5, 2.0, 1.0))]

    samples = {"ours": taken((1, 20, 4), (1, 1, 1)), "loop": taken((2, 60, 4), (3, 2, 9))}
    ours, loop = summarise(samples, {"ours": 100, "loop": 10})
    assert (ours["median_seconds"], ours["items_per_second"], ours["times_ours"]) == (4, 25, 1)
    assert loop["times_ours"] == pytest.approx(20), "rounds give 20, 30 and 10; medians would give 10"
    assert loop["cpu_times_ours"] == pytest.approx(30) and loop["peak_gib"] == 2.0 and loop["gpu_peak_gib"] is None


def test_memory_is_the_most_beyond_the_start_without_mapped_files(tmp_path, monkeypatch):
    statm, page = tmp_path / "statm", os.sysconf("SC_PAGE_SIZE") / 2**30
    monkeypatch.setattr(private_memory, "STATM", statm)

    def hold(resident: int, shared: int) -> None:
        (tmp_path / "new").write_text(f"9000 {resident} {shared} 1 0 1 0")
        (tmp_path / "new").replace(statm)

    def work() -> str:
        hold(5000, 1500)
        time.sleep(10 * private_memory.EVERY)
        hold(2000, 200)
        return "done"

    hold(1000, 200)
    result, sample = measure(work)
    assert result == "done" and sample.peak_gib == pytest.approx((3500 - 800) * page) and sample.gpu_peak_gib is None
    assert sample.seconds >= 0.2 > sample.cpu_seconds
    hold(1000, 200)
    assert measure(lambda: hold(1600, 200))[1].peak_gib == pytest.approx(600 * page), "however short the work is"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (0.001234, "0.00123"), (1, "1.00"), (45.67, "45.7"), (1234567, "1,234,567")]
)
def test_numbers_have_three_digits(number, text):
    assert digits(number) == text


@pytest.mark.parametrize(
    ("load", "threads", "is_busy"), [(0.1, 2, False), (1.0, 1, False), (1.0, 2, True), (8, 1, True)]
)
def test_a_machine_is_busy_if_more_is_wanted_than_its_cores(load, threads, is_busy):
    assert busy({"load": load, "threads": threads, "cores": 2}) == is_busy


def test_the_page_lists_every_benchmark_with_its_line():
    told, *_ = (ROOT / "docs" / "benchmarks.md").read_text().partition("\n## ")
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", told, re.MULTILINE)) == NAMES
