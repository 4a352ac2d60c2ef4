"""MixBCT: Towards Self-Adapting Backward-Compatible Training (Liang et al., arXiv 2308.06948).

One classification loss on a mixed batch: of the new embeddings n_i, floor(r * B) rows whose old embedding o_i is
credible are replaced by o_i, and

    L = L_cls(mixed batch),    L_cls = the new model's classification loss.

A replaced row gives the backbone no gradient; it pulls the class weights toward the old distribution, and through them
the new embeddings. The credible ones of a class of k images are the ceil(T * k) old embeddings nearest to its mean.

    torchrun --nproc_per_node=8 train.py configs/OPclass_ms1mv3_r18_to_r50_MixBCT_softmax_to_arc_f128.py
    python train.py configs/glyphs.py old_model=work_dirs/glyphs_old
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.embeddings.credible_rows import prepare_credible_mask
from core.engine.method import Batch, Method, Run
from core.errors import run_program
from core.heads import build_head
from core.program import train_program
from core.settings import Settings, key


def mix(new: Tensor, old: Tensor, credible: Tensor, ratio: float) -> Tensor:
    """The mixed batch (B, D): floor(ratio * B) rows of `new`, drawn among the `credible` (B,) ones, taken from `old`.

    With fewer credible rows than that, all of them are replaced.
    """
    count = int(ratio * len(new) + 1e-9)  # 0.29 * 100 is not quite 29
    draw = torch.rand(len(new), device=new.device).masked_fill(~credible, -1.0)
    values, rows = draw.topk(count)
    replaced = torch.zeros_like(credible).scatter(0, rows, values >= 0)
    return torch.where(replaced[:, None], old, new)


@dataclass(frozen=True, kw_only=True)
class MixBCTSettings(Settings):
    """MixBCT's own settings, as released but for `scale_dimensions`."""

    mix_ratio: float = key(
        0.3,
        "r: share of a batch whose new embeddings are replaced by the old ones",
        minimum=0,
        maximum=1,
        heading="MixBCT",
    )
    credible_rate: float = key(
        0.9,
        "T: share of a class's old embeddings, those nearest to its mean, that may be mixed in",
        above=0,
        maximum=1,
    )
    scale_dimensions: bool = key(
        False, "before distances are measured, scale each dimension to unit norm (the released tool)"
    )


class MixBCT(Method[MixBCTSettings]):
    """Holds the classifier and, for every training image, whether its old embedding is credible."""

    credible: Tensor
    """bool (N,)."""

    settings_type = MixBCTSettings

    def setup(self, run: Run[MixBCTSettings]) -> None:
        """Build the classifier; compute the credible rows of the old features, or find them beside the store."""
        settings = run.settings
        self.ratio = settings.mix_ratio
        self.classifier = build_head(settings, run.data.num_classes)
        mask = prepare_credible_mask(
            run.old_model.features, settings.credible_rate, settings.scale_dimensions, run.ranks
        )
        self.register_buffer("credible", torch.from_numpy(np.array(mask)), persistent=False)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`cls`: classification of the mixed batch."""
        mixed = mix(batch.embedding, batch.old_embedding, self.credible[batch.row], self.ratio)
        return {"cls": self.classifier(mixed, batch.label)}


def main() -> None:
    """Train a new model that stays compatible with an old one, by MixBCT."""
    train_program(MixBCT(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
