"""The classifier that the settings ask for: the same keys in every training program."""

import math
import os

import torch

from core.errors import UserError
from core.heads.margins import ArcFace, CosFace, Margin, Softmax
from core.heads.partial_fc import BLOCK_CLASSES, PartialFC
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

    `UserError` before anything is allocated if its weights, their gradient, the optimiser's state and the logits have
    no room.
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
        recompute_logits=settings.recompute_logits,
    )


def _require_memory(settings: Settings, num_classes: int) -> None:
    """`UserError` unless the ranks of this machine have the memory for their shares of the head."""
    copies = 3 if settings.optimizer == "adamw" else 2 if settings.momentum else 1
    rows = -(-num_classes // world_size())
    rows_of_step = math.ceil(rows * (settings.sample_rate if settings.sampled_epochs is None else 1.0))
    on_gpu = settings.device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        room, place = torch.cuda.mem_get_info()[0], "the GPU"
    else:
        room, place = machine_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), "a rank of this machine"
    of_weights = (rows * copies + rows_of_step) * settings.embedding_size * 4
    of_logits, of_a_block = (
        settings.batch_size * world_size() * columns * 4
        for columns in (rows_of_step, min(rows_of_step, BLOCK_CLASSES["cuda" if on_gpu else "cpu"]))
    )
    share = of_weights + (of_a_block if settings.recompute_logits else of_logits)
    if share > room:
        advice = "" if settings.recompute_logits or of_weights + of_a_block > room else "set recompute_logits=True, "
        raise UserError(
            f"the head of {num_classes:,} classes with embedding_size {settings.embedding_size} takes {share:,} bytes "
            f"for weights, gradient, optimiser and logits, but {place} has {room:,}: {advice}number the classes from 0 "
            "on without gaps, lower embedding_size, or train on more machines or GPUs"
        )
