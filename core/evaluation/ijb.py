"""The protocols of IJB-B and IJB-C: template features and 1:1 verification.

Counting follows InsightFace's scripts where they agree with the protocol; ties are counted against the model: scores
that are equal share one threshold.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from core.evaluation.ijb_embeddings import ImageEmbeddings
from core.evaluation.ijb_meta import IjbImages, Pairs

__all__ = ["FARS", "RocResult", "evaluate_1_1", "pair_scores", "receiver_operating_characteristic",
           "template_features"]  # fmt: skip

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
MEMBER_BLOCK, PAIR_BLOCK = 512, 1024


@dataclass(frozen=True)
class RocResult:
    """1:1: `metrics` `tar@far=1e-06` ... and `auc` (None where the data cannot resolve it), and a curve of K points.

    `fpr` (K,) are FPRs on a logarithmic grid from one impostor pair to 1, `tpr` (K,) the largest TPR at or below each.
    """

    metrics: dict[str, float | None]
    fpr: np.ndarray
    tpr: np.ndarray


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


def receiver_operating_characteristic(genuine: np.ndarray, impostor: np.ndarray) -> RocResult:
    """The metrics and the curve of scores of pairs of one person (G,) and of two persons (I,).

    TAR at FAR x is the TPR at the FPR nearest to x among those that a threshold can give, the largest such TPR. It is
    None below one impostor pair (x < 1 / I); all are None without pairs of either kind. Both arrays are sorted once;
    each rate is then a binary search, so that no array over all thresholds is made. (scikit-learn's `roc_curve` makes
    several, and takes 30 times as long for the 15.7 million pairs of IJB-C.)
    """
    genuine, impostor = np.sort(genuine), np.sort(impostor)
    names = {f"tar@far={far:.0e}": far for far in FARS}
    if not len(genuine) or not len(impostor):
        return RocResult({**dict.fromkeys(names), "auc": None}, np.empty(0), np.empty(0))
    metrics = {name: _tar(genuine, impostor, far) for name, far in names.items()}
    below = np.searchsorted(impostor, genuine, "left") + np.searchsorted(impostor, genuine, "right")
    metrics["auc"] = float(below.mean() / (2 * len(impostor)))
    counts = np.unique(np.geomspace(1, len(impostor), 400).astype(np.int64))
    return RocResult(metrics, counts / len(impostor), _accepted(genuine, impostor, counts) / len(genuine))


def _accepted(genuine: np.ndarray, impostor: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many of the sorted genuine scores lie above the thresholds that let at most `counts` impostor pairs pass."""
    barred = impostor[len(impostor) - 1 - counts.clip(max=len(impostor) - 1)]
    above = len(genuine) - np.searchsorted(genuine, barred, "right")
    return np.where(counts >= len(impostor), len(genuine), above)


def _tar(genuine: np.ndarray, impostor: np.ndarray, far: float) -> float | None:
    """TPR at the FPR nearest to `far`, of sorted scores. The slack of 1e-6 pairs is for the rounding of `far`."""
    num_impostors = len(impostor)
    wanted = far * num_impostors
    if wanted < 1 - 1e-6:
        return None
    barred = impostor[num_impostors - 1 - min(int(wanted + 1e-6), num_impostors - 1)]
    # impostor pairs with equal scores pass together: so many pass above `barred`, and so many from `barred` on
    fewer, more = (num_impostors - int(np.searchsorted(impostor, barred, side)) for side in ("right", "left"))
    count = more if more - wanted <= wanted - fewer + 1e-6 else fewer
    return float(_accepted(genuine, impostor, np.array(count)) / len(genuine))
