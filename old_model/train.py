"""The model a gallery was built with: a backbone trained alone, with ArcFace or a plain softmax classifier.

Also trains whatever a new model is compared with: the same network without an old one, on the same or on all data.

    torchrun --nproc_per_node=8 train.py configs/f512_r18_arc_class30.py
    python train.py configs/glyphs.py
"""

from torch import Tensor

from core.engine.method import Batch, Method, Run
from core.engine.program import train_program
from core.errors import UserError, run_program
from core.heads import PartialFC
from core.heads.margins import ArcFace, Softmax


class OldModel(Method):
    """Classification alone, by ArcFace or, with `config.loss` "softmax", a linear classifier on the embedding."""

    uses_old_model = False

    def setup(self, run: Run) -> None:
        """Make the head."""
        config = run.config
        if config.loss not in ("arcface", "softmax"):
            raise UserError(f"unknown loss {config.loss!r}: choose 'arcface' or 'softmax'")
        softmax = config.loss == "softmax"
        margin = Softmax() if softmax else ArcFace(config.margin_scale, config.margin)
        self.head = PartialFC(margin, config.embedding_size, run.data.num_classes, config.sample_rate, bias=softmax)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`cls`: cross-entropy over the classes."""
        return {"cls": self.head(batch.embedding, batch.label)}


def main() -> None:
    """Train a model by itself: an old model, or one to compare with."""
    train_program(OldModel(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
