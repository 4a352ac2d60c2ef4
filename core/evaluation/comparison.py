"""Methods side by side: what each gains and costs on each test, over seeds, as tables, CSV and a picture."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from core.evaluation.compatibility import CompatibilityScores, scores
from core.evaluation.plots import plot_trade_off
from core.evaluation.tables import format_markdown
from core.files import replaced_atomically

__all__ = ["Comparison", "Entry"]

BASELINES = ("old", "independent")
"""The two models that every method is measured against."""
COLUMNS = ("old/old", "new/new", "new/old", "gain", "p_up", "p_comp", "p_1")


@dataclass(frozen=True)
class Entry:
    """One method's model of one seed: its scores by test, in per cent."""

    method: str
    seed: int
    self_test: Mapping[str, float]
    cross_test: Mapping[str, float]
    """Its queries in the old model's gallery."""


class Comparison:
    """Entries of several methods and seeds. The methods "old" and "independent" must be there for every seed."""

    def __init__(self, entries: Sequence[Entry]):
        self.entries = list(entries)
        self.tests = list(self.entries[0].self_test)
        self.seeds = sorted({entry.seed for entry in self.entries})
        self.methods = list(dict.fromkeys(entry.method for entry in self.entries if entry.method not in BASELINES))
        self._by_key = {(entry.method, entry.seed): entry for entry in self.entries}

    def scores(self, method: str, seed: int, tests: Sequence[str]) -> CompatibilityScores | None:
        """Of one model over `tests`; None where the independent model is no better or worse than the old one."""
        entry, old, star = (self._by_key[name, seed] for name in (method, "old", "independent"))
        columns = (entry.self_test, star.self_test, entry.cross_test, old.self_test)
        try:
            return scores(*([column[test] for test in tests] for column in columns))
        except ValueError:
            return None

    def values(self, method: str, test: str) -> dict[str, np.ndarray]:
        """COLUMNS of a method on a test, each with one value a seed that the method was trained with."""
        rows = [self._row(method, seed, test) for seed in self.seeds if (method, seed) in self._by_key]
        return {name: np.array([row[name] for row in rows]) for name in COLUMNS}

    def _row(self, method: str, seed: int, test: str) -> dict[str, float]:
        entry, old = self._by_key[method, seed], self._by_key["old", seed]
        found = self.scores(method, seed, [test])
        values = (old.self_test[test], entry.self_test[test], entry.cross_test[test])
        if found is None:
            return dict(zip(COLUMNS, (*values, *(np.nan,) * 4)))
        return dict(zip(COLUMNS, (*values, found.update_gain[0], found.p_up, found.p_comp, found.p_1)))

    def table(self, test: str) -> str:
        """A Markdown table of all methods on a test: mean over the seeds, with deviation where there are several."""
        rows = []
        for method in ("independent", *self.methods):
            values = self.values(method, test)
            cells = [_mean(values[name], 2 if name == "gain" else 1) for name in COLUMNS]
            rows.append([method, *cells, self._verdict(values)])
        return format_markdown(["method", *COLUMNS, "new/old > old/old"], rows)

    @staticmethod
    def _verdict(values: Mapping[str, np.ndarray]) -> str:
        compatible = int((values["new/old"] > values["old/old"]).sum())
        return f"{compatible} of {len(values['old/old'])}"

    def overall(self) -> str:
        """A Markdown table of p_up, p_comp and p_1 over all tests."""
        rows, names = [], ("p_up", "p_comp", "p_1")
        for method in self.methods:
            seeds = [seed for seed in self.seeds if (method, seed) in self._by_key]
            found = [self.scores(method, seed, self.tests) for seed in seeds]
            cells = [_mean(np.array([np.nan if f is None else getattr(f, name) for f in found]), 1) for name in names]
            rows.append([method, *cells])
        return format_markdown(["method", *names], rows)

    def write_csv(self, path: Path) -> None:
        """A line for each method, seed and test."""
        with replaced_atomically(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["method", "seed", "test", *COLUMNS])
            for entry in self.entries:
                for test in self.tests if entry.method != "old" else ():
                    row = self._row(entry.method, entry.seed, test)
                    values = ("" if np.isnan(row[name]) else f"{row[name]:.4f}" for name in COLUMNS)
                    writer.writerow([entry.method, entry.seed, test, *values])

    def plot(self, path: Path) -> Figure:
        """Compatibility (new/old) against discrimination (new/new), a panel a test, a mark a method."""
        panels = {}
        for test in self.tests:
            points = {}
            for method in self.methods:
                values = self.values(method, test)
                points[method] = (values["new/new"], values["new/old"])
            baselines = self.values("independent", test)
            panels[test] = (points, float(baselines["old/old"].mean()), float(baselines["new/new"].mean()))
        return plot_trade_off(panels, path)


def _mean(values: np.ndarray, digits: int) -> str:
    """Mean ± sample deviation; the value alone where there is one, a dash where one is missing."""
    if not len(values) or np.isnan(values).any():
        return "-"
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"
