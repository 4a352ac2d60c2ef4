"""torchvision's residual networks as encoders, for landmarks: resnet18 to resnet152.

He et al., "Deep Residual Learning" (arXiv 1512.03385), as torchvision builds them; in place of the classifier the
pooled feature goes through a linear layer without bias and a batch norm (AdvBCT's benchmark, arXiv 2305.02610), or
through the whitening of cnnimageretrieval-pytorch, or is the embedding itself. Pooling: the mean, the maximum, or GeM
(Radenović et al., arXiv 1711.02512, equation 3). Images of any size.
"""

import http.client
import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from core.backbones.checks import Layout, require_positive
from core.errors import UserError
from core.files import resolve

__all__ = ["NETWORKS", "OPTIONS", "GeM", "ResNet", "read_layout"]

OPTIONS = ("image_size", "pooling", "gem_p", "gem_p_learnable", "head", "pretrained")
BLOCKS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
"""Kind of the residual blocks, and their number by stage."""
FEATURES = {"basic": 512, "bottleneck": 2048}
HEADS = ("linear", "whitening", "unit", "none")
DEFAULT_IMAGE_SIZE = 224
WEIGHTS = "IMAGENET1K_V1"
"""torchvision's first ImageNet weights, trained with the same recipe for all depths."""
EXPONENT_SHAPES = {"avg": None, "gem": (1,), "max": ()}
"""Shape of the pooling exponent in a state dict, by which the pooling is recognised: the mean has no exponent."""
MOST_PIXELS = 1 << 14
"""Of an image's side: no weight bounds it."""
SMALLEST = 1e-6


class GeM(nn.Module):
    """Generalised mean over the pixels, `(mean of x ** p) ** (1 / p)`: (B, C, H, W) to float32 (B, C, 1, 1).

    In float32 under autocast too. Values below 1e-6 are raised to that. Each map is divided by its maximum first, so
    that no power overflows. The exponent `p` (1,) is a parameter if it is learnable, else a buffer.
    """

    def __init__(self, p: float = 3.0, learnable: bool = False):
        super().__init__()
        exponent = torch.full((1,), float(p))
        if learnable:
            self.p = nn.Parameter(exponent)
        else:
            self.register_buffer("p", exponent)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 1, 1)."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float().clamp(min=SMALLEST)
            largest = x.detach().amax((2, 3), keepdim=True)
            return largest * (x / largest).pow(self.p).mean((2, 3), keepdim=True).pow(1 / self.p)


class MaxPool(nn.Module):
    """Maximum over the pixels, GeM's limit: (B, C, H, W) to (B, C, 1, 1)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("p", torch.tensor(math.inf))  # marks the pooling in the state dict

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 1, 1)."""
        return x.amax((2, 3), keepdim=True)


