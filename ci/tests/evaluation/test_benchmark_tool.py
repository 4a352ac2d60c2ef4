"""tools/benchmark.py: a whole comparison on tiny data, stopped and continued."""

import csv
import json
import sys
from pathlib import Path

import commands
import pytest
from launching import Launch, load_program

from core.errors import UserError
from core.files import ROOT

TINY = [
    "num_epoch=1", "batch_size=16", "image_size=32", "network=r18", "network_options.width=8",
    "network_options.depth=1", "embedding_size=8", "device=cpu",
]  # fmt: skip


class Programs:
    """In place of `subprocess`: runs programs as the tests do, counts them, and can let one fail."""

    def __init__(self, logs: Path):
        self.logs, self.started, self.broken = logs, [], None

    def run(self, command: list[str], cwd: Path):
        assert command[0] == sys.executable and cwd == ROOT
        self.started.append(command[1])
        self.returncode = 1
        if command[1] != self.broken:
            logs = self.logs / str(len(self.started))
            arguments = [str(ROOT / word) if (ROOT / word).is_file() else word for word in command[2:]]
            (self.returncode,), (output,) = Launch(ROOT / command[1], arguments, logs).wait()
            assert self.returncode == 0, output
        return self


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A benchmark's folder with tiny glyph data for seed 0."""
    out = tmp_path_factory.mktemp("benchmark")
    arguments = ["glyphs", "--out", out / "seed_0" / "data", "--identities", "40", "--image-size", "32"]
    (status,), (output,) = Launch(ROOT / "tools" / "make_dataset.py", arguments, out / "logs").wait()
    assert status == 0, output
    return out


@pytest.fixture
def benchmark(data, tmp_path, monkeypatch):
    """Calls the tool; `benchmark.programs` are those that it starts."""
    module = load_program(ROOT / "tools" / "benchmark.py")
    programs = Programs(tmp_path)
    monkeypatch.setattr(commands, "subprocess", programs)

    def call(*arguments: str, overrides: list[str] = TINY) -> None:
        words = ["benchmark.py", "--out", str(data), "--methods", "bct", *arguments, "--overrides", *overrides]
        monkeypatch.setattr(sys, "argv", words)
        module.main()

    call.programs = programs
    return call


OLD, METHOD = "old_model/train.py", "methods/bct/train.py"
RIDGE, LAMBDA = "methods/linear_map/train.py", "methods/lambda_orthogonality/train.py"
GALLERY, QUERY, BOTH = "gallery map (ridge)", "query map (lambda_orthogonality)", "both maps (lambda_orthogonality)"


def read_rows(path: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with open(path, newline="") as file:
        return {(row["method"], row["road"], row["test"]): row for row in csv.DictReader(file)}


def test_benchmark_goes_on_where_it_was_stopped_skips_what_is_done_and_writes_its_report(benchmark, data, capsys):
    maps = ("--maps", "ridge", "lambda_orthogonality")
    benchmark.programs.broken = METHOD
    with pytest.raises(SystemExit):
        benchmark("--scenario", "exclass", *maps)
    assert benchmark.programs.started == ["tools/split_dataset.py", OLD, OLD, RIDGE, LAMBDA, METHOD]
    assert not (data / "exclass").exists()

    benchmark.programs.broken = None
    benchmark("--scenario", "exclass", *maps)
    assert benchmark.programs.started[6:] == [METHOD, RIDGE]
    report = (data / "exclass" / "report.md").read_text()
    assert "| bct | " in report and "num_epoch=1" in report and report.index("Best: ") < report.index("| bct | ")
    rows = read_rows(data / "exclass" / "results.csv")
    assert [row[:2] for row in rows if row[2] == "1:N rank-1"] == [
        *(("independent", road) for road in ("direct", GALLERY, QUERY, BOTH)), ("bct", "direct"), ("bct", GALLERY)
    ]  # fmt: skip
    for (method, road, test), row in rows.items():
        if test == "1:N rank-1":
            assert 0 < float(row["new/new"]) <= 100 and row["new/new"] == rows[method, "direct", test]["new/new"]
            change = float(row["new/old"]) - float(row["old/old"])
            assert float(row["PFR"]) - float(row["NFR"]) == pytest.approx(change, abs=1e-3), road
        else:
            assert row["new/old"] == row["NFR"] == ""  # fewer than a thousand impostor pairs
    assert (data / "exclass" / "compatibility.png").is_file()

    benchmark("--scenario", "exclass", *maps)
    assert len(benchmark.programs.started) == 8
    assert (data / "exclass" / "report.md").read_text() == report

    benchmark("--scenario", "opclass", "--maps")  # the old model is shared
    assert benchmark.programs.started[8:] == [OLD, METHOD]
    assert "by road" not in (data / "opclass" / "report.md").read_text()
    commands = (data / "opclass" / "commands.sh").read_text().splitlines()
    assert sum(line.startswith("python old_model/train.py") for line in commands) == 2
    assert sum(line.startswith("python tools/ijbc_eval.py") for line in commands) == 2 + 4 + 4

    result = data / "seed_0" / "opclass" / "bct" / "result.json"  # as it was before there were roads
    roads = json.loads(result.read_text())
    names = {"self_test": "self", "cross_test": "direct"}
    result.write_text(json.dumps({name: roads[road]["rates"] for name, road in names.items()}))
    benchmark("--scenario", "opclass", "--maps", "ridge")
    assert benchmark.programs.started[10:] == [RIDGE, RIDGE]  # no model is trained again
    completed = json.loads(result.read_text())
    assert list(completed) == ["self", "direct", GALLERY]
    assert completed["direct"]["flips"] == roads["direct"]["flips"]
    commands = (data / "opclass" / "commands.sh").read_text()
    assert f"-m_old {data}/seed_0/opclass/bct+ridge" in commands


def test_damaged_result_is_an_error(benchmark, data):
    result = data / "seed_0" / "old_class" / "result.json"
    content = result.read_text()
    for text in ("{", "[]", '{"direct": {"rates": {}, "flips": {}}}', '{"self": {"rates": 1}}'):
        result.write_text(text)
        with pytest.raises(
            UserError, match=r"result.json is not a readable result .*; delete it, and the benchmark tests that"
        ):
            benchmark("--scenario", "exclass")
    result.write_text(content)


def test_results_of_other_settings_are_not_mixed_in(benchmark, data):
    for result in data.glob("seed_0/*/**/result.json"):  # models that were not tested yet are guarded too
        result.unlink()
    with pytest.raises(UserError, match=r"old_class was trained with other settings \(lr 0.1 -> 0.05\): name another"):
        benchmark("--scenario", "exclass", overrides=[*TINY, "lr=0.05"])
    assert benchmark.programs.started == []


def test_file_in_place_of_the_folder_is_an_error(data, monkeypatch):
    module = load_program(ROOT / "tools" / "benchmark.py")
    (data / "file").touch()
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--out", str(data / "file")])
    with pytest.raises(UserError, match="file is a file: name a folder"):
        module.main()


def test_scenario_of_another_data_set_is_an_error(benchmark):
    with pytest.raises(UserError, match="unknown scenario 'exbackbone_data': glyphs has opclass, opdata, ex"):
        benchmark("--scenario", "exbackbone_data")
