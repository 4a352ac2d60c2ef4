"""AdvBCT: Boundary-Aware Backward-Compatible Representation via Adversarial Learning in Image Retrieval.

Pan et al., CVPR 2023, arXiv 2305.02610. With new embeddings n_i and old ones o_i of the same images, all normalised, at
epoch e (from 0) of E epochs,

    L = L_cls + lambda_p L_p2s + lambda_a (E - e + 1) / E L_adv,    L_cls = the new model's classification loss.

L_adv: a discriminator learns to tell new embeddings from old ones, and the backbone, through gradient reversal of
strength 2 / (1 + exp(-10 p)) - 1 after a fraction p of the training, to make them indistinguishable.

L_p2s: class c has the mean m_c of its old embeddings (not normalised again) and the radius r_c, the largest distance
of one of them to it, outliers left out. Its elastic radius lies between r_c and theta, where a learned w_c puts it:
r_c + (theta - r_c) sigmoid(w_c). L_p2s is the mean of max(0, ||n_i - m_{y_i}|| - elastic radius of y_i) over the
samples for which it is not 0; classes with fewer than two old embeddings are left out, and on request those that the
old model was not trained on.

    torchrun --nproc_per_node=8 train.py configs/OPclass_ms1mv3_r18_to_r50_AdvBCT_softmax_to_arc_f128.py
    python train.py configs/glyphs.py
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import log_softmax, normalize

from core.embeddings.class_radii import NO_RADIUS, prepare_class_radii
from core.engine.method import Batch, Method, Run
from core.errors import run_program
from core.heads import build_head
from core.parallel.collectives import all_gather_rows, mean_over_ranks
from core.program import train_program
from core.settings import Settings, key


def point_to_set_loss(new: Tensor, centres: Tensor, radii: Tensor, known: Tensor) -> Tensor:
    """Mean distance by which the unit `new` (B, D) exceed the `radii` (B,) around their `centres` (B, D).

    Over the `known` (B,) samples that do; 0 if there are none. This rank's share: the average of the shares is the mean
    over the samples of all ranks.
    """
    beyond = vector_norm(new - centres, dim=1) - radii
    return mean_over_ranks(beyond, known & (beyond > 0))


class ReverseGradient(torch.autograd.Function):
    """The identity; its gradient is multiplied by -`strength`."""

    @staticmethod
    def forward(ctx, tensor: Tensor, strength: float) -> Tensor:
        """`tensor` as it is."""
        ctx.strength = strength
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient of `tensor`, reversed."""
        return gradients[0] * -ctx.strength, None


def adversarial_loss(discriminator: nn.Module, new: Tensor, old: Tensor, reversal: float) -> Tensor:
    """The discriminator's loss on the unit `new` and `old` (B, D) of all ranks, its classes 0 and 1.

    The gradient of `new` is multiplied by -`reversal`. New and old embeddings pass through the discriminator
    separately, each with their own batch statistics.
    """
    new, old = all_gather_rows(torch.cat([ReverseGradient.apply(new, reversal), old], dim=1)).chunk(2, dim=1)
    of_new, of_old = log_softmax(discriminator(new), 1), log_softmax(discriminator(old), 1)
    return -of_new[:, 0].mean() - of_old[:, 1].mean()


def reversal_strength(progress: float) -> float:
    """The strength of the gradient reversal, from 0 at the start of the training to 1."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


@dataclass(frozen=True, kw_only=True)
class AdvBCTSettings(Settings):
    """AdvBCT's own settings, as released."""

    threshold: float = key(0.4, "theta: what the elastic radii may grow or shrink to", minimum=0, heading="AdvBCT")
    p2s_weight: float = key(4.0, "lambda_p: of the distances beyond the elastic radii", minimum=0)
    adv_weight: float = key(4.0, "lambda_a: of the discriminator's loss", minimum=0)
    old_classes_only: bool = key(False, "L_p2s without the classes that the old run was not trained on: landmarks")


class AdvBCT(Method[AdvBCTSettings]):
    """Holds the classifier, the discriminator, and by class the old centre, the old radius and the learned w_c."""

    centre: Tensor
    """(C, D)."""
    radius: Tensor
    """(C,), below 0 for a class without one."""

    settings_type = AdvBCTSettings

    def needs(self, settings: AdvBCTSettings) -> tuple[str, ...]:
        """The classes of the old run, if the others are left out."""
        return ("num_classes",) if settings.old_classes_only else ()

    def setup(self, run: Run[AdvBCTSettings]) -> None:
        """Build classifier and discriminator; compute the old centres and radii, or find them beside the store."""
        settings = run.settings
        self.threshold, self.num_epoch = settings.threshold, settings.num_epoch
        self.p2s_weight, self.adv_weight = settings.p2s_weight, settings.adv_weight
        self.classifier = build_head(settings, run.data.num_classes)
        self.discriminator = nn.Sequential(
            nn.Linear(settings.embedding_size, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 2)
        )
        means, radii = prepare_class_radii(run.old_model.features, "distance", run.ranks)
        if settings.old_classes_only:
            radii[run.old_model.num_classes :] = NO_RADIUS
        self.elastic = nn.Parameter(torch.empty(len(radii)).uniform_(-1, 1))
        self.register_buffer("centre", torch.from_numpy(np.array(means)), persistent=False)
        self.register_buffer("radius", torch.from_numpy(radii), persistent=False)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`cls`: classification; `p2s`: L_p2s; `adv`: the discriminator's loss; all with their weights."""
        label = batch.label
        new, old = normalize(batch.embedding), normalize(batch.old_embedding)
        radius = self.radius[label]
        elastic_radius = torch.lerp(radius, torch.full_like(radius, self.threshold), self.elastic[label].sigmoid())
        p2s = point_to_set_loss(new, self.centre[label], elastic_radius, radius >= 0)
        adv = adversarial_loss(self.discriminator, new, old, reversal_strength(batch.progress))
        decay = (self.num_epoch - batch.epoch + 1) / self.num_epoch
        return {
            "cls": self.classifier(batch.embedding, label),
            "p2s": self.p2s_weight * p2s,
            "adv": self.adv_weight * decay * adv,
        }


def main() -> None:
    """Train a new model that stays compatible with an old one, by AdvBCT."""
    train_program(AdvBCT(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
