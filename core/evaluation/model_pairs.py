"""Self- and cross-tests of several models on one IJB-B or IJB-C data set: each model embeds the images once."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from core.evaluation.ijb import IdentificationResult, RocResult, evaluate_1_1, evaluate_1_n, template_features
from core.evaluation.ijb_embeddings import CACHE, embed_images
from core.evaluation.ijb_meta import read_identification, read_images, read_pairs, require_meta
from core.models.encoder import Encoder

__all__ = ["PairResults", "evaluate_pairs"]

PairResults = dict[str, RocResult | IdentificationResult]
"""Of one pair of models, under "1:1" and "1:N"."""


def evaluate_pairs(
    encoders: Mapping[str, Encoder],
    pairs: Iterable[str],
    data_path: str | Path,
    subset: str = "IJBC",
    batch_size: int = 128,
    num_workers: int = 0,
    cache: Path = CACHE,
) -> dict[str, PairResults]:
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
        results[pair] = {"1:1": evaluate_1_1(query, gallery, comparisons), "1:N": evaluate_1_n(query, gallery, lists)}
    return results
