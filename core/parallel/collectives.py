"""Collectives over a process group that is given, the default one (`None`), or not there at all (one process).

Without an initialised process group every function here is that of a world of size 1. The tensors may lie on the CPU
(gloo) or on CUDA (nccl). All ranks of a group must make the same calls in the same order, backward passes included: a
tensor gathered with gradient must need its gradient on every rank or on none.
"""

from typing import Any

import torch
import torch.distributed as dist

__all__ = ["all_gather_rows", "all_reduce_", "barrier", "broadcast_object", "rank", "row_counts", "world_size"]


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Number of ranks in the group; 1 without a process group."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


def rank(group: dist.ProcessGroup | None = None) -> int:
    """This process's rank in the group; 0 without a process group."""
    return dist.get_rank(group) if dist.is_initialized() else 0


def all_reduce_(tensor: torch.Tensor, op: str = "sum", group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Replace `tensor` by its sum, or `op="max"` or `"min"`, over the ranks, and return it. No gradient."""
    if world_size(group) > 1:
        dist.all_reduce(tensor, getattr(dist.ReduceOp, op.upper()), group)
    return tensor


def barrier(group: dist.ProcessGroup | None = None) -> None:
    """Wait until every rank has come here."""
    if world_size(group) > 1:
        dist.barrier(group)


def broadcast_object(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """The group's first rank's `value`, any picklable object, on every rank."""
    if world_size(group) == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, group=group, group_src=0)
    return values[0]


def row_counts(num_rows: int, device: torch.device, group: dist.ProcessGroup | None = None) -> list[int]:
    """`num_rows` of every rank, in rank order.

    Where the group has a CPU backend too (`init_process_group("cpu:gloo,cuda:nccl")`, which is also what leaving the
    backend out gives), the numbers go that way and CUDA is not waited for; over nccl alone this is a device sync.
    """
    size = world_size(group)
    if size == 1:
        return [num_rows]
    if "cpu:" in dist.get_backend_config(group):
        device = torch.device("cpu")
    counts = torch.empty(size, dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(counts, torch.tensor([num_rows], device=device), group)
    return counts.tolist()


def all_gather_rows(
    tensor: torch.Tensor, group: dist.ProcessGroup | None = None, *, counts: list[int] | None = None
) -> torch.Tensor:
    """The rows of all ranks in rank order: `(B_rank, ...)` gives `(sum of B_rank, ...)`. The ranks' B may differ.

    The gradient is that of the sum of the ranks' losses: gradients are summed over the ranks and each rank gets its own
    rows (one reduce-scatter). Integer tensors and detached ones, such as labels and queued features, are gathered
    without gradient and have no backward pass. `counts` is `row_counts`' answer where the caller has it already.
    Where B differs, rows are padded to the largest B on the way.
    """
    if world_size(group) == 1:
        return tensor
    if counts is None:
        counts = row_counts(len(tensor), tensor.device, group)
    return _GatherRows.apply(tensor, counts, group)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, counts: list[int], group: dist.ProcessGroup | None) -> torch.Tensor:
        ctx.counts, ctx.group = counts, group
        largest = max(counts)
        blocks = tensor.new_empty(len(counts) * largest, *tensor.shape[1:])
        if largest > 0:
            dist.all_gather_into_tensor(blocks, _padded(tensor, largest), group)
        if min(counts) == largest:
            return blocks
        return torch.cat([block[:count] for block, count in zip(blocks.split(largest), counts)])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        largest = max(ctx.counts)
        own = gradient.new_empty(largest, *gradient.shape[1:])
        if largest > 0:
            if min(ctx.counts) < largest:
                gradient = torch.cat([_padded(block, largest) for block in gradient.split(ctx.counts)])
            dist.reduce_scatter_tensor(own, gradient.contiguous(), group=ctx.group)
        return own[: ctx.counts[rank(ctx.group)]], None, None


def _padded(tensor: torch.Tensor, num_rows: int) -> torch.Tensor:
    """`tensor`, contiguous, with zero rows added up to `num_rows`."""
    missing = num_rows - len(tensor)
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor.contiguous()
