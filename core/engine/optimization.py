"""Optimisers and learning-rate schedules of the training programs."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.optim import Optimizer

from core.engine.row_optimizers import RowAdamW, RowSGD
from core.settings import Settings

__all__ = ["LossScaler", "build_optimizer", "cosine", "learning_rate"]


def build_optimizer(settings: Settings, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """SGD with momentum or AdamW over all `parameters`, with fused kernels and with its state allocated, as zeros.

    A sparse gradient, as a sampled partial FC has it, moves only the rows that it names (`core.engine.row_optimizers`).

    So a checkpoint can be read into that state, and fp16 may overflow in the first step: that step is skipped, and
    PyTorch's fused SGD would leave the momentum that it has just allocated uninitialised.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if settings.optimizer == "sgd":
        optimizer: Optimizer = RowSGD(
            trained, lr=0.0, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
        )
    else:
        optimizer = RowAdamW(trained, lr=0.0, weight_decay=settings.weight_decay, fused=True)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()
    for group in optimizer.param_groups:
        group["lr"] = settings.lr
    return optimizer


class LossScaler(ShardedGradScaler):
    """Loss scaling for fp16: an overflow on one rank makes all ranks skip the step.

    The base class sums the overflow flags of the ranks, but the fused optimisers skip a step only if the flag is 1. Its
    flags have one dimension; AdamW's fused kernel needs scalars.
    """

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale and check on all ranks that they are finite. Collective."""
        super().unscale_(optimizer)
        if self.is_enabled():
            flags = self._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
            flags.update({device: flag.clamp(max=1.0).reshape(()) for device, flag in flags.items()})


def learning_rate(settings: Settings, epoch: float) -> float:
    """The learning rate after `epoch` epochs (a float), in closed form, so that a resume needs no saved state.

    Linear warm-up over `warmup_epoch` epochs; then polynomial, `lr (1 - p) ** power`, or cosine,
    `lr (1 + cos(pi p)) / 2`, with p rising from 0 to 1 at `num_epoch`; or in steps, `lr` times `schedule_gamma` for
    each entry of `schedule_epochs` that has passed.
    """
    if epoch < settings.warmup_epoch:
        return settings.lr * epoch / settings.warmup_epoch
    progress = min(1.0, (epoch - settings.warmup_epoch) / max(settings.num_epoch - settings.warmup_epoch, 1e-12))
    if settings.schedule == "polynomial":
        return settings.lr * (1 - progress) ** settings.schedule_power
    if settings.schedule == "cosine":
        return settings.lr * cosine(progress)
    return settings.lr * settings.schedule_gamma ** sum(epoch >= boundary for boundary in settings.schedule_epochs)


def cosine(progress: float) -> float:
    """The factor of a learning rate that falls as a cosine from 1 to 0, `progress` rising from 0 to 1."""
    return (1 + math.cos(math.pi * progress)) / 2
