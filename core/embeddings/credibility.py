"""Which old embeddings tell clearly what class they belong to: NCCL's entropy rule, streamed over the feature store."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.embeddings.statistics import class_means, load_statistic, normalized_blocks, write_once
from core.embeddings.store import EmbeddingStore
from core.parallel.collectives import all_gather_rows, broadcast_object
from core.parallel.ranks import Ranks

__all__ = ["entropy_credible_mask", "entropy_credible_mask_path", "prepare_entropy_credible_mask"]

MIN_SPREAD = 1e-10
"""Added to every class's spread, as in the released tool: a class of one image has none."""
BLOCK_ELEMENTS = 2**24
"""Numbers in one (rows, C) block of distances."""


def spread_entropy(distances: Tensor, spreads: Tensor) -> Tensor:
    """Entropy (n,), in nats, of p_k proportional to exp(-d_k / sigma_k): `distances` (n, C), `spreads` (C,)."""
    log_p = torch.log_softmax(-distances / spreads, dim=1)
    return -torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0.0).sum(1)


def own_class_spread(store: EmbeddingStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class centres float64 (C, D), distance of every row to its own centre (N,), and its variance by class (C,)."""
    centres, counts = class_means(store)
    labels = np.asarray(store.labels())
    own = np.empty(store.info.num_images)
    for rows, block, block_labels in normalized_blocks(store):
        own[rows] = np.linalg.norm(block - centres[block_labels], axis=1)
    counts = np.maximum(counts, 1)
    means = np.bincount(labels, own, len(centres)) / counts
    return centres, own, np.bincount(labels, (own - means[labels]) ** 2, len(centres)) / counts


def entropy_credible_mask(store: EmbeddingStore, ranks: Ranks) -> np.ndarray:
    """NCCL's highly credible samples (Wu et al., AAAI 2022): True where the class is hardly in doubt. bool (N,).

    With o_i a normalised old embedding, mu_k the centre of class k, d_ik = ||o_i - mu_k|| and sigma_k the variance of
    the distances of the class's own images to mu_k (plus 1e-10, as in the released tool): row i is credible if the
    entropy of p_ik, proportional to exp(-d_ik / sigma_k) over all C classes, is at most ln(C) / 2.

    N x C x D multiplications in float32 on the ranks' devices, shared out over the ranks. Memory: the (C, D) centres
    and a few blocks of 16.8 million distances. Collective; the same answer on every rank.
    """
    centres, own, variances = own_class_spread(store)
    device, num_classes = ranks.device, len(centres)
    spreads = torch.from_numpy(variances + MIN_SPREAD).float().to(device)
    centres = torch.from_numpy(centres).float().to(device)
    labels = np.asarray(store.labels())
    share = np.array_split(np.arange(store.info.num_images), ranks.world_size)[ranks.rank]
    credible = torch.empty(len(share), dtype=torch.uint8, device=device)
    step = max(1, BLOCK_ELEMENTS // num_classes)
    for start in range(0, len(share), step):
        rows = share[start : start + step]
        old = torch.nn.functional.normalize(torch.from_numpy(store[rows]).to(device))
        distances = torch.cdist(old, centres)
        columns = torch.from_numpy(labels[rows]).to(device)[:, None]  # near 0 the distances above are not exact
        distances.scatter_(1, columns, torch.from_numpy(own[rows]).float().to(device)[:, None])
        credible[start : start + len(rows)] = spread_entropy(distances, spreads) <= math.log(num_classes) / 2
    return all_gather_rows(credible).bool().cpu().numpy()


def prepare_entropy_credible_mask(store: EmbeddingStore, ranks: Ranks) -> np.ndarray:
    """`entropy_credible_mask`, kept beside the store: computed by all ranks if it is not there yet. Collective."""
    path = entropy_credible_mask_path(store)
    if broadcast_object(path.exists()):
        return load_statistic(path)
    mask = entropy_credible_mask(store, ranks)
    if ranks.is_first:
        write_once(path, lambda: mask)
    return mask


def entropy_credible_mask_path(store: EmbeddingStore) -> Path:
    """Where the mask is kept: `credible_entropy.npy` beside the store, bool (N,)."""
    return store.path / "credible_entropy.npy"
