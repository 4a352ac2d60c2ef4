"""State dicts in files, in the forms that people have them in."""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor

from core.errors import UserError
from core.files import require_file

__all__ = ["read_state_dict"]

logger = logging.getLogger(__name__)

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
