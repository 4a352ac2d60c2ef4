"""The processes of a run: torchrun's, or a plain python process as a group of one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, nn

from core.claims import claimed, joined
from core.errors import UserError
from core.parallel.collectives import barrier, broadcast_object
from core.parallel.launcher import end_with_launcher, own_store

__all__ = ["LONG_PATIENCE", "Ranks", "average_gradients", "claimed_by_ranks", "process_group", "share_buffers"]

PATIENCE = timedelta(minutes=60)
"""How long a rank waits for the others, of which the first one may test or write. For ranks that hang: when one dies,
the others end at once."""
LONG_PATIENCE = timedelta(days=20)
"""For programs whose first rank may work alone for hours. Its milliseconds fit into 32 bits."""
BY_TORCHRUN = "start with torchrun, which sets all of them, or unset them to use one process"


@dataclass(frozen=True)
class Ranks:
    """This process among all of a run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes logs and models."""
        return self.rank == 0


@contextmanager
def process_group(device: str = "auto", patience: timedelta = PATIENCE) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment, or make one for this process alone.

    `device`: "auto", "cuda" or "cpu". On CUDA each local rank uses its own GPU, with nccl for device tensors and gloo
    for host tensors; on the CPU gloo is used for all. `patience`: how long a rank waits for the others. The group is
    destroyed at the end, unless an exception is raised. Under torchrun the process ends when torchrun does, even if
    that is killed.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise UserError(f"unknown device {device!r}: choose 'auto', 'cuda' or 'cpu'")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda' but PyTorch sees no GPU here: choose 'auto' or 'cpu'")
    rank, world_size = _place_in_group()
    if device == "cpu" or not torch.cuda.is_available():
        place, backend = torch.device("cpu"), "gloo"
    else:
        local_rank = _number("LOCAL_RANK", 0)
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"local rank {local_rank} has no GPU: this machine has {torch.cuda.device_count()}, "
                "start as many processes or set device=cpu"
            )
        place, backend = torch.device("cuda", local_rank), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(place)
    end_with_launcher()
    distributed.init_process_group(
        backend,
        rank=rank,
        world_size=world_size,
        store=own_store(patience) if "WORLD_SIZE" in os.environ else distributed.HashStore(),
        timeout=patience,
        device_id=place if place.type == "cuda" else None,
    )
    yield Ranks(rank, world_size, place)
    distributed.destroy_process_group()


def _place_in_group() -> tuple[int, int]:
    """This process's rank and the number of ranks, which torchrun puts into the environment; 0 of 1 without it."""
    world_size = _number("WORLD_SIZE", 1)
    rank = _number("RANK", 0)
    if rank >= world_size:
        raise UserError(
            f"the environment has RANK {rank} and WORLD_SIZE {world_size}, but ranks count from 0: {BY_TORCHRUN}"
        )
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if "WORLD_SIZE" in os.environ and missing:
        raise UserError(f"the environment has WORLD_SIZE {world_size}, but no {', no '.join(missing)}: {BY_TORCHRUN}")
    return rank, world_size


def _number(name: str, default: int) -> int:
    """A whole number from the environment; `UserError` if that has something else under its name."""
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise UserError(f"the environment has {name} {text!r:.50}, which is no whole number from 0: {BY_TORCHRUN}")
    return int(text)


@contextmanager
def claimed_by_ranks(folder: Path, work: str, ranks: Ranks, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder, made if it is missing, for the work of all ranks. Every rank must call this, and end it.

    Otherwise as `core.claims.claimed`. No other work gets the folder before the last rank has ended, however it ends: a
    rank may write for a moment after the first one was killed.
    """
    with ExitStack() as claims:
        refusal = None
        if ranks.is_first:
            try:
                claims.enter_context(claimed(folder, work, make=True, wait=wait))
            except UserError as error:
                refusal = error
        refusal = broadcast_object(refusal)
        if refusal is not None:
            raise refusal
        with ExitStack() as others:
            if not ranks.is_first:
                others.enter_context(joined(folder))
            barrier()
            yield
        barrier()  # the first rank ends the claim after the others


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace the gradients of replicated parameters by their mean over the ranks; a missing one counts as zero.

    For the few small parameters beside the backbone: one all-reduce. Collective. Not by DDP, which lays its buckets out
    anew after its first backward pass. On three or more ranks the order of additions depends on the buckets, so a
    resumed run would differ from an uninterrupted one in the last bits. For the backbone the trainer settles the
    buckets with a pass of zeros beforehand; a method's loss has side effects and no such pass.
    """
    if not parameters or distributed.get_world_size() == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / distributed.get_world_size()
    distributed.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([parameter.numel() for parameter in parameters])):
        parameter.grad = part.view_as(parameter)


def share_buffers(module: nn.Module) -> None:
    """Give every rank the batch statistics of the first one, as DDP does before its next forward pass. Collective.

    Only buffers that checkpoints keep: the others are tables that are the same on all ranks.
    """
    kept = module.state_dict(keep_vars=True)
    for name, buffer in module.named_buffers():
        if name in kept:
            distributed.broadcast(buffer, 0)
