"""Ways of doing one work, measured in turn: medians, spread, memory and ratios, as tables and as JSON."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import torch

from ci.benchmarks.harness.private_memory import private_memory
from core.errors import UserError
from core.evaluation.tables import format_table

__all__ = ["Bench", "Sample", "SetUpError", "measure", "threads_restored"]


class SetUpError(UserError):
    """A benchmark wants what `all` does not give it: a server, trained models."""


@dataclass(frozen=True)
class Sample:
    """One run of a way."""

    seconds: float
    cpu_seconds: float
    """Of all threads of this process."""
    peak_gib: float
    """Beyond what the process held before, mapped files left out."""
    gpu_peak_gib: float | None
    """Of PyTorch's allocator, beyond what it held before; None without CUDA."""


def measure(way: Callable[[], object]) -> tuple[object, Sample]:
    """What a way gives, and what it took. Work on a GPU is waited for."""
    gpu = torch.cuda.is_initialized()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with private_memory() as peak:
        started, used = time.perf_counter(), time.process_time()
        result = way()
        if gpu:
            torch.cuda.synchronize()
        seconds, used = time.perf_counter() - started, time.process_time() - used
    on_gpu = (torch.cuda.max_memory_allocated() - before) / 2**30 if gpu else None
    return result, Sample(seconds, used, peak[0], on_gpu)


@dataclass
class Bench:
    """A benchmark's run: how often to repeat, where files may be written, and what came of it so far."""

    repeats: int
    folder: Path
    """Temporary."""
    works: list[dict[str, Any]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def compare(
        self,
        work: str,
        ways: Mapping[str, Callable[[], object]],
        items: int | Mapping[str, int] = 1,
        unit: str = "",
    ) -> dict[str, Any]:
        """Run all ways in turn, `repeats` times; print and keep what they took, and return what each gave at last.

        The first way is ours. A run does `items` things of `unit`, or each way its own number of them: ratios are of
        the times for one.
        """
        results: dict[str, Any] = {}
        samples: dict[str, list[Sample]] = {name: [] for name in ways}
        for _ in range(self.repeats):
            for name, way in ways.items():
                results[name], sample = measure(way)
                samples[name].append(sample)
        counts = items if isinstance(items, Mapping) else dict.fromkeys(ways, items)
        summaries = summarise(samples, counts)
        self.works.append({"work": work, "unit": unit, "ways": summaries})
        print(f"\n{work_table(work, unit, summaries)}", flush=True)
        return results

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print and keep what is no comparison of times."""
        self.tables.append({"title": title, "rows": [dict(zip(header, row)) for row in rows]})
        print(f"\n{title}\n\n{format_table(header, rows)}", flush=True)

    def note(self, line: str) -> None:
        """Print and keep a line."""
        self.notes.append(line)
        print(line, flush=True)


def summarise(samples: Mapping[str, Sequence[Sample]], items: Mapping[str, int]) -> list[dict[str, Any]]:
    """Of each way all seconds, the medians, and how many times as long as the first it takes for one item.

    Ratios are medians over the rounds, in which the ways ran one after the other: other work on the machine then
    slows both.
    """
    ours, summaries = next(iter(samples)), []
    for name, taken in samples.items():
        scale = items[ours] / items[name]
        pairs = list(zip(taken, samples[ours]))
        on_gpu = [sample.gpu_peak_gib for sample in taken if sample.gpu_peak_gib is not None]
        seconds = [sample.seconds for sample in taken]
        summaries.append({
            "way": name,
            "items": items[name],
            "seconds": seconds,
            "cpu_seconds": [sample.cpu_seconds for sample in taken],
            "median_seconds": median(seconds),
            "median_cpu_seconds": median(sample.cpu_seconds for sample in taken),
            "items_per_second": items[name] / median(seconds),
            "times_ours": median(scale * theirs.seconds / our.seconds for theirs, our in pairs),
            "cpu_times_ours": median(scale * theirs.cpu_seconds / our.cpu_seconds for theirs, our in pairs),
            "peak_gib": max(sample.peak_gib for sample in taken),
            "gpu_peak_gib": max(on_gpu, default=None),
        })  # fmt: skip
    return summaries


def work_table(work: str, unit: str, summaries: Sequence[Mapping[str, Any]]) -> str:
    """A line for each way."""
    on_gpu = summaries[0]["gpu_peak_gib"] is not None
    header = [work, "seconds", "from", "to", "CPU s", "times ours", "by CPU", "GiB"]
    header += ["GPU GiB"] * on_gpu + [f"{unit}/s"] * bool(unit)
    rows = []
    for way in summaries:
        numbers = way["median_seconds"], min(way["seconds"]), max(way["seconds"]), way["median_cpu_seconds"]
        row = [way["way"], *map(digits, numbers), digits(way["times_ours"]), digits(way["cpu_times_ours"])]
        row += [f"{way['peak_gib']:.2f}"] + ([f"{way['gpu_peak_gib']:.2f}"] if on_gpu else [])
        rows.append(row + ([digits(way["items_per_second"])] if unit else []))
    return format_table(header, rows)


def digits(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:,.{max(0, 2 - math.floor(math.log10(number)))}f}" if number > 0 else "0"


@contextmanager
def threads_restored() -> Iterator[None]:
    """A benchmark may set the threads of PyTorch and OpenCV: the next one finds them as they were."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
