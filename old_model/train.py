"""The model that a gallery was built with: a backbone trained alone, with a margin or a plain softmax classifier.

Also trains what a new model is compared with: the same network without an old model, on the same or on all data.

    torchrun --nproc_per_node=8 train.py configs/f512_r18_arc_class30.py
    python train.py configs/glyphs.py
"""

from torch import Tensor

from core.engine.method import Batch, Method, Run
from core.errors import run_program
from core.heads import build_head
from core.program import train_program
from core.settings import Settings


class OldModel(Method[Settings]):
    """Classification alone."""

    uses_old_model = False

    def setup(self, run: Run) -> None:
        """Build the classifier."""
        self.classifier = build_head(run.settings, run.data.num_classes)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`cls`: cross-entropy over the classes."""
        return {"cls": self.classifier(batch.embedding, batch.label)}


def main() -> None:
    """Train a model by itself: an old model, or one to compare with."""
    train_program(OldModel(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
