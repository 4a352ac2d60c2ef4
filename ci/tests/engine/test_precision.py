"""Which number format `precision=auto` takes: as measured, alike on all ranks, and the same when a run is resumed."""

import json
import logging

import pytest
import torch
from launching import load_program
from rank_processes import run_on_ranks

from core.backbones import build_backbone
from core.engine import precision
from core.engine.precision import choose_precision, float32_products
from core.engine.trainer import Trainer
from core.files import ROOT
from core.parallel.ranks import Ranks
from core.settings import Settings

CPU = torch.device("cpu")


def measured(patch: pytest.MonkeyPatch, products: float, step: float) -> None:
    """Let bf16 be measured as so many times as fast."""
    patch.setattr(precision, "_product_seconds", lambda dtype: 1 / products if dtype is torch.bfloat16 else 1.0)
    patch.setattr(precision, "_step_seconds", lambda backbone, image_size: (step, 1.0))


def network() -> torch.nn.Module:
    return build_backbone("r18", 8, image_size=16, width=8, depth=1)


@pytest.mark.parametrize(
    "products, step, expected",
    [(6.5, 2.7, "bf16"), (1.0, 2.7, "fp32"), (6.5, 1.0, "fp32"), (6.5, 0.9, "fp32"), (0.3, 0.3, "fp32")],
)
def test_bf16_is_taken_where_products_and_the_networks_step_are_measured_to_be_faster(
    monkeypatch, caplog, products, step, expected
):
    measured(monkeypatch, products, step)
    with caplog.at_level(logging.INFO):
        assert choose_precision("auto", network(), 16, Ranks(0, 1, CPU)) == expected
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f"precision: {expected} (")


def test_a_precision_that_is_set_is_taken_and_nothing_measured(monkeypatch):
    monkeypatch.setattr(precision, "_product_seconds", None)
    assert [choose_precision(name, network(), 16, Ranks(0, 1, CPU), "bf16") for name in ("fp32", "fp16")] == [
        "fp32", "fp16",
    ]  # fmt: skip


def test_measuring_leaves_weights_statistics_and_random_numbers_as_they_were():
    backbone = build_backbone("vit_t", 8, image_size=18).to(memory_format=torch.channels_last)
    backbone.blocks = backbone.blocks[:2]
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    state = torch.get_rng_state()
    single, half = precision._step_seconds(backbone, 18)
    assert single > 0 and half > 0 and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def choose_on_rank(rank: int, num_ranks: int) -> list[str]:
    """On CPUs and GPUs of which the first alone has bf16, and of a run whose folder shows the others nothing yet."""
    cpu, gpu = (Ranks(rank, num_ranks, device) for device in (CPU, torch.device("cuda", rank)))
    with pytest.MonkeyPatch.context() as patch:
        measured(patch, 6.5, 2.7 if rank == 0 else 0.5)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: rank == 0)
        before = "fp16" if rank == 0 else None
        return [choose_precision("auto", network(), 16, *given) for given in ((cpu,), (gpu,), (gpu, before))]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_the_first_rank_decides_for_all(tmp_path, num_ranks):
    assert run_on_ranks(choose_on_rank, num_ranks, tmp_path) == [["bf16", "bf16", "fp16"]] * num_ranks


@pytest.fixture
def make(tmp_path, tiny_records, ranks):
    """A trainer of the run in tmp_path / run."""
    old_model = load_program(ROOT / "old_model" / "train.py")

    def make_trainer(**settings: object) -> Trainer:
        tiny = dict(
            rec=str(tiny_records), output=str(tmp_path / "run"), network="r18", embedding_size=8, batch_size=16,
            network_options={"width": 8, "depth": 1}, num_workers=0, device="cpu", margin_scale=16.0, num_epoch=1,
        )  # fmt: skip
        return Trainer(Settings(**tiny | settings), old_model.OldModel(), "old_model", ranks)

    return make_trainer


def test_a_resumed_run_keeps_its_precision_whatever_is_measured_now(make, monkeypatch, tmp_path, caplog):
    measured(monkeypatch, 6.5, 2.7)
    make().train()
    config = tmp_path / "run" / "config.json"
    assert json.loads(config.read_text())["precision_used"] == "bf16"
    measured(monkeypatch, 1.0, 1.0)
    with caplog.at_level(logging.INFO):
        assert make(num_epoch=2).precision == "bf16"
    assert "precision: bf16, with which the run began (set it to have another)" in caplog.messages
    assert make(num_epoch=2, precision="fp32").precision == "fp32"
    assert make(resume=False).precision == "fp32"
    measured(monkeypatch, 6.5, 2.7)  # a run of an earlier version
    values = json.loads(config.read_text())
    del values["precision_used"]
    config.write_text(json.dumps(values))
    assert make(num_epoch=2).precision == "fp32"


def test_a_run_in_fp16_goes_on_in_fp32_on_a_cpu_and_loss_scaling_begins_anew_with_fp16(make, monkeypatch, caplog):
    monkeypatch.setattr(precision, "_product_seconds", None)
    make(precision="fp16").train()
    with caplog.at_level(logging.INFO):
        trainer = make(num_epoch=2)
    assert "precision: fp32 (the run began with fp16, which is slow on a CPU; set it to have it)" in caplog.messages
    assert trainer.precision == "fp32" and not trainer.scaler.is_enabled() and trainer.epoch == 1
    trainer.train()
    assert make(num_epoch=3).precision == "fp32"
    again = make(num_epoch=3, precision="fp16")  # the checkpoint has no scale
    assert again.scaler.get_scale() == 2.0**16 and again.epoch == 2
    again.train()
    assert make(num_epoch=4, precision="fp16").scaler.get_scale() < 2.0**16


def test_the_network_computes_in_the_precision_that_was_taken(make, monkeypatch):
    types = []

    def note(module, inputs, output):
        types.append(output.dtype)

    for step, expected in ((2.7, torch.bfloat16), (1.0, torch.float32)):
        measured(monkeypatch, 6.5, step)
        trainer = make(resume=False)
        trainer.backbone.layer1[0].conv1.register_forward_hook(note)
        trainer.train()
        assert set(types) == {expected}
        types.clear()


@pytest.mark.parametrize(
    "device, name, expected",
    [("cuda", "bf16", "high"), ("cuda", "fp16", "high"), ("cuda", "fp32", "highest"), ("cpu", "bf16", "highest")],
)
def test_heads_beside_half_precision_on_a_gpu_multiply_in_tf32_and_nothing_does_later(device, name, expected):
    with pytest.raises(KeyError), float32_products(torch.device(device), name):
        assert torch.get_float32_matmul_precision() == expected
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"
