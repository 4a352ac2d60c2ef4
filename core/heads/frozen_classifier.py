"""A classifier that is not trained, its classes sharded over the ranks as those of a partial FC."""

import numpy as np
import torch
import torch.distributed as dist

from core.heads.margins import Margin
from core.heads.partial_fc import PartialFC

__all__ = ["FrozenClassifier"]


class FrozenClassifier(PartialFC):
    """Mean cross-entropy `()` of `margin` over C frozen class weights: prototypes, or another model's classifier.

    Embeddings `(B, D)` and labels `(B,)` of this rank, shards, collectives, gradient of the embeddings and memory are
    as in `PartialFC`; label -1 leaves a sample out. The weights are never trained. They are part of checkpoints, by
    shards, so that a method may replace them during training.

    Args:
        margin: one of `core.heads.margins`.
        weight: (C, D), the same on every rank; if it is memory-mapped, a rank reads only its own rows.
        bias: (C,) or None; plain softmax only.
        group: process group of the ranks; None: the default one, or a single process if none is initialised.

    """

    def __init__(
        self,
        margin: Margin,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        group: dist.ProcessGroup | None = None,
    ):
        num_classes, embedding_size = weight.shape
        super().__init__(margin, embedding_size, num_classes, bias=bias is not None, group=group)
        self.requires_grad_(False)
        self.replace(weight, bias)

    def _initialize(self) -> None:
        """Draw nothing: the weights are given."""

    @torch.no_grad()
    def replace(self, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
        """Take this rank's rows of other weights (C, D) and, if there is a bias, of another bias (C,)."""
        rows = slice(self.class_start, self.class_start + self.num_local)
        self.weight.copy_(torch.from_numpy(np.array(weight[rows])))
        if self.bias is not None and bias is not None:
            self.bias.copy_(torch.from_numpy(np.array(bias[rows])))
