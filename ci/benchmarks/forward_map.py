"""FCT's training: pairs a second of processor time on one core, beside the bare matrix products of its network.

python ci/benchmarks/forward_map.py                   released widths, D = 128 and 512
python ci/benchmarks/forward_map.py --hidden 256
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import normalize

from core.models.maps.forward import ForwardNetwork


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=1024, help="in a step")
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for size in (128, 512):
        for half in (False, True):
            measure(size, args.hidden, args.pairs, args.steps, half)


def measure(size: int, hidden: int, pairs: int, steps: int, half: bool) -> None:
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
    trained, bare = (pairs / seconds(function, steps) for function in (step, products))
    print(
        f"D = {size}, hidden {hidden}, {'bf16' if half else 'fp32'}: {trained:,.0f} pairs a second and core, bare "
        f"products {bare:,.0f}; {operations / 1e6:.1f} million operations a pair, {trained * operations / 1e9:.0f} "
        "billion a second",
        flush=True,
    )


def seconds(function: Callable[[], object], steps: int) -> float:
    """The least processor time of a call."""
    times = []
    for _ in range(steps):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times)


if __name__ == "__main__":
    main()
