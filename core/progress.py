"""Progress of long work: a bar with rate and time left on a terminal, log lines every 10 seconds elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

__all__ = ["Progress", "track"]

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
LOG_SECONDS = 10.0


class Progress:
    """Counts finished units of work: a tqdm bar on a terminal, else a log line every 10 seconds, nothing if `quiet`."""

    def __init__(self, description: str, total: int, unit: str = "images", quiet: bool = False, initial: int = 0):
        self.description, self.total, self.unit, self.quiet = description, total, unit, quiet
        self.done = self.initial = initial
        self.started = self.last_line = time.monotonic()
        on_terminal = sys.stderr.isatty() and not quiet
        self.bar = (
            tqdm(total=total, initial=initial, desc=description, unit=f" {unit}", unit_scale=True, dynamic_ncols=True)
            if on_terminal
            else None
        )

    def update(self, count: int, **values: str) -> None:
        """Add `count` finished units; `values` (a loss, a learning rate) are shown beside the rate."""
        self.done += count
        if self.bar is not None:
            if values:
                self.bar.set_postfix(values, refresh=False)
            self.bar.update(count)
            return
        now = time.monotonic()
        if not self.quiet and now - self.last_line >= LOG_SECONDS:
            self.last_line = now
            rate = (self.done - self.initial) / max(now - self.started, 1e-9)
            left = (self.total - self.done) / max(rate, 1e-9)
            shown = "".join(f", {name} {value}" for name, value in values.items())
            logger.info(
                "%s: %d of %d %s, %.0f %s/s, %s left%s",
                self.description, self.done, self.total, self.unit, rate, self.unit, format_seconds(left), shown,
            )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()


def track(items: Iterable[Item], description: str, total: int, unit: str, quiet: bool = False) -> Iterator[Item]:
    """Iterate over `items` and show the progress, one unit an item."""
    with Progress(description, total, unit, quiet) as progress:
        for item in items:
            yield item
            progress.update(1)


def format_seconds(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 12 min."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
