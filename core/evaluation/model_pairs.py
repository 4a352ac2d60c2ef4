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

__all__ = ["DEFAULT_SETTINGS", "EMBEDS", "PairResult", "evaluate_pairs", "evaluate_retrieval_pairs", "search_before"]

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
    """`nfr` and `pfr` against the search that the gallery served before (`search_before`); none in a self-test."""

    @property
    def metrics(self) -> dict[str, Mapping[str, object]]:
        """The metrics of both protocols, under "1:1" and "1:N"; `flips` are with the latter."""
        return {"1:1": self.verification.metrics, "1:N": {**self.identification.metrics, **self.flips}}


def search_before(gallery: Encoder, models: Iterable[Encoder]) -> tuple[Encoder, Encoder]:
    """The models (query, gallery) of the search that a gallery served before an update.

    That is the search by its own model; of a mapped gallery by the model that embedded it, and of one that is mapped
    again by the model into whose space it was mapped first, if both are among the `models`.
    """
    base = gallery.base
    if gallery.maps_gallery and base is not None and base.maps_gallery and base.map is not None:
        known = {model.fingerprint: model for model in models}
        query, first_mapped = known.get(base.map.target.fingerprint or ""), known.get(base.fingerprint)
        if query is not None and first_mapped is not None:
            return query, first_mapped
    return gallery.gallery_model, gallery.gallery_model


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
    def search(query: str, gallery: str) -> tuple[RocResult, IdentificationResult]:
        features = templates[query], templates[gallery]
        return evaluate_1_1(*features, comparisons), evaluate_1_n(*features, lists)

    results = {}
    for pair in pairs:
        query, gallery = (encoders[name] for name in pair.split("/"))
        if query is gallery:
            results[pair] = PairResult(*search(query.fingerprint, query.fingerprint), {})
            continue
        before_1_1, before_1_n = search(*(model.fingerprint for model in search_before(gallery, encoders.values())))
        features = templates[query.fingerprint], templates[gallery.fingerprint]
        verification = evaluate_1_1(*features, comparisons, before=before_1_1)
        found = evaluate_1_n(*features, lists)
        results[pair] = PairResult(verification, found, mean_flip_rates(before_1_n.found, found.found))
    return results


def _models(encoders: Mapping[str, Encoder], pairs: Iterable[str]) -> dict[str, Encoder]:
    """By their fingerprints, the models of pairs "query/gallery" and those that searched the galleries before."""
    models = {}
    for pair in pairs:
        query, gallery = (encoders[name] for name in pair.split("/"))
        before = search_before(gallery, encoders.values())
        models |= {encoder.fingerprint: encoder for encoder in (query, gallery, *before)}
    return models


def evaluate_retrieval_pairs(
    encoders: Mapping[str, Encoder], pairs: Collection[str], test: RetrievalTest, options: RetrievalOptions
) -> dict[str, dict[str, float | None]]:
    """Metrics of each of `pairs`, written "query/gallery" with names of `encoders`, on a retrieval test.

    Those of a cross-test have also `nfr` and `pfr` against the search that the gallery served before.
    """
    models = _models(encoders, pairs)

    @cache_calls
    def search(query: str, gallery: str) -> np.ndarray:
        return rank_database(models[query], models[gallery], test, options)[1]

    results = {}
    for pair in pairs:
        query, gallery = (encoders[name] for name in pair.split("/"))
        if query is gallery:
            results[pair] = test.evaluate(search(query.fingerprint, query.fingerprint)).metrics
            continue
        _, rows = rank_database(query, gallery, test, options)
        before = search(*(model.fingerprint for model in search_before(gallery, encoders.values())))
        flips = flip_rates(found_first(test, before), found_first(test, rows))
        results[pair] = {**test.evaluate(rows).metrics, **flips}
    return results
