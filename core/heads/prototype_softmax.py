"""Softmax cross-entropy over frozen prototypes, sharded over the ranks as the classes of a partial FC are."""

import numpy as np
import torch
import torch.distributed as dist

from core.heads.margins import CosFace
from core.heads.partial_fc import PartialFC

__all__ = ["PrototypeSoftmax"]


class PrototypeSoftmax(PartialFC):
    """Mean cross-entropy `()` of `scale * cos(embedding, prototype)` over C frozen prototypes, one a class.

    Embeddings `(B, D)` and labels `(B,)` of this rank as for `PartialFC`, whose shards, collectives, gradient of the
    embeddings and memory it has; label -1 leaves a sample out. The prototypes are never trained. They are part of
    checkpoints, by shards, so that a method may also replace them as it goes on.

    Args:
        prototypes: (C, D), the same on every rank and not normalised; memory-mapped, a rank reads its own rows alone.
        scale: of the cosines.
        group: process group of the ranks; None: the default one, or a single process if none is initialised.

    """

    def __init__(self, prototypes: np.ndarray, scale: float, group: dist.ProcessGroup | None = None):
        num_classes, embedding_size = prototypes.shape
        super().__init__(CosFace(scale, 0.0), embedding_size, num_classes, group=group)
        self.weight.requires_grad_(False)
        self.replace(prototypes)

    @torch.no_grad()
    def replace(self, prototypes: np.ndarray) -> None:
        """Take this rank's rows of other prototypes (C, D)."""
        rows = prototypes[self.class_start : self.class_start + self.num_local]
        self.weight.copy_(torch.from_numpy(np.array(rows)))
