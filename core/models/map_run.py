"""A map's run folder as a model argument: the map, the base model whose embeddings it takes, and the direction.

`map.pt` and the entry `map` of `config.json` are the map's own (`core.models.maps`). The entry `base` is the base model
(`BaseModel`), the entry `direction` one of `DIRECTIONS`. A base model may be a map's run folder again.
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

__all__ = ["DIRECTIONS", "NEW_TO_OLD", "OLD_TO_NEW", "BaseModel", "SavedMap", "is_map_run", "mapped_fingerprint",
           "model_chain", "read_map_run"]  # fmt: skip

NEW_TO_OLD, OLD_TO_NEW = "new_to_old", "old_to_new"
DIRECTIONS = (NEW_TO_OLD, OLD_TO_NEW)
"""The new model's queries are mapped into the old gallery's space; or the old gallery into the new model's space."""


@dataclass(frozen=True)
class BaseModel:
    """The model whose embeddings a map takes, as `config.json` describes it."""

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
    return SavedMap(loaded, _base_model(folder, config), direction)


def mapped_fingerprint(base: str, map_fingerprint: str) -> str:
    """The fingerprint of a base model followed by a map, from those of the two."""
    return hashlib.sha256(f"{base} {map_fingerprint}".encode()).hexdigest()


def model_chain(path: Path) -> list[Path]:
    """The model argument and, for a map's run folder, its base model, the base's base and so on to a trained model.

    `UserError` for maps that lead in a circle, and for a run folder that does not name its base.
    """
    chain = [path]
    while is_map_run(chain[-1]):
        base = resolve(_base_model(chain[-1], _read_config(chain[-1])).path)
        if os.path.realpath(base) in map(os.path.realpath, chain):
            raise UserError(
                f"the base models of the map {path} lead in a circle ({' > '.join(map(str, [*chain, base]))}): write "
                f"the path of the model whose embeddings it takes into base of {chain[-1] / 'config.json'}"
            )
        chain.append(base)
    return chain


def _base_model(folder: Path, config: Mapping[str, Any]) -> BaseModel:
    base = config.get("base")
    known = {field.name for field in fields(BaseModel)}
    if not isinstance(base, dict) or not all(isinstance(base.get(name), str) for name in ("path", "fingerprint")):
        raise UserError(
            f"{folder / 'config.json'} does not say whose embeddings the map takes (base: path, fingerprint): the run "
            "folder is damaged, or the map was saved without it; it maps stored vectors, but is no model"
        )
    return BaseModel(**{name: value for name, value in base.items() if name in known})


def _read_config(folder: Path) -> dict[str, Any]:
    """`config.json`; empty if there is none or it cannot be read: what is missing is then reported by its reader."""
    try:
        return read_json(folder / "config.json", "config of the map's run folder")
    except UserError:
        return {}
