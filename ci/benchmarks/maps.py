"""Maps: time and memory beside bare matrix products, accuracy and time beside scikit-learn and isotrieve.

    python ci/benchmarks/maps.py                                 518,000 pairs, 1,000,000 vectors; 6 GB of disk
    python ci/benchmarks/maps.py --pairs 50000 --vectors 100000  a tenth of it
    python ci/benchmarks/maps.py --stores features/A features/B  accuracy on these stores, not on made-up spaces
    python ci/benchmarks/maps.py --pairs 0 ...                   accuracy alone

The accuracy is that of a gallery of people who are not in the pairs, one image each, searched by their other images:
the share of probes whose nearest entry is of the same person. isotrieve is not among this project's packages:

    pip install --no-deps --target /tmp/isotrieve isotrieve==0.4.0
    PYTHONPATH=/tmp/isotrieve python ci/benchmarks/maps.py
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from private_memory import private_memory
from sklearn.linear_model import RidgeCV

from core.embeddings.store import EmbeddingStore
from core.models.maps import fit_map

BLOCK = 2048
Transform = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pairs", 518_000), ("vectors", 1_000_000), ("dim", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--stores", type=Path, nargs=2, metavar=("OLD", "NEW"), help="of the same images, with labels")
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    if args.pairs:
        with tempfile.TemporaryDirectory() as folder:
            measure_speed(Path(folder), args.pairs, args.vectors, args.dim)
    if args.stores is None:
        compare_accuracy(made_up_spaces())
    else:
        old, new = (EmbeddingStore.open(path) for path in args.stores)
        compare_accuracy(Spaces(np.array(old.features), np.array(new.features), np.array(old.labels())))


def measure_speed(folder: Path, num_pairs: int, num_vectors: int, dim: int) -> None:
    """Fitting and mapping, each after the products that it cannot do without, on memory-mapped files."""
    source, target = (write_vectors(folder / f"{name}.npy", num_pairs, dim) for name in ("source", "target"))
    print(f"fitting {num_pairs:,} pairs of {dim} numbers, each {source.nbytes / 2**30:.2f} GiB on disk")
    ridge, bare = best(lambda: fit_map("ridge", source, target), lambda: products(source, target, with_gram=True))
    report("ridge", ridge, bare)
    rotation, bare = best(
        lambda: fit_map("procrustes", source, target), lambda: products(source, target, with_gram=False)
    )
    report("procrustes", rotation, bare)
    fitted = fit_map("ridge", source[:10_000], target[:10_000])
    vectors = write_vectors(folder / "vectors.npy", num_vectors, dim)
    weight = np.ascontiguousarray(fitted.module.weight.numpy().T)
    print(f"mapping {num_vectors:,} vectors, result {vectors.nbytes / 2**30:.2f} GiB")
    mapped, bare = best(lambda: fitted(vectors), lambda: vectors @ weight)
    report("map", mapped, bare)


@dataclass
class Measured:
    """The shortest of some runs, and the most memory of any."""

    seconds: float = float("inf")
    gib: float = 0.0


def best(*steps: Callable[[], object], rounds: int = 3) -> list[Measured]:
    """Run the steps in turn, several times."""
    measured = [Measured() for _ in steps]
    for _ in range(rounds):
        for step, result in zip(steps, measured):
            with private_memory() as peak:
                started = time.perf_counter()
                step()
                result.seconds = min(result.seconds, time.perf_counter() - started)
            result.gib = max(result.gib, peak[0])
    return measured


def report(name: str, ours: Measured, bare: Measured) -> None:
    ratio = ours.seconds / bare.seconds
    print(
        f"  {name:<12}{ours.seconds:8.2f} s, bare products {bare.seconds:6.2f} s: {ratio:.2f} times as long; "
        f"memory {ours.gib:.2f} GiB, bare {bare.gib:.2f} GiB",
        flush=True,
    )


def products(source: np.ndarray, target: np.ndarray, with_gram: bool) -> None:
    """V'U and, for a ridge, V'V, as they are, without normalising a row."""
    cross, gram = np.zeros((source.shape[1], target.shape[1])), np.zeros((source.shape[1],) * 2)
    for start in range(0, len(source), BLOCK):
        v, u = source[start : start + BLOCK], target[start : start + BLOCK]
        cross += v.T @ u
        if with_gram:
            gram += v.T @ v


def write_vectors(path: Path, count: int, dim: int) -> np.ndarray:
    """Random vectors float32 (count, dim) in a file, memory-mapped."""
    rng = np.random.default_rng(count)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, dim))
    for start in range(0, count, BLOCK):
        block = array[start : start + BLOCK]
        block[:] = rng.standard_normal(block.shape, dtype=np.float32)
    array.flush()
    return np.load(path, mmap_mode="r")


@dataclass
class Spaces:
    """Vectors of the same images in two spaces, and the people on them."""

    old: np.ndarray
    new: np.ndarray
    labels: np.ndarray


def made_up_spaces(num_people: int = 3000, images: int = 8, size: int = 128) -> Spaces:
    """Two networks' views of people: what both see of an image, bent differently, with an error of each one's own."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_people), images)
    seen = rng.standard_normal((num_people, 64))[labels] + 0.6 * rng.standard_normal((len(labels), 64))

    def embed(noise: float) -> np.ndarray:
        inner, outer = rng.standard_normal((64, 256)) / 8, rng.standard_normal((256, size)) / 16
        bent = np.tanh((seen + noise * rng.standard_normal(seen.shape)) @ inner) @ outer
        return (bent + 0.1 * rng.standard_normal(size)).astype(np.float32)

    return Spaces(embed(0.9), embed(0.3), labels)


