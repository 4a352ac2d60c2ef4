"""A user's mistake ends a training program with status 2 and one `error: ` line, and leaves no half-made output."""

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import Launch
from tiny import write_records, write_run_folder

from core.claims import claimed
from core.data.recordio import RecordWriter
from core.data.records import RecordDataset
from core.files import ROOT

OLD_MODEL, MIXBCT = ROOT / "old_model" / "train.py", ROOT / "methods" / "mixbct" / "train.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with good and bad inputs."""
    place = tmp_path_factory.mktemp("place")
    (place / "config.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")
    (place / "broken.py").write_text("config = {\n")
    labels = sorted(list(range(6)) * 12)
    write_records(place / "train", labels)
    write_records(place / "other", labels, seed=1)
    write_run_folder(place / "old")
    write_run_folder(place / "wide", embedding_size=16)
    shutil.copy(place / "old" / "model.pt", place / "old.pt")
    (place / "pickle.pt").write_bytes(pickle.dumps({"weights": [Path("x")]}))
    (place / "cut.bin").write_bytes(pickle.dumps(([b"image"] * 20, [True] * 10))[:-9])
    (place / "file").write_text("precious")
    good = RecordDataset(place / "train")
    with RecordWriter(place / "damaged") as writer:
        for row in range(72):
            writer.write(row, float(labels[row]), b"\xff\xd8\xff no JPEG" if row == 50 else good.payload(row))
    shutil.copy(place / "train.idx", place / "cut.idx")
    content = (place / "train.rec").read_bytes()
    (place / "cut.rec").write_bytes(content[: len(content) * 2 // 3])
    return place


@pytest.fixture
def launch(place, tmp_path, tiny_settings):
    """Run a program; returns its status and output. `{place}` in overrides stands for the folder of inputs."""

    def launch_program(program: Path, *overrides: str, config: str = "config.py") -> tuple[int, str]:
        arguments = [str(place / config), f"rec={place / 'train'}", f"output={tmp_path / 'run'}", *tiny_settings]
        if program == MIXBCT:
            arguments += [f"old_model={place / 'old'}", f"features={tmp_path / 'features'}"]
        arguments += [override.format(place=place) for override in overrides]
        (status,), (output,) = Launch(program, arguments, tmp_path / "logs").wait()
        return status, output

    return launch_program


@pytest.fixture
def fail(launch):
    """Run a program that fails as the contract says; returns its error line."""
    return lambda *arguments, **options: the_error(*launch(*arguments, **options))


def the_error(status: int, output: str) -> str:
    """The error line of a program's output, which keeps the contract."""
    lines = output.rstrip("\n").split("\n")
    assert status == 2, output
    assert [line for line in lines if line.startswith("error: ")] == [lines[-1]], output
    assert "Traceback" not in output
    return lines[-1]


MISTAKES = {
    "misspelt key": ("batchsize=3", "unknown config key 'batchsize' in the command line; did you mean 'batch_size'?"),
    "value of another type": ("lr=fast", "'lr' in the command line must be a number >= 0, got 'fast'"),
    "value out of range": ("frequent=0", "'frequent' in the command line must be a whole number >= 1, got 0"),
    "missing records": ("rec={place}/nowhere", r"record file not found: .*nowhere\.rec"),
    "no records": ("rec=none", "config key 'rec' is not set"),
    "batch larger than the data": (
        "batch_size=73",
        "takes 73 images .* the data has only 72: set a smaller batch_size",
    ),
    "batch of one": ("batch_size=1", "batch_size is 1: r18 normalises its embeddings over a batch; set 2 or more"),
    "unknown network": ("network=r19", "unknown network 'r19': did you mean r18"),
    "unknown option of the network": ("network_options.wide=3", "network r18 has no option 'wide'"),
    "image size among the options": ("network_options.image_size=32", "set the config key 'image_size'"),
    "unknown optimizer": ("optimizer=adam", "'optimizer' in the command line must be 'sgd' or 'adamw', got 'adam'"),
    "unknown schedule": ("schedule=linear", "must be 'polynomial', 'step' or 'cosine', got 'linear'"),
    "unknown precision": ("precision=int8", "must be 'auto', 'bf16', 'fp16' or 'fp32', got 'int8'"),
    "unknown device": ("device=tpu", "must be 'auto', 'cuda' or 'cpu', got 'tpu'"),
    "unknown augmentation": ("augment=mirror", "unknown augmentation 'mirror'"),
    "unknown normalization": ("normalization=none_such", "must be 'face' or 'imagenet', got 'none_such'"),
    "unknown loss": ("loss=triplet", "must be 'arcface', 'cosface' or 'softmax', got 'triplet'"),
    "sample rate of zero": ("sample_rate=0", "'sample_rate' in the command line must be a number > 0 and <= 1, got 0"),
    "missing verification set": ("rec_val={place} val_targets=lfw", r"verification set not found: .*lfw\.bin"),
    "damaged verification set": ("rec_val={place} val_targets=cut", r"cut\.bin"),
    "no folder of verification sets": ("val_targets=lfw", "'rec_val', their folder, is not set"),
}
MIXBCT_MISTAKES = {
    "no old model": ("old_model=none", "config key 'old_model' is not set"),
    "missing old model": ("old_model={place}/nowhere", "model not found: .*nowhere"),
    "pickle in place of weights": ("old_model={place}/pickle.pt old_network=r18", "cannot read weights from .*pickle"),
    "state dict without its network": ("old_model={place}/old.pt", "name it with old_network=$"),
    "weights of another network": ("old_model={place}/old.pt old_network=mbf", "are not those of network mbf: "),
    "run folder of another network": ("old_network=r50", "holds network r18, not r50"),
    "other embedding size": ("old_model={place}/wide", "size 16, the new one 8: set embedding_size=16"),
    "output that is the old model": ("output={place}/old old_model={place}/old", "is the old model's own run folder"),
    "share above one": ("mix_ratio=1.5", "'mix_ratio' in the command line must be a number >= 0 and <= 1, got 1.5"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_reported_and_makes_no_run_folder(fail, tmp_path, name):
    overrides, message = MISTAKES[name]
    assert re.search(message, fail(OLD_MODEL, *overrides.split()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", MIXBCT_MISTAKES)
def test_mistake_with_the_old_model_is_reported_and_makes_no_run_folder(fail, tmp_path, name):
    overrides, message = MIXBCT_MISTAKES[name]
    assert re.search(message, fail(MIXBCT, *overrides.split()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("nowhere.py", r"config not found: .*nowhere\.py"),
        ("broken.py", r"broken\.py, line 1, cannot be read: SyntaxError"),
    ],
)
def test_missing_or_broken_config_is_reported(fail, tmp_path, config, message):
    assert re.search(message, fail(OLD_MODEL, config=config))
    assert not (tmp_path / "run").exists()


def test_output_that_is_a_file_is_reported_and_kept(fail, place):
    assert "file is a file: name a folder" in fail(OLD_MODEL, "output={place}/file")
    assert (place / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("rec", "message"), [("cut", r"cut\.rec: record \d+ is damaged"), ("damaged", r"damaged\.rec: record 50 ")]
)
def test_damaged_records_are_told_with_file_and_record_by_training_and_extraction(fail, tmp_path, rec, message):
    assert re.search(message, fail(OLD_MODEL, f"rec={{place}}/{rec}"))
    assert not (tmp_path / "run" / "model.pt").exists()
    assert re.search(message, fail(MIXBCT, f"rec={{place}}/{rec}"))
    assert not list(tmp_path.glob("features*")) and not (tmp_path / "run" / "model.pt").exists()


def test_store_of_other_data_or_of_another_old_model_is_reported_and_left_as_it_is(launch, fail, place, tmp_path):
    settings = ("num_epoch=1", f"output={tmp_path / 'good'}")
    assert launch(MIXBCT, *settings)[0] == 0
    kept = (tmp_path / "features" / "features.npy").stat()
    line = fail(MIXBCT, "rec={place}/other")
    assert str(place / "train") in line and str(place / "other") in line and "made from other data" in line
    shutil.copytree(place / "old", tmp_path / "another")
    state = torch.load(tmp_path / "another" / "model.pt", weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "another" / "model.pt")
    line = fail(MIXBCT, f"old_model={tmp_path / 'another'}")
    assert "made with another model or preprocessing (old, " in line and "than another (" in line
    assert (tmp_path / "features" / "features.npy").stat().st_mtime_ns == kept.st_mtime_ns
    assert not (tmp_path / "run").exists()


def test_mistake_with_resume_false_does_not_empty_the_run_folder(fail, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.pt").write_bytes(b"precious")
    fail(OLD_MODEL, "resume=false", "optimizer=adam")
    assert (tmp_path / "run" / "model.pt").read_bytes() == b"precious"


def test_damaged_checkpoint_is_reported_with_its_path_and_the_remedy(launch, fail, tmp_path):
    assert launch(OLD_MODEL)[0] == 0
    latest = tmp_path / "run" / "checkpoints" / "step_8"
    data = next(latest.glob("*.distcp"))
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    line = fail(OLD_MODEL, "num_epoch=3")
    assert (
        f"checkpoint {latest} cannot be read" in line
        and len(line) < 500
        and "delete it to resume from the one before" in line
    )
    data.write_bytes(whole)
    (latest / "position.json").write_text("{")
    line = fail(OLD_MODEL, "num_epoch=3")
    assert f"{latest}/position.json is not a readable position of a checkpoint" in line
    assert "delete the checkpoint's folder to resume from the one before" in line


def test_plain_python_ends_with_status_2_and_the_error_as_last_line_of_stderr(place, tmp_path, tiny_settings):
    commands = {
        OLD_MODEL: ["rec=nowhere", f"output={tmp_path / 'run'}"],
        MIXBCT: [
            f"rec={place / 'damaged'}",
            f"old_model={place / 'old'}",
            f"features={tmp_path / 'features'}",
            f"output={tmp_path / 'other'}",
            "num_workers=1",
        ],
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "train.py", place / "config.py", *tiny_settings, *overrides],
            cwd=program.parent, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for program, overrides in commands.items()
    ]  # fmt: skip
    for process, message in zip(processes, (f"record file not found: {ROOT}/nowhere.rec", "damaged.rec: record 50 ")):
        output, errors = process.communicate(timeout=120)
        assert message in the_error(process.returncode, errors) and output == ""
    assert list(tmp_path.iterdir()) == []


def test_torchrun_with_two_ranks_prints_one_error_line_whether_one_rank_fails_or_all(place, tmp_path, tiny_settings):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    command += [str(place / "config.py"), *tiny_settings, "batch_size=8"]
    cases = {
        "missing": (f"rec={tmp_path}/nowhere", "nowhere.rec"),
        "damaged": (f"rec={place / 'damaged'}", "damaged.rec: record 50 "),
        "held": (f"rec={place / 'train'}", rf"another work holds {tmp_path}/held \(a test, process {os.getpid()} on "),
    }
    with claimed(tmp_path / "held", "a test", make=True):
        processes = [
            subprocess.Popen(
                [*command, rec, f"output={tmp_path / name}"], cwd=ROOT / "old_model", stderr=subprocess.PIPE, text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            for name, (rec, _) in cases.items()
        ]  # fmt: skip
        for process, (_, message) in zip(processes, cases.values()):
            errors = process.communicate(timeout=120)[1]
            lines = [line for line in errors.splitlines() if line.startswith("error: ")]
            assert process.returncode != 0 and len(lines) == 1 and re.search(message, lines[0]), errors
            assert 'train.py", line' not in errors  # no traceback of ours
