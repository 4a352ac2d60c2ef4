"""The networks: each maps normalised images (B, 3, H, W) to float32 embeddings (B, D) and is built by its name.

A family is a module with `NETWORKS` (name -> constructor), `OPTIONS` (the constructor's arguments besides the embedding
size) and `read_layout` (recognises a network by the shapes of a state dict).
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import nn

from core.backbones import iresnet, mobilefacenet, resnet, vit
from core.backbones.checks import Layout
from core.errors import UserError
from core.memory import require_memory

__all__ = ["Layout", "build_backbone", "list_backbones", "read_layout", "require_backbone"]

FAMILIES = (iresnet, mobilefacenet, vit, resnet)
SYNONYMS = {
    **{f"iresnet{depth}": f"r{depth}" for depth in (18, 34, 50, 100, 200)},
    "mobilefacenet": "mbf",
    "mobilefacenet_large": "mbf_large",
}
"""Of functions in arcface_torch's backbones."""
_FAMILY_OF = {name: family for family in FAMILIES for name in family.NETWORKS}


def list_backbones() -> list[str]:
    """All names that `build_backbone` knows, family by family."""
    return list(_FAMILY_OF)


def require_backbone(name: str) -> str:
    """The network's name as it is written here: upper case and InsightFace's other names are understood.

    `UserError` with the known names if there is no such network.
    """
    written = str(name).lower().replace("-", "_")
    known = SYNONYMS.get(written, written)
    if known not in _FAMILY_OF:
        near = get_close_matches(written, _FAMILY_OF, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown network {name!r}: {hint}the known ones are {', '.join(_FAMILY_OF)}")
    return known


def build_backbone(name: str, embedding_size: int = 512, **options: Any) -> nn.Module:
    """A new network, initialised as its reference is, on the current default device.

    Options: `image_size=112` (all; the landmark networks 224), for IResNet `width=64`, `depth` (blocks a stage: one
    number or four) and `dropout=0.0`, for the landmark networks `pooling="avg"` ("gem", "max"), `gem_p=3.0`,
    `gem_p_learnable=False`, `head="linear"` ("whitening", "unit", "none") and `pretrained=None` ("imagenet", or a file
    of torchvision's weights). `UserError` for an unknown name, option or value, of which it lists the known ones, and
    for a network whose weights are larger than the memory, before they are made.
    """
    name = require_backbone(name)
    family = _FAMILY_OF[name]
    unknown = sorted(set(options) - set(family.OPTIONS))
    if unknown:
        raise UserError(f"network {name} has no option {unknown[0]!r}: its options are {', '.join(family.OPTIONS)}")
    make = family.NETWORKS[name]
    _require_room(partial(make, embedding_size, **{k: v for k, v in options.items() if k != "pretrained"}), name)
    return make(embedding_size, **options)


def _require_room(make: Callable[[], nn.Module], name: str) -> None:
    remedy = "set a smaller embedding_size, image_size, width or depth"
    with torch.device("meta"):
        try:
            size = sum(t.numel() * t.element_size() for t in make().state_dict().values())
        except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond 64 bits
            raise UserError(
                f"network {name} cannot be built with these options ({str(error).splitlines()[0]:.200}): {remedy}"
            ) from error
    require_memory(size, f"network {name} with these options", remedy)


def read_layout(shapes: dict[str, tuple[int, ...]]) -> Layout | None:
    """The network of a state dict with these shapes, as far as shapes determine it; None if it is unknown."""
    for family in FAMILIES:
        try:
            layout = family.read_layout(shapes)
        except (KeyError, IndexError, ValueError, ZeroDivisionError):
            continue
        if layout is not None and layout.names:
            return layout
    return None
