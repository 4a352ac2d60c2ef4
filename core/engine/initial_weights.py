"""The weights that a training starts from where its settings name some: of the backbone, and of the classes.

They are read once, when a training begins. A resumed run goes on from its checkpoint and does not need them any more.
"""

import logging
from pathlib import Path

from torch import nn

from core.backbones.state_dicts import read_state_dict
from core.errors import UserError
from core.files import resolve
from core.heads.class_weights import ClassWeights, read_class_weights
from core.models.run_config import read_run_config
from core.models.weights import build_with_weights
from core.settings import Settings

__all__ = ["INITIAL_WEIGHTS", "load_initial_backbone", "open_initial_classes"]

logger = logging.getLogger(__name__)
INITIAL_WEIGHTS = ("weights", "weights_fingerprint", "head_weights", "head_weights_fingerprint")
"""What config.json says of them."""


def load_initial_backbone(settings: Settings, image_size: int) -> nn.Module:
    """The network of the settings with the weights that `settings.weights` names, on the CPU.

    `UserError` if they cannot be read or are those of another network, embedding size or image size.
    """
    assert settings.weights is not None
    path = _outside_the_run("weights", settings.weights, settings)
    if path.suffix == ".onnx":
        raise UserError(f"weights={path}: an ONNX file cannot be trained; name a run folder or a file of weights")
    file = path
    if path.is_dir():
        file = path / "model.pt"
        if (path / "config.json").is_file():
            _compare_normalization(path, settings)
    options = {**settings.network_options, "image_size": image_size}
    state_dict = read_state_dict(file, settings.network)
    backbone = build_with_weights(state_dict, settings.network, settings.embedding_size, options, file)
    logger.info("the backbone starts from %s", file)
    return backbone


def open_initial_classes(settings: Settings, num_classes: int) -> ClassWeights:
    """The class weights that `settings.head_weights` names; `UserError` if they are not of so many classes, or of D."""
    assert settings.head_weights is not None
    path = _outside_the_run("head_weights", settings.head_weights, settings)
    return read_class_weights(path, num_classes, settings.embedding_size)


def _outside_the_run(key: str, value: str, settings: Settings) -> Path:
    """The path of a setting; `UserError` if it lies in the run folder, which a new run empties."""
    path = resolve(value)
    if settings.run_folder in (path, path.parent):
        raise UserError(f"output {settings.run_folder} is the run folder that {key} names: name another output")
    return path


def _compare_normalization(folder: Path, settings: Settings) -> None:
    before = read_run_config(folder)["normalization"]
    if before != settings.normalization:
        logger.warning(
            "%s was trained with normalization=%s, this run has normalization=%s: its weights expect the former",
            folder,
            before,
            settings.normalization,
        )
