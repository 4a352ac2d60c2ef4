"""Networks of other programs that are networks of this project under other names.

Each function takes the tensors of a state dict by name and gives them by this project's names, or None if the state
dict is not of its kind. Names that it does not know stay as they are.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from core.backbones.file_kinds import EXPORT
from core.errors import UserError
from core.images.transforms import NORMALIZATIONS

__all__ = ["own_names"]

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]

IMAGENET_CLASSES = (1000, 11221, 11821, 21841, 21843)
"""Of ImageNet-1k and of the sets of ImageNet-21k that networks are published for."""
TRUNK_OF_FEATURES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""torchvision's ResNet without its last two modules, as a sequence."""
RETRIEVAL_EPSILON = 1e-6
IR_UNITS = {
    6: {"0": "bn1", "1": "conv1", "2": "bn2", "3": "prelu", "4": "conv2", "5": "bn3"},
    5: {"0": "bn1", "1": "conv1", "2": "prelu", "3": "conv2", "4": "bn3"},
}
"""Layers of a residual unit, by their number: AdaFace's, and the older one of face.evoLVe without the middle norm."""
IR_ENDS = {
    "input_layer.0": "conv1", "input_layer.1": "bn1", "input_layer.2": "prelu", "output_layer.0": "bn2",
    "output_layer.3": "fc", "output_layer.4": "features",
}  # fmt: skip
NORM_EPSILON = 1e-5
"""Of PyTorch's batch norms."""


def own_names(tensors: Tensors, meta: Any, source: object) -> Tensors | None:
    """The tensors by this project's names, or None if they are of no kind that is known.

    `meta` is what the checkpoint says of the network beside its tensors. `UserError`, which names `source`, for a
    network of a known kind with a part that is not here.
    """
    for convert in KINDS:
        try:
            found = convert(tensors, meta if isinstance(meta, Mapping) else {}, source)
        except UserError:
            raise
        except (KeyError, IndexError, ValueError):  # names that only begin as those of its kind
            continue
        if found is not None:
            return found
    return None


def _torchvision(tensors: Tensors, meta: Mapping[str, Any], source: object) -> Tensors | None:
    """ResNets of torchvision, and those of timm with the same names. A classifier of ImageNet is left out."""
    if "conv1.weight" not in tensors or "layer4.0.conv1.weight" not in tensors or "prelu.weight" in tensors:
        return None
    trunk = re.compile(r"(conv1|bn1|layer\d|avgpool|fc)\.")
    own = {f"trunk.{name}" if trunk.match(name) else name: tensor for name, tensor in tensors.items()}
    if "fc.weight" in tensors and len(tensors["fc.weight"]) in IMAGENET_CLASSES:
        logger.info("%s: the classifier of ImageNet, fc, is left out", source)
        own = {name: tensor for name, tensor in own.items() if not name.startswith("trunk.fc.")}
    return own


def _cnnimageretrieval(tensors: Tensors, meta: Mapping[str, Any], source: object) -> Tensors | None:
    """ResNets of cnnimageretrieval-pytorch: pooled, of unit length; `whiten` follows, and unit length again."""
    if "features.0.weight" not in tensors:
        return None
    if "features.4.0.conv1.weight" not in tensors:
        if "architecture" not in meta:
            return None
        raise UserError(f"{source} is a retrieval network on {meta['architecture']}; only ResNets are read: {EXPORT}")
    own: Tensors = {"norm.eps": torch.tensor(RETRIEVAL_EPSILON)}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if first == "features":
            number, _, rest = rest.partition(".")
            own[f"trunk.{TRUNK_OF_FEATURES.get(number, number)}.{rest}"] = tensor
        elif name in ("whiten.weight", "whiten.bias"):
            own[name] = tensor
        elif name != "pool.p":
            raise UserError(f"{source} is a retrieval network with {name}, which is not read here: {EXPORT}")
    own |= _retrieval_pooling(tensors.get("pool.p"), meta, source)
    _tell_about_preprocessing(meta, source)
    return own


def _retrieval_pooling(exponent: Tensor | None, meta: Mapping[str, Any], source: object) -> Tensors:
    if exponent is not None and exponent.shape == (1,):
        return {"trunk.avgpool.p": exponent}
    pooling = f"gem with {exponent.numel()} exponents" if exponent is not None else meta.get("pooling")
    if pooling == "spoc":
        return {}
    if pooling == "mac":
        return {"trunk.avgpool.p": torch.tensor(math.inf)}
    raise UserError(f"{source} is a retrieval network whose pooling is {pooling or 'not told'}: {EXPORT}")


