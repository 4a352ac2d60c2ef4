"""The plan of the upgrade of a gallery that is there, with its report."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from core.errors import UserError
from core.gallery.documents import read_upgrade
from core.gallery.entry_images import image_place
from core.gallery.model_versions import version_of
from core.gallery.planning.cost import Holdings, Rate, measure_rate
from core.gallery.planning.make_plan import make_plan
from core.gallery.planning.plan import Plan
from core.gallery.planning.report import FILE, write_report
from core.gallery.planning.sample import Sample, pair_sample
from core.gallery.planning.sample_images import SampleImages, embed_sample
from core.gallery.store import Store, Version
from core.images.source import ImageSource
from core.models.encoder import Encoder, load_encoder
from core.outputs import replaced_atomically, require_replaceable

__all__ = ["plan_from_images", "plan_from_pairs"]


def plan_from_images(
    store: Store,
    new: Encoder,
    path: str | Path,
    images: str | Path,
    out: str | Path,
    words: Sequence[str],
    *,
    batch_size: int = 128,
    num_workers: int = 2,
    place: str | Path | None = None,
    far: float = 1e-3,
    seed: int = 0,
) -> Plan:
    """Plan an upgrade to `new`, the model argument `path`, on images with identities (as of `sample_images`).

    Writes the plan's folder `out`, with the report. `words`: how a command line names the gallery. `place`: of the
    gallery's images, if it is not stored with them (`core.gallery.entry_images`). Others as of `make_plan`.
    `UserError` also if the gallery's own model is not at hand.
    """
    old = searched_version(store, out)
    if old.model is None:
        raise UserError(
            f"the model {old.name} is not at hand, so the sample cannot be embedded by it: give vectors of the same "
            "images by both models (--pairs)"
        )
    before = load_encoder(old.model, device=new.device)
    if before.fingerprint != old.key:
        raise UserError(f"the model at {old.model} is not the one that made the gallery ({old.key[:12]}): put it there")
    found = SampleImages(images)
    sample = embed_sample(found, before, new, batch_size, num_workers)
    data = found.of_size(new.image_size)
    rate = measure_rate(new, data, min(batch_size, data.num_images), num_workers)
    return _write(store, sample, old, _version(new, path), out, words, place, rate, data, far, seed)


def plan_from_pairs(
    store: Store,
    new: Encoder | None,
    path: str | Path,
    pairs: tuple[str | Path, str | Path],
    labels: str | Path,
    out: str | Path,
    words: Sequence[str],
    *,
    place: str | Path | None = None,
    far: float = 1e-3,
    seed: int = 0,
) -> Plan:
    """The same on files of vectors by both models; `new` is None for one that is not at hand (`path` name:TEXT)."""
    old = searched_version(store, out)
    sample = pair_sample(*pairs, labels)
    version = version_of(path, sample.new.shape[1]) if new is None else _version(new, path)
    return _write(store, sample, old, version, out, words, place, None, None, far, seed)


def _version(new: Encoder, path: str | Path) -> Version:
    return Version(new.fingerprint, new.name, new.embedding_size, str(Path(path).absolute()))


def searched_version(store: Store, out: str | Path) -> Version:
    """The version that an upgrade starts from; `UserError` if one is under way, or no plan can be written to `out`."""
    require_replaceable(out, folder=True)
    upgrade, versions = read_upgrade(store), store.versions()
    if upgrade is not None:
        raise UserError(
            f"{store.place}: an upgrade to {versions[upgrade.new].name} is under way: commit it or roll it back before "
            "another one is planned"
        )
    if not versions:
        raise UserError(f"{store.place} has no vectors: create the gallery first")
    return next(iter(versions.values()))  # others are left by a beginning that was killed


def _write(
    store: Store,
    sample: Sample,
    old: Version,
    new: Version,
    out: str | Path,
    words: Sequence[str],
    place: str | Path | None,
    rate: Rate | None,
    images: ImageSource | None,
    far: float,
    seed: int,
) -> Plan:
    plan = make_plan(sample, old, new, holdings(store, old, place), rate=rate, far=far, seed=seed)
    with ExitStack() as stack:
        folder = Path(out)
        if not folder.is_dir():  # in one that is there, others' files stay
            folder = stack.enter_context(replaced_atomically(out))
        plan.save(folder)
        write_report(plan, folder / FILE, words, out, images)
    return plan


def holdings(store: Store, version: Version, place: str | Path | None = None) -> Holdings:
    """What a plan must know of a gallery that is searched by a version. Memory: its classes.

    Its images are all at a `place` (`core.gallery.entry_images`), or else where the entries say.
    """
    if place is not None:
        image_place(place)
    images, labelled, classes = 0, 0, set()
    for entries in store.entries():
        images += sum(image is not None for image in entries.images)
        known = [label for label in entries.labels if label is not None]
        labelled += len(known)
        classes.update(known)
    first = next(store.entries(size=1), None)
    item = 4 if first is None else store.vectors(version.key, first.rows).dtype.itemsize
    return Holdings(
        entries=len(store),
        images=images if place is None else len(store),
        vector_bytes=store.counts()[version.key] * version.size * item,
        labelled=0 < len(classes) < labelled,
    )
