"""Models that follow one another: the score of each as query model in the gallery of each, and who may search whose."""

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.evaluation.tables import format_rate, format_table
from core.outputs import replaced_atomically

__all__ = ["UpdateMatrix", "write_matrices"]


@dataclass(frozen=True)
class UpdateMatrix:
    """`rates` (M, M) in [0, 1]: query model (row) in the gallery of a gallery model (column), the oldest model first.

    `names` (M,) are the models'. NaN where the two cannot be compared or the data cannot resolve the rate.
    """

    names: Sequence[str]
    rates: np.ndarray
    before: np.ndarray
    """(M,): the rate of the search that each gallery served before, of its own model or, where a stored gallery is
    mapped into another space, the search before it was mapped."""
    mapped_galleries: Collection[int] = ()
    """Places of those that are stored vectors mapped into another space: no model makes queries with them."""

    def updates(self) -> list[tuple[int, int]]:
        """The pairs (query, gallery) in which the query model is newer than the gallery's."""
        queries = (place for place in range(len(self.names)) if place not in self.mapped_galleries)
        return [(query, gallery) for query in queries for gallery in range(query)]

    def is_compatible(self, query: int, gallery: int) -> bool | None:
        """Whether the query model finds more in the gallery than the search before did; None where not known."""
        cross, before = self.rates[query, gallery], self.before[gallery]
        return None if np.isnan([cross, before]).any() else bool(cross > before)

    def table(self) -> str:
        """The rates in per cent as aligned text."""
        rows = [[name, *map(self._cell, rates)] for name, rates in zip(self.names, self.rates)]
        return format_table(["query / gallery", *self.names], rows)

    def verdict(self, query: int, gallery: int) -> str:
        """`is_compatible` in words, with the two rates in per cent."""
        compatible = self.is_compatible(query, gallery)
        if compatible is None:
            return "-"
        cross, before = self._cell(self.rates[query, gallery]), self._cell(self.before[gallery])
        return f"yes ({cross} against {before})" if compatible else f"no ({cross} against {before})"

    def texts(self) -> list[list[str]]:
        """The rates in per cent, those of the updates with a tick or a cross."""
        texts = [list(map(self._cell, rates)) for rates in self.rates]
        for query, gallery in self.updates():
            compatible = self.is_compatible(query, gallery)
            if compatible is not None:
                texts[query][gallery] += " \N{CHECK MARK}" if compatible else " \N{BALLOT X}"
        return texts

    @staticmethod
    def _cell(rate: float) -> str:
        return format_rate(None if np.isnan(rate) else rate)


def write_matrices(matrices: dict[str, UpdateMatrix], path: Path) -> None:
    """Write the matrices, by metric, as CSV: metric, query model, and the rates for each gallery model."""
    with replaced_atomically(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["metric", "query", *next(iter(matrices.values())).names])
        for metric, matrix in matrices.items():
            for name, rates in zip(matrix.names, matrix.rates):
                writer.writerow([metric, name, *("" if np.isnan(rate) else f"{rate:.6f}" for rate in rates)])
