"""The classifier that the settings ask for: the same keys in every training program."""

import math
import os

import torch

from core.errors import UserError
from core.heads.margins import ArcFace, CosFace, Margin, Softmax
from core.heads.partial_fc import PartialFC
from core.memory import machine_memory
from core.parallel.collectives import world_size
from core.settings import Settings

__all__ = ["build_head", "build_margin"]

MARGINS = {"arcface": ArcFace, "cosface": CosFace}


def build_margin(loss: str, margin_scale: float, margin: float) -> Margin:
    """The margin of the loss ("arcface", "cosface" or "softmax") with scale s and margin m; softmax has neither.

    `UserError` for another loss, or a scale that is not above 0.
    """
    if loss == "softmax":
        return Softmax()
    if loss not in MARGINS:
        raise UserError(f"unknown loss {loss!r}: choose 'arcface', 'cosface' or 'softmax'")
    if margin_scale <= 0:
        raise UserError(f"margin_scale must be above 0, got {margin_scale}: {loss} scales its cosines by it")
    return MARGINS[loss](margin_scale, margin)


def build_head(settings: Settings, num_classes: int) -> PartialFC:
    """The head over `num_classes` classes; a softmax has a bias where `classifier_bias` is set.

    `UserError` before anything is allocated if its weights, their gradient and the optimiser's state have no room.
    """
    margin = build_margin(settings.loss, settings.margin_scale, settings.margin)
    _require_memory(settings, num_classes)
    bias = settings.classifier_bias and not margin.normalized
    threshold = settings.interclass_filtering_threshold or None
    return PartialFC(
        margin,
        settings.embedding_size,
        num_classes,
        settings.sample_rate,
        bias,
        interclass_filtering_threshold=threshold,
    )


def _require_memory(settings: Settings, num_classes: int) -> None:
    """`UserError` unless the ranks of this machine have the memory for their shares of the head."""
    copies = 3 if settings.optimizer == "adamw" else 2 if settings.momentum else 1
    rows = -(-num_classes // world_size())
    rows_of_gradient = math.ceil(rows * (settings.sample_rate if settings.sampled_epochs is None else 1.0))
    share = (rows * copies + rows_of_gradient) * settings.embedding_size * 4
    if settings.device != "cpu" and torch.cuda.is_available():
        room, place = torch.cuda.mem_get_info()[0], "the GPU"
    else:
        room, place = machine_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), "a rank of this machine"
    if share > room:
        raise UserError(
            f"the head of {num_classes:,} classes with embedding_size {settings.embedding_size} takes {share:,} bytes "
            f"for weights, gradient and optimiser, but {place} has {room:,}: number the classes from 0 on without "
            "gaps, lower embedding_size, or train on more machines or GPUs"
        )
