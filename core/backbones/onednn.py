"""A fault in oneDNN's kernels that training on the CPU has to avoid."""

import logging

import torch
from torch import nn

__all__ = ["avoid_unsafe_kernels"]

logger = logging.getLogger(__name__)
LANES = 8
"""float32 numbers in an AVX2 register."""


def avoid_unsafe_kernels(module: nn.Module) -> None:
    """Switch oneDNN off in this process where it would corrupt memory while `module` is trained on the CPU.

    On processors with AVX2 but without AVX-512, the backward pass of channels_last convolutions writes past the end of
    its buffers if the output channels are not a multiple of 8 (oneDNN 3.12 and 3.13, of PyTorch 2.14 and 2.15:
    "corrupted size vs. prev_size", or silence). Networks of the usual widths are not affected.
    """
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    narrow = any(convolution.out_channels % LANES for convolution in convolutions)
    if narrow and torch.backends.cpu.get_cpu_capability() == "AVX2" and torch.backends.mkldnn.enabled:
        logger.warning("training without oneDNN: its AVX2 kernels are faulty for channels that are not a multiple of 8")
        torch.backends.mkldnn.set_flags(False)
