"""The training loop: its numbers against a plain loop, its files, precision, verification sets, several ranks."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import Launch, load_program
from tiny import build_linear, write_verification_set
from torch.nn import functional

import core.engine.trainer
from core.data.records import RecordDataset
from core.data.samplers import TrainSampler
from core.engine import checkpoint
from core.engine.trainer import Trainer
from core.engine.window import StepWindow
from core.errors import UserError
from core.evaluation.validation import Validation
from core.evaluation.verification import verification_accuracy
from core.files import ROOT
from core.heads import PartialFC
from core.models.encoder import load_encoder
from core.settings import load_settings

LINEAR = f"""
import runpy
import core.engine.trainer
from tiny import build_linear
core.engine.trainer.build_backbone = build_linear
runpy.run_path({str(ROOT / "old_model" / "train.py")!r}, run_name="__main__")
"""


@pytest.fixture
def settings(tmp_path, tiny_records, tiny_settings) -> Callable[..., list[str]]:
    """Command-line arguments of a tiny run in tmp_path / output."""
    (tmp_path / "config.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")

    def arguments(output: str, *overrides: str) -> list[str]:
        own = [f"rec={tiny_records}", f"output={tmp_path / output}", "augment=()"]
        return [str(tmp_path / "config.py"), *tiny_settings, *own, *overrides]

    return arguments


@pytest.fixture
def build(settings, ranks) -> Callable[..., Trainer]:
    """A trainer in this process."""
    old_model = load_program(ROOT / "old_model" / "train.py")

    def build_trainer(output: str, *overrides: str) -> Trainer:
        path, *rest = settings(output, *overrides)
        return Trainer(load_settings(path, rest), old_model.OldModel(), "old_model", ranks, Validation)

    return build_trainer


@pytest.fixture
def linear(monkeypatch):
    monkeypatch.setattr(core.engine.trainer, "build_backbone", build_linear)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_close(first: Path, second: Path, tolerance: float):
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=0, atol=tolerance), name


def plain_loop(images, labels, backbone, head, epochs, clip, lr=0.02, decay=5e-4):
    """ArcFace (s 16, m 0.5), SGD with momentum, polynomial decay of power 2, in float64. Losses, norms, weights."""
    weight, bias = (parameter.detach().double().requires_grad_() for parameter in backbone.parameters())
    head = head.detach().double().requires_grad_()
    buffers = [torch.zeros_like(parameter) for parameter in (weight, bias, head)]
    losses, norms, step = [], [], 0
    sampler = TrainSampler(len(labels), 16, 0, 1, 666)
    for epoch in range(epochs):
        for rows in sampler.epoch(epoch):
            rate = lr * (1 - step / (epochs * sampler.steps_per_epoch)) ** 2
            x = (images[rows].double() / 127.5 - 1).permute(0, 3, 1, 2).flatten(1)
            cosines = functional.normalize(x @ weight.T + bias) @ functional.normalize(head).T
            margin = 0.5 * functional.one_hot(labels[rows], head.shape[0])
            loss = functional.cross_entropy(16 * torch.cos(torch.acos(cosines) + margin), labels[rows])
            gradients = list(torch.autograd.grad(loss, (weight, bias, head)))
            norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients[:2]))
            for number in (0, 1):
                gradients[number] = gradients[number] * min(1.0, clip / norm)
            with torch.no_grad():
                for parameter, gradient, buffer in zip((weight, bias, head), gradients, buffers):
                    buffer.mul_(0.9).add_(gradient + decay * parameter)
                    parameter -= rate * buffer
            losses.append(loss.item())
            norms.append(norm.item())
            step += 1
    return losses, norms, weight, bias, head


def test_filter_of_classes_beside_a_softmax_is_refused_before_the_images_are_looked_for(build):
    with pytest.raises(UserError, match="interclass_filtering_threshold is one of cosines, but the loss is softmax"):
        build("run", "loss=softmax", "interclass_filtering_threshold=0.4", "rec=nowhere")


def test_classes_are_sampled_in_the_first_epochs_alone_and_a_resumed_run_knows_which(build, tmp_path, monkeypatch):
    rates = []
    forward = PartialFC.forward
    monkeypatch.setattr(
        PartialFC, "forward", lambda head, *given: rates.append(head.sample_rate) or forward(head, *given)
    )
    sampled = ("sample_rate=0.5", "sampled_epochs=1", "num_epoch=3", "checkpoint_steps=3")
    build("run", *sampled).train()
    assert rates == [0.5] * 4 + [1.0] * 8
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_12")
    (tmp_path / "run" / "model.pt").unlink()
    rates.clear()
    resumed = build("run", *sampled)
    resumed.train()
    assert resumed.checkpoint.name == "step_9" and rates == [1.0] * 3


def test_training_gives_the_losses_and_weights_of_a_plain_loop(build, linear, tiny_records, tmp_path):
    trainer = build("run", "frequent=1", "clip_norm=1.0")
    images, labels = RecordDataset(tiny_records).batch(np.arange(72))
    tensors = torch.from_numpy(images), torch.from_numpy(labels)
    expected = plain_loop(*tensors, trainer.backbone, trainer.method.classifier.weight, 2, clip=1.0)
    losses, norms, weight, bias, head = expected
    trainer.train()
    lines = logged(tmp_path / "run")
    assert max(norms) > 1.0  # clipping took place
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-4)
    assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-3)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[4]["lr"] == pytest.approx(0.02 * 0.25) and lines[3]["epoch"] == 1.0
    trained = weights(tmp_path / "run")
    assert torch.allclose(trained["1.weight"].double(), weight, atol=1e-5)
    assert torch.allclose(trained["1.bias"].double(), bias, atol=1e-5)
    assert torch.allclose(trainer.method.classifier.weight.double(), head, atol=1e-5)


def test_two_micro_batches_of_8_train_as_one_batch_of_16(build, linear, tmp_path):
    build("whole").train()
    build("parts", "batch_size=8", "gradient_acc=2").train()
    assert_close(tmp_path / "whole", tmp_path / "parts", 1e-6)
    for one, two in zip(logged(tmp_path / "whole"), logged(tmp_path / "parts")):
        assert one["step"] == two["step"] and one["loss"] == pytest.approx(two["loss"], abs=1e-5)


@pytest.mark.parametrize("loss", ["arcface", "softmax"])
def test_two_ranks_train_as_one_with_the_same_total_batch(settings, tmp_path, loss):
    (tmp_path / "linear.py").write_text(LINEAR)
    for name in ("one", "two", "three"):
        write_verification_set(tmp_path / f"{name}.bin")
    extra = [f"loss={loss}", f"rec_val={tmp_path}", "val_targets=['one','two','three']", "verbose=5", "frequent=1"]
    runs = {
        ranks: Launch(
            tmp_path / "linear.py",
            settings(f"run{ranks}", f"batch_size={16 // ranks}", *extra),
            tmp_path / f"logs{ranks}",
            ranks,
        )
        for ranks in (1, 2)
    }
    for ranks, run in runs.items():
        statuses, outputs = run.wait()
        assert statuses == [0] * ranks, outputs
    assert_close(tmp_path / "run1", tmp_path / "run2", 1e-5)
    one, two = (logged(tmp_path / f"run{ranks}") for ranks in runs)
    assert [line["step"] for line in one] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 8] == [line["step"] for line in two]
    for first, second in zip(one, two):
        for name in set(first) - {"images_per_second"}:
            assert first[name] == pytest.approx(second[name], rel=1e-4), name
    assert set(one[5]) == {"step", "accuracy/one", "accuracy/two", "accuracy/three"}


def test_run_folder_holds_what_the_contract_names(build, tmp_path):
    build("run", "network_options.dropout=0.1").train()
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints", "classifier.pt", "config.json", "metrics.jsonl", "model.pt", "tensorboard"
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    expected = {"network": "r18", "embedding_size": 8, "image_size": 16, "normalization": "face", "num_classes": 6,
                "num_images": 72, "old_model_fingerprint": None, "loss": "arcface", "lr": 0.02,
                "network_options": {"width": 8, "depth": 1, "dropout": 0.1}}  # fmt: skip
    assert expected.items() <= config.items() and config["version"].startswith("0.")
    assert all(not isinstance(value, dict) for key, value in config.items() if key != "network_options")
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in weights(folder).values())
    assert not any("head" in name or "method" in name for name in weights(folder))
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step_4", "step_8"]
    assert list((folder / "tensorboard").glob("events*"))
    assert set(logged(folder)[0]) == {"step", "epoch", "loss", "loss/cls", "lr", "grad_norm", "images_per_second"}


def test_verification_sets_of_any_image_size_are_tested_in_eval_mode_and_leave_the_training_as_it_is(build, tmp_path):
    for name, size in (("same", 16), ("larger", 24)):
        write_verification_set(tmp_path / f"{name}.bin", size)
    build("with", f"rec_val={tmp_path}", "val_targets=('same','larger')", "verbose=3").train()
    build("without").train()
    tests = [line for line in logged(tmp_path / "with") if "accuracy/same" in line]
    assert [line["step"] for line in tests] == [3, 6, 8]
    encoder = load_encoder(tmp_path / "with")
    for name in ("same", "larger"):
        accuracy = verification_accuracy(encoder, tmp_path / f"{name}.bin", 7, image_size=16).accuracy
        assert tests[-1][f"accuracy/{name}"] == accuracy > 0.4
    first, second = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("overrides", [("optimizer=adamw", "lr=0.003"), ("precision=bf16",), ("schedule=cosine",)])
def test_loss_falls_with(build, tmp_path, overrides):
    build("run", "num_epoch=4", *overrides).train()
    losses = [line["loss"] for line in logged(tmp_path / "run")]
    assert losses[-1] < losses[0] / 2 and all(map(math.isfinite, losses))


def test_bf16_begins_near_fp32(build, tmp_path):
    for precision in ("fp32", "bf16"):
        build(precision, f"precision={precision}", "num_epoch=1", "frequent=1").train()
    first, second = (logged(tmp_path / precision)[0]["loss"] for precision in ("fp32", "bf16"))
    assert first != second and first == pytest.approx(second, rel=0.02)


def test_fp16_skips_steps_that_overflow_and_then_trains(build, tmp_path):
    trainer = build("run", "precision=fp16", "num_epoch=6", "frequent=1")
    before = [parameter.detach().clone() for parameter in trainer.backbone.parameters()]
    batches = trainer._batches()
    trainer.window = StepWindow(trainer.ranks)
    trainer._train_step([next(batches)])
    assert trainer.scaler.get_scale() == 2**15  # the first step overflowed with the initial scale of 2 ** 16
    assert all(torch.equal(one, two) for one, two in zip(before, trainer.backbone.parameters()))
    trainer.train()
    lines = logged(tmp_path / "run")
    assert lines[0]["grad_norm"] is None and 0 < lines[-1]["loss_scale"] < 2**15
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    position = json.loads((tmp_path / "run" / "checkpoints" / "step_24" / "position.json").read_text())
    assert position["scaler"]["scale"] == lines[-1]["loss_scale"]
    resumed = build("run", "precision=fp16", "num_epoch=7")
    assert resumed.scaler.get_scale() == lines[-1]["loss_scale"]


def test_fp16_trains_with_adamw(build, tmp_path):
    build("run", "precision=fp16", "optimizer=adamw", "lr=0.003", "num_epoch=6", "frequent=1").train()
    lines = logged(tmp_path / "run")
    assert lines[0]["grad_norm"] is None and lines[-1]["loss"] < lines[0]["loss"] / 2


def test_gradients_are_clipped_to_the_norm_that_is_set_and_zero_leaves_them_alone(build, monkeypatch):
    norms = {}
    for clip_norm in (0.0, 0.01, 1e9):
        trainer = build(f"run_{clip_norm}", f"clip_norm={clip_norm}")
        monkeypatch.setattr(trainer.optimizer, "zero_grad", lambda **_: None)
        trainer.window = StepWindow(trainer.ranks)
        trainer._train_step([next(trainer._batches())])
        gradients = [parameter.grad for parameter in trainer.backbone.parameters() if parameter.requires_grad]
        norms[clip_norm] = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    assert norms[0.0] == norms[1e9] > 0.1 and norms[0.01] == pytest.approx(0.01, rel=1e-4)


def test_checkpoint_without_this_devices_random_state_goes_on(build, monkeypatch):
    build("run", "num_epoch=1").train()
    state = checkpoint._random_state
    monkeypatch.setattr(checkpoint, "_random_state", lambda ranks: {**state(ranks), "cuda": torch.zeros(16)})
    trainer = build("run", "num_epoch=2")  # the CPU's was saved, no GPU's
    assert (trainer.epoch, trainer.step) == (1, 4)


def test_fp16_overflow_is_skipped_by_two_ranks_together(settings, tmp_path):
    run = Launch(
        ROOT / "old_model" / "train.py",
        settings("run", "precision=fp16", "num_epoch=6", "frequent=1", "batch_size=8"),
        tmp_path / "logs",
        ranks=2,
    )
    statuses, outputs = run.wait()
    assert statuses == [0, 0], outputs
    lines = logged(tmp_path / "run")
    assert lines[0]["grad_norm"] is None and lines[-1]["loss"] < lines[0]["loss"] / 2


def test_model_that_a_kill_kept_from_being_written_is_written_when_the_run_is_started_again(build, tmp_path):
    build("run").train()
    model = tmp_path / "run" / "model.pt"
    final = weights(tmp_path / "run")
    stale = {name: torch.zeros_like(tensor) for name, tensor in final.items()}
    for spoil in (model.unlink, lambda: torch.save(stale, model)):
        spoil()
        build("run").train()
        again = weights(tmp_path / "run")
        assert all(torch.equal(final[name], again[name]) for name in final)


def test_network_options_with_four_depths_go_on_from_their_checkpoint(build, tmp_path):
    depths = "network_options.depth=(1,1,1,1)"
    build("run", depths, "num_epoch=1").train()
    trainer = build("run", depths)
    assert (trainer.epoch, trainer.step) == (1, 4)


def test_checkpoint_that_a_kill_left_unfinished_is_removed_and_the_last_two_whole_ones_are_kept(build, tmp_path):
    unfinished = tmp_path / "run" / "checkpoints" / ".step_999.0123abcd.tmp"
    (unfinished / "step_999").mkdir(parents=True)
    (unfinished / "step_999.lock").touch()
    build("run", "checkpoint_steps=2").train()
    assert sorted(path.name for path in unfinished.parent.iterdir()) == ["step_6", "step_8"]


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_images_decoded_on_the_device_train_the_same_weights(tmp_path, build, linear):
    build("workers").train()
    build("device", "decode_on=device").train()
    assert_close(tmp_path / "workers", tmp_path / "device", tolerance=0)
