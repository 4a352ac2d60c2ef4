"""Vision transformers for faces, vit_t to vit_h: patches of 9x9 pixels, no class token, a head over all patches.

Dosovitskiy et al. (arXiv 2010.11929) as InsightFace's arcface_torch has it: ReLU6 in the MLP, no bias in q, k, v,
stochastic depth rising linearly over the blocks (Huang et al., arXiv 1603.09382). In training a random part of the
patches skips the blocks and is replaced by a learned token before the head (as in He et al., arXiv 2111.06377).
State-dict keys and evaluation numbers are those of arcface_torch. Departures, in training only:

- The masked part of the patches is the one in the variant's name (`mask_005`: 0.05). arcface_torch masks 0.1 whenever
  the ratio is above 0, because it does not pass the ratio on.
- Precision is that of the training loop: attention runs in autocast's data type (its softmax sums in float32 all the
  same) where arcface_torch switches to float32. The last norm and the head are in float32, as there.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from core.backbones.checks import Layout, require_positive
from core.errors import UserError

__all__ = ["NETWORKS", "OPTIONS", "VisionTransformer", "read_layout"]

OPTIONS = ("image_size",)
PATCH = 9
HEADS = 8
MLP_RATIO = 4


@dataclass(frozen=True)
class Variant:
    """Size of a variant and how it is trained; `recompute` trades time for memory (activation checkpointing)."""

    dim: int
    depth: int
    drop_path: float = 0.1
    mask_ratio: float = 0.1
    recompute: bool = False


VARIANTS = {
    "vit_t": Variant(256, 12),
    "vit_t_dp005_mask0": Variant(256, 12, 0.05, 0.0),
    "vit_s": Variant(512, 12),
    "vit_s_dp005_mask_0": Variant(512, 12, 0.05, 0.0),
    "vit_b": Variant(512, 24, recompute=True),
    "vit_b_dp005_mask_005": Variant(512, 24, 0.05, 0.05, recompute=True),
    "vit_l": Variant(768, 24, 0.05, 0.05, recompute=True),
    "vit_l_dp005_mask_005": Variant(768, 24, 0.05, 0.05, recompute=True),
    "vit_h": Variant(1024, 48, 0.1, 0.0, recompute=True),
}
"""InsightFace has no plain vit_l: the name means its only variant of that size."""


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with ReLU6 between."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.act = nn.ReLU6()
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, drop_path: float):
        from torchvision.ops import StochasticDepth  # a second to import, which other networks need not wait for

        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Linear map of each patch. Pixels beyond the last whole patch are not used (112 = 12 x 9 + 4)."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, H // 9 * W // 9, D)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Images (B, 3, image_size, image_size), normalised, to float32 embeddings (B, embedding_size)."""

    def __init__(self, embedding_size: int = 512, *, image_size: int = 112, variant: Variant):
        super().__init__()
        require_positive(embedding_size=embedding_size, image_size=image_size)
        if image_size < PATCH:
            raise UserError(f"image_size must be at least {PATCH}, the side of a patch, got {image_size}")
        dim, depth, patches = variant.dim, variant.depth, (image_size // PATCH) ** 2
        self.mask_ratio = variant.mask_ratio
        self.recompute = variant.recompute
        self.patch_embed = PatchEmbed(dim)
        self.pos_embed = nn.Parameter(torch.empty(1, patches, dim))
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim), requires_grad=self.mask_ratio > 0)
        self.blocks = nn.ModuleList(Block(dim, variant.drop_path * i / (depth - 1)) for i in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.feature = nn.Sequential(
            nn.Linear(patches * dim, dim, bias=False),
            nn.BatchNorm1d(dim, eps=2e-5),
            nn.Linear(dim, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )
        if self.pos_embed.is_meta:  # where what follows would do nothing, slowly
            return
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, image_size, image_size) to (B, embedding_size)."""
        x = self.patch_embed(x) + self.pos_embed
        order = None
        if self.training and self.mask_ratio > 0:
            order = torch.rand(x.shape[:2], device=x.device).argsort(1)
            num_kept = int(x.shape[1] * (1 - self.mask_ratio))
            x = x.gather(1, order[:, :num_kept, None].expand(-1, -1, x.shape[2]))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute and self.training else block(x)
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(x.float())
            if order is not None:
                masked = self.mask_token.expand(x.shape[0], order.shape[1] - x.shape[1], -1)
                x = torch.cat((x, masked), 1).gather(1, order.argsort(1)[..., None].expand(-1, -1, x.shape[2]))
            return self.feature(x.flatten(1))


NETWORKS = {name: partial(VisionTransformer, variant=variant) for name, variant in VARIANTS.items()}


def read_layout(shapes: dict[str, tuple[int, ...]]) -> Layout | None:
    """Name and input size of a vision transformer's state dict.

    Nine input sizes fit a number of patches; the largest multiple of 8 among them is returned (112, 48, 40, 32, ...).
    """
    if "pos_embed" not in shapes or "mask_token" not in shapes:
        return None
    patches, dim = shapes["pos_embed"][1:]
    depth = len({key.split(".")[1] for key in shapes if key.startswith("blocks.")})
    names = tuple(name for name, variant in VARIANTS.items() if (variant.dim, variant.depth) == (dim, depth))
    image_size = (PATCH * round(patches**0.5) + PATCH - 1) // 8 * 8
    return Layout(names, shapes["feature.2.weight"][0], image_size)
