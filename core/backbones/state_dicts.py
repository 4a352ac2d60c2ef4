"""State dicts in files, in the wrappings that training programs save them in."""

import logging
import warnings
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from core.errors import UserError
from core.files import require_file

__all__ = ["read_state_dict"]

logger = logging.getLogger(__name__)

WRAPPERS = ("state_dict_backbone", "state_dict", "model", "backbone")
"""Keys under which checkpoints of training programs store the network (the first is arcface_torch's)."""
NAME_PREFIXES = ("module.", "_orig_mod.")
"""Prepended to every name by DistributedDataParallel and torch.compile."""
HEAD_PREFIXES = ("cls_fc.", "BCT_FC.")
"""Classifier weights that MixBCT's released code keeps in the backbone: not part of the encoder."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The backbone's tensors (CPU, by name) in a file written by `torch.save`.

    Read with `weights_only=True` and, where the format allows it, memory-mapped: tensors come from disk when used.
    A checkpoint with the state dict under one of `WRAPPERS` is unwrapped, `NAME_PREFIXES` are removed, and tensors
    under `HEAD_PREFIXES` are left out. `UserError` if there is no file, if it is damaged, or if it has no weights.
    """
    path = require_file(path, "model weights")
    content = _load(path)
    if isinstance(content, dict) and not _is_state_dict(content):
        content = next((content[key] for key in WRAPPERS if _is_state_dict(content.get(key))), content)
    if not _is_state_dict(content):
        raise UserError(f"{path} has no weights: expected a state dict (names and tensors) written by torch.save")
    state_dict = {_plain_name(name): tensor for name, tensor in content.items()}
    return {name: tensor for name, tensor in state_dict.items() if not name.startswith(HEAD_PREFIXES)}


def _load(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.load about files that it then refuses
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # not the zip format, which can be mapped: the format before PyTorch 1.6, or damaged
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        logger.debug("reading %s failed", path, exc_info=True)
        raise UserError(
            f"cannot read weights from {path}: the file is damaged or is not a state dict written by torch.save "
            f"({type(error).__name__}); give a .pt file of tensors, a run folder or an .onnx file"
        ) from error


def _is_state_dict(content: object) -> TypeGuard[dict[str, Tensor]]:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())
    )


def _plain_name(name: str) -> str:
    while name.startswith(NAME_PREFIXES):
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
    return name
