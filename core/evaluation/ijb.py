"""The protocols of IJB-B and IJB-C: template features, 1:1 verification, and 1:N identification in open sets.

Counting follows InsightFace's scripts where they agree with the protocol; ties are counted against the model: scores
that are equal share one threshold, and a mate that another subject equals is not found at the better rank.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from core.evaluation.ijb_embeddings import ImageEmbeddings
from core.evaluation.ijb_meta import IdentificationLists, IjbImages, Pairs, Subjects
from core.evaluation.roc import RocResult, receiver_operating_characteristic

__all__ = ["FPIRS", "RANKS", "IdentificationResult", "SearchCurves", "evaluate_1_1", "evaluate_1_n", "pair_scores",
           "template_features"]  # fmt: skip

FPIRS = (0.01, 0.1)
RANKS = (1, 5, 10)
CURVE_RANKS = 50
MEMBER_BLOCK, PAIR_BLOCK, PROBE_BLOCK = 512, 1024, 1024


@dataclass(frozen=True)
class SearchCurves:
    """`cmc` (50,): share of mated probes found at rank 1 ... 50; `tpir` (K,) at `fpir` (K,), NaN below 1 / m."""

    cmc: np.ndarray
    fpir: np.ndarray
    tpir: np.ndarray


@dataclass(frozen=True)
class IdentificationResult:
    """1:N: `metrics` as in results.json, and `curves` of `g1` and `g2` and of their `mean`."""

    metrics: dict[str, float | None | dict[str, float | None]]
    curves: dict[str, SearchCurves]


def template_features(
    embeddings: ImageEmbeddings,
    images: IjbImages,
    flip: bool = True,
    detector_score: bool = True,
    normalize_embeddings: bool = False,
) -> np.ndarray:
    """Unit template features, float32 (T, D), from image embeddings (N, D).

    Image feature = embedding + embedding of the mirror image (`flip`), made a unit vector (`normalize_embeddings`),
    times the detector score; mean over the images of one media, sum over the media, L2 normalisation. A mean then a
    sum is one weighted sum, so that the members are added up block by block in the order of their templates. Memory:
    8 T D bytes and one block, in float64; the embeddings are read through their memory map.
    """
    order = np.argsort(images.member_template, kind="stable")
    sums = np.zeros((images.num_templates, embeddings.plain.shape[1]))
    for start in range(0, len(order), MEMBER_BLOCK):
        members = order[start : start + MEMBER_BLOCK]
        rows, templates = images.member_image[members], images.member_template[members]
        features = embeddings.plain[rows].astype(np.float64)
        if flip:
            features += embeddings.mirrored[rows]
        if normalize_embeddings:
            features = _unit(features)
        weights = 1.0 / images.media_size[members]
        if detector_score:
            weights = weights * images.detector_scores[rows]
        features *= weights[:, None]
        firsts = np.flatnonzero(np.diff(templates, prepend=-1))
        sums[templates[firsts]] += np.add.reduceat(features, firsts, axis=0)
    return _unit(sums).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their length; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def pair_scores(first_templates: np.ndarray, second_templates: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Cosines, float32 (P,), of template features (T, D) of the pairs' first and second templates.

    Memory: 4 P bytes and two blocks of 1,024 rows a thread, small enough to stay in the processor's cache.
    """
    scores = np.empty(len(pairs.first), dtype=np.float32)

    def score(start: int) -> None:
        block = slice(start, start + PAIR_BLOCK)
        first, second = first_templates[pairs.first[block]], second_templates[pairs.second[block]]
        np.einsum("pd,pd->p", first, second, out=scores[block])

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for _ in threads.map(score, range(0, len(scores), PAIR_BLOCK)):
            pass
    return scores


def evaluate_1_1(query_templates: np.ndarray, gallery_templates: np.ndarray, pairs: Pairs) -> RocResult:
    """Verification: a pair's first template is the gallery's (the old model's), its second the query's (the new one's).

    Template features are float32 (T, D) of `template_features`; give the same array twice for a self-test.
    """
    scores = pair_scores(gallery_templates, query_templates, pairs)
    return receiver_operating_characteristic(scores[pairs.same], scores[~pairs.same])


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
    metrics, curves = {}, {}
    for name, gallery in lists.galleries.items():
        metrics[name], curves[name] = _search_metrics(
            _search(query_templates, gallery_templates, gallery, lists.probes)
        )
    both = Subjects(
        *(np.concatenate([getattr(g, field) for g in lists.galleries.values()]) for field in ("templates", "subjects"))
    )
    mixed, _ = _search_metrics(_search(query_templates, gallery_templates, both, lists.probes))
    means = {metric: _mean([metrics[name][metric] for name in lists.galleries]) for metric in metrics["g1"]}
    metrics["mixed"] = {metric: mixed[metric] for metric in (f"top{rank}" for rank in RANKS)}
    columns = zip(*((c.cmc, c.fpir, c.tpir) for c in curves.values()))
    curves["mean"] = SearchCurves(*(np.mean(column, axis=0) for column in columns))
    return IdentificationResult({**means, **metrics}, curves)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


@dataclass(frozen=True)
class _Search:
    """Of the M mated probes `mate_scores` and `ranks` (from 1), of the others their `top_scores`."""

    mate_scores: np.ndarray
    ranks: np.ndarray
    top_scores: np.ndarray


def _search(query_templates: np.ndarray, gallery_templates: np.ndarray, gallery: Subjects, probes: Subjects) -> _Search:
    """Compare all probes with a gallery, 1,024 probes at a time.

    Products are made in float64 and rounded to float32, so that equal templates give equal scores whatever order the
    sums were taken in, and ties are seen as ties.
    """
    subjects, column = np.unique(gallery.subjects, return_inverse=True)
    order = np.argsort(column, kind="stable")
    firsts = np.flatnonzero(np.diff(column[order], prepend=-1))
    gallery_features = gallery_templates[gallery.templates[order]].astype(np.float64).T
    mates = np.searchsorted(subjects, probes.subjects).clip(max=len(subjects) - 1)
    top_scores, mate_scores = np.empty((2, len(mates)), dtype=np.float32)
    ranks = np.empty(len(mates), dtype=np.int64)
    for start in range(0, len(mates), PROBE_BLOCK):
        block = slice(start, start + PROBE_BLOCK)
        scores = query_templates[probes.templates[block]].astype(np.float64) @ gallery_features
        if len(subjects) < len(order):
            scores = np.maximum.reduceat(scores, firsts, axis=1)
        scores = scores.astype(np.float32)
        own = np.take_along_axis(scores, mates[block, None], axis=1)
        top_scores[block], mate_scores[block] = scores.max(axis=1), own[:, 0]
        ranks[block] = (scores >= own).sum(axis=1)
    mated = subjects[mates] == probes.subjects
    return _Search(mate_scores[mated], ranks[mated], top_scores[~mated])


def _search_metrics(search: _Search) -> tuple[dict[str, float | None], SearchCurves]:
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
