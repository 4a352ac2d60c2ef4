"""UniBCT's structural prototype refinement: class prototypes of old features, weighted by the new features' structure.

Source: Zhang et al., "Towards Universal Backward-Compatible Representation Learning", IJCAI 2022, arXiv 2203.01583.
For a class of k images with new features N (k, D), normalised, and old features O (k, D):

    E = softmax(N N^T / tau), diagonal at -inf;   A = (1 - lambda) (I - lambda E)^-1;   prototype = mean of A O's rows

The mean of A O's rows is v^T O with (I - lambda E)^T v = (1 - lambda) / k: one right-hand side a class, solved once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from core.embeddings.store import EmbeddingStore
from core.progress import Progress

__all__ = ["EdgeSoftmax", "refined_prototypes", "structural_weights"]

EdgeSoftmax = Literal["columns", "rows"]
BLOCK_ELEMENTS = 2**23
"""Numbers in the features and matrices of the classes that are solved together."""


def structural_weights(new: Tensor, propagation: float, temperature: float, edge_softmax: EdgeSoftmax) -> Tensor:
    """The weights v (n, k) of the images of n classes in their prototypes; `new` (n, k, D) need not be normalised.

    `propagation` is lambda, `temperature` tau. `edge_softmax` says what of E sums to 1: its columns, as in the released
    code, or its rows. With columns, 1^T E = 1^T and so 1^T A = 1^T: every image then has the weight 1 / k, whatever the
    new features are. Each row of v sums to 1 either way. An image alone in its class has no edge and the weight 1.
    """
    n, k, _ = new.shape
    if k == 1:
        return new.new_ones(n, 1)
    edges = new @ new.mT
    inverse_norms = edges.diagonal(dim1=1, dim2=2).clamp(min=1e-24).rsqrt()
    edges *= inverse_norms[:, :, None] / temperature
    edges *= inverse_norms[:, None, :]
    edges.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    edges = torch.softmax(edges, dim=1 if edge_softmax == "columns" else 2)
    system = torch.eye(k, dtype=new.dtype, device=new.device) - propagation * edges.mT
    return torch.linalg.solve(system, new.new_full((n, k), (1 - propagation) / k))


def refined_prototypes(
    new: EmbeddingStore,
    old: EmbeddingStore,
    classes: np.ndarray,
    propagation: float,
    temperature: float,
    edge_softmax: EdgeSoftmax = "columns",
    device: torch.device | str = "cpu",
    quiet: bool = True,
) -> Tensor:
    """Refined prototypes of `classes` (M,): float32 (M, D) on `device`, not normalised; 0 for a class without images.

    `new` and `old` are both models' features of the same images, in the same rows, of which only those of `classes`
    are read: ranks that share the classes out share out the work. Old features are taken as they are stored.

    Classes of one size are solved together, as many as have 8.4 million numbers: memory is about 100 MB (or three times
    what the largest class takes), a few numbers an image, and the answer. On a CPU one thread does it: the matrices are
    so small that several, which wait for each other after each operation, are slower by far where others work too.
    """
    labels = np.asarray(old.labels())
    order = np.argsort(labels, kind="stable")
    first, end = (np.searchsorted(labels, classes, side, order) for side in ("left", "right"))
    sizes = end - first
    prototypes = torch.zeros(len(classes), old.info.embedding_size, device=device)
    with _one_thread(), Progress("refining prototypes", len(classes), "classes", quiet) as progress:
        for size in np.unique(sizes[sizes > 0]):
            members = np.flatnonzero(sizes == size)
            step = max(1, BLOCK_ELEMENTS // int(2 * size * (new.info.embedding_size + size)))
            for start in range(0, len(members), step):
                chosen = members[start : start + step]
                rows = order[first[chosen][:, None] + np.arange(size)]
                weights = structural_weights(
                    torch.from_numpy(new[rows]).to(device), propagation, temperature, edge_softmax
                )
                prototypes[chosen] = (weights[:, None] @ torch.from_numpy(old[rows]).to(device)).squeeze(1)
                progress.update(len(chosen))
    return prototypes


@contextmanager
def _one_thread() -> Iterator[None]:
    """Operations on the CPU use one thread for as long as the context lasts."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
