"""UniBCT: Towards Universal Backward-Compatible Representation Learning (Zhang et al., IJCAI 2022, arXiv 2203.01583).

BCT with structurally refined prototypes. From some epoch on the new embeddings n_i are also classified against frozen
prototypes P of the old embeddings, one a class, a hat being L2 normalisation:

    L = L_cls + CE(s n^_i . P^_c over all classes c, y_i),    L_cls = the new model's classification loss

At the epochs t_1, t_2, ... the prototypes are computed from the old embeddings O (k, D) of a class and the present new
ones N (k, D), normalised:

    E = softmax(N N^T / tau), diagonal at -inf;   A = (1 - lambda) (I - lambda E)^-1;   P_c = mean of the rows of A O

Before t_1 the loss is L_cls alone. Without any such epoch, as AdvBCT's benchmark has it for landmarks, P_c is the mean
of the normalised rows of O from the start. The prototypes' loss may have ArcFace's margin.

    torchrun --nproc_per_node=8 train.py configs/OPclass_ms1mv3_r18_to_r50_UniBCT_softmax_to_arc_f128.py
    python train.py configs/glyphs.py old_model=work_dirs/glyphs_old
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from core.embeddings.refinement import refined_prototypes
from core.embeddings.statistics import prepare_class_means
from core.engine.current_features import current_features
from core.engine.method import Batch, Method, Run
from core.errors import UserError, run_program
from core.heads import build_head
from core.heads.frozen_classifier import FrozenClassifier
from core.heads.margins import ArcFace
from core.program import train_program
from core.settings import Settings, key

logger = logging.getLogger(__name__)
EdgeSoftmax = Literal["columns", "rows"]


def structural_weights(new: Tensor, propagation: float, temperature: float, edge_softmax: EdgeSoftmax) -> Tensor:
    """The weights v (n, k) of the k images of n classes in their prototypes; `new` (n, k, D) need not be normalised.

    The mean of the rows of A O is v^T O with (I - lambda E)^T v = (1 - lambda) / k: one linear solve a class.

    `propagation` is lambda, `temperature` tau. `edge_softmax` says what of E sums to 1: its columns, as in the released
    code, or its rows. With columns, 1^T E = 1^T and so 1^T A = 1^T: every image then has the weight 1 / k, whatever the
    new features are. Each row of v sums to 1 either way. The only image of a class has no edge and the weight 1.
    """
    n, k, _ = new.shape
    if k == 1:
        return new.new_ones(n, 1)
    edges = new @ new.mT
    inverse_norms = edges.diagonal(dim1=1, dim2=2).clamp(min=1e-24).rsqrt()
    edges *= inverse_norms[:, :, None] / temperature
    edges *= inverse_norms[:, None, :]
    edges.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    edges = torch.softmax(edges, dim=1 if edge_softmax == "columns" else 2)
    system = torch.eye(k, dtype=new.dtype, device=new.device) - propagation * edges.mT
    return torch.linalg.solve(system, new.new_full((n, k), (1 - propagation) / k))


@dataclass(frozen=True, kw_only=True)
class UniBCTSettings(Settings):
    """UniBCT's own settings, as released but for `compat_scale`: there prototypes keep their length."""

    refine_epochs: tuple[int, ...] = key(
        (10, 20),
        "epochs, from 0, that begin with a refinement; the first starts L_bct; (): plain means",
        minimum=0,
        heading="UniBCT",
    )
    propagation: float = key(0.9, "lambda: how far a weight travels along the edges", minimum=0, below=1)
    temperature: float = key(0.05, "tau of the edges", above=0)
    edge_softmax: Literal["columns", "rows"] = key(
        "columns", "what of the edge matrix sums to 1: columns (released; gives plain means) or rows"
    )
    compat_scale: float = key(1.0, "s of the classification against the prototypes", above=0)
    compat_margin: float = key(0.0, "ArcFace m of the classification against the prototypes, radians")
    old_classes_only: bool = key(False, "leave out the classes that the old run was not trained on: AdvBCT's benchmark")

    def __post_init__(self) -> None:
        """`UserError` for an epoch to refine at that the training does not reach."""
        if max(self.refine_epochs, default=0) >= self.num_epoch:
            raise UserError(
                f"refine_epochs is {self.refine_epochs}, but num_epoch is {self.num_epoch}: name epochs from 0 to "
                "num_epoch - 1, the first of which starts the compatible training, or none, ()"
            )


class UniBCT(Method[UniBCTSettings]):
    """Holds the classifier and the frozen prototypes, both sharded over the classes and kept in checkpoints."""

    position: Tensor
    """int64 (C,): the class of the data among the prototypes, or -1."""

    settings_type = UniBCTSettings

    def needs(self, settings: UniBCTSettings) -> tuple[str, ...]:
        """The classes of the old run, if the others are left out."""
        return ("num_classes",) if settings.old_classes_only else ()

    def setup(self, run: Run[UniBCTSettings]) -> None:
        """Build classifier and prototypes: class means, or zeros until the first epoch that refines them."""
        settings = run.settings
        self.run, self.refine_epochs = run, settings.refine_epochs
        self.classifier = build_head(settings, run.data.num_classes)
        known = np.bincount(run.old_model.features.labels(), minlength=run.data.num_classes) > 0
        if settings.old_classes_only:
            known[run.old_model.num_classes :] = False
        self.classes = np.flatnonzero(known)
        if self.refine_epochs:
            prototypes = np.broadcast_to(np.float32(0), (len(self.classes), settings.embedding_size))
        else:
            prototypes = prepare_class_means(run.old_model.features, run.ranks)[self.classes]
        self.prototypes = FrozenClassifier(ArcFace(settings.compat_scale, settings.compat_margin), prototypes)
        self.prototypes.recompute_logits = settings.recompute_logits
        position = torch.from_numpy(np.where(known, known.cumsum() - 1, -1))
        self.register_buffer("position", position, persistent=False)

    @torch.no_grad()
    def start_epoch(self, epoch: int, backbone: nn.Module) -> None:
        """At the start of a refinement epoch, compute this rank's prototypes with the new model as it is."""
        if epoch not in self.refine_epochs:
            return
        settings, first = self.run.settings, self.prototypes.class_start
        weights = partial(
            structural_weights,
            propagation=settings.propagation,
            temperature=settings.temperature,
            edge_softmax=settings.edge_softmax,
        )
        logger.info("epoch %d: refining the prototypes with the new model", epoch)
        with current_features(self.run, backbone) as new:
            refined = refined_prototypes(
                new,
                self.run.old_model.features,
                self.classes[first : first + self.prototypes.num_local],
                weights,
                self.run.device,
                quiet=not self.run.ranks.is_first,
            )
        self.prototypes.weight.copy_(refined)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`cls`: classification; `bct`, from the first refinement on: classification against the prototypes."""
        terms = {"cls": self.classifier(batch.embedding, batch.label)}
        if batch.epoch >= min(self.refine_epochs, default=0):
            terms["bct"] = self.prototypes(batch.embedding, self.position[batch.label])
        return terms


def main() -> None:
    """Train a new model that stays compatible with an old one, by UniBCT."""
    train_program(UniBCT(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
