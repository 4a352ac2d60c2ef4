"""FastFill: Efficient Compatible Model Update (Jaeckle et al., ICLR 2023, arXiv 2303.04766).

FCT's network h, from old embeddings o_i and side information to the new model's space, with two more ideas: the new
model's own classifier, frozen, must still classify a mapped embedding, and a linear head predicts how wrong h is. With
h_i = h(o_i) and s_i = w.h_i + b,

    l_i = |n_i - h_i|² + mu_disc CE(classifier(h_i), y_i)    (smoothed labels)
    L   = mean_i [ exp(-s_i) l_i / 2 + mu s_i ]

s_i is the logarithm of a variance: where h fails, a large s_i makes the failure cheaper, at the price of mu s_i. The
gallery's images are embedded again by the new model in the order of falling s_i.

    python train.py configs/OPclass_ms1mv3_r18_to_r50_FastFill_softmax_to_arc_f128.py
    python train.py configs/glyphs.py old_model=work_dirs/glyphs_old new_model=work_dirs/glyphs_independent
"""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize

from core.engine.forward_map import ForwardMap
from core.engine.map_method import Fitting
from core.engine.map_training import PairBatch
from core.engine.run_classifier import RunClassifier, read_run_classifier
from core.errors import UserError, run_program
from core.models.maps.forward import FastFillNetwork
from core.program import map_program
from core.settings import ForwardMapSettings, key

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FastFillSettings(ForwardMapSettings):
    """FastFill's own settings, as released."""

    disc_weight: float = key(1.0, "mu_disc: of the new classifier's loss", minimum=0, heading="FastFill")
    label_smoothing: float = key(0.1, "share of a label that is spread over all classes", minimum=0, below=1)
    uncertainty_weight: float = key(0.5, "mu: the price of a predicted log variance", above=0)


class FastFill(ForwardMap[FastFillSettings]):
    """Holds the network with its head, and the new model's classifier, which is not trained."""

    kind = "fastfill"
    settings_type = FastFillSettings
    weight: Tensor
    """(C, D_n) of the classifier, its rows of length 1 for a margin."""
    bias: Tensor
    """(C,), zeros if it has none."""

    def check(self, run: Fitting[FastFillSettings]) -> None:
        """`UserError` if the new model's classifier is missing or not its own."""
        self._read_classifier(run)

    def check_labels(self, run: Fitting[FastFillSettings], labels: np.ndarray) -> None:
        """`UserError` for images of classes that the classifier does not have."""
        num_classes = len(self._read_classifier(run).weight)
        if labels.max() >= num_classes:
            raise UserError(
                f"{run.settings.rec} has labels up to {labels.max()}, the classifier of {run.new.path} {num_classes} "
                "classes: set rec to the images that the new model was trained on"
            )

    def setup(self, run: Fitting[FastFillSettings]) -> None:
        """Build the network; take the classifier and the scale of its logits."""
        super().setup(run)
        self.settings = run.settings
        classifier = self._read_classifier(run)
        accuracy = 100 * classifier.accuracy(run.new.features)
        logger.info("new model's classifier: %d classes, accuracy %.1f %%", len(classifier.weight), accuracy)
        self.on_cosines = classifier.margin.normalized
        self.scale = classifier.margin.s if self.on_cosines else _mean_length(run)
        weight = normalize(classifier.weight) if self.on_cosines else classifier.weight.clone()
        bias = weight.new_zeros(len(weight)) if classifier.bias is None else classifier.bias.clone()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def loss(self, batch: PairBatch) -> dict[str, Tensor]:
        """`weighted`: the errors over their predicted variances; `log_variance`: the price of those."""
        assert isinstance(self.network, FastFillNetwork)
        mapped, log_variance = self.network.with_log_error(batch.old)
        errors = (batch.new - mapped).square().sum(dim=1) + self.settings.disc_weight * self._class_losses(
            batch, mapped
        )
        return {
            "weighted": 0.5 * (torch.exp(-log_variance.to(errors.dtype)) * errors).mean(),
            "log_variance": self.settings.uncertainty_weight * log_variance.mean(),
        }

    def _class_losses(self, batch: PairBatch, mapped: Tensor) -> Tensor:
        """The new classifier's loss of each mapped embedding, (B,)."""
        mapped = normalize(mapped) if self.on_cosines else mapped
        logits = linear(self.scale * mapped, self.weight, self.bias)
        return cross_entropy(logits, batch.label, label_smoothing=self.settings.label_smoothing, reduction="none")

    def _read_classifier(self, run: Fitting[FastFillSettings]) -> RunClassifier:
        remedy = "name its run folder as new_model, or use methods/fct, which needs none"
        return read_run_classifier(run.new.path, run.new.size, "new", remedy)


def _mean_length(run: Fitting) -> float:
    """Of the new embeddings, which a plain softmax classifier takes as long as they are."""
    return float(np.linalg.norm(run.new.features[run.spread_rows()], axis=1).mean())


def main() -> None:
    """Train a map that carries a stored gallery into the new model's space and predicts its errors, by FastFill."""
    map_program(FastFill(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
