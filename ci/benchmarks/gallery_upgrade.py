"""Upgrades of a gallery, step by step: what is found at each step, and what becomes of the false accept rate.

    python -m ci.benchmarks gallery_upgrade --seeds work_dirs/benchmark/glyphs/seed_*

Each folder is a seed's of tools/benchmark.py --dataset glyphs, scenario opclass, with the models independent, mixbct
and bct. The gallery has the enrolled images of the test, one vector each; the upgrade is planned on the images of half
of the people; the queries are single images of the others. The gallery is backfilled to 0, 10 ... 100 % in the plan's
order and searched by `Gallery.search` at each step. The FAR is that of pairs of query and entry of two people who were
not in the sample, at the threshold max_far=1e-3: the calibration has seen neither.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ci.benchmarks.harness.bench import Bench, SetUpError
from ci.benchmarks.harness.vectors import unit
from core.builtin.ijb_gallery import IjbGallery, write_ijb_gallery
from core.evaluation.ijb_embeddings import embed_images
from core.evaluation.ijb_meta import read_images, require_meta
from core.gallery import Gallery
from core.gallery.backfill import BackfillOptions
from core.gallery.planning.plan import Plan
from core.gallery.planning.plan_upgrade import plan_from_pairs
from core.models.encoder import load_encoder

RUNS = (("independent", "gallery_map"), ("independent", "query_map"), ("mixbct", "direct"), ("mixbct", "gallery_map"),
        ("bct", "direct"), ("bct", "gallery_map"))  # fmt: skip
"""New model, and how the part that is not embedded again is searched."""
SHARES = np.linspace(0, 1, 11)
FAR = 1e-3
OPTIONS = BackfillOptions(num_workers=0)


@dataclass(frozen=True)
class Step:
    """What was measured at a share."""

    rank_1: float
    far: float
    """Realised, at an estimated one of `FAR`."""
    accepted: int
    """Impostor pairs at or below it, of which the rate was counted."""


def run(bench: Bench, *, seeds: tuple = ()) -> None:
    if not seeds:
        raise SetUpError("gallery_upgrade needs --seeds, folders of tools/benchmark.py with their trained models")
    for folder in map(Path, seeds):
        work = bench.folder / folder.name
        work.mkdir()
        measure_seed(bench, folder, work)


def measure_seed(bench: Bench, folder: Path, work: Path) -> None:
    """All upgrades of a seed, printed as they are measured."""
    images = read_images(require_meta(folder / "data" / "eval", "IJBC", one_to_n=True), "IJBC")
    places = {"old": folder / "old_class"} | {name: folder / "opclass" / name for name, _ in RUNS}
    embeddings, made = {}, None
    for name, place in places.items():
        encoder = load_encoder(place)
        embeddings[name] = np.asarray(embed_images(encoder, images, num_workers=0, cache=work / "embeddings").plain)
        made = made or write_ijb_gallery(images, encoder.image_size, work)
    assert made is not None, "there are models"
    subjects = made.subjects
    np.save(work / "old.npy", embeddings["old"][made.entries])
    np.save(work / "sample_old.npy", embeddings["old"][made.sample])
    (work / "identities.txt").write_text("".join(f"{subjects[row]}\n" for row in made.sample))
    bench.note(
        f"{folder.name}: {len(made.entries)} entries, {len(made.sample)} images sampled, {len(made.queries)} queries"
    )
    for name, road in RUNS:
        own = rank_1_of(embeddings[name], embeddings[name], made)
        before = rank_1_of(embeddings["old"], embeddings["old"], made)
        np.save(work / "sample_new.npy", embeddings[name][made.sample])
        shutil.rmtree(work / "gallery", ignore_errors=True)
        lists = (work / "ids.txt", work / "labels.txt", work / "entries.txt")
        with Gallery.create(work / "gallery", work / "old.npy", places["old"], *lists) as gallery:
            vectors = (work / "sample_old.npy", work / "sample_new.npy")
            new, out = load_encoder(places[name]), work / "plan"
            plan = plan_from_pairs(gallery.store, new, places[name], vectors, work / "identities.txt", out, ["gallery"])
            steps = []
            for share in SHARES:
                gallery.backfill(work / "plan", float(share), OPTIONS, road=road)
                steps.append(search(gallery, places[name], embeddings, name, made))
        report(bench, f"{folder.name}, {name}, {road}", plan, before, own, steps)


def search(gallery: Gallery, model: Path, embeddings: dict[str, np.ndarray], name: str, made: IjbGallery) -> Step:
    """Rank-1 of the queries, and the realised FAR."""
    queries = embeddings[name][made.queries]
    row_of = dict(zip(made.names, range(len(made.names))))
    subjects, asked = made.subjects, made.subjects[made.queries]
    first = gallery.search(queries, model, 1).hits
    rank_1 = made.rank_1(first["query"].to_numpy(), first["id"].to_list())
    accepted = gallery.search(queries, model, len(made.entries), max_far=FAR).hits
    query, entry = accepted["query"].to_numpy(), np.array([row_of[one] for one in accepted["id"]], dtype=int)
    unseen = ~np.isin(subjects[made.entries], subjects[made.sample])
    impostors = (subjects[made.entries[unseen]][None] != asked[:, None]).sum()
    wrong = (subjects[entry] != asked[query]) & ~np.isin(subjects[entry], subjects[made.sample])
    return Step(rank_1, float(wrong.sum() / impostors), int(wrong.sum()))


def rank_1_of(queries: np.ndarray, gallery: np.ndarray, made: IjbGallery) -> float:
    """By all cosines at once: the plain way, of a gallery of one version."""
    entries, asked = (
        unit(vectors[rows].astype(np.float64)) for vectors, rows in ((gallery, made.entries), (queries, made.queries))
    )
    nearest = made.entries[(asked @ entries.T).argmax(axis=1)]
    return float((made.subjects[nearest] == made.subjects[made.queries])[made.enrolled].mean())


def report(bench: Bench, title: str, plan: Plan, before: float, own: float, steps: list[Step]) -> None:
    """The table of an upgrade, and what it should show."""
    rates = np.array([step.rank_1 for step in steps])
    fars = np.array([step.far for step in steps]) / FAR
    rows = [
        [f"{share:.0%}", f"{100 * step.rank_1:.2f}", f"{far:.2f}", str(step.accepted)]
        for share, step, far in zip(SHARES, steps, fars)
    ]
    bench.table(title, ["backfilled", "rank-1", f"FAR / {FAR:g}", "impostors accepted"], rows)
    verdicts = {
        "ends at new/new": abs(rates[-1] - own) < 1e-9,
        "above old/old throughout": bool((rates > before).all()),
        "FAR within a factor of 1.5": bool((np.abs(np.log(fars)) < np.log(1.5)).all()),
    }
    told = "; ".join(f"{what}: {'yes' if holds else 'no'}" for what, holds in verdicts.items())
    fall = 100 * np.maximum(-np.diff(rates), 0).max()
    bench.note(
        f"advised: {plan.recommendation}; order: {plan.order}; old/old {100 * before:.2f}, new/new {100 * own:.2f}; "
        f"largest fall {fall:.2f}; {told}"
    )
