"""MixBCT: the mixed batch, its loss and gradient, and the whole program."""

import json
import math
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from launching import Launch, load_program
from tiny import write_run_folder
from torch.nn import functional

import core.embeddings.extraction as extraction
from core.embeddings.credible_rows import credible_mask
from core.embeddings.store import EmbeddingStore
from core.engine.method import Batch
from core.engine.trainer import Trainer
from core.files import ROOT
from core.heads import PartialFC
from core.heads.margins import ArcFace
from core.models.encoder import load_encoder
from core.settings import load_settings

PROGRAM = ROOT / "methods" / "mixbct" / "train.py"
mixbct = load_program(PROGRAM)


def replaced_rows(batch: int, credible: torch.Tensor, ratio: float) -> torch.Tensor:
    """Mix rows of +1 (new) with rows of -1 (old); which rows (bool) are old afterwards."""
    mixed = mixbct.mix(torch.ones(batch, 3), -torch.ones(batch, 3), credible, ratio)
    assert mixed.shape == (batch, 3) and torch.equal(mixed[:, 0], mixed[:, 1]) and torch.equal(mixed[:, 0], mixed[:, 2])
    assert set(mixed.flatten().tolist()) <= {1.0, -1.0}
    return mixed[:, 0] < 0


@pytest.mark.parametrize("ratio", ["0", "0.29", "0.3", "0.5", "0.7", "1"])
def test_exactly_floor_of_ratio_times_batch_rows_are_replaced(ratio):
    for batch in (1, 2, 3, 7, 10, 100, 128):
        replaced = replaced_rows(batch, torch.ones(batch, dtype=torch.bool), float(ratio))
        assert replaced.sum() == math.floor(Fraction(ratio) * batch)


def test_only_credible_rows_are_replaced_and_all_of_them_when_they_are_too_few():
    generator = torch.Generator().manual_seed(0)
    for share in (0.0, 0.05, 0.2, 0.3, 0.6):
        for _ in range(20):
            credible = torch.rand(40, generator=generator) < share
            replaced = replaced_rows(40, credible, 0.3)
            assert not (replaced & ~credible).any()
            assert replaced.sum() == min(12, int(credible.sum()))


def test_no_row_is_replaced_when_none_is_credible():
    assert not replaced_rows(16, torch.zeros(16, dtype=torch.bool), 1.0).any()


def test_every_credible_row_is_drawn_equally_often():
    credible = torch.tensor([True, True, False, True, True, False, True, True])
    torch.manual_seed(0)
    counts = sum(replaced_rows(8, credible, 0.5).long() for _ in range(3000))
    # 4 of 6 rows: mean 2,000, standard deviation 26
    assert counts[~credible].sum() == 0 and (counts[credible] - 2000).abs().max() < 130


@pytest.fixture
def method():
    """The method with a head for 5 classes and 30 training images, most of them credible."""
    torch.manual_seed(0)
    made = mixbct.MixBCT()
    made.ratio = 0.5
    made.classifier = PartialFC(ArcFace(16.0, 0.3), 8, 5)
    torch.nn.init.normal_(made.classifier.weight)
    made.register_buffer("credible", torch.arange(30) % 4 > 0)
    return made


def test_loss_is_that_of_a_plain_margin_softmax_on_the_mixed_batch_and_replaced_rows_get_no_gradient(method):
    new, old = torch.randn(12, 8, requires_grad=True), torch.randn(12, 8)
    labels, rows = torch.arange(12) % 5, torch.randperm(30)[:12]
    batch = Batch(torch.empty(0), labels, rows, 0, 0.0, old_embedding=old, embedding=new)
    torch.manual_seed(3)
    terms = method.loss(batch)
    terms["cls"].backward()
    torch.manual_seed(3)
    replaced = (mixbct.mix(new.detach(), old, method.credible[rows], 0.5) == old).all(1)
    assert replaced.sum() == 6 and not (replaced & (rows % 4 == 0)).any()

    new_64, head_64 = (
        new.detach().double().requires_grad_(),
        method.classifier.weight.detach().double().requires_grad_(),
    )
    mixed = torch.stack([old[i].double() if replaced[i] else new_64[i] for i in range(12)])
    cosines = functional.normalize(mixed) @ functional.normalize(head_64).T
    logits = 16 * torch.cos(torch.acos(cosines) + 0.3 * functional.one_hot(labels, 5))
    loss = -torch.stack([logits[i, labels[i]] - torch.logsumexp(logits[i], 0) for i in range(12)]).mean()
    loss.backward()
    assert set(terms) == {"cls"} and terms["cls"].item() == pytest.approx(loss.item(), abs=1e-5)
    assert not new.grad[replaced].any() and new.grad[~replaced].any(1).all()
    assert torch.allclose(new.grad.double(), new_64.grad, atol=1e-6)
    assert torch.allclose(method.classifier.weight.grad.double(), head_64.grad, atol=1e-6)


