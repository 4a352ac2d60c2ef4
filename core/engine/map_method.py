"""What a program that fits a map between the spaces of two models adds to the common way: how it fits it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch

from core.embeddings.store import EmbeddingStore
from core.engine.run_folder import code_version
from core.errors import UserError
from core.files import resolve
from core.models.encoder import Encoder, load_encoder
from core.models.map_run import NEW_TO_OLD, OLD_TO_NEW, BaseModel, joined_fingerprint
from core.models.maps import Map, Space
from core.models.maps.vectors import unit_rows
from core.parallel.ranks import Ranks
from core.settings.map_settings import MapSettings, ModelArgument

__all__ = ["FittedMap", "MapMethod", "Fitting", "Model", "load_model"]

M = TypeVar("M", bound=MapSettings)
ERROR_PAIRS = 1 << 15
"""On which the prediction of a trained map's errors is fitted."""


@dataclass(frozen=True, eq=False)
class Model:
    """One of the models whose embeddings of the same images a map joins."""

    argument: ModelArgument
    path: Path
    encoder: Encoder
    stored_features: EmbeddingStore | None = None
    """None before the images are opened."""

    @property
    def size(self) -> int:
        """D."""
        return self.encoder.embedding_size

    @property
    def space(self) -> Space:
        """That of its embeddings."""
        return Space(self.size, self.encoder.name, self.encoder.fingerprint)

    @property
    def features(self) -> EmbeddingStore:
        """Its embeddings of the images, one row an image."""
        if self.stored_features is None:
            raise RuntimeError(f"the {self.argument.which} model has no embeddings yet: use them in MapMethod.fit")
        return self.stored_features

    def unit_features(self, rows: np.ndarray) -> np.ndarray:
        """Its embeddings of some rows (n,), of length 1, float32 (n, D)."""
        block = self.features[rows]
        return unit_rows(block, slice(0, len(block)), f"{self.argument.which} embeddings", np.empty_like(block))

    def described(self) -> BaseModel:
        """What a map's config says of the model whose embeddings it takes."""
        told = self.argument
        return BaseModel(
            BaseModel.stored_path(self.path),
            self.encoder.fingerprint,
            told.network,
            told.mean,
            told.std,
            told.channel_order,
        )


def load_model(argument: ModelArgument, ranks: Ranks) -> Model:
    """The model that the settings name; `UserError` if they name none, or it cannot be read."""
    which = argument.which
    if argument.path is None:
        raise UserError(f"config key '{which}_model' is not set: name the run folder, .pt or .onnx file of that model")
    path = resolve(argument.path)
    encoder = load_encoder(
        path,
        argument.network,
        ranks.device,
        mean=argument.mean,
        std=argument.std,
        channel_order=argument.channel_order,
        network_option=f"{which}_network=",
    )
    return Model(argument, path, encoder)


@dataclass(frozen=True, eq=False)
class Fitting(Generic[M]):
    """What a method may use when it fits its map."""

    settings: M
    method_name: str
    direction: str | None
    """`old_to_new`, `new_to_old`, or None for a method that fits both."""
    ranks: Ranks
    old: Model
    new: Model
    side: Model | None = None
    """That gives side information on the gallery's images."""

    @property
    def device(self) -> torch.device:
        """Where maps are trained."""
        return self.ranks.device

    @property
    def num_pairs(self) -> int:
        """N."""
        return self.old.features.info.num_images

    @property
    def models(self) -> list[Model]:
        """Those whose embeddings are needed."""
        return [self.old, self.new, *([] if self.side is None else [self.side])]

    @property
    def source_size(self) -> int:
        """Of an old embedding and its side information."""
        return self.old.size + self.side_size

    @property
    def side_size(self) -> int:
        """0 without side information."""
        return 0 if self.side is None else self.side.size

    @property
    def source_space(self) -> Space:
        """Of old embeddings, each followed by its side information, if there is any."""
        if self.side is None:
            return self.old.space
        names, fingerprints = zip(*((model.encoder.name, model.encoder.fingerprint) for model in (self.old, self.side)))
        return Space(self.source_size, ",".join(names), joined_fingerprint(*fingerprints))

    def unit_sources(self, rows: np.ndarray) -> np.ndarray:
        """Old embeddings of rows (n,), each followed by its side information, if any; each of length 1, float32."""
        old = self.old.unit_features(rows)
        return old if self.side is None else np.hstack((old, self.side.unit_features(rows)))

    def spread_rows(self) -> np.ndarray:
        """At most 32,768 rows, evenly spread over all, int64."""
        return np.linspace(0, self.num_pairs - 1, min(self.num_pairs, ERROR_PAIRS)).astype(np.int64)

    def described(self, base: Model, direction: str) -> dict[str, Any]:
        """The entries of a map's `config.json`, but for those that the map writes itself."""
        data = self.old.features.info
        derived = {
            "method": self.method_name,
            "direction": direction,
            "base": asdict(base.described()),
            "side": None if self.side is None else asdict(self.side.described()),
            "old_model_fingerprint": self.old.encoder.fingerprint,
            "new_model_fingerprint": self.new.encoder.fingerprint,
            "data_fingerprint": data.data_fingerprint,
            "num_images": data.num_images,
            "version": code_version(),
            "torch_version": torch.__version__,
        }
        return json.loads(json.dumps({**asdict(self.settings), **derived}, default=list))


@dataclass(frozen=True, eq=False)
class FittedMap:
    """A map with the model whose embeddings it takes."""

    map: Map
    base: Model
    direction: str


class MapMethod(Generic[M]):
    """A paper's map. Subclasses fit it."""

    settings_type: type[MapSettings] = MapSettings
    """The class of `run.settings`: a method with settings of its own declares them in a subclass and names it here."""
    directions: ClassVar[tuple[str, ...]] = (OLD_TO_NEW, NEW_TO_OLD)
    """That may be asked for; none if the method always fits maps in both."""

    def usual_direction(self, settings: M) -> str | None:
        """Where the settings name none."""
        return self.directions[0] if self.directions else None

    def check(self, run: Fitting[M]) -> None:
        """`UserError` for what is wrong with the settings or the models, before the images are read."""

    def check_labels(self, run: Fitting[M], labels: np.ndarray) -> None:
        """The same for the classes of the images, int64 (N,), before anything is embedded."""

    def fit(self, run: Fitting[M]) -> dict[str, FittedMap]:
        """The maps by their folder below the run folder, "" for itself. Called on the first rank alone."""
        raise NotImplementedError
