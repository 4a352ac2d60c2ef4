"""Time of an IJB-C test's steps after the embedding, at IJB-C's size, beside plain loops on a part of the same data.

python ci/benchmarks/ijb_pairs.py            469,375 images x 512, 23,124 templates, 15,658,489 pairs; 3 GB of disk
python ci/benchmarks/ijb_pairs.py --quick    a twentieth of it
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch

from core.evaluation.identification import evaluate_1_n
from core.evaluation.ijb import pair_scores, template_features
from core.evaluation.ijb_embeddings import ImageEmbeddings
from core.evaluation.ijb_meta import IdentificationLists, Subjects, read_images, read_pairs
from core.evaluation.roc import receiver_operating_characteristic

NUM_IMAGES, NUM_TEMPLATES, NUM_PAIRS, NUM_SUBJECTS, DIM = 469_375, 23_124, 15_658_489, 3_531, 512
LOOP_TEMPLATES, LOOP_PAIRS = 200, 20_000


def write_meta(root: Path, shrink: int) -> None:
    """Meta files with IJB-C's numbers divided by `shrink`; no images."""
    rng = np.random.default_rng(0)
    num_images, num_templates, num_pairs = (n // shrink for n in (NUM_IMAGES, NUM_TEMPLATES, NUM_PAIRS))
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
            "first": np.sort(rng.integers(1, num_templates + 1, num_pairs)),
            "second": rng.integers(1, num_templates + 1, num_pairs),
            "same": (rng.random(num_pairs) < 0.00125).astype(np.int8),
        },
    }
    for name, table in tables.items():
        pl.DataFrame(table).write_csv(root / "meta" / f"ijbc_{name}.txt", separator=" ", include_header=False)


def timed(what: str, step: Callable, *arguments: object) -> tuple[object, float]:
    """Run a step, print its time, return what it gave and the seconds."""
    started = time.perf_counter()
    result = step(*arguments)
    seconds = time.perf_counter() - started
    print(f"{what:<58}{seconds:9.2f} s", flush=True)
    return result, seconds


def loop_over_templates(features: np.ndarray, images, media: np.ndarray, count: int) -> np.ndarray:
    """The plain way: find the images of a template, then those of each media, one template after another."""
    result = []
    for template in range(count):
        members = np.where(images.member_template == template)[0]
        parts = [
            features[images.member_image[members[media[members] == m]]].mean(axis=0) for m in np.unique(media[members])
        ]
        total = np.sum(parts, axis=0)
        result.append(total / np.linalg.norm(total))
    return np.array(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of IJB-C")
    shrink = 20 if parser.parse_args().quick else 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "IJBC"
        timed("(writing synthetic meta files)", write_meta, root, shrink)
        images, _ = timed("reading images and templates", read_images, root, "IJBC")
        pairs, _ = timed(f"reading {NUM_PAIRS // shrink:,} pairs", read_pairs, images)

        rng = np.random.default_rng(0)
        arrays = []
        for name in ("plain", "mirrored"):
            array = np.lib.format.open_memmap(
                Path(folder) / f"{name}.npy", mode="w+", dtype=np.float32, shape=(len(images.names), DIM)
            )
            for start in range(0, len(array), 10_000):
                array[start : start + 10_000] = rng.standard_normal(
                    array[start : start + 10_000].shape, dtype=np.float32
                )
            arrays.append(array)
        embeddings = ImageEmbeddings(*arrays)
        templates, fast = timed(f"templates of {len(images.names):,} images", template_features, embeddings, images)
        media = (
            pl.read_csv(root / "meta" / "ijbc_face_tid_mid.txt", separator=" ", has_header=False, columns=[2])
            .to_series()
            .to_numpy()
        )
        last = images.member_image[images.member_template < LOOP_TEMPLATES].max() + 1
        weighted = (arrays[0][:last] + arrays[1][:last]) * images.detector_scores[:last, None]
        looped, slow = timed(
            f"  loop over {LOOP_TEMPLATES} templates", loop_over_templates, weighted, images, media, LOOP_TEMPLATES
        )
        np.testing.assert_allclose(templates[:LOOP_TEMPLATES], looped, atol=1e-5)
        print(
            f"  the loop for all templates would take {slow * images.num_templates / LOOP_TEMPLATES:.0f} s: "
            f"{slow * images.num_templates / LOOP_TEMPLATES / fast:.0f} times as long"
        )

        scores, fast = timed("scores of all pairs", pair_scores, templates, templates, pairs)
        part = slice(0, LOOP_PAIRS)
        looped, slow = timed(
            f"  loop over {LOOP_PAIRS:,} pairs",
            lambda: [templates[a] @ templates[b] for a, b in zip(pairs.first[part], pairs.second[part])],
        )
        np.testing.assert_allclose(scores[part], looped, atol=1e-5)
        print(
            f"  the loop for all pairs would take {slow * len(scores) / LOOP_PAIRS:.0f} s: "
            f"{slow * len(scores) / LOOP_PAIRS / fast:.0f} times as long"
        )
        timed("rates and curve", lambda: receiver_operating_characteristic(scores[pairs.same], scores[~pairs.same]))

        num_subjects = NUM_SUBJECTS // shrink
        chosen = rng.permutation(images.num_templates)
        subjects = np.arange(images.num_templates) % num_subjects
        half = num_subjects // 2
        lists = IdentificationLists(
            {name: Subjects(chosen[p], subjects[p]) for name, p in
             (("g1", slice(0, half)), ("g2", slice(half, num_subjects)))},
            Subjects(chosen[num_subjects:], subjects[num_subjects:]),
        )  # fmt: skip
        timed(
            f"1:N, {len(lists.probes.templates):,} probes in three galleries", evaluate_1_n, templates, templates, lists
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak resident memory {peak:.1f} GiB (memory-mapped embeddings included), {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
