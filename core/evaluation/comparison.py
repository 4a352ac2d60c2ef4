"""Methods and roads side by side: what each gains and costs on each test, over seeds, as tables, CSV and a picture.

A road is how a model's queries reach the old gallery: directly, with a map before the queries, or in a mapped gallery.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from core.evaluation.compatibility import CompatibilityScores, scores
from core.evaluation.plots import plot_trade_off
from core.evaluation.tables import format_markdown
from core.files import reading
from core.outputs import replaced_atomically

__all__ = ["DIRECT", "Comparison", "Entry", "read_csv"]

BASELINES = ("old", "independent")
"""The two models that every method is measured against."""
DIRECT = "direct"
"""The road without a map."""
RATES = ("old/old", "new/new", "new/old")
SCORES = ("gain", "p_up", "p_comp", "p_1")
FLIPS = ("NFR", "PFR")
COLUMNS = (*RATES, *SCORES, *FLIPS)
ROAD_COLUMNS = ("new/new", "new/old", "gain", "p_1", *FLIPS)
"""Of the table of roads; old/old is one for all, and a method's p_up is one for all its roads."""
VERDICT = "new/old > old/old"
EMBEDDED = "images embedded"
"""Of the gallery, for the search: none on any road, all for new/new."""


@dataclass(frozen=True)
class Entry:
    """One method's model of one seed on one road: its scores by test, in per cent."""

    method: str
    seed: int
    self_test: Mapping[str, float]
    cross_test: Mapping[str, float]
    """Its queries in the old model's gallery, on this road."""
    flips: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """NFR and PFR of the cross-test, in per cent, by those tests whose answers are right or wrong."""
    road: str = DIRECT


