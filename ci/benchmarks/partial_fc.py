"""One training step of the ArcFace head: PartialFC beside the plain softmax in autograd.

    python -m ci.benchmarks partial_fc                      B 128, C 93,431, D 512: the classes of MS1M-V3
    python -m ci.benchmarks partial_fc --classes 500000 --rate 0.01

On CUDA if there is one, float32, measured from gradients of None; the update is that of SGD with momentum. Memory is
that above embeddings, class weights and momentum.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy, linear, normalize

from ci.benchmarks.harness.bench import Bench
from core.engine.row_optimizers import RowSGD
from core.heads import PartialFC
from core.heads.margins import ArcFace

QUICK = {"batch": 8, "classes": 200, "size": 16}


def plain(head: PartialFC, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The head's loss as one would write it for one process."""
    logits = linear(normalize(embeddings), normalize(head.weight))
    return cross_entropy(head.margin(logits, labels), labels)


def run(bench: Bench, *, batch: int = 128, classes: int = 93_431, size: int = 512, rate: float = 0.1) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    head = PartialFC(ArcFace(), size, classes).to(device)
    optimizer = RowSGD([head.weight], lr=0.0, momentum=0.9, weight_decay=5e-4, fused=True)
    optimizer.state[head.weight]["momentum_buffer"] = torch.zeros_like(head.weight)
    embeddings = torch.randn(batch, size, device=device, requires_grad=True)
    labels = torch.randint(classes, (batch,), device=device)

    def step(loss: Callable[..., torch.Tensor], sample_rate: float, update: bool) -> float:
        head.sample_rate = sample_rate
        value = loss(head, embeddings, labels)
        value.backward()
        if update:
            optimizer.step()
        head.weight.grad = embeddings.grad = None
        return value.item()

    ways = {"PartialFC": (PartialFC.forward, 1.0), f"PartialFC, rate {rate}": (PartialFC.forward, rate)}
    ways["plain autograd"] = (plain, 1.0)
    for work, update in (("forward and backward", False), ("the same, and the update", True)):
        found = bench.compare(
            f"{work}: B {batch}, C {classes:,}, D {size}",
            {name: lambda way=way: step(*way, update) for name, way in ways.items()},  # noqa: B023
        )
        torch.testing.assert_close(found["PartialFC"], found["plain autograd"], rtol=1e-5, atol=0)
