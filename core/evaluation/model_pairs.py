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
    templates = {
        name: template_features(embed_images(encoder, images, batch_size, num_workers, cache), images)
        for name, encoder in encoders.items()
    }
    before = {name: evaluate_1_n(templates[name], templates[name], lists) for name in _galleries(pairs)}
    results = {}
    for pair in pairs:
        query, gallery = pair.split("/")
        if query == gallery:
            verification = evaluate_1_1(templates[query], templates[query], comparisons)
            results[pair] = PairResult(verification, before[query], {})
            continue
        found = evaluate_1_n(templates[query], templates[gallery], lists)
        verification = evaluate_1_1(templates[query], templates[gallery], comparisons)
        results[pair] = PairResult(verification, found, mean_flip_rates(before[gallery].found, found.found))
    return results


def _galleries(pairs: Iterable[str]) -> list[str]:
    """The gallery models of pairs "query/gallery", each once."""
    return list(dict.fromkeys(pair.split("/")[1] for pair in pairs))


def evaluate_retrieval_pairs(
    encoders: Mapping[str, Encoder], pairs: Collection[str], test: RetrievalTest, options: RetrievalOptions
) -> dict[str, dict[str, float | None]]:
    """Metrics of each of `pairs`, written "query/gallery" with names of `encoders`, on a retrieval test.

    Those of a cross-test have also `nfr` and `pfr` against the gallery model's own search.
    """
    before = {name: rank_database(encoders[name], encoders[name], test, options)[1] for name in _galleries(pairs)}
    results = {}
    for pair in pairs:
        query, gallery = pair.split("/")
        if query == gallery:
            results[pair] = test.evaluate(before[query]).metrics
            continue
        _, rows = rank_database(encoders[query], encoders[gallery], test, options)
        flips = flip_rates(found_first(test, before[gallery]), found_first(test, rows))
        results[pair] = {**test.evaluate(rows).metrics, **flips}
    return results
