"""The number format of a training's matrix products, and which one `precision=auto` takes."""

import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from core.parallel.collectives import broadcast_object
from core.parallel.ranks import Ranks

__all__ = ["PRECISIONS", "choose_precision", "float32_products"]

logger = logging.getLogger(__name__)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The data type of autocast, None for float32."""
PRODUCTS_FASTER, STEP_FASTER = 1.5, 1.3
"""What bfloat16 must gain to be taken on a CPU: in the product of two matrices, and in a step of the network."""
SIDE, IMAGES, ROUNDS = 1024, 4, 4


def choose_precision(
    precision: str, backbone: nn.Module, image_size: int, ranks: Ranks, before: str | None = None
) -> str:
    """`precision`, a name of `PRECISIONS`, or for "auto" the one that suits this machine; the first rank decides.

    On CUDA that is bf16 where the GPU has it, else fp16; on a CPU it is bf16 where it is measured to be faster, else
    fp32: processors with matrix units (AMX) multiply bfloat16 six times as fast as float32, others gain nothing.
    `before` is what a run that is resumed was trained with so far: "auto" keeps to it, but for fp16 on a CPU, which is
    many times slower than fp32 there. Collective.
    """
    if precision != "auto":
        return precision
    return broadcast_object(_suiting(backbone, image_size, ranks.device.type, before) if ranks.is_first else None)


def _suiting(backbone: nn.Module, image_size: int, device: str, before: str | None) -> str:
    """What "auto" is on a device, "cuda" or "cpu"."""
    if before == "fp16" and device == "cpu":
        logger.info("precision: fp32 (the run began with fp16, which is slow on a CPU; set it to have it)")
        return "fp32"
    if before in PRECISIONS:
        logger.info("precision: %s, with which the run began (set it to have another)", before)
        return before
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return _faster_on_cpu(backbone, image_size)


@contextmanager
def float32_products(device: torch.device, precision: str) -> Iterator[None]:
    """Meanwhile a GPU whose network is trained in half precision rounds float32 matrix products, the head's, to TF32.

    The factors keep 10 bits of mantissa, where bf16 embeddings have 7; sums are in float32. A step of a million classes
    on an H100 took 16 ms in place of 22 at B = 128, 43 in place of 99 at B = 1024. With fp32 products stay exact.
    """
    if device.type != "cuda" or PRECISIONS[precision] is None:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _faster_on_cpu(backbone: nn.Module, image_size: int) -> str:
    """bf16 or fp32. Where products gain nothing this takes a tenth of a second, elsewhere a few small steps."""
    single, half = _in_turns(partial(_product_seconds, torch.float32), partial(_product_seconds, torch.bfloat16))
    products = single / half
    if products < PRODUCTS_FASTER:
        logger.info("precision: fp32 (this processor's matrix products are %.1f times as fast in bf16)", products)
        return "fp32"
    single, half = _step_seconds(backbone, image_size)
    chosen = "bf16" if single >= STEP_FASTER * half else "fp32"
    logger.info(
        "precision: %s (%d images forward and back: %.3f s in fp32, %.3f s in bf16)", chosen, IMAGES, single, half
    )
    return chosen


def _product_seconds(dtype: torch.dtype) -> float:
    one, other = torch.ones(2, SIDE, SIDE, dtype=dtype)
    return _seconds(lambda: one @ other)


def _step_seconds(backbone: nn.Module, image_size: int) -> tuple[float, float]:
    """Seconds of a forward and backward pass of the network in float32 and in bfloat16, measured in turns on a copy."""
    with torch.random.fork_rng(devices=()):
        network = copy.deepcopy(backbone).train()
        images = torch.rand(IMAGES, 3, image_size, image_size).to(memory_format=torch.channels_last)

        def step(half: bool) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                embedding = network(images)
            embedding.float().sum().backward()

        return _in_turns(*(partial(_seconds, partial(step, half)) for half in (False, True)))


def _in_turns(one: Callable[[], float], other: Callable[[], float]) -> tuple[float, float]:
    """The shortest seconds of each of two works: the first time of a work is never that."""
    ones, others = zip(*((one(), other()) for _ in range(ROUNDS)))
    return min(ones), min(others)


def _seconds(work: Callable[[], object]) -> float:
    """Of this thread at work, so that other programs count as little as possible."""
    start = time.thread_time()
    work()
    return time.thread_time() - start
