"""Bytes for people."""

import math

__all__ = ["size_in_words"]

UNITS = ("bytes", "kB", "MB", "GB", "TB")


def size_in_words(count: int) -> str:
    """A number of bytes for people, such as 12.3 MB; never less than it is."""
    power = min((len(str(count)) - 1) // 3, len(UNITS) - 1)
    return f"{math.ceil(count / 10 ** (3 * power) * 10) / 10 if power else count:,} {UNITS[power]}"
