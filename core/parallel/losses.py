"""What the loss terms of several methods are made of."""

import torch
from torch import Tensor

from core.parallel.collectives import all_reduce_, world_size

__all__ = ["mean_of_selected", "scale_gradient"]


def mean_of_selected(values: Tensor, selected: Tensor) -> Tensor:
    """This rank's share, `()`, of the mean of those of all ranks' `values` `(B,)` that are `selected` `(B,)`.

    The average of the shares over the ranks is that mean, in value and gradient, however the selected samples are
    spread: the sum over this rank's samples is divided by the mean number of them a rank. 0 if none is selected
    anywhere. One all-reduce of a number.
    """
    total = torch.where(selected, values, 0).sum()
    count = all_reduce_(selected.sum(dtype=values.dtype))
    return total * world_size() / count.clamp(min=1)


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """`tensor`, whose gradient is multiplied by `factor` on the way back; a negative one reverses it."""
    return _ScaleGradient.apply(tensor, factor)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
