"""Optimisers and learning-rate schedules of the training programs."""

import math
from collections.abc import Iterable

import torch
from easydict import EasyDict
from torch import nn
from torch.optim import Optimizer

from core.errors import UserError

__all__ = ["build_optimizer", "learning_rate"]


def build_optimizer(config: EasyDict, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """SGD with momentum or AdamW over all `parameters`, with fused kernels."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            trained, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    if config.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    raise UserError(f"unknown optimizer {config.optimizer!r}: choose 'sgd' or 'adamw'")


def learning_rate(config: EasyDict, epoch: float) -> float:
    """The learning rate after `epoch` epochs, fractions included, in closed form: nothing to save for a resume.

    Linear warm-up over `warmup_epoch` epochs, then polynomial `lr (1 - p) ** power`, cosine `lr (1 + cos(pi p)) / 2`, p
    going from 0 to 1 at `num_epoch`, or steps: `lr` times `schedule_gamma` for each passed entry of `schedule_epochs`.
    """
    if epoch < config.warmup_epoch:
        return config.lr * epoch / config.warmup_epoch
    progress = min(1.0, (epoch - config.warmup_epoch) / max(config.num_epoch - config.warmup_epoch, 1e-12))
    if config.schedule == "polynomial":
        return config.lr * (1 - progress) ** config.schedule_power
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * progress)) / 2
    if config.schedule == "step":
        return config.lr * config.schedule_gamma ** sum(epoch >= boundary for boundary in config.schedule_epochs)
    raise UserError(f"unknown schedule {config.schedule!r}: choose 'polynomial', 'step' or 'cosine'")
