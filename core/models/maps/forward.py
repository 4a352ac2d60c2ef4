"""The networks of FCT and FastFill: from an old embedding, and side information if there is any, to a new embedding.

Forward Compatible Training (Ramanujan et al., CVPR 2022, arXiv 2112.02805), FastFill (Jaeckle et al., ICLR 2023,
arXiv 2303.04766). A block is a linear layer without bias, batch normalisation, ReLU.

    h = linear(block(block([branch(o); branch(s)]))),    branch: two blocks, D -> 2 D -> 2 D_t

The two blocks behind the branches have `hidden` units. Without side information s is o.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

__all__ = ["FastFillNetwork", "ForwardNetwork"]


class ForwardNetwork(nn.Module):
    """(B, D_s) to (B, D_t). The last `side_size` of the D_s numbers are the side information s, the first ones are o.

    Inside, o, s and the result are as long as the square root of their size, so that a number's mean square is 1 as in
    the embeddings that the released learning rate is for.
    """

    def __init__(self, source_size: int, target_size: int, hidden: int, side_size: int = 0):
        super().__init__()
        self.old_size, self.side_size, self.scale = source_size - side_size, side_size, math.sqrt(target_size)
        self.old = _branch(self.old_size, target_size)
        self.side = _branch(side_size or self.old_size, target_size)
        blocks = _block(4 * target_size, hidden), _block(hidden, hidden)
        self.mixer = nn.Sequential(*blocks, nn.Linear(hidden, target_size))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D_s) to (B, D_t)."""
        return self.scaled(x) / self.scale

    def scaled(self, x: Tensor) -> Tensor:
        """The result at its length inside, (B, D_t)."""
        old = normalize(x[:, : self.old_size])
        side = normalize(x[:, self.old_size :]) if self.side_size else old
        branches = self.old(old * math.sqrt(old.shape[1])), self.side(side * math.sqrt(side.shape[1]))
        return self.mixer(torch.cat(branches, dim=1))


class FastFillNetwork(ForwardNetwork):
    """Also predicts how wrong it is, from its own result: s = w.h + b, the logarithm of a variance."""

    def __init__(self, source_size: int, target_size: int, hidden: int, side_size: int = 0):
        super().__init__(source_size, target_size, hidden, side_size)
        self.log_variance = nn.Linear(target_size, 1)

    def with_log_error(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D_s) to the result (B, D_t) and s (B,)."""
        scaled = self.scaled(x)
        return scaled / self.scale, self.log_variance(scaled).squeeze(1)

    def log_error(self, x: Tensor) -> Tensor:
        """(B, D_s) to s (B,)."""
        return self.with_log_error(x)[1]


def _branch(size: int, target_size: int) -> nn.Sequential:
    return nn.Sequential(_block(size, 2 * size), _block(2 * size, 2 * target_size))


def _block(size: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True))
