"""The network of a state dict: recognising it by its shapes, and building it with these weights."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.backbones import Layout, build_backbone, list_backbones, read_layout, require_backbone
from core.errors import UserError

__all__ = ["build_with_weights", "fingerprint", "layout_of", "require_sound", "shapes_of"]

Shapes = dict[str, tuple[int, ...]]


def fingerprint(state_dict: dict[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of the tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def shapes_of(state_dict: dict[str, Tensor]) -> Shapes:
    """Shape by name."""
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def layout_of(state_dict: dict[str, Tensor], network: str, source: str | Path) -> Layout:
    """Embedding size, input size and options of the weights, which must be those of `network`.

    `source` names the weights in errors. `UserError` if there is no such network, or if the weights belong to another.
    An IResNet with other numbers of blocks than any known network fits every IResNet name.
    """
    require_backbone(network)
    layout = read_layout(shapes_of(state_dict))
    if layout is not None and network in layout.names:
        return layout
    if layout is None:
        expected = _without_values(network, 512, {})
    else:
        expected = _without_values(network, layout.embedding_size, {"image_size": layout.image_size})
    raise UserError(_mismatch(shapes_of(state_dict), shapes_of(expected.state_dict()), network, source))


def build_with_weights(
    state_dict: dict[str, Tensor], network: str, embedding_size: int, options: dict[str, Any], source: str | Path
) -> nn.Module:
    """`build_backbone(network, embedding_size, **options)` with these weights, on the CPU, in float32.

    The option `pretrained` is ignored: the weights that the training began with need not exist any more. `source` names
    the weights in errors: `UserError` with the first differences if they belong to another network, and for weights
    that are no real numbers (`require_sound`).
    """
    module = _without_values(network, embedding_size, options)
    expected = shapes_of(module.state_dict())
    counters = {name: torch.tensor(0) for name in expected if name.endswith("num_batches_tracked")}
    state_dict = counters | state_dict  # weights older than PyTorch 0.4.1 have no such counters
    if shapes_of(state_dict) != expected:
        raise UserError(_mismatch(shapes_of(state_dict), expected, network, source))
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not state_dict[name].is_floating_point():
            kind = str(state_dict[name].dtype).removeprefix("torch.")
            raise UserError(f"{name} in {source} is {kind}, not real numbers: save the weights as they were trained")
    module.to_empty(device="cpu").load_state_dict(state_dict)
    require_sound(module, source)
    return module


def require_sound(module: nn.Module, source: str | Path) -> None:
    """`UserError` if a weight is NaN or infinite, or a variance of a batch norm negative. `source`: of the weights.

    A number without axes may be infinite: it marks a maximum among the means (`core.backbones.resnet`).
    """
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            extremes = torch.stack(tensor.aminmax())  # NaN if one number is
            if (extremes.isnan() | (extremes.isinf() & (tensor.ndim > 0))).any():
                raise UserError(
                    f"the weights in {source} are not all finite ({name}): the training diverged, or the file is "
                    "damaged; give those of another step"
                )
    for name, norm in module.named_modules():
        if isinstance(norm, _BatchNorm) and norm.running_var is not None and (norm.running_var < 0).any():
            raise UserError(f"a variance in {source} is negative ({name}.running_var): the file is damaged")


def _without_values(network: str, embedding_size: int, options: dict[str, Any]) -> nn.Module:
    """The network on the meta device: names and shapes, no memory."""
    options = {key: value for key, value in options.items() if key != "pretrained"}
    with torch.device("meta"):
        return build_backbone(network, embedding_size, **options)


def _mismatch(found: Shapes, expected: Shapes, network: str, source: str | Path) -> str:
    """One line: the first differences and, if the weights belong to a known network, its name."""
    differences = [f"{name} is missing" for name in expected if name not in found]
    differences += [f"{name} does not belong" for name in found if name not in expected]
    differences += [
        f"{name} is {found[name]} in place of {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    more = f" and {len(differences) - 2} more" if len(differences) > 2 else ""
    layout = read_layout(found)
    if layout is None:
        hint = f"the known networks are {', '.join(list_backbones())}; export any other to ONNX and give the .onnx file"
    else:
        hint = f"they look like those of {' or '.join(layout.names)} (embedding size {layout.embedding_size})"
        if expected.keys() < found.keys():
            hint += "; if the rest is a part of the model export it to ONNX, else save the weights without it"
    return f"the weights in {source} are not those of network {network}: {', '.join(differences[:2])}{more}; {hint}"
