"""Hot-refresh: Hot-Refresh Model Upgrades with Regression-Alleviating Compatible Training (Zhang et al., ICLR 2022).

RACT requires the new embedding of an image to be more similar to its old embedding than to both the old *and* the new
embedding of any image of another class. With n_i, o_i the new and old embedding of image i, a hat for L2 normalisation,
and j over the samples of another class in the batch of all ranks:

    L_comp = - mean_i log softmax([n^_i . o^_i | n^_i . o^_j for all j | n^_i . n^_j for all j] / tau)_first
    L      = L_cls + L_comp,    L_cls = the new model's classification loss

The embeddings n^_j and o^_j that n^_i is compared with have no gradient.

    torchrun --nproc_per_node=8 train.py configs/OPclass_ms1mv3_r18_to_r50_Hot_refresh_softmax_to_arc_f128.py
    python train.py configs/glyphs.py old_model=work_dirs/glyphs_old
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from core.engine.method import Batch, Method, Run
from core.errors import run_program
from core.heads import build_head
from core.parallel.collectives import all_gather_rows
from core.program import train_program
from core.settings import Settings, key


def negatives(new: Tensor, others: Tensor, same_class: Tensor, hardest: int) -> Tensor:
    """Cosines of `new` (B, D) with `others` (M, D), -inf where `same_class` (B, M): (B, M), or the `hardest` a row."""
    cosines = (new @ others.T).masked_fill(same_class, -torch.inf)
    return cosines.topk(min(hardest, len(others)), dim=1).values if hardest else cosines


def compatible_contrast(positive: Tensor, blocks: list[Tensor], temperature: float) -> Tensor:
    """Mean cross-entropy of `positive` (B,) against the cosines in `blocks`, (B, any) each; -inf entries are absent."""
    logits = torch.cat([positive[:, None], *blocks], dim=1) / temperature
    return (logits.logsumexp(1) - logits[:, 0]).mean()


@dataclass(frozen=True, kw_only=True)
class HotRefreshSettings(Settings):
    """Hot-refresh's own settings."""

    temperature: float = key(0.01, "tau", above=0, heading="Hot-refresh")
    new_to_new: bool = key(True, "negatives among new embeddings too; False: the plain contrastive loss")
    hardest_negatives: int = key(
        0, "negatives of each kind that count, the most alike first (10 in AdvBCT's code); 0: all", minimum=0
    )


class HotRefresh(Method[HotRefreshSettings]):
    """Holds the classifier."""

    settings_type = HotRefreshSettings

    def setup(self, run: Run[HotRefreshSettings]) -> None:
        """Build the classifier."""
        settings = run.settings
        self.temperature, self.hardest = settings.temperature, settings.hardest_negatives
        self.new_to_new = settings.new_to_new
        self.classifier = build_head(settings, run.data.num_classes)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`cls`: classification; `compatible`: the contrast with old and, unless left out, new embeddings."""
        new, old = normalize(batch.embedding), normalize(batch.old_embedding)
        same_class = batch.label[:, None] == all_gather_rows(batch.label)
        blocks = [negatives(new, all_gather_rows(old), same_class, self.hardest)]
        if self.new_to_new:
            blocks.append(negatives(new, all_gather_rows(new.detach()), same_class, self.hardest))
        positive = torch.linalg.vecdot(new, old)
        return {
            "cls": self.classifier(batch.embedding, batch.label),
            "compatible": compatible_contrast(positive, blocks, self.temperature),
        }


def main() -> None:
    """Train a new model that stays compatible with an old one, by Hot-refresh (RACT)."""
    train_program(HotRefresh(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
