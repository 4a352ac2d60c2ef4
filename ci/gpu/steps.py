"""Training steps to measure: ours, as the trainer makes it, and the plain loop that a user would write."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, normalize

from ci.gpu.rates import tf32
from ci.scale_simulation import Job
from core.backbones import build_backbone
from core.engine.optimization import LossScaler, build_optimizer
from core.engine.precision import float32_products
from core.heads import PartialFC
from core.heads.margins import ArcFace
from core.settings import Settings

HALF = {"tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
S, M = 64.0, 0.5


@dataclass(frozen=True)
class Cell:
    """A way to train a network."""

    network: str
    num_classes: int
    precision: str = "bf16"
    """tf32, bf16 or fp16."""
    compiled: bool = False
    channels_last: bool = True
    plain: bool = False
    options: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        layout = "NHWC" if self.channels_last else "NCHW"
        way = "plain" if self.plain else "compiled" if self.compiled else "eager"
        return f"{self.network} C {self.num_classes:,} {self.precision} {layout} {way}"


@dataclass(frozen=True)
class Sizes:
    """Of all cells."""

    image_size: int = 112
    batch: int = 128
    embedding_size: int = 512


def plain_step(cell: Cell, sizes: Sizes, device: torch.device) -> Callable[[], object]:
    """NCHW, eager, autocast, logits (B, C) materialised, ArcFace by arc cosine, SGD as it comes."""
    backbone = build_backbone(cell.network, sizes.embedding_size, image_size=sizes.image_size, **cell.options)
    backbone.to(device)
    weight = nn.Parameter(0.01 * torch.randn(cell.num_classes, sizes.embedding_size, device=device))
    parameters = [*backbone.parameters(), weight]
    optimizer = torch.optim.SGD(parameters, lr=0.001, momentum=0.9, weight_decay=5e-4)
    half = HALF[cell.precision]
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    images, labels = _batch(sizes, cell.num_classes, device)

    def step() -> None:
        with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
            cosines = linear(normalize(backbone(images)), normalize(weight)).float().clamp(-1 + 1e-7, 1 - 1e-7)
            rows = torch.arange(len(labels), device=device)
            cosines[rows, labels] = torch.cos(torch.acos(cosines[rows, labels]) + M)
            loss = cross_entropy(S * cosines, labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(backbone.parameters(), 5.0)
        scaler.step(optimizer)
        scaler.update()

    return step


def make_head(num_classes: int, embedding_size: int, device: torch.device, sample_rate: float = 1.0) -> PartialFC:
    """Weights drawn on the device: the CPU takes seconds for a million classes."""
    with patch.object(PartialFC, "_initialize"), device:
        head = PartialFC(ArcFace(S, M), embedding_size, num_classes, sample_rate)
    nn.init.normal_(head.weight, 0.0, 0.01)
    return head


def our_step(cell: Cell, sizes: Sizes, device: torch.device) -> Callable[[], object]:
    """`Trainer._train_step` without loader, logs and ranks."""
    backbone = build_backbone(cell.network, sizes.embedding_size, image_size=sizes.image_size, **cell.options)
    layout = torch.channels_last if cell.channels_last else torch.contiguous_format
    backbone.to(device, memory_format=layout)
    head = make_head(cell.num_classes, sizes.embedding_size, device)
    optimizer = build_optimizer(Settings(lr=0.001), [*backbone.parameters(), *head.parameters()])
    half = HALF[cell.precision]
    scaler = LossScaler(device.type, enabled=half is torch.float16)
    forward = torch.compile(backbone) if cell.compiled else backbone
    images, labels = _batch(sizes, cell.num_classes, device)
    images = images.contiguous(memory_format=layout)

    def step() -> None:
        with float32_products(device, "fp32" if half is None else cell.precision):
            with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
                embedding = forward(images)
            scaler.scale(head(embedding.float(), labels)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(backbone.parameters(), 5.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def make_head_step(job: Job, device: torch.device) -> Callable[[], object]:
    """Of a partial FC alone, with its update, as the trainer has it beside half precision."""
    torch.manual_seed(0)
    head = make_head(job.classes, job.embedding, device, job.rate)
    optimizer = build_optimizer(Settings(lr=0.001), head.parameters())
    embeddings = torch.randn(job.batch, job.embedding, device=device, requires_grad=True)
    labels = torch.randint(job.classes, (job.batch,), device=device)

    def step() -> None:
        with float32_products(device, "bf16"):
            head(embeddings, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def make_step(cell: Cell, sizes: Sizes, device: torch.device) -> Callable[[], object]:
    torch.manual_seed(0)
    step = (plain_step if cell.plain else our_step)(cell, sizes, device)

    def rounded() -> None:
        with tf32(cell.precision == "tf32" and not cell.plain):
            step()

    return step if cell.plain else rounded


def clean_up(device: torch.device) -> None:
    """Free what the last cell held."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _batch(sizes: Sizes, num_classes: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(sizes.batch, 3, sizes.image_size, sizes.image_size, device=device)
    return images, torch.randint(num_classes, (sizes.batch,), device=device)
