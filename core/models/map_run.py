"""A map's run folder as a model argument: the map, the base model whose embeddings it takes, and the direction.

`map.pt` and the entry `map` of `config.json` are the map's own (`core.models.maps`). The entry `base` is the base model
(`BaseModel`), the entry `direction` one of `DIRECTIONS`. A map with side information has an entry `side` like `base`:
the model whose embedding of an image follows the base's. Either may be a map's run folder again.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import ROOT, resolve
from core.json_files import read_json
from core.models.maps import Map, load_map

__all__ = ["DIRECTIONS", "NEW_TO_OLD", "OLD_TO_NEW", "BaseModel", "SavedMap", "is_map_run", "joined_fingerprint",
           "mapped_fingerprint", "model_chain", "model_paths", "read_map_run"]  # fmt: skip

NEW_TO_OLD, OLD_TO_NEW = "new_to_old", "old_to_new"
DIRECTIONS = (NEW_TO_OLD, OLD_TO_NEW)
"""The new model's queries are mapped into the old gallery's space; or the old gallery into the new model's space."""


@dataclass(frozen=True)
class BaseModel:
    """A model whose embeddings a map takes, as `config.json` describes it."""

    path: str
    """A model argument: below the repository's root relative to it, else absolute."""
    fingerprint: str
    """Of the encoder, fed as the following says."""
    network: str | None = None
    mean: Any = None
    std: Any = None
    channel_order: str | None = None
    """What the user said of the model; None: nothing (`core.models.encoder.load_encoder`)."""

    @staticmethod
    def stored_path(path: str | Path) -> str:
        """`path` for a model argument, as it is stored."""
        full = Path(os.path.realpath(path))
        return str(full.relative_to(ROOT) if full.is_relative_to(ROOT) else full)


@dataclass(frozen=True)
class SavedMap:
    """What a map's run folder holds."""

    map: Map
    base: BaseModel
    direction: str
    side: BaseModel | None = None
    """That gives side information, if the map takes any."""


def is_map_run(path: Path) -> bool:
    """Whether a model argument is the run folder of a map, be it a damaged one, rather than that of a trained model."""
    if not path.is_dir():
        return False
    return "map" in _read_config(path) or ((path / "map.pt").exists() and not (path / "model.pt").exists())


def read_map_run(folder: Path) -> SavedMap:
    """`UserError` if a file is missing or damaged, or does not say whose embeddings the map takes."""
    loaded = load_map(folder)
    config = _read_config(folder)
    direction = config.get("direction")
    if direction not in DIRECTIONS:
        raise UserError(
            f"{folder / 'config.json'}: direction is {direction!r}, not {' or '.join(DIRECTIONS)}: the run folder is "
            "damaged"
        )
    sources = _sources(folder, config)
    return SavedMap(loaded, sources["base"], direction, sources.get("side"))


def mapped_fingerprint(base: str, map_fingerprint: str) -> str:
    """The fingerprint of a base model followed by a map, from those of the two."""
    return hashlib.sha256(f"{base} {map_fingerprint}".encode()).hexdigest()


def joined_fingerprint(base: str, side: str) -> str:
    """The fingerprint of a base model with side information, from those of the two models."""
    return hashlib.sha256(f"{base} and {side}".encode()).hexdigest()


def model_paths(path: Path) -> list[Path]:
    """The model argument and, for a map's run folder, those of all models behind it: `model_chain`, then the sides.

    `UserError` for maps that lead in a circle, and for a run folder that does not name its base.
    """
    return _paths_behind([path])


def model_chain(path: Path) -> list[Path]:
    """The model argument and, for a map's run folder, its base model, the base's base and so on to a trained model.

    Errors as of `model_paths`.
    """
    paths = model_paths(path)
    trained = next(place for place, each in enumerate(paths) if not is_map_run(each))
    return paths[: trained + 1]


def _paths_behind(way: list[Path]) -> list[Path]:
    """The last of `way` and the models behind it; `way` leads from a model argument to one of the models behind it."""
    folder = way[-1]
    if not is_map_run(folder):
        return [folder]
    found = [folder]
    for name, model in _sources(folder, _read_config(folder)).items():
        source = resolve(model.path)
        if os.path.realpath(source) in map(os.path.realpath, way):
            raise UserError(
                f"the base models of the map {way[0]} lead in a circle ({' > '.join(map(str, [*way, source]))}): write "
                f"the path of the model whose embeddings it takes into {name} of {folder / 'config.json'}"
            )
        found += _paths_behind([*way, source])
    return found


def _sources(folder: Path, config: Mapping[str, Any]) -> dict[str, BaseModel]:
    """The models whose embeddings the map takes by their entries: `base` and, if there is one, `side`."""
    base, side = _model(config.get("base")), _model(config.get("side"))
    if base is None:
        raise UserError(
            f"{folder / 'config.json'} does not say whose embeddings the map takes (base: path, fingerprint): the run "
            "folder is damaged, or the map was saved without it; it maps stored vectors, but is no model"
        )
    if side is None and config.get("side") is not None:
        raise UserError(
            f"{folder / 'config.json'} does not say which model gives the map's side information (side: path, "
            "fingerprint): the run folder is damaged, fit the map again"
        )
    return {"base": base} if side is None else {"base": base, "side": side}


def _model(entry: object) -> BaseModel | None:
    """The model that an entry of `config.json` describes; None if it describes none."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in ("path", "fingerprint")):
        return None
    return BaseModel(**{field.name: entry[field.name] for field in fields(BaseModel) if field.name in entry})


def _read_config(folder: Path) -> dict[str, Any]:
    """`config.json`; empty if there is none or it cannot be read: what is missing is then reported by its reader."""
    try:
        return read_json(folder / "config.json", "config of the map's run folder")
    except UserError:
        return {}
