"""The old model of a training: what it is, its embeddings of the training images, and its own classifier.

A run folder keeps the classifier that its model was trained with: `classifier.pt` holds {"weight": (C, D) float32} and,
for a classifier with a bias, "bias" (C,), whole, whatever the number of ranks; its config holds the loss that it was
trained with, and C as `num_classes`. Other model arguments (a `.pt` or `.onnx` file) have embeddings alone.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from core.data.open_dataset import ImageDataset, open_training_data
from core.embeddings.extraction import default_store_path, extract_embeddings, require_writable_store
from core.embeddings.store import EmbeddingStore
from core.errors import UserError
from core.files import resolve
from core.heads.build import build_margin
from core.heads.class_weights import read_classifier_file
from core.heads.frozen_classifier import FrozenClassifier
from core.heads.margins import Margin
from core.models.encoder import Encoder, load_encoder
from core.models.run_config import read_run_config
from core.parallel.ranks import Ranks
from core.settings import Settings

__all__ = ["OldModel", "load_old_model", "open_old_features"]

logger = logging.getLogger(__name__)
CHECKED_ROWS = 512
"""Rows at most, over the whole store, on which the classifier's accuracy is measured."""


@dataclass(frozen=True, eq=False)
class OldModel:
    """The model that the new one is to be compatible with."""

    path: Path
    """The model argument: a run folder, or a `.pt` or `.onnx` file."""
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
        if not self.path.is_dir():
            raise UserError(
                f"old_model {self.path} is not a run folder, so the classes that the old model was trained on are not "
                "known: name its run folder, or set old_classes_only=false"
            )
        config = read_run_config(self.path)
        if "num_classes" not in config:
            raise UserError(f"the config of {self.path} has no 'num_classes': it is not a run folder of this project")
        return config["num_classes"]

    @cached_property
    def classifier(self) -> FrozenClassifier:
        """Its own classifier, frozen, with the loss that it was trained with. Read on first use, only this rank's rows.

        `UserError` if there is none, it is damaged, or it takes embeddings of another size.
        """
        tensors = self._classifier_tensors()
        bias = tensors["bias"].numpy() if "bias" in tensors else None
        return FrozenClassifier(self._margin(), tensors["weight"].numpy(), bias)

    def classifier_accuracy(self) -> float:
        """The accuracy of its own classifier on its embeddings, of the rows whose label is one of its classes.

        On 512 rows at most, spread over the store; NaN if there are none. Near 0 if the labels of the data do not mean
        what they meant when the old model was trained. Memory: 512 rows of logits.
        """
        tensors = self._classifier_tensors()
        weight, labels = tensors["weight"], np.asarray(self.features.labels())
        if self._margin().normalized:
            weight = normalize(weight)
        rows = np.flatnonzero(labels < len(weight))
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), CHECKED_ROWS)).astype(np.int64)]
        logits = torch.from_numpy(self.features[rows]) @ weight.T + tensors.get("bias", torch.zeros(()))
        return float((logits.argmax(1).numpy() == labels[rows]).mean())

    def _classifier_tensors(self) -> dict[str, Tensor]:
        """`weight` (C, D) and, if there is one, `bias` (C,), memory-mapped."""
        path = self.path / "classifier.pt"
        if not path.is_file():
            raise UserError(
                f"the old model has no classifier of its own at {path}: a run folder has it once its training has "
                "ended; start that training again to have it written, name another old_model, or set "
                "old_classifier=means"
            )
        tensors = read_classifier_file(path)
        size = tensors["weight"].shape[1]
        if size != self.embedding_size:
            raise UserError(f"{path} takes embeddings of size {size}, not {self.embedding_size}: it is not of this run")
        return tensors

    def _margin(self) -> Margin:
        """The margin of the loss that the classifier was trained with."""
        config = read_run_config(self.path)
        missing = sorted({"loss", "margin_scale", "margin"} - set(config))
        if missing:
            raise UserError(f"the config of {self.path} has no {missing[0]!r}, so its classifier's loss is not known")
        return build_margin(config["loss"], config["margin_scale"], config["margin"])


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
