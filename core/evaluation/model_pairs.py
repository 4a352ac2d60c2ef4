"""Self- and cross-tests of several models on one data set, faces or landmarks: each model embeds the images once."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

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
    """`nfr` and `pfr` against the gallery model's own search; empty in a self-test."""

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
    models = {encoder.fingerprint: encoder for encoder in (*encoders.values(), *_before(encoders, pairs))}
    templates = {
        fingerprint: template_features(embed_images(encoder, images, batch_size, num_workers, cache), images)
        for fingerprint, encoder in models.items()
    }

    def self_test(encoder: Encoder) -> PairResult:
        own = templates[encoder.fingerprint]
        return PairResult(evaluate_1_1(own, own, comparisons), evaluate_1_n(own, own, lists), {})

    before = {one.fingerprint: self_test(one) for one in _before(encoders, pairs)}
    results = {}
    for pair in pairs:
        query, gallery = (encoders[name] for name in pair.split("/"))
        if query.fingerprint == gallery.fingerprint:
            results[pair] = before.get(query.fingerprint) or self_test(query)
            continue
        old = before[gallery.gallery_model.fingerprint]
        compared = templates[query.fingerprint], templates[gallery.fingerprint]
        verification = evaluate_1_1(*compared, comparisons, before=old.verification)
        identification = evaluate_1_n(*compared, lists)
        flips = mean_flip_rates(old.identification.found, identification.found)
        results[pair] = PairResult(verification, identification, flips)
    return results


def _before(encoders: Mapping[str, Encoder], pairs: Iterable[str]) -> list[Encoder]:
    """The models that searched the galleries of "query/gallery" before the queries' model came, each once."""
    models = (encoders[pair.split("/")[1]].gallery_model for pair in pairs)
    return list({model.fingerprint: model for model in models}.values())


def evaluate_retrieval_pairs(
    encoders: Mapping[str, Encoder], pairs: Collection[str], test: RetrievalTest, options: RetrievalOptions
) -> dict[str, dict[str, float | None]]:
    """Metrics of each of `pairs`, written "query/gallery" with names of `encoders`, on a retrieval test.

    Those of a cross-test have also `nfr` and `pfr` against the gallery model's own search.
    """
    before = {one.fingerprint: rank_database(one, one, test, options)[1] for one in _before(encoders, pairs)}
    results = {}
    for pair in pairs:
        query, gallery = (encoders[name] for name in pair.split("/"))
        if query.fingerprint == gallery.fingerprint and query.fingerprint in before:
            results[pair] = test.evaluate(before[query.fingerprint]).metrics
            continue
        _, rows = rank_database(query, gallery, test, options)
        results[pair] = test.evaluate(rows).metrics
        if query.fingerprint != gallery.fingerprint:
            old = before[gallery.gallery_model.fingerprint]
            results[pair] |= flip_rates(found_first(test, old), found_first(test, rows))
    return results
