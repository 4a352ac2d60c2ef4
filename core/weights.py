"""State dicts on disk: reading what people have, telling which network it is, and building that network with it."""

import hashlib
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from core.backbones import Layout, build_backbone, list_backbones, read_layout, require_backbone
from core.errors import UserError
from core.files import require_file

__all__ = ["build_with_weights", "fingerprint", "layout_of", "read_state_dict", "shapes_of"]

logger = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]
WRAPPERS = ("state_dict_backbone", "state_dict", "model", "backbone")
"""Keys under which checkpoints of training programs hold the network (the first is arcface_torch's)."""
NAME_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
HEAD_PREFIXES = ("cls_fc.", "BCT_FC.")
"""Classifier weights that MixBCT's released code keeps in the backbone: no part of the encoder."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The backbone's tensors (CPU, by name) in a file written by `torch.save`.

    Read with `weights_only=True` and, where the format allows it, memory-mapped: tensors come from disk when used.
    A checkpoint that holds the state dict under one of `WRAPPERS` is unwrapped; `NAME_PREFIXES` are taken off;
    `HEAD_PREFIXES` are left out. `UserError` if there is no file, if it is damaged, or if it holds no weights.
    """
    path = require_file(path, "model weights")
    content = _load(path)
    if isinstance(content, dict) and not _is_state_dict(content):
        content = next((content[key] for key in WRAPPERS if _is_state_dict(content.get(key))), content)
    if not _is_state_dict(content):
        raise UserError(f"{path} holds no weights: expected a state dict (names and tensors) written by torch.save")
    state_dict = {_plain_name(name): tensor for name, tensor in content.items()}
    return {name: tensor for name, tensor in state_dict.items() if not name.startswith(HEAD_PREFIXES)}


def _load(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.load's remarks on files that it then refuses
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # not the zip format that can be mapped: the format before PyTorch 1.6, or damaged
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        logger.debug("reading %s failed", path, exc_info=True)
        raise UserError(
            f"cannot read weights from {path}: the file is damaged or is no state dict written by torch.save "
            f"({type(error).__name__}); give a .pt file of tensors, a run folder or an .onnx file"
        ) from error


def _is_state_dict(content: object) -> bool:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())
    )


def _plain_name(name: str) -> str:
    while name.startswith(NAME_PREFIXES):
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
    return name


def fingerprint(state_dict: dict[str, Tensor]) -> str:
    """sha256 (hex) over names, types, shapes and bytes of the tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def shapes_of(state_dict: dict[str, Tensor]) -> Shapes:
    """Shape by name."""
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def layout_of(state_dict: dict[str, Tensor], network: str, source: str | Path) -> Layout:
    """Embedding size, input size and options of the weights, which must be those of `network`.

    `source` names the weights in errors. `UserError` if there is no such network, or if the weights are another's.
    An IResNet whose numbers of blocks are no known network's fits every IResNet name.
    """
    require_backbone(network)
    layout = read_layout(shapes_of(state_dict))
    if layout is not None and network in layout.names:
        return layout
    sizes = (512, {}) if layout is None else (layout.embedding_size, {"image_size": layout.image_size})
    expected = shapes_of(_unfilled(network, *sizes).state_dict())
    raise UserError(_mismatch(shapes_of(state_dict), expected, network, source))


def build_with_weights(
    state_dict: dict[str, Tensor], network: str, embedding_size: int, options: dict[str, object], source: str | Path
) -> nn.Module:
    """`build_backbone(network, embedding_size, **options)` with these weights, on the CPU, in float32.

    `source` names the weights in errors: `UserError` telling the first differences if they are of another network.
    """
    module = _unfilled(network, embedding_size, options)
    expected = shapes_of(module.state_dict())
    counters = {name: torch.tensor(0) for name in expected if name.endswith("num_batches_tracked")}
    state_dict = counters | state_dict  # weights older than PyTorch 0.4.1 have no such counters
    if shapes_of(state_dict) != expected:
        raise UserError(_mismatch(shapes_of(state_dict), expected, network, source))
    module.to_empty(device="cpu").load_state_dict(state_dict)
    return module


def _unfilled(network: str, embedding_size: int, options: dict[str, object]) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(network, embedding_size, **options)


def _mismatch(found: Shapes, expected: Shapes, network: str, source: str | Path) -> str:
    """One line: the first differences and, if the weights are a known network's, its name."""
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
        hint = f"the known networks are {', '.join(list_backbones())}"
    else:
        hint = f"they look like those of {' or '.join(layout.names)} (embedding size {layout.embedding_size})"
    return f"the weights in {source} are not those of network {network}: {', '.join(differences[:2])}{more}; {hint}"
