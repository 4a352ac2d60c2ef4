"""The map with a hidden layer, trained by softmax against the target's class means.

With v_i and u_i of unit length, m_c the mean of the u_i of class c, normalised, and

    f(v) = v W + b + gelu(v W_1 + b_1) W_2,

    L = - mean_i log [ exp(s f_i.m_y) / sum_c exp(s f_i.m_c) ],    f_i = f(v_i) / |f(v_i)|.

W and b begin as those of the ridge, W_2 as zeros. Drift-Adapter (arXiv 2509.23471) has such a hidden layer, trained by
the squared error. Of more than 4,096 classes each step takes those of its batch and others at random.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from core.models.maps.modules import ResidualNetwork, build_module
from core.models.maps.vectors import Pairs, row_blocks, unit_rows
from core.progress import Progress

__all__ = ["train_network"]

MAX_CLASSES = 4096
"""That take part in a step: the scale of the logits suits this many, and a step's time is bounded."""


def train_network(
    pairs: Pairs,
    classes: np.ndarray,
    affine: dict[str, Tensor],
    *,
    hidden: int,
    scale: float,
    num_epoch: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> dict[str, Tensor]:
    """The weights of a `ResidualNetwork` trained on all pairs, beginning with `affine`, by Adam with a cosine schedule.

    `classes` (N,) are numbered from 0. Draws from a generator of its own: the same seed gives the same weights on the
    same machine. Memory: the class means and the order of the rows beside a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = pairs.source_space.size, pairs.target_space.size
    network = build_module("mlp", *sizes, {"hidden": hidden}).to_empty(device="cpu")
    assert isinstance(network, ResidualNetwork)
    network.affine.load_state_dict(affine)
    nn.init.kaiming_uniform_(network.inner.weight, nonlinearity="linear", generator=generator)
    nn.init.zeros_(network.inner.bias)
    nn.init.zeros_(network.outer.weight)
    means, labels = _class_means(pairs.target, classes), torch.from_numpy(classes)
    steps = max(1, len(pairs) // batch_size)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epoch * steps)
    with Progress("fitting the map", num_epoch * len(pairs), unit="pairs") as bar:
        for _ in range(num_epoch):
            for rows in torch.randperm(len(pairs), generator=generator).tensor_split(steps):
                rows = rows.sort().values  # the order in which a file is read
                output = normalize(network(_rows(pairs.source, rows.numpy())))
                present, own = _present_classes(labels[rows], len(means), generator)
                loss = cross_entropy(scale * output @ means[present].T, own)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update(len(rows), loss=f"{loss.item():.3f}")
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def _rows(vectors: np.ndarray, rows: np.ndarray) -> Tensor:
    """Some rows of `vectors` (N, D), normalised."""
    block = vectors[rows]
    return torch.from_numpy(unit_rows(block, slice(0, len(block)), "source vectors", np.empty(block.shape, np.float32)))


def _class_means(vectors: np.ndarray, classes: np.ndarray) -> Tensor:
    """Of the normalised rows of `vectors` (N, D) the mean of each class, normalised, (C, D)."""
    sums = np.zeros((classes.max() + 1, vectors.shape[1]))
    for rows in row_blocks(len(vectors)):
        buffer = np.empty((rows.stop - rows.start, vectors.shape[1]), np.float32)
        np.add.at(sums, classes[rows], unit_rows(vectors, rows, "target vectors", buffer))
    return normalize(torch.from_numpy(sums)).float()


def _present_classes(labels: Tensor, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The classes that take part in a step, and the place among them of each of the labels (B,)."""
    if num_classes <= MAX_CLASSES:
        return torch.arange(num_classes), labels
    others = torch.randperm(num_classes, generator=generator)[:MAX_CLASSES]
    present = torch.cat((labels, others)).unique()
    return present, torch.searchsorted(present, labels)
