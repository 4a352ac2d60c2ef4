"""L2 and weakened L2: the baselines of MixBCT (Liang et al., arXiv 2308.06948).

Every new embedding n_i is pulled to the old embedding o_i of the same image, both normalised, down to a distance t:

    L = w_1 L_cls + w_2 mean_i max(0, ||n_i / |n_i| - o_i / |o_i||| - t),    L_cls = the classification loss.

L2 has t = 0, weakened L2 has t = 0.2. The norm is not squared.

    torchrun --nproc_per_node=8 train.py configs/OPclass_ms1mv3_r18_to_r50_weakenedL2_softmax_to_arc_f128.py
    python train.py configs/glyphs.py threshold=0.2 output=work_dirs/glyphs_weakened_l2
"""

from dataclasses import dataclass

from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from core.engine.method import Batch, Method, Run
from core.errors import run_program
from core.heads import build_head
from core.program import train_program
from core.settings import Settings, key


def distance_beyond(new: Tensor, old: Tensor, threshold: float) -> Tensor:
    """Mean `()` of the distance of the normalised `new` (B, D) and `old` (B, D), as far as it exceeds the threshold."""
    distances = vector_norm(normalize(new) - normalize(old), dim=1)
    return (distances - threshold).relu().mean()


@dataclass(frozen=True, kw_only=True)
class L2Settings(Settings):
    """L2's own settings, as released."""

    loss_weight: tuple[float, float] = key(
        (1.0, 10.0),
        "w_1, w_2: of the classification loss and of the distance to the old embedding",
        minimum=0,
        heading="L2 and weakened L2",
    )
    threshold: float = key(0.0, "t: distance that costs nothing; 0.2 is weakened L2", minimum=0)


class L2(Method[L2Settings]):
    """Holds the classifier."""

    settings_type = L2Settings

    def setup(self, run: Run[L2Settings]) -> None:
        """Build the classifier."""
        settings = run.settings
        self.weights, self.threshold = settings.loss_weight, settings.threshold
        self.classifier = build_head(settings, run.data.num_classes)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`cls`: classification; `l2`: the distance to the old embeddings; both with their weights."""
        return {
            "cls": self.weights[0] * self.classifier(batch.embedding, batch.label),
            "l2": self.weights[1] * distance_beyond(batch.embedding, batch.old_embedding, self.threshold),
        }


def main() -> None:
    """Train a new model that stays compatible with an old one, by L2 or weakened L2."""
    train_program(L2(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
