"""Self- and cross-tests of several models on one data set, faces or landmarks: each model embeds the images once."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache as cache_calls
from pathlib import Path

import numpy as np

from core.evaluation.flips import flip_rates, mean_flip_rates
from core.evaluation.identification import IdentificationResult, evaluate_1_n
from core.evaluation.ijb import evaluate_1_1, template_features
from core.evaluation.ijb_embeddings import CACHE, embed_images
from core.evaluation.ijb_meta import read_identification, read_images, read_pairs, require_meta
from core.evaluation.retrieval import RetrievalOptions, RetrievalTest, found_first, rank_database
from core.evaluation.roc import RocResult
from core.models.encoder import Encoder

__all__ = ["DEFAULT_SETTINGS", "EMBEDS", "PairResult", "evaluate_pairs", "evaluate_retrieval_pairs"]

EMBEDS = {
    "1:1": ("second template of each pair", "first template of each pair"),
    "1:N": ("probes", "galleries"),
}
"""What the query model and the gallery model embed."""
DEFAULT_SETTINGS = {"flip": True, "detector_score": True, "normalize_embeddings": False}
"""How template features are made here, as results files describe it."""


@dataclass(frozen=True)
class PairResult:
    """What one pair of models gave in 1:1 and in 1:N."""

    verification: RocResult
    identification: IdentificationResult
    flips: dict[str, float | None]
    """`nfr` and `pfr` against the search that the gallery served before (its `gallery_model`); none in a self-test."""

    @property
    def metrics(self) -> dict[str, Mapping[str, object]]:
        """The metrics of both protocols, under "1:1" and "1:N"; `flips` are with the latter."""
        return {"1:1": self.verification.metrics, "1:N": {**self.identification.metrics, **self.flips}}


def evaluate_pairs(
    encoders: Mapping[str, Encoder],
    pairs: Collection[str],
    data_path: str | Path,
    subset: str = "IJBC",
    batch_size: int = 128,
    num_workers: int = 0,
    cache: Path = CACHE,
) -> dict[str, PairResult]:
    """Results of each of `pairs`, written "query/gallery" with names of `encoders`.

    1:1 and 1:N with the settings that `tools/ijbc_eval.py` has by default (flip test, detector scores). The embeddings
    are kept in `cache`. Memory: the template features of all models, 4 D bytes a template and model.
    """
    images = read_images(require_meta(data_path, subset, one_to_n=True), subset)
    comparisons, lists = read_pairs(images), read_identification(images)
    models = _models(encoders, pairs)
    templates = {
        fingerprint: template_features(embed_images(encoder, images, batch_size, num_workers, cache), images)
        for fingerprint, encoder in models.items()
    }

    @cache_calls
    def own_search(fingerprint: str) -> PairResult:
        own = templates[fingerprint]
        return PairResult(evaluate_1_1(own, own, comparisons), evaluate_1_n(own, own, lists), {})

    results = {}
    for pair in pairs:
        query, gallery = (encoders[name] for name in pair.split("/"))
        if query is gallery:
            results[pair] = own_search(query.fingerprint)
            continue
        features = templates[query.fingerprint], templates[gallery.fingerprint]
        before = own_search(gallery.gallery_model.fingerprint)
        verification = evaluate_1_1(*features, comparisons, before=before.verification)
        found = evaluate_1_n(*features, lists)
        flips = mean_flip_rates(before.identification.found, found.found)
        results[pair] = PairResult(verification, found, flips)
    return results


def _models(encoders: Mapping[str, Encoder], pairs: Iterable[str]) -> dict[str, Encoder]:
    """By their fingerprints, the models of pairs "query/gallery" and those that searched the galleries before."""
    models = {}
    for pair in pairs:
        query, gallery = (encoders[name] for name in pair.split("/"))
        models |= {encoder.fingerprint: encoder for encoder in (query, gallery, gallery.gallery_model)}
    return models


def evaluate_retrieval_pairs(
    encoders: Mapping[str, Encoder], pairs: Collection[str], test: RetrievalTest, options: RetrievalOptions
) -> dict[str, dict[str, float | None]]:
    """Metrics of each of `pairs`, written "query/gallery" with names of `encoders`, on a retrieval test.

    Those of a cross-test have also `nfr` and `pfr` against the search that the gallery served before.
    """
    models = _models(encoders, pairs)

    @cache_calls
    def own_search(fingerprint: str) -> np.ndarray:
        return rank_database(models[fingerprint], models[fingerprint], test, options)[1]

    results = {}
    for pair in pairs:
        query, gallery = (encoders[name] for name in pair.split("/"))
        if query is gallery:
            results[pair] = test.evaluate(own_search(query.fingerprint)).metrics
            continue
        _, rows = rank_database(query, gallery, test, options)
        before = own_search(gallery.gallery_model.fingerprint)
        flips = flip_rates(found_first(test, before), found_first(test, rows))
        results[pair] = {**test.evaluate(rows).metrics, **flips}
    return results
