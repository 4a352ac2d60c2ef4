"""A run that is killed and started again ends as an unbroken one; checkpoints serve any number of ranks."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from launching import Launch
from torch.distributed import checkpoint as dcp

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled"
)  # reading a checkpoint in the test itself

# Trains through the real program. KILL_AT makes rank 0 kill itself without warning in the loss of that step.
PROGRAM = """
import os, signal, sys, torch
from core.engine.method import Method
from core.program import train_program
from core.errors import run_program
from core.heads import PartialFC
from core.heads.margins import ArcFace

class Killable(Method):
    uses_old_model = False

    def setup(self, run):
        size, rate = run.settings.embedding_size, run.settings.sample_rate
        self.classifier = PartialFC(ArcFace(16.0, 0.2), size, run.data.num_classes, rate)
        self.calls = 0
        self.kill_at = int(os.environ.get("KILL_AT", "0"))
        self.poison_at = int(os.environ.get("POISON_AT", "0"))

    def loss(self, batch):
        self.calls += 1
        if self.calls == self.kill_at and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        loss = self.classifier(batch.embedding, batch.label)
        return {"cls": loss * float("nan") if self.calls == self.poison_at else loss}

run_program(lambda: train_program(Killable(), __file__, "test"))
"""


@pytest.fixture
def start(tmp_path, tiny_records, tiny_settings):
    """Start the program on some ranks."""
    (tmp_path / "train.py").write_text(PROGRAM)
    (tmp_path / "config.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")

    def run(output: str, *overrides: str, ranks: int = 1, **environment: str) -> Launch:
        arguments = ["config.py", f"rec={tiny_records}", f"output={tmp_path / output}", *tiny_settings]
        arguments += ["checkpoint_steps=3", "augment=['flip','noise']", "sample_rate=0.7", *overrides]
        return Launch(tmp_path / "train.py", arguments, tmp_path / "logs" / output, ranks, environment)

    return run


@pytest.fixture
def launch(start):
    """Run the program on some ranks; returns the exit statuses and rank 0's output."""

    def run(*arguments, **options) -> tuple[list[int], str]:
        statuses, outputs = start(*arguments, **options).wait()
        return statuses, outputs[0]

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)


def checkpoint_tensor(folder: Path, step: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    state = {name: torch.zeros(shape)}
    dcp.load(state, checkpoint_id=folder / "checkpoints" / f"step_{step}", no_dist=True)
    return state[name]


@pytest.mark.parametrize("ranks", [1, 2, 3])  # three add gradients in an order that DDP's buckets decide
def test_killed_run_ends_with_the_weights_of_an_unbroken_run(start, launch, tmp_path, ranks):
    batch = f"batch_size={16 // ranks}"
    whole = start("whole", batch, ranks=ranks)
    broken = start("broken", batch, ranks=ranks, KILL_AT="6")
    assert whole.wait()[0] == [0] * ranks
    assert broken.wait(kill_others_after_first=True)[0][0] == -signal.SIGKILL
    assert sorted(p.name for p in (tmp_path / "broken" / "checkpoints").iterdir()) == ["step_3", "step_4"]
    assert launch("broken", batch, ranks=ranks)[0] == [0] * ranks
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    heads = [checkpoint_tensor(tmp_path / run, 8, "method.classifier.weight", (6, 8)) for run in ("whole", "broken")]
    assert torch.equal(*heads)
    steps = [json.loads(line)["step"] for line in (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8]


def test_checkpoint_of_two_ranks_goes_on_with_three_and_then_one(launch, tmp_path):
    assert launch("run", "batch_size=8", "num_epoch=1", ranks=2)[0] == [0, 0]
    head = checkpoint_tensor(tmp_path / "run", 4, "method.classifier.weight", (6, 8))
    momentum = checkpoint_tensor(tmp_path / "run", 4, "optimizer.method.classifier.weight.momentum_buffer", (6, 8))
    assert head.abs().sum() > 0 and momentum.abs().sum() > 0
    # a learning rate of almost zero leaves the weights as they were loaded: what is saved again must be the same
    still = ("lr=1e-30", "weight_decay=0.0", "momentum=1.0")
    assert launch("run", "batch_size=8", "num_epoch=2", *still, ranks=3)[0] == [0, 0, 0]
    assert torch.allclose(checkpoint_tensor(tmp_path / "run", 7, "method.classifier.weight", (6, 8)), head, atol=1e-6)
    assert launch("run", "batch_size=16", "num_epoch=3", *still)[0] == [0]
    assert torch.allclose(checkpoint_tensor(tmp_path / "run", 11, "method.classifier.weight", (6, 8)), head, atol=1e-6)


def test_loss_that_is_not_a_number_stops_with_step_and_last_good_checkpoint(launch, tmp_path):
    statuses, errors = launch("run", POISON_AT="6")
    assert statuses == [2]
    line = errors.strip().splitlines()[-1]
    assert line.startswith("error: ") and "step 6" in line and "step_4" in line
    assert not any("nan" in str(tensor.sum()) for tensor in weights(tmp_path / "run").values())


def test_finished_run_started_again_changes_nothing(launch, tmp_path):
    assert launch("run")[0] == [0]
    before = (tmp_path / "run" / "model.pt").stat().st_mtime_ns
    statuses, errors = launch("run")
    assert statuses == [0] and "already" in errors
    assert (tmp_path / "run" / "model.pt").stat().st_mtime_ns == before


def test_resume_with_other_settings_is_refused_and_resume_false_starts_over(launch, tmp_path):
    assert launch("run", "num_epoch=1")[0] == [0]
    for override, told in (
        ("embedding_size=4", "another embedding_size (8, now 4)"),
        ("seed=7", "another seed"),
        ("loss=softmax", "another loss ('arcface', now 'softmax')"),
        ("momentum=0", "another momentum (True, now False)"),
    ):
        statuses, errors = launch("run", override)
        assert statuses == [2] and told in errors.strip().splitlines()[-1]
    assert launch("run", "embedding_size=4", "resume=false", "num_epoch=1")[0] == [0]
    assert weights(tmp_path / "run")["features.weight"].shape == (4,)


def test_resume_with_a_setting_that_may_change_goes_on_and_names_it(launch, tmp_path):
    assert launch("run", "num_epoch=1", "weight_decay=0.01")[0] == [0]
    statuses, errors = launch("run", "num_epoch=2", "weight_decay=0.01")
    assert statuses == [0] and "other settings than before: num_epoch 1 -> 2\n" in errors


def test_what_people_keep_beside_checkpoints_is_left_alone(launch, tmp_path):
    assert launch("run", "num_epoch=1")[0] == [0]
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(checkpoints / "step_4", checkpoints / "step_4.bak")
    (checkpoints / "notes.tmp").write_text("mine")
    assert launch("run", "num_epoch=3")[0] == [0]
    assert {path.name for path in checkpoints.iterdir()} == {"step_4.bak", "notes.tmp", "step_9", "step_12"}


def test_model_without_checkpoint_is_not_trained_over_by_accident(launch, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.pt").write_bytes(b"precious")
    statuses, errors = launch("run")
    assert statuses == [2] and "resume=false" in errors.strip().splitlines()[-1]
    assert (tmp_path / "run" / "model.pt").read_bytes() == b"precious"
