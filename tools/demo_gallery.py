"""The last steps of the demo: its old gallery is made, its upgrade planned, half done, searched, and completed."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
from commands import Commands

from core.builtin.ijb_gallery import IjbGallery, write_ijb_gallery
from core.evaluation.ijb_embeddings import embed_images
from core.evaluation.ijb_meta import IjbImages, read_images, require_meta
from core.gallery.planning.plan import Plan
from core.gallery.planning.report import FILE
from core.models.encoder import Encoder, load_encoder
from core.outputs import writing

__all__ = ["FOLDERS", "upgrade_gallery"]

FOLDERS = ("gallery", "gallery_files", "plan")
"""Below the demo's folder: they are made again each time."""
SHARES = (0.5, 1.0)
ASK_BOTH = ("stay", "side_by_side", "full_backfill")
"""Roads on which the old model searches what is not embedded again."""


def upgrade_gallery(out: Path, commands: Commands) -> tuple[dict[str, float], Path]:
    """Upgrade a gallery of the test's enrolled images from the model old to the model new; below the demo's `out`.

    Returns the rank-1 rate of queries of people who were not in the plan's sample at each step, and the plan's report.
    """
    gallery, files, plan = (out / name for name in FOLDERS)
    for folder in (gallery, files, plan):
        shutil.rmtree(folder, ignore_errors=True)
    files.mkdir()
    made = _write_files(out, files)
    tool = "tools/gallery.py"
    lists = ("--ids", files / "ids.txt", "--labels", files / "labels.txt", "--images", files / "entries.txt")
    commands.run(tool, "create", gallery, "--vectors", files / "old.npy", "--model", out / "old", *lists)
    rates = {"before": _search(commands, gallery, out / "old", files, made, "before")}
    commands.run(
        tool, "plan", gallery, "--new", out / "new", "--sample", files / "sample.txt", "--out", plan,
        "--num-workers", 0, "--device", "cpu",
    )  # fmt: skip
    advised = Plan.load(plan).recommendation
    road = ("--road", "side_by_side") if advised == "stay" else ()  # also where the sample is too small, as ORL's is
    both = ("--old-queries", files / "queries_old.npy") if advised in ASK_BOTH else ()
    for share in SHARES:
        how = ("--share", share, "--num-workers", 0, "--device", "cpu")
        commands.run(tool, "backfill", gallery, "--plan", plan, *road, *how)
        name = f"{100 * share:.0f} % embedded again"
        rates[name] = _search(commands, gallery, out / "new", files, made, f"at_{100 * share:.0f}", *both)
    commands.run(tool, "commit", gallery)
    return rates, plan / FILE


def _write_files(out: Path, files: Path) -> IjbGallery:
    """Images and lists, the stored vectors of the entries by the old model, and the queries by both models."""
    images = read_images(require_meta(out / "data" / "eval", "IJBC", one_to_n=True), "IJBC")
    encoders = {name: load_encoder(out / name) for name in ("old", "new")}
    made = write_ijb_gallery(images, encoders["old"].image_size, files)
    embeddings = {name: _embeddings(encoder, images, out) for name, encoder in encoders.items()}
    with writing(files):
        np.save(files / "old.npy", embeddings["old"][made.entries])
        for name in encoders:
            np.save(files / f"queries_{name}.npy", embeddings[name][made.queries])
    return made


def _embeddings(encoder: Encoder, images: IjbImages, out: Path) -> np.ndarray:
    """(N, D) of all images, which the evaluation has embedded already."""
    return np.asarray(embed_images(encoder, images, num_workers=0, cache=out / "embeddings").plain)


def _search(commands: Commands, gallery: Path, model: Path, files: Path, made: IjbGallery, name: str, *both) -> float:
    """Search the queries of a model, and return the rank-1 rate."""
    hits = files / f"hits_{name}.parquet"
    queries = ("--queries", files / f"queries_{model.name}.npy", "--model", model, *both)
    commands.run("tools/gallery.py", "search", gallery, *queries, "-k", 5, "--out", hits)
    first = pl.read_parquet(hits).filter(pl.col("rank") == 1)
    return made.rank_1(first["query"].to_numpy(), first["id"].to_list())
