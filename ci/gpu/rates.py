"""How fast the device multiplies matrices, and how many operations a training step has."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

TYPES = {"tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Of matrix products in each precision; tf32: float32 numbers, whose products a GPU rounds."""


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_a_call(work: Callable[[], object], device: torch.device, seconds: float, warm_up: int = 3) -> float:
    """Median of three measurements, of `seconds` together and at least a call each."""
    for _ in range(warm_up):
        work()
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    calls = max(1, int(seconds / 3 / max(time.perf_counter() - start, 1e-6)))
    results = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        wait(device)
        results.append((time.perf_counter() - start) / calls)
    return statistics.median(results)


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Meanwhile float32 products are rounded to TF32 on GPUs that can, or exact."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = enabled
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def product_rate(precision: str, device: torch.device, size: int, seconds: float) -> float:
    """Operations a second of the product of two square matrices."""
    with tf32(True) if precision == "tf32" else nullcontext():
        one, other = torch.randn(2, size, size, device=device).to(TYPES[precision])
        out = torch.empty_like(one)
        return 2 * size**3 / seconds_a_call(lambda: torch.mm(one, other, out=out), device, seconds)


def memory_rate(device: torch.device, numbers: int, seconds: float) -> float:
    """Bytes a second that a pass over a tensor of float32 `numbers` reads and writes."""
    buffer = torch.zeros(numbers, device=device)
    return 2 * buffer.nbytes / seconds_a_call(lambda: buffer.mul_(1.0), device, seconds)


def forward_operations(backbone: nn.Module, image_size: int, device: torch.device) -> float:
    """Of a network in training, for each image; what is computed again in the backward pass is not counted."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.train()(torch.zeros(2, 3, image_size, image_size, device=device))
    return counter.get_total_flops() / 2
