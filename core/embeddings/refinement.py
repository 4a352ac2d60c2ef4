"""Class prototypes of one model's features, weighted by what another model's features of the same images say.

Streamed from two feature stores, classes of one size together. The rule for the weights is the method's.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from core.embeddings.store import EmbeddingStore
from core.parallel.threads import one_thread
from core.progress import Progress

__all__ = ["refined_prototypes"]

BLOCK_ELEMENTS = 2**23
"""Numbers in the features and (k, k) matrices of the classes that are weighted together."""


def refined_prototypes(
    new: EmbeddingStore,
    old: EmbeddingStore,
    classes: np.ndarray,
    weights: Callable[[Tensor], Tensor],
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> Tensor:
    """Refined prototypes of `classes` (M,): float32 (M, D) on `device`, not normalised; 0 for a class without images.

    The prototype of a class is the weighted sum of its old features. `weights` maps the new features (n, k, D) of n
    classes of k images each to the weights (n, k) of those images; both kinds of features are taken as stored, new ones
    not normalised. `new` and `old` hold both models' features of the same images in the same rows; only the rows of
    `classes` are read, so that ranks that divide the classes among them divide the work.

    Classes of one size are weighted together, up to 8.4 million numbers at a time: memory is about 100 MB (or three
    times what the largest class takes), a few numbers an image, and the result. On a CPU this runs on one thread: the
    matrices are small.
    """
    labels = np.asarray(old.labels())
    order = np.argsort(labels, kind="stable")
    first, end = (np.searchsorted(labels, classes, side, order) for side in ("left", "right"))
    sizes = end - first
    prototypes = torch.zeros(len(classes), old.info.embedding_size, device=device)
    with one_thread(), Progress("refining prototypes", len(classes), "classes", quiet) as progress:
        for size in np.unique(sizes[sizes > 0]):
            members = np.flatnonzero(sizes == size)
            step = max(1, BLOCK_ELEMENTS // int(2 * size * (new.info.embedding_size + size)))
            for start in range(0, len(members), step):
                chosen = members[start : start + step]
                rows = order[first[chosen][:, None] + np.arange(size)]
                of_images = weights(torch.from_numpy(new[rows]).to(device))
                prototypes[chosen] = (of_images[:, None] @ torch.from_numpy(old[rows]).to(device)).squeeze(1)
                progress.update(len(chosen))
    return prototypes
