"""The protocols of IJB-B and IJB-C: template features and 1:1 verification.

Counting follows InsightFace's scripts where they agree with the protocol; ties are counted against the model: scores
that are equal share one threshold.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from core.evaluation.ijb_embeddings import ImageEmbeddings
from core.evaluation.ijb_meta import IjbImages, Pairs
from core.evaluation.roc import RocResult, rates_at, receiver_operating_characteristic

__all__ = ["evaluate_1_1", "pair_scores", "template_features", "template_means"]

MEMBER_BLOCK, PAIR_BLOCK = 512, 1024


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
    return _unit(_weighted_sums(embeddings, images, flip, detector_score, normalize_embeddings)[0]).astype(np.float32)


def template_means(embeddings: ImageEmbeddings, images: IjbImages) -> np.ndarray:
    """The template features before they are made unit vectors, float64 (T, D), as means: of the embeddings of images
    and mirror images (N, D) with the weights that they have in `template_features`.

    A mean of unit vectors is the shorter the less they agree. Memory as of `template_features`.
    """
    sums, weights = _weighted_sums(embeddings, images, flip=True, detector_score=True, normalize_embeddings=False)
    return np.divide(sums, 2 * weights[:, None], out=sums, where=weights[:, None] > 0)


def _weighted_sums(
    embeddings: ImageEmbeddings, images: IjbImages, flip: bool, detector_score: bool, normalize_embeddings: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Of each template the sum of its weighted image features (T, D), and of their weights (T,); float64."""
    order = np.argsort(images.member_template, kind="stable")
    sums, totals = np.zeros((images.num_templates, embeddings.plain.shape[1])), np.zeros(images.num_templates)
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
        totals[templates[firsts]] += np.add.reduceat(weights, firsts)
    return sums, totals


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


def evaluate_1_1(
    query_templates: np.ndarray, gallery_templates: np.ndarray, pairs: Pairs, before: RocResult | None = None
) -> RocResult:
    """Verification: a pair's first template is the gallery's (the old model's), its second the query's (the new one's).

    Template features are float32 (T, D) of `template_features`; give the same array twice for a self-test. With the
    result `before` an update, the old model's self-test, also what the rates are at its thresholds.
    """
    scores = pair_scores(gallery_templates, query_templates, pairs)
    genuine, impostor = scores[pairs.same], scores[~pairs.same]
    result = receiver_operating_characteristic(genuine, impostor)
    if before is None:
        return result
    return replace(result, at_old_threshold=rates_at(genuine, impostor, before.thresholds))
