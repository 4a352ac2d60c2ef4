"""What a network is fed: how uint8 RGB images become its input, and how a user says so."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from core.errors import UserError
from core.images.transforms import NORMALIZATIONS, Triple

__all__ = ["CHANNEL_ORDERS", "RAW", "Numbers", "Preprocessing", "parse_numbers", "read_channel_order"]

Numbers: TypeAlias = str | float | Sequence[float]
"""One number or three, as numbers or as text, or a name of `NORMALIZATIONS`."""
SMALLEST_STD, LARGEST = 1e-6, 1e6
"""Beyond these inputs of 0 to 255 become infinite or all the same."""
CHANNEL_ORDERS = ("RGB", "BGR")


@dataclass(frozen=True)
class Preprocessing:
    """A network's input is (image - mean) / std by channel; `channel_order` is that of its channels."""

    mean: Triple
    std: Triple
    """Of the network's first, second and third channel, in units of 0 to 255."""
    channel_order: str = "RGB"

    @classmethod
    def named(cls, normalization: str, channel_order: str = "RGB") -> "Preprocessing":
        """With the numbers of `NORMALIZATIONS`, which are by colour."""
        mean, std = NORMALIZATIONS[normalization]
        return cls(_by_channel(mean, channel_order), _by_channel(std, channel_order), channel_order)

    def replaced(self, mean: Numbers | None, std: Numbers | None, channel_order: str | None) -> "Preprocessing":
        """The same, but for what is given. Where only the channel order is, the numbers stay with their colours.

        `UserError` for a mean without std or the other way round, for what is neither a name nor usable numbers, and
        for numbers that are meant for pixels from 0 to 1.
        """
        if (mean is None) != (std is None):
            raise UserError("mean and std of a model's input belong together: name both of them or none")
        order = self.channel_order if channel_order is None else read_channel_order(channel_order)
        if mean is not None and std is not None:
            told = Preprocessing(parse_numbers("mean", mean, order), parse_numbers("std", std, order), order)
            if max(told.std) < 1 or 0 < max(map(abs, told.mean)) < 1:
                right = told.in_units_of_255()
                raise UserError(
                    f"mean {told.mean} and std {told.std} look like those for pixels from 0 to 1: give them for pixels "
                    f"from 0 to 255, mean {right.mean} and std {right.std}"
                )
            return told
        if order == self.channel_order:
            return self
        return Preprocessing(self.mean[::-1], self.std[::-1], order)

    def in_units_of_255(self) -> "Preprocessing":
        """The same, of numbers for pixels from 0 to 1."""
        return Preprocessing(_times_255(self.mean), _times_255(self.std), self.channel_order)


RAW = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""The pixels as they are, from 0 to 255."""


def read_channel_order(text: str) -> str:
    """RGB or BGR, in capital letters; `UserError` for anything else."""
    order = str(text).upper()
    if order not in CHANNEL_ORDERS:
        raise UserError(f"the channel order of a model's input is RGB or BGR, got {text!r}: name one of them")
    return order


def parse_numbers(what: str, value: Numbers, channel_order: str) -> Triple:
    """`what`, "mean" or "std", of the three channels in their order.

    `UserError` if it is neither one usable number, nor three, nor a name.
    """
    if isinstance(value, str) and value in NORMALIZATIONS:
        return _by_channel(NORMALIZATIONS[value][what == "std"], channel_order)
    given = re.split(r"[\s,]+", value.strip("[]() ")) if isinstance(value, str) else value
    try:
        numbers = [float(number) for number in (given if isinstance(given, Sequence) else [given])]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        names = " or ".join(NORMALIZATIONS)
        raise UserError(f"the {what} of a model's input is one number, three by channel, or {names}, got {value!r}")
    if what == "std" and not SMALLEST_STD <= min(numbers) <= max(numbers) <= LARGEST:
        raise UserError(
            f"the std of a model's input must be from {SMALLEST_STD} to {LARGEST}, in units of 0 to 255, got {value!r}"
        )
    if max(map(abs, numbers)) > LARGEST:
        raise UserError(f"the {what} of a model's input must be at most {LARGEST}, got {value!r}")
    first, second, third = numbers * (3 // len(numbers))
    return first, second, third


def _by_channel(colours: Triple, channel_order: str) -> Triple:
    return colours[::-1] if channel_order == "BGR" else colours


def _times_255(numbers: Triple) -> Triple:
    first, second, third = (round(255 * number, 6) for number in numbers)
    return first, second, third
