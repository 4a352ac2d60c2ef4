"""LCE: Learning Compatible Embeddings (Meng et al., ICCV 2021, arXiv 2108.01958).

Class c has a centre m_c, the normalised mean of its normalised old embeddings, and a boundary theta_c, the largest
angle of one of them to it, outliers left out. New embeddings n_i stay within the boundary of their class, and the new
class weights W_c lie in the direction of the old centres (all normalised):

    L = L_cls + L_boundary + L_align,    L_cls = the new model's classification loss,
    L_boundary = mean_i max(0, angle(m_{y_i}, n_i) - theta_{y_i}),    L_align = mean_i (1 - m_{y_i} . W_{y_i}),

both means over the samples of classes with at least two old embeddings, on request only of classes that the old model
was trained on. Optionally the old space is transformed by K residual blocks, and m_c is the transformed centre.

    torchrun --nproc_per_node=8 train.py configs/OPclass_ms1mv3_r18_to_r50_LCE_softmax_to_arc_f128.py
    python train.py configs/glyphs.py
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.linalg import vecdot, vector_norm
from torch.nn.functional import normalize

from core.embeddings.class_radii import NO_RADIUS, prepare_class_radii
from core.engine.method import Batch, Method, Run
from core.errors import run_program
from core.heads import build_head
from core.parallel.collectives import all_gather_rows, mean_over_ranks, rank, world_size
from core.program import train_program
from core.settings import Settings, key


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Angles, (B,), between unit rows (B, D): exact and with finite gradient at 0 and pi too, unlike the arc cosine."""
    return 2 * torch.atan2(vector_norm(a - b, dim=1), vector_norm(a + b, dim=1))


def boundary_loss(new: Tensor, centres: Tensor, boundaries: Tensor, known: Tensor) -> Tensor:
    """Mean angle by which the unit `new` (B, D) exceed the `boundaries` (B,) around their unit `centres` (B, D).

    Over the `known` (B,) samples. This rank's share: the average of the shares is the mean over those of all ranks.
    """
    return mean_over_ranks((angle(centres, new) - boundaries).relu(), known)


def alignment_loss(weights: Tensor, centres: Tensor, known: Tensor) -> Tensor:
    """Mean of one minus the cosine of the samples' class `weights` (B, D) and unit `centres` (B, D).

    Over the `known` (B,) samples; this rank's share, as above.
    """
    return mean_over_ranks(1 - vecdot(normalize(weights), centres), known)


def own_rows(gathered: Tensor) -> Tensor:
    """The rows (B, ...) of this rank's samples among those of all ranks."""
    return gathered.chunk(world_size())[rank()]


class ResidualBlock(nn.Sequential):
    """One block of the transformation of the old space, (B, D) to (B, D)."""

    def __init__(self, size: int, width: int = 16):
        layers = [(size, width), (width, width), (width, size)]
        super().__init__(*[m for i, o in layers for m in (nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU())])

    def forward(self, input: Tensor) -> Tensor:
        """The input plus the output of the layers."""
        return input + super().forward(input)


@dataclass(frozen=True, kw_only=True)
class LCESettings(Settings):
    """LCE's own settings."""

    boundary_weight: float = key(1.0, "of the angles beyond the old boundaries", minimum=0, heading="LCE")
    align_weight: float = key(1.0, "of the angles between new class weights and old centres", minimum=0)
    transform_blocks: int = key(0, "K: residual blocks that transform the old space", minimum=0)
    old_classes_only: bool = key(False, "leave out the classes that the old run was not trained on: AdvBCT's benchmark")


class LCE(Method[LCESettings]):
    """Holds the classifier, the old centres and boundaries by class, and the transformation of the old space."""

    centre: Tensor
    """(C, D)."""
    boundary: Tensor
    """(C,), below 0 for a class without one."""

    settings_type = LCESettings

    def needs(self, settings: LCESettings) -> tuple[str, ...]:
        """The classes of the old run, if the others are left out."""
        return ("num_classes",) if settings.old_classes_only else ()

    def setup(self, run: Run[LCESettings]) -> None:
        """Build the classifier; compute the old centres and boundaries, or find them beside the store."""
        settings = run.settings
        self.boundary_weight, self.align_weight = settings.boundary_weight, settings.align_weight
        self.classifier = build_head(settings, run.data.num_classes)
        self.transformation = nn.Sequential(
            *[ResidualBlock(settings.embedding_size) for _ in range(settings.transform_blocks)]
        )
        means, radii = prepare_class_radii(run.old_model.features, "angle", run.ranks)
        if settings.old_classes_only:
            radii[run.old_model.num_classes :] = NO_RADIUS
        self.register_buffer("centre", torch.from_numpy(np.array(means)), persistent=False)
        self.register_buffer("boundary", torch.from_numpy(radii), persistent=False)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`cls`: classification; `boundary`: L_boundary; `align`: L_align; all with their weights."""
        # The batch statistics of the transformation are those of the batch of all ranks.
        centres = normalize(self.transformation(self.centre[all_gather_rows(batch.label)]))
        boundaries = self.boundary[batch.label]
        known = boundaries >= 0
        boundary = boundary_loss(normalize(batch.embedding), own_rows(centres), boundaries, known)
        align = alignment_loss(self.classifier.weights_of(batch.label), own_rows(centres), known)
        return {
            "cls": self.classifier(batch.embedding, batch.label),
            "boundary": self.boundary_weight * boundary,
            "align": self.align_weight * align,
        }


def main() -> None:
    """Train a new model that stays compatible with an old one, by LCE."""
    train_program(LCE(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
