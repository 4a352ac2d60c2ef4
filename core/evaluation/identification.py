"""1:N identification of IJB-B and IJB-C in open sets: probes, of which some have a mate, against galleries of subjects.

Ties are counted against the model: a mate that another subject equals is not found at the better rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from core.evaluation.ijb_meta import IdentificationLists, Subjects
from core.parallel.threads import in_order

__all__ = ["FPIRS", "RANKS", "GallerySearch", "IdentificationResult", "Search", "SearchCurves", "evaluate_1_n",
           "probe_blocks", "search_metrics"]  # fmt: skip

FPIRS = (0.01, 0.1)
RANKS = (1, 5, 10)
CURVE_RANKS = 50
PROBE_BLOCK = 1024


@dataclass(frozen=True)
class SearchCurves:
    """`cmc` (50,): share of mated probes found at rank 1 ... 50; `tpir` (K,) at `fpir` (K,), NaN below 1 / m."""

    cmc: np.ndarray
    fpir: np.ndarray
    tpir: np.ndarray


@dataclass(frozen=True)
class IdentificationResult:
    """1:N: `metrics` as in results.json, `curves` of `g1` and `g2` and of their `mean`, and `found` of `g1` and `g2`.

    `found` (M,) says of each probe with a mate in the gallery, in the order of the list, whether it is found at rank 1.
    """

    metrics: dict[str, float | None | dict[str, float | None]]
    curves: dict[str, SearchCurves]
    found: dict[str, np.ndarray]


def evaluate_1_n(
    query_templates: np.ndarray, gallery_templates: np.ndarray, lists: IdentificationLists
) -> IdentificationResult:
    """Open-set identification of all probes in each gallery: probes are the query model's, galleries the gallery's.

    Metrics: `top1 top5 top10` (share of the probes whose subject is in the gallery that are found at that rank),
    `tpir@fpir=0.01`, `tpir@fpir=0.1` (threshold = the max(1, floor(f m))-th largest top score of the m probes whose
    subject is not in the gallery; the mate must score above it and above all others): means of the two galleries,
    each gallery's own under `g1` and `g2`, and top-k on both galleries together under `mixed`. None where there is no
    probe to count. A subject with several templates in a gallery scores the best of them, and ranks count subjects.
    """
    metrics, curves, found = {}, {}, {}
    both = Subjects(
        *(np.concatenate([getattr(g, field) for g in lists.galleries.values()]) for field in ("templates", "subjects"))
    )
    *searches, mixed_search = _search(
        query_templates, gallery_templates, [*lists.galleries.values(), both], lists.probes
    )
    for name, search in zip(lists.galleries, searches):
        metrics[name], curves[name] = search_metrics(search)
        found[name] = search.ranks == 1
    mixed, _ = search_metrics(mixed_search)
    means = {metric: _mean([metrics[name][metric] for name in lists.galleries]) for metric in metrics["g1"]}
    metrics["mixed"] = {metric: mixed[metric] for metric in (f"top{rank}" for rank in RANKS)}
    columns = zip(*((c.cmc, c.fpir, c.tpir) for c in curves.values()))
    curves["mean"] = SearchCurves(*(np.mean(column, axis=0) for column in columns))
    return IdentificationResult({**means, **metrics}, curves, found)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


@dataclass(frozen=True)
class Search:
    """Of the M mated probes `mate_scores` and `ranks` (from 1), of the others their `top_scores`."""

    mate_scores: np.ndarray
    ranks: np.ndarray
    top_scores: np.ndarray


class GallerySearch:
    """Counts, block by block of the probes, at which rank each probe finds its mate among the subjects of a gallery.

    A subject with several templates scores the best of them, and ranks count subjects.
    """

    def __init__(self, gallery: Subjects, probes: Subjects):
        self._subjects, column = np.unique(gallery.subjects, return_inverse=True)
        self._order = np.argsort(column, kind="stable")
        self._firsts = np.flatnonzero(np.diff(column[self._order], prepend=-1))
        self._mates = np.searchsorted(self._subjects, probes.subjects).clip(max=len(self._subjects) - 1)
        self.templates = gallery.templates[self._order]
        """Of the gallery, (K,): the columns of the scores."""
        self._top_scores, self._mate_scores = np.empty((2, len(self._mates)), dtype=np.float32)
        self._ranks = np.empty(len(self._mates), dtype=np.int64)
        self._mated = self._subjects[self._mates] == probes.subjects

    def count(self, block: slice, scores: np.ndarray) -> None:
        """Take the scores (B, K) of a block of the probes with the gallery's `templates`.

        They are rounded to float32 here: products made in float64 then give equal scores for equal templates, whatever
        order their sums were taken in, and ties are seen as ties.
        """
        if len(self._firsts) < len(self._order):
            scores = np.maximum.reduceat(scores, self._firsts, axis=1)
        scores = scores.astype(np.float32, copy=False)
        own = np.take_along_axis(scores, self._mates[block, None], axis=1)
        self._top_scores[block], self._mate_scores[block] = scores.max(axis=1), own[:, 0]
        # numbers of 8 and 32 bits: a third of the time of a sum of booleans
        self._ranks[block] = np.add.reduce((scores >= own).view(np.int8), axis=1, dtype=np.int32)

    def result(self) -> Search:
        """What was counted, once all blocks were given."""
        return Search(self._mate_scores[self._mated], self._ranks[self._mated], self._top_scores[~self._mated])


def probe_blocks(num_probes: int) -> Iterator[slice]:
    """Blocks of 1,024 probes."""
    for start in range(0, num_probes, PROBE_BLOCK):
        yield slice(start, min(start + PROBE_BLOCK, num_probes))


def _search(
    query_templates: np.ndarray, gallery_templates: np.ndarray, galleries: Sequence[Subjects], probes: Subjects
) -> list[Search]:
    """Compare all probes with each gallery, of which the last lists all the templates that the others list.

    Each template is compared once. The products are made in float64 and rounded, so that equal templates have equal
    scores. The scores of a block are counted while the next ones are made. Memory: the features of the galleries'
    templates and three blocks of 1,024 rows of scores, in float64.
    """
    searches = [GallerySearch(gallery, probes) for gallery in galleries]
    *parts, whole = searches
    column = np.empty(len(gallery_templates), np.int64)
    column[whole.templates] = np.arange(len(whole.templates))
    columns = [column[part.templates] for part in parts]
    features = gallery_templates[whole.templates].astype(np.float64).T

    def products() -> Iterator[tuple[slice, np.ndarray]]:
        for block in probe_blocks(len(probes.templates)):
            yield block, query_templates[probes.templates[block]].astype(np.float64) @ features

    def count(product: tuple[slice, np.ndarray]) -> None:
        block, scores = product[0], product[1].astype(np.float32)
        whole.count(block, scores)
        for part, own in zip(parts, columns):
            part.count(block, scores.take(own, axis=1))

    for _ in in_order(count, products(), 1):
        pass
    return [search.result() for search in searches]


def search_metrics(search: Search) -> tuple[dict[str, float | None], SearchCurves]:
    """Metrics (see `evaluate_1_n`) and curves of one search."""
    num_mated, num_others = len(search.ranks), len(search.top_scores)
    metrics = {f"top{rank}": float((search.ranks <= rank).mean()) if num_mated else None for rank in RANKS}
    top_scores = np.sort(search.top_scores)[::-1]
    found = np.sort(search.mate_scores[search.ranks == 1])

    def tpir(fpirs: np.ndarray) -> np.ndarray:
        thresholds = top_scores[(fpirs * num_others).astype(np.int64).clip(min=1) - 1]
        return (len(found) - np.searchsorted(found, thresholds, "right")) / num_mated

    fpir = np.geomspace(1e-4, 1, 201)
    curve = np.full(len(fpir), np.nan)
    metrics.update(dict.fromkeys(f"tpir@fpir={value}" for value in FPIRS))
    if num_mated and num_others:
        metrics.update({f"tpir@fpir={value}": float(tpir(np.array(value))) for value in FPIRS})
        curve = np.where(fpir * num_others < 1, np.nan, tpir(fpir))
    ranks = np.bincount(search.ranks.clip(max=CURVE_RANKS + 1), minlength=CURVE_RANKS + 2)
    with np.errstate(invalid="ignore"):
        cmc = np.cumsum(ranks[1 : CURVE_RANKS + 1]) / np.float64(num_mated)
    return metrics, SearchCurves(cmc, fpir, curve)
