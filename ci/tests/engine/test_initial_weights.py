"""A training starts from given weights, of the backbone and of the classes, on any number of ranks, and only once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import Launch, load_program
from safetensors.torch import save_file
from tiny import build_linear, write_run_folder
from torch import Tensor
from torch.nn import functional

from core.data.records import RecordDataset
from core.data.samplers import TrainSampler
from core.engine.trainer import Trainer
from core.errors import UserError
from core.files import ROOT
from core.models.encoder import load_encoder
from core.models.weights import fingerprint
from core.settings import load_settings

LINEAR = f"""
import runpy
import core.engine.trainer, core.models.weights
from tiny import build_linear
core.engine.trainer.build_backbone = core.models.weights.build_backbone = build_linear
runpy.run_path({str(ROOT / "old_model" / "train.py")!r}, run_name="__main__")
"""
D, C = 8, 6


@pytest.fixture
def arguments(tmp_path: Path, tiny_records: Path, tiny_settings: list[str]) -> Callable[..., list[str]]:
    (tmp_path / "config.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")

    def make(output: str, *overrides: str) -> list[str]:
        own = [f"rec={tiny_records}", f"output={tmp_path / output}", "augment=()", "frequent=1"]
        return [str(tmp_path / "config.py"), *tiny_settings, *own, *overrides]

    return make


@pytest.fixture
def build(arguments, ranks) -> Callable[..., Trainer]:
    old_model = load_program(ROOT / "old_model" / "train.py")

    def build_trainer(output: str, *overrides: str) -> Trainer:
        path, *rest = arguments(output, *overrides)
        return Trainer(load_settings(path, rest), old_model.OldModel(), "old_model", ranks)

    return build_trainer


def head_rows() -> Tensor:
    return torch.randn(C, D, generator=torch.Generator().manual_seed(3))


def write_head(folder: Path) -> Path:
    """As arcface_torch saves it on four ranks."""
    folder.mkdir()
    for rank, part in enumerate(head_rows().split([2, 2, 1, 1])):
        torch.save({"weight": part.clone()}, folder / f"softmax_fc_gpu_{rank}.pt")
    return folder


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)


def reference_loss(backbone: dict[str, Tensor], head: Tensor, records: Path, batch_size: int) -> float:
    """ArcFace (s 16, m 0.5) of a linear network on the first batch, in float64."""
    images, labels = (torch.from_numpy(array) for array in RecordDataset(records).batch(np.arange(72)))
    rows = next(iter(TrainSampler(72, batch_size, 0, 1, 666).epoch(0)))
    x = (images[rows].double() / 127.5 - 1).permute(0, 3, 1, 2).flatten(1)
    embeddings = functional.normalize(x @ backbone["1.weight"].double().T + backbone["1.bias"].double())
    angles = torch.acos(embeddings @ functional.normalize(head.double()).T)
    return float(
        functional.cross_entropy(
            16 * torch.cos(angles + 0.5 * functional.one_hot(labels[rows], len(head))), labels[rows]
        )
    )


def test_one_two_and_three_ranks_start_from_the_same_rows(arguments, tiny_records, tmp_path):
    torch.manual_seed(0)
    backbone = build_linear("r18", D, 16).state_dict()
    torch.save(backbone, tmp_path / "backbone.pth")
    given = [f"weights={tmp_path / 'backbone.pth'}", f"head_weights={write_head(tmp_path / 'head')}"]
    (tmp_path / "linear.py").write_text(LINEAR)
    runs = {
        num: Launch(
            tmp_path / "linear.py",
            arguments(f"run{num}", *given, f"batch_size={18 // num}", "lr=0", "num_epoch=1"),
            tmp_path / f"logs{num}",
            num,
        )
        for num in (1, 2, 3)
    }
    expected = reference_loss(backbone, head_rows(), tiny_records, 18)
    for num, run in runs.items():
        statuses, outputs = run.wait()
        assert set(statuses) == {0}, outputs
        folder = tmp_path / f"run{num}"
        for name, tensor in weights(folder / "model.pt").items():  # with lr=0 they end as they started
            assert torch.equal(tensor, backbone[name])
        assert torch.equal(weights(folder / "classifier.pt")["weight"], head_rows())
        first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        assert first["loss"] == pytest.approx(expected, abs=1e-4)
        config = config_of(folder)
        assert config["weights_fingerprint"] == fingerprint(backbone)
        assert config["head_weights_fingerprint"] == fingerprint({"weight": head_rows()})
        assert [f"{key}={config[key]}" for key in ("weights", "head_weights")] == given


def test_a_resumed_run_needs_no_files_and_ends_with_equal_bits(build, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    folder, head = write_run_folder(tmp_path / "first"), write_head(tmp_path / "head")
    given = [f"weights={folder}", f"head_weights={head / 'softmax_fc_gpu_*.pt'}"]
    build("whole", *given).train()
    interrupted = build("parts", *given)
    train_step = Trainer._train_step

    def stop_at_step_6(trainer: Trainer, batches: list) -> None:
        if trainer.step == 5:
            raise KeyboardInterrupt
        train_step(trainer, batches)

    monkeypatch.setattr(Trainer, "_train_step", stop_at_step_6)
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    monkeypatch.undo()
    began_with = config_of(tmp_path / "parts")
    shutil.rmtree(folder)
    shutil.rmtree(head)
    build("parts", *given).train()
    assert "weights and head_weights are not read: the run goes on from its checkpoint" in caplog.text
    for name in ("model.pt", "classifier.pt"):
        one, two = weights(tmp_path / "whole" / name), weights(tmp_path / "parts" / name)
        assert all(torch.equal(one[key], two[key]) for key in one)
    build("parts").train()  # ended, and without the keys
    assert config_of(tmp_path / "parts") == began_with
    assert began_with["weights_fingerprint"] == config_of(tmp_path / "whole")["weights_fingerprint"] is not None


def test_every_form_of_a_backbone_starts_a_training_with_its_weights(build, tmp_path):
    folder = write_run_folder(tmp_path / "run", seed=5)
    state_dict = weights(folder / "model.pt")
    torch.save(state_dict, tmp_path / "plain.pt")
    torch.save({"epoch": 2, "state_dict_backbone": state_dict}, tmp_path / "checkpoint_gpu_0.pt")
    torch.save({f"module.{name}": tensor for name, tensor in state_dict.items()}, tmp_path / "ddp.pth")
    save_file(state_dict, tmp_path / "plain.safetensors")
    torch.save({"state_dict": {f"model.{n}": t for n, t in state_dict.items()}}, tmp_path / "lightning.ckpt")
    shutil.copytree(folder, tmp_path / "without_config")
    (tmp_path / "without_config" / "config.json").unlink()
    trained = [parameter.requires_grad for parameter in build("from_nothing").backbone.parameters()]
    for name in (
        "run",
        "plain.pt",
        "checkpoint_gpu_0.pt",
        "ddp.pth",
        "plain.safetensors",
        "lightning.ckpt",
        "without_config",
    ):
        backbone = build(f"from_{name}", f"weights={tmp_path / name}").backbone
        assert fingerprint(backbone.state_dict()) == load_encoder(folder).fingerprint
        assert backbone.training and [parameter.requires_grad for parameter in backbone.parameters()] == trained


def test_another_normalization_is_told(build, tmp_path, caplog):
    folder = write_run_folder(tmp_path / "run")
    build("next", f"weights={folder}", "normalization=imagenet")
    assert f"{folder} was trained with normalization=face, this run has normalization=imagenet" in caplog.text


def test_weights_that_cannot_be_used_are_one_line_and_leave_nothing(build, tmp_path):
    def message(*overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            build("output", *overrides)
        assert not (tmp_path / "output").exists()
        return str(caught.value)

    folder = write_run_folder(tmp_path / "run", embedding_size=4)
    assert "are not those of network r18" in (found := message(f"weights={folder}")) and "embedding size 4" in found
    assert message(f"weights={tmp_path / 'none.pt'}") == f"model weights not found: {tmp_path / 'none.pt'}"
    assert message(f"weights={tmp_path / 'model.onnx'}") == (
        f"weights={tmp_path / 'model.onnx'}: an ONNX file cannot be trained; name a run folder or a file of weights"
    )
    assert message(f"weights={tmp_path / 'output'}") == (
        f"output {tmp_path / 'output'} is the run folder that weights names: name another output"
    )
    assert message(f"head_weights={tmp_path / 'output' / 'classifier.pt'}") == (
        f"output {tmp_path / 'output'} is the run folder that head_weights names: name another output"
    )
    head = write_head(tmp_path / "head")
    (head / "softmax_fc_gpu_3.pt").unlink()
    assert "are of 5 classes, but the data have 6" in message(f"head_weights={head}")
