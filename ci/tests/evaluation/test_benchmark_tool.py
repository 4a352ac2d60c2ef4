"""tools/benchmark.py: a whole comparison on tiny data, stopped and continued."""

import csv
import sys
from pathlib import Path

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
    monkeypatch.setattr(module, "subprocess", programs)

    def call(*arguments: str, overrides: list[str] = TINY) -> None:
        words = ["benchmark.py", "--out", str(data), "--methods", "bct", *arguments, "--overrides", *overrides]
        monkeypatch.setattr(sys, "argv", words)
        module.main()

    call.programs = programs
    return call


def test_benchmark_goes_on_where_it_was_stopped_skips_what_is_done_and_writes_its_report(benchmark, data, capsys):
    old, method = "old_model/train.py", "methods/bct/train.py"
    benchmark.programs.broken = method
    with pytest.raises(SystemExit):
        benchmark("--scenario", "exclass")
    assert benchmark.programs.started == ["tools/split_dataset.py", old, old, method]
    assert not (data / "exclass").exists()

    benchmark.programs.broken = None
    benchmark("--scenario", "exclass")
    assert benchmark.programs.started[4:] == [method]
    report = (data / "exclass" / "report.md").read_text()
    assert "| bct | " in report and "num_epoch=1" in report
    with open(data / "exclass" / "results.csv", newline="") as file:
        rows = {(row["method"], row["test"]): row for row in csv.DictReader(file)}
    assert 0 < float(rows["bct", "1:N rank-1"]["new/new"]) <= 100
    assert rows["bct", "1:1 TAR@FAR=1e-3"]["new/old"] == ""  # fewer than a thousand impostor pairs
    assert (data / "exclass" / "compatibility.png").is_file()

    benchmark("--scenario", "exclass")
    assert len(benchmark.programs.started) == 5
    assert (data / "exclass" / "report.md").read_text() == report

    benchmark("--scenario", "opclass")  # the old model is shared
    assert benchmark.programs.started[5:] == [old, method]
    commands = (data / "opclass" / "commands.sh").read_text().splitlines()
    assert sum(line.startswith("python old_model/train.py") for line in commands) == 2
    assert sum(line.startswith("python tools/ijbc_eval.py") for line in commands) == 2 + 4 + 4


def test_results_of_other_settings_are_not_mixed_in(benchmark, data):
    for result in data.glob("seed_0/*/**/result.json"):  # models that were not tested yet are guarded too
        result.unlink()
    with pytest.raises(UserError, match=r"old_class was trained with other settings \(lr 0.1 -> 0.05\): name another"):
        benchmark("--scenario", "exclass", overrides=[*TINY, "lr=0.05"])
    assert benchmark.programs.started == []


def test_file_in_place_of_the_folder_is_told(data, monkeypatch):
    module = load_program(ROOT / "tools" / "benchmark.py")
    (data / "file").touch()
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--out", str(data / "file")])
    with pytest.raises(UserError, match="file is a file: name a folder"):
        module.main()


def test_scenario_of_another_data_set_is_told(benchmark):
    with pytest.raises(UserError, match="unknown scenario 'exbackbone_data': glyphs has opclass, opdata, ex"):
        benchmark("--scenario", "exbackbone_data")
