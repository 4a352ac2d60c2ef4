"""JSON files, whoever wrote them: read within bounds, and any damage reported in one line."""

import json
import math
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import reading, require_file

__all__ = ["MOST_BYTES", "parse_json", "read_json"]

MOST_BYTES = 1 << 25
"""The largest file here, a ground truth, has some megabytes. Python's objects take up to 24 times the text."""


def read_json(
    path: str | Path, what: str, remedy: str = "get the file again", *, finite: bool = True
) -> dict[str, Any]:
    """The object that is the whole content of a JSON file in UTF-8, `what` being its kind.

    `UserError` that names the file if it is missing, larger than 32 MB, or no JSON: nesting that Python does not read,
    numbers that are no numbers or beyond float64, and another value than an object among it. `finite=False` takes NaN
    and infinity, as Python writes them. Memory: up to 0.8 GB.
    """
    with reading(path, what, remedy):
        with open(require_file(path, what), "rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise UserError(f"{path} is not a readable {what}: it has more than {MOST_BYTES >> 20} MB; {remedy}")
        content = parse_json(text, finite)
        if not isinstance(content, dict):
            raise TypeError(f"a JSON object is expected, not a {type(content).__name__}")
    return content


def parse_json(text: str | bytes, finite: bool = True) -> Any:
    """The value of a JSON text in UTF-8. `ValueError` or `RecursionError` if it is none: for use within `reading`."""
    text = text.decode() if isinstance(text, bytes) else text
    return json.loads(text, parse_float=_finite, parse_int=_whole, parse_constant=_finite if finite else float)


def _whole(number: str) -> int:
    _finite(number)  # what is beyond float64 is no count and no score
    return int(number)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:40]} is not a finite number")
    return value
