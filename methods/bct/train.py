"""BCT: Towards Backward-Compatible Representation Learning (Shen et al., CVPR 2020, arXiv 2003.11942).

The new embedding must be classified correctly by the old model's classifier too:

    L = L_cls + L_bct,    L_cls = the new model's classification loss.

If the classes are not those that the old model was trained on, as for faces here, the old classifier is synthesised:
class c has the frozen weight p_c = mean of its old embeddings, normalised. With new embeddings n_i and P the rows p_c,

    L_bct = mean_i CE(s P n_i / |n_i|, y_i).

On extended data, as for landmarks, L_bct is the old model's own classification loss: with its classifier W, b, a plain
softmax there,

    L_bct = mean_i CE(W n_i + b, y_i)    over the samples of the classes that the old model was trained on.

    torchrun --nproc_per_node=8 train.py configs/OPclass_ms1mv3_r18_to_r50_BCT_softmax_to_arc_f128.py
    python train.py configs/glyphs.py
"""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from core.embeddings.statistics import prepare_class_means
from core.engine.method import Batch, Method, Run
from core.errors import UserError, run_program
from core.heads import build_head
from core.heads.frozen_classifier import FrozenClassifier
from core.heads.margins import CosFace
from core.program import train_program
from core.settings import Settings, key

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BCTSettings(Settings):
    """BCT's own settings, as released."""

    old_classifier: Literal["means", "own"] = key(
        "means",
        "means: of each class's old embeddings; own: the old run's, for the first classes of the data",
        heading="BCT",
    )
    compat_scale: float = key(1.0, "s: of the cosines with the means", above=0)


class BCT(Method[BCTSettings]):
    """Holds the new and the frozen old classifier, and the old number of each class of the data."""

    old_class: Tensor
    """int64 (C,): the class of the data among those of the old classifier, or -1."""

    settings_type = BCTSettings

    def needs(self, settings: BCTSettings) -> tuple[str, ...]:
        """The old run's classifier, if that is to be used."""
        return ("classifier",) if settings.old_classifier == "own" else ()

    def setup(self, run: Run[BCTSettings]) -> None:
        """Build the classifier, and the old classifier: from the means of the old features, or the old run's own."""
        settings = run.settings
        self.classifier = build_head(settings, run.data.num_classes)
        if settings.old_classifier == "own":
            old_class = self._take_own(run)
        else:
            old_class = self._synthesise(run)
        self.old_classifier.recompute_logits = settings.recompute_logits
        self.register_buffer("old_class", torch.from_numpy(old_class), persistent=False)

    def _synthesise(self, run: Run[BCTSettings]) -> np.ndarray:
        """One class for each class of the data that has old features. Returns its number, -1 without: (C,)."""
        means = prepare_class_means(run.old_model.features, run.ranks, normalized=False)
        known = np.bincount(run.old_model.features.labels(), minlength=len(means)) > 0
        margin = CosFace(run.settings.compat_scale, 0.0)
        self.old_classifier = FrozenClassifier(margin, means if known.all() else means[known])
        return np.where(known, known.cumsum() - 1, -1)

    def _take_own(self, run: Run[BCTSettings]) -> np.ndarray:
        """The old run's classifier, whose classes are the first of the data's. Returns each class's number or -1."""
        self.old_classifier = run.old_model.classifier
        num_old, num_classes = self.old_classifier.num_classes, run.data.num_classes
        if num_old > num_classes:
            raise UserError(
                f"the old model was trained on {num_old} classes, but the data have {num_classes}: with "
                "old_classifier=own the data's first classes must be the old ones (an extended setting)"
            )
        if run.ranks.is_first:
            accuracy = 100 * run.old_model.classifier_accuracy()
            logger.info("accuracy of the old classifier on old embeddings: %.1f %% (0: other labels)", accuracy)
        return np.where(np.arange(num_classes) < num_old, np.arange(num_classes), -1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`cls`: classification; `bct`: the old classifier's loss, over the samples of the classes that it has."""
        return {
            "cls": self.classifier(batch.embedding, batch.label),
            "bct": self.old_classifier(batch.embedding, self.old_class[batch.label]),
        }


def main() -> None:
    """Train a new model that stays compatible with an old one, by BCT."""
    train_program(BCT(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
