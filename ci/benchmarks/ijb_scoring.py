"""An IJB-C test after the embedding, its pair file included, at IJB-C's size, beside NumPy and scikit-learn.

    python -m ci.benchmarks ijb_scoring                469,375 images x 512, 23,124 templates, 15,658,489 pairs
    python -m ci.benchmarks ijb_scoring --shrink 20    a twentieth of it

As in the real list, pairs are of a gallery's template and a probe's, and those of one gallery template come together.

The plain way is that of insightface's script: templates in a loop, scores of 100,000 pairs at a time, scikit-learn's
curve. 3 GB of disk. Of the same scores both ways must give the same rates; in the test as a whole, where features
differ by float32's rounding, they may differ by three pairs or probes.
"""

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.metrics import auc, roc_curve

from ci.benchmarks.harness.bench import Bench
from core.arrays import open_array
from core.evaluation.identification import FPIRS, RANKS, IdentificationResult, evaluate_1_n
from core.evaluation.ijb import pair_scores, template_features
from core.evaluation.ijb_embeddings import ImageEmbeddings
from core.evaluation.ijb_meta import IdentificationLists, IjbImages, Pairs, Subjects, read_images, read_pairs
from core.evaluation.roc import FARS, RocResult, receiver_operating_characteristic

QUICK = {"shrink": 2000}
NUM_IMAGES, NUM_TEMPLATES, NUM_PAIRS, NUM_SUBJECTS, DIM = 469_375, 23_124, 15_658_489, 3_531, 512
BATCH = 100_000
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]
"""scikit-learn's: FPR, TPR and thresholds."""


