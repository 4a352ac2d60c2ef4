"""Normalisation and augmentation of images on the device against the CPU, given the same random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ci.gpu.report import Error, Report, difference
from core.images.transforms import AUGMENTATIONS, NORMALIZATIONS, TrainTransform


@contextmanager
def same_draws() -> Iterator[None]:
    """Meanwhile `torch.rand` and `torch.randn_like` give every device the numbers of one generator of the CPU."""
    draw, generator = torch.rand, torch.Generator().manual_seed(3)

    def rand(*shape: int, device: Any = None) -> Tensor:
        return draw(*shape, generator=generator).to(device or "cpu")

    def randn_like(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.device)

    with patch.object(torch, "rand", rand), patch.object(torch, "randn_like", randn_like):
        yield


def check_transform(names: tuple[str, ...], normalization: str, device: torch.device, size: int) -> dict[str, Error]:
    images = torch.randint(0, 256, (16, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    transform = TrainTransform(normalization, names)
    results = []
    # bytes are mirrored on the CPU by OpenCV, which need not be installed here; other integers by PyTorch
    for pixels in (images.to(device), images.short()):
        with same_draws():
            results.append(transform(pixels))
    found, expected = results
    errors = {"images": difference(found, expected, 1e-4 if "affine" in names else 1e-5)}
    if not names:
        mean, std = (torch.tensor(numbers, dtype=torch.float64) for numbers in NORMALIZATIONS[normalization])
        errors["formula"] = difference(found, ((images.double() - mean) / std).permute(0, 3, 1, 2), 1e-6)
    return errors


def check_images(report: Report, device: torch.device, quick: bool) -> None:
    """Every augmentation alone, and all together."""
    size = 16 if quick else 112
    for normalization in NORMALIZATIONS:
        name = f"normalisation {normalization}"
        report.check("images", name, lambda n=normalization: check_transform((), n, device, size))
    for names in [*((name,) for name in AUGMENTATIONS), tuple(AUGMENTATIONS)]:
        report.check("images", " + ".join(names), lambda names=names: check_transform(names, "face", device, size))
