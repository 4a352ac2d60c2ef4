"""The test of the Google Landmarks Dataset v2: mean average precision of the first 100 results.

Weyand, Araujo, Cao, Sim, "Google Landmarks Dataset v2", CVPR 2020 (arXiv 2004.01804), section 5.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.evaluation.precision_recall import RetrievalResult, interpolated_precision
from core.evaluation.retrieval_images import read_image_list
from core.files import reading
from core.json_files import read_json

__all__ = ["DEPTH", "Gldv2Test", "average_precisions", "evaluate_gldv2", "read_gldv2"]

DEPTH = 100
USAGES = ("public", "private")
AGAIN = "make it again with tools/prepare_gldv2.py"


class Gldv2Test:
    """Queries and index of GLDv2, `usage` (Q,) of the queries in lower case, and `positives`: rows of the index."""

    task: str = "gldv2"
    depth: int | None = DEPTH

    def __init__(self, folder: Path, image_root: Path):
        self.queries = read_image_list(folder / "gldv2_queries.txt", image_root, "list of queries")
        self.database = read_image_list(folder / "gldv2_index.txt", image_root, "list of the index")
        self.usage, self.positives = self._read_truth(folder / "gldv2_ground_truth.json")

    def _read_truth(self, path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
        content = read_json(path, "ground truth", AGAIN)
        with reading(path, "ground truth", AGAIN):
            usage = np.array([str(value).lower() for value in content["usage"]])
            positives = [np.array(rows, dtype=np.int64).reshape(len(rows)) for rows in content["positives"]]
        if not len(usage) == len(positives) == len(self.queries):
            raise UserError(
                f"{path} has {len(usage)} usages and {len(positives)} lists of positives, but "
                f"{self.queries.listed_in} has {len(self.queries)} queries: make them again together"
            )
        for query, rows in enumerate(positives):
            if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.database):
                raise UserError(
                    f"{path}: a positive of query {query} is row {rows.max()} or below 0, but "
                    f"{self.database.listed_in} has {len(self.database)} lines: make them again together"
                )
        return usage, positives

    def evaluate(self, rows: np.ndarray) -> RetrievalResult:
        """Metrics and curve of ranked rows (Q, K) of the database."""
        return evaluate_gldv2(rows, self.positives, self.usage)

    def judged(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows that are positive for a query, and those that are junk."""
        return self.positives[query], np.empty(0, dtype=np.int64)


def read_gldv2(data_path: str | Path, image_root: str | Path | None = None) -> Gldv2Test:
    """The lists that `tools/prepare_gldv2.py` wrote to `data_path` or `data_path`/gldv2; images below `image_root`.

    Without `image_root` the images are looked for beside the lists. `UserError` naming a file that is missing or
    damaged.
    """
    folder = Path(data_path)
    if not folder.is_dir():
        raise UserError(f"evaluation folder not found: {folder}")
    if not (folder / "gldv2_queries.txt").is_file() and (folder / "gldv2").is_dir():
        folder = folder / "gldv2"
    return Gldv2Test(folder, Path(image_root) if image_root is not None else folder)


def average_precisions(rows: np.ndarray, positives: Sequence[np.ndarray]) -> np.ndarray:
    """AP@100 (Q,) of ranked rows (Q, K), of which the first 100 count; NaN for queries without positives.

    The sum of the precisions at the positives' ranks, divided by the number of positives or by 100 if there are more.
    """
    rows = rows[:, :DEPTH]
    hits = np.array([np.isin(ranked, true) for ranked, true in zip(rows, positives)]).reshape(rows.shape)
    precisions = np.cumsum(hits, axis=1) / np.arange(1, rows.shape[1] + 1)
    possible = np.array([min(len(true), DEPTH) for true in positives], dtype=np.float64)
    return np.divide((precisions * hits).sum(axis=1), possible, out=np.full(len(rows), np.nan), where=possible > 0)


def evaluate_gldv2(rows: np.ndarray, positives: Sequence[np.ndarray], usage: np.ndarray) -> RetrievalResult:
    """`map@100` of all public and private queries, `map@100_public`, `map@100_private`, as fractions, and the curve.

    `rows` (Q, K) are ranked rows of the index, `usage` is "public", "private" or, for a query that does not count,
    something else. Queries without positives are left out of the means; None where none is left.
    """
    usage = np.asarray(usage)
    aps = average_precisions(rows, positives)
    counted = np.isin(usage, USAGES) & ~np.isnan(aps)
    chosen = {"map@100": counted, **{f"map@100_{name}": counted & (usage == name) for name in USAGES}}
    metrics = {name: float(aps[which].mean()) if which.any() else None for name, which in chosen.items()}
    curves = [
        interpolated_precision(np.flatnonzero(np.isin(ranked[:DEPTH], true)), min(len(true), DEPTH))
        for ranked, true, is_counted in zip(rows, positives, counted)
        if is_counted
    ]
    return RetrievalResult(metrics, {"first 100": np.mean(curves, axis=0) if curves else np.full(101, np.nan)})