def num_subjects(shrink: int) -> int:
    """As many are in the galleries, with a template each."""
    return max(NUM_SUBJECTS // shrink, 2)


def write_meta(root: Path, shrink: int) -> None:
    """Meta files with IJB-C's numbers divided by `shrink`; no images."""
    rng = np.random.default_rng(0)
    num_images, num_templates, num_pairs = (n // shrink for n in (NUM_IMAGES, NUM_TEMPLATES, NUM_PAIRS))
    num_galleries = num_subjects(shrink)
    (root / "meta").mkdir(parents=True)
    names = pl.int_range(1, num_images + 1, eager=True).cast(pl.String) + ".jpg"
    template = np.sort(
        np.concatenate([np.arange(num_templates), rng.integers(0, num_templates, num_images - num_templates)])
    )
    points = {f"n{i}": rng.uniform(20, 200, num_images).round(3) for i in range(10)}
    tables = {
        "face_tid_mid": {
            "name": names,
            "template": template + 1,
            "media": rng.integers(0, num_images // 3, num_images),
        },
        "name_5pts_score": {"name": names, **points, "score": rng.uniform(0.1, 1, num_images).round(3)},
        "template_pair_label": {
            "first": np.sort(rng.integers(1, num_galleries + 1, num_pairs)),
            "second": rng.integers(num_galleries + 1, num_templates + 1, num_pairs),
            "same": (rng.random(num_pairs) < 0.00125).astype(np.int8),
        },
    }
    for name, table in tables.items():
        pl.DataFrame(table).write_csv(root / "meta" / f"ijbc_{name}.txt", separator=" ", include_header=False)


def loop_over_templates(embeddings: ImageEmbeddings, images: IjbImages, media: np.ndarray) -> np.ndarray:
    """The plain way: find the images of a template, then those of each media, one template after another."""
    features = (embeddings.plain + embeddings.mirrored) * images.detector_scores[:, None]
    result = np.empty((images.num_templates, features.shape[1]), np.float32)
    for template in range(images.num_templates):
        members = np.where(images.member_template == template)[0]
        parts = [
            features[images.member_image[members[media[members] == m]]].mean(axis=0) for m in np.unique(media[members])
        ]
        total = np.sum(parts, axis=0)
        result[template] = total / np.linalg.norm(total)
    return result


def scores_by_batch(templates: np.ndarray, pairs: Pairs) -> np.ndarray:
    """The plain way: products of gathered rows."""
    batches = (slice(start, start + BATCH) for start in range(0, len(pairs.first), BATCH))
    return np.concatenate([np.sum(templates[pairs.first[b]] * templates[pairs.second[b]], -1) for b in batches])


def write_embeddings(folder: Path, count: int) -> ImageEmbeddings:
    """Random ones, plain and mirrored, memory-mapped float32 (count, DIM)."""
    rng = np.random.default_rng(1)
    for name in ("plain", "mirrored"):
        array = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=(count, DIM))
        for start in range(0, count, 10_000):
            rng.standard_normal(dtype=np.float32, out=array[start : start + 10_000])
    return ImageEmbeddings(*(open_array(folder / f"{name}.npy") for name in ("plain", "mirrored")))


def make_lists(shrink: int) -> IdentificationLists:
    """Two galleries of a template a subject, and probes."""
    num_templates, enrolled = NUM_TEMPLATES // shrink, num_subjects(shrink)
    chosen = np.random.default_rng(2).permutation(num_templates)
    subjects, half = np.arange(num_templates) % enrolled, enrolled // 2
    parts = {"g1": slice(0, half), "g2": slice(half, enrolled), "probes": slice(enrolled, None)}
    made = {name: Subjects(chosen[part], subjects[part]) for name, part in parts.items()}
    return IdentificationLists({name: made[name] for name in ("g1", "g2")}, made["probes"])


def search(templates: np.ndarray, gallery: Subjects, probes: Subjects) -> dict[str, float]:
    """The plain way of 1:N: all scores at once, a probe's mate ranked in a loop."""
    scores = templates[probes.templates].astype(np.float64) @ templates[gallery.templates].astype(np.float64).T
    ranks, mates, others = [], [], []
    for row, subject in zip(scores.astype(np.float32), probes.subjects):
        own = np.flatnonzero(gallery.subjects == subject)
        if len(own):
            ranks.append((row >= row[own[0]]).sum())
            mates.append(row[own[0]])
        else:
            others.append(row.max())
    rates = {f"top{rank}": float((np.array(ranks) <= rank).mean()) for rank in RANKS}
    for fpir in FPIRS if others else ():
        threshold = sorted(others, reverse=True)[max(1, int(fpir * len(others))) - 1]
        rates[f"tpir@fpir={fpir}"] = float(((np.array(ranks) == 1) & (np.array(mates) > threshold)).mean())
    return rates


def plain_1_n(templates: np.ndarray, lists: IdentificationLists) -> dict[str, dict[str, float]]:
    """The rates in each gallery and in both together."""
    galleries = [*lists.galleries.values()]
    both = Subjects(*(np.concatenate([getattr(g, part) for g in galleries]) for part in ("templates", "subjects")))
    return {
        name: search(templates, gallery, lists.probes) for name, gallery in {**lists.galleries, "mixed": both}.items()
    }


def check_pair_rates(found: RocResult, curve: Curve, num_impostors: int, tolerance: float) -> None:
    """`AssertionError` unless AUC, curve and TAR at each FAR are scikit-learn's to within `tolerance`."""
    fpr, tpr, _ = curve

    def at(rates: np.ndarray) -> np.ndarray:
        """The largest TPR at or below each FPR."""
        return tpr[np.searchsorted(fpr, rates + 1e-12, "right") - 1]

    np.testing.assert_allclose(found.metrics["auc"], auc(fpr, tpr), rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.tpr, at(found.fpr), rtol=0, atol=tolerance)
    fars = np.array([far for far in FARS if far * num_impostors >= 1])
    tars = np.array([found.metrics[f"tar@far={far:.0e}"] for far in fars])
    lowest, highest = (at((fars + pairs / num_impostors).clip(0, 1)) for pairs in (-5, 5))  # as many may have one score
    assert (lowest - tolerance <= tars).all() and (tars <= highest + tolerance).all(), (tars, lowest, highest)


def check_1_n(found: IdentificationResult, expected: dict[str, dict[str, float]], tolerance: float) -> None:
    """`AssertionError` unless the rates in each gallery and in both are the plain way's to within `tolerance`."""
    for gallery, rates in expected.items():
        of_gallery = {name: rates[name] for name in found.metrics[gallery]}
        np.testing.assert_allclose(
            [*found.metrics[gallery].values()], [*of_gallery.values()], rtol=0, atol=tolerance, err_msg=gallery
        )


def run(bench: Bench, *, shrink: int = 1) -> None:
    root = bench.folder / "IJBC"
    write_meta(root, shrink)
    images = bench.compare("meta files", {"read_images": partial(read_images, root, "IJBC")})["read_images"]
    file = root / "meta" / "ijbc_template_pair_label.txt"
    ways = {"read_pairs": partial(read_pairs, images), "numpy.loadtxt": partial(np.loadtxt, file, np.int32)}
    pairs, lines = bench.compare("pair file", ways, NUM_PAIRS // shrink, "lines").values()
    listed = images.template_ids[pairs.first], images.template_ids[pairs.second], pairs.same
    np.testing.assert_array_equal(np.stack(listed, axis=1), lines)

    embeddings = write_embeddings(bench.folder, len(images.names))
    table = pl.read_csv(root / "meta" / "ijbc_face_tid_mid.txt", separator=" ", has_header=False, columns=[2])
    media = table.to_series().to_numpy()
    ways = {
        "template_features": partial(template_features, embeddings, images),
        "loop": partial(loop_over_templates, embeddings, images, media),
    }
    templates, looped = bench.compare("template features", ways, images.num_templates, "templates").values()
    np.testing.assert_allclose(templates, looped, atol=1e-5)

    ways = {
        "pair_scores": partial(pair_scores, templates, templates, pairs),
        "NumPy": partial(scores_by_batch, templates, pairs),
    }
    scores, plain_scores = bench.compare("scores", ways, len(pairs.first), "pairs").values()
    np.testing.assert_allclose(scores, plain_scores, atol=1e-5)

    ways = {
        "core": lambda: receiver_operating_characteristic(scores[pairs.same], scores[~pairs.same]),
        "scikit-learn": lambda: roc_curve(pairs.same, scores),
    }
    rates, curve = bench.compare("rates and curve", ways, len(pairs.first), "pairs").values()
    num_impostors = int((~pairs.same).sum())
    check_pair_rates(rates, curve, num_impostors, 1e-9)

    lists = make_lists(shrink)
    ways = {
        "evaluate_1_n": partial(evaluate_1_n, templates, templates, lists),
        "NumPy": partial(plain_1_n, templates, lists),
    }
    found, plain = bench.compare("1:N in three galleries", ways, len(lists.probes.templates), "probes").values()
    check_1_n(found, plain, 1e-9)

    def all_of_ours() -> tuple[RocResult, IdentificationResult]:
        listed = read_images(root, "IJBC")
        compared = read_pairs(listed)
        made = template_features(embeddings, listed)
        found = pair_scores(made, made, compared)
        rates = receiver_operating_characteristic(found[compared.same], found[~compared.same])
        return rates, evaluate_1_n(made, made, lists)

    def all_of_plain() -> tuple[Curve, dict[str, dict[str, float]]]:
        made = loop_over_templates(embeddings, images, media)
        return roc_curve(pairs.same, scores_by_batch(made, pairs)), plain_1_n(made, lists)

    ways = {"core, files read": all_of_ours, "NumPy, scikit-learn, files not read": all_of_plain}
    (rates, found), (curve, plain) = bench.compare("features, scores, curve and 1:N", ways).values()
    check_pair_rates(rates, curve, num_impostors, 3 / pairs.same.sum())
    mated = min(np.isin(lists.probes.subjects, gallery.subjects).sum() for gallery in lists.galleries.values())
    check_1_n(found, plain, 3 / mated)
