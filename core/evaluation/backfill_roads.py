"""Every road of a backfill on an evaluation tree: which features it compares, in which orders it can go, its curves."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from core.data.open_dataset import ImageDataset
from core.errors import UserError
from core.evaluation.backfill import Calibrations, Curve, Features, identification_curves, retrieval_curves
from core.evaluation.backfill_orders import class_distances, margins, mean_over_members, random_order, true_distances
from core.evaluation.calibration import fit_calibration
from core.evaluation.descriptors import describe_images, image_sides
from core.evaluation.ijb import template_features, template_means
from core.evaluation.ijb_embeddings import embed_images
from core.evaluation.ijb_meta import IdentificationLists, read_identification, read_images
from core.evaluation.retrieval_images import RetrievalImages
from core.evaluation.revisited_files import RevisitedTest
from core.images.loader import load_batches
from core.models.encoder import Encoder
from core.models.mapped import Rows
from core.models.shared_space import spaces_of

__all__ = ["BackfillModels", "BackfillOptions", "Roads", "run_ijb", "run_retrieval"]

logger = logging.getLogger(__name__)
CALIBRATION_IMAGES = 2000
Roads = dict[str, dict[str, dict[str, Curve]]]
"""Curves by road, scale and order."""


@dataclass(frozen=True)
class BackfillModels:
    """The new and the old model, and maps if there are any: of queries to the old space, of the gallery to the new one.

    `UserError` for a map that does not join the two spaces.
    """

    new: Encoder
    old: Encoder
    query_map: Encoder | None = None
    gallery_map: Encoder | None = None

    def __post_init__(self) -> None:
        for what, encoder, source, target in (
            ("query map", self.query_map, self.new, self.old), ("gallery map", self.gallery_map, self.old, self.new)
        ):  # fmt: skip
            if encoder is None:
                continue
            if encoder.map is None or encoder.base is None:
                raise UserError(f"the {what} {encoder.name} is a model without a map: name the run folder of a map")
            if encoder.base.fingerprint != source.fingerprint:
                raise UserError(
                    f"the {what} {encoder.name} takes embeddings of {encoder.base.name}, not of {source.name}: name a "
                    f"map that leads from {source.name} to {target.name}"
                )
            known = encoder.map.target.fingerprint
            if encoder.embedding_size != target.embedding_size or (
                known is not None and known not in spaces_of(target)
            ):
                raise UserError(
                    f"the {what} {encoder.name} leads to {encoder.map.target}, not to {target.name} (size "
                    f"{target.embedding_size}): name a map that leads from {source.name} to {target.name}"
                )

    def all(self) -> dict[str, Encoder]:
        """By their names here, without the maps that are missing."""
        named = {"new": self.new, "old": self.old, "query_map": self.query_map, "gallery_map": self.gallery_map}
        return {name: encoder for name, encoder in named.items() if encoder is not None}

    def roads(self) -> dict[str, tuple[str, str]]:
        """The roads that there are: by name the models of the queries and of the gallery for the stored part."""
        roads = {}
        if self.new.embedding_size == self.old.embedding_size:
            roads["direct"] = ("new", "old")
        if self.gallery_map is not None:
            roads["gallery_map"] = ("new", "gallery_map")
        if self.query_map is not None:
            roads["query_map"] = ("query_map", "old")
        return {**roads, "side_by_side": ("old", "old")}


@dataclass(frozen=True)
class BackfillOptions:
    """How curves are made. Without `orders`: all that data and maps allow."""

    orders: Collection[str]
    shares: np.ndarray
    repeats: int
    seed: int
    batch_size: int
    num_workers: int
    cache: Path


def run_ijb(models: BackfillModels, root: Path, subset: str, options: BackfillOptions) -> Roads:
    """The curves on the 1:N test of an IJB tree, whose templates are embedded again one after another."""
    images = read_images(root, subset)
    lists = read_identification(images)
    embeddings = {
        name: embed_images(encoder, images, options.batch_size, options.num_workers, options.cache)
        for name, encoder in models.all().items()
    }
    templates = {name: template_features(each, images) for name, each in embeddings.items()}
    stored, of_map = dict(templates), {}
    if models.gallery_map is not None:
        stored["gallery_map"] = template_means(embeddings["gallery_map"], images)
        taken = [
            embed_images(model, images, options.batch_size, options.num_workers, options.cache).plain
            for model in models.gallery_map.sources
        ]
        errors = _predicted_errors(models, np.asarray(models.gallery_map.joined(*taken)))
        of_map = {
            "predicted_error": None if errors is None else mean_over_members(errors, images),
            "length": -np.linalg.norm(stored["gallery_map"], axis=1),
        }
    roads: Roads = {}
    for road, (query, gallery) in models.roads().items():
        features = Features(templates[query], templates[gallery], templates["new"], templates["new"])
        orders = {
            "class_distance": class_distances(embeddings[gallery], images, lists),
            **of_map,
            "margin": -_template_margins(stored[gallery], lists),
            "oracle": _true_errors(road, templates),
        }
        priorities = _priorities(orders, images.num_templates, options)
        try:
            roads[road] = identification_curves(features, templates["old"], lists, priorities, options.shares)
        except ValueError as error:
            raise UserError(
                f"{root}: the two galleries are too small to calibrate one on the other ({error})"
            ) from error
    return roads


def run_retrieval(
    models: BackfillModels, test: RevisitedTest, calibration: ImageDataset | None, options: BackfillOptions
) -> Roads:
    """The curves on a revisited test, whose database is embedded again image by image.

    Calibrated on 2,000 images, drawn by the seed, of `calibration`, which must show other landmarks; all pairs of
    different classes are impostors. Without it there are only raw scores.
    """

    def describe(encoder: Encoder, which: RetrievalImages) -> Rows:
        return describe_images(
            encoder, which, image_sides(encoder), options.batch_size, options.num_workers, options.cache
        )

    database, queries = (
        {name: np.asarray(describe(encoder, which)) for name, encoder in models.all().items()}
        for which in (test.database, test.queries)
    )
    sample = None
    if calibration is None:
        logger.info("without --calibration, images of other landmarks, scores are ranked raw alone")
    else:
        sample = _embed_sample(models, calibration, options)
    of_map = {}
    if models.gallery_map is not None and models.gallery_map.map is not None:
        taken = [describe(model, test.database) for model in models.gallery_map.sources]
        stored = np.asarray(models.gallery_map.joined(*taken))
        lengths = models.gallery_map.map.lengths(stored)
        of_map = {"predicted_error": _predicted_errors(models, stored), "length": -lengths}
    roads: Roads = {}
    for road, (query, gallery) in models.roads().items():
        features = Features(queries[query], database[gallery], queries["new"], database["new"])
        orders = {**of_map, "oracle": _true_errors(road, database)}
        calibrations = None if sample is None else _calibrate(sample, query, gallery)
        roads[road] = retrieval_curves(
            features,
            (queries["old"], database["old"]),
            test.annotations,
            _priorities(orders, len(test.database), options),
            options.shares,
            calibrations,
        )
    return roads


def _predicted_errors(models: BackfillModels, stored: np.ndarray) -> np.ndarray | None:
    """What the gallery's map predicts of its errors for the vectors that it takes (N, D): (N,); None if it cannot."""
    if models.gallery_map is None or models.gallery_map.map is None:
        return None
    return models.gallery_map.map.predicted_error(stored)


