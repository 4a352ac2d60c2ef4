"""IResNet: the improved residual network for faces, r18 to r200, and r2060.

Deng et al., "ArcFace" (arXiv 1801.07698), section 3.1.2: a stem without pooling, blocks of the form
BN - conv - BN - PReLU - conv - BN, and a BN - dropout - linear - BN head that keeps the spatial layout. State-dict keys
and evaluation numbers are those of InsightFace's arcface_torch. r2060 is trained as there: its two long stages keep the
activations between segments alone and compute the others again in the backward pass (Chen et al., arXiv 1604.06174), so
their batch norms take each batch into the running statistics twice.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from core.backbones.checks import Layout, require_positive
from core.errors import UserError

__all__ = ["NETWORKS", "OPTIONS", "IResNet", "read_layout"]

OPTIONS = ("image_size", "width", "depth", "dropout")
DEPTHS = {
    "r18": (2, 2, 2, 2),
    "r34": (3, 4, 6, 3),
    "r50": (3, 4, 14, 3),
    "r100": (3, 13, 30, 3),
    "r200": (6, 26, 60, 6),
    "r2060": (3, 128, 896, 3),
}
SEGMENTS = {"r2060": (1, 20, 100, 1)}
"""Of each stage in training, where activations are computed again; 1: all are kept."""
MOST_BLOCKS = 4096
"""Of all stages: r2060 has 1,030."""
STAGE_FACTORS = (1, 2, 4, 8)
REDUCTION = 16
"""Four stages of stride 2 with padding: a side of n pixels leaves ceil(n / 16) cells."""


class Block(nn.Module):
    """A residual block; the second convolution has the stride."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, ceil(H / stride), ceil(W / stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(x)) + shortcut


class IResNet(nn.Module):
    """Images (B, 3, image_size, image_size), normalised, to float32 embeddings (B, embedding_size).

    The stages have `width` times 1, 2, 4 and 8 channels and `depth` blocks each (one number for all, or four). In
    training a stage of more than one of the `segments` computes the activations within a segment twice, to save memory.
    The head runs in float32 under autocast too.
    """

    def __init__(
        self,
        embedding_size: int = 512,
        *,
        image_size: int = 112,
        width: int = 64,
        depth: int | Sequence[int] = DEPTHS["r18"],
        dropout: float = 0.0,
        segments: Sequence[int] = (1, 1, 1, 1),
    ):
        super().__init__()
        depths = (depth,) * 4 if isinstance(depth, int) else depth
        if not isinstance(depths, Sequence) or len(depths) != 4:
            raise UserError(f"depth must be one number of blocks or four, got {depth!r}")
        require_positive(embedding_size=embedding_size, image_size=image_size, width=width)
        require_positive(**{f"depth[{stage}]": blocks for stage, blocks in enumerate(depths)})
        if sum(depths) > MOST_BLOCKS:
            raise UserError(f"depth must be at most {MOST_BLOCKS} blocks in all, got {sum(depths)}")
        if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise UserError(f"dropout must be in [0, 1), got {dropout!r}")
        self.segments = tuple(min(parts, blocks) for parts, blocks in zip(segments, depths))
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        channels = [width] + [width * factor for factor in STAGE_FACTORS]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(channels[stage], channels[stage + 1], depths[stage]) for stage in range(4)
        )
        self.bn2 = nn.BatchNorm2d(channels[-1])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels[-1] * (-(-image_size // REDUCTION)) ** 2, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # where it would do nothing, slowly
                nn.init.normal_(module.weight, 0.0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, image_size, image_size) to (B, embedding_size)."""
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage, segments in zip((self.layer1, self.layer2, self.layer3, self.layer4), self.segments):
            recompute = segments > 1 and self.training and torch.is_grad_enabled()
            x = checkpoint_sequential(stage, segments, x, use_reentrant=False) if recompute else stage(x)
        x = self.dropout(self.bn2(x).flatten(1))
        with torch.autocast(x.device.type, enabled=False):
            return self.features(self.fc(x.float()))


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    """Blocks of which the first has stride 2."""
    first = Block(in_channels, channels, stride=2)
    return nn.Sequential(first, *(Block(channels, channels, stride=1) for _ in range(blocks - 1)))


NETWORKS = {
    name: partial(IResNet, depth=depth, segments=SEGMENTS.get(name, (1, 1, 1, 1))) for name, depth in DEPTHS.items()
}


def read_layout(shapes: dict[str, tuple[int, ...]]) -> Layout | None:
    """Width, depth and input size of an IResNet's state dict. Of the 16 input sizes that fit it is the largest."""
    if "prelu.weight" not in shapes or "layer4.0.prelu.weight" not in shapes:
        return None
    depth = tuple(
        len({key.split(".")[1] for key in shapes if key.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4)
    )
    width = shapes["conv1.weight"][0]
    embedding_size, inputs = shapes["fc.weight"]
    image_size = REDUCTION * round((inputs / (STAGE_FACTORS[-1] * width)) ** 0.5)
    names = tuple(name for name, known in DEPTHS.items() if known == depth) or tuple(DEPTHS)
    return Layout(names, embedding_size, image_size, {"width": width, "depth": depth})
