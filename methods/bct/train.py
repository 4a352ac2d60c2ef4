"""BCT: Towards Backward-Compatible Representation Learning (Shen et al., CVPR 2020, arXiv 2003.11942).

The new embedding must be classified right by the old model's classifier too. Where the classes are not those the old
model was trained on, as for faces here, that classifier is synthesised: class c has the frozen weight
p_c = mean of its old embeddings, normalised. With new embeddings n_i and P the rows p_c,

    L = L_cls + L_bct,    L_bct = mean_i CE(s P n_i / |n_i|, y_i),    L_cls = ArcFace over the new model's own head.

    torchrun --nproc_per_node=8 train.py configs/OPclass_ms1mv3_r18_to_r50_BCT_softmax_to_arc_f128.py
    python train.py configs/glyphs.py
"""

import numpy as np
import torch
from torch import Tensor

from core.engine.method import Batch, Method, Run
from core.engine.program import train_program
from core.errors import UserError, run_program
from core.features.statistics import prepare_class_means
from core.heads import PartialFC
from core.heads.margins import ArcFace
from core.heads.prototype_softmax import PrototypeSoftmax


class BCT(Method):
    """Holds the new head, the synthesised old classifier, and which of its classes is which of the data's."""

    def setup(self, run: Run) -> None:
        """Make the head, and the old classifier from the means of the old features."""
        config = run.config
        if config.compat_scale <= 0:
            raise UserError(f"compat_scale must be above 0, got {config.compat_scale}: the release has 1")
        self.head = PartialFC(
            ArcFace(config.margin_scale, config.margin), config.embedding_size, run.data.num_classes, config.sample_rate
        )
        means = prepare_class_means(run.old_features, run.ranks, normalized=False)
        known = np.bincount(run.old_features.labels(), minlength=len(means)) > 0
        self.old_classifier = PrototypeSoftmax(means if known.all() else means[known], config.compat_scale)
        old_class = torch.from_numpy(np.where(known, known.cumsum() - 1, -1))
        self.register_buffer("old_class", old_class, persistent=False)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`cls`: the margin softmax; `bct`: the old classifier's loss, without samples of classes it does not know."""
        return {
            "cls": self.head(batch.embedding, batch.label),
            "bct": self.old_classifier(batch.embedding, self.old_class[batch.label]),
        }


def main() -> None:
    """Train a new model that stays compatible with an old one, by BCT."""
    train_program(BCT(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
