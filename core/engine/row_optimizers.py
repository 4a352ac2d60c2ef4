"""SGD and AdamW for parameters of which a step touches only some rows: the class weights of a sampled partial FC.

Where a gradient is sparse (COO, rows of a parameter `(C, ...)`), weights and optimiser state of the rows that it names
are updated by the usual formulas, and all other rows stay as they are: neither momentum nor weight decay moves a class
that takes no part in a step, as in arcface_torch's PartialFC V2. With dense zeros in their place both would. A step
costs what its rows cost, whatever C is. Parameters with dense gradients are updated by PyTorch's own optimiser.

Memory beside weights, gradient and state: a few blocks of rows. Where several micro-batches have added up, the rows are
sorted and summed first. The host waits on CUDA for the answer whether they have.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

__all__ = ["RowAdamW", "RowSGD"]

BLOCK_ROWS = {"cpu": 512, "cuda": 65536}
"""Rows that are read, updated and written before the next ones: on a CPU they stay in its cache."""


class _ByRows(Optimizer):
    """An optimiser whose parameters with sparse gradients are updated by `_update`, the others by the base class."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; with fp16 none where the loss scaler has found an overflow."""
        groups = [(group, p, p.grad) for group in self.param_groups for p in group["params"]]
        sparse = [entry for entry in groups if entry[2] is not None and entry[2].is_sparse]
        for _, parameter, _ in sparse:
            parameter.grad = None  # hidden from the base class
        result = super().step(closure)
        for group, parameter, gradient in sparse:
            parameter.grad = gradient
            self._step_rows(group, parameter, _in_order(gradient))
        return result

    def _step_rows(self, group: Mapping[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        state, skip = self.state[parameter], getattr(self, "found_inf", None)
        if "step" in state:
            state["step"] += 1 if skip is None else 1 - skip.to(state["step"].device)
        tensors = [parameter, *(value for value in state.values() if value.shape == parameter.shape)]
        indices, values = gradient.indices()[0], gradient.values()
        for rows, gradients in zip(*(part.split(BLOCK_ROWS[part.device.type]) for part in (indices, values))):
            before = [tensor.index_select(0, rows) for tensor in tensors]
            after = self._update(group, state, gradients, *before)
            for tensor, old, new in zip(tensors, before, after):
                tensor[rows] = new if skip is None else torch.where(skip > 0, old, new)

    @abstractmethod
    def _update(
        self, group: Mapping[str, Any], state: Mapping[str, Tensor], gradient: Tensor, weight: Tensor, *moments: Tensor
    ) -> tuple[Tensor, ...]:
        """The new `weight` and `moments` of some rows, of their `gradient`; all of one shape. Changes none of them."""


def _in_order(gradient: Tensor) -> Tensor:
    """The gradient with each row once, rising. Autograd forgets that one is so already, and sorting copies it all."""
    if not gradient.is_coalesced():
        rows = gradient._indices()[0]
        if (rows[1:] > rows[:-1]).all():
            return gradient._coalesced_(True)
    return gradient.coalesce()


class RowSGD(_ByRows, SGD):
    """SGD with momentum."""

    def _update(self, group, state, gradient, weight, *moments):
        gradient = gradient.add(weight, alpha=group["weight_decay"])
        if moments:
            gradient.add_(moments[0], alpha=group["momentum"])
        return weight.add(gradient, alpha=-group["lr"]), *([gradient] if moments else [])


class RowAdamW(_ByRows, AdamW):
    """AdamW; the corrections of both moments count all steps, as `torch.optim.SparseAdam` does."""

    def _update(self, group, state, gradient, weight, *moments):
        beta1, beta2 = group["betas"]
        mean = moments[0].lerp(gradient, 1 - beta1)
        square = moments[1].mul(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # Not numbers: with the state on a GPU the host would wait for them. Float64: 1 - beta2 is small.
        correction1, correction2 = (1 - beta ** state["step"].double() for beta in (beta1, beta2))
        size = (square / correction2.to(square)).sqrt_().add_(group["eps"])
        weight = weight.mul(1 - group["lr"] * group["weight_decay"])
        return weight.sub_(mean.div(size).mul_(group["lr"] / correction1.to(mean))), mean, square
