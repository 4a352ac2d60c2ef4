"""The `config.json` of a run folder, as far as a model is read from it."""

from pathlib import Path

from easydict import EasyDict

from core.errors import UserError
from core.files import reading
from core.images.transforms import NORMALIZATIONS
from core.json_files import read_json

__all__ = ["read_run_config"]

TYPES = {
    "network": str,
    "embedding_size": int,
    "image_size": int,
    "normalization": str,
    "network_options": dict | None,
    "num_classes": int,
}
"""The keys that are read, all but the first three optional."""
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".onnx", ".tar")
"""Of files in folders of other programs, which people give in place of the file."""
REQUIRED = ("embedding_size", "image_size", "network")


def read_run_config(folder: Path) -> EasyDict:
    """`config.json` of a run folder, the values of `TYPES` being of these types.

    `UserError` if the file is missing or damaged, lacks a required key, or names an unknown normalization.
    """
    file = folder / "config.json"
    weights = sorted(path for path in folder.glob("*") if path.suffix in WEIGHT_SUFFIXES)
    if file.exists():  # beside arcface_torch's model.pt there is none
        weights = [path for path in weights if path.name != "model.pt"]
    hint = f"; if {weights[0]} is the model, give that file and name its network" if weights else ""
    if not file.is_file():
        raise UserError(f"config of the run folder not found: {file}{hint}")
    content = read_json(file, "config of a run folder", "the run folder is damaged")
    with reading(file, "config of a run folder", "the run folder is damaged"):
        config = EasyDict(content)
    missing = [key for key in REQUIRED if key not in config]
    if missing:
        raise UserError(f"{file} has no {missing[0]!r}: it is not the config of a run{hint}")
    for key, kind in TYPES.items():
        if key in config and not isinstance(config[key], kind):
            found = type(config[key]).__name__
            raise UserError(f"{file}: {key} is {config[key]!r}, of type {found}: the run folder is damaged")
    normalization = config.setdefault("normalization", "face")
    if normalization not in NORMALIZATIONS:
        raise UserError(f"{file}: unknown normalization {normalization!r}, known are {', '.join(NORMALIZATIONS)}")
    return config
