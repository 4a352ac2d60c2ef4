"""Maps: time and memory beside bare matrix products, accuracy and time beside scikit-learn and isotrieve.

    python -m ci.benchmarks maps                                 518,000 pairs, 1,000,000 vectors; 6 GB of disk
    python -m ci.benchmarks maps --pairs 50000 --vectors 100000  a tenth of it
    python -m ci.benchmarks maps --stores features/A features/B  accuracy on these stores, not on made-up spaces
    python -m ci.benchmarks maps --pairs 0                       accuracy alone

The accuracy is that of a gallery of people who are not in the pairs, one image each, searched by their other images:
the share of probes whose nearest entry is of the same person, with ours - theirs in brackets, and its deviation by the
probes that one of the two alone finds (McNemar). isotrieve is not among this project's packages:

    pip install --no-deps --target /tmp/isotrieve isotrieve==0.4.0
    PYTHONPATH=/tmp/isotrieve python -m ci.benchmarks maps
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from sklearn.linear_model import RidgeCV

from ci.benchmarks.harness.bench import Bench, digits, measure
from ci.benchmarks.harness.vectors import unit, write_unit_vectors
from core.embeddings.store import EmbeddingStore
from core.models.maps import fit_map

QUICK = {"pairs": 400, "vectors": 400, "dim": 8, "people": 40}
BLOCK = 2048
Transform = Callable[[np.ndarray], np.ndarray]
Fit = Callable[[np.ndarray, np.ndarray], Transform]


def run(
    bench: Bench,
    *,
    pairs: int = 518_000,
    vectors: int = 1_000_000,
    dim: int = 512,
    people: int = 3_000,
    stores: tuple = (),
) -> None:
    if pairs:
        compare_speed(bench, pairs, vectors, dim)
    if not stores:
        compare_accuracy(bench, made_up_spaces(people))
    else:
        old, new = (EmbeddingStore.open(path) for path in stores)
        compare_accuracy(bench, Spaces(np.array(old.features), np.array(new.features), np.array(old.labels())))


def compare_speed(bench: Bench, num_pairs: int, num_vectors: int, dim: int) -> None:
    """Fitting and mapping, each beside the products that it cannot do without, on memory-mapped files."""
    source, target = (write_unit_vectors(bench.folder / f"{seed}.npy", num_pairs, dim, seed) for seed in (0, 1))
    for kind in ("ridge", "procrustes"):
        ways = {
            f"fit_map {kind}": partial(fit_map, kind, source, target),
            "bare products": partial(products, source, target, with_gram=kind == "ridge"),
        }
        bench.compare(f"fit {num_pairs:,} x {dim}", ways, num_pairs, "pairs")
    fitted = fit_map("ridge", source[:10_000], target[:10_000])
    vectors = write_unit_vectors(bench.folder / "vectors.npy", num_vectors, dim, 2)
    weight = np.ascontiguousarray(fitted.module.weight.numpy().T)
    ways = {"map": lambda: fitted(vectors), "bare product": lambda: vectors @ weight}
    bench.compare(f"map {num_vectors:,} x {dim}", ways, num_vectors, "vectors")


def products(source: np.ndarray, target: np.ndarray, with_gram: bool) -> None:
    """V'U and, for a ridge, V'V, as they are, without normalising a row."""
    cross, gram = np.zeros((source.shape[1], target.shape[1])), np.zeros((source.shape[1],) * 2)
    for start in range(0, len(source), BLOCK):
        v, u = source[start : start + BLOCK], target[start : start + BLOCK]
        cross += v.T @ u
        if with_gram:
            gram += v.T @ v


@dataclass
class Spaces:
    """Vectors of the same images in two spaces, and the people on them."""

    old: np.ndarray
    new: np.ndarray
    labels: np.ndarray


def made_up_spaces(num_people: int, images: int = 8, size: int = 128) -> Spaces:
    """Two networks' views of people: what both see of an image, bent differently, with an error of each one's own."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_people), images)
    seen = rng.standard_normal((num_people, 64))[labels] + 0.6 * rng.standard_normal((len(labels), 64))

    def embed(noise: float) -> np.ndarray:
        inner, outer = rng.standard_normal((64, 256)) / 8, rng.standard_normal((256, size)) / 16
        bent = np.tanh((seen + noise * rng.standard_normal(seen.shape)) @ inner) @ outer
        return (bent + 0.1 * rng.standard_normal(size)).astype(np.float32)

    return Spaces(embed(0.9), embed(0.3), labels)


def compare_accuracy(bench: Bench, spaces: Spaces) -> None:
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
    ends = {"old/old": find(old, old), "new/new": find(new, new), "new/old": find(new, old)}
    bench.note(f"rank-1: {', '.join(f'{name} {100 * found.mean():.2f}' for name, found in ends.items())}")

    def roads(fit: Fit, ours: tuple[np.ndarray, ...] = ()) -> tuple[tuple[np.ndarray, ...], list[str]]:
        """Which probes find their person in the mapped gallery, and mapped; the cells of both roads."""
        forward, forward_took = measure(partial(quietly, fit, spaces.old[fitted], spaces.new[fitted]))
        backward, backward_took = measure(partial(quietly, fit, spaces.new[fitted], spaces.old[fitted]))
        found, cells = (find(new, forward(old)), find(backward(new), old)), []
        for number, took in enumerate((forward_took, backward_took)):
            compared = f" {paired_difference(ours[number], found[number])}" if ours else ""
            cells += [f"{100 * found[number].mean():.2f}{compared}", digits(took.seconds)]
        return found, cells

    ours, rows = {}, []
    for name, fit in our_maps(spaces.labels[fitted]):
        ours[name], cells = roads(fit)
        rows.append([name, *cells])
    for name, counterpart, fit in (("scikit-learn RidgeCV", "ridge", fit_ridge_cv), *isotrieve_maps(bench)):
        rows.append([name, *roads(fit, ours[counterpart])[1]])
    title = f"Rank-1: {fitted.sum():,} pairs, {gallery.sum():,} people, {(~gallery).sum():,} probes"
    bench.table(title, ["map", "gallery mapped", "fit s", "queries mapped", "fit s back"], rows)


def paired_difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """In points, of the shares of the same probes that are found, and its standard deviation."""
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    scale = 100 / len(ours)
    return f"({scale * (only_ours - only_theirs):+.2f} ± {scale * (only_ours + only_theirs) ** 0.5:.2f})"


def our_maps(labels: np.ndarray) -> list[tuple[str, Fit]]:
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


def isotrieve_maps(bench: Bench) -> list[tuple[str, str, Fit]]:
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
        bench.note("isotrieve is not installed; --help says how to compare with it")
        return []

    def fitting(kind: type, **options: object) -> Fit:
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


def quietly(fit: Fit, source: np.ndarray, target: np.ndarray) -> Transform:
    """The fitted map, without warnings of ill-conditioned grids."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(source, target)
