"""Of two runs in one folder one works; the other is refused, and touches nothing, until all ranks are gone."""

import os
import re
import time
from pathlib import Path

import pytest
import torch
from launching import Launch

from core.claims import CLAIM, claimed
from core.models.encoder import load_encoder

# Rank 1 stops at the loss of step STOP_AT: it lives, but does nothing.
PROGRAM = """
import os, signal
from core.engine.method import Method
from core.program import train_program
from core.errors import run_program
from core.heads import PartialFC
from core.heads.margins import ArcFace

class Stopping(Method):
    uses_old_model = False

    def setup(self, run):
        self.classifier = PartialFC(ArcFace(16.0, 0.2), run.settings.embedding_size, run.data.num_classes)
        self.calls, self.stop_at = 0, int(os.environ.get("STOP_AT", "0"))

    def loss(self, batch):
        self.calls += 1
        if self.calls == self.stop_at and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGSTOP)
        return {"cls": self.classifier(batch.embedding, batch.label)}

run_program(lambda: train_program(Stopping(), __file__, "test"))
"""


@pytest.fixture
def start(tmp_path, tiny_records, tiny_settings):
    """Start the program on two ranks."""
    (tmp_path / "train.py").write_text(PROGRAM)
    (tmp_path / "config.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")

    def run(output: str, *overrides: str, logs: str = "", **environment: str) -> Launch:
        words = ["config.py", f"rec={tiny_records}", f"output={tmp_path / output}", *tiny_settings, "batch_size=8"]
        words += ["checkpoint_steps=3", *overrides]
        return Launch(tmp_path / "train.py", words, tmp_path / "logs" / (logs or output), 2, environment)

    return run


def refused(launch: Launch, folder: Path) -> str:
    """The line with which every rank of a start was refused, which is the same for all."""
    statuses, outputs = launch.wait()
    lines = {line for output in outputs for line in output.splitlines() if line.startswith("error: ")}
    assert statuses == [2, 2] and len(lines) == 1, outputs
    (line,) = lines
    assert f"another work holds {folder} (" in line and all("Traceback" not in output for output in outputs)
    return line


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of everything in a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("events")
    }


def assert_same_weights(*folders: Path) -> None:
    for name in ("model.pt", "classifier.pt"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in folders)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_folder_is_refused_until_the_last_rank_of_a_killed_run_is_gone(start, tmp_path):
    whole, broken = start("whole"), start("broken", STOP_AT="6")
    assert whole.wait()[0] == [0, 0]
    assert not (tmp_path / "whole" / CLAIM).exists()
    first, second = broken.processes
    while not stopped(second.pid):
        time.sleep(0.05)
    first.kill()
    first.join()
    before = files(tmp_path / "broken")
    for overrides in ((), ("resume=false", "embedding_size=4")):
        line = refused(start("broken", *overrides, logs="refused"), tmp_path / "broken")
        assert re.search(rf"\(training of \S+, process {first.pid} on \S+ since ", line)
    assert files(tmp_path / "broken") == before
    assert load_encoder(tmp_path / "broken").embedding_size == 8  # a test of the model may go on all the while
    second.kill()
    second.join()
    assert start("broken", logs="again").wait()[0] == [0, 0]
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_of_two_runs_that_start_at_the_same_instant_one_trains_and_the_other_is_refused(start, tmp_path):
    launches = [start("run", logs=f"log{number}") for number in range(2)]
    results = [launch.wait() for launch in launches]
    assert sorted(statuses for statuses, _ in results) == [[0, 0], [2, 2]], results
    (loser,) = (launch for launch, (statuses, _) in zip(launches, results) if statuses == [2, 2])
    refused(loser, tmp_path / "run")
    assert start("alone").wait()[0] == [0, 0]
    assert_same_weights(tmp_path / "alone", tmp_path / "run")


def test_fit_of_a_map_in_a_folder_that_is_held_is_refused(tmp_path):
    program = Path(__file__).parents[3] / "methods" / "fct" / "train.py"
    (tmp_path / "config.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")
    with claimed(tmp_path / "run", "fit of fct", make=True):
        launch = Launch(
            program, [tmp_path / "config.py", f"output={tmp_path / 'run'}", "device=cpu"], tmp_path / "logs"
        )
        (status,), (output,) = launch.wait()
        assert status == 2 and f"(fit of fct, process {os.getpid()} on " in output.splitlines()[-1]
        assert os.listdir(tmp_path / "run") == [CLAIM]
