"""What a run folder keeps of the classifier that its model was trained with.

`classifier.pt` holds {"weight": (C, D) float32} and, for a head with a bias, "bias" (C,), whole, whatever the number of
ranks; `config.json` the loss that it was trained with, and C as `num_classes`.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from core.embeddings.store import FeatureStore
from core.errors import UserError
from core.heads.build import build_margin
from core.heads.frozen_classifier import FrozenClassifier
from core.models.encoder import read_run_config

__all__ = ["load_old_classifier", "num_old_classes", "read_classifier", "share_classified_right"]

CHECKED_ROWS = 512


def num_old_classes(run: Path) -> int:
    """The classes that the model in the run folder was trained on. `UserError` if it is no run folder that tells."""
    if not run.is_dir():
        raise UserError(
            f"old_model {run} is no run folder, so that it is not known which classes the old model was trained on: "
            "give the run folder, or set old_classes_only=false"
        )
    config = read_run_config(run)
    if "num_classes" not in config:
        raise UserError(f"{run}/config.json has no 'num_classes': it is not the config of a run of this project")
    return config["num_classes"]


def read_classifier(run: Path) -> dict[str, Tensor]:
    """`weight` (C, D) and, if the head had one, `bias` (C,), memory-mapped. `UserError` if the run has no such file."""
    path = run / "classifier.pt"
    if not path.is_file():
        raise UserError(
            f"the old model's own classifier is not there: {path}. A run folder whose training has ended has it; start "
            "that training again to have it written, name another old_model, or set old_classifier=means"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weight, bias = content["weight"], content.get("bias")
        fits = weight.ndim == 2 and (bias is None or bias.shape == weight.shape[:1]) and len(content) <= 2
    except Exception as error:  # whatever a damaged file makes of torch.load, or another file of the names
        raise UserError(f"cannot read {path} ({type(error).__name__}): it is damaged, or no classifier") from error
    if not fits:
        raise UserError(f"{path} is no classifier: expected weight (C, D) and bias (C,)")
    return content


def load_old_classifier(run: Path, embedding_size: int) -> FrozenClassifier:
    """The classifier of a run folder, frozen, with the loss that it was trained with. Every rank must call this.

    `UserError` if there is none, or if it is not made for embeddings of `embedding_size`.
    """
    content = read_classifier(run)
    weight = content["weight"]
    if weight.shape[1] != embedding_size:
        raise UserError(
            f"{run}/classifier.pt takes embeddings of size {weight.shape[1]}, not {embedding_size}: is it of this run?"
        )
    config = read_run_config(run)
    missing = sorted({"loss", "margin_scale", "margin"} - set(config))
    if missing:
        raise UserError(f"{run}/config.json has no {missing[0]!r}, so that the classifier's loss is not known")
    return FrozenClassifier(
        build_margin(config.loss, config.margin_scale, config.margin),
        **{name: tensor.numpy() for name, tensor in content.items()},
    )


def share_classified_right(run: Path, store: FeatureStore) -> float:
    """Share of old embeddings, of 512 over the store at most, that the run's classifier puts into their own class.

    Of the rows whose label is one of its classes; NaN without any. Near 0 where labels mean something else than in the
    old run. Memory: 512 rows of logits.
    """
    content = read_classifier(run)
    weight = content["weight"]
    config = read_run_config(run)
    if build_margin(config.loss, config.margin_scale, config.margin).normalized:
        weight = normalize(weight)
    rows = np.flatnonzero(np.asarray(store.labels()) < len(weight))
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), CHECKED_ROWS)).astype(np.int64)]
    logits = torch.from_numpy(store.features[rows]) @ weight.T + content.get("bias", torch.zeros(()))
    return float((logits.argmax(1).numpy() == store.labels()[rows]).mean())
