"""Which embeddings are credible by their distances to all class centres, streamed over the feature store.

The rule that decides is the method's.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from core.embeddings.class_values import distance_to_mean, means_and_values
from core.embeddings.statistics import load_statistic, write_once
from core.embeddings.store import EmbeddingStore
from core.parallel.collectives import all_gather_rows, broadcast_object
from core.parallel.ranks import Ranks

__all__ = ["DistanceRule", "mask_by_distances", "prepare_mask_by_distances"]

DistanceRule = Callable[[Tensor, Tensor], Tensor]
"""Distances float32 (n, C) to all class centres, and variances float64 (C,) of the classes, to bool (n,)."""
BLOCK_ELEMENTS = 2**24
"""Numbers in one (rows, C) block of distances."""


def own_class_distances(store: EmbeddingStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class centres float64 (C, D), distance of every row to its own centre (N,), and its variance by class (C,)."""
    centres, own = means_and_values(store, distance_to_mean)
    labels = np.asarray(store.labels())
    counts = np.maximum(np.bincount(labels, minlength=len(centres)), 1)
    means = np.bincount(labels, own, len(centres)) / counts
    return centres, own, np.bincount(labels, (own - means[labels]) ** 2, len(centres)) / counts


def mask_by_distances(store: EmbeddingStore, rule: DistanceRule, ranks: Ranks) -> np.ndarray:
    """`rule` on every row's distances to the C class centres and on the classes' variances: bool (N,).

    Rows are normalised and a centre is the mean of its class's rows; the variance of a class is that of the distances
    of its own rows to its centre. N x C x D multiplications in float32 on the ranks' devices, the rows divided among
    the ranks. Memory: the (C, D) centres and a few blocks of 16.8 million distances. Collective; the same on all ranks.
    """
    centres, own, variances = own_class_distances(store)
    device, num_classes = ranks.device, len(centres)
    centres = torch.from_numpy(centres).float().to(device)
    variances = torch.from_numpy(variances).to(device)
    labels = np.asarray(store.labels())
    share = np.array_split(np.arange(store.info.num_images), ranks.world_size)[ranks.rank]
    mask = torch.empty(len(share), dtype=torch.uint8, device=device)
    step = max(1, BLOCK_ELEMENTS // num_classes)
    for start in range(0, len(share), step):
        rows = share[start : start + step]
        features = torch.nn.functional.normalize(torch.from_numpy(store[rows]).to(device))
        distances = torch.cdist(features, centres)
        columns = torch.from_numpy(labels[rows]).to(device)[:, None]  # near 0 the distances above are not exact
        distances.scatter_(1, columns, torch.from_numpy(own[rows]).float().to(device)[:, None])
        mask[start : start + len(rows)] = rule(distances, variances)
    return all_gather_rows(mask).bool().cpu().numpy()


def prepare_mask_by_distances(store: EmbeddingStore, rule: DistanceRule, name: str, ranks: Ranks) -> np.ndarray:
    """`mask_by_distances`, kept as `<name>.npy` beside the store: computed by all ranks if missing. Collective."""
    path = store.path / f"{name}.npy"
    if broadcast_object(path.exists()):
        return load_statistic(path, np.bool_, (store.info.num_images,))
    mask = mask_by_distances(store, rule, ranks)
    if ranks.is_first:
        write_once(path, mask.nbytes, lambda: mask)
    return mask
