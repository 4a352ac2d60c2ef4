"""The check of a GPU on a CPU that passes for one: no code mixes tensors of both devices, and no step waits."""

import contextlib
from unittest.mock import patch

import pytest
import torch
from launching import load_program
from pretended_gpu import pretended_gpu
from torch import nn
from torch.nn.functional import cross_entropy

import core.engine.checkpoint
import core.engine.trainer
from ci.gpu.report import Report
from ci.gpu.training import Check
from core.files import ROOT
from core.heads import PartialFC

gpu_check = load_program(ROOT / "ci" / "gpu_check.py")


class OneProcess(nn.Module):
    """In place of `DistributedDataParallel`, whose C++ code sees the device that tensors have in fact."""

    def __init__(self, module: nn.Module, **options):
        super().__init__()
        self.forward = module.forward
        self.no_sync = contextlib.nullcontext


@pytest.fixture
def trainer_on_gpu(ranks, monkeypatch):
    """The trainer's exchange between ranks, which has one, stays on the CPU."""
    mesh = core.engine.checkpoint.init_device_mesh
    monkeypatch.setattr(core.engine.checkpoint, "init_device_mesh", lambda kind, shape: mesh("cpu", shape))
    monkeypatch.setattr(core.engine.trainer, "DistributedDataParallel", OneProcess)


@pytest.fixture
def gpu():
    with pretended_gpu() as device:
        yield device


@pytest.mark.parametrize("part", [part for part in gpu_check.CORRECTNESS if part not in ("decoding", "training")])
def test_part_passes(part, ranks, gpu):
    report = Report(500.0)
    gpu_check.CORRECTNESS[part](report, gpu, True)
    assert report.results and {result.outcome for result in report.results} == {"ok"}


@pytest.mark.parametrize("precision, settings", [("fp32", {}), ("bf16", {"sample_rate": 0.8})])
def test_no_step_waits(precision, settings, tmp_path, trainer_on_gpu, gpu):
    Check(tmp_path, gpu, True).waits(precision, **settings)


def test_training_ends_with_the_weights_of_the_cpu(tmp_path, trainer_on_gpu, gpu):
    errors = Check(tmp_path, gpu, True).against_cpu()
    assert all(error.found <= error.allowed for error in errors.values())


def test_what_a_gpu_refuses_is_refused(gpu):
    ours, theirs = torch.randn(3, 4), torch.randn(3, 4, device=gpu)
    assert (ours.device.type, theirs.device, (2 * theirs).sum().device) == ("cpu", gpu, gpu)
    for mixed in (
        lambda: ours + theirs,
        lambda: ours[torch.zeros(1, dtype=torch.int64, device=gpu)],
        lambda: cross_entropy(theirs, torch.zeros(3, dtype=torch.int64)),
        lambda: torch.cat([ours, theirs]),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        theirs.numpy()
    assert theirs[torch.tensor([0])].device == (theirs * torch.tensor(2.0)).device == gpu
    assert theirs.cpu().numpy().shape == (3, 4)


def test_gradients_are_where_their_tensors_are(gpu):
    ours, layer = torch.randn(3, 4, requires_grad=True), nn.Linear(4, 2).to(gpu)
    layer(ours.to(gpu)).sum().backward()
    assert ours.grad.device.type == "cpu" and layer.weight.grad.device == layer.weight.device == gpu
    torch.testing.assert_close(ours.grad, layer.weight.detach().cpu().sum(0).expand(3, 4))


def test_waiting_is_an_error_where_it_is_forbidden(gpu):
    theirs = torch.randn(3, 4, device=gpu)
    torch.cuda.set_sync_debug_mode("error")
    for waiting in (
        lambda: theirs.sum().item(),
        lambda: theirs[theirs > 0],
        lambda: theirs.cpu(),
        lambda: torch.tensor([1.0], device=gpu),
        torch.cuda.synchronize,
    ):
        with pytest.raises(RuntimeError, match="waits for the GPU"):
            waiting()
    assert theirs.to("cpu", non_blocking=True).shape == (3, 4)
    torch.cuda.set_sync_debug_mode("default")
    assert theirs.sum().item() == theirs.cpu().sum().item()


def test_check_finds_a_tensor_on_the_wrong_device(gpu):
    forward = PartialFC.forward

    def with_labels_of_the_cpu(head, embeddings, labels):
        return forward(head, embeddings, labels) + cross_entropy(embeddings, labels.cpu().clamp(min=0))

    report = Report(100.0)
    with patch.object(PartialFC, "forward", with_labels_of_the_cpu):
        gpu_check.check_heads(report, gpu, True)
    assert any("same device" in result.detail for result in report.failed)


def test_check_finds_a_step_that_waits(tmp_path, trainer_on_gpu, gpu):
    clip = nn.utils.clip_grad_norm_
    with (
        patch.object(nn.utils, "clip_grad_norm_", lambda *given: torch.tensor(clip(*given).item()).to(gpu)),
        pytest.raises(RuntimeError, match="waits for the GPU"),
    ):
        Check(tmp_path, gpu, True).waits("fp32")
