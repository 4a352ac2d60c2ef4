"""What the check of a GPU finds: a table and a JSON file, within a budget of time."""

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ci.gpu.stand_ins import MissingPackageError

GIB = 1 << 30


@dataclass(frozen=True)
class Error:
    """How far a result is from its reference, and how far it may be."""

    found: float
    allowed: float


@dataclass
class Result:
    """One line of the table."""

    part: str
    name: str
    outcome: str
    """ok, FAILED, or left out."""
    seconds: float = 0.0
    detail: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


class Report:
    """Runs checks until the time is up, prints a line for each, and keeps the results."""

    def __init__(self, seconds: float):
        self.results: list[Result] = []
        self.end = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def check(self, part: str, name: str, work: Callable[[], Mapping[str, Error]], seconds: float = 5.0) -> None:
        """Run `work`, which returns errors by what they are of; `seconds`: what it may take."""

        def compare() -> tuple[str, str, dict[str, Any]]:
            errors = work()
            bad = {what: error for what, error in errors.items() if not error.found <= error.allowed}
            what, worst = max(errors.items(), key=lambda item: _excess(item[1]))
            detail = "; ".join(_text(*item) for item in bad.items()) or _text(what, worst)
            return "FAILED" if bad else "ok", detail, {what: asdict(error) for what, error in errors.items()}

        self._run(part, name, seconds, compare)

    def measure(self, part: str, name: str, work: Callable[[], tuple[str, dict[str, Any]]], seconds: float) -> None:
        """Run `work`, which returns its line and its values."""
        self._run(part, name, seconds, lambda: ("ok", *work()))

    def leave_out(self, part: str, name: str, why: str) -> None:
        self._add(Result(part, name, "left out", detail=why))

    def _run(self, part: str, name: str, seconds: float, work: Callable[[], tuple[str, str, dict[str, Any]]]) -> None:
        if self.seconds_left < seconds:
            self.leave_out(part, name, "time")
            return
        start = time.monotonic()
        try:
            outcome, detail, values = work()
        except MissingPackageError as error:
            outcome, detail, values = "left out", f"{error} is not installed", {}
        except Exception as error:  # one check must not end the others
            traceback.print_exc()
            outcome, detail, values = "FAILED", f"{type(error).__name__}: {error}".splitlines()[0][:200], {}
        self._add(Result(part, name, outcome, time.monotonic() - start, detail, values))

    def _add(self, result: Result) -> None:
        self.results.append(result)
        print(
            f"{result.part:12} {result.name:44} {result.outcome:9} {result.seconds:6.1f} s  {result.detail}", flush=True
        )

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.outcome == "FAILED"]

    def write(self, path: Path, about: Mapping[str, Any]) -> None:
        """The results as JSON, and what they were found with."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**about, "results": [asdict(result) for result in self.results]}, indent=1) + "\n")


def difference(found: Any, expected: Any, allowed: float, floor: float = 0.0) -> Error:
    """The largest difference of two tensors or numbers, as a share of the largest entry of `expected`, or of `floor`.

    `floor` is for what may be nothing but rounding, such as the gradient of a bias that a batch norm takes away.
    """
    found, expected = (torch.as_tensor(value).detach().double().cpu() for value in (found, expected))
    if found.shape != expected.shape:
        raise ValueError(f"shapes differ: {tuple(found.shape)} and {tuple(expected.shape)}")
    if found.numel() == 0:
        return Error(0.0, allowed)
    scale = max(expected.abs().max().item(), floor, 1e-30)
    return Error((found - expected).abs().max().item() / scale, allowed)


def _excess(error: Error) -> float:
    return error.found / error.allowed if error.allowed else error.found


def _text(what: str, error: Error) -> str:
    return f"{what}: {error.found:.1e} of {error.allowed:.0e}"