class Comparison:
    """Entries of several methods, roads and seeds. "old" and "independent" must be there for every seed."""

    def __init__(self, entries: Sequence[Entry]):
        self.entries = list(entries)
        self.tests = list(self.entries[0].self_test)
        self.seeds = sorted({entry.seed for entry in self.entries})
        self.methods = list(dict.fromkeys(entry.method for entry in self.entries if entry.method not in BASELINES))
        self._by_key = {(entry.method, entry.road, entry.seed): entry for entry in self.entries}

    def require_complete(self) -> None:
        """`ValueError` for a seed without old or independent model, or a model without the score of a test."""
        for seed in self.seeds:
            for name in BASELINES:
                if (name, DIRECT, seed) not in self._by_key:
                    raise ValueError(f"seed {seed} has no {name} model")
        for entry in self.entries:
            for found in (entry.self_test, entry.cross_test):
                if missing := set(self.tests) - set(found):
                    raise ValueError(f"{entry.method}, seed {entry.seed}, has no score of the test {min(missing)}")

    @property
    def roads(self) -> list[tuple[str, str]]:
        """Method and road of every row of a table of roads, the independent model's first."""
        found = dict.fromkeys((entry.method, entry.road) for entry in self.entries if entry.method != "old")
        return sorted(found, key=lambda row: ["independent", *self.methods].index(row[0]))

    @property
    def has_maps(self) -> bool:
        """Whether there is any road but the direct one."""
        return any(entry.road != DIRECT for entry in self.entries)

    def scores(self, method: str, seed: int, tests: Sequence[str], road: str = DIRECT) -> CompatibilityScores | None:
        """Of one model over `tests`; None where the independent model is no better or worse than the old one."""
        entry = self._by_key[method, road, seed]
        old, star = (self._by_key[name, DIRECT, seed] for name in BASELINES)
        columns = (entry.self_test, star.self_test, entry.cross_test, old.self_test)
        try:
            return scores(*([column[test] for test in tests] for column in columns))
        except ValueError:
            return None

    def _seeds(self, method: str, road: str) -> list[int]:
        return [seed for seed in self.seeds if (method, road, seed) in self._by_key]

    def _is_on_all_seeds(self, method: str, road: str = DIRECT) -> bool:
        """Whether its means can be compared with others: seeds differ more than methods."""
        return self._seeds(method, road) == self.seeds

    def values(self, method: str, test: str, road: str = DIRECT) -> dict[str, np.ndarray]:
        """COLUMNS of a method on a test, each with one value a seed that the method was trained with."""
        rows = [self._row(method, road, seed, test) for seed in self._seeds(method, road)]
        return {name: np.array([row[name] for row in rows]) for name in COLUMNS}

    def _row(self, method: str, road: str, seed: int, test: str) -> dict[str, float]:
        entry, old = self._by_key[method, road, seed], self._by_key["old", DIRECT, seed]
        found = self.scores(method, seed, [test], road)
        rates = (old.self_test[test], entry.self_test[test], entry.cross_test[test])
        of_update = (np.nan,) * 4 if found is None else (found.update_gain[0], found.p_up, found.p_comp, found.p_1)
        return dict(zip(COLUMNS, (*rates, *of_update, *entry.flips.get(test, (np.nan, np.nan)))))

    def table(self, test: str) -> str:
        """A Markdown table of all methods on a test, directly: means over the seeds, ± deviation if several."""
        columns = self._columns(COLUMNS, test)
        rows = []
        for method in ("independent", *self.methods):
            values = self.values(method, test)
            rows.append([method, *_cells(values, columns), self._verdict(values)])
        return format_markdown(["method", *columns, VERDICT], rows)

    def table_of_roads(self, test: str) -> str:
        """A Markdown table of every method and road on a test; the most that is found in the old gallery is bold.

        The last line is the independent model when all is embedded again.
        """
        columns = self._columns(ROAD_COLUMNS, test)
        best, rows = self._best(test, self.roads), []
        for method, road in self.roads:
            values = self.values(method, test, road)
            cells = _cells(values, columns)
            if (method, road) == best:
                cells[1] = f"**{cells[1]}**"
            rows.append([method, road, *cells, "0", self._verdict(values)])
        star = self.values("independent", test)["new/new"]
        rows.append(["independent", "embedded again", _mean(star, 1), *["-"] * (len(columns) - 1), "all", "-"])
        return format_markdown(["method", "road", *columns, EMBEDDED, VERDICT], rows)

    def _columns(self, columns: Sequence[str], test: str) -> list[str]:
        """Without the flips on a test that has none."""
        known = any(test in entry.flips for entry in self.entries)
        return [name for name in columns if known or name not in FLIPS]

    @staticmethod
    def _verdict(values: Mapping[str, np.ndarray]) -> str:
        compatible = int((values["new/old"] > values["old/old"]).sum())
        return f"{compatible} of {len(values['old/old'])}"

    def _best(self, test: str, rows: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
        """The method and road of `rows` that finds most in the old gallery, of those on all seeds; None without one."""
        means = {row: self._found(test, *row) for row in rows if self._is_on_all_seeds(*row)}
        known = {row: mean for row, mean in means.items() if not np.isnan(mean)}
        return max(known, key=lambda row: known[row]) if known else None

    def _found(self, test: str, method: str, road: str) -> float:
        """new/old, mean over the seeds."""
        return float(self.values(method, test, road)["new/old"].mean())

    def overall(self) -> str:
        """A Markdown table of p_up, p_comp and p_1 over all tests."""
        rows, names = [], ("p_up", "p_comp", "p_1")
        for method in self.methods:
            found = [self.scores(method, seed, self.tests) for seed in self._seeds(method, DIRECT)]
            cells = [_mean(np.array([np.nan if f is None else getattr(f, name) for f in found]), 1) for name in names]
            rows.append([method, *cells])
        return format_markdown(["method", *names], rows)

    def tables(self) -> str:
        """The tables of all tests in Markdown, each with its title."""
        parts = []
        for test in self.tests:
            parts.append(f"**{test}** (%)\n\n{self.table(test)}\n")
            if self.has_maps:
                parts.append(f"**{test}, by road** (%)\n\n{self.table_of_roads(test)}\n")
        return "\n".join([*parts, f"**All tests together, directly**\n\n{self.overall()}\n"])

    def summary(self) -> str:
        """Which road wins where, and where a map harms: a Markdown list with an item a test."""
        items = [f"- **{test}**: {self._summary(test)}" for test in self.tests]
        fewer = [method for method in self.methods if not self._is_on_all_seeds(method)]
        if fewer:
            items.append(f"- Left out of this list, as they were not run on all seeds: {', '.join(fewer)}.")
        return "\n".join(items)

    def completed_by(self, other: "Comparison") -> "Comparison":
        """With the methods, roads and seeds of `other` that are missing here.

        Maps of a model that was trained again are left out. `ValueError` unless both have the same tests and, to 4
        digits, the same scores of the old and independent models of the seeds that both have.
        """
        if set(other.tests) != set(self.tests):
            raise ValueError(f"its tests are {', '.join(other.tests)}, not {', '.join(self.tests)}")
        another = set()
        for entry in other.entries:
            mine = self._by_key.get((entry.method, DIRECT, entry.seed))
            if entry.road == DIRECT and mine is not None:
                if any(abs(mine.self_test[test] - score) > 1e-4 for test, score in entry.self_test.items()):
                    another.add((entry.method, entry.seed))
        for method, seed in another:
            if method in BASELINES:
                raise ValueError(f"the {method} model of seed {seed} has other scores")
        added = [
            entry
            for entry in other.entries
            if (entry.method, entry.road, entry.seed) not in self._by_key and (entry.method, entry.seed) not in another
        ]
        return Comparison([*self.entries, *added])

    def _summary(self, test: str) -> str:
        candidates = {"Best": self.roads}
        if self.has_maps:
            candidates["Without a map"] = [(method, DIRECT) for method in self.methods]
            candidates["Without compatible training"] = [row for row in self.roads if row[0] == "independent"]
        best = {name: self._best(test, rows) for name, rows in candidates.items()}
        before, after = (_mean(self.values("independent", test)[name], 1) for name in ("old/old", "new/new"))
        sentences = [f"{before} before the update, {after} if all is embedded again."]
        sentences += [f"{name}: {self._described(test, *row)}." for name, row in best.items() if row]
        if self.has_maps:
            maps = [row for row in self.roads if row[1] != DIRECT and self._is_on_all_seeds(*row)]
            old = float(self.values("independent", test)["old/old"].mean())
            for than, change in (
                ("without one", {row: self._found(test, *row) - self._found(test, row[0], DIRECT) for row in maps}),
                ("before the update", {row: self._found(test, *row) - old for row in maps}),
            ):
                less = [f"{', '.join(row)} ({by:.1f})" for row, by in change.items() if by <= -0.05]
                sentences.append(f"Roads with a map that find less than {than}: {'; '.join(less) or 'none'}.")
        return " ".join(sentences)

    def _described(self, test: str, method: str, road: str) -> str:
        """A row in words: "bct, gallery map (ridge) 81.1, gain 0.92"."""
        values = self.values(method, test, road)
        gain = _mean(values["gain"], 2)
        name = method if road == DIRECT else f"{method}, {road}"
        return f"{name} {_mean(values['new/old'], 1)}" + ("" if gain == "-" else f", gain {gain}")

    def write_csv(self, path: Path) -> None:
        """A line for each method, road, seed and test."""
        with replaced_atomically(path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["method", "road", "seed", "test", *COLUMNS, EMBEDDED])
            for entry in self.entries:
                for test in self.tests if entry.method != "old" else ():
                    row = self._row(entry.method, entry.road, entry.seed, test)
                    values = ("" if np.isnan(row[name]) else f"{row[name]:.4f}" for name in COLUMNS)
                    writer.writerow([entry.method, entry.road, entry.seed, test, *values, 0])

    def plot(self, path: Path) -> Figure:
        """Compatibility (new/old) against discrimination (new/new), directly: a panel a test, a mark a method.

        Of methods on all seeds: the lines of old/old and independent/independent are means over these.
        """
        panels = {}
        for test in self.tests:
            points = {}
            for method in filter(self._is_on_all_seeds, self.methods):
                values = self.values(method, test)
                points[method] = (values["new/new"], values["new/old"])
            baselines = self.values("independent", test)
            panels[test] = (points, float(baselines["old/old"].mean()), float(baselines["new/new"].mean()))
        return plot_trade_off(panels, path)


def read_csv(path: Path) -> Comparison:
    """The comparison that `Comparison.write_csv` wrote, its numbers to 4 digits; `UserError` for another file."""
    with reading(path, "results.csv of tools/benchmark.py", "run the benchmark again"):
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        groups: dict[tuple[str, str, int], list[dict[str, str]]] = {}
        for row in rows:
            groups.setdefault((row["method"], row["road"], int(row["seed"])), []).append(row)
        entries = {}
        for (method, road, seed), group in groups.items():
            old, new, cross = ({row["test"]: _number(row[name]) for row in group} for name in RATES)
            flips = {row["test"]: (_number(row["NFR"]), _number(row["PFR"])) for row in group if row["NFR"]}
            entries.setdefault(("old", DIRECT, seed), Entry("old", seed, old, old))
            entries[method, road, seed] = Entry(method, seed, new, cross, flips, road)
        comparison = Comparison(list(entries.values()))
        comparison.require_complete()
        return comparison


def _number(cell: str) -> float:
    return float(cell) if cell else np.nan


def _cells(values: Mapping[str, np.ndarray], columns: Sequence[str]) -> list[str]:
    return [_mean(values[name], 2 if name == "gain" else 1) for name in columns]


def _mean(values: np.ndarray, digits: int) -> str:
    """Mean ± sample deviation; the value alone where there is one, a dash where one is missing."""
    if not len(values) or np.isnan(values).any():
        return "-"
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"
