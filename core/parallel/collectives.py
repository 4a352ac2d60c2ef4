"""Collectives over a process group that is given, the default one (`None`), or not there at all (one process).

Without an initialised process group every function behaves as on a single rank. Tensors may be on the CPU (gloo) or on
CUDA (nccl). All ranks of a group must make the same calls in the same order, backward passes included: a tensor that is
exchanged with its gradient must require it on every rank or on none.

What a training minimises is the mean of the ranks' losses. The gradients of replicated parameters are averaged over the
ranks after the backward pass, those of sharded parameters are not: a loss that reads a shard exchanges it by
`sum_over_ranks`, whose gradient is that of the mean already.
"""

from typing import Any

import torch
import torch.distributed as dist

__all__ = [
    "all_gather_rows",
    "all_reduce_",
    "barrier",
    "broadcast_object",
    "mean_over_ranks",
    "rank",
    "row_counts",
    "sum_over_ranks",
    "world_size",
]

# PyTorch 2.14 renamed both and warns about the old names
_HAS_NEW_NAMES = hasattr(dist, "all_gather_single")
_all_gather_single = dist.all_gather_single if _HAS_NEW_NAMES else dist.all_gather_into_tensor
_reduce_scatter_single = dist.reduce_scatter_single if _HAS_NEW_NAMES else dist.reduce_scatter_tensor


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """The number of ranks in the group; 1 without a process group."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


def rank(group: dist.ProcessGroup | None = None) -> int:
    """The rank of this process in the group; 0 without a process group."""
    return dist.get_rank(group) if dist.is_initialized() else 0


def all_reduce_(tensor: torch.Tensor, op: str = "sum", group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Replace `tensor` by its sum (or `op="max"`, `"min"`) over the ranks, and return it. No gradient."""
    if world_size(group) > 1:
        dist.all_reduce(tensor, getattr(dist.ReduceOp, op.upper()), group)
    return tensor


def barrier(group: dist.ProcessGroup | None = None) -> None:
    """Wait until all ranks have reached this call."""
    if world_size(group) > 1:
        dist.barrier(group)


def broadcast_object(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """The first rank's `value`, any picklable object, on every rank."""
    if world_size(group) == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, group=group, group_src=0)
    return values[0]


def row_counts(num_rows: int, device: torch.device, group: dist.ProcessGroup | None = None) -> list[int]:
    """The `num_rows` of every rank, in rank order.

    If the group also has a CPU backend (`init_process_group("cpu:gloo,cuda:nccl")`, or no backend named at all), the
    numbers are exchanged there and the host does not wait for CUDA; with nccl alone this synchronises the device.
    """
    size = world_size(group)
    if size == 1:
        return [num_rows]
    if "cpu:" in dist.get_backend_config(group):
        device = torch.device("cpu")
    counts = torch.empty(size, dtype=torch.int64, device=device)
    _all_gather_single(counts, torch.tensor([num_rows], device=device), group)
    return counts.tolist()


def all_gather_rows(
    tensor: torch.Tensor, group: dist.ProcessGroup | None = None, *, counts: list[int] | None = None
) -> torch.Tensor:
    """The rows of all ranks in rank order: `(B_rank, ...)` gives `(sum of B_rank, ...)`. B may differ between ranks.

    The gradient is that of the sum of the ranks' losses: gradients are summed over the ranks and each rank gets those
    of its own rows (one reduce-scatter). Integer and detached tensors, such as labels and queued features, are gathered
    without a gradient and have no backward pass. `counts` is the result of `row_counts`, if the caller already has it.
    If B differs, rows are padded to the largest B for the exchange.
    """
    if world_size(group) == 1:
        return tensor
    if counts is None:
        counts = row_counts(len(tensor), tensor.device, group)
    return _GatherRows.apply(tensor, counts, group)


def sum_over_ranks(tensor: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """The sum of the ranks' tensors, all of one shape, on every rank. One all-reduce forward and one backward.

    The gradient is that of the mean of the ranks' losses: exact for a sharded parameter, whose gradient is not averaged
    over the ranks afterwards.
    """
    return tensor if world_size(group) == 1 else _SumOverRanks.apply(tensor, group)


def mean_over_ranks(
    values: torch.Tensor, selected: torch.Tensor, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """This rank's share `()` of the mean of all ranks' `values` `(B,)` that are `selected` `(B,)`; B may differ.

    The average of the shares over the ranks is that mean, in value and in gradient, however the selected samples are
    distributed. 0 if no rank has any. One all-reduce of a number.
    """
    total = torch.where(selected, values, 0).sum()
    count = all_reduce_(selected.sum(dtype=values.dtype), group=group)
    return total * world_size(group) / count.clamp(min=1)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, counts: list[int], group: dist.ProcessGroup | None) -> torch.Tensor:
        ctx.counts, ctx.group = counts, group
        largest = max(counts)
        blocks = tensor.new_empty(len(counts) * largest, *tensor.shape[1:])
        if largest > 0:
            _all_gather_single(blocks, _padded(tensor, largest), group)
        if min(counts) == largest:
            return blocks
        return torch.cat([block[:count] for block, count in zip(blocks.split(largest), counts)])

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = gradients
        largest = max(ctx.counts)
        own = gradient.new_empty(largest, *gradient.shape[1:])
        if largest > 0:
            if min(ctx.counts) < largest:
                gradient = torch.cat([_padded(block, largest) for block in gradient.split(ctx.counts)])
            _reduce_scatter_single(own, gradient.contiguous(), group=ctx.group)
        return own[: ctx.counts[rank(ctx.group)]], None, None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
        ctx.group = group
        return all_reduce_(tensor.clone(memory_format=torch.contiguous_format), group=group)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return all_reduce_((gradient / world_size(ctx.group)).contiguous(), group=ctx.group), None


def _padded(tensor: torch.Tensor, num_rows: int) -> torch.Tensor:
    """`tensor`, contiguous, with zero rows added up to `num_rows`."""
    missing = num_rows - len(tensor)
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor.contiguous()
