"""Statistics since the last log line: mean loss terms, speed, and the first step that was not finite."""

import time

import torch
from torch import Tensor, distributed

from core.parallel.ranks import Ranks

__all__ = ["StepWindow"]

NONE = torch.iinfo(torch.int64).max


class StepWindow:
    """Sums of the logged values over steps, kept on the device so that no step has to synchronise."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.sums: dict[str, Tensor] = {}
        self.num_steps = 0
        self.started = time.monotonic()
        self.bad_step = torch.full((), NONE, device=ranks.device)

    def add(self, step: int, values: dict[str, Tensor], finite: Tensor) -> None:
        """Add the values of a step; `finite`, a bool scalar, is true if its loss and gradient are."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.num_steps += 1
        self.bad_step = torch.where(finite, self.bad_step, self.bad_step.clamp(max=step))

    def first_bad_step(self) -> int | None:
        """The first step in the window, on any rank, that was not finite. Collective."""
        bad = self.bad_step.clone()
        distributed.all_reduce(bad, distributed.ReduceOp.MIN)
        return None if bad.item() == NONE else int(bad.item())

    def means(self) -> dict[str, float]:
        """Mean of each value over the steps of the window and over the ranks. Collective."""
        means = torch.stack(list(self.sums.values())) / (self.num_steps * self.ranks.world_size)
        distributed.all_reduce(means)
        return dict(zip(self.sums, means.tolist()))

    def images_per_second(self, images_per_step: int) -> float:
        """Speed over the window, of all ranks together."""
        return self.num_steps * images_per_step / (time.monotonic() - self.started)
