"""FCT's training on one core, beside the bare matrix products of its network.

python -m ci.benchmarks forward_map                   released widths, D = 128 and 512
python -m ci.benchmarks forward_map --hidden 256
"""

import torch
from torch import nn
from torch.nn.functional import normalize

from ci.benchmarks.harness.bench import Bench
from core.models.maps.forward import ForwardNetwork

QUICK = {"hidden": 32, "pairs": 64}


def run(bench: Bench, *, hidden: int = 2048, pairs: int = 1024) -> None:
    torch.set_num_threads(1)
    for size in (128, 512):
        for half in (False, True):
            compare(bench, size, hidden, pairs, half)


def compare(bench: Bench, size: int, hidden: int, pairs: int, half: bool) -> None:
    network = ForwardNetwork(size, size, hidden)
    optimizer = torch.optim.Adam(network.parameters(), 5e-4, weight_decay=2.0**-15, fused=True)
    old, new = normalize(torch.randn(pairs, size)), normalize(torch.randn(pairs, size))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = (new - network(old)).square().sum(dim=1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    shapes = [tuple(m.weight.shape) for m in network.modules() if isinstance(m, nn.Linear)]
    dtype = torch.bfloat16 if half else torch.float32
    factors = [
        (torch.randn(pairs, k, dtype=dtype), torch.randn(n, k, dtype=dtype), torch.randn(pairs, n, dtype=dtype))
        for n, k in shapes
    ]

    def products() -> None:
        for x, weight, gradient in factors:
            torch.mm(x, weight.T), torch.mm(gradient, weight), torch.mm(gradient.T, x)

    operations = 6 * sum(n * k for n, k in shapes)
    work = f"D {size}, hidden {hidden}, {'bf16' if half else 'fp32'}, {operations / 1e6:.1f} M operations a pair"
    bench.compare(work, {"training step": step, "bare products": products}, pairs, "pairs")
