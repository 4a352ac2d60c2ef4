"""MobileFaceNet: inverted residual blocks and a global depth-wise convolution, mbf and mbf_large.

Chen et al., "MobileFaceNets" (arXiv 1804.07573), table 1. State-dict keys, widths and evaluation numbers are those of
InsightFace's arcface_torch (twice or four times the paper's channels).
"""

from functools import partial

import torch
from torch import Tensor, nn

from core.backbones.checks import Layout, require_positive

__all__ = ["NETWORKS", "OPTIONS", "MobileFaceNet", "read_layout"]

OPTIONS = ("image_size",)
BLOCKS_AND_SCALES = {"mbf": ((1, 4, 6, 2), 2), "mbf_large": ((2, 8, 12, 4), 4)}
HEAD_CHANNELS = 512
REDUCTION = 16
"""Four stride-2 convolutions with padding: a side of n pixels leaves ceil(n / 16) cells."""


class Layers(nn.Module):
    """Modules one after the other under the key `layers`, with a shortcut around them if `residual`."""

    def __init__(self, *modules: nn.Module, residual: bool = False):
        super().__init__()
        self.layers = nn.Sequential(*modules)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Run the modules; add the input if `residual`."""
        return x + self.layers(x) if self.residual else self.layers(x)


def _convolution(
    in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1, padded: bool = True
) -> tuple[nn.Module, nn.Module]:
    padding = kernel // 2 if padded else 0
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(channels)


def _conv_block(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> Layers:
    return Layers(*_convolution(in_channels, channels, kernel, stride, groups), nn.PReLU(channels))


def _bottleneck(in_channels: int, channels: int, inner: int, stride: int, residual: bool = False) -> Layers:
    return Layers(
        _conv_block(in_channels, inner, 1),
        _conv_block(inner, inner, 3, stride, groups=inner),
        Layers(*_convolution(inner, channels, 1)),
        residual=residual,
    )


def _residuals(channels: int, inner: int, blocks: int) -> Layers:
    return Layers(*(_bottleneck(channels, channels, inner, 1, residual=True) for _ in range(blocks)))


class MobileFaceNet(nn.Module):
    """Images (B, 3, image_size, image_size), normalised, to float32 embeddings (B, embedding_size).

    The last 1x1 convolution and the head run in float32 under autocast too.
    """

    def __init__(
        self, embedding_size: int = 512, *, image_size: int = 112, blocks: tuple[int, int, int, int], scale: int
    ):
        super().__init__()
        require_positive(embedding_size=embedding_size, image_size=image_size)
        narrow, wide = 64 * scale, 128 * scale
        self.layers = nn.ModuleList(
            [
                _conv_block(3, narrow, 3, stride=2),
                _conv_block(narrow, narrow, 3, groups=64) if blocks[0] == 1 else _residuals(narrow, 128, blocks[0]),
                _bottleneck(narrow, narrow, 128, stride=2),
                _residuals(narrow, 128, blocks[1]),
                _bottleneck(narrow, wide, 256, stride=2),
                _residuals(wide, 256, blocks[2]),
                _bottleneck(wide, wide, 512, stride=2),
                _residuals(wide, 256, blocks[3]),
            ]
        )
        self.conv_sep = _conv_block(wide, HEAD_CHANNELS, 1)
        kernel = -(-image_size // REDUCTION)
        self.features = Layers(
            Layers(*_convolution(HEAD_CHANNELS, HEAD_CHANNELS, kernel, groups=HEAD_CHANNELS, padded=False)),
            nn.Flatten(),
            nn.Linear(HEAD_CHANNELS, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and not module.weight.is_meta:  # where it would be slow
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, image_size, image_size) to (B, embedding_size)."""
        for layer in self.layers:
            x = layer(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.features(self.conv_sep(x.float()))


NETWORKS = {
    name: partial(MobileFaceNet, blocks=blocks, scale=scale) for name, (blocks, scale) in BLOCKS_AND_SCALES.items()
}


def read_layout(shapes: dict[str, tuple[int, ...]]) -> Layout | None:
    """Name and input size of a MobileFaceNet's state dict. Of the 16 input sizes that fit it is the largest."""
    if "conv_sep.layers.0.weight" not in shapes:
        return None
    channels = shapes["layers.0.layers.0.weight"][0]
    names = tuple(name for name, (_, scale) in BLOCKS_AND_SCALES.items() if 64 * scale == channels)
    image_size = REDUCTION * shapes["features.layers.0.layers.0.weight"][-1]
    return Layout(names, shapes["features.layers.2.weight"][0], image_size)
