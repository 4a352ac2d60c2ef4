"""The classifier that the model of a run folder was trained with.

`classifier.pt` of a run folder holds {"weight": (C, D) float32} and, for a classifier with a bias, "bias" (C,), whole,
whatever the number of ranks; the folder's config holds the loss that it was trained with.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from core.embeddings.store import EmbeddingStore
from core.errors import UserError
from core.files import reading
from core.heads.build import build_margin
from core.heads.class_weights import read_classifier_file
from core.heads.margins import Margin
from core.models.run_config import read_run_config

__all__ = ["RunClassifier", "read_run_classifier"]

CHECKED_ROWS = 512
"""Rows at most, over the whole store, on which a classifier's accuracy is measured."""


@dataclass(frozen=True, eq=False)
class RunClassifier:
    """A classifier over C classes, memory-mapped, with the margin of its loss."""

    weight: Tensor
    """(C, D)."""
    bias: Tensor | None
    """(C,)."""
    margin: Margin

    def accuracy(self, store: EmbeddingStore) -> float:
        """The accuracy on its model's embeddings, of the rows whose label is one of its classes.

        On 512 rows at most, spread over the store; NaN if there are none. Near 0 if the labels of the data do not mean
        what they meant when the model was trained. Memory: 512 rows of logits.
        """
        labels = np.asarray(store.labels())
        rows = np.flatnonzero(labels < len(self.weight))
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), CHECKED_ROWS)).astype(np.int64)]
        weight = normalize(self.weight) if self.margin.normalized else self.weight
        logits = torch.from_numpy(store[rows]) @ weight.T + (0 if self.bias is None else self.bias)
        return float((logits.argmax(1).numpy() == labels[rows]).mean())


def read_run_classifier(folder: Path, embedding_size: int, which: str, remedy: str) -> RunClassifier:
    """The classifier of the run at `folder`, whose model has embeddings of a size.

    `which` model it is of, and what to do without it, `remedy`, are for the `UserError` where it is missing; another
    one if it is damaged or takes embeddings of another size, or the loss that it was trained with is not known.
    """
    path = folder / "classifier.pt"
    if not path.is_file():
        raise UserError(
            f"the {which} model has no classifier of its own at {path}: a run folder has it once its training has "
            f"ended; start that training again to have it written, {remedy}"
        )
    tensors = read_classifier_file(path)
    weight, bias = (tensors[name].float() if name in tensors else None for name in ("weight", "bias"))
    assert weight is not None
    if weight.shape[1] != embedding_size:
        raise UserError(
            f"{path} takes embeddings of size {weight.shape[1]}, not {embedding_size}: it is not of this run"
        )
    return RunClassifier(weight, bias, _margin_of(folder))


def _margin_of(folder: Path) -> Margin:
    """The margin of the loss that a run's classifier was trained with."""
    config = read_run_config(folder)
    missing = sorted({"loss", "margin_scale", "margin"} - set(config))
    if missing:
        raise UserError(f"the config of {folder} has no {missing[0]!r}, so its classifier's loss is not known")
    with reading(folder / "config.json", "config of a run folder", "the run folder is damaged"):
        return build_margin(str(config["loss"]), float(config["margin_scale"]), float(config["margin"]))
