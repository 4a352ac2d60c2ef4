"""A queue of the most recent embeddings of all ranks, with their labels."""

import torch
from torch import Tensor, nn

from core.parallel.collectives import all_gather_rows

__all__ = ["EmbeddingQueue"]


class EmbeddingQueue(nn.Module):
    """The last `size` embeddings and labels of all ranks, in a ring of fixed memory; the same on every rank.

    `embedding` float32 (Q, D) and `label` int64 (Q,), -1 if a slot is empty or to be ignored. All state is in buffers,
    which checkpoints keep; a resumed run may have another number of ranks. A batch of all ranks must not be larger than
    the queue: a slot would be written twice, in an undefined order.
    """

    embedding: Tensor
    label: Tensor
    position: Tensor

    def __init__(self, size: int, embedding_size: int):
        super().__init__()
        self.register_buffer("embedding", torch.zeros(size, embedding_size))
        self.register_buffer("label", torch.full((size,), -1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, embedding: Tensor, label: Tensor) -> None:
        """Replace the oldest rows by the rows (B, D) and labels (B,) of all ranks, in rank order. Two gathers."""
        embedding, label = all_gather_rows(embedding.detach()), all_gather_rows(label)
        size = len(self.label)
        slots = (self.position + torch.arange(len(label), device=label.device)) % size
        self.embedding[slots] = embedding
        self.label[slots] = label
        self.position.add_(len(label)).remainder_(size)
