"""The protocols of IJB-B and IJB-C: template features and 1:1 verification.

Counting follows InsightFace's scripts where they agree with the protocol; ties are counted against the model: scores
that are equal share one threshold.
"""

import warnings
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from core.arrays import MappedArray
from core.evaluation.ijb_embeddings import ImageEmbeddings
from core.evaluation.ijb_meta import IjbImages, Pairs
from core.evaluation.roc import RocResult, rates_at, receiver_operating_characteristic
from core.parallel.threads import in_order, one_thread

__all__ = ["evaluate_1_1", "pair_scores", "template_features", "template_means"]

MEMBER_BLOCK, ROW_BLOCK = 512, 512
"""Images, and first templates of pairs, that are taken together."""
RELEASED_BLOCKS = 64
"""Of images, after which what was read of the embeddings' file no longer counts as the program's memory."""


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
    sum is one weighted sum, so that the members are added up block by block in the order of their templates, blocks on
    as many threads as torch uses; their number changes no bit. Memory: 8 T D bytes and two blocks a thread, in float64;
    the embeddings are read through their memory map, of which at most 32,768 rows are resident.
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

    def of_block(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
        firsts = np.flatnonzero(np.diff(templates, prepend=-1))
        every, offsets, of_rows = (torch.from_numpy(each) for each in (np.arange(len(rows)), firsts, weights))
        block_sums = embedding_bag(every, torch.from_numpy(features), offsets, mode="sum", per_sample_weights=of_rows)
        return templates[firsts], block_sums.numpy(), np.add.reduceat(weights, firsts)

    blocks = in_order(of_block, range(0, len(order), MEMBER_BLOCK), torch.get_num_threads())
    for number, (templates, block_sums, block_totals) in enumerate(blocks, 1):
        sums[templates] += block_sums
        totals[templates] += block_totals
        if number % RELEASED_BLOCKS == 0:
            for rows in (embeddings.plain, embeddings.mirrored):
                if isinstance(rows, MappedArray):
                    rows.release()
    return sums, totals


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their length; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def pair_scores(first_templates: np.ndarray, second_templates: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Cosines, float32 (P,), of template features (T, D) of the pairs' first and second templates.

    Pairs with one first template, which follow one another in IJB's lists, are a row of a sparse matrix, and their
    cosines the entries of a product that PyTorch computes: no feature but the first templates' is copied. Equal
    templates have equal scores wherever they are in the list. Memory: 4 P bytes, and for each thread 512 features and
    about 50 bytes for each of the pairs that these are the first of.
    """
    scores = np.empty(len(pairs.first), dtype=np.float32)
    runs = np.flatnonzero(np.diff(pairs.first, prepend=-1))
    bounds = np.append(runs, len(scores))

    def score(begin: int) -> None:
        ends = bounds[begin : begin + ROW_BLOCK + 1]
        block = slice(ends[0], ends[-1])
        first = first_templates[pairs.first[ends[:-1]]]
        scores[block] = _sampled_product(first, second_templates, np.diff(ends), pairs.second[block])

    num_threads = torch.get_num_threads()
    with one_thread(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        for _ in in_order(score, range(0, len(runs), ROW_BLOCK), num_threads):
            pass
    return scores


def _sampled_product(first: np.ndarray, second: np.ndarray, counts: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Entries (P,) of the product of `first` (R, D) and `second` (T, D): `counts` (R,) of each row, at `columns` (P,).

    PyTorch wants a row's columns in order and each once.
    """
    cells = np.repeat(np.arange(len(first)) * len(second), counts) + columns
    own: np.ndarray | slice = slice(None)
    if not (cells[1:] > cells[:-1]).all():
        cells, own = np.unique(cells, return_inverse=True)
    ends = np.searchsorted(cells, np.arange(len(first) + 1) * len(second))
    arrays = (torch.from_numpy(each) for each in (ends, cells % len(second), np.zeros(len(cells), np.float32)))
    wanted = torch.sparse_csr_tensor(*arrays, size=(len(first), len(second)), check_invariants=True)
    product = torch.sparse.sampled_addmm(wanted, torch.from_numpy(first), torch.from_numpy(second).T)
    return product.values().numpy()[own]


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