def _template_margins(stored: np.ndarray, lists: IdentificationLists) -> np.ndarray:
    """The margins of the templates of each gallery (T,) in what is stored for them (T, D); of others 0."""
    found = np.zeros(len(stored))
    for gallery in lists.galleries.values():
        found[gallery.templates] = margins(stored[gallery.templates], gallery.subjects)
    return found


def _true_errors(road: str, features: dict[str, np.ndarray]) -> np.ndarray | None:
    """The distances that an oracle orders by, in the space where stored and new features meet; None if in none."""
    pairs = {"direct": ("old", "new"), "gallery_map": ("gallery_map", "new"), "query_map": ("old", "query_map")}
    if road not in pairs:
        return None
    stored, refreshed = (features[name] for name in pairs[road])
    return true_distances(stored, refreshed)


def _priorities(orders: dict[str, np.ndarray | None], count: int, options: BackfillOptions) -> dict[str, np.ndarray]:
    """The orders of a road that are asked for and can be had; `UserError` if there is none."""
    found = {"random": random_order(count, options.repeats, options.seed)}
    found |= {name: values[None] for name, values in orders.items() if values is not None}
    chosen = {name: values for name, values in found.items() if not options.orders or name in options.orders}
    if not chosen:
        raise UserError(
            f"--orders {' '.join(options.orders)}: not to be had here, only {', '.join(found)}; class_distance and "
            "margin need the classes of an IJB tree, length a --gallery-map, predicted_error one that predicts its own"
        )
    return chosen


def _embed_sample(
    models: BackfillModels, data: ImageDataset, options: BackfillOptions
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Unit embeddings (n, D) of some images by each model, and their labels (n,)."""
    rng = np.random.default_rng(options.seed)
    rows = np.sort(rng.choice(data.num_images, min(CALIBRATION_IMAGES, data.num_images), replace=False))
    batches = [rows[start : start + options.batch_size] for start in range(0, len(rows), options.batch_size)]
    sides = {encoder.image_size for encoder in models.all().values()}
    if sides != {data.image_size}:
        raise UserError(f"the models take images of {sorted(sides)} pixels: a calibration needs models of one size")
    found: dict[str, list[np.ndarray]] = {name: [] for name in models.all()}
    for batch in load_batches(data, batches, options.num_workers):
        for name, encoder in models.all().items():
            found[name].append(torch.nn.functional.normalize(encoder(batch["image"]), dim=1).cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}, data.labels()[rows]


def _calibrate(sample: tuple[dict[str, np.ndarray], np.ndarray], query: str, gallery: str) -> Calibrations:
    """The calibrations of the stored and of the refreshed part of a road."""
    embeddings, labels = sample
    different = labels[:, None] != labels
    try:
        stored, refreshed = (
            fit_calibration((embeddings[q] @ embeddings[g].T)[different]) for q, g in ((query, gallery), ("new", "new"))
        )
    except ValueError as error:
        raise UserError(f"--calibration: {error}: name records or a list of more classes") from error
    return stored, refreshed
