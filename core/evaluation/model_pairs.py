"""Self- and cross-tests of several models on one data set, faces or landmarks: each model embeds the images once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.evaluation.ijb import IdentificationResult, evaluate_1_1, evaluate_1_n, template_features
from core.evaluation.ijb_embeddings import CACHE, embed_images
from core.evaluation.ijb_meta import read_identification, read_images, read_pairs, require_meta
from core.evaluation.retrieval import RetrievalOptions, RetrievalTest, rank_database
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

    @property
    def metrics(self) -> dict[str, Mapping[str, object]]:
        """The metrics of both protocols, under "1:1" and "1:N"."""
        return {"1:1": self.verification.metrics, "1:N": self.identification.metrics}


def evaluate_pairs(
    encoders: Mapping[str, Encoder],
    pairs: Iterable[str],
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
    results = {}
    for pair in pairs:
        query, gallery = (templates[name] for name in pair.split("/"))
        results[pair] = PairResult(evaluate_1_1(query, gallery, comparisons), evaluate_1_n(query, gallery, lists))
    return results


def evaluate_retrieval_pairs(
    encoders: Mapping[str, Encoder], pairs: Iterable[str], test: RetrievalTest, options: RetrievalOptions
) -> dict[str, dict[str, float | None]]:
    """Metrics of each of `pairs`, written "query/gallery" with names of `encoders`, on a retrieval test."""
    results = {}
    for pair in pairs:
        query, gallery = (encoders[name] for name in pair.split("/"))
        _, rows = rank_database(query, gallery, test, options)
        results[pair] = test.evaluate(rows).metrics
    return results