class UnitLength(nn.Module):
    """Vectors (B, D) divided by their length plus 1e-6, as cnnimageretrieval-pytorch does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("eps", torch.tensor(SMALLEST))  # marks the head in the state dict

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + self.eps)


class ResNet(nn.Module):
    """Images (B, 3, H, W) of any size, normalised, to float32 embeddings (B, embedding_size).

    `trunk` is torchvision's network `name` without its classifier. `image_size` is that of training; no weight depends
    on it. The `head`, in float32 under autocast too, makes the embedding of the pooled feature: "linear" by a linear
    layer and a batch norm, "whitening" by a linear layer between two normalisations to unit length, "unit" by one such
    normalisation, "none" not at all; the last two leave its size as it is (512, or 2048 from resnet50 on).

    `pretrained`: None, "imagenet" (torchvision's weights, from its cache or else its download), or the path of a file
    with a state dict of torchvision's network, relative to the repository's root. `UserError` if they cannot
    be loaded.
    """

    any_size = True
    """See `core.models.encoder.Encoder.any_size`."""

    def __init__(
        self,
        embedding_size: int = 512,
        *,
        name: str = "resnet18",
        image_size: int = DEFAULT_IMAGE_SIZE,
        pooling: str = "avg",
        gem_p: float = 3.0,
        gem_p_learnable: bool = False,
        head: str = "linear",
        pretrained: str | None = None,
    ):
        super().__init__()
        require_positive(embedding_size=embedding_size, image_size=image_size)
        if image_size > MOST_PIXELS:
            raise UserError(f"image_size must be at most {MOST_PIXELS}, got {image_size}")
        if pooling not in EXPONENT_SHAPES:
            raise UserError(f"unknown pooling {pooling!r}: choose {', '.join(map(repr, EXPONENT_SHAPES))}")
        if not isinstance(gem_p, (int, float)) or not 0 < gem_p < math.inf:
            raise UserError(f"gem_p must be a number above 0, got {gem_p!r}")
        features = FEATURES[BLOCKS[name][0]]
        if head not in HEADS:
            raise UserError(f"unknown head {head!r}: choose {', '.join(map(repr, HEADS))}")
        if head in ("unit", "none") and embedding_size != features:
            raise UserError(f"with head={head!r} the embedding_size of {name} must be {features}, got {embedding_size}")
        from torchvision.models import get_model  # a second to import, which other networks need not wait for

        self.trunk = get_model(name, weights=None)
        if pretrained is not None:
            _load_pretrained(self.trunk, name, pretrained)
        self.trunk.fc = nn.Identity()
        if pooling != "avg":
            self.trunk.avgpool = GeM(gem_p, gem_p_learnable) if pooling == "gem" else MaxPool()
        self.head = head
        if head == "linear":
            self.embedding = nn.Linear(features, embedding_size, bias=False)
            self.bn = nn.BatchNorm1d(embedding_size)
        elif head != "none":
            self.norm = UnitLength()
            if head == "whitening":
                self.whiten = nn.Linear(features, embedding_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, embedding_size)."""
        x = self.trunk(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.head == "linear":
                return self.bn(self.embedding(x))
            if self.head == "whitening":
                return self.norm(self.whiten(self.norm(x)))
            return self.norm(x) if self.head == "unit" else x


NETWORKS = {name: partial(ResNet, name=name) for name in BLOCKS}


def _load_pretrained(trunk: nn.Module, name: str, pretrained: str) -> None:
    """Load the weights that training begins with into torchvision's network `name`."""
    if pretrained == "imagenet":
        source, state_dict = "torchvision's ImageNet weights", _imagenet_weights(name)
    else:
        from core.backbones.state_dicts import read_state_dict  # which knows all networks, this one too

        source = resolve(pretrained)
        state_dict = read_state_dict(source, name)
        trunk_only = {k.removeprefix("trunk."): v for k, v in state_dict.items() if k.startswith("trunk.")}
        state_dict = trunk_only or state_dict
    expected, found = _shapes_without_classifier(trunk.state_dict()), _shapes_without_classifier(state_dict)
    if found != expected:
        different = next(key for key in [*expected, *found] if found.get(key) != expected.get(key))
        raise UserError(
            f"the weights in {source} are not those of torchvision's {name}: {different} is "
            f"{found.get(different, 'missing')} in place of {expected.get(different, 'none')}; give a state dict of "
            f"torchvision's {name}, or leave network_options.pretrained out"
        )
    trunk.load_state_dict({key: tensor for key, tensor in state_dict.items() if key in expected}, strict=False)


def _shapes_without_classifier(state_dict: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name, without the counters of batch norms too: torchvision's files are older than those."""
    left_out = ("fc.", "avgpool.", "num_batches_tracked")
    return {k: tuple(v.shape) for k, v in state_dict.items() if not (k.startswith(left_out) or k.endswith(left_out))}


def _imagenet_weights(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name)[WEIGHTS]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    try:
        return weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UserError(
            f"the ImageNet weights of {name} are not in {cached} and cannot be downloaded from {weights.url} "
            f"({error}): get the file where there is a network and copy it there, or set network_options.pretrained to "
            "its path"
        ) from error


def read_layout(shapes: dict[str, tuple[int, ...]]) -> Layout | None:
    """Depth, pooling, head and embedding size of a `ResNet`'s state dict. The input size is not in it: 224 is given."""
    if shapes.get("trunk.conv1.weight") != (64, 3, 7, 7) or shapes["trunk.layer1.0.conv2.weight"] != (64, 64, 3, 3):
        return None
    depth = tuple(
        len({key.split(".")[2] for key in shapes if key.startswith(f"trunk.layer{stage}.")}) for stage in (1, 2, 3, 4)
    )
    block = "bottleneck" if "trunk.layer1.0.conv3.weight" in shapes else "basic"
    names = tuple(name for name, known in BLOCKS.items() if known == (block, depth))
    exponent = shapes.get("trunk.avgpool.p")
    pooling = next(name for name, shape in EXPONENT_SHAPES.items() if shape == exponent)
    layers = {"embedding.weight": "linear", "whiten.weight": "whitening", "norm.eps": "unit"}
    layer, head = next(((layer, head) for layer, head in layers.items() if layer in shapes), ("", "none"))
    ends_in_pooling = head in ("unit", "none")
    embedding_size = FEATURES[block] if ends_in_pooling else shapes[layer][0]
    options: dict[str, object] = {"pooling": pooling}
    if head != "linear":
        options["head"] = head
    return Layout(names, embedding_size, DEFAULT_IMAGE_SIZE, options, "imagenet", ends_in_pooling)
