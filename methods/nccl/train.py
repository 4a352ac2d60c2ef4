"""NCCL: Neighborhood Consensus Contrastive Learning for Backward-Compatible Representation (Wu et al., AAAI 2022).

A queue holds the old embeddings o_j of the last images of all ranks, the current batch among them. For an image i with
new embedding n_i, P(i) are the entries of its class; a hat is L2 normalisation, W are the new class weights, one row a
class:

    w_ij = (1 + o^_i . o^_j) / 2
    L1   = - mean_i 1/|P(i)| sum_{j in P(i)} w_ij log softmax_j(n^_i . o^_j / tau)             over the whole queue
    L2   = the same with (W^ n^_i) . (W^ o^_j) in place of n^_i . o^_j
    L    = L_cls + alpha L1 + beta L2,    L_cls = the new model's classification loss

L2 compares vectors of C logits. As (W^ n) . (W^ o) = n . (W^T W^) o, the D x D matrix W^T W^, summed over the ranks,
is all that is needed: no Q x C queue of logits, and none of them stale.

    torchrun --nproc_per_node=8 train.py configs/OPclass_ms1mv3_r18_to_r50_NCCL_softmax_to_arc_f128.py
    python train.py configs/glyphs.py old_model=work_dirs/glyphs_old
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from core.embeddings.credibility import prepare_mask_by_distances
from core.embeddings.queue import EmbeddingQueue
from core.engine.method import Batch, Method, Run
from core.errors import UserError, run_program
from core.heads import build_head
from core.parallel.collectives import sum_over_ranks
from core.program import train_program
from core.settings import Settings, key

MIN_SPREAD = 1e-10
"""Added to the variance of every class, as in the released tool: that of a class of one image is 0."""


def spread_entropy(distances: Tensor, spreads: Tensor) -> Tensor:
    """Entropy (n,), in nats, of p_k proportional to exp(-d_k / sigma_k): `distances` (n, C), `spreads` (C,)."""
    log_p = torch.log_softmax(-distances / spreads, dim=1)
    return -torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0.0).sum(1)


def highly_credible(distances: Tensor, variances: Tensor) -> Tensor:
    """True (n,) if the entropy over the C classes is at most ln(C) / 2, half of what it can be.

    `distances` (n, C) of old embeddings to the class centres, `variances` (C,) of the classes' own distances.
    """
    spreads = (variances + MIN_SPREAD).to(distances.dtype)
    return spread_entropy(distances, spreads) <= math.log(distances.shape[1]) / 2


def neighbour_weights(old: Tensor, label: Tensor, queue: Tensor, queue_label: Tensor) -> Tensor:
    """w_ij / |P(i)| where entry j of the queue is in P(i), else 0: (B, Q). Rows without a neighbour are 0.

    `old` (B, D) and `queue` (Q, D) are normalised; labels below 0 match nothing.
    """
    neighbours = (label[:, None] == queue_label) & (queue_label >= 0)
    weights = torch.where(neighbours, (1 + old @ queue.T) / 2, 0.0)
    return weights / neighbours.sum(1, keepdim=True).clamp(min=1)


def soft_contrast(similarity: Tensor, weights: Tensor, queue_label: Tensor, temperature: float) -> Tensor:
    """- mean_i sum_j weights_ij log softmax_j(similarity_ij / temperature), over the queue's entries with a label.

    `similarity` and `weights` (B, Q); the softmax passes over entries whose label is below 0.
    """
    logits = (similarity / temperature).masked_fill(queue_label < 0, torch.finfo(similarity.dtype).min)
    return cross_entropy(logits, weights)


def logit_products(weight: Tensor) -> Tensor:
    """W^T W^ (D, D) of the class weights of all ranks, of which `weight` (C, D) are this rank's.

    The left factor makes the new logits and has a gradient; the right one makes the old logits, which belong to the
    queue, and has none. One all-reduce of (D, D).
    """
    weight = normalize(weight)
    return sum_over_ranks(weight.T @ weight.detach())


@dataclass(frozen=True, kw_only=True)
class NCCLSettings(Settings):
    """NCCL's own settings, as released: there `alpha` acts as if multiplied by the number of ranks."""

    queue_size: int = key(8192, "Q: old embeddings kept, of all ranks together", minimum=1, heading="NCCL")
    temperature: float = key(1.0, "tau", above=0)
    alpha: float = key(1.0, "weight of the contrast of embeddings")
    beta: float = key(0.01, "weight of the contrast of logits")
    credible_only: bool = key(
        False, "use only old embeddings that pass the paper's entropy rule (the release uses all)"
    )


class NCCL(Method[NCCLSettings]):
    """Holds the classifier, the queue of old embeddings and, if asked for, which of them are highly credible."""

    credible: Tensor | None
    """bool (N,) for all training images; None: all are used."""

    settings_type = NCCLSettings

    def setup(self, run: Run[NCCLSettings]) -> None:
        """Build classifier and queue; find the credible rows of the old features if only those are to be used."""
        settings = run.settings
        images = settings.batch_size * run.ranks.world_size
        if settings.queue_size < images:
            raise UserError(
                f"queue_size is {settings.queue_size}, but a batch of all ranks has {images}: set it larger"
            )
        self.temperature, self.alpha, self.beta = settings.temperature, settings.alpha, settings.beta
        self.classifier = build_head(settings, run.data.num_classes)
        self.queue = EmbeddingQueue(settings.queue_size, settings.embedding_size)
        mask = None
        if settings.credible_only:
            store = run.old_model.features
            rows = prepare_mask_by_distances(store, highly_credible, "credible_entropy", run.ranks)
            mask = torch.from_numpy(np.array(rows))
        self.register_buffer("credible", mask, persistent=False)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`cls`: classification; `embedding`: alpha L1; `logit`: beta L2."""
        new, old, label = normalize(batch.embedding), normalize(batch.old_embedding), batch.label
        if self.credible is not None:
            label = torch.where(self.credible[batch.row], label, -1)
        self.queue.push(old, label)
        queue, queue_label = self.queue.embedding, self.queue.label
        weights = neighbour_weights(old, label, queue, queue_label)
        of_embeddings = soft_contrast(new @ queue.T, weights, queue_label, self.temperature)
        of_logits = new @ logit_products(self.classifier.weight) @ queue.T
        return {
            "cls": self.classifier(batch.embedding, batch.label),
            "embedding": self.alpha * of_embeddings,
            "logit": self.beta * soft_contrast(of_logits, weights, queue_label, self.temperature),
        }


def main() -> None:
    """Train a new model that stays compatible with an old one, by NCCL."""
    train_program(NCCL(), __file__, main.__doc__)


if __name__ == "__main__":
    run_program(main)
