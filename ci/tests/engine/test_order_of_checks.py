"""Mistakes are told in an order that lets nobody wait: settings, run folder, old model, verification sets, images."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_map_run, write_run_folder, write_verification_set

import core.engine.trainer
from core.engine.checkpoint import latest_checkpoint, read_position
from core.engine.run_folder import MetricsLog, RunFolder
from core.engine.trainer import Trainer
from core.errors import UserError
from core.evaluation.validation import Validation
from core.files import ROOT
from core.program import load_method
from core.settings import load_settings


@pytest.fixture
def make(tmp_path, tiny_records, tiny_settings, ranks) -> Callable[..., Trainer]:
    """A trainer of a method, in this process."""

    def make_trainer(method: str, *overrides: str) -> Trainer:
        kind = load_method(ROOT / "methods" / method / "train.py")
        words = [f"rec={tiny_records}", f"output={tmp_path / 'run'}", *tiny_settings, *overrides]
        settings = load_settings(ROOT / "configs" / "base.py", words, kind.settings_type)
        return Trainer(settings, kind, method, ranks, Validation)

    return make_trainer


def test_each_mistake_is_told_before_those_that_take_longer_to_find(make, tmp_path, monkeypatch):
    write_run_folder(tmp_path / "old")
    write_verification_set(tmp_path / "lfw.bin")
    wrong_and_right = {
        "augment": ("mirror", "flip", "unknown augmentation 'mirror'"),
        "margin_scale": ("0", "16", "margin_scale must be above 0"),
        "network_options.wide": ("3", None, "network r18 has no option 'wide'"),
        "batch_size": ("1", "16", "batch_size is 1"),
        "output": ("/proc/run", f"{tmp_path / 'run'}", "cannot write /proc/run: No such file or directory"),
        "old_model": ("/nowhere/old", f"{tmp_path / 'old'}", "model not found: /nowhere/old"),
        "embedding_size": ("16", "8", "has embeddings of size 8, the new one 16"),
        "features": ("/proc/features", f"{tmp_path / 'features'}", "cannot write /proc/features: "),
        "old_classifier": ("own", "means", "the old model has no classifier of its own"),
        "val_targets": ("cfp_fp.bin", "lfw.bin", "verification set not found: .*/cfp_fp.bin"),
    }
    present = {key: wrong for key, (wrong, _, _) in wrong_and_right.items()} | {"rec_val": str(tmp_path)}
    opened = []
    monkeypatch.setattr(core.engine.trainer, "open_training_data", opened.append)
    for key, (_, right, message) in wrong_and_right.items():
        with pytest.raises(UserError, match=message):
            make("bct", *(f"{name}={value}" for name, value in present.items()))
        assert not opened and not (tmp_path / "run").exists() and not (tmp_path / "features").exists()
        present |= {key: right} if right else {}
        if right is None:
            del present[key]
    with pytest.raises(AttributeError):  # nothing is wrong: the images are opened
        make("bct", *(f"{name}={value}" for name, value in present.items()))
    assert len(opened) == 1


@pytest.mark.parametrize("method", ["lce", "unibct refine_epochs=()", "advbct"])
def test_old_model_of_unknown_classes_is_told_before_images_are_read(make, tmp_path, method):
    folder = write_run_folder(tmp_path / "old")
    shutil.copy(folder / "model.pt", tmp_path / "old.pt")
    old = f"old_model={tmp_path / 'old.pt'}"
    method, *options = *method.split(), "rec=/nowhere/train", "old_classes_only=true", old
    with pytest.raises(UserError, match=r"old\.pt is a bare state dict, .*: name it with old_network=$"):
        make(method, *options)
    with pytest.raises(UserError, match=r"old_model .*old\.pt is not a run folder, so the classes"):
        make(method, *options, "old_network=iresnet18")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "num_classes=7",
            r"'num_classes' is 7, but .*train has 6: name the images that are meant, or leave the key",
        ),
        ("num_image=71", r"'num_image' is 71, but .*train has 72: "),
        ("num_classes=93431", r"'num_classes' is 93431, but .*train has 6: "),
    ],
)
def test_counts_that_a_config_names_must_be_those_of_the_images(make, tmp_path, override, message):
    write_run_folder(tmp_path / "old")
    with pytest.raises(UserError, match=message):
        make("l2", f"old_model={tmp_path / 'old'}", override)


def test_counts_and_names_as_arcface_torch_has_them_are_taken(make, tmp_path):
    write_run_folder(tmp_path / "old")
    words = [f"old_model={tmp_path / 'old'}", f"features={tmp_path / 'features'}", "network=iResNet18"]
    trainer = make("l2", *words, "num_classes=6", "num_image=72", "num_epoch=1")
    trainer.train()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["network"], config["num_classes"], config["num_images"]) == ("r18", 6, 72)
    assert RunFolder(tmp_path / "run").changed_settings(make("l2", *words, "num_epoch=1").settings) == []


def test_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    step = tmp_path / "step_4"
    step.mkdir()
    (step / "position.json").write_text("{}")

    def refuse(self: Path, *arguments: object, **options: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        with pytest.raises(UserError, match="position of a checkpoint cannot be read: .*: Permission denied"):
            read_position(step)
    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(PermissionError):
        latest_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_metrics_that_cannot_be_written_are_one_line_with_their_file(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(UserError, match=f"^cannot write {tmp_path / 'tensorboard'}: "):
        MetricsLog(folder, 0)
    with pytest.raises(UserError, match=f"^cannot write {tmp_path / 'tensorboard'}: .* is no folder"):
        folder.require_writable()
    (tmp_path / "tensorboard").unlink()
    metrics = MetricsLog(folder, 0)
    metrics.file.close()
    metrics.file = open("/dev/full", "a", buffering=1)
    message = f"^cannot write {tmp_path / 'metrics.jsonl'}: it needs .*No space left on device.*make room there"
    with pytest.raises(UserError, match=message):
        metrics.write(1, {"loss": 1.0})


def test_output_is_neither_a_map_nor_the_model_that_a_map_in_place_of_the_old_model_takes(make, tmp_path):
    old, newer = write_run_folder(tmp_path / "old"), write_run_folder(tmp_path / "newer", 1)
    mapped = write_map_run(tmp_path / "mapped", old, newer, "old_to_new")
    with pytest.raises(UserError, match=r"output .*/old is the old model's own run folder: name another one$"):
        make("bct", f"old_model={mapped}", f"output={old}", "resume=false")
    side = write_run_folder(tmp_path / "side", 2)
    sided = write_map_run(tmp_path / "sided", old, newer, "old_to_new", side=side)
    with pytest.raises(UserError, match=r"output .*/side is the old model's own run folder: name another one$"):
        make("bct", f"old_model={sided}", f"output={side}", "resume=false")
    with pytest.raises(UserError, match=r"output .*/mapped is the run folder of a map: name another one$"):
        make("bct", f"old_model={newer}", f"output={mapped}", "resume=false")
