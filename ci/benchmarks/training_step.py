"""A training step of a network on the CPU, as the trainer makes it, beside the plain loop and bare matrix products.

python -m ci.benchmarks training_step                     r18, 112x112, B 128, C 10,572: all threads
python -m ci.benchmarks training_step --network r50
python -m ci.benchmarks training_step --compiled          the network compiled too (minutes, with a C++ compiler)

The plain loop is what a user would write: NCHW, eager, float32, ArcFace from the logits of all classes, cross_entropy,
SGD as it comes. Ours is timed in float32 and in bfloat16, of which precision=auto takes the one that is named at the
end. The matrix products have as many operations as the step, three times those of the forward pass: for them "times
ours" is the share of the processor's product rate that the step reaches.
"""

from collections.abc import Callable

import torch

from ci.benchmarks.harness.bench import Bench
from ci.gpu.rates import forward_operations
from ci.gpu.steps import Cell, Sizes, make_step
from core.backbones import build_backbone
from core.engine.precision import choose_precision
from core.parallel.ranks import Ranks

QUICK = {"image_size": 32, "batch": 4, "classes": 100}
CPU = torch.device("cpu")
SIDE = 1024


def run(
    bench: Bench,
    *,
    network: str = "r18",
    image_size: int = 112,
    batch: int = 128,
    classes: int = 10_572,
    compiled: bool = False,
) -> None:
    sizes = Sizes(image_size, batch)
    backbone = build_backbone(network, sizes.embedding_size, image_size=image_size)
    forward = forward_operations(backbone, image_size, CPU) + 2 * sizes.embedding_size * classes
    count = max(1, round(3 * batch * forward / (2 * SIDE**3)))
    cells = {
        "ours": Cell(network, classes, "tf32"),
        "ours, bfloat16": Cell(network, classes, "bf16"),
        "plain loop": Cell(network, classes, "tf32", channels_last=False, plain=True),
    }
    if compiled:
        cells["ours, compiled"] = Cell(network, classes, "tf32", compiled=True)
    steps = {way: make_step(cell, sizes, CPU) for way, cell in cells.items()}
    if compiled:
        steps["ours, compiled"]()
    steps["matrix products, float32"] = products(count, torch.float32)
    steps["matrix products, bfloat16"] = products(count, torch.bfloat16)
    bench.compare(f"{network}, {image_size}x{image_size}, B {batch}, C {classes:,}, float32", steps, batch, "images")
    layout = backbone.to(memory_format=torch.channels_last)
    bench.note(f"precision=auto takes {choose_precision('auto', layout, image_size, Ranks(0, 1, CPU))}")


def products(count: int, dtype: torch.dtype) -> Callable[[], None]:
    """`count` products of square matrices."""
    one, other = torch.randn(2, SIDE, SIDE).to(dtype)
    out = torch.empty_like(one)

    def multiply() -> None:
        for _ in range(count):
            torch.mm(one, other, out=out)

    return multiply