@pytest.fixture
def arguments(tmp_path, tiny_records, tiny_settings):
    (tmp_path / "config.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")
    return [str(tmp_path / "config.py"), f"rec={tiny_records}", *tiny_settings]


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


def test_old_model_and_then_mixbct_under_torchrun_leave_the_files_of_the_contract(arguments, tmp_path):
    old = [*arguments, f"output={tmp_path / 'old'}", "loss=softmax"]
    statuses, outputs = Launch(ROOT / "old_model" / "train.py", old, tmp_path / "logs").wait()
    assert statuses == [0], outputs
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    new = [f"output={tmp_path / 'new'}", f"old_model={tmp_path / 'old'}", f"features={tmp_path / 'features'}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "train.py", *arguments, *new, "batch_size=8", "augment=('flip','affine','noise')"]
    result = subprocess.run(command, cwd=PROGRAM.parent, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr

    old, network = load_encoder(tmp_path / "old"), load_encoder(tmp_path / "new")
    assert set(weights(tmp_path / "new")) == set(old.module.state_dict())
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    expected = {"network": "r18", "embedding_size": 8, "image_size": 16, "old_model_fingerprint": old.fingerprint,
                "old_model_preprocessing": old.preprocessing,
                "mix_ratio": 0.3, "world_size": 2, "method": "mixbct"}  # fmt: skip
    assert expected.items() <= config.items() and config["version"]
    assert network.old_model_fingerprint == old.fingerprint != network.fingerprint
    lines = [json.loads(line) for line in (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8] and lines[-1]["loss/cls"] < lines[0]["loss/cls"]
    assert list((tmp_path / "new" / "tensorboard").iterdir()) and list((tmp_path / "new" / "checkpoints").iterdir())
    store = EmbeddingStore.open(tmp_path / "features")
    assert np.array_equal(np.load(store.path / "credible_0.9.npy"), credible_mask(store, 0.9))


def test_old_features_are_reused_for_the_same_old_model_and_made_anew_for_another(
    arguments, tmp_path, ranks, monkeypatch
):
    monkeypatch.setattr(extraction, "ROOT", tmp_path)
    runs = {}
    for output, seed in (("first", 0), ("again", 0), ("other", 1)):
        if not (tmp_path / f"old{seed}").exists():
            write_run_folder(tmp_path / f"old{seed}", seed)
        overrides = [*arguments[1:], f"old_model={tmp_path / f'old{seed}'}", f"output={tmp_path / output}"]
        settings = load_settings(arguments[0], overrides, mixbct.MixBCTSettings)
        trainer = Trainer(settings, mixbct.MixBCT(), "mixbct", ranks)
        trainer.train()
        path = trainer.old_model.features.path
        runs[output] = path, (path / "features.npy").stat().st_mtime_ns
    assert runs["first"] == runs["again"] and runs["other"][0] != runs["first"][0]
    assert sorted((tmp_path / "features").iterdir()) == sorted({runs["first"][0], runs["other"][0]})
    first, again, other = (weights(tmp_path / output) for output in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)  # extraction draws no random numbers
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_run_in_two_parts_ends_with_the_weights_of_one_with_the_same_rows_mixed(arguments, tmp_path):
    old = write_run_folder(tmp_path / "old")
    common = [*arguments, f"old_model={old}", f"features={tmp_path / 'features'}", "checkpoint_steps=3"]
    for output, overrides in (("whole", []), ("broken", ["num_epoch=1"]), ("broken", [])):
        launch = Launch(
            PROGRAM, [*common, f"output={tmp_path / output}", "schedule=step", *overrides], tmp_path / "logs"
        )
        statuses, outputs = launch.wait()
        assert statuses == [0], outputs
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