def compare_accuracy(spaces: Spaces) -> None:
    """Fit on the pairs of half of the people, and test on the others."""
    people = np.random.default_rng(0).permutation(spaces.labels.max() + 1)
    fitted = np.isin(spaces.labels, people[: len(people) // 2])
    tested = ~fitted
    labels = spaces.labels[tested]
    gallery = np.zeros(len(labels), bool)
    gallery[np.unique(labels, return_index=True)[1]] = True

    def find(probes: np.ndarray, entries: np.ndarray) -> np.ndarray:
        """Whether the first that each probe finds is of its own person."""
        scores = unit(probes[~gallery]) @ unit(entries[gallery]).T
        return labels[gallery][scores.argmax(axis=1)] == labels[~gallery]

    old, new = spaces.old[tested], spaces.new[tested]
    print(f"\n{fitted.sum():,} pairs; {gallery.sum():,} people, {(~gallery).sum():,} probes; rank-1 in per cent")
    ends = {"old/old": find(old, old), "new/new": find(new, new), "new/old": find(new, old)}
    print("  " + ", ".join(f"{name} {100 * found.mean():.2f}" for name, found in ends.items()))
    print("  in brackets ours - theirs, and its deviation by the probes that one of the two alone finds (McNemar)")
    print(f"  {'':<34}{'gallery mapped':>18}{'queries mapped':>36}")
    ours: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, fit in our_maps(spaces.labels[fitted]):
        ours[name] = report_roads(name, fit, spaces, fitted, lambda f, b: (find(new, f(old)), find(b(new), old)))
    for name, counterpart, fit in (("scikit-learn RidgeCV", "ridge", fit_ridge_cv), *isotrieve_maps()):
        report_roads(name, fit, spaces, fitted, lambda f, b: (find(new, f(old)), find(b(new), old)), ours[counterpart])


def report_roads(
    name: str,
    fit: Callable[[np.ndarray, np.ndarray], Transform],
    spaces: Spaces,
    fitted: np.ndarray,
    find: Callable[[Transform, Transform], tuple[np.ndarray, np.ndarray]],
    ours: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit both ways and print a line; returns which probes find their person in the mapped gallery, and mapped."""
    forward, forward_seconds = timed(fit, spaces.old[fitted], spaces.new[fitted])
    backward, backward_seconds = timed(fit, spaces.new[fitted], spaces.old[fitted])
    found = find(forward, backward)
    line = f"  {name:<34}"
    for number, seconds in enumerate((forward_seconds, backward_seconds)):
        compared = "" if ours is None else paired_difference(ours[number], found[number])
        line += f"{100 * found[number].mean():6.2f} {compared:<17}{seconds:6.2f} s  "
    print(line.rstrip(), flush=True)
    return found


def paired_difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """In points, of the shares of the same probes that are found, and its standard deviation."""
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    scale = 100 / len(ours)
    return f"({scale * (only_ours - only_theirs):+.2f} ± {scale * (only_ours + only_theirs) ** 0.5:.2f})"


def our_maps(labels: np.ndarray) -> list[tuple[str, Callable[[np.ndarray, np.ndarray], Transform]]]:
    kinds = ("procrustes", {}), ("procrustes", {"centred": True}), ("ridge", {}), ("low_rank", {}), ("mlp", {})
    return [
        (f"{kind} {options or ''}".rstrip(), lambda source, target, kind=kind, options=options: fit_map(
            kind, source, target, labels, **options
        ))
        for kind, options in kinds
    ]  # fmt: skip


def fit_ridge_cv(source: np.ndarray, target: np.ndarray) -> Transform:
    """With the grid of isotrieve."""
    model = RidgeCV(alphas=np.logspace(-3, 3, 25)).fit(unit(source), unit(target))
    return lambda vectors: model.predict(unit(vectors))


def isotrieve_maps() -> list[tuple[str, str, Callable[[np.ndarray, np.ndarray], Transform]]]:
    """isotrieve's maps of vectors without labels, if it is installed, each with the name of ours to compare it with.

    It normalises no input by itself.
    """
    try:
        from isotrieve.mapping import (
            LowRankAffineMapping,
            OrthogonalProcrustesMapping,
            ProcrustesDiagMapping,
            RidgeMapping,
        )
    except ImportError:
        print("  (isotrieve is not installed; --help says how to compare with it)")
        return []

    def fitting(kind: type, **options: object) -> Callable[[np.ndarray, np.ndarray], Transform]:
        def fit(source: np.ndarray, target: np.ndarray) -> Transform:
            mapping = kind(**options).fit(unit(source), unit(target))
            return lambda vectors: mapping.transform(unit(vectors))

        return fit

    return [
        ("isotrieve Procrustes", "procrustes", fitting(OrthogonalProcrustesMapping)),
        ("isotrieve Procrustes, diagonal", "procrustes", fitting(ProcrustesDiagMapping)),
        ("isotrieve ridge", "ridge", fitting(RidgeMapping)),
        ("isotrieve low rank 64", "low_rank", fitting(LowRankAffineMapping, rank=64)),
    ]


def timed(fit: Callable, *arguments: np.ndarray) -> tuple[Transform, float]:
    """The fitted map and its seconds."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(*arguments), time.perf_counter() - started


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
