"""From uint8 image batches to network input, on the device, a whole batch at a time.

All randomness comes from the device's default generator, so that a checkpoint that restores the generator's state
restores the augmentation too.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from core.errors import UserError

__all__ = ["AUGMENTATIONS", "NORMALIZATIONS", "TrainTransform", "normalize"]

CACHED_IMAGES = 8
"""That a core of the CPU normalises together: of 112x112 pixels they stay in its cache."""
Triple = tuple[float, float, float]

NORMALIZATIONS: dict[str, tuple[Triple, Triple]] = {
    "face": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
"""Mean and standard deviation by channel (R, G, B) in units of 0 to 255."""


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float], channel_order: str = "RGB") -> Tensor:
    """uint8 (B, H, W, 3) RGB to float32 (B, 3, H, W) in channels_last layout: (images - mean) / std by channel.

    `channel_order` is that of the result, and of `mean` and `std`: RGB or BGR.
    """
    images = images.flip(3) if channel_order == "BGR" else images
    width = images.shape[2]
    # a row has each channel's number as often as it has pixels: with 3 numbers the CPU would work on 3 at a time
    mean_row, std_row = (_on_device(numbers, images.device).repeat(width) for numbers in (mean, std))
    rows = images.flatten(2)
    normal = torch.empty(rows.shape, dtype=torch.float32, device=images.device)
    at_once = CACHED_IMAGES * torch.get_num_threads() if images.device.type == "cpu" else max(len(images), 1)
    for of_chunk, found in zip(rows.split(at_once), normal.split(at_once)):
        found.copy_(of_chunk).sub_(mean_row).div_(std_row)
    return normal.view(images.shape).permute(0, 3, 1, 2)


def _on_device(numbers: Sequence[float], device: torch.device) -> Tensor:
    """float32 (n,). `torch.tensor` would copy them from the host, which then waits for a GPU in every step."""
    return torch.cat([torch.full((1,), number, dtype=torch.float32, device=device) for number in numbers])


def flip(images: Tensor) -> Tensor:
    """Mirror each image with probability 1/2."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    if images.device.type != "cpu":
        return torch.where(mirrored, images.flip(3), images)
    rows = mirrored.flatten().nonzero().flatten()  # on a GPU the program would wait for their number
    pixels = images.permute(0, 2, 3, 1)  # as they lie in memory
    if pixels.shape[3] <= 4 and pixels.dtype in (torch.uint8, torch.float32):
        import cv2  # here, so that a GPU needs no more than PyTorch

        flipped = pixels.clone(memory_format=torch.contiguous_format)  # OpenCV wants exact strides of sides of 1 too
        each = flipped.numpy()
        for row in rows.tolist():  # a call is a small part of the mirroring, in which OpenCV is four times as fast
            cv2.flip(each[row], 1, each[row])
    else:
        flipped = pixels.index_copy(0, rows, pixels.index_select(0, rows).flip(2))
    return flipped.permute(0, 3, 1, 2)


def affine(images: Tensor, angle: float = 0.17, scale: float = 0.1, shear: float = 0.1, shift: float = 0.08) -> Tensor:
    """Rotate (radians), scale, shear and shift (fraction of half the side) each image by uniform random amounts."""

    def draw(bound: float) -> Tensor:
        return (torch.rand(len(images), device=images.device) * 2 - 1) * bound

    turn, zoom, slant = draw(angle), 1 + draw(scale), draw(shear)
    cos, sin = torch.cos(turn) * zoom, torch.sin(turn) * zoom
    rows = (
        torch.stack((cos, slant * cos - sin, draw(shift)), 1),
        torch.stack((sin, slant * sin + cos, draw(shift)), 1),
    )
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def noise(images: Tensor, strength: float = 0.1) -> Tensor:
    """Add Gaussian noise whose deviation is uniform in [0, strength] for each image (normalised units)."""
    deviation = torch.rand(len(images), 1, 1, 1, device=images.device) * strength
    return images + torch.randn_like(images) * deviation


def light(images: Tensor, contrast: float = 0.5, brightness: float = 0.3, slope: float = 0.5) -> Tensor:
    """Reduce the contrast of each image by up to a fraction `contrast`, then add a linear gradient of light.

    The gradient is at most `brightness` either way at the image's centre, and at most `slope` from edge to edge, in any
    direction (normalised units).
    """

    def draw() -> Tensor:
        return torch.rand(len(images), 1, 1, 1, device=images.device)

    gain, level, angle, steepness = 1 - contrast * draw(), brightness * (2 * draw() - 1), 2 * math.pi * draw(), draw()
    down, across = (torch.linspace(-0.5, 0.5, side, device=images.device) for side in images.shape[2:])
    plane = angle.cos() * across + angle.sin() * down[:, None]
    return images * gain + level + slope * steepness * plane


def occlusion(images: Tensor, rate: float = 0.4, sides: tuple[float, float] = (0.15, 0.45)) -> Tensor:
    """Cover a rectangle with one grey in a fraction `rate` of the images; its sides are fractions of the image's.

    Random erasing (Zhong et al., AAAI 2020), with a grey drawn from [-1, 1] in normalised units.
    """
    count = len(images)
    length = sides[0] + (sides[1] - sides[0]) * torch.rand(2, count, 1, device=images.device)
    start = torch.rand(2, count, 1, device=images.device) * (1 - length)
    covered = torch.rand(count, 1, 1, 1, device=images.device) < rate
    for axis, side in enumerate(images.shape[2:]):
        centres = (torch.arange(side, device=images.device) + 0.5) / side
        inside = (centres >= start[axis]) & (centres < start[axis] + length[axis])
        covered = covered & inside.unflatten(1, (1, -1, 1) if axis == 0 else (1, 1, -1))
    return torch.where(covered, torch.rand(count, 1, 1, 1, device=images.device) * 2 - 1, images)


AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": flip,
    "affine": affine,
    "light": light,
    "noise": noise,
    "occlusion": occlusion,
}
"""Each takes and returns normalised float32 images (B, 3, H, W); `flip` any images (B, C, H, W)."""


class TrainTransform:
    """Normalise a uint8 batch (B, H, W, 3) and augment it: float32 (B, 3, H, W) out, on the batch's device."""

    def __init__(self, normalization: str, augmentations: Sequence[str]):
        unknown = [name for name in augmentations if name not in AUGMENTATIONS]
        if unknown:
            raise UserError(
                f"unknown augmentation {unknown[0]!r}: the config's `augment` may name {list(AUGMENTATIONS)}"
            )
        if normalization not in NORMALIZATIONS:
            raise UserError(f"unknown normalization {normalization!r}: choose one of {list(NORMALIZATIONS)}")
        self.mean, self.std = NORMALIZATIONS[normalization]
        self.flips_first = list(augmentations[:1]) == ["flip"]  # a quarter of the bytes
        self.steps = [AUGMENTATIONS[name] for name in augmentations[self.flips_first :]]

    def __call__(self, images: Tensor) -> Tensor:
        """Transform a batch."""
        if self.flips_first:
            images = flip(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        images = normalize(images, self.mean, self.std)
        for step in self.steps:
            images = step(images)
        return images
