"""Ranking the database of a retrieval test with one model, or with new queries against an old database."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from core.evaluation.descriptors import CACHE, Whitening, describe_images, expand_queries, image_sides
from core.evaluation.precision_recall import RetrievalResult
from core.evaluation.retrieval_images import RetrievalImages
from core.evaluation.search import search
from core.models.encoder import Encoder
from core.models.mapped import Rows

__all__ = ["RetrievalOptions", "RetrievalTest", "found_first", "rank_database"]


class RetrievalTest(Protocol):
    """Queries, a database, and what is known of them: `RevisitedTest` or `Gldv2Test`."""

    task: str
    queries: RetrievalImages
    database: RetrievalImages
    depth: int | None
    """How many results of a query count; None: all."""

    def evaluate(self, rows: np.ndarray) -> RetrievalResult:
        """Metrics of ranked rows (Q, K) of the database, followed by the distractors if there are any."""

    def judged(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows that are positive for a query, and those that are junk."""


@dataclass(frozen=True)
class RetrievalOptions:
    """How images become descriptors and descriptors become ranks."""

    crop: bool = True
    """Queries are cropped to their boxes."""
    scales: tuple[float, ...] = (1.0,)
    image_size: int | None = None
    """Side of the images at scale 1; None: each model's own."""
    whiten: bool = False
    """PCA whitening learned on the database."""
    query_expansion: int = 0
    """So many first results are added to each query, which then searches again; 0: none."""
    distractors: RetrievalImages | None = None
    batch_size: int = 32
    num_workers: int = 2
    use_gpu: bool = True
    """For the search."""
    cache: Path = CACHE


def rank_database(
    query_encoder: Encoder, gallery_encoder: Encoder, test: RetrievalTest, options: RetrievalOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 (Q, K) and rows int64 (Q, K), best first; rows from the database's end on are distractors.

    The query model embeds the queries, the gallery model database and distractors; give the same model twice for a
    self-test. Memory: the database's and the distractors' descriptors, twice with whitening, beside what `search` and
    the result need.
    """
    query_sides, gallery_sides = (
        image_sides(encoder, options.image_size, options.scales) for encoder in (query_encoder, gallery_encoder)
    )

    def describe(encoder: Encoder, images: RetrievalImages, sides: list[int]) -> Rows:
        return describe_images(encoder, images, sides, options.batch_size, options.num_workers, options.cache)

    queries = describe(query_encoder, test.queries if options.crop else test.queries.cropped(None), query_sides)
    gallery = describe(gallery_encoder, test.database, gallery_sides)
    if options.distractors is not None:
        gallery = np.concatenate((gallery, describe(gallery_encoder, options.distractors, gallery_sides)))
    if options.whiten:
        whiten = Whitening(gallery)
        queries, gallery = whiten(queries), whiten(gallery)
    if options.query_expansion:
        found = search(queries, gallery, min(options.query_expansion, len(gallery)), options.use_gpu)
        queries = expand_queries(queries, gallery, *found)
    return search(queries, gallery, min(test.depth or len(gallery), len(gallery)), options.use_gpu)


def found_first(test: RetrievalTest, rows: np.ndarray) -> np.ndarray:
    """Whether the first of the ranked rows (Q, K) that is not junk is a positive, of the queries that have positives.

    With the revisited benchmarks' labels of the setup Medium.
    """
    found = []
    for query, ranked in enumerate(rows):
        positives, junk = test.judged(query)
        if len(positives):
            first = ranked[~np.isin(ranked, junk)][:1]
            found.append(bool(np.isin(first, positives).any()))
    return np.array(found, dtype=bool)
