"""The old model of a training: what it is, its embeddings of the training images, and its own classifier.

A run folder keeps the classifier that its model was trained with (`core.engine.run_classifier`), and in its config the
number of its classes as `num_classes`. Other model arguments (a `.pt` or `.onnx` file) have embeddings alone. A map's
run folder has embeddings, in the space that the map leads to, and the classes that its base model was trained on.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from core.data.open_dataset import ImageDataset, open_training_data
from core.embeddings.extraction import default_store_path, extract_embeddings, require_writable_store
from core.embeddings.store import EmbeddingStore
from core.engine.run_classifier import RunClassifier, read_run_classifier
from core.errors import UserError
from core.files import resolve
from core.heads.frozen_classifier import FrozenClassifier
from core.models.encoder import Encoder, load_encoder
from core.models.map_run import is_map_run, model_chain
from core.models.run_config import read_run_config
from core.parallel.ranks import Ranks
from core.settings import Settings

__all__ = ["OldModel", "load_old_model", "open_old_features"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class OldModel:
    """The model that the new one is to be compatible with."""

    path: Path
    """The model argument: a run folder, that of a map too, or a `.pt` or `.onnx` file."""
    name: str
    network: str
    fingerprint: str
    """As `core.models.encoder.Encoder` has it."""
    embedding_size: int
    stored_features: EmbeddingStore | None = None
    """None before the training images are opened."""
    preprocessing: str = ""
    """What it is fed, as `core.models.encoder.Encoder` has it."""

    @property
    def features(self) -> EmbeddingStore:
        """Its embeddings of the training images, one row an image."""
        if self.stored_features is None:
            raise RuntimeError("the old model has no embeddings yet: use them in Method.setup and later")
        return self.stored_features

    def require(self, names: Iterable[str]) -> None:
        """`UserError` unless it has what `Method.needs` names: `classifier`, `num_classes`."""
        for name in names:
            getattr(self, name)

    @property
    def num_classes(self) -> int:
        """The number of classes it was trained on, the first of the data's in an extended setting.

        `UserError` if the model argument is not a run folder, or its config does not say.
        """
        path = model_chain(self.path)[-1]
        if not path.is_dir():
            raise UserError(
                f"old_model {path} is not a run folder, so the classes that the old model was trained on are not "
                "known: name its run folder, or set old_classes_only=false"
            )
        config = read_run_config(path)
        if "num_classes" not in config:
            raise UserError(f"the config of {path} has no 'num_classes': it is not a run folder of this project")
        return config["num_classes"]

    @cached_property
    def classifier(self) -> FrozenClassifier:
        """Its own classifier, frozen, with the loss that it was trained with. Read on first use, only this rank's rows.

        `UserError` if there is none, it is damaged, or it takes embeddings of another size.
        """
        own = self._own_classifier()
        return FrozenClassifier(own.margin, own.weight.numpy(), None if own.bias is None else own.bias.numpy())

    def classifier_accuracy(self) -> float:
        """The accuracy of its own classifier on its embeddings, as `RunClassifier.accuracy` measures it."""
        return self._own_classifier().accuracy(self.features)

    def _own_classifier(self) -> RunClassifier:
        remedy = "name another old_model, or set old_classifier=means"
        if is_map_run(self.path):
            raise UserError(f"old_model {self.path} is the run folder of a map, which has no classifier: {remedy}")
        return read_run_classifier(self.path, self.embedding_size, "old", remedy)


def load_old_model(settings: Settings, ranks: Ranks) -> tuple[Encoder, OldModel]:
    """The model that the setting `old_model` names, without embeddings of the training images, which are not needed.

    `UserError` if none is named, it cannot be read, its embeddings have another size than the new model's, or the place
    that the setting `features` names for them cannot be written.
    """
    if settings.old_model is None:
        raise UserError("config key 'old_model' is not set: name the run folder, .pt or .onnx file of the old model")
    path = resolve(settings.old_model)
    encoder = load_encoder(
        path,
        settings.old_network,
        ranks.device,
        mean=settings.old_mean,
        std=settings.old_std,
        channel_order=settings.old_channel_order,
        network_option="old_network=",
    )
    if encoder.embedding_size != settings.embedding_size:
        raise UserError(
            f"the old model {settings.old_model} has embeddings of size {encoder.embedding_size}, the new one "
            f"{settings.embedding_size}: set embedding_size={encoder.embedding_size}, they must be comparable"
        )
    if settings.features is not None and ranks.is_first:
        require_writable_store(resolve(settings.features))
    logger.info("old model: %s (%s, fingerprint %s)", settings.old_model, encoder.network, encoder.fingerprint[:12])
    old_model = OldModel(
        path,
        encoder.name,
        encoder.network,
        encoder.fingerprint,
        encoder.embedding_size,
        preprocessing=encoder.preprocessing,
    )
    return encoder, old_model


def open_old_features(encoder: Encoder, settings: Settings, data: ImageDataset, ranks: Ranks) -> EmbeddingStore:
    """The old model's embeddings of `data`, extracted if they are missing. Collective."""
    if encoder.image_size != data.image_size:
        data = open_training_data(settings, encoder.image_size)
    store = default_store_path(encoder, data) if settings.features is None else resolve(settings.features)
    return extract_embeddings(encoder, data, store, ranks, settings.batch_size, settings.num_workers)
