"""One training step of the ArcFace head: PartialFC beside plain PyTorch, with all classes and with a sample of them.

    python -m ci.benchmarks partial_fc                      B 128, C 93,431, D 512: the classes of MS1M-V3
    python -m ci.benchmarks partial_fc --classes 500000 --rate 0.01

On CUDA if there is one, float32, measured from gradients of None; the update is that of SGD with momentum. Memory is
that above embeddings, class weights and momentum. Loss and gradients are compared first: a difference beyond rounding
is an error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from ci.benchmarks.harness.bench import Bench
from core.engine.row_optimizers import RowSGD
from core.heads import PartialFC
from core.heads.margins import ArcFace

QUICK = {"batch": 8, "classes": 200, "size": 16}
SGD = {"lr": 0.0, "momentum": 0.9, "weight_decay": 5e-4, "fused": True}
TOLERANCE = 5e-5
"""Of float32 with logits up to 64, as a share of the largest number."""


@dataclass(frozen=True)
class Training:
    """What the ways of making a step share. Each returns the loss and the gradient of the class weights."""

    head: PartialFC
    optimizer: RowSGD
    """Of the head, with its momentum."""
    embeddings: Tensor
    """(B, D), with a gradient."""
    labels: Tensor
    """(B,)"""

    def ours(self, update: bool, *, rate: float = 1.0, recompute: bool = False) -> tuple[Tensor, Tensor]:
        self.head.sample_rate, self.head.recompute_logits = rate, recompute
        return self._finish(self.head(self.embeddings, self.labels), update)

    def plain(self, update: bool) -> tuple[Tensor, Tensor]:
        """All classes, by autograd."""
        return self._finish(self._plain_loss(self.head.weight, self.labels), update)

    def plain_sampled(self, update: bool, *, rate: float) -> tuple[Tensor, Tensor]:
        """A sample of the classes as in arcface_torch's PartialFC; the same as the head's where the seed is.

        The sample's rows of the weights and of the momentum are copied out to a small parameter with an optimiser of
        its own, and back after the update.
        """
        table, momentum = self.head.weight.detach(), self.optimizer.state[self.head.weight]["momentum_buffer"]
        positive = self.labels.unique()
        priority = torch.rand(len(table) + 1, device=table.device)[:-1]  # the head draws one number more, too
        priority[positive] = 2.0
        rows = priority.topk(max(int(rate * len(table)), len(positive))).indices.sort().values
        weight = nn.Parameter(table[rows])
        loss = self._plain_loss(weight, torch.searchsorted(rows, self.labels))
        loss.backward()
        if update:
            optimizer = torch.optim.SGD([weight], **SGD)
            optimizer.state[weight]["momentum_buffer"] = momentum[rows]
            optimizer.step()
            table[rows] = weight.detach()
            momentum[rows] = optimizer.state[weight]["momentum_buffer"]
        return loss, weight.grad

    def _plain_loss(self, weight: Tensor, labels: Tensor) -> Tensor:
        """The head's loss as one would write it for one process."""
        logits = linear(normalize(self.embeddings), normalize(weight))
        return cross_entropy(self.head.margin(logits, labels), labels)

    def _finish(self, loss: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        loss.backward()
        if update:
            self.optimizer.step()
        return loss, self.head.weight.grad

    def results(self, way: Callable[[bool], tuple[Tensor, Tensor]], update: bool) -> dict[str, Tensor]:
        """Loss and gradients of a step, which leaves none behind."""
        loss, of_weight = way(update)
        found = {"loss": loss.detach(), "embeddings": self.embeddings.grad, "weight": of_weight}
        self.head.weight.grad = self.embeddings.grad = None
        return found


def require_same(ours: dict[str, Tensor], others: dict[str, Tensor], name: str) -> None:
    """`AssertionError` unless loss and gradients, of the classes that take part, are the same up to rounding."""
    for what, expected in others.items():
        found, allowed = ours[what], TOLERANCE * expected.abs().max().item()
        found = found.coalesce().values() if found.is_sparse else found
        torch.testing.assert_close(
            found, expected, rtol=0, atol=allowed, msg=lambda told, what=what: f"{name}, {what}: {told}"
        )


def run(bench: Bench, *, batch: int = 128, classes: int = 93_431, size: int = 512, rate: float = 0.1) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    head = PartialFC(ArcFace(), size, classes).to(device)
    optimizer = RowSGD([head.weight], **SGD)
    optimizer.state[head.weight]["momentum_buffer"] = torch.zeros_like(head.weight)
    embeddings = torch.randn(batch, size, device=device, requires_grad=True)
    labels = torch.randint(classes, (batch,), device=device)
    training = Training(head, optimizer, embeddings, labels)
    all_classes = {
        "PartialFC": training.ours,
        "PartialFC, logits computed again": partial(training.ours, recompute=True),
        "plain autograd": training.plain,
    }
    sampled = {
        f"PartialFC, rate {rate}": partial(training.ours, rate=rate),
        f"plain copies of the rows, rate {rate}": partial(training.plain_sampled, rate=rate),
    }
    for ways in (all_classes, sampled):
        *ours, (_, others) = ways.items()
        for name, way in ours:
            torch.manual_seed(1)
            found = training.results(way, update=False)
            torch.manual_seed(1)
            require_same(found, training.results(others, update=False), name)

    for work, update in (("forward and backward", False), ("the same, and the update", True)):
        for ways in (all_classes, sampled):
            bench.compare(
                f"{work}: B {batch}, C {classes:,}, D {size}",
                {name: lambda way=way: training.results(way, update)["loss"].item() for name, way in ways.items()},  # noqa: B023
            )