def _tell_about_preprocessing(meta: Mapping[str, Any], source: object) -> None:
    """Warn of another mean or standard deviation, in units of 0 to 1, than the ImageNet's that the network gets."""
    told = [meta.get(key, ()) for key in ("mean", "std")]
    if all(isinstance(values, list | tuple) and len(values) == 3 for values in told):
        mean, std = ([round(255 * float(value), 2) for value in values] for values in told)
        if any(abs(one - other) > 0.5 for one, other in zip(mean + std, sum(NORMALIZATIONS["imagenet"], ()))):
            options = f"--mean {' '.join(map(str, mean))} --std {' '.join(map(str, std))}"
            logger.warning("%s says that it takes other images than ImageNet's: give %s", source, options)
    if "Lw" in meta:
        logger.info("%s has a whitening of finished embeddings (Lw) beside the network, which is not applied", source)


def _advbct(tensors: Tensors, meta: Mapping[str, Any], source: object) -> Tensors | None:
    """Networks of AdvBCT's repository: timm's ResNet, a linear layer, a batch norm."""
    if "convnet.conv1.weight" not in tensors or "projection_dim.weight" not in tensors:
        return None
    renamed = ("convnet.", "trunk."), ("projection_dim.", "embedding.")
    return {_with_prefix_replaced(name, renamed): tensor for name, tensor in tensors.items()}


def _with_prefix_replaced(name: str, replacements: tuple[tuple[str, str], ...]) -> str:
    return next((new + name.removeprefix(old) for old, new in replacements if name.startswith(old)), name)


def _ir(tensors: Tensors, meta: Mapping[str, Any], source: object) -> Tensors | None:
    """IR-18 to IR-100 of AdaFace, CVLface and face.evoLVe, which compute what IResNets do.

    They take every second pixel in the first shortcut, where IResNet has a convolution and a batch norm, which become
    identities here; their last batch norm has no scale.
    """
    if "input_layer.0.weight" not in tensors or "output_layer.3.weight" not in tensors:
        return None
    layers = {name.split(".")[3] for name in tensors if name.startswith("body.") and ".res_layer." in name}
    layer_names = IR_UNITS.get(len(layers))
    if layer_names is None or layers != set(layer_names):
        return None
    own: Tensors = {}
    units = _ir_unit_names(tensors)
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        body, number, *rest = module.split(".") if module.startswith("body.") else ("", "")
        if body and rest[0] == "res_layer":
            module = f"{units[number]}.{layer_names[rest[1]]}"
        elif body and rest[0] == "shortcut_layer":
            module = f"{units[number]}.downsample.{rest[1]}"
        module = IR_ENDS.get(module, module)
        own[f"{module}.{leaf}" if module else name] = tensor
    width = len(tensors["input_layer.0.weight"])
    own["layer1.0.downsample.0.weight"] = torch.eye(width)[:, :, None, None]
    norms = {"layer1.0.downsample.1": width, "features": len(tensors["output_layer.3.weight"])}
    norms |= {f"{unit}.bn2": len(own[f"{unit}.conv1.weight"]) for unit in units.values()}
    missing = {name: tensor for module, size in norms.items() for name, tensor in _identity(module, size).items()}
    return missing | own


def _ir_unit_names(tensors: Tensors) -> dict[str, str]:
    """IResNet's name of each residual unit, by its number: a stage begins where the number of channels changes."""
    numbers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("body.")})
    names, stage, position, channels = {}, 1, 0, len(tensors["input_layer.0.weight"])
    for number in numbers:
        unit_channels = len(tensors[f"body.{number}.res_layer.1.weight"])
        if unit_channels != channels:
            stage, position, channels = stage + 1, 0, unit_channels
        names[str(number)] = f"layer{stage}.{position}"
        position += 1
    return names


def _identity(module: str, size: int) -> Tensors:
    """A batch norm that changes nothing."""
    ones, zeros = torch.ones(size), torch.zeros(size)
    return {
        f"{module}.weight": ones, f"{module}.bias": zeros,
        f"{module}.running_mean": zeros, f"{module}.running_var": ones - NORM_EPSILON,
    }  # fmt: skip


KINDS: tuple[Callable[[Tensors, Mapping[str, Any], object], Tensors | None], ...] = (
    _torchvision, _cnnimageretrieval, _advbct, _ir,
)  # fmt: skip
